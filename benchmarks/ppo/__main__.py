"""How fast the PPO trainer is, and how soon it is good, against the last PPO trainers of TRL: `make bench-ppo`.

Writes build/bench/ppo.json. The systems take turns, each run a process of its own, and the figures are medians.
"""

import argparse
import json
import os
from pathlib import Path

import torch

from benchmarks.measured import CORES, ROOT
from benchmarks.ppo import quality, speed
from benchmarks.ppo.workloads import WORKLOADS

_QUALITY = "time_to_quality"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    here = [name for name, workload in WORKLOADS.items() if torch.cuda.is_available() or not workload.gpu]
    if left_out := WORKLOADS.keys() - here:
        print(f"no GPU here, so without {', '.join(sorted(left_out))}", flush=True)
    parser.add_argument("--only", nargs="+", choices=(*here, _QUALITY), default=(*here, _QUALITY))
    parser.add_argument("--updates", type=int, default=4, help="of each run; the first does not count")
    parser.add_argument("--times", type=int, default=3, help="runs of each, of which the median counts")
    parser.add_argument("--demo", type=Path, default=quality.DEMO, help="folder of a finished `make demo`")
    parser.add_argument(
        "--peers",
        type=Path,
        default=ROOT / "build" / "bench" / "peers",
        help="folder of the peers' virtual environments, which are made where they lack (minutes, gigabytes)",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench" / "ppo.json")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    demo = quality.Demo.of(arguments.demo) if _QUALITY in arguments.only else None
    # What was measured before stays, so that a part can be measured again.
    raw = json.loads(arguments.out.read_text())["raw"] if arguments.out.exists() else {"runs": {}}

    def write() -> None:
        result = {
            **speed.ratios(raw["runs"]),
            "fewer_operations": speed.fewer_operations(raw.get("operations", {})),
            **({_QUALITY: raw[_QUALITY][_QUALITY]} if _QUALITY in raw else {}),
            "cores": CORES,
            "raw": raw,
        }
        unfinished = arguments.out.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(result, indent=1) + "\n")
        os.replace(unfinished, arguments.out)

    for name in WORKLOADS:
        if name in arguments.only:
            raw["runs"][name] = speed.compare(WORKLOADS[name], arguments.peers, arguments.updates, arguments.times)
            raw.setdefault("operations", {})[name] = speed.count(WORKLOADS[name], arguments.peers)
            write()
    if demo is not None:
        raw[_QUALITY] = quality.summary(quality.compare(demo, arguments.peers, arguments.times))
        write()
    result = json.loads(arguments.out.read_text())
    print(json.dumps({key: value for key, value in result.items() if key != "raw"}, indent=1))


if __name__ == "__main__":
    main()
