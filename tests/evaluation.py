"""Inputs of the evaluator for tests, with a tiny reward model."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from rlhf.data.store import write_dataset
from rlhf.data.template import Template
from rlhf.evaluator import EvaluatorConfig
from rlhf.evaluator import stage as evaluator

TEMPLATE = Template(suffix="TL;DR:")
WORDS = ["cat", "dog", "fish", "ran", "sat", "slept", "the", "a", "home", "TL;DR:"]


def write_reward_model(folder: Path) -> Path:
    """A tiny random classifier, as an ordinary Hugging Face folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        eos_token="[SEP]",
        model_max_length=64,
    ).save_pretrained(folder)
    torch.manual_seed(0)
    BertForSequenceClassification(
        BertConfig(
            vocab_size=len(names),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=64,
            num_labels=1,
            initializer_range=1.0,
        )
    ).save_pretrained(folder)
    return folder


class Job:
    """Inputs of the evaluator on disk, to be changed by a test before it runs."""

    def __init__(self, folder: Path, reward_model: Path):
        self.folder, self.reward_model = folder, reward_model
        self.rows: list[dict[str, Any]] = [
            {"id": f"row-{i}", "prompt": f"the {noun} ran home", "reference": f"a {noun} ran home"}
            for i, noun in enumerate(["cat", "dog", "fish"] * 4)
        ]
        # As many letters, so that length explains nothing.
        self.before = self.predictions("sleptsat homerun", "sft")
        self.after = self.predictions("a dog slept home", "tuned")
        self.logs: dict[str, str] = {}

    def predictions(self, text: str, model: str) -> list[dict[str, Any]]:
        return [
            {
                "id": row["id"],
                "prompt": TEMPLATE.render(row["prompt"]),
                "prediction": text,
                "finish_reason": "stop",
                "tokens": len(text.split()),
                "model": model,
                "template_digest": TEMPLATE.digest,
            }
            for row in self.rows
        ]

    def log(self, name: str, series: dict[str, list[float]]) -> None:
        from rlhf.tracking import Tracker

        self.logs[name] = str(self.folder / name)
        tracker = Tracker(self.logs[name])
        for tag, values in series.items():
            for step, value in enumerate(values):
                tracker.scalars(step, {tag: value})
        tracker.close()

    def run(self, **options: Any) -> dict[str, float]:
        write_dataset(self.folder / "evaluation", "prompts", self.rows, TEMPLATE)
        for name in ("before", "after"):
            lines = [json.dumps(row, ensure_ascii=False) for row in getattr(self, name)]
            (self.folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return evaluator.run(
            EvaluatorConfig(**options),
            predictions_before=str(self.folder / "before.jsonl"),
            predictions_after=str(self.folder / "after.jsonl"),
            evaluation=str(self.folder / "evaluation"),
            reward_model=str(self.reward_model),
            report=str(self.folder / "report.html"),
            summary=str(self.folder / "summary.md"),
            side_by_side=str(self.folder / "side_by_side.jsonl"),
            **self.logs,
        )

    @property
    def report(self) -> str:
        """The page's text, as a reader sees it."""
        parts: list[str] = []
        parser = HTMLParser()
        parser.handle_data = parts.append
        parser.feed((self.folder / "report.html").read_text(encoding="utf-8"))
        return " ".join("".join(parts).split())


class WordCounter:
    """Stands where a reward model does: more words, higher score."""

    card = None

    def score(self, prompts, completions, batch_size, on_batch):
        return [float(len(text.split())) for text in completions]
