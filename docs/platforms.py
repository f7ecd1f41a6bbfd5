"""Write the page on platforms: `python -m docs.platforms > docs/platforms.md`."""

import sys

from pydantic.fields import FieldInfo

from docs.parameters import table
from pipelines.placement.cluster import (
    KServe,
    Kubernetes,
    ModelRegistry,
    Profile,
    Resources,
    Secret,
    Serving,
    Vertex,
    load_profile,
    names,
)
from pipelines.placement.devices import DEVICES, MACHINES
from pipelines.placement.regions import AS_OF, REGIONS

INTRODUCTION = """<!-- Made from the code by `make docs`; do not edit. -->

# Platforms and profiles

One function defines the DAG; a profile says where and how large it runs. `make compile PROFILE=name` writes a file for
one of these, and `PROFILE=mine.yaml` takes one of your own:
"""

PLAN = """
`make plan MODEL=llama-2-7b PROFILE=vertex-l4 TUNING=qlora` prints what each stage holds on each accelerator, and ends
with status 1 where it cannot fit: it names the stage, what it needs, what there is, and what would make it fit. It
takes the options of a parameter file (`PARAMS=my.yaml`), and only reads a model's config: no weights are downloaded.

Weights, adapters, gradients and optimiser state are counted, and tests compare them with what small models hold, to the
byte. Activations, casts, logits and overhead are estimated from what a layer computes, and were not measured on GPUs:
leave a tenth of a device free where it is close. What makes the difference:

- Every trainer holds weights in float32 and computes in bfloat16: tuned in full, a number takes 16 bytes (weight,
  gradient, two moments) and 2 more for its cast. Adapters (`lora`) leave 4, a base in 4 bits (`qlora`) about half a
byte.
- The SFT and the reward trainer hold all of the model on each device, however many there are. The PPO trainer spreads
  layers with `ppo: {sharding: fsdp}`, but not before they are loaded, and not the reward model.
- PPO tuned in full holds the reference and the reward model beside the policy; adapters on one base share it.
- Keys and values of rollouts, and batches of bulk inference, are cut to what is left where memory runs out; with
  sharding they cannot be, and `rollout_tokens` has to fit.
- Bulk inference holds a model in bfloat16 from the start; an adapter (`lora`) is merged into its base in float32
  first.
- Models are loaded in RAM first, once in each process, except in 4 bits: `memory` has to do for that, less `shm`.
"""

OWN = """
## A profile of one's own

Copy [the one that is nearest](../pipelines/profiles) and compile with `PROFILE=path/to/mine.yaml`. It is checked before
anything is compiled: unknown keys, accelerators and machine types, machines that do not have so many accelerators,
cores or so much memory. `description` and `meant_for` are for people; `stages` names each stage and what it gets:
"""

KUBERNETES = """
### `kubernetes`

What is your cluster's own, for profiles of platform `kubeflow`. The names are those of your cluster, in the namespace
of the run; none is built in, but for the optional Secret `hugging-face`.
"""

KUBERNETES_EXAMPLE = """
```yaml
kubernetes:
  secrets:
    - {name: hugging-face, key: token, env: HF_TOKEN, optional: true}
    - {name: object-store, key: id, env: AWS_ACCESS_KEY_ID}
    - {name: object-store, key: secret, env: AWS_SECRET_ACCESS_KEY}
  node_selector: {cloud.example/pool: gpus}
  spot_node_selector: {cloud.example/spot: "true"}        # for stages with `spot: true`
  spot_tolerations: [{key: cloud.example/spot}]
  model_cache: {claim: models, path: /models}             # ReadWriteMany, or one run at a time
  volumes: [{claim: checkpoints, path: /checkpoints}]     # then ppo: {checkpoint_dir: /checkpoints/my-run}
```

Every pod has `/scratch`, of the size of `disk`: `TMPDIR` is there, and `HF_HOME` where there is no `model_cache`. A
stage with an accelerator tolerates the taint of the accelerator's name, and gets a `/dev/shm` in memory of the size of
`shm`. """

VERTEX = """
### `vertex`

What is your project's own, for profiles of platform `vertex`. Stages run as custom jobs, on the `machine` that is named
or the smallest that fits, with `disk` (100 GB at least) and `timeout_hours`. They take the run's service account,
network, `encryption_spec_key_name` and, with accelerators, `tensorboard_resource_id`, for which the service account
must be named. `spot` takes spot machines; with `checkpoint_dir` a stage that was started again goes on where it was.
"""

KSERVE_TEXT = """
#### `kubernetes.kserve`

What serves a published model: [serving.md](serving.md).
"""

REGISTRY_TEXT = """
#### `kubernetes.model_registry`
"""

SERVING_TEXT = """
#### `vertex.serving`

With what Vertex AI serves a published model: [serving.md](serving.md).
"""

REGIONS_TEXT = f"""
### Regions

Accelerators by region, as [Google publishes
it](https://docs.cloud.google.com/gemini-enterprise-agent-platform/machine-learning/general/locations#region_considerations)
(read on {AS_OF}). `make submit` refuses a profile whose accelerators `LOCATION` has not, for training or for
`vertex.serving`, before anything is sent; so does `make compile LOCATION=...`. Where the table is out of date, name the
region in `vertex.more_regions`. Quota and machines that are free, nobody publishes.
"""

MACHINES_TEXT = """
Machine types that can be named, by [what Vertex
documents](https://cloud.google.com/vertex-ai/docs/training/configure-compute). A project needs quota for them: see
there before you submit.
"""

NODES = """
## More than one node

`nodes` is for stages that train. `make plan` counts the devices of all of them; steps, batches and results are those of
one node. Every node runs the same `torchrun -m rlhf.<stage>`, and the first process of the first node alone writes.
Where checkpoints are kept, `checkpoint_dir` must be a URI or a folder that all nodes have: they refuse to go on from
different ones. A stage of which a node fails or is taken away ends, and `retries` starts all of its nodes again.

On **Vertex AI** a job gets so many replicas of the machine, which find each other by what Vertex tells them. There is
nothing to set up.

On **Kubeflow** the stage's pod asks for no accelerator. It creates a TrainJob of [Kubeflow
Trainer](https://www.kubeflow.org/docs/components/trainer/), 2.2 or newer, whose pods get what the profile says of the
stage; it shows what the first of them prints, and deletes the TrainJob when it is done, failed or out of time. A run
that is cancelled, or whose pod is killed, leaves the TrainJob there, for Kubeflow Pipelines does not tell the pod in
time: its nodes see that nobody waits for them any more, and end by themselves within half an hour, with a checkpoint
where these are kept. (`pull_policy` is the one thing that a TrainJob cannot be told.) It needs:

- Kubeflow Trainer, and a runtime with the torch policy: `training_runtime`, by default the `torch-distributed` that
  comes with it.
- Leave to use it, for the service account that pipelines run as. The `default-editor` of a Kubeflow profile may have
  it; the `pipeline-runner` of a standalone installation needs this Role, bound to it:

```yaml
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: trainjobs}
rules:
  - {apiGroups: [trainer.kubeflow.org], resources: [trainjobs], verbs: [create, get, delete]}
  - {apiGroups: [trainer.kubeflow.org], resources: [trainingruntimes], verbs: [get]}
  - {apiGroups: [""], resources: [pods], verbs: [get, list]}
  - {apiGroups: [""], resources: [pods/log], verbs: [get]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: training-runtimes}
rules:
  - {apiGroups: [trainer.kubeflow.org], resources: [clustertrainingruntimes], verbs: [get]}
```

- A place where nodes hand files to each other. They share no disk, and KFP gives a run's artifacts to the stage's pod
  alone. Artifacts in `gs://` or `s3://` are such a place, and need nothing more than that nodes may read and write
  there; they run as the same service account, with the same secrets. For artifacts in the MinIO or SeaweedFS that comes
  with KFP, say where it is. Or name another place, in a store or on a volume that many nodes can mount:

```yaml
kubernetes:
  env: {AWS_ENDPOINT_URL: "http://minio-service.kubeflow:9000"}
  secrets:
    - {name: mlpipeline-minio-artifact, key: accesskey, env: AWS_ACCESS_KEY_ID}
    - {name: mlpipeline-minio-artifact, key: secretkey, env: AWS_SECRET_ACCESS_KEY}
---
kubernetes:
  volumes: [{claim: shared, path: /shared}]   # ReadWriteMany
  exchange: /shared/exchange
```

What is missing is said in one line by the stage's pod, before any accelerator is asked for. Nodes that find no machine
end the stage after `max_pending_minutes`, with the scheduler's reason; where Kueue holds jobs back, `labels` may name
its queue.
"""


def render() -> str:
    """The page, as Markdown."""
    columns = ("Profile", "What it is", "Largest models")
    shipped = [(f"`{name}`", load_profile(name).description, _models(load_profile(name))) for name in names()]
    machines = [
        (
            f"`{name}`",
            f"`{m.accelerator}`" if m.accelerator else "",
            ", ".join(map(str, filter(None, m.counts))),
            str(m.cpus),
            str(m.memory_gb),
            _only(m),
        )
        for name, m in MACHINES.items()
    ]
    devices = [(f"`{name}`", f"{memory:g}") for name, memory in DEVICES.items()]
    regions = [(f"`{name}`", *(", ".join(sorted(kind)) for kind in kinds)) for name, kinds in REGIONS.items()]
    text = [
        INTRODUCTION,
        *table(columns, shipped),
        "\nWhat each stage gets, of each node:\n",
        *table(("Profile", "Stage", "Accelerators", "Nodes", "Cores", "Memory", "Disk", "Hours", "Retries"), _stages()),
        "\n## Whether a model fits",
        PLAN,
        *table(("Accelerator", "GiB that a process can have"), devices),
        OWN,
        *table(("Name", "Default", "What it is"), _fields(Resources)),
        KUBERNETES,
        *table(("Name", "Default", "What it is"), _fields(Kubernetes)),
        KUBERNETES_EXAMPLE,
        KSERVE_TEXT,
        *table(("Name", "Default", "What it is"), _fields(KServe)),
        REGISTRY_TEXT,
        *table(("Name", "Default", "What it is"), _fields(ModelRegistry)),
        VERTEX,
        *table(("Name", "Default", "What it is"), _fields(Vertex)),
        SERVING_TEXT,
        *table(("Name", "Default", "What it is"), _fields(Serving)),
        MACHINES_TEXT,
        *table(("Machine", "Accelerator", "How many", "Cores", "Memory, GB", "Only with"), machines),
        REGIONS_TEXT,
        *table(("Region", "Training and serving", "Training alone", "Serving alone"), regions),
        NODES.rstrip(),
        "",
    ]
    return "\n".join(text)


def _models(profile: Profile) -> str:
    return ", ".join(
        f"{meant.model} ({'PPO ' if meant.sft.get('tuning', meant.tuning) != meant.tuning else ''}{meant.tuning})"
        for meant in profile.meant_for
    )


def _stages() -> list[tuple[str, ...]]:
    rows = []
    for name in names():
        profile = load_profile(name)
        for stage, given in profile.stages.items():
            device = profile.device(stage)
            spot = ", spot" if given.spot else ""
            on = f" on {given.machine}" if given.machine else ""
            rows.append(
                (
                    f"`{name}`",
                    stage,
                    f"{given.count} x {device}{on}{spot}" if device else "",
                    str(given.nodes),
                    str(given.cpu),
                    given.memory,
                    given.disk,
                    str(given.timeout_hours),
                    str(given.retries),
                )
            )
    return rows


def _fields(part: type) -> list[tuple[str, ...]]:
    return [(f"`{name}`", _default(field), field.description or "") for name, field in part.model_fields.items()]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default in (None, "", [], {}):
        return ""
    if isinstance(field.default, list):
        return " ".join(
            f"`{each.name}`, optional" if isinstance(each, Secret) else f"`{each}`" for each in field.default
        )
    return f"`{field.default}`"


def _only(machine) -> str:
    return "spot, flex_start" if machine.only_preemptible else ""


if __name__ == "__main__":
    sys.stdout.write(render())
