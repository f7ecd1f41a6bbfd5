"""What runs beside the pipeline: `rlhf curves RUN... --out curves.html`."""

import argparse
from collections.abc import Sequence

from rlhf.job import stage_errors
from rlhf.progress import say


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script `rlhf`, also `python -m rlhf`."""
    parser = argparse.ArgumentParser(prog="rlhf", description="Tools beside the RLHF tuning pipeline.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_curves(commands)
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


def _curves(given: argparse.Namespace) -> None:
    from rlhf.curves import write_curves

    with stage_errors("curves"):
        write_curves(given.runs, given.out)
        say("curves", f"wrote {given.out}")


if __name__ == "__main__":
    main()
