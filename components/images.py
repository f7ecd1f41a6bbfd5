"""The images that stages run in: one name per stage, one registry, one tag."""

import os
import re

STAGES = ("data_validation", "sft_trainer", "reward_trainer", "ppo_trainer", "bulk_inference", "evaluator")

REGISTRY_VARIABLE = "IMAGE_REGISTRY"
TAG_VARIABLE = "IMAGE_TAG"

# What components carry when they run from the source tree: no registry serves this name, so that it cannot be
# pulled by mistake.
NOT_BUILT_REGISTRY = "not-built.invalid"
NOT_BUILT_TAG = "source-tree"


class ImageError(Exception):
    """The registry or tag to compile for is missing or unusable; the message is one line that says what to do."""


def image(stage: str) -> str:
    """Name of a stage's image, from `IMAGE_REGISTRY` and `IMAGE_TAG` as they are when this is called.

    Args:
        stage: One of `STAGES`.

    Returns:
        "<registry>/rlhf-<stage, with dashes>:<tag>"; without the variables, a name that says it is not built.
    """
    if stage not in STAGES:
        raise ValueError(f"unknown stage {stage!r}, expected one of {', '.join(STAGES)}")
    registry = os.environ.get(REGISTRY_VARIABLE) or NOT_BUILT_REGISTRY
    tag = os.environ.get(TAG_VARIABLE) or NOT_BUILT_TAG
    return f"{registry}/rlhf-{stage.replace('_', '-')}:{tag}"


def use_images(registry: str | None, tag: str | None) -> None:
    """Choose the images that components imported from now on carry, for a cluster that must be able to pull them.

    Raises:
        ImageError: No registry, no tag, a tag that moves (`latest`), or one that no registry takes.
    """
    if not registry:
        raise ImageError("registry: none given, expected where the images were pushed; set REGISTRY=host/path")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*(:\d+)?(/[a-z0-9._-]+)*", registry):
        raise ImageError(f"registry: found {registry!r}, expected host[:port]/path in small letters")
    if not tag:
        raise ImageError("tag: none given, expected the tag that the images were pushed with; set TAG=...")
    if tag == "latest" or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", tag):
        raise ImageError(
            f"tag: found {tag!r}, expected a fixed tag of letters, digits, '.', '_' and '-', such as a commit; "
            "'latest' moves, so a cached step could come from another image"
        )
    os.environ[REGISTRY_VARIABLE] = registry
    os.environ[TAG_VARIABLE] = tag
