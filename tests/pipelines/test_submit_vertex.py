"""Submitting to Vertex AI Pipelines, request by request, against its API on loopback."""

import json
import logging
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from components.images import cluster_images
from pipelines.compile import compile_pipelines
from pipelines.placement.cluster import FOLDER, load_profile
from pipelines.submit import __main__ as submit
from pipelines.submit.errors import SubmitError
from pipelines.submit.vertex import check_settings, labels
from tests.http_server import Answer, served
from tests.vertex_server import ACCESS_TOKEN, PARENT, VertexServer

PARAMS = {
    "prompt_dataset": "gs://b/p.jsonl",
    "preference_dataset": "gs://b/q.jsonl",
    "large_model_reference": "t5-small",
}
KEY = "projects/my-project/locations/europe-west4/keyRings/r/cryptoKeys/k"
JOBS = f"{PARENT}/pipelineJobs"


@pytest.fixture(scope="module")
def key():
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture(scope="module")
def certificate(key) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "submitter")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    return made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> Path:
    images = cluster_images("registry.example/team", "1f2e3d")
    path, _ = compile_pipelines(load_profile("vertex-l4"), images, tmp_path_factory.mktemp("build"))
    return path


@pytest.fixture
def server(certificate, key, tmp_path, monkeypatch, compiled):
    """With the application-default credentials of a service account, and files compiled once."""
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    account = {
        "type": "service_account",
        "project_id": "my-project",
        "private_key_id": "1",
        "private_key": pem,
        "client_email": "submitter@my-project.iam.gserviceaccount.com",
    }

    def as_compiled(given, folder: Path) -> Path:
        path = folder / "rlhf.yaml"
        path.write_text(compiled.read_text())
        if not given.cache:
            submit._switch_caching_off(path)
        return path

    monkeypatch.setattr(submit, "_compiled", as_compiled)
    with served(VertexServer(certificate)) as service:
        (tmp_path / "account.json").write_text(json.dumps({**account, "token_uri": f"{service.url}/token"}))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "account.json"))
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", service.url)
        yield service
    logging.disable(logging.NOTSET)


@pytest.fixture
def command(server, tmp_path, capsys):
    def run(*more: str, params: dict | None = None) -> tuple[int, str, str]:
        (tmp_path / "p.yaml").write_text(yaml.safe_dump({**PARAMS, **(params or {})}))
        settings = {"--project": "my-project", "--location": "europe-west4", "--api-endpoint": server.url}
        given = ["vertex", *(part for pair in settings.items() for part in pair), "--every", "0.1"]
        if not {"--follow", "--stop"} & set(more):
            given += ["--params", str(tmp_path / "p.yaml"), "--pipeline-root", "gs://bucket/root"]
        code = submit.main([*given, *more])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_a_run_is_made_of_the_file_its_parameters_and_all_settings(server, command):
    code, out, err = command(
        "--no-wait",
        *("--name", "nightly", "--label", "team=nlp", "--label", "cost=7"),
        *("--service-account", "runner@my-project.iam.gserviceaccount.com"),
        *("--network", "projects/123/global/networks/vpc"),
        params={"encryption_spec_key_name": KEY, "kl_coeff": 0.2, "ppo": {"gamma": 1.0}},
    )
    assert (code, err) == (0, "")
    (request,) = server.seen("POST", JOBS)
    assert request.query["pipelineJobId"] == "nightly"
    (job,) = server.jobs.values()
    assert job.display_name == "nightly"
    assert dict(job.labels).items() >= {"team": "nlp", "cost": "7"}.items()
    assert job.service_account == "runner@my-project.iam.gserviceaccount.com"
    assert job.network == "projects/123/global/networks/vpc"
    assert job.encryption_spec.kms_key_name == KEY
    assert job.runtime_config.gcs_output_directory == "gs://bucket/root"
    given = request.json["runtimeConfig"]["parameterValues"]
    assert given == {**PARAMS, "encryption_spec_key_name": KEY, "kl_coeff": 0.2, "ppo": {"gamma": 1.0}}
    spec = request.json["pipelineSpec"]
    plain = spec["deploymentSpec"]["executors"]["exec-data-fingerprint"]["container"]["image"]
    jobs = [
        pool["container_spec"]["image_uri"]
        for component in spec["components"].values()
        for pool in component.get("inputDefinitions", {})
        .get("parameters", {})
        .get("worker_pool_specs", {})
        .get("defaultValue", [])
    ]
    assert len(jobs) == 8
    assert all(image.endswith(":1f2e3d") for image in [plain, *jobs])
    assert request.json["pipelineSpec"]["root"]["dag"]["tasks"]["sft-trainer"]["cachingOptions"]["enableCache"]
    page = "https://console.cloud.google.com/vertex-ai/locations/europe-west4/pipelines/runs/nightly?project=my-project"
    assert out == f"submitted: nightly\nlook: {page}\n"


@pytest.mark.parametrize("given", [None, "runner@my-project.iam.gserviceaccount.com"])
def test_a_run_acts_as_the_profiles_account_where_none_is_given(server, command, tmp_path, given):
    """Steps that are no jobs of their own have no other account than the run's."""
    profile = yaml.safe_load((FOLDER / "vertex-l4.yaml").read_text())
    account = "tuner@my-project.iam.gserviceaccount.com"
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**profile, "vertex": {"service_account": account}}))
    options = ["--service-account", given] if given else []
    assert command("--no-wait", "--profile", str(tmp_path / "mine.yaml"), *options)[0] == 0
    (job,) = server.jobs.values()
    assert job.service_account == (given or account)


def test_a_key_of_the_command_line_is_that_of_every_job_of_the_run(server, command):
    other = KEY.replace("cryptoKeys/k", "cryptoKeys/other")
    assert command("--no-wait", "--encryption-key", KEY, params={"encryption_spec_key_name": other})[0] == 0
    (request,) = server.seen("POST", JOBS)
    (job,) = server.jobs.values()
    assert job.encryption_spec.kms_key_name == KEY
    assert request.json["runtimeConfig"]["parameterValues"]["encryption_spec_key_name"] == KEY


def test_it_is_followed_to_the_end(server, command):
    server.states = [f"PIPELINE_STATE_{state}" for state in ("PENDING", "RUNNING", "SUCCEEDED")]
    server.tasks = {"data-validation": "SUCCEEDED", "for-loop-1": "RUNNING", "sft-trainer": "RUNNING"}
    code, out, err = command("--name", "nightly")
    assert (code, err) == (0, "")
    lines = out.splitlines()[2:]
    assert lines[:3] == ["  data-validation: succeeded", "  sft-trainer: running", "run: pending"]
    assert lines[3] == "run: running"
    assert lines[4].startswith("run: succeeded after ")


def test_without_caching_every_task_is_run_again(server, command):
    command("--no-wait", "--no-cache")
    (request,) = server.seen("POST", JOBS)
    spec = request.json["pipelineSpec"]
    dags = [each["dag"] for each in [spec["root"], *spec["components"].values()] if "dag" in each]
    tasks = [task for dag in dags for task in dag["tasks"].values()]
    assert len(tasks) > 7
    assert not any(task["cachingOptions"].get("enableCache") for task in tasks)


def test_a_run_that_failed_is_an_error_with_the_task_and_vertexs_words(server, command):
    server.states, server.tasks = ["PIPELINE_STATE_FAILED"], {"ppo-trainer": "FAILED"}
    code, _, err = command("--name", "nightly")
    assert code == 1
    assert err.splitlines()[0] == "run: The replica ran out of memory."
    assert err.splitlines()[1].startswith("error: the run ended as failed at ppo-trainer; logs: https://console.")


def test_ctrl_c_leaves_the_run_running_and_says_how_to_go_on(server, command, monkeypatch):
    server.states = ["PIPELINE_STATE_RUNNING"]

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("pipelines.submit.follow.time.sleep", interrupted)
    code, _, err = command("--name", "nightly")
    assert code == 130
    where = f"make submit PLATFORM=vertex PROJECT=my-project LOCATION=europe-west4 API_ENDPOINT={server.url}"
    assert err.splitlines()[1] == "interrupted; the run goes on"
    assert err.splitlines()[3:] == [f"follow: {where} FOLLOW=nightly", f"stop: {where} STOP=nightly"]
    assert not [request for request in server.requests if request.path.endswith(":cancel")]


def test_a_run_is_stopped_by_its_id(server, command):
    command("--no-wait", "--name", "nightly")
    code, out, _ = command("--stop", "nightly")
    assert (code, out.splitlines()[0]) == (0, "asked to stop: nightly")
    assert server.seen("POST", f"{JOBS}/nightly:cancel")


def test_no_bucket_is_made_of_a_mistyped_name(server, command):
    code, _, err = command("--pipeline-root", "gs://buket/root")
    assert code == 2
    assert err.startswith("error: pipeline root: there is no bucket buket; make it with `gcloud storage buckets create")
    assert {(request.method, request.path) for request in server.requests} == {
        ("POST", "/token"),
        ("GET", "/storage/v1/b/buket"),
    }


def test_a_bucket_that_the_submitter_may_not_see_is_left_to_vertex(server, command):
    server.said["GET", "/storage/v1/b/bucket"] = Answer(403, {"error": {"code": 403, "message": "no"}})
    assert command("--no-wait")[0] == 0


@pytest.mark.parametrize(
    ("status", "message", "says"),
    [
        (401, "expired", "error: login: Vertex AI does not take it (401): the token has expired; run `gcloud auth"),
        (
            403,
            "Permission denied",
            "error: login: it may not start a run in project my-project (403): Permission denied",
        ),
        (404, "no project", "error: not there (404), trying to start a run in project my-project, europe-west4"),
        (400, "bad machine", "error: Vertex AI refuses to start a run (400): bad machine"),
        (429, "quota of L4", "error: Vertex AI refuses to start a run (429): quota of L4"),
    ],
)
def test_vertex_refusing_is_one_line_with_what_to_do(server, command, status, message, says):
    server.said["POST", JOBS] = Answer(status, {"error": {"code": status, "message": message}})
    code, _, err = command()
    assert code == 2
    assert err.startswith(says)
    assert len(err.splitlines()) == 1
    token = server.seen("POST", JOBS)[0].headers["Authorization"].removeprefix("Bearer ")
    assert token not in err
    assert ACCESS_TOKEN not in err


def test_a_name_that_is_taken_is_said(command):
    assert command("--no-wait", "--name", "nightly")[0] == 0
    code, _, err = command("--no-wait", "--name", "nightly")
    assert (code, err) == (2, "error: name: there is a run of that name already (409); give another NAME\n")


def test_no_credentials_is_one_line(command, tmp_path, monkeypatch):
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    code, _, err = command()
    assert code == 2
    assert err.startswith(
        "error: login: no usable credentials of Google Cloud here; run `gcloud auth application-default"
    )


def test_a_region_without_the_profiles_accelerators_is_refused_before_anything_is_sent(server, command):
    code, _, err = command("--pipeline-root", "gs://bucket/r", "--location", "europe-west6")
    assert code == 2
    assert err.startswith("error: location: europe-west6 has no NVIDIA_L4 for training")
    assert not server.requests


def test_a_tensorboard_needs_an_account_for_the_jobs(server, command):
    tensorboard = {"tensorboard_resource_id": "projects/1/locations/europe-west4/tensorboards/2"}
    code, _, err = command("--pipeline-root", "gs://bucket/r", params=tensorboard)
    assert code == 2
    assert err.startswith("error: tensorboard_resource_id: Vertex AI streams from jobs that have a service account")
    assert not server.requests
    assert command("--no-wait", "--service-account", "runner@p.iam.gserviceaccount.com", params=tensorboard)[0] == 0


SETTINGS = {"project": "my-project", "location": "europe-west4", "pipeline root": "gs://bucket/root"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"project": None}, r"project: none given, expected a project id .*; set PROJECT="),
        ({"project": "My Project"}, "project: found 'My Project'"),
        ({"location": "europe"}, "location: found 'europe', expected a region such as us-central1"),
        ({"pipeline root": None}, "pipeline root: none given, expected gs://.*; set ROOT="),
        ({"pipeline root": "s3://bucket/x"}, "pipeline root: found 's3://bucket/x', expected gs://bucket/folder"),
        ({"service account": "runner"}, "service account: found 'runner'"),
        ({"network": "default"}, "network: found 'default', expected projects/NUMBER/global"),
        ({"encryption key": "k"}, "encryption key: found 'k', expected projects/P/locations/L"),
        (
            {"encryption key": KEY.replace("europe-west4", "us-east1")},
            "encryption key: is in us-east1, but the run is to",
        ),
        (
            {"tensorboard_resource_id": "projects/1/locations/us-central1/tensorboards/2"},
            "tensorboard_resource_id: is in us-central1, but the run is to be in europe-west4",
        ),
    ],
)
def test_settings_of_the_wrong_shape_or_region_are_refused_before_anything_is_sent(change, says):
    with pytest.raises(SubmitError, match=says):
        check_settings({**SETTINGS, **change})


def test_settings_of_the_right_shape_are_taken():
    check_settings({**SETTINGS, "encryption key": KEY, "network": None})


@pytest.mark.parametrize("label", ["team", "Team=x", "team=NLP", "1=x", f"a={'x' * 64}"])
def test_labels_follow_google_clouds_rules(label):
    with pytest.raises(SubmitError, match="label: found"):
        labels([label])


def test_a_parameter_file_with_a_typing_error_is_not_submitted(server, command):
    code, _, err = command(params={"instruktion": "x"})
    assert (code, err) == (2, "error: instruktion: unknown parameter, did you mean instruction?\n")
    assert not server.requests


def test_make_submit_passes_every_setting_on():
    root = Path(__file__).parents[2]
    settings = (
        "PLATFORM=vertex PROJECT=p LOCATION=l ROOT=gs://b LABELS='a=1 b=2' PARAMS=x.yaml WAIT=0 CACHE=0 PLAN=0 NAME=n "
        "TAG=t"
    )
    shown = subprocess.run(
        f"make --no-print-directory -n -o setup submit {settings} "
        "SERVICE_ACCOUNT=s CMEK=k NETWORK=n PROFILE=f REGISTRY=r",
        shell=True,
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.replace("\\\n", "")
    expected = (
        'python -m pipelines.submit vertex --pipeline "rlhf" --params "x.yaml" --registry "r" --tag "t" --profile "f" '
        '--name "n" '
        '--pipeline-root "gs://b" --service-account "s" --no-wait --no-cache --no-plan --project "p" --location "l" '
        '--encryption-key "k" --network "n" --label "a=1" --label "b=2"'
    )
    assert " ".join(shown.split()).endswith(expected)
