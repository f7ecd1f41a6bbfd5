"""Profiles (`pipelines/profiles/*.yaml`), and what both kinds of cluster are asked for."""

from pathlib import Path
from typing import Literal, Self

import yaml
from kfp import dsl
from kfp.dsl.base_component import BaseComponent
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from components.images import STAGES

FOLDER = Path(__file__).parent.parent / "profiles"

_QUANTITY = r"^[1-9][0-9]*(Mi|Gi|Ti|M|G|T)$"


class ProfileError(Exception):
    """A profile is missing or wrong; the message is one line."""


class Resources(BaseModel):
    """What one stage is given."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    accelerator: str | None = Field(None, description="nvidia.com/gpu on Kubernetes, a name like NVIDIA_L4 on Vertex.")
    count: int = Field(0, ge=0, le=16, description="Accelerators.")
    cpu: int = Field(ge=1, description="Cores.")
    memory: str = Field(pattern=_QUANTITY, description="RAM, for example 24Gi; on Kubernetes it includes `shm`.")
    shm: str | None = Field(None, pattern=_QUANTITY, description="Kubernetes: size of the memory-backed /dev/shm.")
    timeout_hours: int | None = Field(None, ge=1, description="Kubernetes: the pod is ended after this.")
    retries: int = Field(
        ge=0, description="Times a failed task is started again. 0 for a stage that fails for its input's sake."
    )

    @model_validator(mode="after")
    def _accelerator_and_count_go_together(self) -> Self:
        if (self.accelerator is None) != (self.count == 0):
            raise ValueError("accelerator and count go together")
        return self


class Profile(BaseModel):
    """One size of one platform, for every stage."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    platform: Literal["kubeflow", "vertex"]
    description: str
    stages: dict[str, Resources]

    @model_validator(mode="after")
    def _every_stage_is_named(self) -> Self:
        if set(self.stages) != set(STAGES):
            raise ValueError(f"stages must be exactly {', '.join(STAGES)}")
        return self


def load_profile(name: str) -> Profile:
    """Read a profile by its name, or from a path that ends in .yaml.

    Raises:
        ProfileError: There is no such profile, or it is not valid.
    """
    path = Path(name) if name.endswith(".yaml") else FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.yaml")))
        raise ProfileError(f"profile: found {name!r}, expected one of {known}, or the path of a .yaml file")
    try:
        return Profile.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, ValidationError) as error:
        problems = (
            [f"{'.'.join(map(str, e['loc'])) or 'profile'}: {e['msg']}" for e in error.errors()]
            if isinstance(error, ValidationError)
            else [" ".join(str(error).split())]
        )
        raise ProfileError(f"{path}: {'; '.join(problems)}") from error


def stage_of(component: BaseComponent) -> str:
    """The stage a component is the face of."""
    return component.name.replace("-", "_")


def request(task: dsl.PipelineTask, image: str, resources: Resources) -> None:
    """Set what every cluster understands. All of it is literal in the compiled file, as Vertex requires."""
    task.set_container_image(image)
    task.set_cpu_request(str(resources.cpu)).set_cpu_limit(str(resources.cpu))
    task.set_memory_request(resources.memory).set_memory_limit(resources.memory)
    if resources.accelerator:
        task.set_accelerator_type(resources.accelerator).set_accelerator_limit(resources.count)
    if resources.retries:
        task.set_retry(resources.retries, backoff_duration="60s", backoff_factor=2.0)
