"""How fast data_validation checks rows and writes them, against a plain loop: `make bench-validation`.

Writes build/bench/validation.json. Each run is a process of its own, so that its peak memory is its own; ours and the
loop take turns, and the figures are medians.
"""

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

from benchmarks.validation.generate import write_rows
from benchmarks.validation.runs import loop, measure, ours, stage

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--times", type=int, default=5, help="runs of each, of which the median counts")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench" / "validation.json")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.out.parent) as name:
        folder = Path(name)
        source, large = folder / "rows.jsonl", folder / "large.jsonl"
        print(f"writing {arguments.rows:,} rows", flush=True)
        write_rows(source, arguments.rows)
        bytes_per_row = source.stat().st_size / arguments.rows
        measured: dict[str, list[tuple[int, float, float]]] = {"ours": [], "loop": []}
        for number in range(arguments.times):
            for what in (ours, loop):
                measured[what.__name__].append(measure(what, source, folder))
                rows, seconds, peak = measured[what.__name__][-1]
                print(f"{number + 1} {what.__name__}: {rows / seconds:,.0f} rows/s, peak {peak:.2f} GB", flush=True)
        whole = measure(stage, source, folder)
        print(f"writing {4 * arguments.rows:,} rows", flush=True)
        write_rows(large, 4 * arguments.rows)
        four = measure(ours, large, folder)
    median = {name: statistics.median(rows / seconds for rows, seconds, _ in runs) for name, runs in measured.items()}
    result = {
        "rows_per_second": median["ours"],
        "loop_rows_per_second": median["loop"],
        "ratio_vs_loop": median["ours"] / median["loop"],
        "peak_rss_gb": max(peak for _, _, peak in measured["ours"]),
        "peak_rss_gb_four_times_the_rows": four[2],
        "rows_per_second_four_times_the_rows": four[0] / four[1],
        "whole_stage_rows_per_second": whole[0] / whole[1],
        "whole_stage_peak_rss_gb": whole[2],
        "rows": arguments.rows,
        "bytes_per_row": bytes_per_row,
        "cores": os.cpu_count(),
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
