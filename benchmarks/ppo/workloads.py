"""What the PPO systems are measured on: sizes, prompts, and how likely a completion is to end at each token."""

import random
from dataclasses import dataclass

PAD, EOS, UNK = SPECIAL = 0, 1, 2  # token ids; those from 3 on are words


def word(token: int) -> str:
    return f"w{token}"


@dataclass(frozen=True)
class Workload:
    """Every length is in tokens."""

    name: str
    peer: str
    """The peer's venv and script."""
    systems: tuple[str, ...]
    """What is measured against it: `same` is its own algorithm, `default` ours as it comes."""
    architecture: str = "llama"
    layers: int = 4
    hidden: int = 256
    vocabulary: int = 1024
    shortest_prompt: int = 32
    longest_prompt: int = 128
    response: int = 53
    mean_response: float | None = None
    """None: no completion ends before `response` tokens."""
    batch: int = 32
    epochs: int = 4
    peer_micro_batch: int = 8
    microbatch_tokens: int = 750
    """Ours, padding included: fewer than the peer's 8 episodes have, for memory is measured too."""
    temperature: float = 0.7
    tuning: str = "full"
    """Or `lora`: both systems have no reference of their own then, but the policy without its adapter."""
    gpu: bool = False
    """Needs one; both systems compute in bfloat16 over weights in float32, and keep their activations."""

    @property
    def end_probability(self) -> float:
        """Of EOS at every token, which gives `mean_response`, EOS included, where `response` cuts the longest off."""
        if self.mean_response is None:
            return 0.0
        low, high = 1e-6, 1.0
        while high - low > 1e-9:
            middle = (low + high) / 2
            mean = (1 - (1 - middle) ** self.response) / middle
            low, high = (middle, high) if mean > self.mean_response else (low, middle)
        return (low + high) / 2

    def prompts(self, count: int) -> list[str]:
        """Made-up prompts of words that are a token each, uniform in length: the same for every system."""
        draw = random.Random(0)
        lengths = [draw.randint(self.shortest_prompt, self.longest_prompt) for _ in range(count)]
        words = range(len(SPECIAL), self.vocabulary)
        return [" ".join(word(i) for i in draw.choices(words, k=length)) for length in lengths]


_BOTH, _DEFAULT = ("same", "default"), ("default",)
WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("1k", "trl_1_12", _BOTH),
        Workload("32k", "trl_1_12", _BOTH, vocabulary=32_000),
        Workload("long", "trl_1_12", _BOTH, shortest_prompt=256, longest_prompt=512),
        Workload("short_answers", "trl_1_12", _DEFAULT, mean_response=25.0),
        # TRL 0.11 knows no temperature in its log-probabilities.
        Workload("t5", "trl_0_11", _DEFAULT, architecture="t5", temperature=1.0),
        *(
            Workload(
                f"gpu_{tuning}",
                "trl_1_12",
                _DEFAULT,
                layers=20,
                hidden=2048,  # with this vocabulary 1.1 billion weights
                vocabulary=32_000,
                shortest_prompt=128,
                longest_prompt=512,
                response=128,
                batch=64,
                microbatch_tokens=5120,  # as many as the peer's 8 episodes have
                tuning=tuning,
                gpu=True,
            )
            for tuning in ("full", "lora")
        ),
    )
}
