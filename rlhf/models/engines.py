"""What samples completions: transformers' own `generate`, or vLLM where there is one and a GPU."""

import importlib.util
from collections.abc import Sequence
from typing import Protocol

import torch

from rlhf.errors import ConfigError
from rlhf.models.loading import Kind
from rlhf.models.policy import Policy
from rlhf.training import processes


class Engine(Protocol):
    """Samples from a policy whose weights change."""

    def follow(self) -> None:
        """Take over the policy's weights as they are now."""

    def sample(self, prompts: Sequence[Sequence[int]], draws: torch.Tensor, temperature: float) -> list[list[int]]:
        """One completion a prompt.

        Args:
            prompts: Token ids from `Policy.encode_prompt`.
            draws: (prompts, tokens of a completion at most) uniform in [0, 1), for an engine that takes its random
                numbers from there.

        Returns:
            Token ids in the order of the prompts, each ending in EOS unless cut off.
        """


class Transformers:
    """`Policy.generate`: sorted by length, a batch at a time, each until all of its rows are done."""

    def __init__(self, policy: Policy, tokens_at_once: int, dtype: torch.dtype = torch.float32, synced: bool = False):
        """
        Args:
            tokens_at_once: Of a batch, padding and room for the completions included.
            dtype: Of forward passes.
            synced: Keep step with other processes that hold parts of the model.
        """
        self.policy, self.tokens_at_once, self.dtype, self.synced = policy, tokens_at_once, dtype, synced

    def follow(self) -> None:
        """The weights are the policy's own."""

    def sample(self, prompts: Sequence[Sequence[int]], draws: torch.Tensor, temperature: float) -> list[list[int]]:
        room, rows = draws.shape[1], None
        if self.synced:  # as many batches in every process
            longest = max(processes.gather(max(map(len, prompts))))
            rows = max(1, self.tokens_at_once // (longest + room))
        device, options = self.policy.model.device.type, {"draws": draws, "synced": self.synced}
        with torch.autocast(device, self.dtype, enabled=self.dtype != torch.float32):
            return self.policy.generate(prompts, room, temperature, rows, tokens_at_once=self.tokens_at_once, **options)


def engine_of(
    wanted: str,
    policy: Policy,
    response_length: int,
    temperature: float,
    tokens_at_once: int,
    dtype: torch.dtype,
    synced: bool = False,
) -> Engine:
    """The engine of that name.

    Args:
        wanted: transformers, vllm, or auto for vLLM where it can be had.
        tokens_at_once, dtype, synced: As for `Transformers`.

    Raises:
        ConfigError: vLLM is asked for and cannot be had.
    """
    lacking = _why_no_vllm(policy)
    if wanted == "vllm" and lacking:
        raise ConfigError(f"engine: found 'vllm', but {lacking}; use 'transformers' or 'auto'")
    if wanted == "transformers" or lacking:
        return Transformers(policy, tokens_at_once, dtype, synced)
    from rlhf.models.vllm import VLLM

    return VLLM(policy, response_length, temperature)


def _why_no_vllm(policy: Policy) -> str:
    if importlib.util.find_spec("vllm") is None:
        return "vllm is not installed"
    if not torch.cuda.is_available():
        return "there is no GPU"
    if policy.kind is not Kind.CAUSAL:
        return "the policy is an encoder-decoder, which vLLM does not serve"
    return ""
