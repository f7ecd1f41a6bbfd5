"""What `rlhf.ppo.zero` makes of a small model's gradients, for torchrun: `-m tests.zero <stage>`."""

import copy
import math
import sys

import torch
from torch import nn

from rlhf.ppo.zero import Zero, unshard
from rlhf.training import processes
from tests.ppo import config_of

LENGTHS = (1.0, 3.0)  # of what each of two processes sees


def loss(model: nn.ModuleList, length: float, factor: float) -> torch.Tensor:
    return factor * model[1](model[0](torch.full((2, 3), length))).square().sum()


def optimizer_of(model: nn.ModuleList) -> torch.optim.Optimizer:
    groups = [{"params": list(part.parameters()), "lr": 0.1 * (i + 1)} for i, part in enumerate(model)]
    return torch.optim.AdamW(groups, eps=1e-5, weight_decay=0.0, fused=True)


def main(stage: int) -> None:
    processes.join()
    torch.manual_seed(0)
    expected = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 1)])
    plain = optimizer_of(expected)
    options = {"sharding": "deepspeed", "deepspeed": {"zero_optimization": {"stage": stage}}, "engine": "transformers"}
    config = config_of(**options, max_gradient_norm=5.0)

    def start() -> tuple[nn.ModuleList, Zero]:
        model = copy.deepcopy(start_from)
        return model, Zero(config, model, optimizer_of(model))

    start_from = copy.deepcopy(expected)
    model, zero = start()
    for factor in (0.1, math.inf, 20.0, math.nan, None, 0.3):
        if factor is None:  # a run that goes on
            tensors = processes.gather(zero.state(model.named_parameters()))[0]
            model, zero = start()
            zero.load_state(model.named_parameters(), tensors)
            continue
        with zero.one_gradient():
            for part in (0.25, 0.75):
                loss(model, LENGTHS[processes.rank()], part * factor).backward()
        norm = zero.step()
        if not math.isfinite(factor):
            assert norm == math.inf, "no step was taken"
            continue
        plain.zero_grad()
        sum(loss(expected, length, factor) for length in LENGTHS).backward()
        assert math.isclose(norm, nn.utils.clip_grad_norm_(expected.parameters(), 5.0), rel_tol=1e-5)
        plain.step()
    unshard(model)
    for (name, found), wanted in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert torch.allclose(found, wanted, atol=1e-6), name


if __name__ == "__main__":
    main(int(sys.argv[1]))
