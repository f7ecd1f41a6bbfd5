"""What runs beside the pipeline: `rlhf curves RUN...`, `rlhf grade --grader g.py --data rows.jsonl`."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from rlhf.job import stage_errors
from rlhf.progress import say


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script `rlhf`, also `python -m rlhf`."""
    parser = argparse.ArgumentParser(prog="rlhf", description="Tools beside the RLHF tuning pipeline.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_curves(commands)
    _add_grade(commands)
    given = parser.parse_args(arguments)
    given.run(given)


def _add_curves(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "curves",
        help="lay the training curves of several runs over each other",
        description="Lay the training curves of several runs over each other in one HTML page.",
    )
    command.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="folder with TensorBoard event files at any depth, of our trainers or of the Vertex pipeline, or a .csv "
        "of scalars; a path or a URI",
    )
    command.add_argument(
        "--out", default="curves.html", metavar="FILE.html", help="page to write (default: %(default)s)"
    )
    command.set_defaults(run=_curves)


def _add_grade(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "grade",
        help="try a grader on real rows, without training",
        description="Try a grader on real rows, without training: distribution, ties, errors, best and worst, time; "
        "whether it is deterministic, and whether it can be gamed. Ends with status 1 where it finds a problem.",
    )
    command.add_argument(
        "--grader",
        required=True,
        help="file.py, file.py:function, package.module:function, a service's URL, or a YAML file of a grader",
    )
    command.add_argument(
        "--data", required=True, metavar="FILE", help="prompts with completions or references; .jsonl, .json, .parquet"
    )
    command.add_argument("--rows", type=int, default=500, help="at most so many (default: %(default)s)")
    command.add_argument("--out", metavar="FILE.html", help="page to write")
    command.add_argument("--json", metavar="FILE.json", help="the same for programs")
    command.set_defaults(run=_grade)


def _grade(given: argparse.Namespace) -> None:
    from rlhf.rewards.check import check_grader
    from rlhf.rewards.trial import as_json, in_words, read_grader, read_rows, try_grader, write_page_of

    with stage_errors("grade"):
        grader = read_grader(given.grader)
        check_grader(grader)
        trial = try_grader(grader, read_rows(given.data, given.rows))
        print(in_words(trial))
        if given.out:
            write_page_of(trial, given.out)
            say("grade", f"wrote {given.out}")
        if given.json:
            Path(given.json).write_text(json.dumps(as_json(trial), indent=1) + "\n", encoding="utf-8")
    if trial.problems:
        raise SystemExit(1)


def _curves(given: argparse.Namespace) -> None:
    from rlhf.curves import write_curves

    with stage_errors("curves"):
        write_curves(given.runs, given.out)
        say("curves", f"wrote {given.out}")


if __name__ == "__main__":
    main()
