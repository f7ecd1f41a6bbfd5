"""The report: what the model learned, in words first, then the curves, then what it said on the way."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from rlhf.metrics import rouge
from rlhf.report import figures
from rlhf.report.page import (
    Comparison,
    Page,
    Section,
    comparisons,
    figure,
    figures_row,
    paragraph,
    table,
    verdict,
)
from rlhf.sft_trainer.course import Course, course, since
from rlhf.words import percent

ENDS = 0.95  # share of completions from which a model is said to have learned to end
MANY_CUT = 0.05

Series = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Said:
    """A held-out prompt, what a person answered, and what the policy said at some steps."""

    id: str
    prompt: str
    answer: str
    by_step: Mapping[int, tuple[str, bool]]
    """{step: (completion, whether it ended by itself)}, in order."""


@dataclass(frozen=True)
class Training:
    """All that the page shows."""

    base_model: str
    tuning: str
    """What of it was trained."""
    why_none: str
    """Why nothing was held out, if so."""
    target_length: int
    metrics: Mapping[str, float]
    """As the stage returns them."""
    history: Mapping[str, Series]
    """By TensorBoard tag; held-out measures begin at step 0, before training."""
    said: Sequence[Said]


def training_page(training: Training) -> Page:
    sections = [
        Section("What it learned", _verdict(training), "verdict"),
        Section("Training", _curves(training), "training"),
    ]
    if training.said:
        sections.append(Section("What it said", _samples(training), "samples"))
    numbers = table(["metric", "value"], list(training.metrics.items()))
    sections.append(Section("Numbers", numbers, "numbers"))
    return Page(
        "Supervised fine-tuning",
        f"{training.base_model}: {training.tuning} trained on {training.metrics['demonstrations']:,} demonstrations, "
        f"{training.metrics['steps']:,} steps.",
        sections,
    )


def skipped_page(base_model: str) -> Page:
    text = f"No demonstrations were given, so nothing was trained: the policy is the base model {base_model}."
    return Page("Supervised fine-tuning", "Skipped", [Section("Skipped", paragraph(text), "skipped")])


def _verdict(training: Training) -> Markup:
    m = training.metrics
    reasons: list[tuple[bool | None, str]] = []
    if m["held_out"]:
        found = course(training.history["sft/eval_loss"])
        word, good = _of_rising(training) if found == "rising" else _WORDS[found]
        headline = _loss_in_words(training, found)
        reasons += [_ending(training), (None, _overlap(training))]
    else:
        word, good = "Trained", None
        headline = "Whether it memorises the demonstrations, and whether it learned to end, was not measured."
        reasons.append((None, f"No demonstration was held out: {training.why_none}."))
    if cut := m["completions_cut"]:
        text = f"{percent(cut)} of the completions are longer than target_sequence_length; cut, they show no end."
        reasons.append((None if cut <= MANY_CUT else False, text))
    if cut := m["prompts_cut"]:
        text = f"{percent(cut)} of the prompts are longer than prompt_sequence_length and were cut."
        reasons.append((None if cut <= MANY_CUT else False, text))
    if skipped := m["skipped_steps"]:
        text = f"{skipped:,} of {m['steps']:,} steps had a loss or gradient that is not finite, and were skipped."
        reasons.append((False, text))
    return verdict(word, headline, reasons, good)


_WORDS: dict[Course, tuple[str, bool | None]] = {
    "falling": ("Still learning", True),
    "level": ("Learned", True),
    "never fell": ("Learned nothing", False),
}


def _of_rising(training: Training) -> tuple[str, bool | None]:
    kept_best = training.metrics["kept_step"] < training.metrics["steps"]
    late, last = {
        "fell": ("Learned, then memorised", "Memorises"),
        "rose": ("Learned, then diverged", "Diverged"),
        "level": ("Learned, then got worse", "Got worse"),
    }[_trained_since_best(training)]
    return (late, None) if kept_best else (last, False)


def _trained_since_best(training: Training) -> Literal["fell", "rose", "level"]:
    """Where the loss on what is trained on went while that on what is held out rose: memorising is when it fell."""
    return since(training.history["sft/loss"], _best(training)[0])


def _best(training: Training) -> tuple[int, float]:
    return min(training.history["sft/eval_loss"], key=lambda point: (point[1], point[0]))


def _loss_in_words(training: Training, found: Course) -> str:
    m, points = training.metrics, training.history["sft/eval_loss"]
    start, end = points[0][1], points[-1][1]
    best_step, best = _best(training)
    loss = f"The loss on {m['held_out']:,} demonstrations held out"
    if found == "falling":
        return (
            f"{loss} fell from {start:.3f} to {end:.3f} nats a token and was still falling at the end: more steps "
            "would lower it further."
        )
    if found == "level":
        return f"{loss} fell from {start:.3f} to {best:.3f} nats a token and levelled off."
    if found == "never fell":
        return f"{loss} was {start:.3f} nats a token before training, never much lower, and {end:.3f} at the end."
    kept = "the last ones nevertheless" if m["kept_step"] == m["steps"] else f"those of step {m['kept_step']:,}"
    rose = f"{loss} fell to {best:.3f} nats a token by step {best_step:,}, then rose to {end:.3f}"
    trained = {
        "fell": f"while on those trained on it came to {m['loss']:.3f}: from there on the model memorises",
        "rose": f"and that on those trained on rose as well, to {m['loss']:.3f}: training diverged; lower the learning "
        "rate",
        "level": f"while that on those trained on stayed at {m['loss']:.3f}: more steps make it worse",
    }[_trained_since_best(training)]
    return f"{rose}, {trained}. The weights kept are {kept}."


def _ending(training: Training) -> tuple[bool, str]:
    ended = training.metrics["ended"]
    if ended >= ENDS:
        return True, f"It learned to end: {percent(ended)} of its completions end by themselves."
    return False, (
        f"Only {percent(ended)} of its completions end by themselves; the others were cut at {training.target_length} "
        "tokens. Train it longer, or see whether target_sequence_length leaves room for an end."
    )


def _overlap(training: Training) -> str:
    before, after = training.history["sft/rouge_l"][0][1], training.metrics["rouge_l"]
    return f"ROUGE-L of its completions against what people wrote went from {before:.3f} to {after:.3f}."


def _curves(training: Training) -> Markup:
    loss, history = training.history["sft/loss"], training.history
    held_out = history.get("sft/eval_loss")
    curves = {"trained on": loss} | ({"held out": held_out} if held_out else {})
    alt = f"Loss on demonstrations trained on, from {loss[0][1]:.3f} to {loss[-1][1]:.3f}"
    if held_out:
        alt += f"; on those held out, from {held_out[0][1]:.3f} to {held_out[-1][1]:.3f}"
    plots = [
        figure(
            figures.lines("Loss", curves, "step", "nats a token"),
            alt=alt,
            caption="Cross-entropy of the tokens learned. Where the two part, the model begins to memorise.",
        )
    ]
    if held_out:
        overlap = {name: history[f"sft/{tag}"] for name, tag in _ROUGE.items()}
        plots += [
            figure(
                figures.lines("ROUGE on held-out prompts", overlap, "step", "F measure"),
                alt=f"ROUGE-L from {overlap['ROUGE-L'][0][1]:.3f} to {overlap['ROUGE-L'][-1][1]:.3f}",
                caption="Greedy completions against what people wrote, no stemming.",
            ),
            figure(
                figures.lines("Completions that end", {"ended": history["sft/ended"]}, "step", "share"),
                alt=f"Share that ends, from {history['sft/ended'][0][1]:.2f} to {history['sft/ended'][-1][1]:.2f}",
                caption="Share of the greedy completions that end by themselves within target_sequence_length.",
            ),
        ]
    return figures_row(plots)


_ROUGE = {"ROUGE-1": "rouge_1", "ROUGE-2": "rouge_2", "ROUGE-L": "rouge_l"}


def _samples(training: Training) -> Markup:
    intro = paragraph(
        "The same held-out prompts through training, answered greedily. They were not chosen by how they came out."
    )
    return intro + comparisons([_through_training(said, training.metrics["kept_step"]) for said in training.said])


def _through_training(said: Said, kept_step: int) -> Comparison:
    scores = rouge([text for text, _ in said.by_step.values()], [said.answer] * len(said.by_step)).rows["rougeL"]
    columns = [("What a person wrote", said.answer, "")]
    for (step, (text, ended)), score in zip(said.by_step.items(), scores, strict=True):
        name = "Before training" if step == 0 else f"Step {step:,}{', kept' if step == kept_step else ''}"
        columns.append((name, text, f"{'ends' if ended else 'cut'}, ROUGE-L {score:.2f}"))
    at_kept = dict(zip(said.by_step, scores, strict=True))[kept_step]
    return Comparison("Held out", said.id, f"ROUGE-L {scores[0]:.2f} → {at_kept:.2f}", None, said.prompt, columns)
