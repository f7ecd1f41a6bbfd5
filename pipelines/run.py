"""Run a pipeline on this machine from a parameter file: `python -m pipelines.run --params file.yaml`."""

import argparse
import importlib
import shutil
import sys
from pathlib import Path

from pipelines import PIPELINES, local, params
from pipelines.placement.local import place


def main() -> int:
    """Run and say where the report is.

    Returns:
        Exit status: 0, 1 when a stage failed, 2 when a parameter is wrong, 130 when interrupted.
    """
    parser = argparse.ArgumentParser(prog="python -m pipelines.run", description="Run a pipeline on this machine.")
    parser.add_argument("--params", required=True, metavar="FILE", help="YAML or JSON file of pipeline parameters")
    parser.add_argument("--out", default="build/run", metavar="DIR", help="folder for outputs (default: %(default)s)")
    parser.add_argument("--pipeline", default="rlhf", choices=PIPELINES, help="which pipeline (default: %(default)s)")
    given = parser.parse_args()
    out = Path(given.out)
    try:
        values = params.read(given.params)
        pipeline = importlib.import_module(f"pipelines.{given.pipeline}").build(place)
        arguments, warnings = params.check(values, pipeline)
        for warning in warnings:
            print(f"warning: {warning}")
        (out / "report.html").unlink(missing_ok=True)  # a run that fails must not leave an older verdict behind
        outputs = local.run(pipeline, arguments, out)
    except params.ParameterError as error:
        print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
        return 2
    except local.StageFailed as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    shutil.copyfile(outputs["report"].path, out / "report.html")
    print(f"report: {out / 'report.html'}\ntuned model: {outputs['tuned_policy'].path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
