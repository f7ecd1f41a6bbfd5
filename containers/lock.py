"""Pin what the images hold, by hash: `python -m containers.lock`, a part of `make lock`.

Versions are those of constraints.txt, which `make setup` installs too. pip says which files it would take for them on
Linux on x86-64, the one platform of the images. No file names where anything was found.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

LOCKS = Path(__file__).parent / "locks"
ROOT = Path(__file__).parents[1]
TORCH = "2.13.0"

# Stages run under kfp's executor, which needs none of what kfp's client needs: where an image has no kfp, kfp's own
# command installs it so.
KFP = ("--no-deps", "kfp==2.17.0")
# Builds the package that has no wheel.
BUILD = "setuptools"
_HEADER = "# Made by `make lock` from constraints.txt; for Linux on x86-64.\n"


def resolve(*requirements: str) -> dict[str, str]:
    """What pip would install for `requirements` under constraints.txt: {name: line of a requirements file}."""
    with tempfile.NamedTemporaryFile() as report:
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"),
                *("--report", report.name, "-c", str(ROOT / "constraints.txt"), *requirements),
            ],
            check=True,
        )
        found = json.loads(Path(report.name).read_text())["install"]
    lines = {}
    for package in found:
        name, version = package["metadata"]["name"].lower().replace("_", "-"), package["metadata"]["version"]
        if name != "rlhf-pipeline":
            digest = package["download_info"]["archive_info"]["hashes"]["sha256"]
            lines[name] = f"{name}=={version} --hash=sha256:{digest}"
    return lines


def main() -> None:
    """Write `locks/*.txt`; each holds only what those before it in an image do not."""
    build = resolve(BUILD)
    light = resolve(str(ROOT)) | resolve(*KFP)
    models = resolve(f"{ROOT}[models]", f"torch=={TORCH}+cpu")
    cuda = resolve(f"torch==={TORCH}")  # three signs: without a local version, which is the build with CUDA
    before = {*build, *light}
    groups = {
        "build": build,
        "light": {name: line for name, line in light.items() if name not in build},
        "torch-cpu": {"torch": models.pop("torch")},
        "torch-cuda": {name: line for name, line in cuda.items() if name not in {*before, *models}},
        "models": {name: line for name, line in models.items() if name not in before},
    }
    LOCKS.mkdir(exist_ok=True)
    for group, lines in groups.items():
        (LOCKS / f"{group}.txt").write_text(_HEADER + "".join(f"{lines[name]}\n" for name in sorted(lines)))


if __name__ == "__main__":
    main()
