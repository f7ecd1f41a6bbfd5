"""A published model served by KServe and entered in the Model Registry, request by request, on loopback."""

import itertools

import pytest

from rlhf.errors import ConfigError, ModelError
from rlhf.publisher import kserve
from rlhf.publisher.kserve import Cluster, KServeConfig, ServingError, inference_service, service_name, storage_uri
from rlhf.publisher.registry import RegistryConfig, RegistryError, register
from rlhf.publisher.serve import ServeConfig, run
from tests import kubernetes_server as kubernetes
from tests.http_server import Answer, served

SERVICES = kubernetes.SERVICES.format("mine")
PUBLISHED = {"display_name": "My T5, v2", "digest": "0123456789abcdef", "win_rate": 0.75, "architecture": "T5"}


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A cluster that this process is in, where a second of waiting takes none."""
    clock = itertools.count(0.0, 10.0)
    monkeypatch.setattr(kserve.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(kserve.time, "monotonic", lambda: next(clock))
    with served(kubernetes.Cluster()) as service:
        (tmp_path / "kubeconfig").write_text(kubernetes.kubeconfig(service.url))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        yield service


@pytest.fixture
def registry(tmp_path, monkeypatch):
    (tmp_path / "token").write_text(kubernetes.TOKEN)
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
    with served(kubernetes.Registry()) as service:
        yield service


def serve(publish_to: str = "s3://models/mine", published: dict = PUBLISHED, registry=None, **service):
    config = {"deploy": True, "service": service, "registry": registry and {"url": registry.url}}
    return run(ServeConfig.parse(config), published, publish_to)


def test_a_published_model_becomes_a_service_of_the_hugging_face_runtime(cluster, capsys):
    url, done = serve(args=["--max-model-len=2048"], service_account="reads-models", count=2, min_replicas=0)
    assert (url, done) == ("http://mine.example", {"deployed": 1.0, "registered": 0.0})
    (made,) = cluster.seen("POST", SERVICES)
    assert made.json == {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "my-t5-v2", "labels": {"app.kubernetes.io/managed-by": "rlhf-pipeline"}},
        "spec": {
            "predictor": {
                "minReplicas": 0,
                "serviceAccountName": "reads-models",
                "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
                "model": {
                    "modelFormat": {"name": "huggingface"},
                    "args": ["--model_name=my-t5-v2", "--max-model-len=2048"],
                    "storageUri": "s3://models/mine",
                    "resources": {
                        "requests": {"cpu": "4", "memory": "24Gi", "nvidia.com/gpu": "2"},
                        "limits": {"cpu": "4", "memory": "24Gi", "nvidia.com/gpu": "2"},
                    },
                },
            }
        },
    }
    assert "My T5, v2 is served at http://mine.example" in capsys.readouterr().out


def test_a_service_without_accelerators_asks_for_none():
    service = inference_service(KServeConfig(count=0, runtime="mine"), "m", "gs://b/m")
    predictor = service["spec"]["predictor"]
    assert predictor["model"]["resources"]["limits"] == {"cpu": "4", "memory": "24Gi"}
    assert predictor["model"]["runtime"] == "mine"
    assert "tolerations" not in predictor


def test_it_is_waited_for_and_what_it_waits_for_is_said_once(cluster, capsys):
    pulling = kubernetes.unready("ContainerCreating", "pulling the image")
    cluster.statuses = [{}, pulling, pulling, kubernetes.ready()]
    serve()
    said = capsys.readouterr().out
    assert said.count("waiting for my-t5-v2: PredictorReady: ContainerCreating pulling the image") == 1
    assert len(cluster.seen("GET", f"{SERVICES}/my-t5-v2")) == 5  # one to see that there was none


def test_a_service_of_an_earlier_run_is_brought_up_to_date_and_keeps_what_the_cluster_added(cluster):
    serve(publish_to="s3://models/old")
    serve(publish_to="s3://models/new")
    (put,) = cluster.seen("PUT", f"{SERVICES}/my-t5-v2")
    assert put.json["spec"]["predictor"]["model"]["storageUri"] == "s3://models/new"
    assert put.json["metadata"]["finalizers"] == ["kserve"]
    assert len(cluster.seen("POST", SERVICES)) == 1


def test_a_service_of_somebody_else_is_left_alone(cluster):
    cluster.services["mine/my-t5-v2"] = {"metadata": {"name": "my-t5-v2", "resourceVersion": "1"}, "spec": {}}
    with pytest.raises(ServingError, match="my-t5-v2 in mine is not this pipeline's; take another name"):
        serve()
    assert not [request for request in cluster.requests if request.method != "GET"]


def test_a_model_that_cannot_be_loaded_fails_with_what_kserve_says_of_it(cluster):
    cluster.statuses = [
        kubernetes.unready("x", "y", "BlockedByFailedLoad", reason="ModelLoadFailed", message="no such\n bucket")
    ]
    with pytest.raises(ServingError, match="my-t5-v2 in mine cannot become ready: ModelLoadFailed: no such bucket"):
        serve()


def test_a_load_that_failed_once_is_given_another_chance(cluster):
    failed = kubernetes.unready("x", "y", "BlockedByFailedLoad", reason="ModelLoadFailed", message="a bad moment")
    cluster.statuses = [failed, failed, kubernetes.ready()]
    assert serve()[1]["deployed"] == 1


def test_waiting_is_bounded_and_ends_with_the_reason_of_the_condition(cluster):
    cluster.statuses = [kubernetes.unready("Unschedulable", "0/3 nodes have nvidia.com/gpu")]
    said = "is not ready after 2 minutes: PredictorReady: Unschedulable 0/3 nodes have nvidia.com/gpu; .* kubectl"
    with pytest.raises(ServingError, match=said.replace(".* kubectl", ".*kubectl describe")):
        serve(wait_minutes=2)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"kserve": False}, r"this cluster has no KServe \(serving.kserve.io/v1beta1 is not served\); install"),
        ({"allowed": False}, r"may not get InferenceServices in namespace mine \(403\): no RBAC policy .* a Role"),
        ({"denied": {"create"}}, "may not create InferenceServices"),
        ({"denied": {"update"}}, "may not update InferenceServices"),
    ],
)
def test_before_anything_is_trained_it_is_seen_whether_a_service_can_be_made(cluster, changed, said):
    Cluster(KServeConfig()).check()
    vars(cluster).update(changed)
    with pytest.raises(ServingError, match=said):
        Cluster(KServeConfig()).check()
    assert not cluster.seen("POST", SERVICES)


@pytest.mark.parametrize(
    ("changed", "service", "said"),
    [
        ({"kserve": False}, {}, "this cluster has no KServe"),
        ({"allowed": False}, {}, r"may not look for InferenceService my-t5-v2 in namespace mine \(403\): inferenceser"),
        ({}, {"namespace": "theirs"}, 'not there, .* in theirs: namespaces "theirs" not found'),
    ],
)
def test_a_cluster_that_cannot_serve_says_why_in_a_line(cluster, changed, service, said):
    vars(cluster).update(changed)
    with pytest.raises(ServingError, match=said) as error:
        serve(**service)
    assert "\n" not in str(error.value)


def test_what_an_admission_webhook_says_is_passed_on(cluster):
    said = 'admission webhook denied the request: no runtime found to support "huggingface"'
    cluster.said["POST", SERVICES] = kubernetes.status(400, said)
    with pytest.raises(ServingError, match=rf"refuses to create InferenceService my-t5-v2 in mine \(400\): {said}"):
        serve()


def test_a_token_that_is_not_taken_and_a_server_that_is_not_there_are_said(cluster, tmp_path):
    path = tmp_path / "kubeconfig"
    path.write_text(kubernetes.kubeconfig(cluster.url, token="stale"))
    with pytest.raises(ServingError, match=r"does not take this pod's token \(401\)") as error:
        serve()
    assert "stale" not in str(error.value)
    path.write_text(kubernetes.kubeconfig("http://127.0.0.1:9"))
    with pytest.raises(ServingError, match="the cluster's API does not answer, trying to look for InferenceService"):
        serve()
    path.unlink()
    with pytest.raises(ServingError, match="no cluster here"):
        serve()


@pytest.mark.parametrize(
    ("given", "display_name", "expected"),
    [
        ("mine", "anything", "mine"),
        ("", "t5-small-rlhf", "t5-small-rlhf"),
        ("", "7B: Posts & Summaries!", "b-posts-summaries"),
        ("", "x" * 80, "x" * 50),
    ],
)
def test_a_service_is_named_by_the_profile_or_as_the_model_is(given, display_name, expected):
    assert service_name(given, display_name) == expected


def test_a_name_of_which_no_dns_label_can_be_made_is_refused():
    with pytest.raises(ConfigError, match="model_display_name: found '要約'"):
        service_name("", "要約")


@pytest.mark.parametrize(
    ("published_to", "expected"),
    [
        ("gs://b/m/", "gs://b/m"),
        ("gcs://b/m", "gs://b/m"),
        ("s3a://b/m", "s3://b/m"),
        ("/models/a", "pvc://shared/a"),
        ("file:///models/a", "pvc://shared/a"),
        ("/models/rlhf/a", "pvc://mine/sub/a"),
    ],
)
def test_kserve_is_told_where_the_model_is_in_its_own_way(published_to, expected):
    volumes = {"/models": "pvc://shared", "/models/rlhf/": "pvc://mine/sub"}
    assert storage_uri(published_to, volumes) == expected


def test_a_folder_that_only_one_pod_has_is_refused():
    with pytest.raises(ModelError, match="'/modelsbeside/a', which only the publisher's pod can read"):
        storage_uri("/modelsbeside/a", {"/models": "pvc://shared"})


def test_a_served_model_is_entered_in_the_model_registry_with_what_it_was_judged_by(cluster, registry):
    _, done = serve(registry=registry)
    assert done == {"deployed": 1.0, "registered": 1.0}
    (model,) = registry.entered["/registered_models"]
    (version,) = registry.entered["/model_versions"]
    (artifact,) = registry.entered[f"/model_versions/{version['id']}/artifacts"]
    assert model["name"] == "My T5, v2"
    assert (version["name"], version["registeredModelId"]) == ("0123456789abcdef", model["id"])
    assert version["customProperties"]["win_rate"]["double_value"] == 0.75
    assert version["customProperties"]["inference_service"]["string_value"] == "mine/my-t5-v2"
    assert (artifact["uri"], artifact["modelFormatName"]) == ("s3://models/mine", "huggingface")


def test_a_step_that_is_started_again_finds_its_entry(registry, capsys):
    config = RegistryConfig(url=registry.url)
    assert register(config, "m", "s3://b/m", "abc", {})
    assert not register(config, "m", "s3://b/m", "abc", {})
    assert "already in the Model Registry" in capsys.readouterr().out
    assert register(config, "m", "s3://b/m2", "def", {"grade_after": 1.0})
    assert len(registry.entered["/registered_models"]) == 1
    assert [version["name"] for version in registry.entered["/model_versions"]] == ["abc", "def"]
    said = [version["description"] for version in registry.entered["/model_versions"]]
    assert said == [f"Tuned with reinforcement learning{by}." for by in ("", " on the grades of a grader")]


def test_a_model_that_was_published_elsewhere_is_entered_where_it_is_now(registry, capsys):
    config = RegistryConfig(url=registry.url)
    register(config, "m", "s3://b/old", "abc", {})
    assert not register(config, "m", "s3://b/new", "abc", {})
    (version,) = registry.entered["/model_versions"]
    (artifact,) = registry.entered[f"/model_versions/{version['id']}/artifacts"]
    assert artifact["uri"] == "s3://b/new"
    assert (artifact["modelFormatName"], artifact["state"]) == ("huggingface", "LIVE")
    assert "already in the Model Registry, now as s3://b/new, before as s3://b/old" in capsys.readouterr().out


def test_a_model_can_be_entered_without_being_served(registry):
    config = {"deploy": False, "service": {}, "registry": {"url": registry.url}}
    assert run(ServeConfig.parse(config), PUBLISHED, "/only/here") == ("", {"deployed": 0.0, "registered": 1.0})


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, r"does not take this pod's token \(401\)"),
        (403, r"may not use it \(403\)"),
        (404, r"there is no Model Registry at this address.*\(404\)"),
        (500, "the database is down"),
    ],
)
def test_a_registry_that_refuses_says_why_in_a_line(registry, status, said):
    path = f"{kubernetes.REGISTRY}/registered_models"
    registry.said["GET", path] = Answer(status, {"code": str(status), "message": "the database is down"})
    with pytest.raises(RegistryError, match=said) as error:
        register(RegistryConfig(url=registry.url), "m", "s3://b/m", "abc", {})
    assert "\n" not in str(error.value)


def test_a_registry_that_is_not_there_is_said(registry):
    with pytest.raises(RegistryError, match=r"does not answer .* kubernetes\.model_registry\.url"):
        register(RegistryConfig(url="http://127.0.0.1:9"), "m", "s3://b/m", "abc", {})
