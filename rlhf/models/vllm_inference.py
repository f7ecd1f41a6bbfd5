"""vLLM by itself, for models that are not trained meanwhile: its public API for inference offline."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

from rlhf.models.loading import Source
from rlhf.models.policy import Policy

PROMPTS_AT_ONCE = 1024  # given to vLLM, which batches them by itself; after each of these there is something to keep
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM makes room for
FORBIDDEN = -100.0  # added to a logit that is never to be sampled


class OfflineVLLM:
    """Samples with vLLM's random numbers, seeded for each prompt.

    Args:
        policy: Its tokenizer and what it never says; its weights are not used.
    """

    def __init__(self, policy: Policy, source: Source, dtype: torch.dtype):
        self.policy = policy
        options: dict[str, Any] = {}
        self._adapter = None
        if source.adapter is not None:
            rank = json.loads(Path(source.adapter, "adapter_config.json").read_text(encoding="utf-8"))["r"]
            options = {"enable_lora": True, "max_lora_rank": min(size for size in LORA_RANKS if size >= rank)}
            self._adapter = LoRARequest("adapter", 1, source.adapter)
        self._model = LLM(
            model=source.weights,
            tokenizer=source.tokenizer,
            dtype=str(dtype).split(".")[1],
            max_model_len=policy.longest(policy.template.target_sequence_length),
            **options,
        )

    def follow(self) -> None:
        """The weights stay as they are."""

    def batches(
        self, prompts: Sequence[Sequence[int]], draws: torch.Tensor, temperature: float
    ) -> Iterator[list[tuple[int, list[int]]]]:
        for start in range(0, len(prompts), PROMPTS_AT_ONCE):
            rows = range(start, min(start + PROMPTS_AT_ONCE, len(prompts)))
            outputs = self._model.generate(
                [{"prompt_token_ids": list(prompts[i])} for i in rows],
                [self._sampling(draws[i], temperature) for i in rows],
                lora_request=self._adapter,
                use_tqdm=False,
            )
            yield [(i, list(output.outputs[0].token_ids)) for i, output in zip(rows, outputs, strict=True)]

    def _sampling(self, draws: torch.Tensor, temperature: float) -> Any:
        return SamplingParams(
            temperature=temperature,
            max_tokens=len(draws),
            seed=int(draws[0].item() * 2**31),
            stop_token_ids=[self.policy.eos],
            logit_bias=dict.fromkeys(self.policy.forbidden, FORBIDDEN) or None,
            detokenize=False,
        )
