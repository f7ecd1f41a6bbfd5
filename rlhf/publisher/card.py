"""The README.md of a published model: what it is, what it was judged by, and with which prompts it works."""

import re
from collections.abc import Mapping

import yaml

from rlhf.data.chat import MARK_END, MARK_START
from rlhf.data.file_systems import redacted
from rlhf.data.template import Template
from rlhf.models.card import ModelCard
from rlhf.report.markdown import plain
from rlhf.words import percent

# What of the evaluator's metrics stands in the card and in the artifact's metadata.
FIGURES = (
    *("promote", "win_rate_controlled", "win_rate_controlled_low", "win_rate_controlled_high"),
    *("win_rate", "win_rate_low", "win_rate_high", "wins", "losses", "ties"),
    *("kl", "ended_before", "ended_after", "rows", "reward_before", "reward_after", "grade_before", "grade_after"),
)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_PLACE = "TEXT_OF_THE_PROMPT"


def readme(
    name: str, card: ModelCard, template: Template, figures: Mapping[str, float], evaluation: str, seq2seq: bool
) -> str:
    """Markdown with YAML metadata, as model hubs read it; nothing in it that is not the model's own.

    Args:
        figures: The evaluator's, by the names in `FIGURES`; those that are not there are not said.
        evaluation: Digest of the dataset that they were measured on.
        seq2seq: Whether the model is an encoder-decoder.
    """
    metadata = {
        "library_name": "transformers",
        "pipeline_tag": "text2text-generation" if seq2seq else "text-generation",
        **({"base_model": card.base} if _HUB_ID.fullmatch(card.base) else {}),
        "tags": ["rlhf"],
    }
    rows = [
        ("Base model", plain(redacted(card.base))),
        ("Tuned on prompts", f"data digest {plain(card.data_digest)}"),
        ("Evaluated on", f"data digest {plain(evaluation)}"),
        ("Prompt template", f"digest {plain(template.digest)}"),
        *_judged(figures),
    ]
    return "\n".join(
        [
            "---",
            yaml.safe_dump(metadata, sort_keys=False).rstrip(),
            "---",
            "",
            f"# {plain(name)}",
            "",
            how_tuned(figures),
            "",
            "| | |",
            "| --- | --- |",
            *(f"| {what} | {value} |" for what, value in rows),
            "",
            *_prompts(template, seq2seq),
            "",
        ]
    )


def how_tuned(figures: Mapping[str, object]) -> str:
    """A sentence on what the model was tuned by, as far as the evaluator's figures tell who judged."""
    by = {"reward_after": "human preferences", "grade_after": "the grades of a grader"}
    known = [words for name, words in by.items() if name in figures]
    return f"Tuned with reinforcement learning{' on ' if known else ''}{' and '.join(known)}."


def _judged(figures: Mapping[str, float]) -> list[tuple[str, str]]:
    rows = []
    judge = "grader" if "grade_after" in figures and "reward_after" not in figures else "reward model"
    if "promote" in figures:
        rows.append(("Verdict", "promote" if figures["promote"] else "hold"))
    for name, label in (("win_rate_controlled", "at equal lengths"), ("win_rate", "as the lengths are")):
        if {name, f"{name}_low", f"{name}_high"} <= figures.keys():
            low, high = percent(figures[f"{name}_low"]), percent(figures[f"{name}_high"])
            rows.append(
                (
                    f"Win rate against the model before, {label}",
                    f"{percent(figures[name])} (95\u00a0% interval {low} to {high}), by the {judge}",
                )
            )
    if "kl" in figures:
        rows.append(("KL from the model before", f"{figures['kl']:.3g} nats per completion"))
    if {"ended_before", "ended_after"} <= figures.keys():
        ended = f"{percent(figures['ended_after'])}, {percent(figures['ended_before'])} before"
        rows.append(("Completions that end by themselves", ended))
    return rows


def _prompts(template: Template, seq2seq: bool) -> list[str]:
    """How prompts are made, as code: Python's literals carry any text without being Markdown."""
    rendered = template.render(_PLACE)
    before, _, after = rendered.replace(MARK_START, "").replace(MARK_END, "").partition(_PLACE)
    loaded = "AutoModelForSeq2SeqLM" if seq2seq else "AutoModelForCausalLM"
    special = ", add_special_tokens=False" if template.chat_template else ""
    said = "output[0]" if seq2seq else 'output[0, inputs["input_ids"].shape[1] :]'
    lines = [
        "## Prompts",
        "",
        f"The model was tuned on prompts made like this, of at most {template.prompt_sequence_length:,} tokens, and "
        f"completions of at most {template.target_sequence_length:,}. Others are strange to it.",
        "",
    ]
    if template.chat_template:
        system = f" after the system message {_code(template.instruction)}" if template.instruction else ""
        suffix = f", ending in {_code(template.suffix)}" if template.suffix else ""
        lines += [f"As a chat: the text is one user message{suffix}{system}; the tokenizer has the chat template.", ""]
    return [
        *lines,
        "```python",
        f"from transformers import {loaded}, AutoTokenizer",
        "",
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        f"model = {loaded}.from_pretrained(folder)",
        f"prompt = {before!a} + text + {after!a}",
        f'inputs = tokenizer(prompt, return_tensors="pt"{special})',
        f"output = model.generate(**inputs, max_new_tokens={template.target_sequence_length})",
        f"completion = tokenizer.decode({said}, skip_special_tokens=True).strip()",
        "```",
    ]


def _code(text: str) -> str:
    literal = ascii(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", literal)), default=0))
    return f"{fence} {literal} {fence}"
