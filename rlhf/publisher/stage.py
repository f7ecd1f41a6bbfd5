"""Publish a tuned model: make it a folder that servers load as it is, and copy that to where they find it."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from rlhf.data.file_systems import redacted
from rlhf.data.store import read_manifest
from rlhf.data.template import Template
from rlhf.errors import ModelError
from rlhf.models import references
from rlhf.models.card import ModelCard
from rlhf.models.destination import LAST, MANIFEST, Destination
from rlhf.progress import Progress, say
from rlhf.publisher.card import FIGURES, readme
from rlhf.publisher.config import PublisherConfig
from rlhf.training.checkpoints import raise_if_full

STAGE = "publisher"

_WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors")
# By name what a server reads: optimiser states, checkpoints, event files and arguments of trainers stay behind.
_SERVED = (
    *_WEIGHTS,
    *(LAST, "model.safetensors.index.json", "generation_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("*.model", "vocab.json", "vocab.txt", "merges.txt", "chat_template.*", "additional_chat_templates/*.jinja"),
)
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


def run(config: PublisherConfig, *, model: str, evaluation: str, published: str) -> dict[str, float]:
    """Make a folder that `from_pretrained` and the servers built on it load, and copy it to `config.publish_to`.

    Where that has this model already, nothing is copied; where it has a part of it, the rest is.

    Args:
        model: Model folder of the tuned policy: whole, or an adapter, which is merged into its base.
        evaluation: Canonical prompts from data_validation: the model's prompt template stands beside them.
        published: Folder for the Model artifact: weights in safetensors, tokenizer, generation_config.json, README.md,
            and for this pipeline's stages rlhf.json, template.json, and manifest.json with what stands in its metadata.

    Returns:
        bytes and files of the model, files_copied (0 where it was there), merged (0 or 1).

    Raises:
        ConfigError: `publish_to` holds something else, or cannot be written to.
        DataError: `evaluation` is no dataset.
        ModelError: The model is none that was tuned, was made with another template, is not in safetensors, or is an
            adapter whose base is not there.
        TrainingError: There is no room.
    """
    card = ModelCard.load(model)
    card.require_kind("policy", model)
    if card.kind == "base":
        raise ModelError(f"model {model!r}: only names its base model, expected one that was tuned; publish that one")
    template = Template.load(evaluation)
    card.require_template(template, model)
    source, folder, destination = Path(model), Path(published), Destination(config.publish_to)
    is_adapter = (source / _ADAPTER[0]).is_file()
    digest = _digest(source, card, is_adapter)
    destination.require_free(digest)  # before anything takes long

    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if is_adapter:
            _merge(source, card, folder)
        else:
            _copy(source, folder)
        name = config.model_display_name or f"{Path(card.base).name}-rlhf"
        figures = {each: config.figures[each] for each in FIGURES if each in config.figures}
        card = card.model_copy(update={"base": redacted(card.base), "base_in_4_bits": False})
        manifest = _describe(folder, name, card, template, figures, evaluation)
        manifest |= {"digest": digest, "published_to": destination.name}
        sizes = {str(path.relative_to(folder)): path.stat().st_size for path in _files(folder)}
        (folder / MANIFEST).write_text(json.dumps({**manifest, "files": sizes}, indent=1) + "\n", encoding="utf-8")
    except Exception as error:
        raise_if_full(error, f"output of {STAGE} in {published}")
        raise
    total = sum(sizes.values())
    with Progress(STAGE, max(1, total // 1_000_000), unit="MB") as progress:
        copied = destination.publish(folder, lambda done: progress.update(done // 1_000_000))
    happened = f"copied {copied} files to" if copied else "nothing to copy, this model is already in"
    say(STAGE, f"{name}, {total / 1e6:,.1f} MB: {happened} {destination.name}")
    return {"bytes": total, "files": len(sizes), "files_copied": copied, "merged": float(is_adapter)}


def _digest(source: Path, card: ModelCard, is_adapter: bool) -> str:
    """16 hex digits over what the model is made from, so that a merge on another machine makes the same model."""
    whole = hashlib.sha256(card.base.encode() if is_adapter else b"")
    for path in sorted({path for pattern in (*_SERVED, *_ADAPTER) for path in source.glob(pattern)}):
        with path.open("rb") as file:
            whole.update(f"{path.relative_to(source)} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()[:16]


def _merge(source: Path, card: ModelCard, folder: Path) -> None:
    try:
        references.check(card.base, "its base")
    except ModelError as error:
        raise ModelError(
            f"model {str(source)!r}: an adapter, which is to be merged into its base; {error}; put the base where this "
            "task can read it, or tune with `save: merged`"
        ) from error
    from rlhf.models.loading import prepare_torch
    from rlhf.models.policy import Policy

    say(STAGE, f"merging the adapter into {redacted(card.base)}")
    prepare_torch(seed=0)  # a padding token that was added has random weights
    Policy.load(source, merged=True).save(folder, card)


def _copy(source: Path, folder: Path) -> None:
    references.check(str(source), "model")
    for pattern in _SERVED:
        for path in source.glob(pattern):
            target = folder / path.relative_to(source)
            target.parent.mkdir(exist_ok=True)
            if pattern in _WEIGHTS:
                _link(path, target)
            else:
                shutil.copyfile(path, target)


def _link(source: Path, target: Path) -> None:
    """Share the bytes where one disk has both; nobody writes into weights."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def _describe(
    folder: Path, name: str, card: ModelCard, template: Template, figures: dict[str, float], evaluation: str
) -> dict[str, Any]:
    """Write beside the weights what else servers, people and stages read; returns the artifact's metadata."""
    from transformers import GenerationConfig

    from rlhf.models.loading import Kind
    from rlhf.models.policy import Policy

    card.save(folder)
    template.save(folder)
    policy = Policy.without_weights(folder, template)
    # Training leaves it to the stages what is sampled; a server has this file to know where a completion ends. Tokens
    # that training kept out have probabilities without meaning.
    generation = GenerationConfig.from_pretrained(folder)
    generation.update(
        bos_token_id=policy.tokenizer.bos_token_id,
        eos_token_id=policy.eos,
        pad_token_id=policy.pad,
        suppress_tokens=policy.forbidden or None,
    )
    generation.save_pretrained(folder)
    text = readme(name, card, template, figures, read_manifest(evaluation).digest, policy.kind is Kind.SEQ2SEQ)
    (folder / "README.md").write_text(text, encoding="utf-8")
    architecture = policy.model.config.architectures[0]
    return {"display_name": name, "framework": "transformers", "architecture": architecture, **figures}


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
