"""What samples completions: transformers' own `generate`, or vLLM where there is one and a GPU."""

import gc
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch.utils.data import DataLoader

from rlhf.data.template import Template
from rlhf.errors import ConfigError, ModelError
from rlhf.models.batching import by_length
from rlhf.models.loading import Kind, Source, computing_in, device, kind_of, load_config, working_dtype
from rlhf.models.policy import Policy
from rlhf.progress import say
from rlhf.training import processes

# Of a GPU's memory, for the copy of the weights that vLLM samples from and its cache; training has the rest.
VLLM_SHARE = 0.3
FEWEST_TOKENS_OF_A_WORKER = 4096  # at once; with fewer, what is computed together is too little

Sampled = list[tuple[int, list[int]]]
"""Completions as token ids, each after the place of its prompt."""


class Engine(Protocol):
    """Samples from a policy whose weights may change."""

    def follow(self) -> None:
        """Take over the policy's weights as they are now."""

    def batches(self, prompts: Sequence[Sequence[int]], draws: torch.Tensor, temperature: float) -> Iterator[Sampled]:
        """One completion a prompt, as they are done.

        Args:
            prompts: Token ids from `Policy.encode_prompt`.
            draws: (prompts, tokens of a completion at most) uniform in [0, 1), for an engine that takes its random
                numbers from there.
            temperature: 0 is greedy.

        Returns:
            Each prompt once; a completion ends in EOS unless it was cut off.

        Raises:
            ModelError: Memory does not do for one prompt.
        """


def sample(
    engine: Engine, prompts: Sequence[Sequence[int]], draws: torch.Tensor, temperature: float
) -> list[list[int]]:
    """Completions in the order of the prompts."""
    found = dict(pair for batch in engine.batches(prompts, draws, temperature) for pair in batch)
    return [found[place] for place in range(len(prompts))]


class Transformers:
    """`Policy.generate`: sorted by length, a batch at a time, each until all of its rows are done.

    Where memory runs out it goes on with half as many rows.
    """

    def __init__(
        self,
        policy: Policy,
        tokens_at_once: int,
        dtype: torch.dtype = torch.float32,
        synced: bool = False,
        workers: int = 1,
    ):
        """
        Args:
            tokens_at_once: Of a batch, padding and room for the completions included; of all workers' together.
            dtype: Of forward passes.
            synced: Keep step with other processes that hold parts of the model.
            workers: Processes that each take batches on a core of their own, on a CPU; 1 is this one alone, on all
                cores. A step that adds one token is too little work for several. They are forked: all read the same
                weights, and none starts or loads anything.
        """
        self.policy, self.tokens_at_once, self.dtype, self.synced = policy, tokens_at_once, dtype, synced
        self.workers = workers

    def follow(self) -> None:
        """The weights are the policy's own."""

    def batches(self, prompts: Sequence[Sequence[int]], draws: torch.Tensor, temperature: float) -> Iterator[Sampled]:
        lengths = [len(ids) + draws.shape[1] for ids in prompts]
        if self.synced:  # as many batches in every process
            longest = max(processes.gather(max(lengths)))
            waiting = by_length(lengths, sys.maxsize, max(1, self.tokens_at_once // longest))
        else:
            waiting = self._batched(lengths)

        def answer(batch: tuple[int, list[int]]) -> tuple[int, list[list[int]] | None]:
            place, rows = batch
            return place, self._generate([prompts[i] for i in rows], draws[rows], temperature)

        while waiting:
            done = set()
            for place, completions in self._each(waiting, answer):
                if completions is None:
                    self._halve(len(waiting[place]), lengths[waiting[place][-1]])
                    break
                done.add(place)
                yield list(zip(waiting[place], completions, strict=True))
            left = [i for place, batch in enumerate(waiting) if place not in done for i in batch]
            waiting = [[left[i] for i in each] for each in self._batched([lengths[i] for i in left])]

    def _batched(self, lengths: list[int]) -> list[list[int]]:
        return by_length(lengths, self.tokens_at_once // self.workers)

    def _each(self, batches: list[list[int]], answer: Callable[..., Any]) -> Iterator[Any]:
        """What `answer` makes of every batch and its place, in the order in which they are done."""
        workers = min(self.workers, len(batches))
        if workers < 2:
            yield from map(answer, enumerate(batches))
            return
        # Torch's own way to work in processes: it minds their ends, and gives each one thread.
        loader = DataLoader(
            list(enumerate(batches)),
            batch_size=None,
            collate_fn=answer,
            num_workers=workers,
            prefetch_factor=1,
            in_order=False,
            multiprocessing_context="fork",
            generator=torch.Generator(),  # leaves torch's own as it is
        )
        try:
            yield from loader
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker (pid"):
                raise
            raise ModelError(
                "a process that generates was ended from outside, most likely for want of memory, with up to "
                f"{self.tokens_at_once:,} tokens at once in {workers} processes; lower tokens_at_once and run again"
            ) from error

    def _generate(
        self, prompts: list[Sequence[int]], draws: torch.Tensor, temperature: float
    ) -> list[list[int]] | None:
        """None where memory ran out."""
        try:
            with computing_in(self.dtype, self.policy.model.device):
                return self.policy.generate(prompts, draws.shape[1], temperature, draws=draws, synced=self.synced)
        except RuntimeError as error:
            # Processes that keep step cannot each take batches of their own size.
            if self.synced or not should_reduce_batch_size(error):
                raise
            return None  # the error, which holds on to all that was computed, ends here

    def _halve(self, rows: int, longest: int) -> None:
        if rows == 1:
            raise ModelError(
                f"out of memory with one prompt and its completion, {longest:,} tokens; lower prompt_sequence_length "
                "or target_sequence_length, or take a smaller model or a larger device"
            )
        self.tokens_at_once = rows // 2 * longest * self.workers
        gc.collect()
        torch.cuda.empty_cache()
        say("sampling", f"warning: out of memory with {rows:,} prompts at once; going on with {rows // 2:,}")


def training_engine(
    wanted: str,
    policy: Policy,
    response_length: int,
    temperature: float,
    tokens_at_once: int,
    dtype: torch.dtype,
    synced: bool = False,
) -> Engine:
    """The engine of that name, for a policy that is trained.

    Args:
        wanted: transformers, vllm, or auto for vLLM where it can be had.
        tokens_at_once, dtype, synced: As for `Transformers`.

    Raises:
        ConfigError: vLLM is asked for and cannot be had.
    """
    in_4_bits = getattr(policy.model, "is_loaded_in_4bit", False)
    lacking = _why_no_vllm(policy.kind, in_4_bits) or _why_no_vllm_in_training(policy, synced)
    if not _takes_vllm(wanted, lacking):
        return Transformers(policy, tokens_at_once, dtype, synced)
    from rlhf.models.vllm import VLLM

    return VLLM(policy, response_length, temperature)


def inference_engine(
    wanted: str, folder: str, template: Template, tokens_at_once: int, precision: str
) -> tuple[Policy, Engine]:
    """A model that is not trained meanwhile, and what samples from it.

    Args:
        wanted: transformers, vllm, or auto for vLLM where it can be had.
        folder: Of a Model artifact, or any Hugging Face folder, id or short name.
        tokens_at_once: As for `Transformers`.
        precision: float32, bfloat16 or auto.

    Raises:
        ConfigError: vLLM is asked for and cannot be had.
        ModelError: The model cannot be loaded, or cannot generate.
    """
    source = Source.of(folder)
    if _takes_vllm(wanted, _why_no_vllm(kind_of(load_config(source.weights)), source.in_4_bits)):
        from rlhf.models.vllm_inference import OfflineVLLM

        policy = Policy.without_weights(folder, template)
        return policy, OfflineVLLM(policy, source, working_dtype(precision, torch.device("cuda")))
    policy = Policy.load(folder, template, merged=not source.in_4_bits, dtype=working_dtype(precision, device()))
    return policy, Transformers(policy, tokens_at_once, workers=_workers(policy.model.device, tokens_at_once))


def _workers(device: torch.device, tokens_at_once: int) -> int:
    cores = torch.get_num_threads()
    pays = device.type == "cpu" and cores > 1 and tokens_at_once // cores >= FEWEST_TOKENS_OF_A_WORKER
    return cores if pays else 1


def _takes_vllm(wanted: str, lacking: str) -> bool:
    """Whether vLLM is what samples.

    Args:
        lacking: Why it cannot be had; empty where it can.

    Raises:
        ConfigError: It is asked for and cannot be had.
    """
    if wanted == "vllm" and lacking:
        raise ConfigError(f"engine: found 'vllm', but {lacking}; use 'transformers' or 'auto'")
    return wanted != "transformers" and not lacking


def _why_no_vllm(kind: Kind, in_4_bits: bool) -> str:
    """Empty where it can be had.

    Args:
        in_4_bits: Whether the model is an adapter on a base that is held in 4 bits.
    """
    if importlib.util.find_spec("vllm") is None:
        return "vllm is not installed"
    if not torch.cuda.is_available():
        return "there is no GPU"
    if kind is not Kind.CAUSAL:
        return "the model is an encoder-decoder, which vLLM does not serve"
    if in_4_bits:  # merged for vLLM and taken apart again, it would be rounded anew each time
        return "its base is held in 4 bits, which vLLM's copy of it would not be"
    return ""


def _why_no_vllm_in_training(policy: Policy, is_sharded: bool) -> str:
    """Empty where vLLM's copy of the model, which it makes from files, can take over the policy's weights.

    Args:
        is_sharded: Whether several processes hold a part of the weights each.
    """
    if is_sharded:
        return "its weights are spread over processes, and vLLM takes whole ones"
    saved = load_config(policy.model.name_or_path).get_text_config().vocab_size
    held = policy.model.get_input_embeddings().num_embeddings
    if held > saved:
        return (
            f"its tokenizer has {held - saved} tokens more than the {saved:,} of its saved weights, and vLLM's copy "
            "has no room for them"
        )
    weights = 2 * sum(parameter.numel() for parameter in policy.model.parameters())  # in half precision
    share = VLLM_SHARE * torch.cuda.get_device_properties(policy.model.device).total_memory
    if weights > share:
        return (
            f"its copy of the weights takes {weights / 2**30:.1f} GiB, and there are {share / 2**30:.1f} for it, "
            f"{VLLM_SHARE:.0%} of the GPU"
        )
    return ""
