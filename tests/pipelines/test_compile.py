"""What the compiled files ask each cluster for."""

import pytest
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec

from components.images import STAGES, cluster_images
from pipelines.compile import compile_pipelines
from pipelines.placement.cluster import FOLDER, ProfileError, load_profile
from pipelines.tasks import tasks_of

IMAGES = cluster_images("registry.example/team", "1f2e3d")
EXECUTORS = {
    "exec-data-fingerprint": "data_validation",
    "exec-data-validation": "data_validation",
    "exec-sft-trainer": "sft_trainer",
    "exec-reward-trainer": "reward_trainer",
    "exec-ppo-trainer": "ppo_trainer",
    "exec-bulk-inference": "bulk_inference",
    "exec-bulk-inference-2": "bulk_inference",
    "exec-evaluator": "evaluator",
    "exec-publisher": "publisher",
}
WITHOUT_ACCELERATOR = {"data_validation", "publisher"}  # they run no model
# Stage: accelerators, cores, memory. Written out, so that a change of a profile is a change of this table.
KUBEFLOW_L4 = {
    "data_validation": (0, "4", "16Gi"),
    "sft_trainer": (1, "6", "24Gi"),
    "reward_trainer": (1, "6", "24Gi"),
    "ppo_trainer": (1, "6", "24Gi"),
    "bulk_inference": (1, "6", "24Gi"),
    "evaluator": (1, "6", "24Gi"),
    "publisher": (0, "4", "56Gi"),
}
VERTEX_L4 = {
    "data_validation": ("e2-standard-4", None, None),
    "sft_trainer": ("g2-standard-8", "NVIDIA_L4", 1),
    "reward_trainer": ("g2-standard-8", "NVIDIA_L4", 1),
    "ppo_trainer": ("g2-standard-8", "NVIDIA_L4", 1),
    "bulk_inference": ("g2-standard-8", "NVIDIA_L4", 1),
    "evaluator": ("g2-standard-8", "NVIDIA_L4", 1),
    "publisher": ("e2-highmem-8", None, None),
}


def compiled(profile: str, tmp_path_factory) -> list[dict]:
    path, _ = compile_pipelines(load_profile(profile), IMAGES, tmp_path_factory.mktemp("build"))
    return list(yaml.safe_load_all(path.read_text()))


@pytest.fixture(scope="module")
def kubeflow(tmp_path_factory):
    return compiled("kubeflow-l4", tmp_path_factory)


@pytest.fixture(scope="module")
def vertex(tmp_path_factory):
    return compiled("vertex-l4", tmp_path_factory)


def resources(document: dict) -> dict[str, tuple[int, str, str]]:
    """{stage: (accelerators, cores, memory)}; a stage that runs twice must ask for the same twice."""
    found = {}
    for name, executor in document["deploymentSpec"]["executors"].items():
        asked = executor["container"]["resources"]
        row = (
            int(asked.get("accelerator", {}).get("resourceCount", 0)),
            asked["resourceCpuLimit"],
            asked["resourceMemoryLimit"],
        )
        assert found.setdefault(EXECUTORS[name], row) == row
    return found


def test_kubeflow_asks_for_what_the_table_says(kubeflow):
    assert resources(kubeflow[0]) == KUBEFLOW_L4


def jobs(document: dict) -> dict[str, dict]:
    """{executor: worker pools} of the stages that Vertex runs as custom jobs."""
    return {
        component["executorLabel"]: component["inputDefinitions"]["parameters"]["worker_pool_specs"]["defaultValue"]
        for component in document["components"].values()
        if "worker_pool_specs" in component.get("inputDefinitions", {}).get("parameters", {})
    }


def test_vertex_asks_for_what_the_table_says(vertex):
    found = {}
    for name, (pool,) in jobs(vertex[0]).items():
        row = tuple(pool["machine_spec"].get(key) for key in ("machine_type", "accelerator_type", "accelerator_count"))
        assert found.setdefault(EXECUTORS[name], row) == row
    assert found == VERTEX_L4


def test_every_stage_that_runs_a_model_asks_for_an_accelerator_by_its_literal_name(kubeflow):
    types = {
        EXECUTORS[name]: executor["container"]["resources"].get("accelerator", {}).get("resourceType")
        for name, executor in kubeflow[0]["deploymentSpec"]["executors"].items()
    }
    assert types == {
        stage: None if stage in WITHOUT_ACCELERATOR else "nvidia.com/gpu" for stage in set(EXECUTORS.values())
    }


@pytest.mark.parametrize("profile", sorted(path.stem for path in FOLDER.glob("*.yaml")))
def test_every_shipped_profile_gives_every_model_stage_an_accelerator(profile):
    stages = load_profile(profile).stages
    assert {stage for stage in STAGES if not stages[stage].count} == WITHOUT_ACCELERATOR


@pytest.mark.parametrize("platform", ["kubeflow", "vertex"])
def test_images_carry_the_tag_that_was_asked_for(platform, request):
    document = request.getfixturevalue(platform)[0]
    executors = document["deploymentSpec"]["executors"]
    assert set(executors) == set(EXECUTORS)
    images = {name: executor["container"]["image"] for name, executor in executors.items()}
    images |= {name: pool["container_spec"]["image_uri"] for name, (pool,) in jobs(document).items()}
    assert images == {
        name: f"registry.example/team/rlhf-{stage.replace('_', '-')}:1f2e3d" for name, stage in EXECUTORS.items()
    }


@pytest.mark.parametrize("platform", ["kubeflow", "vertex"])
def test_a_preempted_stage_is_started_again_but_wrong_input_is_not(platform, request):
    spec = json_format.ParseDict(request.getfixturevalue(platform)[0], PipelineSpec())
    retries = {name: task.spec.retry_policy.max_retry_count for name, task in tasks_of(spec).items()}
    assert retries.pop("data-fingerprint") == retries.pop("data-validation") == 0
    assert set(retries.values()) == {2}


def test_gpu_pods_get_shared_memory_a_toleration_an_optional_token_and_a_timeout(kubeflow):
    pods = kubeflow[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert set(pods) == set(EXECUTORS)
    for name, pod in pods.items():
        (secret,) = pod["secretAsEnv"]
        assert secret["optional"]
        assert secret["keyToEnv"] == [{"envVar": "HF_TOKEN", "secretKey": "token"}]
        assert int(pod["activeDeadlineSeconds"]) >= 3600
        if EXECUTORS[name] not in WITHOUT_ACCELERATOR:
            (mount,) = [mount for mount in pod["emptyDirMounts"] if mount.get("medium")]
            assert (mount["mountPath"], mount["medium"], mount["sizeLimit"]) == ("/dev/shm", "Memory", "8Gi")
            assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]


def test_the_vertex_file_is_one_document(vertex):
    assert len(vertex) == 1


def test_vertex_client_loads_the_file(tmp_path):
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import aiplatform

    path, rft = compile_pipelines(load_profile("vertex-l4"), IMAGES, tmp_path)
    job = aiplatform.PipelineJob(
        template_path=str(path),
        display_name="rlhf",
        project="some-project",
        location="europe-west4",
        pipeline_root="gs://bucket/root",
        parameter_values={"prompt_dataset": "gs://b/p", "kl_coeff": 0.2, "ppo": {"gamma": 1.0}},
        credentials=AnonymousCredentials(),
    )
    parameters = job.to_dict()["runtimeConfig"]["parameterValues"]
    assert parameters["kl_coeff"] == 0.2
    assert parameters["ppo"] == {"gamma": 1.0}
    given = {"prompt_dataset": "gs://b/p", "grader": {"builtin": "length"}}
    job = aiplatform.PipelineJob(
        template_path=str(rft),
        display_name="rft",
        project="some-project",
        location="europe-west4",
        pipeline_root="gs://bucket/root",
        parameter_values=given,
        credentials=AnonymousCredentials(),
    )
    assert job.to_dict()["runtimeConfig"]["parameterValues"].items() >= given.items()


def test_fine_tuning_with_a_grader_is_the_same_dag_on_both_clusters_on_the_devices_of_the_profile(tmp_path):
    found = {}
    for platform in ("kubeflow", "vertex"):
        _, path = compile_pipelines(load_profile(f"{platform}-l4"), IMAGES, tmp_path)
        documents = list(yaml.safe_load_all(path.read_text()))
        assert len(documents) == {"kubeflow": 2, "vertex": 1}[platform]
        found[platform] = documents[0]
    tasks = {
        platform: {name: task.after for name, task in tasks_of(json_format.ParseDict(spec, PipelineSpec())).items()}
        for platform, spec in found.items()
    }
    assert tasks["kubeflow"] == tasks["vertex"]
    assert tasks["vertex"]["grpo-trainer"] == {"data-validation"}
    assert {"bulk-inference-before", "bulk-inference-after", "grpo-trainer"} <= tasks["vertex"]["evaluator"]
    assert not {"sft-trainer", "reward-trainer", "ppo-trainer"} & set(tasks["vertex"])
    asked = found["kubeflow"]["deploymentSpec"]["executors"]["exec-grpo-trainer"]["container"]["resources"]
    assert (asked["accelerator"]["resourceType"], asked["accelerator"]["resourceCount"]) == ("nvidia.com/gpu", "1")
    (pool,) = jobs(found["vertex"])["exec-grpo-trainer"]
    assert pool["machine_spec"]["accelerator_type"] == "NVIDIA_L4"
    assert pool["container_spec"]["image_uri"] == "registry.example/team/rlhf-grpo-trainer:1f2e3d"


def test_the_dag_is_the_same_on_both_clusters(kubeflow, vertex):
    def dag(document):
        return {name: sorted(task.get("dependentTasks", [])) for name, task in document["root"]["dag"]["tasks"].items()}

    assert dag(kubeflow[0]) == dag(vertex[0])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda profile: profile["stages"].pop("evaluator"), "stages must be exactly"),
        (lambda profile: profile["stages"]["evaluator"].pop("count"), "stages.evaluator: .*go together"),
        (lambda profile: profile["stages"]["evaluator"].update(memory="24 GB"), "stages.evaluator.memory"),
        (lambda profile: profile["stages"]["evaluator"].update(gpus=1), "stages.evaluator.gpus"),
        (lambda profile: profile.update(platform="slurm"), "platform"),
    ],
)
def test_a_wrong_profile_is_refused_in_one_line(tmp_path, change, says):
    profile = yaml.safe_load((FOLDER / "kubeflow-l4.yaml").read_text())
    change(profile)
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(profile))
    with pytest.raises(ProfileError, match=says) as error:
        load_profile(str(path))
    assert "\n" not in str(error.value)
