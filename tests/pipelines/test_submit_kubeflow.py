"""Submitting to Kubeflow Pipelines, request by request, against its API on loopback."""

import json
import logging
import os
import re
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from components.images import STAGES, cluster_images
from pipelines import rlhf
from pipelines.compile import compile_pipelines
from pipelines.placement.cluster import load_profile
from pipelines.placement.local import place
from pipelines.submit import check
from pipelines.submit import kubeflow as module
from pipelines.submit.__main__ import main
from pipelines.submit.errors import SubmitError, Unreachable
from pipelines.submit.kubeflow import Kubeflow, address
from pipelines.submit.login import Login, log_in
from tests.http_server import Answer, served
from tests.kubeflow_server import API, PASSWORD, USER, KubeflowServer

ROOT = Path(__file__).parents[2]
TOKEN = "eyJhbGciOi.secret-token"
DIGEST = "sha256:" + "c" * 64
PARAMS = {
    "prompt_dataset": "gs://b/p.jsonl",
    "preference_dataset": "gs://b/q.jsonl",
    "large_model_reference": "t5-small",
}


@pytest.fixture(autouse=True)
def nobody(monkeypatch, tmp_path):
    """No settings of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith(("KF_", "KFP_", "KUBERNETES_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("kfp.Client._LOCAL_KFP_CONTEXT", str(tmp_path / "none.json"))
    monkeypatch.setattr(module, "NAMESPACE_OF_POD", tmp_path / "no namespace")
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> Path:
    images = cluster_images("registry.example/team", "1f2e3d")
    path, _ = compile_pipelines(load_profile("kubeflow-l4"), images, tmp_path_factory.mktemp("build"))
    return path


@pytest.fixture
def params(tmp_path) -> str:
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump({**PARAMS, "kl_coeff": 0.2, "ppo": {"gamma": 1.0}}))
    return str(path)


@pytest.fixture
def server():
    with served(KubeflowServer(token=TOKEN)) as service:
        yield service


def connected(server, **options) -> Kubeflow:
    return Kubeflow(server.url, Login(token=TOKEN), **options)


def test_a_run_is_made_of_the_compiled_file_its_parameters_and_its_experiment(server, compiled):
    run = connected(server).submit(
        compiled, {**PARAMS, "ppo": {"gamma": 1.0}}, "first", pipeline_root="s3://b/root", service_account="runner"
    )
    body = server.runs[run]
    assert body["display_name"] == "first"
    assert body["experiment_id"] == "exp-rlhf"
    assert body["service_account"] == "runner"
    assert body["runtime_config"] == {"parameters": {**PARAMS, "ppo": {"gamma": 1.0}}, "pipeline_root": "s3://b/root"}
    executors = body["pipeline_spec"]["pipeline_spec"]["deploymentSpec"]["executors"]
    assert all(":1f2e3d" in executor["container"]["image"] for executor in executors.values())
    pods = body["pipeline_spec"]["platform_spec"]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert set(pods) == set(executors)


def test_every_request_carries_the_token(server, compiled):
    cluster = connected(server)
    cluster.status(cluster.submit(compiled, PARAMS, "first"))
    assert {request.headers.get("Authorization") for request in server.requests} == {f"Bearer {TOKEN}"}


def test_a_token_file_is_read_again_for_every_request(tmp_path, compiled):
    (tmp_path / "token").write_text("old\n")
    with served(KubeflowServer(token="old")) as server:
        cluster = Kubeflow(server.url, log_in(server.url, token_file=str(tmp_path / "token")))
        run = cluster.submit(compiled, PARAMS, "first")
        server.token = "new"
        (tmp_path / "token").write_text("new\n")
        assert cluster.status(run).state == "SUCCEEDED"


def test_in_a_pod_its_own_token_is_taken(tmp_path, monkeypatch, server):
    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
    Kubeflow(server.url, log_in(server.url))
    assert server.requests[-1].headers["Authorization"] == f"Bearer {TOKEN}"


def test_in_a_pod_the_clusters_own_address_is_the_default(monkeypatch):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert address(None) == "http://ml-pipeline.kubeflow.svc.cluster.local:8888"


def test_dex_is_walked_through_to_a_session(monkeypatch, compiled):
    monkeypatch.setenv("KFP_PASSWORD", PASSWORD)
    with served(KubeflowServer(dex=True, multi_user=True)) as server:
        host = f"{server.url}/pipeline"
        cluster = Kubeflow(host, log_in(host, dex_user=USER), namespace="my-profile")
        run = cluster.submit(compiled, PARAMS, "first")
        assert run in server.runs
        (made,) = server.seen("POST", f"/pipeline{API}/experiments")
        assert made.json["namespace"] == "my-profile"
        assert cluster.status(run).state == "SUCCEEDED"


def test_dex_refusing_says_so_without_the_password(tmp_path):
    (tmp_path / "password").write_text("wrong pony")
    with served(KubeflowServer(dex=True)) as server:
        host = f"{server.url}/pipeline"
        with pytest.raises(SubmitError, match=rf"^login: Dex at .* refuses {USER}") as error:
            log_in(host, dex_user=USER, password_file=str(tmp_path / "password"))
    assert "wrong pony" not in str(error.value)


def test_a_user_without_a_password_is_told_where_it_belongs():
    with pytest.raises(SubmitError, match=r"^password: none given .* in \$KFP_PASSWORD or in a file"):
        log_in("http://127.0.0.1:1", dex_user=USER)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (
            Answer(401, {"error": f"Bearer {TOKEN}"}),
            r"^login: the server does not take it \(401\): the token .* expired",
        ),
        (Answer(403, {"message": f"{TOKEN} may not"}), r"^login: it may not reach it \(403\): \*\*\* may not; check"),
        (Answer(404, "<h1>no</h1>"), r"^host: there is no Kubeflow Pipelines at .* \(404\); HOST is the address"),
        (Answer(200, "<html>Dashboard"), r"answers a page and not Kubeflow Pipelines' API"),
        (Answer(302, "", [("Location", "/dex/auth")]), r"asks for a login; set DEX_USER"),
        (Answer(503, "<h1>upstream</h1>"), r"^the cluster refuses to reach it \(503\)$"),
    ],
)
def test_a_server_that_is_not_usable_is_explained_in_a_line(server, answer, says):
    server.said["GET", f"{API}/healthz"] = answer
    with pytest.raises(SubmitError, match=says) as error:
        connected(server)
    assert TOKEN not in str(error.value)
    assert "\n" not in str(error.value)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (401, {"message": f"expired {TOKEN}"}, r"\(401\): the token or session has expired"),
        (403, {"message": "no create"}, r"^login: it may not start a run in namespace team \(403\): no create"),
        (
            400,
            {"error": "x", "message": f"bad spec {TOKEN}"},
            r"^the cluster refuses to start a run .*: bad spec \*\*\*$",
        ),
        (500, {"message": "quota"}, r"\(500\): quota"),
    ],
)
def test_a_cluster_that_refuses_a_run_is_quoted_without_the_token(compiled, status, body, says):
    with served(KubeflowServer(token=TOKEN, multi_user=True)) as server:
        server.said["POST", f"{API}/runs"] = Answer(status, body, [("Set-Cookie", f"session={TOKEN}")])
        with pytest.raises(SubmitError, match=says) as error:
            connected(server, namespace="team").submit(compiled, PARAMS, "first")
    assert TOKEN not in str(error.value)
    assert "\n" not in str(error.value)


def test_nothing_listening_is_said_at_once():
    began = time.monotonic()
    with pytest.raises(Unreachable, match="nothing listens there; check HOST"):
        Kubeflow("http://127.0.0.1:1", Login(token=TOKEN))
    assert time.monotonic() - began < 10


def test_a_host_that_does_not_speak_tls_is_said(server):
    with pytest.raises(SubmitError, match="does not speak TLS; write http://"):
        Kubeflow(server.url.replace("http", "https"), Login(token=TOKEN))


def test_a_certificate_that_is_not_trusted_is_said_and_its_authority_can_be_given(tmp_path, compiled):
    subprocess.run(
        "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN=localhost "
        "-addext subjectAltName=IP:127.0.0.1",
        shell=True,
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with served(KubeflowServer(token=TOKEN), tls=context) as server:
        with pytest.raises(SubmitError, match="is not trusted here; set CA_FILE"):
            connected(server)
        run = connected(server, ca_file=str(tmp_path / "cert.pem")).submit(compiled, PARAMS, "first")
        assert run in server.runs


def test_a_named_experiment_must_be_there(server, compiled):
    server.experiments["summaries"] = "exp-7"
    cluster = connected(server)
    with pytest.raises(SubmitError, match=r"^experiment: sumaries is not there; did you mean summaries\?"):
        cluster.submit(compiled, PARAMS, "first", experiment="sumaries")
    assert not server.runs
    run = cluster.submit(compiled, PARAMS, "first", experiment="summaries")
    assert server.runs[run]["experiment_id"] == "exp-7"
    run = cluster.submit(compiled, PARAMS, "first", experiment="new", new_experiment=True)
    assert server.runs[run]["experiment_id"] == "exp-new"


def test_a_server_of_several_users_needs_a_namespace():
    with (
        served(KubeflowServer(multi_user=True)) as server,
        pytest.raises(SubmitError, match=r"^namespace: none given, and this server has several users"),
    ):
        Kubeflow(server.url, Login())


@pytest.mark.parametrize(
    ("host", "becomes"),
    [
        ("kubeflow.example/pipeline/", "https://kubeflow.example/pipeline"),
        ("http://localhost:8080/#/runs", "http://localhost:8080"),
    ],
)
def test_an_address_copied_from_a_browser_is_understood(host, becomes):
    assert address(host) == becomes


@pytest.mark.parametrize("host", ["ftp://x", "http://", "http://a b"])
def test_what_is_no_address_is_refused(host):
    with pytest.raises(SubmitError, match=r"^host: found"):
        address(host)


def test_an_address_with_a_password_is_refused_and_not_shown():
    with pytest.raises(SubmitError, match=r"^host: has a name or password in it") as error:
        address("https://me:hunter2@kubeflow.example")
    assert "hunter2" not in str(error.value)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> str:
    """What `make push` leaves."""
    path = tmp_path_factory.mktemp("images") / "images.json"
    names = cluster_images("registry.example/team", "1f2e3d")
    path.write_text(json.dumps({stage: {"image": names[stage], "digest": DIGEST} for stage in STAGES}))
    return str(path)


def submit(server, params: str, images: str, *more: str, **popen) -> subprocess.Popen:
    command = [sys.executable, "-m", "pipelines.submit", "kubeflow", "--host", server.url, "--every", "0.2"]
    return subprocess.Popen(
        [*command, "--params", params, "--images", images, *more],
        cwd=ROOT,
        env={**os.environ, "KFP_TOKEN": TOKEN},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **popen,
    )


def test_the_command_submits_and_follows_to_the_end(server, params, images):
    server.states = ["PENDING", "RUNNING", "SUCCEEDED"]
    server.tasks = {"data-validation": "SUCCEEDED", "sft-trainer": "RUNNING"}
    process = submit(server, params, images, "--name", "nightly")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    (run,) = server.runs
    assert server.runs[run]["display_name"] == "nightly"
    assert out.splitlines()[:3] == [
        f"submitted: {run}",
        f"look: {server.url}/#/runs/details/{run}",
        "  data-validation: succeeded",
    ]
    assert [line for line in out.splitlines() if line.startswith("run: ")][:2] == ["run: pending", "run: running"]
    assert re.fullmatch(r"run: succeeded after \d+ s", out.splitlines()[-1])
    assert set(re.findall(r"^  ([^:]+): ", out, re.M)) == {"data-validation", "sft-trainer"}, "none of Argo's own nodes"
    assert TOKEN not in out
    spec = server.runs[run]["pipeline_spec"]["pipeline_spec"]
    assert spec["root"]["dag"]["tasks"]["sft-trainer"]["cachingOptions"] == {"enableCache": True}
    named = {executor["container"]["image"] for executor in spec["deploymentSpec"]["executors"].values()}
    assert f"registry.example/team/rlhf-ppo-trainer@{DIGEST}" in named
    assert all(name.endswith(DIGEST) for name in named), "images that were pushed, by digest"


def test_ctrl_c_leaves_the_run_running_and_says_how_to_go_on(server, params, images):
    server.states = ["RUNNING"]
    # What is started in the background of a shell would not hear it.
    process = submit(
        server, params, images, start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    )
    lines = [process.stdout.readline() for _ in range(3)]
    with open(f"/proc/{process.pid}/cmdline") as command:
        assert TOKEN not in command.read()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    (run,) = server.runs
    assert lines[-1] == "run: running\n"
    assert process.returncode == 130
    assert err.splitlines()[1:] == [
        "interrupted; the run goes on",
        f"look: {server.url}/#/runs/details/{run}",
        f"follow: make submit PLATFORM=kubeflow HOST={server.url} FOLLOW={run}",
        f"stop: make submit PLATFORM=kubeflow HOST={server.url} STOP={run}",
    ]
    assert not server.seen("POST", f"{API}/runs/{run}:terminate")
    assert TOKEN not in "".join(lines) + err


def test_how_to_go_on_has_all_that_the_next_connection_needs_and_no_secret(
    server, one_run, tmp_path, monkeypatch, capsys
):
    token, authority = tmp_path / "token", tmp_path / "authority.pem"
    token.write_text(TOKEN)
    authority.write_text("")
    monkeypatch.setattr("pipelines.submit.follow.time.sleep", interrupted)
    server.states = ["RUNNING"]
    where = ["--token-file", str(token), "--dex-connector", "ldap", "--ca-file", str(authority)]
    _, _, err = command("--host", server.url, *where, "--follow", one_run, capsys=capsys)
    again = f"HOST={server.url} TOKEN_FILE={token} DEX_CONNECTOR=ldap CA_FILE={authority}"
    assert err.splitlines()[3:] == [
        f"follow: make submit PLATFORM=kubeflow {again} FOLLOW={one_run}",
        f"stop: make submit PLATFORM=kubeflow {again} STOP={one_run}",
    ]


def interrupted(_):
    raise KeyboardInterrupt


def command(*arguments: str, capsys) -> tuple[int, str, str]:
    code = main(["kubeflow", *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.fixture
def token(monkeypatch):
    monkeypatch.setenv("KFP_TOKEN", TOKEN)


@pytest.fixture
def one_run(server, compiled) -> str:
    return connected(server).submit(compiled, PARAMS, "first")


def test_without_waiting_it_ends_once_submitted_and_caching_can_be_off(server, params, images, token, capsys):
    arguments = ["--host", server.url, "--params", params, "--images", images]
    code, out, _ = command(*arguments, "--no-wait", "--no-cache", capsys=capsys)
    assert code == 0
    (run,) = server.runs
    assert out == f"submitted: {run}\nlook: {server.url}/#/runs/details/{run}\n"
    assert not server.seen("GET", f"{API}/runs/{run}")
    spec = server.runs[run]["pipeline_spec"]["pipeline_spec"]
    dags = [spec["root"], *spec["components"].values()]
    tasks = [task for each in dags for task in each.get("dag", {}).get("tasks", {}).values()]
    assert len(tasks) > 7
    assert not any(task["cachingOptions"].get("enableCache") for task in tasks)


def test_a_run_that_failed_is_an_error_with_the_task_and_its_words(server, one_run, token, capsys):
    server.states, server.tasks = ["FAILED"], {"ppo-trainer": "FAILED"}
    code, _, err = command("--host", server.url, "--follow", one_run, capsys=capsys)
    assert code == 1
    assert err.splitlines() == [
        "run: ppo-trainer: out of memory",
        f"error: the run ended as failed at ppo-trainer; logs: {server.url}/#/runs/details/{one_run}",
    ]


def test_of_the_shards_of_a_task_the_worst_is_shown_under_its_own_name(server, one_run):
    server.tasks = {"bulk-inference-2": ["RUNNING", "FAILED", "SUCCEEDED"], "evaluator": "PENDING"}
    shown = connected(server).status(one_run).tasks
    assert shown == {"bulk-inference-after": "FAILED", "evaluator": "PENDING"}


def test_a_run_of_an_uploaded_pipeline_has_its_stages_too(server, one_run):
    spec = server.runs[one_run].pop("pipeline_spec")
    server.runs[one_run]["pipeline_version_reference"] = {"pipeline_id": "p", "pipeline_version_id": "v"}
    server.said["GET", f"{API}/pipelines/p/versions/v"] = Answer(200, {"pipeline_spec": spec})
    server.tasks = {"data-validation": "RUNNING"}
    assert connected(server).status(one_run).tasks == {"data-validation": "RUNNING"}


@pytest.mark.parametrize(
    ("version", "is_old"), [("2.5.0", True), ("2.16.1", True), ("2.17.0", False), ("3.0.0", False)]
)
def test_a_server_that_is_too_old_for_what_is_compiled_is_warned_of(
    server, params, images, token, capsys, version, is_old
):
    server.version = version
    arguments = ["--host", server.url, "--params", params, "--images", images]
    code, _, err = command(*arguments, "--no-wait", capsys=capsys)
    assert code == 0
    said = (
        f"warning: host: found Kubeflow Pipelines {version}, expected 2.17.0 or newer; its driver may fail every task"
    )
    assert err.startswith(said) if is_old else err == ""


def test_a_server_that_does_not_say_how_old_it_is_is_taken(server):
    server.version = "unknown"
    assert connected(server).warnings == []


def test_the_oldest_server_is_the_one_that_components_and_documents_name():
    named = {
        yaml.safe_load(path.read_text())["dependencies"]["kubeflow"][0]["version"]
        for path in ROOT.glob("components/*/metadata.yaml")
    }
    assert named == {f">={module.OLDEST_SERVER}"}
    for page in ("README.md", "docs/submit.md", "docs/tutorials/kubeflow.md"):
        assert f"Pipelines {module.OLDEST_SERVER} or newer" in (ROOT / page).read_text(), page


def test_a_run_is_stopped_by_its_id(server, one_run, token, capsys):
    code, out, _ = command("--host", server.url, "--stop", one_run, capsys=capsys)
    assert (code, out.splitlines()[0]) == (0, f"asked to stop: {one_run}")
    assert server.seen("POST", f"{API}/runs/{one_run}:terminate")


def test_a_server_that_is_away_for_a_moment_is_asked_again(server, one_run, token, capsys):
    server.said["GET", f"{API}/runs/{one_run}"] = [Answer(503, "<h1>restarting</h1>"), Answer(502, "")]
    code, out, err = command("--host", server.url, "--every", "0.1", "--follow", one_run, capsys=capsys)
    assert (code, err) == (0, "")
    assert out.splitlines()[0].startswith("no answer, asking again: ")
    assert out.count("no answer") == 1


def test_a_session_that_ends_while_following_leaves_the_run_and_says_so(server, one_run, token, capsys):
    server.said["GET", f"{API}/runs/{one_run}"] = Answer(401, {})
    code, _, err = command("--host", server.url, "--follow", one_run, capsys=capsys)
    assert code == 2
    assert err.splitlines()[0].startswith("error: login: the server does not take it (401)")
    assert err.splitlines()[1] == "not followed any more; the run goes on"


def test_a_run_that_is_not_there_is_said(server, token, capsys):
    code, _, err = command("--host", server.url, "--follow", "nope", capsys=capsys)
    assert code == 2
    assert err.startswith("error: not there (404), trying to look at run nope")


@pytest.mark.parametrize(
    ("change", "arguments", "says"),
    [
        ({"kl_coef": 0.1}, [], "error: kl_coef: unknown parameter, did you mean kl_coeff?"),
        ({"kl_coeff": "high"}, [], "error: kl_coeff: found 'high' (text), expected a number"),
        ({"prompt_dataset": None}, [], "error: prompt_dataset: missing, expected text"),
        ({"ppo": {"gama": 1}}, [], "error: unknown option 'ppo.gama': did you mean 'gamma'?"),
        ({"ppo": {"kl_coeff": 0.1}}, [], "error: ppo.kl_coeff: found 0.1 in ppo, but it has a parameter of its own"),
        ({"reward": {"batch_size": 0}}, [], "error: reward.batch_size: found 0"),
        ({"prompt_sequence_length": 0}, [], "error: data_validation.prompt_sequence_length: found 0"),
        ({"eval_dataset": "data/e.jsonl"}, [], "error: eval_dataset: found 'data/e.jsonl', a path on this machine"),
        (
            {"ppo": {"checkpoint_dir": "checkpoints"}},
            [],
            "error: ppo.checkpoint_dir: found 'checkpoints', a path on this",
        ),
        (
            {"evaluation": {"others": {"old": "out/p.jsonl"}}},
            [],
            "error: evaluation.others.old: found 'out/p.jsonl', a path on this machine",
        ),
        ({"publish_to": "out"}, [], "error: publish_to: found 'out', a path on this machine"),
        ({"large_model_reference": "./model"}, [], "error: large_model_reference: found './model', a folder on this"),
        ({}, ["--name", "My Run"], "error: name: found 'My Run', expected a DNS label"),
        ({}, ["--namespace", "team_a"], "error: namespace: found 'team_a', expected a DNS label"),
        ({}, ["--images", "none.json"], "error: none.json: no such file; `make build push"),
        ({}, ["--registry", "other.example"], "error: {images}: data_validation was pushed as registry.example/team/"),
        ({}, ["--profile", "kubeflow-l5"], "error: profile: found 'kubeflow-l5'"),
        ({}, ["--profile", "vertex-l4"], "error: profile: vertex-l4 is for vertex"),
    ],
)
def test_what_is_wrong_is_found_before_anything_is_submitted(
    server, tmp_path, token, images, capsys, change, arguments, says
):
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({**PARAMS, **change}))
    given = ["--host", server.url, "--params", str(tmp_path / "p.yaml"), "--images", images]
    code, _, err = command(*given, *arguments, capsys=capsys)
    assert code == 2
    assert err.startswith(says.format(images=images))
    assert len(err.splitlines()) == 1
    assert {request.path for request in server.requests} <= {f"{API}/healthz", f"{API}/experiments"}
    assert not server.runs


def test_models_that_do_not_fit_the_profile_are_refused_with_what_would_do_unless_asked_not_to(
    server, tmp_path, token, images, capsys
):
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({**PARAMS, "large_model_reference": "llama-2-7b"}))
    given = ["--host", server.url, "--params", str(tmp_path / "p.yaml"), "--images", images, "--no-wait"]
    code, _, err = command(*given, capsys=capsys)
    assert code == 2
    lines = err.splitlines()
    assert lines[0].startswith("error: reward_trainer: needs ")
    assert "; it would fit with tuning qlora for sft, reward and ppo" in lines[0]
    assert lines[-1] == "error: plan: the run cannot fit, for these reasons; PLAN=0 submits it all the same"
    assert not server.runs
    code, _, err = command(*given, "--no-plan", capsys=capsys)
    assert (code, err) == (0, "")
    assert server.runs


KEPT = {
    "ppo": {"checkpoint_dir": "/checkpoints/ppo"},
    "evaluation": {
        "judge": {"model": "m", "base_url": "http://j", "cache": "/cache"},
        "others": {"old": "/gcs/b/p.jsonl"},
    },
}


@pytest.mark.parametrize(
    ("profile", "not_there"),
    [
        ("kubeflow-l4", ["ppo.checkpoint_dir", "evaluation.judge.cache", "evaluation.others.old"]),
        ("with a volume", ["evaluation.judge.cache", "evaluation.others.old"]),
        ("vertex-l4", ["ppo.checkpoint_dir", "evaluation.judge.cache"]),
    ],
)
def test_a_folder_that_no_pod_has_by_what_the_profile_says_is_warned_of(tmp_path, profile, not_there):
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({**PARAMS, **KEPT}))
    if profile == "with a volume":
        values = yaml.safe_load((ROOT / "pipelines/profiles/kubeflow-l4.yaml").read_text())
        values["kubernetes"]["volumes"] = [{"claim": "checkpoints", "path": "/checkpoints/"}]
        profile = str(tmp_path / "mine.yaml")
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    _, warnings = check.parameters(tmp_path / "p.yaml", rlhf.build(place), load_profile(profile))
    assert [warning.split(":")[0] for warning in warnings] == not_there


@pytest.mark.parametrize("model", ["gs://b/model", "/models/none"])
def test_a_model_whose_size_is_not_known_here_is_submitted_with_a_warning(model):
    (said,) = check.fits({**PARAMS, "large_model_reference": model}, load_profile("kubeflow-l4"))
    assert model in said


def test_a_name_made_of_what_was_given_is_offered(server, params, capsys):
    _, _, err = command("--host", server.url, "--params", params, "--name", "2 Summaries!", capsys=capsys)
    assert err.rstrip().endswith("for example summaries")
