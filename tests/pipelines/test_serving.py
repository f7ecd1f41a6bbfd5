"""What a profile adds after the publisher: KServe, the registries, an endpoint; and what is checked before."""

import json
import re
import subprocess
import sys

import pytest
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec

from pipelines.compile import compile_pipelines
from pipelines.params import ParameterError
from pipelines.placement.cluster import FOLDER, ProfileError, load_profile
from pipelines.placement.devices import DEVICES
from pipelines.placement.local import place
from pipelines.placement.regions import REGIONS, regions_with
from pipelines.rlhf import build
from pipelines.submit import check
from rlhf.publisher.registry import RegistryConfig
from rlhf.publisher.serve import ServeConfig
from tests.pipelines.placed import IMAGES
from tests.pipelines.test_rlhf import conditions_of

PARAMS = {"prompt_dataset": "gs://b/p", "preference_dataset": "gs://b/q", "large_model_reference": "t5-small"}
PUBLISHED = "inputs.parameter_values['pipelinechannel--publish_to'] != ''"
PROMOTED = "inputs.parameter_values['pipelinechannel--evaluator-Output'] == 'promote'"
DEPLOYED = "inputs.parameter_values['pipelinechannel--deploy_model'] == true"
KSERVE = {"args": ["--max-model-len=2048"], "service_account": "reads-models", "tolerations": [{"key": "gpu"}]}
REGISTRY = {"url": "http://registry:8080"}
SERVING = {"image": "europe-west4-docker.pkg.dev/p/r/vllm-openai:v0.11.1"}
TOKEN = "projects/my-project/secrets/hugging-face/versions/latest"


def profile_with(tmp_path, base: str, **settings):
    given = yaml.safe_load((FOLDER / f"{base}.yaml").read_text())
    platform = {"kubeflow": "kubernetes", "vertex": "vertex"}[given["platform"]]
    given[platform] = {**given.get(platform, {}), **settings}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(given))
    return load_profile(str(tmp_path / "mine.yaml"))


def compiled(profile, tmp_path) -> tuple[dict, list[dict]]:
    paths = compile_pipelines(profile, IMAGES, tmp_path)
    spec, *others = yaml.safe_load_all(next(path for path in paths if path.stem == "rlhf").read_text())
    return spec, others


def conditions(spec: dict, task: str) -> tuple[str, ...] | None:
    message = json_format.ParseDict(spec, PipelineSpec())
    return conditions_of(message, message.root.dag, task)


def task_of(spec: dict, name: str) -> dict:
    dags = [each["dag"] for each in spec["components"].values() if "dag" in each]
    return next(dag["tasks"][name] for dag in dags if name in dag["tasks"])


def constants(task: dict) -> dict:
    given = task["inputs"]["parameters"]
    return {name: value["runtimeValue"]["constant"] for name, value in given.items() if "runtimeValue" in value}


def test_a_promoted_model_is_served_by_kserve_where_the_profile_and_the_run_ask_for_it(tmp_path):
    spec, (platform,) = compiled(profile_with(tmp_path, "kubeflow-l4", kserve=KSERVE), tmp_path)
    assert conditions(spec, "kserve") == (PUBLISHED, PROMOTED, DEPLOYED)
    # As the pod reads it.
    service = ServeConfig.parse({"deploy": True, "service": constants(task_of(spec, "kserve"))["service"]}).service
    assert service.args == KSERVE["args"]
    assert service.tolerations == [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}]
    container = spec["deploymentSpec"]["executors"]["exec-kserve"]["container"]
    assert container["image"] == IMAGES["publisher"]
    pod = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-kserve"]
    assert pod["activeDeadlineSeconds"] == "7200"  # wait_minutes, and an hour
    assert "enableCache" not in task_of(spec, "kserve")["cachingOptions"]


def test_before_anything_is_trained_it_is_seen_whether_the_cluster_can_serve(tmp_path):
    spec, _ = compiled(profile_with(tmp_path, "kubeflow-l4", kserve=KSERVE), tmp_path)
    assert conditions(spec, "kserve-check") == (DEPLOYED,)
    (condition,) = [task for name, task in spec["root"]["dag"]["tasks"].items() if name.startswith("condition-1")]
    assert "dependentTasks" not in condition
    assert "retryPolicy" not in task_of(spec, "kserve-check"), "it fails at once"


def test_a_model_registry_gets_every_published_model_served_or_not(tmp_path):
    spec, _ = compiled(profile_with(tmp_path, "kubeflow-l4", model_registry=REGISTRY), tmp_path)
    task = task_of(spec, "kserve")
    assert conditions(spec, "kserve") == (PUBLISHED, PROMOTED)
    assert constants(task)["deploy"] is False
    assert RegistryConfig.parse(constants(task)["registry"]).url == REGISTRY["url"]
    both = profile_with(tmp_path, "kubeflow-l4", model_registry=REGISTRY, kserve=KSERVE)
    task = task_of(compiled(both, tmp_path)[0], "kserve")
    assert task["inputs"]["parameters"]["deploy"] == {"componentInputParameter": "pipelinechannel--deploy_model"}


def test_kserve_is_told_which_volumes_it_can_read(tmp_path):
    volumes = [{"claim": "models", "path": "/models"}, {"claim": "c", "path": "/mine", "sub_path": "a/"}]
    spec, _ = compiled(profile_with(tmp_path, "kubeflow-l4", kserve=KSERVE, volumes=volumes), tmp_path)
    told = constants(task_of(spec, "kserve"))["service"]["volumes"]
    assert told == {"/models": "pvc://models", "/mine": "pvc://c/a"}


@pytest.mark.parametrize("name", ["kubeflow-l4", "vertex-l4"])
def test_a_profile_that_asks_for_nothing_gets_nothing(tmp_path, name):
    spec, _ = compiled(load_profile(name), tmp_path)
    assert not [
        name for name in spec["deploymentSpec"]["executors"] if re.search("kserve|upload|endpoint|deploy", name)
    ]


def test_on_vertex_googles_own_components_upload_and_deploy(tmp_path):
    from google.cloud.aiplatform_v1.types import ModelContainerSpec

    serving = {**SERVING, "count": 2, "max_replicas": 3, "args": ["--model={model}", "--tensor-parallel-size=2"]}
    profile = profile_with(tmp_path, "vertex-l4", serving=serving, service_account="a@p.iam", labels={"team": "tuning"})
    spec, others = compiled(profile, tmp_path)
    assert not others, "Vertex's client refuses a file of several documents"
    assert conditions(spec, "model-upload") == (PUBLISHED, PROMOTED)
    assert conditions(spec, "endpoint-create") == conditions(spec, "model-deploy") == (PUBLISHED, PROMOTED, DEPLOYED)
    images = {name: spec["deploymentSpec"]["executors"][f"exec-{name}"]["container"]["image"]
              for name in ("model-upload", "endpoint-create", "model-deploy")}  # fmt: skip
    assert all("google-cloud-pipeline-components:2.22.0" in image for image in images.values())

    importer = spec["deploymentSpec"]["executors"]["exec-importer"]["importer"]
    container = importer["metadata"]["containerSpec"]
    json_format.ParseDict(container, ModelContainerSpec()._pb)  # the API's published schema
    assert container["args"] == ["--model={{$.inputs.parameters['metadata']}}", "--tensor-parallel-size=2"]
    folder = task_of(spec, "importer")
    given = {"componentInputParameter": "pipelinechannel--publish_to"}
    assert folder["inputs"]["parameters"] == {"uri": given, "metadata": given}
    assert folder["dependentTasks"] == ["publisher"], "not before everything is there"
    deployed = constants(task_of(spec, "model-deploy"))
    asked = {
        name.removeprefix("dedicated_resources_"): value for name, value in deployed.items() if "dedicated" in name
    }
    assert asked == {
        "machine_type": "g2-standard-24",
        "accelerator_type": "NVIDIA_L4",
        "accelerator_count": 2,
        "min_replica_count": 1,
        "max_replica_count": 3,
    }
    assert deployed["service_account"] == "a@p.iam"
    for name in ("model-upload", "endpoint-create"):
        assert constants(task_of(spec, name)) == {
            "location": "{{$.pipeline_google_cloud_location}}",
            "labels": {"team": "tuning"},
        }


def test_a_served_model_has_the_account_of_the_run_where_the_profile_names_none(tmp_path):
    """Vertex AI fills it in; without an account a model is served by one that reads no bucket of the project."""
    spec, _ = compiled(profile_with(tmp_path, "vertex-l4", serving=SERVING), tmp_path)
    assert constants(task_of(spec, "model-deploy"))["service_account"] == "{{$.pipeline_service_account}}"


def test_every_stage_on_vertex_is_told_which_secrets_to_read_and_no_token(tmp_path):
    spec, _ = compiled(profile_with(tmp_path, "vertex-l4", secrets={"HF_TOKEN": TOKEN}), tmp_path)
    jobs = [
        each["inputDefinitions"]["parameters"]["worker_pool_specs"]["defaultValue"][0]["container_spec"]["env"]
        for each in spec["components"].values()
        if "worker_pool_specs" in each.get("inputDefinitions", {}).get("parameters", {})
    ]
    fingerprint = spec["deploymentSpec"]["executors"]["exec-data-fingerprint"]["container"]["env"]
    assert len(jobs) == 8
    for env in [*jobs, fingerprint]:
        found = {each["name"]: each["value"] for each in env}
        assert json.loads(found["RLHF_SECRETS"]) == {"HF_TOKEN": TOKEN}


def test_a_jobs_event_files_have_a_folder_that_tensorboard_is_streamed_from(tmp_path):
    spec, _ = compiled(load_profile("vertex-l4"), tmp_path)
    given = spec["components"]["comp-ppo-trainer"]["inputDefinitions"]["parameters"]
    expected = "{{$.pipeline_root}}/jobs/{{$.pipeline_job_name}}/{{$.pipeline_task_uuid}}"
    assert given["base_output_directory"]["defaultValue"] == expected
    for stage in ("data-validation", "bulk-inference", "evaluator"):
        without = spec["components"][f"comp-{stage}"]["inputDefinitions"]["parameters"]["base_output_directory"]
        assert without.get("defaultValue", "") == "", "it differs from run to run, and inputs are what a cache goes by"


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("kubeflow-l4", {"kserve": {"name": "My_Model"}}, "kubernetes.kserve.name"),
        ("kubeflow-l4", {"kserve": {"gpus": 1}}, "kubernetes.kserve.gpus"),
        ("kubeflow-l4", {"model_registry": {"url": "registry:8080"}}, "kubernetes.model_registry.url"),
        ("vertex-l4", {"serving": {"image": "vllm/vllm-openai"}}, "vertex.serving.image"),
        ("vertex-l4", {"serving": {"image": "vllm/vllm-openai:latest"}}, "'latest' moves"),
        ("vertex-l4", {"serving": {"image": "vllm/vllm-openai:v1"}}, "found 'vllm/vllm-openai:v1', expected one in"),
        ("vertex-l4", {"serving": {"image": "a.example/b-docker.pkg.dev/c:1"}}, "copy it there"),
        ("vertex-l4", {"serving": {**SERVING, "count": 3}}, "vertex.serving: no machine has 3 NVIDIA_L4"),
        ("vertex-l4", {"serving": {**SERVING, "machine": "g2-standard-9"}}, "machine: found 'g2-standard-9'"),
        ("vertex-l4", {"serving": {**SERVING, "max_replicas": 1, "min_replicas": 2}}, "less than min_replicas (2)"),
        ("vertex-l4", {"serving": {**SERVING, "env": {"HF_TOKEN": "hf_abc"}}}, "looks like a secret"),
        ("vertex-l4", {"env": {"HF_TOKEN": "hf_abc"}}, "into `vertex.secrets`"),
        ("vertex-l4", {"secrets": {"HF_TOKEN": "hf_abc"}}, "vertex.secrets.HF_TOKEN"),
        ("kubeflow-l4", {"env": {"HF_TOKEN": "hf_abc"}}, "HF_TOKEN looks like a secret, which everybody who can see"),
        ("kubeflow-l4", {"env": {"JUDGE_API_KEY": "hf_abc"}}, "name it in `kubernetes.secrets`"),
        ("kubeflow-l4", {"env": {"TMPDIR": "/var/tmp"}}, "env: TMPDIR is set for every pod"),
        ("kubeflow-l4", {"env": {"HF_HOME": "/models"}}, "`kubernetes.model_cache`"),
    ],
)
def test_a_wrong_way_to_serve_is_refused_in_one_line(tmp_path, name, settings, says):
    with pytest.raises(ProfileError, match=re.escape(says)) as error:
        profile_with(tmp_path, name, **settings)
    assert "\n" not in str(error.value)
    assert "hf_abc" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "settings", "given", "says"),
    [
        ("vertex-l4", {"serving": SERVING}, {"publish_to": "s3://b/m"}, "expected a gs:// folder"),
        ("kubeflow-l4", {"kserve": KSERVE}, {"publish_to": "/m/x", "deploy_model": True}, "kubernetes.volumes (none)"),
    ],
)
def test_a_place_that_no_server_can_read_is_refused_before_anything_is_sent(tmp_path, name, settings, given, says):
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({**PARAMS, **given}))
    with pytest.raises(ParameterError, match=re.escape(says)):
        check.parameters(tmp_path / "p.yaml", build(place), profile_with(tmp_path, name, **settings))


@pytest.mark.parametrize(
    ("name", "settings", "given", "warnings"),
    [
        (
            "kubeflow-l4",
            {},
            {"publish_to": "s3://b/m"},
            ["deploy_model: ignored, the profile has no kubernetes.kserve"],
        ),
        ("vertex-l4", {}, {"publish_to": "gs://b/m"}, ["deploy_model: ignored, the profile has no vertex.serving"]),
        ("kubeflow-l4", {"kserve": KSERVE}, {}, ["deploy_model: ignored, nothing is published without publish_to"]),
        ("kubeflow-l4", {"kserve": KSERVE}, {"publish_to": "s3://b/m"}, []),
        ("vertex-l4", {"serving": SERVING}, {"publish_to": "gs://b/m"}, []),
    ],
)
def test_deploy_model_warns_where_nothing_deploys(tmp_path, name, settings, given, warnings):
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({**PARAMS, "deploy_model": True, **given}))
    _, said = check.parameters(tmp_path / "p.yaml", build(place), profile_with(tmp_path, name, **settings))
    assert len(said) == len(warnings)
    assert all(line.startswith(start) for line, start in zip(said, warnings, strict=True))


def test_every_accelerator_can_be_had_somewhere_and_the_table_names_only_vertexs():
    assert {each for kinds in REGIONS.values() for kind in kinds for each in kind} == set(DEVICES)
    assert all(re.fullmatch(r"[a-z]+-[a-z]+\d+", region) for region in REGIONS)


@pytest.mark.parametrize("name", ["TOKENIZERS_PARALLELISM", "AWS_WEB_IDENTITY_TOKEN_FILE", "VLLM_MAX_TOKENS"])
@pytest.mark.parametrize("profile", ["kubeflow-l4", "vertex-l4"])
def test_a_variable_that_only_sounds_like_a_secret_is_taken(tmp_path, profile, name):
    profile_with(tmp_path, profile, env={name: "1"})


@pytest.mark.parametrize("host", ["us-docker.pkg.dev", "europe-west4-docker.pkg.dev", "gcr.io", "eu.gcr.io"])
def test_an_image_of_googles_registries_can_serve_on_vertex(tmp_path, host):
    profile_with(tmp_path, "vertex-l4", serving={"image": f"{host}/p/vllm:1"})


def test_a_region_that_trains_on_an_accelerator_may_not_serve_with_it():
    assert "us-east5" in regions_with("NVIDIA_H200_141GB")
    assert "us-east5" not in regions_with("NVIDIA_H200_141GB", serving=True)
    assert "europe-west6" in regions_with("NVIDIA_L4", serving=True)
    assert "europe-west6" not in regions_with("NVIDIA_L4")


@pytest.mark.parametrize(
    ("name", "settings", "region", "says"),
    [
        (
            "vertex-l4",
            {},
            "europe-west6",
            "europe-west6 has no NVIDIA_L4 for training, which bulk_inference is to have",
        ),
        ("vertex-a100-80g", {}, "europe-west1", "expected one of asia-southeast1, europe-west4, us-central1, us-east4"),
        (
            "vertex-l4",
            {"serving": {**SERVING, "accelerator": "NVIDIA_H200_141GB", "count": 8}},
            "us-central2",
            "us-central2 has no NVIDIA_L4",
        ),
        (
            "vertex-l4",
            {"serving": {**SERVING, "accelerator": "NVIDIA_TESLA_A100"}},
            "us-east1",
            "us-east1 has no NVIDIA_TESLA_A100 for serving, which serving is to have",
        ),
    ],
)
def test_a_region_without_the_accelerators_is_refused(tmp_path, name, settings, region, says):
    profile = profile_with(tmp_path, name, **settings)
    with pytest.raises(ProfileError, match=re.escape(says)):
        profile.check_region(region)
    profile_with(tmp_path, name, **settings, more_regions=[region]).check_region(region)


def test_make_compile_refuses_such_a_region_too(tmp_path):
    command = [sys.executable, "-m", "pipelines.compile", "--profile", "vertex-l4", "--location", "europe-west6"]
    table = {stage: {"image": name, "digest": f"sha256:{'0' * 64}"} for stage, name in IMAGES.items()}
    (tmp_path / "images.json").write_text(json.dumps(table))
    command += ["--images", str(tmp_path / "images.json"), "--out", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert ended.stderr.startswith("error: location: europe-west6 has no NVIDIA_L4 for training")
    assert not (tmp_path / "vertex").exists()


DOCS = FOLDER.parents[1] / "docs"


def settings_in(page: str) -> list[dict]:
    blocks = re.findall(r"```yaml\n(.*?)```", (DOCS / page).read_text(), re.S)
    return [found for block in blocks if {"kubernetes", "vertex"} & set(found := yaml.safe_load(block))]


@pytest.mark.parametrize("settings", settings_in("serving.md"), ids=lambda found: "-".join(found))
def test_what_the_page_on_serving_shows_can_be_put_into_a_profile(tmp_path, settings):
    ((platform, given),) = settings.items()
    profile_with(tmp_path, {"kubernetes": "kubeflow-l4", "vertex": "vertex-l4"}[platform], **given)


def test_every_picture_of_a_dag_is_on_a_page_with_what_it_shows_in_words():
    pages = "".join(path.read_text() for path in [*DOCS.rglob("*.md"), DOCS.parent / "README.md"])
    for picture in (DOCS / "images").glob("*.svg"):
        words = re.search(rf"!\[([^\]]*)\]\((?:docs/|\.\./)?images/{picture.name}\)", pages)
        assert words, picture.name
        assert len(words[1]) > 60
