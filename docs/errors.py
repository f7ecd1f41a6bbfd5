"""Write the page of errors, collected from the code: `python -m docs.errors > docs/errors.md`.

Only the source is read: nothing of it is imported.
"""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from docs.cures import CURES

ROOT = Path(__file__).parents[1]

# Where messages come from, in the order in which a newcomer meets them.
AREAS = {
    "Parameters": ("pipelines/params.py", "rlhf/config.py", "rlhf/job.py", "rlhf/models/references.py"),
    "Profiles and `make plan`": ("pipelines/placement", "pipelines/plan.py"),
    "Data": ("rlhf/data", "rlhf/data_validation"),
    "Models": ("rlhf/models",),
    "Training": (
        "rlhf/training",
        "rlhf/sft_trainer",
        "rlhf/reward_trainer",
        "rlhf/ppo_trainer",
        "rlhf/ppo",
        "rlhf/grpo_trainer",
    ),
    "Graders and reward functions": ("rlhf/rewards",),
    "Completions and evaluation": ("rlhf/bulk_inference", "rlhf/evaluator", "rlhf/curves.py", "rlhf/tracking.py"),
    "Publishing and serving": ("rlhf/publisher", "pipelines/placement/serving.py"),
    "Images": ("components", "containers", "pipelines/containers.py", "pipelines/compile.py", "pipelines/release.py"),
    "Submitting": ("pipelines/submit",),
    "Others": ("pipelines", "rlhf"),
}
# What is raised is for whoever started the run. All others are bugs, or are caught and said in other words.
FOR_USERS = {
    *("ConfigError", "DataError", "ModelError", "TrainingError", "Stopped", "ParameterError", "ProfileError"),
    *("ImageError", "EngineError", "SubmitError", "Unreachable", "ServingError", "RegistryError", "UploadError"),
    *("Unusable", "NoRun", "ReleaseError", "error", "_error", "_ended", "kind"),
}
GAP = "…"


@dataclass(frozen=True)
class Message:
    """What is said, with a gap for each thing that differs, and what the message itself says is to be done."""

    area: str
    said: str
    advice: str

    @property
    def fault(self) -> str:
        """What is said before what was expected."""
        return self.said.partition(", expected ")[0]

    @property
    def cure(self) -> str:
        """What to do: by `CURES` where the message names the fault alone, or else as the message says."""
        expected = self.said.partition(", expected ")[2]
        parts = [f"expected: {expected}" if expected else "", self.advice]
        cure = CURES.get(self.said) or "; ".join(part for part in parts if part)
        if re.match(r"[a-z]+[ :]", cure):
            cure = cure[0].upper() + cure[1:]
        return cure if cure.endswith("...") else cure.removesuffix(".")


def messages() -> list[Message]:
    """Every message of the code that is meant for users, sorted by area and text."""
    found = set()
    for folder in ("components", "containers", "pipelines", "rlhf"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            area = _area(path.relative_to(ROOT).as_posix())
            for text in _raised(ast.parse(path.read_text(encoding="utf-8"))):
                said, _, advice = text.partition("; ")
                if re.search("[a-z]{3}", said):  # else nobody could look for it
                    found.add(Message(area, said, advice if re.search("[a-z]", advice) else ""))
    order = list(AREAS)
    return sorted(
        found, key=lambda each: (order.index(each.area), each.said.lstrip(f"{GAP}: ").lower(), each.said, each.advice)
    )


def _area(path: str) -> str:
    for area, places in AREAS.items():
        if any(path == place or path.startswith(f"{place}/") for place in places):
            return area
    raise AssertionError(path)


def _raised(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Raise) or not isinstance(node.exc, ast.Call):
            continue
        name = ast.unparse(node.exc.func).rpartition(".")[2]
        texts = [text for text in map(text_of, node.exc.args) if text]
        # `self.error(place, what)` says "place: what".
        text = f"{GAP}: {texts[-1]}" if name == "error" and texts else texts[0] if texts else ""
        if name in FOR_USERS and re.search(r"[a-z]{3}.*[a-z]{3}", text):
            yield " ".join(re.sub(rf"({GAP})+", GAP, text).split())


def text_of(node: ast.expr) -> str | None:
    """The text of an expression, with gaps where it is made at run time; None where it is no text."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else GAP for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = text_of(node.left), text_of(node.right)
        return None if left is None and right is None else (left or GAP) + (right or GAP)
    return None


INTRODUCTION = f"""<!-- Made from the code by `make docs`; do not edit. -->

# Errors

An error that somebody can mend is one line: it names the parameter, file or row, says what was found and what was
expected, and in most cases what to do. Each of those lines is here, with {GAP} for what differs from case to case; what
was expected stands on the right. Search this page for the words of a line that are not names or numbers of your own.
Anything else, with a traceback, is a bug. [Troubleshooting](troubleshooting.md) begins at what one sees, not at what is
said.

Exit statuses: 1, a stage failed; 2, a parameter is wrong; 130, interrupted; 143, a stage was asked to end (SIGTERM),
and goes on from its checkpoint when it is run again.

Options of stages are checked by their types and ranges: `ppo.batch_size: found 0, expected: Input should be greater
than or equal to 1`, or `unknown option 'ppo.batchsize': did you mean 'batch_size'? valid names are {GAP}`. They are
all in [parameters.md](parameters.md). Rows that cannot be used are no errors, but have reasons:
[data.md](data.md#quarantine).
"""


def render() -> str:
    """The page, as Markdown."""
    lines = [INTRODUCTION.rstrip()]
    area = ""
    for message in messages():
        if message.area != area:
            area = message.area
            lines += ["", f"## {area}", "", "| Said | What to do |", "| --- | --- |"]
        lines.append(f"| {_cell(message.fault)} | {_cell(message.cure)} |")
    return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    """Text in a table's cell, in which nothing is markup but `code` and links."""
    parts = re.split(r"(`[^`]*`|\[[^\]]*\]\([^)]*\))", text)
    escaped = [part if part.startswith(("`", "[")) else re.sub(r"([\\*_<>\[\]#])", r"\\\1", part) for part in parts]
    return "".join(escaped).replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(render())
