"""Floating-point operations of a system's matrix products, in its own venv: `python counted.py run.py job result`.

Attention is made of matrix products meanwhile, for torch counts these, and not the kernel that a processor has for it.
"""

import json
import runpy
import sys

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def main(script, job, target):
    sys.argv = [script, job, target]
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        runpy.run_path(script, run_name="__main__")
    with open(target) as file:
        result = json.load(file)
    with open(target, "w") as file:
        json.dump(result | {"operations": counter.get_total_flops()}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
