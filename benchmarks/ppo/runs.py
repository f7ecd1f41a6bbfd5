"""What is run: the peers, each in a virtual environment with its pins, and ours in this one."""

import json
import re
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parent / "peers"
OURS = Path(__file__).with_name("ours.py")
COUNTED = Path(__file__).with_name("counted.py")


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


def _missing(python: Path, pins: Path) -> list[str]:
    """The pins that the environment does not meet; whatever follows a + in a version says how it was built."""
    wanted = dict(line.split("==") for line in pins.read_text().split())
    ask = "import importlib.metadata as m, json; print(json.dumps([(d.name, d.version) for d in m.distributions()]))"
    found = json.loads(subprocess.run([python, "-c", ask], capture_output=True, check=True).stdout)
    installed = {re.sub(r"[-_.]+", "-", name).lower(): version.partition("+")[0] for name, version in found}
    return [f"{name}=={version}" for name, version in wanted.items() if installed.get(name) != version]
