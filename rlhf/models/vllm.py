"""vLLM beside the policy on its GPU, through TRL's `VLLMGeneration`, no public API, which is imported here alone."""

from collections.abc import Iterator, Sequence

import torch
from accelerate import Accelerator
from trl.generation.vllm_generation import VLLMGeneration

from rlhf.models.engines import VLLM_SHARE
from rlhf.models.policy import Policy

FORBIDDEN = -100.0  # added to a logit that is never to be sampled


class VLLM:
    """Samples with vLLM's random numbers: completions are not those of `generate`, nor the same after a restart."""

    def __init__(self, policy: Policy, response_length: int, temperature: float):
        self.policy, self.temperature = policy, temperature
        self._generation = VLLMGeneration(
            model=policy.model,
            accelerator=Accelerator(),
            processing_class=policy.tokenizer,
            mode="colocate",
            gpu_memory_utilization=VLLM_SHARE,
            enable_sleep_mode=True,
            temperature=temperature,
            top_k=0,
            top_p=1.0,
            max_completion_length=response_length,
            max_model_length=policy.longest(response_length),
            logprobs=None,
            generation_kwargs={
                "logit_bias": {token: FORBIDDEN for token in policy.forbidden},
                "stop_token_ids": [policy.eos],
            },
        )

    def follow(self) -> None:
        self._generation.sync_weights()

    def batches(
        self, prompts: Sequence[Sequence[int]], draws: torch.Tensor, temperature: float
    ) -> Iterator[list[tuple[int, list[int]]]]:
        if temperature != self.temperature:
            raise ValueError(f"vLLM was made for the temperature {self.temperature:g}, not {temperature:g}")
        _, completions, _, _ = self._generation.generate([list(ids) for ids in prompts], None, 1)
        yield [(place, list(ids)) for place, ids in enumerate(completions)]
