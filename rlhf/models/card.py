"""The model card: `rlhf.json` in every Model artifact."""

import contextlib
import importlib.metadata
import math
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

import rlhf
from rlhf.data.template import Template
from rlhf.errors import ModelError

FILE_NAME = "rlhf.json"
_PACKAGES = ("torch", "transformers", "trl", "peft", "tokenizers")

Kind = Literal["policy", "reward_model", "base"]


def _installed_versions() -> dict[str, str]:
    versions = {"rlhf": rlhf.__version__}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


class ModelCard(BaseModel):
    """What a model is, what it was made from, and with what."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind = Field(description="What the folder is for; `base` only names a base model and holds no weights.")
    base: str = Field(description="Reference of the base model, as `rlhf.models.references.resolve` takes it.")
    template_digest: str = Field("", description="Of the prompt template trained with; empty for a base.")
    data_digest: str = Field("", description="Of the dataset trained on (manifest.json); empty for a base.")
    versions: dict[str, str] = Field(default_factory=_installed_versions, description="Package: version.")
    base_in_4_bits: bool = Field(
        False, description="Whether the folder holds an adapter that was trained on its base held in 4 bits (QLoRA)."
    )
    training: dict[str, float] = Field(default_factory=dict, description="Summary of the training by measure.")
    score_shift: float = Field(
        0.0,
        allow_inf_nan=False,
        description="Added to a reward model's raw scores so that held-out chosen responses average 0.",
    )

    @field_validator("training", mode="before")
    @classmethod
    def _known(cls, measures: dict[str, float]) -> dict[str, float]:
        """JSON has no NaN: what could not be measured is left out."""
        return {name: value for name, value in measures.items() if math.isfinite(value)}

    def save(self, folder: str | Path) -> None:
        """Write rlhf.json into `folder`."""
        (Path(folder) / FILE_NAME).write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read rlhf.json from `folder`.

        Args:
            folder: A Model artifact.

        Raises:
            ModelError: It is missing, or is not a model card.
        """
        path = Path(folder) / FILE_NAME
        try:
            card = cls.model_validate_json(path.read_bytes())
        except FileNotFoundError as error:
            raise ModelError(f"{path}: no such file, expected a model folder written by a stage") from error
        except (OSError, ValidationError) as error:
            raise ModelError(f"{path}: not a model card ({' '.join(str(error).split())})") from error
        return card

    def require_kind(self, kind: Kind, path: str | Path) -> None:
        """Refuse a model of another kind; a base serves as a policy that was not tuned yet.

        Args:
            path: Of the model, for the message.

        Raises:
            ModelError: The kinds differ.
        """
        if self.kind != kind and (self.kind, kind) != ("base", "policy"):
            raise ModelError(f"{path}: found a model of kind {self.kind!r}, expected {kind!r}; name one of that kind")

    def require_template(self, template: Template, path: str | Path) -> None:
        """Refuse a model trained with another prompt template than `template`; a base model fits any.

        Args:
            template: Of the data at hand.
            path: Of the model, for the message.

        Raises:
            ModelError: The digests differ.
        """
        if self.kind != "base" and self.template_digest != template.digest:
            raise ModelError(
                f"{path}: trained with prompt template {self.template_digest or '(none)'}, the data was prepared with "
                f"{template.digest}; run data_validation with the instruction, suffix and lengths the model was "
                "trained with, or train the model again on this data"
            )
