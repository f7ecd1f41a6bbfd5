"""Curves of several training runs in the same figures: our trainers', and those of the closed Vertex pipeline."""

import itertools
import math
import posixpath
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from statistics import fmean

from markupsafe import Markup

from rlhf.data.file_systems import file_system, redacted
from rlhf.errors import ConfigError, DataError
from rlhf.report import figures
from rlhf.report.notebook import Picture
from rlhf.report.page import Page, Section, figure, figures_row, fold, paragraph, table, write_page
from rlhf.tracking import find_logs, read_scalars
from rlhf.words import number, three

MOST_RUNS = 5  # that a figure has colours for
MOST_POINTS = 1000  # of a curve; more are averaged, for no screen shows them apart
LEGEND_LETTERS = 60  # that fit in a line under a figure
FAR_APART = 5  # times as many steps: runs are then laid over each other by their share of the way
STEP, SHARE_OF_STEPS = "step", "% of the run's steps"
OTHER_SCALE = 100  # times as large: curves are then drawn apart, for one would be flat beside the other

Points = list[tuple[float, float]]

SFT, REWARD, RL, OTHER = "Supervised fine-tuning", "Reward model", "Reinforcement learning", "Other"
# Tags, or how those of ours begin; the closed pipeline's, which ours share, have no stage before them.
_STAGES = {
    SFT: ("sft/",),
    REWARD: ("rank_loss", "reward_model/"),
    RL: ("reward", "kl_loss", "rl_loss", "ppo/", "grpo/", "eval/"),
}
_MEANINGS = {  # tag: title, what is on the y axis
    "rank_loss": ("Ranking loss", "nats per pair"),
    "reward": ("Reward", "mean per completion"),
    "kl_loss": ("KL loss", "KL coefficient × nats"),
    "rl_loss": ("RL loss", "as logged"),
    "learning_rate": ("Learning rate", "as logged"),
    "sft/loss": ("SFT: loss", "nats per token"),
    "sft/eval_loss": ("SFT: loss on held-out rows", "nats per token"),
    "reward_model/eval_accuracy": ("Reward model: accuracy on selection pairs", "share of pairs ranked right"),
    "ppo/kl": ("PPO: KL from the model before", "nats per completion"),
}
_SAYS_NOTHING = {"tensorboard", "logs", "tensorboard_logs"}  # of a folder's name


@dataclass(frozen=True)
class Curves:
    """What one folder of event files, or one .csv, of a run holds."""

    run: str
    part: str
    """Where in the run it was found."""
    scalars: Mapping[str, Points]
    """{tag: points}, by step, each step once."""

    def by_stage(self) -> dict[str, dict[str, Points]]:
        """Tags under the stage that logged them; `learning_rate`, which each logs, under that of the tags beside it."""
        stages = {tag: _stage(tag) for tag in self.scalars}
        known = set(stages.values()) - {OTHER}
        common = known.pop() if len(known) == 1 else OTHER
        found: dict[str, dict[str, Points]] = defaultdict(dict)
        for tag, points in self.scalars.items():
            found[common if stages[tag] == OTHER else stages[tag]][tag] = points
        return found


def write_curves(runs: Sequence[str], out: str | Path) -> None:
    """Lay runs over each other in one page.

    Args:
        runs: Folders with event files at any depth, or `.csv` files of scalars; paths or URIs. At most five.
        out: HTML file to write.

    Raises:
        ConfigError: More than five runs, one of them twice, or a URI that cannot be used.
        DataError: A run is not there, holds no scalars, or no two of them share a tag.
    """
    page = curves_page(read_runs(runs))
    try:
        write_page(out, page)
    except OSError as error:
        raise ConfigError(f"--out {str(out)!r}: cannot be written ({error.strerror})") from error


def read_runs(runs: Sequence[str], names: Sequence[str] | None = None) -> list[Curves]:
    """Read what `write_curves` draws; raises what that does.

    Args:
        runs: As of `write_curves`.
        names: What each run is called; None: by the ends of their paths.
    """
    if not 1 <= len(runs) <= MOST_RUNS:
        raise ConfigError(
            f"runs: found {len(runs)}, expected 1 to {MOST_RUNS}, for more cannot be told apart in one figure"
        )
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for index, (run, name) in enumerate(zip(runs, names or run_names(runs), strict=True)):
            path = _fetched(run, Path(folder, str(index)))
            parts = find_logs(path)
            read = [Curves(name, _part(part, path), _tidied(read_scalars(part))) for part in parts]
            if not any(curves.scalars for curves in read):
                raise DataError(f"TensorBoard logs {redacted(run)!r}: found no scalars in them, expected at least one")
            found += [curves for curves in read if curves.scalars]
    _check_common(found, len(runs))
    return found


def run_names(runs: Sequence[str]) -> list[str]:
    """Names for a legend: the ends of the paths, as long as it takes to tell them apart.

    Raises:
        ConfigError: A run is given twice.
    """
    whole = [_places(run) for run in runs]
    twice = [run for run, places in zip(runs, whole, strict=True) if whole.count(places) > 1]
    if twice:
        raise ConfigError(f"runs: found {redacted(twice[0])!r} more than once, expected each run once")
    telling = [_telling(places) for places in whole]
    places = telling if len(set(telling)) == len(telling) else whole
    return next(names for length in itertools.count(1) if len(set(names := _ends(places, length))) == len(names))


def curves_page(curves: Sequence[Curves]) -> Page:
    """A section for each stage, those that several runs went through first."""
    runs = list(dict.fromkeys(part.run for part in curves))
    sections = [Section("Runs", _runs(curves), "runs")]
    for stage, shown in sorted(_by_stage(curves).items(), key=lambda stage: len(stage[1]) == 1):
        sections.append(Section(stage, _figures(stage, shown), stage.lower().replace(" ", "-")))
    return Page(
        "Training curves",
        runs[0] if len(runs) == 1 else f"{len(runs)} runs over each other: {', '.join(runs)}",
        sections,
    )


def pictures(curves: Sequence[Curves], tags: Sequence[str]) -> list[Picture]:
    """The page's figures of some tags, in this order, for a notebook; a tag that no run logged has none."""
    found: dict[str, list[Picture]] = {tag: [] for tag in tags}
    for shown in _by_stage(curves).values():
        shown, x_label = _along(shown)
        for tag in tags:
            series = {label: logged.get(tag, []) for label, logged in shown.items()}
            if any(series.values()):
                found[tag] += _drawn(tag, series, x_label)
    return [picture for drawn in found.values() for picture in drawn]


def _places(run: str) -> tuple[str, ...]:
    """The parts of a path or URI."""
    if "://" not in run:
        return Path(run).resolve().parts
    protocol, _, path = redacted(run).partition("://")
    return (f"{protocol}:", *PurePosixPath(posixpath.normpath(path)).parts)


def _telling(places: tuple[str, ...]) -> tuple[str, ...]:
    """Without an end that is the same for many runs."""
    *above, last = places
    if last in _SAYS_NOTHING and len(above) > 1:
        return tuple(above)
    return (*above, last.removesuffix(".csv").removesuffix(".scalars"))


def _ends(paths: Sequence[tuple[str, ...]], length: int) -> list[str]:
    return ["/".join(places[-length:]) for places in paths]


def _fetched(run: str, folder: Path) -> Path:
    """A local path as it is; of a URI, the logs that lie there, copied into `folder`."""
    if "://" not in run:
        return Path(run)
    try:
        fs, root = file_system(run)
        files = [root] if fs.isfile(root) else [f for f in fs.find(root) if "tfevents" in posixpath.basename(f)]
        for file in files:
            copy = folder / (posixpath.relpath(file, root) if file != root else posixpath.basename(file))
            copy.parent.mkdir(parents=True, exist_ok=True)
            fs.get_file(file, str(copy))
    except (ImportError, ValueError) as error:
        raise ConfigError(f"run {redacted(run)!r}: {redacted(' '.join(str(error).split()))}") from error
    except OSError as error:
        raise DataError(f"run {redacted(run)!r}: cannot be read ({redacted(' '.join(str(error).split()))})") from error
    if not files:
        raise DataError(f"run {redacted(run)!r}: found no event files (events.out.tfevents.*) there")
    return copy if files == [root] else folder


def _part(part: Path, run: Path) -> str:
    name = part.relative_to(run).as_posix() if part != run else ""
    return "" if name == "." else name


def _tidied(scalars: Mapping[str, Iterable[tuple[int, float]]]) -> dict[str, Points]:
    """By step, the last said of each: a run that was started again logs some steps twice."""
    return {tag: _thinned(sorted(dict(points).items())) for tag, points in scalars.items() if points}


def _thinned(points: Points) -> Points:
    """At most so many, each the mean of those it stands for, at the last one's step."""
    width = math.ceil(len(points) / MOST_POINTS)
    if width == 1:
        return points
    batches = [points[i : i + width] for i in range(0, len(points), width)]
    return [(batch[-1][0], _mean(batch)) for batch in batches]


def _mean(points: Iterable[tuple[float, float]]) -> float:
    finite = [value for _, value in points if math.isfinite(value)]
    return fmean(finite) if finite else math.nan


def _stage(tag: str) -> str:
    for stage, starts in _STAGES.items():
        if any(tag == start or (start.endswith("/") and tag.startswith(start)) for start in starts):
            return stage
    return OTHER


def _check_common(curves: Sequence[Curves], runs: int) -> None:
    if runs == 1:
        return
    tags: dict[str, set[str]] = defaultdict(set)
    for part in curves:
        tags[part.run] |= set(part.scalars)
    if not any(one & other for one, other in itertools.combinations(tags.values(), 2)):
        said = "; ".join(f"{run} has {', '.join(sorted(found)[:4])}, ..." for run, found in tags.items())
        raise DataError(f"runs: no two of them logged the same tag, so nothing can be compared: {said}")


def _by_stage(curves: Sequence[Curves]) -> dict[str, dict[str, dict[str, Points]]]:
    """{stage: {label: {tag: points}}}, the labels as in legends.

    Raises:
        ConfigError: A stage has more of them than a figure has colours for.
    """
    found: dict[str, dict[str, dict[str, Points]]] = {}
    for stage in (*_STAGES, OTHER):
        parts = [(part, part.by_stage()[stage]) for part in curves if stage in part.by_stage()]
        runs = [part.run for part, _ in parts]
        labels = [
            f"{part.run}/{part.part}" if runs.count(part.run) > 1 and part.part else part.run for part, _ in parts
        ]
        if len(parts) > MOST_RUNS:
            raise ConfigError(
                f"runs: found {len(parts)} of the stage {stage.lower()!r} ({', '.join(labels)}), expected at most "
                f"{MOST_RUNS}, for more cannot be told apart in one figure; name folders further down, and fewer"
            )
        if parts:
            found[stage] = {label: tags for label, (_, tags) in zip(_short(labels), parts, strict=True)}
    return found


def _short(labels: Sequence[str]) -> list[str]:
    """Short enough for a legend's line of at most three, told apart still."""
    room = LEGEND_LETTERS // min(len(labels), 3) - 5  # a line's picture takes as much as 5 letters
    short = [
        label if len(label) <= room else f"{label[: room // 2 - 1]}…{label[len(label) - room // 2 :]}"
        for label in labels
    ]
    return [
        label if short.count(label) == 1 else f"{place}: {label[: room - 3]}" for place, label in enumerate(short, 1)
    ]


def _runs(curves: Sequence[Curves]) -> Markup:
    rows = [
        (
            part.run,
            part.part or None,
            ", ".join(part.by_stage()),
            len(part.scalars),
            int(max(points[-1][0] for points in part.scalars.values())),
        )
        for part in curves
    ]
    return table(["run", "part", "stage", "curves", "last step"], rows)


def _along(shown: Mapping[str, Mapping[str, Points]]) -> tuple[Mapping[str, Mapping[str, Points]], str]:
    """Curves by step, or by each run's share of the way where they took very different numbers of steps; and which."""
    ends = _ends_of(shown)
    if min(ends.values()) <= 0 or max(ends.values()) <= FAR_APART * min(ends.values()):
        return shown, STEP
    return {
        label: {tag: [(100 * step / ends[label], value) for step, value in points] for tag, points in tags.items()}
        for label, tags in shown.items()
    }, SHARE_OF_STEPS


def _ends_of(shown: Mapping[str, Mapping[str, Points]]) -> dict[str, float]:
    return {label: max(points[-1][0] for points in tags.values()) for label, tags in shown.items()}


def _figures(stage: str, shown: Mapping[str, Mapping[str, Points]]) -> Markup:
    how = "Bold lines are running means over a tenth of the points, faint ones are what was logged."
    ends = _ends_of(shown)
    shown, x_label = _along(shown)
    if x_label == SHARE_OF_STEPS:
        steps = ", ".join(f"{label} {number(int(end))}" for label, end in ends.items())
        how += f" These runs took very different numbers of steps ({steps}), so each is drawn over its own way."

    order = [*(tag for tag in _MEANINGS), *sorted({tag for tags in shown.values() for tag in tags} - set(_MEANINGS))]
    common, alone = [], []
    for tag in order:
        series = {label: tags.get(tag, []) for label, tags in shown.items()}
        having = sum(map(bool, series.values()))
        if having:
            drawn = [figure(each.svg, each.alt, each.caption) for each in _drawn(tag, series, x_label)]
            (common if having > 1 or len(shown) == 1 else alone).extend(drawn)
    body = [paragraph(how)]
    if common:
        body.append(figures_row(common))
    if alone:
        body.append(
            fold(f"{len(alone)} more that one run alone logged", figures_row(alone)) if common else figures_row(alone)
        )
    return Markup("").join(body)


def _drawn(tag: str, series: Mapping[str, Points], x_label: str) -> list[Picture]:
    """One figure, or one a run where the scales are too different for one."""
    sizes = {label: _size(points) for label, points in series.items() if points}
    known = [size for size in sizes.values() if size]
    if known and max(known) > OTHER_SCALE * min(known):
        why = " Drawn apart: the runs' values are of very different size."
        return [
            _picture(tag, {other: points if other == label else [] for other, points in series.items()}, x_label, why)
            for label in sizes
        ]
    return [_picture(tag, series, x_label)]


def _picture(tag: str, series: Mapping[str, Points], x_label: str, why: str = "") -> Picture:
    title, y_label = _MEANINGS.get(tag, (tag, "as logged"))
    present = {label: points for label, points in series.items() if points}
    said = "; ".join(
        f"{label} {_course(points)}" if len(series) > 1 else _course(points) for label, points in present.items()
    )
    if why or (len(present) == 1 and len(series) > 1):
        title = f"{title}: {next(iter(present))}"
    # A run that lacks the tag keeps its place, so that the others keep their colours. Matplotlib leaves labels that
    # begin with an underscore out of legends.
    named = {label: f"run {label}" if label.startswith("_") else label for label in series}
    drawn = {named[label] if points else f"_{label}": points for label, points in series.items()}
    return Picture(
        figures.lines(title, drawn, x_label, y_label),
        alt=f"{title} by {x_label}: {said}.",
        caption=f"{tag}: {said}.{why}",
    )


def _size(points: Points) -> float:
    return max((abs(value) for _, value in points if math.isfinite(value)), default=0.0)


def _course(points: Points) -> str:
    """Where a curve starts and ends: means over its first and last twentieth."""
    few = max(1, len(points) // 20)
    first, last = (three(_mean(part)) for part in (points[:few], points[-few:]))
    return f"from {first} to {last}" if first != last else f"at {first}"
