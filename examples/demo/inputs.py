"""Writes the demo's data, gold facts and base models: `python -m examples.demo.inputs FOLDER ARCH SEED`.

A program of its own, so that the demo's driver never loads torch: it would only take memory beside the stages.
"""

import sys
from pathlib import Path

from examples.demo import base_models, posts


def write(root: Path, arch: str, seed: int) -> None:
    """Write `data`, `gold` and the base models of `arch` (llama, or t5 with bert) under `root`."""
    posts.generate(root / "data", root / "gold", seed)
    texts = base_models.corpus(root / "data")
    if arch == "llama":
        base_models.write_llama(root / "llama", texts, seed)
    else:
        base_models.write_t5(root / "t5", texts, seed)
        base_models.write_bert(root / "bert", texts, seed)


if __name__ == "__main__":
    write(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
