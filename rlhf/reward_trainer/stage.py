"""Fit a reward model on human preferences, and find out what it learned."""

import tempfile
from typing import Any

from rlhf.data.store import read_dataset
from rlhf.errors import DataError
from rlhf.metrics import accuracy as pair_accuracy
from rlhf.metrics import ignores_prompt
from rlhf.models.card import ModelCard
from rlhf.progress import Progress, say
from rlhf.reward_trainer.config import RewardTrainerConfig

STAGE = "reward_trainer"


def run(
    config: RewardTrainerConfig,
    *,
    preferences: str,
    policy: str,
    reward_model: str,
    scores: str,
    report: str,
    tensorboard: str,
) -> dict[str, float]:
    """Train a scalar reward model with the pairwise logistic loss of Stiennon et al. 2020, eq. 1.

    Args:
        preferences: Canonical preferences from data_validation; pairs of the split `eval` are held out.
        policy: Model folder to start from, unless `config.base_model` names another.
        reward_model: Folder for the Model artifact. Scores are shifted so that held-out chosen responses average 0.
        scores: Parquet file for the held-out pairs: `id, score_chosen, score_rejected, swapped_chosen,
            swapped_rejected`; swapped means read with another pair's prompt.
        report: File for the HTML report.
        tensorboard: Folder for event files.

    Returns:
        pairs and held_out (counts), steps, score_shift, and on held-out pairs `accuracy`, its 95 % interval
        (`accuracy_low`, `accuracy_high`) and `accuracy_prompt_swapped` (absent where they have one prompt only).

    Raises:
        DataError: The preferences cannot be read, or either split is empty.
        ModelError: The base model cannot be loaded, or was made with another template.
        TrainingError: The loss is not finite.
    """
    rows, manifest, template = read_dataset(preferences, "preferences")
    train, held_out = ([row for row in rows if row["split"] == split] for split in ("train", "eval"))
    for split, pairs in (("train", train), ("eval", held_out)):
        if not pairs:
            raise DataError(
                f"preferences: no pairs in the split {split!r} of {len(rows)}; give more pairs with other prompts"
            )

    from rlhf.models.loading import prepare_torch
    from rlhf.models.scoring import RewardModel
    from rlhf.tracking import Tracker

    prepare_torch(config.seed)
    model = RewardModel.load(config.base_model or policy, template)
    if model.card is not None:
        model.card.require_template(template, config.base_model or policy)
    cut = _render(rows, template, model)
    say(STAGE, f"{len(train)} pairs, {config.train_steps} steps of {config.batch_size}; {len(held_out)} pairs held out")
    tracker = Tracker(tensorboard)
    with Progress(STAGE, config.train_steps) as progress:
        history = _train(model, train, config, progress, tracker)

    columns = _score_held_out(model, held_out, config)
    right = pair_accuracy(columns["score_chosen"], columns["score_rejected"])
    # With one prompt there is no other to exchange it for.
    exchanged = len({pair["prompt"] for pair in held_out}) > 1
    swapped = pair_accuracy(columns["swapped_chosen"], columns["swapped_rejected"]) if exchanged else None
    tracker.scalars(config.train_steps, {"reward_model/eval_accuracy": right.rate})
    if swapped is not None:
        tracker.scalars(config.train_steps, {"reward_model/accuracy_prompt_swapped": swapped.rate})
    tracker.close()
    _write_scores(scores, held_out, columns)
    metrics = {
        "pairs": len(train),
        "held_out": len(held_out),
        "steps": config.train_steps,
        "prompts_cut": cut / len(rows),
        "accuracy": right.rate,
        "accuracy_low": right.low,
        "accuracy_high": right.high,
        "score_shift": model.shift,
    }
    if swapped is not None:
        metrics["accuracy_prompt_swapped"] = swapped.rate
    model.save(
        reward_model,
        ModelCard(
            kind="reward_model",
            base=config.base_model or (model.card.base if model.card else policy),
            template_digest=template.digest,
            data_digest=manifest.digest,
            training=metrics,
            score_shift=model.shift,
        ),
    )
    _report(report, metrics, history, columns)
    return metrics


def _render(rows: list[dict], template: Any, model: Any) -> int:
    """Put the text that the model reads in place of each bare prompt; returns how many were cut."""
    total = 0
    for row in rows:
        row["prompt"], cut = template.fit(row["prompt"], model.count_tokens, row.get("messages"))
        total += cut
    return total


def _train(model: Any, pairs: list[dict], config: RewardTrainerConfig, progress: Progress, tracker: Any) -> dict:
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import RewardConfig, RewardTrainer

    from rlhf.models.hf_trainer import LogCallback, training_arguments

    def encode(side: str) -> list[dict[str, list[int]]]:
        return [model.encode(pair["prompt"], pair[side]) for pair in pairs]

    def collate(examples: list[dict]) -> dict[str, Any]:
        # TRL's own collator knows input ids only; an encoder also needs to be told prompt from response.
        return model.collate([e["chosen"] for e in examples] + [e["rejected"] for e in examples])

    chosen, rejected = encode("chosen"), encode("rejected")
    data = Dataset.from_list(
        [
            # TRL takes a dataset with these two id columns as tokenised already, and leaves it alone.
            {"chosen_ids": c["input_ids"], "rejected_ids": r["input_ids"], "chosen": c, "rejected": r}
            for c, r in zip(chosen, rejected, strict=True)
        ]
    )
    log = LogCallback(
        progress,
        tracker,
        {"loss": "rank_loss", "accuracy": "reward_model/accuracy", "learning_rate": "learning_rate"},
    )
    _initialise_head(model.model)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = RewardTrainer(
            model=model.model,
            args=training_arguments(
                RewardConfig, config, config.train_steps, scratch, max_length=None, remove_unused_columns=False
            ),
            train_dataset=data,
            processing_class=model.tokenizer,
            data_collator=collate,
            callbacks=[log],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return log.history


def _initialise_head(classifier: Any) -> None:
    """Draw the score head from N(0, 1 / (hidden + 1)), with bias 0 (Huang et al. 2024, detail 11)."""
    from torch import nn

    head = [module for module in classifier.modules() if isinstance(module, nn.Linear) and module.out_features == 1][-1]
    nn.init.normal_(head.weight, std=(head.in_features + 1) ** -0.5)
    if head.bias is not None:
        nn.init.zeros_(head.bias)


def _score_held_out(model: Any, pairs: list[dict], config: RewardTrainerConfig) -> dict[str, list[float]]:
    """Score the held-out pairs with their own prompts and with another pair's, and set the model's shift."""
    prompts = [pair["prompt"] for pair in pairs]
    distinct = list(dict.fromkeys(prompts))
    neighbour = dict(zip(distinct, distinct[1:] + distinct[:1], strict=True))
    swapped = [neighbour[prompt] for prompt in prompts]
    columns = {}
    model.shift = 0.0  # that of a model trained further no longer holds
    with Progress(STAGE, 4 * len(pairs), unit="held-out text") as progress:
        for done, (name, texts, side) in enumerate(
            (
                ("score_chosen", prompts, "chosen"),
                ("score_rejected", prompts, "rejected"),
                ("swapped_chosen", swapped, "chosen"),
                ("swapped_rejected", swapped, "rejected"),
            )
        ):
            completions = [pair[side] for pair in pairs]
            columns[name] = model.score(
                texts, completions, config.eval_batch_size, lambda n, done=done: progress.update(done * len(pairs) + n)
            )
    model.shift = -sum(columns["score_chosen"]) / len(pairs)
    return {name: [value + model.shift for value in values] for name, values in columns.items()}


def _write_scores(path: str, pairs: list[dict], columns: dict[str, list[float]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"id": [pair["id"] for pair in pairs], **columns}), path)


def _report(path: str, metrics: dict[str, float], history: dict, columns: dict[str, list[float]]) -> None:
    from rlhf.report import figures
    from rlhf.report.page import Page, Section, figure, paragraph, table, write_page

    accuracy = paragraph(
        f"On {metrics['held_out']:,} held-out pairs the chosen response scores higher in {metrics['accuracy']:.1%} "
        f"(95 % interval {metrics['accuracy_low']:.1%} to {metrics['accuracy_high']:.1%}). {_prompt_in_words(metrics)}"
    )
    loss = history["rank_loss"]
    curves = figure(
        figures.lines("Training loss", {"pairwise loss": loss}, "step", "nats a pair"),
        alt=f"Pairwise loss from {loss[0][1]:.3f} to {loss[-1][1]:.3f}",
        caption="Pairwise logistic loss; ln 2 = 0.693 is a coin toss.",
    ) + figure(
        figures.lines("Training accuracy", {"accuracy": history["reward_model/accuracy"]}, "step", "share"),
        alt="Share of training pairs ranked right over training",
        caption="Share of the training batch in which the chosen response scores higher.",
    )
    spread = figure(
        figures.histogram(
            "Scores of held-out pairs",
            {"chosen": columns["score_chosen"], "rejected": columns["score_rejected"]},
            "score",
        ),
        alt="Histogram of scores of chosen and rejected responses",
        caption="Shifted so that chosen responses average 0.",
    )
    numbers = table(["metric", "value"], [[name, f"{value:.4g}"] for name, value in metrics.items()])
    sections = [
        Section("What it learned", accuracy + spread, "accuracy"),
        Section("Training", curves + numbers, "training"),
    ]
    write_page(path, Page("Reward trainer", "Pairwise reward model", sections))


def _prompt_in_words(metrics: dict[str, float]) -> str:
    if "accuracy_prompt_swapped" not in metrics:
        return "They all have one prompt, so whether the reward model reads it is not known."
    right, swapped = metrics["accuracy"], metrics["accuracy_prompt_swapped"]
    found = (
        f"With prompts exchanged between pairs it is {swapped:.1%}, a drop of {100 * (right - swapped):.1f} points. "
    )
    if ignores_prompt(right, swapped):
        return found + (
            "The reward model ignores the prompt: its scores say how a response looks, not whether it fits the prompt."
        )
    return found + "The reward model reads the prompt."
