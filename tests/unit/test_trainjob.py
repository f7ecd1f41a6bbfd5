"""A stage on several nodes of a Kubernetes cluster: what Kubeflow Trainer is asked, and what is said when it cannot."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rlhf.data.store import write_dataset
from rlhf.data.template import Template
from rlhf.errors import ConfigError, RlhfError, TrainingError
from rlhf.training import trainer_api, trainjob
from rlhf.training.config import TrainerConfig
from rlhf.training.exchange import Exchange
from rlhf.training.launch import launch
from tests.http_server import Answer, served
from tests.trainer_server import (
    JOBS,
    NAMESPACE,
    PODS,
    RUNTIME,
    RUNTIMES,
    Pod,
    TrainerServer,
    condition,
    ended,
    refused,
    unschedulable,
    waiting,
    write_kubeconfig,
)

STAGE = "reward_trainer"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in os.environ:
        if "proxy" in name.lower() or name.startswith("KFP_"):
            monkeypatch.delenv(name)


@pytest.fixture
def server(tmp_path, monkeypatch):
    with served(TrainerServer()) as server:
        kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", server.url)
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(kubeconfig))
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        yield server


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Runs the stage; what is given changes the description of its nodes."""

    def start(**changes) -> dict[str, float]:
        monkeypatch.setenv(trainjob.VARIABLE, json.dumps(described(tmp_path, **changes)))
        return trainjob.run(STAGE, TrainerConfig(), paths(tmp_path))

    return start


def described(folder: Path, **changes) -> dict:
    return {
        "image": "registry.example/rlhf-reward-trainer@sha256:abc",
        "nodes": 2,
        "runtime": RUNTIME,
        "resources": {"cpu": "96", "memory": "1500Gi", "nvidia.com/gpu": "8"},
        "devices": 8,
        "env": {"TMPDIR": "/scratch"},
        "pod": {
            "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "128Gi"}}],
            "image_pull_secrets": [{"name": "my-registry"}],
            "security_context": {"runAsUser": 1000},
            "node_selector": {"pool": "gpus"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        },
        "mounts": [{"name": "shm", "mountPath": "/dev/shm"}],
        "labels": {"kueue.x-k8s.io/queue-name": "tuning"},
        "annotations": {},
        "exchange": str(folder / "exchange"),
        "pending_seconds": 60,
        "timeout_seconds": 7200,
        "poll_seconds": 0.05,
        **changes,
    }


def paths(folder: Path) -> dict[str, str]:
    (folder / "preferences").mkdir(exist_ok=True)
    (folder / "preferences/rows").write_text("rows")
    return {
        "preferences": str(folder / "preferences"),
        "policy": "some/model",
        "reward_model": str(folder / "out/reward_model"),
        "report": str(folder / "out/report.html"),
        "tensorboard": str(folder / "out/logs"),
    }


def works(server, job: dict) -> None:
    """What the first node of a job that goes well does."""
    (env,) = [each["value"] for each in job["spec"]["trainer"]["env"] if each["name"] == "RLHF_EXCHANGE"]
    exchange, folder = Exchange(env), Path(env).parent / "node"
    found = exchange.take_job(folder / "inputs")
    assert found["stage"] == STAGE
    assert Path(found["inputs"]["preferences"], "rows").read_text() == "rows"
    assert found["inputs"]["policy"] == "some/model"
    (folder / "reward_model/deep").mkdir(parents=True)
    (folder / "reward_model/deep/weights").write_text("weights")
    (folder / "report.html").write_text("report")
    exchange.hand_back({name: str(folder / file) for name, file in found["outputs"].items()}, {"accuracy": 0.75})
    server.pods = [Pod(f"x-node-0-{rank}", rank, "Succeeded") for rank in (0, 1)]
    server.pods[0].lines = ["[reward_trainer] step 1/2", "[reward_trainer] step 2/2"]
    server.conditions = [condition("Complete", "JobsCompleted", "jobset completed successfully")]


def test_a_trainjob_is_created_followed_and_deleted(server, start, tmp_path, capfd):
    server.on_create = lambda job: works(server, job)
    assert start() == {"accuracy": 0.75}
    assert (tmp_path / "out/reward_model/deep/weights").read_text() == "weights"
    assert (tmp_path / "out/report.html").read_text() == "report"
    assert not (tmp_path / "out/logs").exists(), "what the stage did not write is not made up"
    assert capfd.readouterr().out.count("[reward_trainer] step 2/2") == 1
    assert server.jobs == {}
    assert list((tmp_path / "exchange").iterdir()) == [tmp_path / "exchange/node"], "nothing is left in the exchange"
    (created,) = server.seen("POST", JOBS)
    (deleted,) = [request for request in server.requests if request.method == "DELETE"]
    assert deleted.path == f"{JOBS}/{created.json['metadata']['name']}"
    assert server.seen("GET", f"{PODS}/x-node-0-0/log")


def test_a_trainjob_has_what_the_profile_says(server, start, monkeypatch):
    monkeypatch.setenv("KFP_POD_NAME", "rlhf-abc-system-container-impl-1")
    server.on_create = lambda job: works(server, job)
    start()
    job = server.seen("POST", JOBS)[0].json
    assert re.fullmatch(r"reward-trainer-[0-9a-f]{10}", job["metadata"]["name"])
    assert job["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "tuning"}
    spec = job["spec"]
    assert spec["runtimeRef"]["name"] == RUNTIME
    assert spec["activeDeadlineSeconds"] == 7200
    trainer = spec["trainer"]
    assert trainer["image"] == "registry.example/rlhf-reward-trainer@sha256:abc"
    assert trainer["command"] == ["python", "-m", "rlhf.training.node"]
    assert trainer["numNodes"] == 2
    asked = {"cpu": "96", "memory": "1500Gi", "nvidia.com/gpu": "8"}
    assert trainer["resourcesPerNode"] == {"limits": asked, "requests": asked}
    assert {"name": "TMPDIR", "value": "/scratch"} in trainer["env"]
    (jobs,) = spec["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    template = jobs["template"]["spec"]["template"]
    assert template["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "tuning"}
    assert template["spec"] == {
        "serviceAccountName": "tuner",  # the pod's own
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "128Gi"}}],
        "containers": [{"name": "node", "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}]}],
        "imagePullSecrets": [{"name": "my-registry"}],
        "securityContext": {"runAsUser": 1000},
        "nodeSelector": {"pool": "gpus"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    }


def test_data_without_rows_is_worth_no_nodes(monkeypatch, tmp_path):
    """Supervised fine-tuning without demonstrations hands on its base model."""
    write_dataset(tmp_path / "demonstrations", "demonstrations", [], Template())
    monkeypatch.setenv(trainjob.VARIABLE, json.dumps(described(tmp_path)))
    monkeypatch.setenv("RLHF_PROCESSES", "1")
    given = {"demonstrations": str(tmp_path / "demonstrations"), "base_model": "some/model"}
    assert launch("sft_trainer", lambda config, **paths: paths, TrainerConfig(), **given) == given


def test_a_try_after_a_lost_one_first_deletes_what_that_left(server, start, tmp_path):
    server.on_create = lambda job: works(server, job)
    start()
    (first,) = server.seen("POST", JOBS)
    server.jobs[first.json["metadata"]["name"]] = first.json
    for written in ("exchange", "out"):  # a pod that is started again has none of it
        shutil.rmtree(tmp_path / written)
    start()
    methods = [request.method for request in server.requests if request.path.startswith(JOBS)]
    assert [method for method in methods if method != "GET"] == ["POST", "DELETE", "DELETE", "POST", "DELETE"]


def test_what_nodes_wait_for_is_said_and_not_for_ever(server, start, capfd):
    def nobody_has_gpus(job):
        server.pods = [
            Pod("x-node-0-0", 0, status=unschedulable("0/3 nodes are available: 3 Insufficient nvidia.com/gpu."))
        ]

    server.on_create = nobody_has_gpus
    with pytest.raises(TrainingError, match=r"8 nvidia\.com/gpu did not start within .* minutes") as error:
        start(pending_seconds=1)
    assert "Unschedulable: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu" in str(error.value)
    assert "\n" not in str(error.value)
    assert capfd.readouterr().out.count("waiting: x-node-0-0: Unschedulable") == 1
    assert server.jobs == {}


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (waiting("ImagePullBackOff", "Back-off pulling image"), "ImagePullBackOff: Back-off pulling image"),
        (waiting("CreateContainerConfigError", 'secret "x" not found'), 'CreateContainerConfigError: secret "x" not'),
        (waiting("ContainerCreating", ""), "Pending"),
    ],
)
def test_why_a_pod_does_not_start_is_what_kubernetes_says(server, start, status, says):
    server.on_create = lambda job: server.pods.append(Pod("x-node-0-0", 0, status=status))
    with pytest.raises(TrainingError, match=re.escape(says)):
        start(pending_seconds=1)


def test_a_queue_that_holds_a_job_back_is_named(server, start):
    suspended = condition("Suspended", "Suspended", "TrainJob is suspended")
    server.on_create = lambda job: server.conditions.append(suspended)
    with pytest.raises(TrainingError, match="Suspended: TrainJob is suspended"):
        start(pending_seconds=1)


def test_a_node_that_fails_fails_the_stage_with_what_it_said(server, start, capfd):
    def fails(job):
        server.pods = [Pod("x-node-0-0", 0, "Failed", ended(143)), Pod("x-node-0-1", 1, "Failed", ended(1))]
        server.pods[1].lines = ["CUDA error: device-side assert"]

    server.on_create = fails
    with pytest.raises(TrainingError, match="x-node-0-0 ended with status 143"):
        start()
    assert "node-1: CUDA error: device-side assert" in capfd.readouterr().out
    assert server.jobs == {}


def test_nodes_that_go_on_after_one_failed_get_time_to_end(server, start, monkeypatch):
    monkeypatch.setattr(trainer_api, "SETTLE_SECONDS", 1)
    monkeypatch.setattr(trainjob, "LAST_WORDS_SECONDS", 0.1)

    def fails(job):
        server.pods = [Pod("x-node-0-0", 0, "Running"), Pod("x-node-0-1", 1, "Failed", ended(1))]

    server.on_create, began = fails, time.monotonic()
    with pytest.raises(TrainingError, match="x-node-0-1 ended with status 1"):
        start()
    assert time.monotonic() - began > 1


@pytest.mark.parametrize(
    ("reason", "message", "says"),
    [
        ("DeadlineExceeded", "TrainJob was active too long", "DeadlineExceeded: TrainJob was active too long"),
        ("", "", "failed"),
    ],
)
def test_a_trainjob_that_failed_says_why(server, start, reason, message, says):
    server.on_create = lambda job: server.conditions.append(condition("Failed", reason, message))
    with pytest.raises(TrainingError, match=f"TrainJob .*: {says}"):
        start()


def test_a_trainjob_that_somebody_deleted_is_missed(server, start):
    server.on_create = lambda job: threading.Timer(0.5, server.jobs.clear).start()
    with pytest.raises(TrainingError, match="somebody deleted it"):
        start()


def test_a_short_silence_of_the_api_server_is_survived(server, start):
    def busy(job):
        works(server, job)
        path = f"{JOBS}/{job['metadata']['name']}"
        server.said["GET", path] = [Answer(200, server._job(job["metadata"]["name"])), refused(503, "busy")]

    server.on_create = busy
    assert start() == {"accuracy": 0.75}


@pytest.mark.parametrize(
    ("method", "path", "answer", "says"),
    [
        ("GET", f"{RUNTIMES}/{RUNTIME}", Answer(404, "404 page not found"), "Kubeflow Trainer is not installed"),
        ("GET", f"{RUNTIMES}/{RUNTIME}", refused(404, "not found", name=RUNTIME), "no TrainingRuntime or ClusterTrain"),
        (
            "GET",
            f"{RUNTIMES}/{RUNTIME}",
            refused(403, 'User "system:serviceaccount:tuning:pipeline-runner" cannot get resource'),
            "may not get clustertrainingruntimes in namespace tuning (User",
        ),
        ("POST", JOBS, refused(403, "cannot create resource"), "may not create trainjobs in namespace tuning"),
        ("POST", JOBS, refused(422, "spec.trainer.image: Invalid value"), "spec.trainer.image: Invalid value"),
        ("POST", JOBS, refused(401, "Unauthorized"), "may not create trainjobs"),
        ("GET", PODS, refused(403, "cannot list resource"), "may not list pods in namespace tuning"),
    ],
)
def test_what_the_cluster_refuses_is_one_line(server, start, method, path, answer, says):
    server.said[method, path] = answer
    if path.startswith(RUNTIMES) and answer.status == 404:
        server.said["GET", f"{RUNTIMES.replace('/cluster', f'/namespaces/{NAMESPACE}/')}/{RUNTIME}"] = answer
    with pytest.raises(ConfigError, match=re.escape(says)) as error:
        start()
    assert "\n" not in str(error.value)
    assert server.jobs == {}


def test_a_runtime_for_something_else_is_refused(tmp_path, monkeypatch, start):
    with served(TrainerServer(framework="deepspeed")) as server:
        kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", server.url)
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(kubeconfig))
        with pytest.raises(ConfigError, match="torch-distributed is for deepspeed, expected one for torch"):
            start()


def test_a_trainer_that_drops_the_placement_is_refused(server, start):
    server.on_create = lambda job: job["spec"].pop("runtimePatches")
    with pytest.raises(ConfigError, match=r"drops runtimePatches.*2\.2 or newer"):
        start()
    assert server.jobs == {}


def test_without_an_api_server_there_is_one_line(start, monkeypatch, tmp_path):
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="Kubernetes: ") as error:
        start()
    assert "\n" not in str(error.value)
    kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", "http://127.0.0.1:9")
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(kubeconfig))
    with pytest.raises(TrainingError, match="cannot get clustertrainingruntimes") as error:
        start()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("path", "endpoint", "exchange"),
    [
        ("/gcs/bucket/run/task/report", None, "gs://bucket/run/task/exchange"),
        ("/s3/bucket/run/task/report", None, "s3://bucket/run/task/exchange"),
        ("/minio/mlpipeline/v2/report", "http://minio.kubeflow:9000", "s3://mlpipeline/v2/exchange"),
        ("/minio/mlpipeline/v2/report", None, None),
        ("/tmp/report", None, None),
    ],
)
def test_unless_the_profile_names_an_exchange_it_is_beside_the_artifacts(monkeypatch, path, endpoint, exchange):
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    if endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    if exchange:
        assert trainjob._beside({"report": path}) == exchange
    else:
        with pytest.raises(ConfigError, match=r"kubernetes\.exchange"):
            trainjob._beside({"report": path})


def test_a_half_written_exchange_is_never_taken(tmp_path):
    exchange = Exchange(str(tmp_path / "exchange"))
    (tmp_path / "model").mkdir()
    (tmp_path / "model/weights").write_text("weights")
    exchange.hand_back({"model": str(tmp_path / "model")}, {})
    (tmp_path / "exchange/outputs/model/weights").write_text("wei")
    with pytest.raises(RlhfError, match="3 bytes of 7"):
        exchange.take_back({"model": str(tmp_path / "back")})
    (tmp_path / "exchange/complete.json").unlink()
    with pytest.raises(RlhfError, match="its nodes handed nothing back"):
        exchange.take_back({"model": str(tmp_path / "back")})


def test_an_exchange_whose_files_lead_out_of_their_folder_is_refused(tmp_path):
    exchange = Exchange(str(tmp_path / "exchange"))
    (tmp_path / "rows").write_text("rows")
    exchange.offer({"inputs": {}}, {"../../escaped": str(tmp_path / "rows")})
    with pytest.raises(RlhfError, match=r"'\.\./\.\./escaped' leads out of its folder"):
        exchange.take_job(tmp_path / "a/b/inputs")
    exchange.hand_back({"model": str(tmp_path / "rows")}, {})
    mark = tmp_path / "exchange/complete.json"
    mark.write_text(json.dumps({"metrics": {}, "files": {"model": {"../../../escaped": 4}}}))
    (tmp_path / "escaped").write_text("gone")  # what the name leads to in the exchange
    with pytest.raises(RlhfError, match=r"'\.\./\.\./\.\./escaped' leads out of its folder"):
        exchange.take_back({"model": str(tmp_path / "a/b/c/d/model")})
    assert not [*(tmp_path / "a").rglob("escaped")]


def test_a_sign_of_life_is_another_each_time_and_one_that_cannot_be_given_is_said(server, start, tmp_path, capfd):
    exchange = Exchange(str(tmp_path / "exchange"))
    assert exchange.last_beat() is None
    assert exchange.beat()
    first = exchange.last_beat()
    assert exchange.beat()
    assert exchange.last_beat() > first

    def works_without_its_exchange(job):
        works(server, job)
        (exchange,) = [path for path in (tmp_path / "exchange").iterdir() if path.name.startswith("reward-trainer-")]
        (exchange / "awaited.json").mkdir()

    server.on_create = works_without_its_exchange
    start()
    said = capfd.readouterr().out
    assert re.search(r"warning: \S+/exchange/reward-trainer-\w+ cannot be written now; nodes end by themselves", said)


def test_an_exchange_that_cannot_be_written_is_found_before_any_node_is_asked_for(server, start, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(TrainingError, match=r"exchange .* cannot be written") as error:
        start(exchange=str(tmp_path / "file/exchange"))
    assert "\n" not in str(error.value)
    assert not server.seen("POST", JOBS)


CANCELLED = """
import json, sys
from rlhf.job import stage_errors
from rlhf.training import trainjob
from rlhf.training.config import TrainerConfig
with stage_errors("reward_trainer"):
    trainjob.run("reward_trainer", TrainerConfig(), json.loads(sys.argv[1]))
"""


def test_a_cancelled_stage_deletes_its_trainjob(server, tmp_path):
    def runs(job):
        server.pods = [Pod(f"x-node-0-{rank}", rank, "Running", lines=["[reward_trainer] step 1"]) for rank in (0, 1)]

    server.on_create = runs
    environment = {**os.environ, trainjob.VARIABLE: json.dumps(described(tmp_path, poll_seconds=10.0))}
    process = subprocess.Popen(
        [sys.executable, "-c", CANCELLED, json.dumps(paths(tmp_path))],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if "step 1" in line:
            break
    assert server.jobs
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    output, _ = process.communicate(timeout=20)
    assert time.monotonic() - began < 10, "within what a cluster waits for before it kills"
    assert process.returncode == 143
    assert "stopped by SIGTERM; the TrainJob is deleted" in output
    assert server.jobs == {}
