"""Try a grader on real rows, without training: is it sound, does it tell answers apart, can it be gamed?"""

import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rlhf import yaml12
from rlhf.data.file_systems import file_system, redacted
from rlhf.errors import ConfigError, DataError, TrainingError
from rlhf.rewards.combined import Rewards
from rlhf.rewards.config import RewardFunction
from rlhf.rewards.groups import flattened, make_grader
from rlhf.words import percent

BATCH = 32  # completions of one call
AGAIN = 64  # rows that are graded a second time
MOST_BAD = 0.05  # share of rows without a grade; the trainers' max_bad_rewards
MANY_TIES = 0.8  # share of rows with the commonest grade, from which there is little to learn
GAMED = 0.5  # share of prompts whose fake answer does as well as the real one
SHOWN = 3
LONG = 160  # characters of a text, in the terminal

# Fields of rows, the first that is there.
PROMPTS = ("prompt", "input_text", "messages")
COMPLETIONS = ("prediction", "completion", "candidate_0", "candidate_1", "chosen", "rejected")
REFERENCES = ("reference", "output_text", "summary")


@dataclass
class Row:
    """A completion to be graded."""

    id: str
    prompt: str | list[dict[str, str]]
    completion: str
    reference: str | None


@dataclass
class Trial:
    """What was found."""

    grader: str
    rows: list[Row]
    grades: list[float | None]
    """By row; None where it did not judge, NaN where it could not."""
    faults: dict[int, str]
    seconds: list[float]
    """Of each call with `BATCH` completions."""
    unsteady: list[str] = field(default_factory=list)
    """In words, what made grades differ that should not."""
    fakes: dict[str, tuple[float, float]] = field(default_factory=dict)
    """{kind of fake answer: (its mean grade, share of prompts where it does as well as the real answer)}."""

    @property
    def known(self) -> list[float]:
        return [grade for grade in self.grades if grade is not None and math.isfinite(grade)]

    @property
    def bad(self) -> int:
        return sum(grade is not None and not math.isfinite(grade) for grade in self.grades)

    @property
    def ties(self) -> float:
        """Share of the rows with the commonest grade."""
        return Counter(self.known).most_common(1)[0][1] / len(self.known) if self.known else 0.0

    @property
    def problems(self) -> list[str]:
        """Why one would not train with it; none where it does."""
        found = []
        if not self.known:
            found.append("It gave no row a grade.")
        if self.bad > MOST_BAD * len(self.rows):
            found.append(f"{percent(self.bad / len(self.rows))} of the rows got no grade because of a fault.")
        found += self.unsteady
        if self.known and self.ties > MANY_TIES and len(self.known) > 1:
            found.append(f"{percent(self.ties)} of the rows got the same grade: there is little to learn from.")
        for kind, (mean, share) in self.fakes.items():
            if share > GAMED:
                found.append(
                    f"It can be gamed: {kind} answers do at least as well as the real ones for {percent(share)} of the "
                    f"prompts (mean grade {mean:.3g}, real ones {statistics.fmean(self.known):.3g})."
                )
        return found


def read_grader(name: str) -> RewardFunction:
    """A grader from what somebody names.

    Args:
        name: `file.py`, `file.py:function`, `package.module:function`, a URL of a service, or a YAML or JSON file with
            a grader's options, or with pipeline parameters that have a `grader`.

    Raises:
        ConfigError: It is none of these, or an option is wrong.
    """
    if name.startswith(("http://", "https://")) and not name.partition("?")[0].endswith(".py"):
        return RewardFunction.parse({"http": name}, "grader")
    if not name.endswith((".yaml", ".yml", ".json")):
        return RewardFunction.parse({"function": name}, "grader")
    try:
        options = yaml12.parse(Path(name).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        said = redacted(" ".join(str(error).split()))
        raise ConfigError(f"--grader {redacted(name)}: cannot be read as YAML ({said})") from error
    if isinstance(options, dict) and isinstance(options.get("grader"), dict):
        options = options["grader"]
    return RewardFunction.parse({"sum": options} if isinstance(options, list) else options, "grader")


def read_rows(uri: str, most: int) -> list[Row]:
    """Rows of a .jsonl, .json or .parquet file at a path or URI: each completion of each row, or its reference.

    Raises:
        DataError: The file cannot be read, or a row has no prompt or nothing to grade.
    """
    where = redacted(uri)
    try:
        fs, path = file_system(uri)
        content = fs.cat_file(path)
        if uri.endswith(".parquet"):
            import io

            import pyarrow.parquet as pq

            found = pq.read_table(io.BytesIO(content)).slice(0, most).to_pylist()
        else:
            found = _json_rows(content.decode("utf-8-sig"), most)
    except Exception as error:  # each store's client has exceptions of its own
        reason = redacted(" ".join(str(error).split()))
        raise DataError(f"--data {where}: cannot be read as rows ({type(error).__name__}: {reason})") from error
    rows: list[Row] = []
    for place, each in enumerate(found, 1):
        if not isinstance(each, dict):
            raise DataError(f"--data {where}, row {place}: found no mapping, expected a prompt and a completion")
        prompt = next((each[name] for name in PROMPTS if each.get(name)), None)
        last = prompt[-1] if isinstance(prompt, list) and isinstance(prompt[-1], dict) else {}
        if isinstance(last.get("candidate_0"), str):  # as some of Vertex's rows have it
            each = each | last
            prompt = prompt if last.get("content") else prompt[:-1]
        reference = next((each[name] for name in REFERENCES if isinstance(each.get(name), str)), None)
        said = [each[name] for name in COMPLETIONS if isinstance(each.get(name), str)]
        if prompt is None:
            raise DataError(f"--data {where}, row {place}: found no {' or '.join(PROMPTS)} among {', '.join(each)}")
        said = said or ([reference] if reference is not None else [])
        if not said:
            names = ", ".join((*COMPLETIONS, *REFERENCES))
            raise DataError(f"--data {where}, row {place}: found nothing to grade, expected one of {names}")
        if isinstance(prompt, list) and prompt and all(map(_is_message, prompt)):
            prompt = [{"role": m.get("role") or m["author"], "content": m["content"]} for m in prompt]
        elif not isinstance(prompt, str):
            raise DataError(
                f"--data {where}, row {place}: found a prompt that is neither text nor messages, expected role and "
                "content of each message"
            )
        rows += [Row(str(each.get("id", place)), prompt, text, reference) for text in said]
    if not rows:
        raise DataError(f"--data {where}: found no rows, expected at least one")
    return rows[:most]


def _is_message(found: Any) -> bool:
    return isinstance(found, dict) and all(
        isinstance(value, str) for value in (found.get("role") or found.get("author"), found.get("content"))
    )


def _json_rows(text: str, most: int) -> list[Any]:
    if text.lstrip().startswith("["):
        return json.loads(text)[:most]
    # Not splitlines: a text may hold U+2028 and the like, which JSON leaves as they are.
    return [json.loads(line) for line in [line for line in text.split("\n") if line.strip()][:most]]


def try_grader(config: RewardFunction, rows: Sequence[Row]) -> Trial:
    """Grade rows, some of them again, and fake answers to their prompts.

    Raises:
        ConfigError: The grader cannot be loaded.
        TrainingError: It fails at the rows themselves; what it does at fake answers is told.
    """
    with ExitStack() as stack:
        parts = [stack.enter_context(closing(make_grader(part))) for part in flattened(config)]
        rewards = Rewards(None, 1.0, parts)
        trial = Trial(config.where, list(rows), [], {}, [])
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            before = time.perf_counter()
            grades, faults = _graded(rewards, batch)
            trial.seconds.append((time.perf_counter() - before) * BATCH / len(batch))
            trial.grades += grades
            trial.faults |= {start + row: words for row, words in faults.items()}
        trial.unsteady = _unsteady(rewards, trial)
        if trial.known:
            trial.fakes = _fakes(rewards, trial)
    return trial


def _graded(rewards: Rewards, rows: Sequence[Row]) -> tuple[list[float | None], dict[int, str]]:
    texts = [_text(row.prompt) for row in rows]
    columns = {"id": [row.id for row in rows], "reference": [row.reference for row in rows]}
    scored = rewards.score(texts, [row.prompt for row in rows], [row.completion for row in rows], columns)
    judged = [any(part[i] is not None for part in scored.parts.values()) for i in range(len(rows))]
    return [total if is_judged else None for total, is_judged in zip(scored.total, judged, strict=True)], scored.faults


def _unsteady(rewards: Rewards, trial: Trial) -> list[str]:
    """Whether a row's grade is the same again, in another order, and alone."""
    rows, first = trial.rows[:AGAIN], trial.grades[:AGAIN]
    said = []
    for what, order in (
        ("It is not deterministic: graded again", list(range(len(rows)))),
        ("It depends on the other rows of a call: in another order", list(range(len(rows)))[::-1]),
    ):
        again: dict[int, float | None] = {}
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            again |= dict(zip(places, _graded(rewards, [rows[i] for i in places])[0], strict=True))
        changed = [i for i in range(len(rows)) if not _same(first[i], again[i])]
        if changed:
            i = changed[0]
            said.append(
                f"{what}, {len(changed)} of {len(rows)} rows got another grade, the first being row {rows[i].id!r} "
                f"({_number(first[i])}, then {_number(again[i])})."
            )
            break
    return said


def _fakes(rewards: Rewards, trial: Trial) -> dict[str, tuple[float, float]]:
    """What answers get that nobody would want: {kind: (mean grade, share that does as well as the real one)}."""
    places = [i for i, grade in enumerate(trial.grades) if grade is not None and math.isfinite(grade)][:AGAIN]
    found = {}
    for kind, fake in FAKES.items():
        rows = [
            Row(trial.rows[i].id, trial.rows[i].prompt, fake(_text(trial.rows[i].prompt), trial.rows[i].completion),
                trial.rows[i].reference)
            for i in places
        ]  # fmt: skip
        try:
            grades = [
                grade
                for start in range(0, len(rows), BATCH)
                for grade in _graded(rewards, rows[start : start + BATCH])[0]
            ]
        except TrainingError as error:
            trial.unsteady.append(f"It fails at {kind} answers: {error}")
            continue
        pairs = [
            (grade, trial.grades[i])
            for grade, i in zip(grades, places, strict=True)
            if grade is not None and math.isfinite(grade)
        ]
        if pairs:
            better = sum(fake_grade >= real for fake_grade, real in pairs) / len(pairs)
            found[kind] = (statistics.fmean(grade for grade, _ in pairs), better)
    return found


def _stuffed(prompt: str, completion: str) -> str:
    words = [word.strip(".,:;!?\"'()") for word in prompt.split()]
    return " ".join(word for word, _ in Counter(word for word in words if len(word) > 3).most_common(30))


FAKES = {
    "empty": lambda prompt, completion: "",
    "repeated": lambda prompt, completion: " ".join([completion] * 5),
    "prompt-copying": lambda prompt, completion: prompt,
    "keyword-stuffed": _stuffed,
}


def in_words(trial: Trial) -> str:
    """For a terminal."""
    known = sorted(trial.known)
    lines = [f"{trial.grader}: {len(trial.rows):,} completions"]
    if known:
        quartiles = [known[round(share * (len(known) - 1))] for share in (0, 0.25, 0.5, 0.75, 1)]
        spread = statistics.stdev(known) if len(known) > 1 else 0.0
        lines += [
            f"grades       mean {statistics.fmean(known):.3g}, standard deviation {spread:.3g}; lowest, quartiles, "
            f"highest: {', '.join(f'{value:.3g}' for value in quartiles)}",
            f"ties         {len(set(known)):,} different grades; {percent(trial.ties)} have the commonest",
        ]
    lines.append(
        f"not graded   {trial.grades.count(None):,} not judged (None), {trial.bad:,} with a fault"
        + "".join(f"\n             {words}" for words in list(trial.faults.values())[:SHOWN])
    )
    lines.append(
        f"time         {statistics.median(trial.seconds):.3g} s a call with {BATCH} completions, "
        f"{max(trial.seconds):.3g} s the longest"
    )
    for kind, (mean, share) in trial.fakes.items():
        lines.append(
            f"{kind:<16} answers: mean {mean:.3g}, as good as the real one for {percent(share)} of the prompts"
        )
    for title, rows in (("best", best(trial)), ("worst", best(trial, worst=True))):
        lines += [f"{title:<6} {grade:>8.3g}  {row.id}: {_short(row.completion)}" for row, grade in rows]
    lines += [f"PROBLEM: {problem}" for problem in trial.problems] or ["no problem found"]
    return "\n".join(lines)


def best(trial: Trial, worst: bool = False) -> list[tuple[Row, float]]:
    """The rows with the highest, or the lowest, grades."""
    known = [(row, g) for row, g in zip(trial.rows, trial.grades, strict=True) if g is not None and math.isfinite(g)]
    return sorted(known, key=lambda pair: pair[1], reverse=not worst)[:SHOWN]


def as_json(trial: Trial) -> Mapping[str, Any]:
    """For programs."""
    known = trial.known
    return {
        "grader": trial.grader,
        "rows": len(trial.rows),
        "mean": statistics.fmean(known) if known else None,
        "standard_deviation": statistics.stdev(known) if len(known) > 1 else None,
        "different_grades": len(set(known)),
        "ties": trial.ties,
        "not_judged": trial.grades.count(None),
        "faults": trial.faults,
        "seconds_per_call": statistics.median(trial.seconds),
        "fakes": {kind: {"mean": mean, "as_good": share} for kind, (mean, share) in trial.fakes.items()},
        "problems": trial.problems,
    }


def write_page_of(trial: Trial, path: str | Path) -> None:
    """The same as a page that opens offline, with the distribution drawn."""
    from rlhf.report import figures
    from rlhf.report.page import Page, Section, figure, figures_row, table, verdict, write_page

    problems = trial.problems
    word = "Not fit to train with" if problems else "Sound"
    reasons = [(False, problem) for problem in problems] or [(True, "No problem was found.")]
    headline = f"{len(trial.rows):,} completions, {len(trial.known):,} graded."
    sections = [Section("In short", verdict(word, headline, reasons, not problems), "verdict")]
    if trial.known:
        mean = statistics.fmean(trial.known)
        drawn = figure(
            figures.histogram("Grades", {"grade": trial.known}, "grade", "share of completions"),
            alt=f"Histogram of grades, with a mean of {mean:.3g}.",
            caption=f"{percent(trial.ties)} of the completions have the commonest grade.",
        )
        sections.append(Section("Distribution", figures_row([drawn]), "distribution"))
        rows = [(f"{kind} answers", m, percent(s)) for kind, (m, s) in trial.fakes.items()]
        caption = "Answers that nobody would want, made up for the same prompts."
        sections.append(
            Section("Can it be gamed", table(["", "mean grade", "as good as the real one"], rows, caption), "gamed")
        )
        ends = [(g, row.id, row.completion) for row, g in [*best(trial), *best(trial, worst=True)[::-1]]]
        sections.append(Section("Best and worst", table(["grade", "id", "completion"], ends), "examples"))
    if trial.faults:
        faults = [(trial.rows[row].id, words) for row, words in list(trial.faults.items())[:50]]
        sections.append(Section("Faults", table(["id", "what was wrong"], faults), "faults"))
    write_page(path, Page("Trial of a grader", trial.grader, sections))


def _text(prompt: str | list[dict[str, str]]) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)


def _same(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    if not (math.isfinite(one) and math.isfinite(other)):
        return math.isfinite(one) == math.isfinite(other)
    return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9)


def _number(grade: float | None) -> str:
    return "None" if grade is None else f"{grade:.6g}"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= LONG else f"{text[:LONG]}...")
