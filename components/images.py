"""The images that stages run in: one name per stage, one registry, one tag."""

import os
import re

STAGES = ("data_validation", "sft_trainer", "reward_trainer", "ppo_trainer", "bulk_inference", "evaluator", "publisher")

# Registry and tag of components that run from the source tree: no registry serves this name, so that nothing is
# pulled by mistake.
NOT_BUILT = ("not-built.invalid", "source-tree")


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
    return _name(os.environ.get("IMAGE_REGISTRY") or NOT_BUILT[0], stage, os.environ.get("IMAGE_TAG") or NOT_BUILT[1])


def cluster_images(registry: str | None, tag: str | None) -> dict[str, str]:
    """Image names for a cluster, which must be able to pull them.

    Returns:
        {stage: image}.

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
    return {stage: _name(registry, stage, tag) for stage in STAGES}


def _name(registry: str, stage: str, tag: str) -> str:
    return f"{registry}/rlhf-{stage.replace('_', '-')}:{tag}"
