"""What holds for every pipeline compiled for every profile, and what a profile can set."""

import json
import re

import pytest
import yaml
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct
from kfp.kubernetes.kubernetes_executor_config_pb2 import KubernetesExecutorConfig
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec

from pipelines import PIPELINES
from pipelines.compile import compile_pipelines
from pipelines.placement.cluster import FOLDER, ProfileError, load_profile, names
from pipelines.placement.vertex import SECRETS_VARIABLE
from rlhf import secrets
from tests.pipelines.placed import IMAGES, TABLE, compiled, documents, rows

SHIPPED = [
    "kubeflow-2x8-h100",
    "kubeflow-a100-80g",
    "kubeflow-h100x8",
    "kubeflow-l4",
    "t4-small",
    "vertex-a100-80g",
    "vertex-h100x8",
    "vertex-l4",
    "vertex-spot",
]
every = pytest.mark.parametrize(("profile", "pipeline"), [(n, p) for n in SHIPPED for p in PIPELINES])
# Of what KFP and Vertex fill in when a task starts; everything else in double braces is a mistake.
FILLED_IN_LATER = re.compile(
    r"\$(\.inputs\.(parameters|artifacts)\[.*|\.outputs\.(parameters|artifacts)\[.*|\.json_escape\[1\]|"
    r"\.pipeline_google_cloud_\w+|\.pipeline_service_account|\.pipeline_network|\.pipeline_persistent_resource_id|\.pipeline_job_\w+.*|\.pipeline_root|\.pipeline_task_uuid)?"
)


def test_these_profiles_are_shipped():
    assert names() == SHIPPED


@every
def test_executors_ask_for_what_the_table_says(profile, pipeline):
    """Where this is meant to change, write the table again: see tests/pipelines/placed.py."""
    expected = [line for line in TABLE.read_text().splitlines() if line.startswith(f"{profile} {pipeline} ")]
    assert rows(profile, pipeline) == expected


@every
def test_the_file_is_what_the_pipeline_spec_allows(profile, pipeline):
    spec, *platform = documents(profile, pipeline)
    json_format.ParseDict(spec, PipelineSpec())  # unknown fields are errors
    assert len(platform) == (0 if load_profile(profile).platform == "vertex" else 1)
    for document in platform:
        assert set(document) == {"platforms"}
        assert set(document["platforms"]) == {"kubernetes"}
        for pod in document["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
            json_format.ParseDict(pod, KubernetesExecutorConfig())


@every
def test_the_file_is_small_enough_to_be_uploaded(profile, pipeline):
    assert len(compiled(profile)[pipeline].encode()) < 1_000_000


@every
def test_nothing_is_left_to_be_filled_in(profile, pipeline):
    text = compiled(profile)[pipeline]
    for wrong in ("not-built.invalid", "source-tree", "{{workflow", "{{pipelineparam", ":latest"):
        assert wrong not in text
    for found in re.findall(r"\{\{(.*?)\}\}", text):
        assert FILLED_IN_LATER.fullmatch(found), found


@every
def test_every_input_of_every_task_comes_from_somewhere(profile, pipeline):
    spec = json_format.ParseDict(documents(profile, pipeline)[0], PipelineSpec())
    dags = [(spec.root.input_definitions, spec.root.dag)]
    dags += [(each.input_definitions, each.dag) for each in spec.components.values() if each.HasField("dag")]
    for given, dag in dags:
        for task in dag.tasks.values():
            component = spec.components[task.component_ref.name]
            for name, definition in component.input_definitions.parameters.items():
                has_default = definition.is_optional or definition.HasField("default_value")
                made_by_the_loop = name == task.parameter_iterator.item_input
                assert name in task.inputs.parameters or has_default or made_by_the_loop, (task.task_info.name, name)
            for name, value in task.inputs.parameters.items():
                assert name in component.input_definitions.parameters
                if value.component_input_parameter and not task.HasField("parameter_iterator"):
                    assert value.component_input_parameter in given.parameters
                if value.HasField("task_output_parameter"):
                    assert value.task_output_parameter.producer_task in dag.tasks
            for name, value in task.inputs.artifacts.items():
                assert name in component.input_definitions.artifacts
                if value.component_input_artifact:
                    assert value.component_input_artifact in given.artifacts


@pytest.mark.parametrize("profile", [name for name in SHIPPED if name.startswith("vertex")])
def test_jobs_on_vertex_get_the_runs_tensorboard_and_key(profile):
    spec = json_format.ParseDict(documents(profile, "rlhf")[0], PipelineSpec())
    task = spec.root.dag.tasks["sft-trainer"].inputs.parameters
    assert task["tensorboard"].component_input_parameter == "tensorboard_resource_id"
    assert task["encryption_spec_key_name"].component_input_parameter == "encryption_spec_key_name"


def test_vertexs_accelerators_have_its_names():
    from google.cloud.aiplatform_v1.types import AcceleratorType

    from pipelines.placement.devices import DEVICES, MACHINES

    known = set(AcceleratorType.__members__)
    assert set(DEVICES) <= known
    assert {machine.accelerator for machine in MACHINES.values()} - {None} <= set(DEVICES)


def test_only_trainers_take_more_than_one_node(tmp_path):
    path = changed(tmp_path, "kubeflow-l4", lambda profile: profile["stages"]["bulk_inference"].update(nodes=2))
    with pytest.raises(ProfileError, match=r"stages\.bulk_inference\.nodes: found 2, expected 1"):
        load_profile(path)


def changed(tmp_path, name: str, change) -> str:
    profile = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    change(profile)
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(profile))
    return str(path)


def pods(tmp_path, change) -> tuple[dict, dict, dict]:
    """Pods by executor, their containers, and what a whole run is given."""
    profile = load_profile(changed(tmp_path, "kubeflow-l4", change))
    (path,) = [p for p in compile_pipelines(profile, IMAGES, tmp_path) if p.stem == "rlhf"]
    spec, platform = yaml.safe_load_all(path.read_text())
    kubernetes = platform["platforms"]["kubernetes"]
    json_format.ParseDict(kubernetes, Struct())
    executors = kubernetes["deploymentSpec"]["executors"]
    containers = {name: each["container"] for name, each in spec["deploymentSpec"]["executors"].items()}
    return executors, containers, kubernetes.get("pipelineConfig", {})


def test_a_cluster_of_ones_own_is_described_in_the_profile_alone(tmp_path):
    def change(profile):
        profile["stages"]["ppo_trainer"]["spot"] = True
        profile["kubernetes"] = {
            "secrets": [
                {"name": "my-hub", "key": "hf", "env": "HF_TOKEN"},
                {"name": "my-store", "key": "id", "env": "AWS_ACCESS_KEY_ID"},
            ],
            "pull_secrets": ["my-registry"],
            "pull_policy": "IfNotPresent",
            "node_selector": {"pool": "gpus"},
            "spot_node_selector": {"lifecycle": "spot"},
            "spot_tolerations": [{"key": "spot", "operator": "Equal", "value": "true"}],
            "affinity": [{"match": [{"key": "zone", "operator": "In", "values": ["a"]}]}],
            "model_cache": {"claim": "models", "path": "/models"},
            "volumes": [{"claim": "checkpoints", "path": "/checkpoints", "sub_path": "rlhf"}],
            "storage_class": "fast",
            "run_as_user": 1000,
            "run_as_non_root": True,
            "labels": {"team": "tuning"},
            "env": {"HTTPS_PROXY": "http://proxy:3128"},
            "delete_after_days": 7,
        }

    executors, containers, run = pods(tmp_path, change)
    ppo, sft, data = (executors[f"exec-{name}"] for name in ("ppo-trainer", "sft-trainer", "data-validation"))
    assert [secret["secretName"] for secret in data["secretAsEnv"]] == ["my-hub", "my-store"]
    assert data["imagePullSecret"][0]["secretName"] == "my-registry"
    assert data["imagePullPolicy"] == "IfNotPresent"
    assert "nodeSelector" not in data
    assert "tolerations" not in data
    assert sft["nodeSelector"]["labels"] == {"pool": "gpus"}
    assert ppo["nodeSelector"]["labels"] == {"pool": "gpus", "lifecycle": "spot"}
    assert [each["key"] for each in ppo["tolerations"]] == ["nvidia.com/gpu", "spot"]
    assert ppo["tolerations"][1]["value"] == "true"
    (rule,) = ppo["nodeAffinity"]
    assert "weight" not in rule  # required, not preferred
    assert {mount["mountPath"] for mount in ppo["pvcMount"]} == {"/models", "/checkpoints"}
    (scratch,) = ppo["genericEphemeralVolume"]
    assert (scratch["mountPath"], scratch["size"], scratch["storageClassName"]) == ("/scratch", "100Gi", "fast")
    assert ppo["securityContext"] == {"runAsUser": "1000", "runAsNonRoot": True}
    assert ppo["podMetadata"]["labels"] == {"team": "tuning"}
    env = {each["name"]: each["value"] for each in containers["exec-ppo-trainer"]["env"]}
    assert env == {
        "HTTPS_PROXY": "http://proxy:3128",
        "TMPDIR": "/scratch",
        "HF_HOME": "/models/huggingface",
    }
    assert run["resourceTtlOnCompletion"] == 7 * 24 * 3600


def test_nodes_get_what_a_pod_of_one_node_gets(tmp_path):
    from rlhf.training import node
    from rlhf.training.trainjob import VARIABLE, TrainJob

    def change(profile):
        profile["stages"]["ppo_trainer"] |= {"nodes": 2, "spot": True, "shm": "8Gi"}
        profile["kubernetes"] = {
            "secrets": [{"name": "my-hub", "key": "hf", "env": "HF_TOKEN"}],
            "pull_secrets": ["my-registry"],
            "node_selector": {"pool": "gpus"},
            "spot_node_selector": {"lifecycle": "spot"},
            "tolerations": [{"key": "dedicated"}],
            "spot_tolerations": [{"key": "spot", "operator": "Equal", "value": "true"}],
            "affinity": [
                {"match": [{"key": "zone", "operator": "In", "values": ["a"]}]},
                {"match": [{"key": "gpu", "operator": "Exists"}], "weight": 10},
            ],
            "model_cache": {"claim": "models", "path": "/models"},
            "volumes": [{"claim": "shared", "path": "/shared", "sub_path": "rlhf"}],
            "storage_class": "fast",
            "run_as_user": 1000,
            "run_as_non_root": True,
            "labels": {"team": "tuning"},
            "annotations": {"owner": "us"},
            "env": {"HTTPS_PROXY": "http://proxy:3128"},
            "training_runtime": "my-torch",
            "exchange": "/shared/exchange",
            "max_pending_minutes": 5,
        }

    executors, containers, _ = pods(tmp_path, change)
    pod, container = executors["exec-ppo-trainer"], containers["exec-ppo-trainer"]
    assert "accelerator" not in container["resources"], "the pod that starts them only waits"
    assert not {"tolerations", "nodeSelector", "nodeAffinity"} & set(pod)
    assert [each["mountPath"] for each in pod["pvcMount"]] == ["/models", "/shared"]
    env = {each["name"]: each["value"] for each in container["env"]}
    job = TrainJob.parse(json.loads(env[VARIABLE]), VARIABLE)
    assert (job.image, job.nodes, job.runtime) == (IMAGES["ppo_trainer"], 2, "my-torch")
    assert container["image"] == job.image, "a cached result follows what trained"
    assert job.resources == {"cpu": "6", "memory": "24Gi", "nvidia.com/gpu": "1"}
    assert job.devices == 1
    assert secrets.VARIABLE not in job.env, "which is JSON, and which the stage on the node reads"
    assert job.exchange == "/shared/exchange"
    assert (job.pending_seconds, job.timeout_seconds) == (300, 96 * 3600 + 300)
    assert pod["activeDeadlineSeconds"] == str(job.timeout_seconds)
    no_proxy = {"sidecar.istio.io/inject": "false"}
    assert (job.labels, job.annotations) == ({**no_proxy, "team": "tuning"}, {**no_proxy, "owner": "us"})
    assert job.env == {
        "HTTPS_PROXY": "http://proxy:3128",
        "TMPDIR": "/scratch",
        "HF_HOME": "/models/huggingface",
        node.SECRETS: "/etc/rlhf/secrets",
    }
    assert {mount["name"]: (mount["mountPath"], mount.get("subPath")) for mount in job.mounts} == {
        "scratch": ("/scratch", None),
        "volume-0": ("/models", None),
        "volume-1": ("/shared", "rlhf"),
        "shm": ("/dev/shm", None),
        "secret-0": ("/etc/rlhf/secrets/0", None),
    }
    volumes = {volume.pop("name"): volume for volume in job.pod["volumes"]}
    assert set(volumes) == {mount["name"] for mount in job.mounts}
    assert volumes["volume-1"] == {"persistentVolumeClaim": {"claimName": "shared"}}
    assert volumes["shm"] == {"emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}}
    item = {"key": "hf", "path": "HF_TOKEN"}
    assert volumes["secret-0"] == {"secret": {"secretName": "my-hub", "optional": False, "items": [item]}}
    claim = volumes["scratch"]["ephemeral"]["volumeClaimTemplate"]["spec"]
    assert (claim["storageClassName"], claim["resources"]["requests"]["storage"]) == ("fast", "100Gi")
    assert job.pod["node_selector"] == {"pool": "gpus", "lifecycle": "spot"}
    assert [each["key"] for each in job.pod["tolerations"]] == ["nvidia.com/gpu", "dedicated", "spot"]
    affinity = job.pod["affinity"]["nodeAffinity"]
    (required,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert required["matchExpressions"][0]["key"] == "zone"
    assert affinity["preferredDuringSchedulingIgnoredDuringExecution"][0]["weight"] == 10
    assert job.pod["image_pull_secrets"] == [{"name": "my-registry"}]
    assert job.pod["security_context"] == {"runAsUser": 1000, "runAsNonRoot": True}


def test_a_project_of_ones_own_is_described_in_the_profile_alone(tmp_path):
    def change(profile):
        profile["stages"]["ppo_trainer"]["nodes"] = 2
        profile["stages"]["sft_trainer"].pop("machine")
        profile["vertex"] = {
            "flex_start": True,
            "max_wait_hours": 2,
            "service_account": "tuner@p.iam.gserviceaccount.com",
            "network": "projects/12345/global/networks/mine",
            "labels": {"team": "tuning"},
            "env": {"HTTPS_PROXY": "http://proxy:3128"},
        }

    profile = load_profile(changed(tmp_path, "vertex-l4", change))
    (path,) = [p for p in compile_pipelines(profile, IMAGES, tmp_path) if p.stem == "rlhf"]
    (spec,) = yaml.safe_load_all(path.read_text())
    ppo, sft = (constants_of(spec, name) for name in ("ppo-trainer", "sft-trainer"))
    publisher = constants_of(spec, "publisher")
    assert [pool["replica_count"] for pool in ppo["worker_pool_specs"]] == [1, 1]
    assert (ppo["restart_job_on_worker_restart"], sft["restart_job_on_worker_restart"]) == (True, False)
    assert (ppo["strategy"], ppo["max_wait_duration"]) == ("FLEX_START", "7200s")
    assert ppo["service_account"] == "tuner@p.iam.gserviceaccount.com"
    assert ppo["network"] == "projects/12345/global/networks/mine"
    assert ppo["labels"] == {"team": "tuning"}
    pool = sft["worker_pool_specs"][0]
    assert pool["machine_spec"]["machine_type"] == "g2-standard-8"  # the smallest with the cores and memory asked for
    assert pool["container_spec"]["env"] == [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}]
    assert publisher["service_account"] == ppo["service_account"]
    assert publisher["strategy"] == "STANDARD", "machines without accelerators need not be waited for"


def constants_of(spec: dict, task: str) -> dict:
    """What a job on Vertex is told when it is compiled."""
    given = spec["components"][f"comp-{task}"]["inputDefinitions"]["parameters"]
    return {name: definition.get("defaultValue") for name, definition in given.items()}


def on_h200(profile: dict) -> None:
    profile["stages"]["ppo_trainer"] |= {"accelerator": "NVIDIA_H200_141GB", "count": 8, "machine": "a3-ultragpu-8g"}


def test_machines_with_h200_have_the_one_kind_of_disk_that_vertex_gives_them(tmp_path):
    profile = load_profile(changed(tmp_path, "vertex-l4", on_h200))
    (path,) = [p for p in compile_pipelines(profile, IMAGES, tmp_path) if p.stem == "rlhf"]
    (spec,) = yaml.safe_load_all(path.read_text())
    disks = {
        task: constants_of(spec, task)["worker_pool_specs"][0]["disk_spec"]["boot_disk_type"]
        for task in ("ppo-trainer", "reward-trainer", "publisher")
    }
    assert disks == {"ppo-trainer": "hyperdisk-balanced", "reward-trainer": "pd-ssd", "publisher": "pd-ssd"}

    def with_another(profile):
        on_h200(profile)
        profile["vertex"] = {"disk_type": "pd-standard"}

    with pytest.raises(ProfileError, match=r"vertex.disk_type: found 'pd-standard', expected 'hyperdisk-balanced'"):
        load_profile(changed(tmp_path, "vertex-l4", with_another))


@pytest.mark.parametrize("stage", ["data-validation", "ppo-trainer", "publisher"])
def test_jobs_of_a_profile_that_names_none_have_the_account_and_the_network_of_the_run(stage):
    """Vertex AI fills both in when the job starts; the network with nothing where the run has none."""
    told = constants_of(documents("vertex-l4", "rlhf")[0], stage)
    assert told["service_account"] == "{{$.pipeline_service_account}}"
    assert told["network"] == "{{$.pipeline_network}}"


def test_stages_without_accelerators_have_their_disk_time_and_machine_on_vertex_too(tmp_path):
    def change(profile):
        profile["stages"]["publisher"] |= {"disk": "700G", "timeout_hours": 3, "spot": True, "memory": "100G"}
        profile["stages"]["data_validation"] |= {"machine": "n2-highmem-32"}
        profile["vertex"] = {"disk_type": "hyperdisk-balanced"}

    profile = load_profile(changed(tmp_path, "vertex-l4", change))
    (path,) = [p for p in compile_pipelines(profile, IMAGES, tmp_path) if p.stem == "rlhf"]
    (spec,) = yaml.safe_load_all(path.read_text())
    publisher, data = (constants_of(spec, name) for name in ("publisher", "data-validation"))
    (pool,) = publisher["worker_pool_specs"]
    assert pool["disk_spec"] == {"boot_disk_type": "pd-ssd", "boot_disk_size_gb": 700}
    assert pool["machine_spec"] == {"machine_type": "e2-highmem-16"}
    assert (publisher["timeout"], publisher["strategy"]) == ("10800s", "SPOT")
    assert data["worker_pool_specs"][0]["machine_spec"] == {"machine_type": "n2-highmem-32"}


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("vertex-l4", {"machine": "g2-standard-9"}, "machine: found 'g2-standard-9'"),
        ("vertex-l4", {"machine": "a2-ultragpu-1g"}, "a2-ultragpu-1g has NVIDIA_A100_80GB, not NVIDIA_L4"),
        ("vertex-l4", {"count": 2}, "g2-standard-8 has 1 accelerators, not 2"),
        ("vertex-l4", {"cpu": 16}, "g2-standard-8 has 8 cores, fewer than 16"),
        ("vertex-l4", {"memory": "64G"}, "g2-standard-8 has 32 GB of memory, less than 64G"),
        ("vertex-l4", {"accelerator": "nvidia.com/gpu"}, "accelerator: found 'nvidia.com/gpu'"),
        (
            "vertex-h100x8",
            {"machine": "a3-highgpu-1g", "count": 1, "cpu": 8, "memory": "64G"},
            "a3-highgpu-1g is let with spot",
        ),
        ("vertex-l4", {"machine": "e2-standard-8"}, "e2-standard-8 has no accelerator, not NVIDIA_L4"),
        (
            "vertex-l4",
            {"accelerator": None, "count": 0, "machine": None, "cpu": 96},
            "no machine has 0 accelerators, 96 cores and 32G of memory",
        ),
        ("vertex-l4", {"shm": "8Gi"}, "device and shm are for Kubernetes"),
        ("kubeflow-l4", {"machine": "g2-standard-8"}, "machine is for Vertex"),
        ("kubeflow-l4", {"device": "NVIDIA_L5"}, "device: found 'NVIDIA_L5'"),
        ("kubeflow-l4", {"shm": "24Gi"}, "must be less"),
        ("kubeflow-l4", {"disk": "much"}, "stages.ppo_trainer.disk"),
    ],
)
def test_a_stage_that_no_machine_can_give_is_refused_in_one_line(tmp_path, name, change, says):
    path = changed(tmp_path, name, lambda profile: profile["stages"]["ppo_trainer"].update(change))
    with pytest.raises(ProfileError, match=re.escape(says)) as error:
        load_profile(path)
    assert "\n" not in str(error.value)
    assert "ppo_trainer" in str(error.value)


@pytest.mark.parametrize(
    ("name", "part", "says"),
    [
        ("kubeflow-l4", {"kubernetes": {"secrets": [{"name": "My_Secret", "key": "k", "env": "A"}]}}, "secrets.0.name"),
        ("kubeflow-l4", {"vertex": {}}, "vertex is for the other platform"),
        ("vertex-l4", {"kubernetes": {}}, "kubernetes is for the other platform"),
        ("vertex-l4", {"vertex": {"env": {"HF_TOKEN": "hf_abc"}}}, "looks like a secret"),
        ("vertex-l4", {"vertex": {"network": "default"}}, "vertex.network"),
        ("kubeflow-l4", {"kubernetes": {"exchange": "/shared"}}, "/shared is on none of kubernetes.volumes"),
        ("kubeflow-l4", {"kubernetes": {"exchange": "shared"}}, "kubernetes.exchange"),
    ],
)
def test_a_wrong_cluster_or_project_is_refused_in_one_line(tmp_path, name, part, says):
    path = changed(tmp_path, name, lambda profile: profile.update(part))
    with pytest.raises(ProfileError, match=re.escape(says)) as error:
        load_profile(path)
    assert "\n" not in str(error.value)
    assert "hf_abc" not in str(error.value)


def test_the_platform_and_the_stage_call_the_variable_the_same():
    assert secrets.VARIABLE == SECRETS_VARIABLE
