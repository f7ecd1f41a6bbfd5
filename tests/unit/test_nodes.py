"""Training on several machines: what clusters say of them, and that two nodes learn what one process does."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf.errors import ConfigError, DataError
from rlhf.models.card import ModelCard
from rlhf.reward_trainer import RewardTrainerConfig, stage
from rlhf.tracking import read_scalars
from rlhf.training import node, trainjob
from rlhf.training.exchange import Exchange
from rlhf.training.launch import launch
from rlhf.training.nodes import Nodes, nodes
from tests import reward, training
from tests.http_server import served
from tests.trainer_server import RUNTIME, TrainerServer, write_kubeconfig

TORCHRUN = {"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "job-node-0-0.job", "PET_MASTER_PORT": "29500"}
# The example of https://cloud.google.com/vertex-ai/docs/training/distributed-training#cluster-spec-format, less the
# pools that training has no use for.
POOLS = {
    "workerpool0": ["cmle-training-workerpool0-ab-0:2222"],
    "workerpool1": ["cmle-training-workerpool1-ab-0:2222", "cmle-training-workerpool1-ab-1:2222"],
}


def cluster_spec(pool: str, index: int, pools: dict = POOLS) -> dict[str, str]:
    task = {"type": pool, "index": index, "trial": ""}
    return {"CLUSTER_SPEC": json.dumps({"cluster": pools, "environment": "cloud", "task": task, "job": {}})}


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, None),
        ({**TORCHRUN, "PET_NNODES": "1"}, None),
        (TORCHRUN, Nodes(2, 1, "job-node-0-0.job", 29500)),
        (cluster_spec("workerpool0", 0, {"workerpool0": POOLS["workerpool0"]}), None),
        (cluster_spec("workerpool0", 0), Nodes(3, 0, "localhost", 2222)),
        (cluster_spec("workerpool1", 0), Nodes(3, 1, "cmle-training-workerpool0-ab-0", 2222)),
        (cluster_spec("workerpool1", 1), Nodes(3, 2, "cmle-training-workerpool0-ab-0", 2222)),
    ],
)
def test_machines_are_known_from_what_the_cluster_sets(environment, found):
    assert nodes(environment) == found


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"PET_NNODES": "2"}, "PET_NNODES: found"),
        ({**TORCHRUN, "PET_NODE_RANK": "first"}, "PET_NNODES: found"),
        ({"CLUSTER_SPEC": "{"}, "CLUSTER_SPEC: found"),
        ({"CLUSTER_SPEC": "[]"}, "CLUSTER_SPEC: found"),
        (cluster_spec("workerpool2", 0), "CLUSTER_SPEC: found"),
    ],
)
def test_a_cluster_that_says_half_of_it_is_one_line(environment, says):
    with pytest.raises(ConfigError, match=says) as error:
        nodes(environment)
    assert "\n" not in str(error.value)


def test_secrets_that_come_as_files_are_variables(tmp_path, monkeypatch):
    """As a kubelet mounts them: links to a folder that is exchanged as a whole."""
    (tmp_path / "0/..2026").mkdir(parents=True)
    (tmp_path / "0/..2026/HF_TOKEN").write_text("hf_abc\n")
    (tmp_path / "0/..data").symlink_to("..2026")
    (tmp_path / "0/HF_TOKEN").symlink_to("..data/HF_TOKEN")
    (tmp_path / "1").mkdir()  # an optional one that is not there
    monkeypatch.setenv("HF_TOKEN", "another")
    node._read_secrets(str(tmp_path))
    assert os.environ["HF_TOKEN"] == "hf_abc"


def test_a_node_without_the_others_or_without_its_devices_is_told(monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        node.main()
    assert end.value.code == 1
    assert "error: PET_NNODES: found none above 1" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"PyTorch finds \d on this node, and the pod asked for 80"):
        node._check_devices(80)


OPTIONS = {"train_steps": 6, "batch_size": 16, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def preferences(tmp_path_factory) -> Path:
    return reward.write_preferences(tmp_path_factory.mktemp("preferences"), reward.rows())


@pytest.fixture(scope="module")
def alone(preferences, llama_folder, tmp_path_factory) -> tuple[Path, dict[str, float]]:
    """What one process makes."""
    folder = tmp_path_factory.mktemp("alone")
    return folder, reward.train(preferences, llama_folder, folder, **OPTIONS)


def assert_the_same(folder: Path, metrics: dict[str, float], alone: tuple[Path, dict[str, float]]) -> None:
    expected, measured = alone
    assert metrics == pytest.approx(measured, abs=1e-4)
    here, there = (read_scalars(each / reward.OUTPUTS["tensorboard"]) for each in (folder, expected))
    steps = [step for step, _ in there["rank_loss"]]
    assert [step for step, _ in here["rank_loss"]] == steps == list(range(1, OPTIONS["train_steps"] + 1))
    assert dict(here["rank_loss"]) == pytest.approx(dict(there["rank_loss"]), abs=1e-4)
    ours, theirs = (training.tensors(each / reward.OUTPUTS["reward_model"]) for each in (folder, expected))
    for name, weights in theirs.items():
        # Adam's first steps are of the same size however small a gradient is, whose sign rounding may turn.
        assert (ours[name] - weights).abs().mean() < 1e-4, name


@pytest.mark.slow
def test_two_nodes_of_two_processes_by_kubeflow_trainer_learn_what_one_process_does(
    alone, preferences, llama_folder, tmp_path, monkeypatch, capfd
):
    for name in [each for each in os.environ if "proxy" in each.lower() or each.startswith("KFP_")]:
        monkeypatch.delenv(name)
    (tmp_path / "secrets/0").mkdir(parents=True)
    (tmp_path / "secrets/0/HF_HUB_OFFLINE").write_text("1")
    described = {
        "image": "registry.example/rlhf-reward-trainer@sha256:abc",
        "nodes": 2,
        "runtime": RUNTIME,
        "resources": {"cpu": "1"},
        "env": {"RLHF_PROCESSES": "2", node.SECRETS: str(tmp_path / "secrets")},  # which every profile sets
        "exchange": str(tmp_path / "exchange"),
        "pending_seconds": 60,
        "timeout_seconds": 7200,
        "poll_seconds": 0.5,
        "abandoned_seconds": 20,
    }
    out, checkpoints, kept = tmp_path / "out", tmp_path / "checkpoints", []
    take_back = Exchange.take_back

    def taken_back(exchange, outputs):
        kept.append(training.latest_step(checkpoints))
        return take_back(exchange, outputs)

    monkeypatch.setattr(Exchange, "take_back", taken_back)
    with served(TrainerServer(kubelet=tmp_path / "nodes")) as server:
        kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", server.url)
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(kubeconfig))
        monkeypatch.setenv(trainjob.VARIABLE, json.dumps(described))
        metrics = launch(
            "reward_trainer",
            stage.run,
            RewardTrainerConfig(**OPTIONS, checkpoint_dir=str(checkpoints)),
            preferences=str(preferences),
            policy=str(llama_folder),
            **{name: str(out / file) for name, file in reward.OUTPUTS.items()},
        )
        assert server.jobs == {}
    assert kept == [OPTIONS["train_steps"]], "checkpoints are kept until what was made of them is here"
    assert training.latest_step(checkpoints) == 0
    assert ModelCard.load(out / reward.OUTPUTS["reward_model"]).base == str(llama_folder)
    assert_the_same(out, metrics, alone)
    printed = capfd.readouterr().out
    assert "[reward_trainer] node 1 of 2" in printed
    assert "6 steps of 16" in printed, "what the first node says is shown"
    assert not list(tmp_path.glob("nodes/*/*/outputs")), "nodes leave nothing behind"


@pytest.mark.slow
def test_nodes_that_nobody_waits_for_any_more_end_by_themselves_with_a_checkpoint(preferences, llama_folder, tmp_path):
    exchange, checkpoints = Exchange(str(tmp_path / "exchange")), tmp_path / "checkpoints"
    options = OPTIONS | {"train_steps": 2_000, "checkpoint_dir": str(checkpoints), "checkpoint_every": 1}
    job = {"stage": "reward_trainer", "devices": 0, "abandoned_seconds": 5, "options": options}
    inputs = {"preferences": str(preferences), "policy": str(llama_folder)}
    exchange.offer(job | {"inputs": {}, "outputs": reward.OUTPUTS}, inputs)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(free.getsockname()[1])}
    env = {**os.environ, **address, "PET_NNODES": "2", "RLHF_PROCESSES": "1", "HF_HUB_OFFLINE": "1"}
    env[node.EXCHANGE] = exchange.uri
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    command = [sys.executable, *trainjob.COMMAND[1:]]
    running = [subprocess.Popen(command, env=env | {"PET_NODE_RANK": str(rank)}, **pipes) for rank in range(2)]
    waited = time.monotonic()
    while not training.latest_step(checkpoints) and time.monotonic() - waited < training.DEADLINE_SECONDS:
        exchange.beat()
        time.sleep(0.2)
    first, second = map(training.finish, running)
    for printed in (first, second):
        assert "stopping: the pod that waits for this node gave no sign of life for 5 s" in printed
    assert f"a checkpoint of it is in {checkpoints}" in first
    with pytest.raises(DataError, match="its nodes handed nothing back"):
        exchange.take_back({})


REPLICA = """
import sys, yaml
from rlhf.job import stage_errors
from rlhf.reward_trainer import RewardTrainerConfig
from rlhf.reward_trainer.stage import run
from rlhf.training.exchange import Exchange
from rlhf.training.launch import launch
job = yaml.safe_load(open(sys.argv[1]))
with stage_errors("reward_trainer"):
    config = RewardTrainerConfig.parse(job["options"])
    print("METRICS", __import__("json").dumps(launch("reward_trainer", run, config, **job["inputs"], **job["outputs"])))
"""


@pytest.mark.slow
def test_two_replicas_of_two_processes_on_vertex_learn_what_one_process_does(
    alone, preferences, llama_folder, tmp_path
):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    inputs = {"preferences": str(preferences), "policy": str(llama_folder)}
    out = tmp_path / "out"  # all replicas have the same bucket mounted
    job = training.write_job(tmp_path / "job.yaml", inputs, out, reward.OUTPUTS, OPTIONS)
    pools = {"workerpool0": [address], "workerpool1": [address]}
    replicas = []
    for rank, pool in enumerate(pools):
        # Vertex also sets what torchrun sets for its processes; that is not to be taken for them.
        env = {"RANK": str(rank), "WORLD_SIZE": "2", "RLHF_PROCESSES": "2", "HF_HUB_OFFLINE": "1"}
        env |= cluster_spec(pool, 0, pools)
        command = [sys.executable, "-c", REPLICA, str(job)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        replicas.append(subprocess.Popen(command, env={**os.environ, **env}, **pipes))
    first, second = map(training.finish, replicas)
    (metrics,) = [line.removeprefix("METRICS ") for line in first.splitlines() if line.startswith("METRICS ")]
    assert "METRICS" not in second, "only the first replica has outputs to go on with"
    assert_the_same(out, json.loads(metrics), alone)
    assert len(list((out / reward.OUTPUTS["tensorboard"]).rglob("events*"))) == 1, "one process writes"
