"""Profiles (`pipelines/profiles/*.yaml`), and what both kinds of cluster are asked for."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from kfp import dsl
from kfp.dsl.base_component import BaseComponent
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from components.images import STAGES
from pipelines.placement.devices import DEVICES, MACHINES, Machine
from pipelines.placement.regions import lacking

FOLDER = Path(__file__).parent.parent / "profiles"

Quantity = Annotated[str, Field(pattern=r"^[1-9][0-9]*(Mi|Gi|Ti|M|G|T)$")]
DNSName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")]
DNSLabel = Annotated[str, Field(pattern=r"^$|^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$")]  # RFC 1035, or not set
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
SecretVersion = Annotated[str, Field(pattern=r"^projects/[^/\s]+/secrets/[^/\s]+/versions/[^/\s]+$")]
_HYPERDISK_ONLY = "a3-ultragpu-"  # DiskSpec.bootDiskType of Vertex AI
# ModelContainerSpec.imageUri of Vertex AI: Artifact Registry or Container Registry.
_SERVED_FROM = re.compile(r"[a-z0-9-]+-docker\.pkg\.dev/|([a-z]+\.)?gcr\.io/")
_UNITS = {"M": 10**6, "G": 10**9, "T": 10**12, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


class ProfileError(Exception):
    """A profile is missing or wrong; the message is one line."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Resources(_Part):
    """What one stage is given; of several nodes, each node."""

    accelerator: str | None = Field(None, description="nvidia.com/gpu on Kubernetes, a name like NVIDIA_L4 on Vertex.")
    count: int = Field(0, ge=0, le=16, description="Accelerators.")
    device: str | None = Field(
        None, description="Kubernetes: what the accelerator is, by Vertex's names, for `make plan`: NVIDIA_L4 ..."
    )
    nodes: int = Field(1, ge=1, le=64, description="Machines that train together.")
    machine: str | None = Field(None, description="Vertex: machine type; unset takes the smallest that fits.")
    cpu: int = Field(ge=1, description="Cores.")
    memory: Quantity = Field(description="RAM, for example 24Gi; on Kubernetes it includes `shm`.")
    disk: Quantity = Field("100Gi", description="For models, caches and scratch files.")
    shm: Quantity | None = Field(None, description="Kubernetes: size of the memory-backed /dev/shm.")
    spot: bool = Field(False, description="Runs on machines that may be taken away, for less.")
    timeout_hours: int = Field(96, ge=1, le=24 * 28, description="The stage is ended after this.")
    retries: int = Field(
        ge=0, description="Times a failed task is started again. 0 for a stage that fails for its input's sake."
    )

    @property
    def devices(self) -> int:
        """Accelerators of all nodes."""
        return self.count * self.nodes

    @model_validator(mode="after")
    def _accelerator_and_count_go_together(self) -> Self:
        if (self.accelerator is None) != (self.count == 0):
            raise ValueError("accelerator and count go together")
        if self.nodes > 1 and not self.count:
            raise ValueError("nodes: more than one is for stages with accelerators")
        if self.device is not None and self.device not in DEVICES:
            raise ValueError(f"device: found {self.device!r}, expected one of {', '.join(DEVICES)}")
        if self.shm is not None and size(self.shm) >= size(self.memory):
            raise ValueError(f"shm ({self.shm}) is part of memory ({self.memory}) and must be less")
        return self


class Secret(_Part):
    """A key of a Kubernetes Secret in the namespace of the run, as an environment variable."""

    name: DNSName
    key: str
    env: Variable
    optional: bool = Field(False, description="Whether pods start without it.")


class Toleration(_Part):
    key: str
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] = "NoSchedule"


class Match(_Part):
    """What a node's label must be."""

    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    values: list[str] = []


class Affinity(_Part):
    match: list[Match] = Field(min_length=1)
    weight: int | None = Field(
        None, ge=1, le=100, description="Nodes that match are preferred by so much; unset requires them."
    )


class Volume(_Part):
    """A PersistentVolumeClaim that is there already."""

    claim: DNSName
    path: str = Field(pattern=r"^/.+", description="Where pods have it.")
    sub_path: str = ""


class KServe(_Part):
    """What serves the published model where `deploy_model` is set: an InferenceService of KServe."""

    name: DNSLabel = Field("", description="Of the service, a DNS label; empty: made of model_display_name.")
    namespace: DNSLabel = Field("", description="Where it is put; empty: where the run's pods are.")
    runtime: str = Field("", description="A ServingRuntime; empty: the one that KServe has for huggingface.")
    args: list[str] = Field([], description="Further arguments of the server, for example --max-model-len=2048.")
    service_account: str = Field("", description="With the keys of the store that publish_to is in.")
    accelerator: str = "nvidia.com/gpu"
    count: int = Field(1, ge=0, le=16, description="Accelerators.")
    cpu: int = Field(4, ge=1, description="Cores.")
    memory: Quantity = "24Gi"
    min_replicas: int = Field(1, ge=0, description="0 lets it be scaled to nothing while nobody asks.")
    node_selector: dict[str, str] = {}
    tolerations: list[Toleration] = Field([], description="Beside the one of the accelerator's own taint.")
    wait_minutes: int = Field(30, ge=1, le=24 * 60, description="The step fails where it is not ready by then.")


class ModelRegistry(_Part):
    """Kubeflow's Model Registry, in which every published model is entered."""

    url: str = Field(pattern=r"^https?://[^/\s]+$", description="http://model-registry-service.kubeflow:8080, say.")
    author: str = Field("rlhf", min_length=1)


class Kubernetes(_Part):
    """What is the cluster's own. Names of secrets, claims and labels are those of your cluster."""

    secrets: list[Secret] = Field(
        [Secret(name="hugging-face", key="token", env="HF_TOKEN", optional=True)],
        description="Tokens and keys; none of them is ever in a compiled file.",
    )
    pull_secrets: list[DNSName] = Field([], description="Secrets that images are pulled with.")
    pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    node_selector: dict[str, str] = Field({}, description="Labels of nodes for stages with accelerators.")
    affinity: list[Affinity] = Field([], description="Likewise, by rules.")
    tolerations: list[Toleration] = Field(
        [], description="Of stages with accelerators, beside the one of the accelerator's own taint."
    )
    spot_node_selector: dict[str, str] = Field({}, description="Labels of nodes for stages with `spot`.")
    spot_tolerations: list[Toleration] = Field([], description="Taints of such nodes.")
    storage_class: str | None = Field(
        None,
        description="Scratch files lie on a volume of this class, made for the pod; unset: on the node's own disk. "
        "Volumes must be writable by the images' user.",
    )
    model_cache: Volume | None = Field(None, description="Keeps downloaded models from run to run.")
    volumes: list[Volume] = Field([], description="Further ones, for checkpoints or data.")
    training_runtime: DNSName = Field(
        "torch-distributed",
        description="For stages on several nodes: a TrainingRuntime or ClusterTrainingRuntime with the torch policy.",
    )
    exchange: str | None = Field(
        None,
        pattern=r"^(/|[a-z0-9]+://).+",
        description="Where nodes hand files to each other: a URI, or a folder on one of `volumes`; unset: beside the "
        "run's artifacts, in gs:// or s3://.",
    )
    max_pending_minutes: int = Field(60, ge=1, description="So long may several nodes wait for machines.")
    run_as_user: int | None = Field(None, ge=0)
    run_as_group: int | None = Field(None, ge=0)
    run_as_non_root: bool | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    env: dict[Variable, str] = Field({}, description="Of every stage; no place for tokens, nor TMPDIR and HF_HOME.")
    delete_after_days: int | None = Field(
        None, ge=1, le=365, description="Pods of a run that is over are removed after this; unset: as the cluster does."
    )
    kserve: KServe | None = Field(None, description="What serves a published model; unset: nothing does.")
    model_registry: ModelRegistry | None = Field(None, description="Where published models are entered.")

    @model_validator(mode="after")
    def _env_holds_no_token_and_nothing_that_is_set_already(self) -> Self:
        _refuse_tokens(self.env, "a Secret of the cluster and name it in `kubernetes.secrets`")
        if name := next((name for name in ("TMPDIR", "HF_HOME") if name in self.env), None):
            raise ValueError(
                f"env: {name} is set for every pod; leave it out, and say by `kubernetes.storage_class` what disk "
                "scratch files have, and by `kubernetes.model_cache` where models are kept"
            )
        return self


class Serving(_Part):
    """With what container and on what machine Vertex AI serves a published model."""

    image: str = Field(
        pattern=r"(:[\w][\w.-]*|@sha256:[0-9a-f]{64})$",
        description="Of the server, with a tag or digest, in Artifact Registry or Container Registry: Vertex AI takes "
        "no other. With the `args` below it must have vLLM, and Run:ai's streamer with support of gs://, as copies of "
        "vllm/vllm-openai have since v0.11.1.",
    )
    command: list[str] = Field([], description="Empty: the image's own.")
    args: list[str] = Field(
        ["--model={model}", "--load-format=runai_streamer", "--host=0.0.0.0", "--port=8080"],
        description="{model} is the published folder's URI; by default vLLM streams the weights from there.",
    )
    env: dict[Variable, str] = {}
    port: int = Field(8080, ge=1, le=65535)
    predict_route: str = Field("/v1/completions", pattern="^/")
    health_route: str = Field("/health", pattern="^/")
    machine: str = Field("", description="Of an endpoint; empty: the smallest that has the accelerators.")
    accelerator: str = "NVIDIA_L4"
    count: int = Field(1, ge=1, le=16, description="Accelerators.")
    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _holds_no_token(self) -> Self:
        _refuse_tokens(self.env)
        return self

    @model_validator(mode="after")
    def _replicas_are_in_order_and_the_image_is_fixed(self) -> Self:
        if self.image.endswith(":latest"):
            raise ValueError(f"image: found {self.image!r}, expected a fixed tag or a digest; 'latest' moves")
        if not _SERVED_FROM.match(self.image):
            raise ValueError(
                f"image: found {self.image!r}, expected one in Artifact Registry (LOCATION-docker.pkg.dev/...) or "
                "Container Registry (gcr.io/...), for Vertex AI serves no other; copy it there"
            )
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas ({self.max_replicas}) is less than min_replicas ({self.min_replicas})")
        return self

    @property
    def machine_type(self) -> str:
        """Of an endpoint."""
        asked = Resources(accelerator=self.accelerator, count=self.count, machine=self.machine or None, cpu=1,
                          memory="1G", retries=0)  # fmt: skip
        return machine_type(asked, flex_start=True)


class Vertex(_Part):
    """What is the project's own."""

    flex_start: bool = Field(False, description="Wait for machines to come free (Dynamic Workload Scheduler).")
    max_wait_hours: int = Field(24, ge=1, le=24 * 7, description="With flex_start: how long.")
    disk_type: Literal["pd-ssd", "pd-standard", "hyperdisk-balanced"] | None = Field(
        None,
        description="Of stages with accelerators; unset: hyperdisk-balanced on a3-ultragpu machines, which take no "
        "other, and pd-ssd elsewhere. Stages without accelerators have pd-ssd.",
    )
    service_account: str = Field(
        "",
        pattern=r"^$|@",
        description="That stages run as, and that a served model reads its weights as; empty: the run's, "
        "SERVICE_ACCOUNT of `make submit`. The run itself has this one where SERVICE_ACCOUNT names none.",
    )
    network: str = Field(
        "",
        pattern=r"^$|^projects/[0-9]+/global/networks/[^/]+$",
        description="VPC to peer with; empty: the run's, NETWORK of `make submit`.",
    )
    labels: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")], str] = {}
    env: dict[Variable, str] = Field({}, description="Of every stage; no place for tokens.")
    secrets: dict[Variable, SecretVersion] = Field(
        {},
        description="Environment variables that every stage fills from Secret Manager when it starts, by the version "
        "that it reads: `HF_TOKEN: projects/my-project/secrets/hugging-face/versions/latest`.",
    )
    serving: Serving | None = Field(
        None, description="How a published model is served; unset: it is not entered in the Model Registry either."
    )
    more_regions: list[str] = Field(
        [], description="Regions that have the profile's accelerators, though the table below does not say so."
    )

    @model_validator(mode="after")
    def _holds_no_token(self) -> Self:
        _refuse_tokens(self.env)
        return self


_SECRET_MANAGER = "Secret Manager and its version (projects/.../secrets/.../versions/...) into `vertex.secrets`"


_SECRET = re.compile(r"(TOKEN|SECRET|PASSWORD|API_?KEY|ACCESS_KEY)(_|$)")  # and not TOKENIZERS_PARALLELISM


def _refuse_tokens(env: dict[str, str], where: str = _SECRET_MANAGER) -> None:
    found = [name for name in env if _SECRET.search(name.upper()) and not name.upper().endswith(("_FILE", "_PATH"))]
    if found:
        raise ValueError(
            f"env: {found[0]} looks like a secret, which everybody who can see a run would read; put it into {where}"
        )


class Meant(_Part):
    """A model that a profile is meant for, with options as the pipeline takes them, checked by `make plan`."""

    model: str
    tuning: Literal["full", "lora", "qlora"] = Field("full", description="Of all trainers.")
    sft: dict[str, Any] = {}
    reward: dict[str, Any] = {}
    ppo: dict[str, Any] = {}
    inference: dict[str, Any] = {}


class Profile(_Part):
    """One size of one platform, for every stage."""

    platform: Literal["kubeflow", "vertex"]
    description: str
    meant_for: list[Meant] = Field([], description="The largest models by way of tuning.")
    kubernetes: Kubernetes = Kubernetes()
    vertex: Vertex = Vertex()
    stages: dict[str, Resources]

    @model_validator(mode="after")
    def _every_stage_is_named(self) -> Self:
        if set(self.stages) != set(STAGES):
            raise ValueError(f"stages must be exactly {', '.join(STAGES)}")
        other = {"kubeflow": "vertex", "vertex": "kubernetes"}[self.platform]
        if other in self.model_fields_set:
            raise ValueError(f"{other} is for the other platform")
        return self

    @model_validator(mode="after")
    def _nodes_train(self) -> Self:
        for stage, resources in self.stages.items():
            if resources.nodes > 1 and not stage.endswith("_trainer"):
                raise ValueError(f"stages.{stage}.nodes: found {resources.nodes}, expected 1: only trainers take more")
        return self

    @model_validator(mode="after")
    def _the_exchange_is_on_a_volume(self) -> Self:
        folder = self.kubernetes.exchange or ""
        mounted = [volume.path.rstrip("/") for volume in self.kubernetes.volumes]
        if folder.startswith("/") and not any(f"{folder}/".startswith(f"{path}/") for path in mounted):
            raise ValueError(
                f"kubernetes.exchange: {folder} is on none of kubernetes.volumes, so nodes do not share it"
            )
        return self

    @model_validator(mode="after")
    def _machines_are_what_vertex_has(self) -> Self:
        for stage, resources in self.stages.items():
            if self.platform == "kubeflow" and resources.machine:
                raise ValueError(f"stages.{stage}.machine is for Vertex; take node_selector on Kubernetes")
            if self.platform == "vertex" and (resources.device or resources.shm):
                raise ValueError(f"stages.{stage}: device and shm are for Kubernetes")
            if self.platform == "vertex":
                try:
                    machine = machine_type(resources, self.vertex.flex_start)
                except ValueError as error:
                    raise ValueError(f"stages.{stage}: {error}") from error
                if machine.startswith(_HYPERDISK_ONLY) and (self.vertex.disk_type or "").startswith("pd-"):
                    raise ValueError(
                        f"vertex.disk_type: found {self.vertex.disk_type!r}, expected 'hyperdisk-balanced', the only "
                        f"one of {machine}, on which stages.{stage} runs; or leave it out"
                    )
        if self.vertex.serving:
            try:
                _ = self.vertex.serving.machine_type
            except ValueError as error:
                raise ValueError(f"vertex.serving: {error}") from error
        return self

    def check_region(self, region: str) -> None:
        """See that a region of Vertex AI has the accelerators.

        Raises:
            ProfileError: It has not, for training or for serving, and is not among `vertex.more_regions`.
        """
        if self.platform != "vertex" or region in self.vertex.more_regions:
            return
        asked = {stage: given.accelerator for stage, given in self.stages.items() if given.accelerator}
        wrong = lacking(region, asked, self.vertex.serving.accelerator if self.vertex.serving else None)
        if wrong:
            raise ProfileError(f"{wrong}; if that has changed, name the region in the profile's vertex.more_regions")

    def disk_type(self, stage: str) -> str:
        """Vertex: of the boot disk that a stage's machine has."""
        resources = self.stages[stage]
        if machine_type(resources, self.vertex.flex_start).startswith(_HYPERDISK_ONLY):
            return "hyperdisk-balanced"
        return (resources.accelerator and self.vertex.disk_type) or "pd-ssd"

    def device(self, stage: str) -> str | None:
        """Name of the accelerator that a stage runs on; None without one, and where the profile does not say."""
        resources = self.stages[stage]
        return resources.accelerator if self.platform == "vertex" else resources.device


def size(quantity: str) -> int:
    """Bytes of a Kubernetes quantity such as 24Gi."""
    number, unit = re.fullmatch(r"(\d+)(\D+)", quantity).groups()
    return int(number) * _UNITS[unit]


def machine_type(resources: Resources, flex_start: bool = False) -> str:
    """The machine type of Vertex for a stage.

    Raises:
        ValueError: There is no such machine, or not with so many accelerators, cores or so much memory.
    """
    named = resources.machine
    if resources.accelerator not in {machine.accelerator for machine in MACHINES.values()}:
        offered = sorted({machine.accelerator for machine in MACHINES.values() if machine.accelerator})
        raise ValueError(f"accelerator: found {resources.accelerator!r}, expected one of {', '.join(offered)}")
    if named and named not in MACHINES:
        raise ValueError(f"machine: found {named!r}, expected one of {', '.join(MACHINES)}")
    lacks = {}
    for name, machine in sorted(MACHINES.items(), key=lambda item: (item[1].cpus, item[1].memory_gb)):
        if named in (None, name):
            lacks[name] = _lacking(machine, resources, flex_start)
            if not lacks[name]:
                return name
    if named:
        raise ValueError(f"machine {named} {lacks[named]}")
    raise ValueError(
        f"no machine has {resources.count} {resources.accelerator or 'accelerators'}, {resources.cpu} cores and "
        f"{resources.memory} of memory{'' if resources.spot or flex_start else ' outside spot and flex_start'}"
    )


def _lacking(machine: Machine, resources: Resources, flex_start: bool) -> str:
    """Why a machine does not do; empty where it does."""
    if machine.accelerator != resources.accelerator:
        return f"has {machine.accelerator or 'no accelerator'}, not {resources.accelerator or 'none'}"
    if resources.count not in machine.counts:
        return f"has {' or '.join(map(str, machine.counts))} accelerators, not {resources.count}"
    if resources.cpu > machine.cpus:
        return f"has {machine.cpus} cores, fewer than {resources.cpu}"
    if size(resources.memory) > machine.memory_gb * 2**30:
        return f"has {machine.memory_gb} GB of memory, less than {resources.memory}"
    if machine.only_preemptible and not (resources.spot or flex_start):
        return "is let with spot or flex_start only"
    return ""


def names() -> list[str]:
    """Of the profiles that come with the project."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_profile(name: str) -> Profile:
    """Read a profile.

    Args:
        name: Of a file in `pipelines/profiles`, or the path of a file that ends in .yaml.

    Raises:
        ProfileError: There is no such profile, or it is not valid.
    """
    path = Path(name) if name.endswith(".yaml") else FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise ProfileError(
            f"profile: found {name!r}, expected one of {', '.join(names())}, or the path of a .yaml file"
        )
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
    """The stage a component is the face of, or is a part of and shares the image and the resources with."""
    stage = component.name.replace("-", "_")
    return {"data_fingerprint": "data_validation"}.get(stage, stage)


def is_stage(component: BaseComponent) -> bool:
    """Whether a component is a stage itself, not a part of one."""
    return component.name.replace("-", "_") in STAGES


def request(task: dsl.PipelineTask, image: str, resources: Resources) -> None:
    """Set what every cluster understands. All of it is literal in the compiled file, as Vertex requires."""
    task.set_container_image(image)
    task.set_cpu_request(str(resources.cpu)).set_cpu_limit(str(resources.cpu))
    task.set_memory_request(resources.memory).set_memory_limit(resources.memory)
    if resources.accelerator:
        task.set_accelerator_type(resources.accelerator).set_accelerator_limit(resources.count)
    retry(task, resources)


def retry(task: dsl.PipelineTask, resources: Resources) -> None:
    """Start a task that failed again, as often as a profile says."""
    if resources.retries:
        task.set_retry(resources.retries, backoff_duration="60s", backoff_factor=2.0)
