"""The images that stages run in: one name per stage, one registry, one tag, and after a push one digest."""

import json
import os
import re
from pathlib import Path

STAGES = (
    "data_validation",
    "sft_trainer",
    "reward_trainer",
    "ppo_trainer",
    "grpo_trainer",
    "bulk_inference",
    "evaluator",
    "publisher",
)

# Registry and tag of components that run from the source tree: no registry serves this name, so that nothing is
# pulled by mistake.
NOT_BUILT = ("not-built.invalid", "source-tree")

# What `make push` writes: {stage: {"image": name with tag, "digest": "sha256:..."}}.
TABLE = Path("build/images.json")


class ImageError(Exception):
    """No usable name of an image; the message is one line that says what to do."""


def image(stage: str) -> str:
    """Name of a stage's image, from `IMAGE_REGISTRY` and `IMAGE_TAG` as they are when this is called.

    Args:
        stage: One of `STAGES`.

    Returns:
        "<registry>/rlhf-<stage, with dashes>:<tag>"; without the variables, a name that says it is not built.
    """
    if stage not in STAGES:
        raise ValueError(f"unknown stage {stage!r}, expected one of {', '.join(STAGES)}")
    return _name(os.environ.get("IMAGE_REGISTRY") or NOT_BUILT[0], stage, os.environ.get("IMAGE_TAG") or NOT_BUILT[1])


def local_images(registry: str | None, tag: str) -> dict[str, str]:
    """Image names for this machine's engine, which may have no registry in them.

    Returns:
        {stage: image}.

    Raises:
        ImageError: A tag that moves (`latest`), or a registry or tag that no engine takes.
    """
    if registry and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*(:\d+)?(/[a-z0-9._-]+)*", registry):
        raise ImageError(f"registry: found {registry!r}, expected host[:port]/path in small letters")
    if tag == "latest" or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", tag):
        raise ImageError(
            f"tag: found {tag!r}, expected a fixed tag of letters, digits, '.', '_' and '-', such as a commit; "
            "'latest' moves, so a cached step could come from another image"
        )
    return {stage: _name(registry, stage, tag) for stage in STAGES}


def cluster_images(registry: str | None, tag: str | None) -> dict[str, str]:
    """Image names for a cluster, which must be able to pull them.

    Returns:
        {stage: image}.

    Raises:
        ImageError: No registry, no tag, a tag that moves (`latest`), or one that no registry takes.
    """
    if not registry:
        raise ImageError("registry: none given, expected where the images were pushed; set REGISTRY=host/path")
    if not tag:
        raise ImageError("tag: none given, expected the tag that the images were pushed with; set TAG=...")
    return local_images(registry, tag)


def pinned_images(table: Path, registry: str | None = None, tag: str | None = None) -> dict[str, str]:
    """Names of the images that were pushed, by digest: what a cluster pulls is then never another image.

    Args:
        table: File that `make push` wrote.
        registry, tag: Where given, the images must have been pushed there.

    Returns:
        {stage: "<registry>/rlhf-<stage>@sha256:..."}.

    Raises:
        ImageError: There is no table, it is none, it lacks a stage, or its images are not those asked for.
    """
    try:
        pushed = json.loads(table.read_text(encoding="utf-8"))
        names = {stage: (pushed[stage]["image"], pushed[stage]["digest"]) for stage in STAGES if stage in pushed}
    except FileNotFoundError:
        raise ImageError(
            f"{table}: no such file; `make build push REGISTRY=host/path` makes the images and it"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise ImageError(f"{table}: found what is no table of images; delete it and run `make push`") from None
    if missing := [stage for stage in STAGES if stage not in names]:
        raise ImageError(f'{table}: has no {", ".join(missing)}; run `make build push STAGES="{" ".join(missing)}"`')
    pinned = {}
    for stage, (name, digest) in names.items():
        repository, _, pushed_tag = name.rpartition(":")
        if registry and repository != _name(registry, stage, "").rstrip(":"):
            raise ImageError(f"{table}: {stage} was pushed as {name}, not to {registry}; run `make push` to there")
        if tag and pushed_tag != tag:
            raise ImageError(
                f"{table}: {stage} was pushed as {name}, not with tag {tag}; run `make build push TAG={tag}`"
            )
        pinned[stage] = f"{repository}@{digest}"
    return pinned


def _name(registry: str | None, stage: str, tag: str) -> str:
    return f"{registry + '/' if registry else ''}rlhf-{stage.replace('_', '-')}:{tag}"
