"""What the matrix products of one update take with nothing between them: `python -m benchmarks.ppo.products`.

No trainer that computes the same in the same precision can be faster, whatever it leaves out, fuses or rearranges.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.ppo import ours

_PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default}  # of linear layers; attention is not counted
_TIMES = 5

Layout = tuple[torch.Size, tuple[int, ...]]  # size and stride


class Recorder(TorchDispatchMode):
    """Notes every product that is computed, forward and backward."""

    def __init__(self):
        super().__init__()
        self.calls: list[tuple[Callable[..., torch.Tensor], list[Layout]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in _PRODUCTS:
            self.calls.append((func, [(tensor.size(), tensor.stride()) for tensor in args]))
        return func(*args, **(kwargs or {}))


def main(job: dict[str, Any], target: Path) -> None:
    job["options"]["train_steps"] = 1
    with tempfile.TemporaryDirectory() as scratch, Recorder() as recorder:
        ours.main(job, Path(scratch, "result.json"))
    operands = {layout: _tensor(*layout) for _, layouts in recorder.calls for layout in layouts}
    prepared = [(func, [operands[layout] for layout in layouts]) for func, layouts in recorder.calls]
    times = [_seconds(prepared) for _ in range(1 + _TIMES)][1:]
    target.write_text(json.dumps({"seconds": statistics.median(times), "products": len(prepared)}))


def _tensor(size: torch.Size, stride: tuple[int, ...]) -> torch.Tensor:
    room = 1 + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    return torch.randn(room).as_strided(size, stride)


@torch.inference_mode()
def _seconds(prepared: list[tuple[Callable[..., torch.Tensor], list[torch.Tensor]]]) -> float:
    start = time.perf_counter()
    for func, operands in prepared:
        func(*operands)
    return time.perf_counter() - start


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
