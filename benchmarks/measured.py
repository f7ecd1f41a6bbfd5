"""One measured run, in a process of its own."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CORES = len(os.sched_getaffinity(0))


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
