"""One measured run: a process of its own, ours in this environment, a peer in a virtual environment with its pins."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = Path(__file__).parent / "peers"
CORES = len(os.sched_getaffinity(0))


def peer_python(name: str, folder: Path) -> Path:
    """The interpreter of the virtual environment of `peers/<name>.txt` in `folder`, which is made where it lacks."""
    venv = folder / name.replace("_", "")
    pins = SCRIPTS / f"{name}.txt"
    python = venv / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    if missing := _missing(python, pins):
        print(f"installing {', '.join(missing)} into {venv}", flush=True)
        subprocess.run([python, "-m", "pip", "install", "-qq", "-r", pins], check=True)
    return python


def measure(command: list[str | Path], job: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """What `command` writes of `job`.

    Args:
        command: Takes the paths of the job's file and of its result's, both JSON, as its last arguments.
    """
    given, result = scratch / "job.json", scratch / "result.json"
    given.write_text(json.dumps(job))
    result.unlink(missing_ok=True)
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": str(CORES)}
    done = subprocess.run(
        [*command, given, result], cwd=ROOT, env=os.environ | offline, capture_output=True, text=True, check=False
    )
    if done.returncode or not result.exists():
        raise SystemExit(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    return json.loads(result.read_text())


def _missing(python: Path, pins: Path) -> list[str]:
    """The pins that the environment does not meet; whatever follows a + in a version says how it was built."""
    wanted = dict(line.split("==") for line in pins.read_text().split())
    ask = "import importlib.metadata as m, json; print(json.dumps([(d.name, d.version) for d in m.distributions()]))"
    found = json.loads(subprocess.run([python, "-c", ask], capture_output=True, check=True).stdout)
    installed = {re.sub(r"[-_.]+", "-", name).lower(): version.partition("+")[0] for name, version in found}
    return [f"{name}=={version}" for name, version in wanted.items() if installed.get(name) != version]
