"""Fine-tune the policy on demonstrations, before preferences come in."""

import math
import tempfile
from pathlib import Path
from typing import Any

from rlhf.data.store import read_dataset
from rlhf.errors import DataError
from rlhf.metrics import late_mean
from rlhf.models.card import ModelCard
from rlhf.progress import Progress, say
from rlhf.sft_trainer.config import SFTTrainerConfig

STAGE = "sft_trainer"
IGNORED = -100  # label of tokens outside the loss, as Hugging Face models take it


def run(
    config: SFTTrainerConfig, *, demonstrations: str, base_model: str, policy: str, report: str, tensorboard: str
) -> dict[str, float]:
    """Train `base_model` on the demonstrations with cross-entropy and write the policy.

    Without demonstrations the policy is the base model itself: the folder then only refers to it.

    Args:
        demonstrations: Canonical demonstrations from data_validation.
        base_model: Hugging Face id, short name, path or URI of a causal or encoder-decoder model.
        policy: Folder for the Model artifact.
        report: File for the HTML report.
        tensorboard: Folder for event files.

    Returns:
        demonstrations, steps, prompts_cut and completions_cut (shares), and the loss averaged over the last logs.

    Raises:
        DataError: The demonstrations cannot be read.
        ModelError: The base model cannot be loaded, or cannot generate.
        TrainingError: The loss is not finite.
    """
    rows, manifest, template = read_dataset(demonstrations, "demonstrations")
    if not rows:
        say(STAGE, "no demonstrations: the policy starts as the base model")
        Path(policy).mkdir(parents=True, exist_ok=True)
        ModelCard(kind="base", base=base_model).save(policy)
        _report_pass_through(report, base_model)
        from rlhf.tracking import Tracker

        Tracker(tensorboard).close()
        return {"demonstrations": 0, "steps": 0}

    from rlhf.models.loading import prepare_torch
    from rlhf.models.policy import Policy
    from rlhf.tracking import Tracker

    prepare_torch(config.seed)
    model = Policy.load(base_model, template)
    examples, prompts_cut, completions_cut = _tokenise(rows, template, model, config)
    steps = config.train_steps or math.ceil(len(examples) * config.epochs / config.batch_size)
    say(STAGE, f"{len(examples)} demonstrations, {steps} steps of {config.batch_size}")
    tracker = Tracker(tensorboard)
    with Progress(STAGE, steps) as progress:
        history = _train(model, examples, config, steps, progress, tracker)
    tracker.close()

    metrics = {
        "demonstrations": len(examples),
        "steps": steps,
        "prompts_cut": prompts_cut / len(examples),
        "completions_cut": completions_cut / len(examples),
        "loss": late_mean(history["sft/loss"]),
    }
    model.save(
        policy,
        ModelCard(
            kind="policy",
            base=base_model,
            template_digest=template.digest,
            data_digest=manifest.digest,
            training=metrics,
        ),
    )
    _report(report, metrics, history["sft/loss"])
    return metrics


def _tokenise(rows: list[dict], template: Any, policy: Any, config: SFTTrainerConfig) -> tuple[list[dict], int, int]:
    """Token ids and labels: one sequence for a causal model, input and target for an encoder-decoder."""
    from rlhf.models.loading import Kind

    examples, prompts_cut, completions_cut = [], 0, 0
    for row in rows:
        prompt, cut = template.fit(row["prompt"], policy.count_tokens, row.get("messages"))
        prompts_cut += cut
        head = policy.encode_prompt(prompt)
        text = template.completion(prompt, row["completion"])
        target = policy.encode_completion(text, template.target_sequence_length)
        completions_cut += target[-1] != policy.eos
        if policy.kind is Kind.SEQ2SEQ:
            examples.append({"input_ids": head, "labels": target})
        else:
            shown = head if config.loss_on == "prompt_and_completion" else [IGNORED] * len(head)
            examples.append({"input_ids": head + target, "labels": shown + target})
    if not any(label != IGNORED for example in examples for label in example["labels"]):
        raise DataError("demonstrations: no token is left to learn from; raise target_sequence_length")
    return examples, prompts_cut, completions_cut


def _train(
    policy: Any, examples: list[dict], config: SFTTrainerConfig, steps: int, progress: Progress, tracker: Any
) -> dict[str, list[tuple[int, float]]]:
    from datasets import Dataset

    from rlhf.models.hf_trainer import LogCallback, training_arguments
    from rlhf.models.loading import Kind

    log = LogCallback(progress, tracker, {"loss": "sft/loss", "learning_rate": "learning_rate"})
    data = Dataset.from_list(examples)
    with tempfile.TemporaryDirectory() as scratch:
        if policy.kind is Kind.SEQ2SEQ:
            from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments

            trainer = Seq2SeqTrainer(
                model=policy.model,
                args=training_arguments(Seq2SeqTrainingArguments, config, steps, scratch),
                train_dataset=data,
                data_collator=DataCollatorForSeq2Seq(policy.tokenizer, policy.model),
                callbacks=[log],
            )
        else:
            from trl import SFTConfig, SFTTrainer

            trainer = SFTTrainer(
                model=policy.model,
                args=training_arguments(
                    SFTConfig, config, steps, scratch, max_length=None, dataset_kwargs={"skip_prepare_dataset": True}
                ),
                train_dataset=data,
                processing_class=policy.tokenizer,
                callbacks=[log],
            )
        _silence(trainer)
        trainer.train()
    return log.history


def _silence(trainer: Any) -> None:
    """The stage shows its own progress; the Trainer's printed dicts are left out."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)


def _report(path: str, metrics: dict[str, float], loss: list[tuple[int, float]]) -> None:
    from rlhf.report import figures
    from rlhf.report.page import Page, Section, figure, paragraph, table, write_page

    body = paragraph(
        f"The policy was trained on {metrics['demonstrations']:,} demonstrations for {metrics['steps']:,} steps; "
        f"the loss ended at {metrics['loss']:.3f} nats a token. {metrics['prompts_cut']:.1%} of prompts and "
        f"{metrics['completions_cut']:.1%} of completions were longer than the configured lengths and were cut."
    )
    curve = figure(
        figures.lines("Training loss", {"loss": loss}, "step", "nats a token"),
        alt=f"Training loss from {loss[0][1]:.3f} to {loss[-1][1]:.3f}",
        caption="Cross-entropy of the demonstrations' tokens.",
    )
    numbers = table(["metric", "value"], [[name, f"{value:.4g}"] for name, value in metrics.items()])
    write_page(
        path, Page("SFT trainer", "Supervised fine-tuning", [Section("Training", body + curve + numbers, "training")])
    )


def _report_pass_through(path: str, base_model: str) -> None:
    from rlhf.report.page import Page, Section, paragraph, write_page

    body = paragraph(
        f"No demonstrations were given, so nothing was trained: the policy is the base model {base_model}."
    )
    write_page(path, Page("SFT trainer", "Supervised fine-tuning", [Section("Skipped", body, "skipped")]))
