"""Tokens from Secret Manager, on loopback: by the name of a version, and never in a message."""

import base64
import json
import os
import re

import google.auth
import pytest
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import DefaultCredentialsError, RefreshError

from rlhf import secrets
from rlhf.errors import ConfigError
from rlhf.job import stage_job
from tests.http_server import Answer, Request, Service, served
from tests.loopback import environment, loopback_only  # noqa: F401

HF = "projects/my-project/secrets/hugging-face/versions/latest"
JUDGE = "projects/my-project/secrets/judge/versions/3"
VALUES = {HF: "hf_a-token", JUDGE: "sk-a-key\n"}


class SecretManager(Service):
    """https://cloud.google.com/secret-manager/docs/reference/rest/v1/projects.secrets.versions/access"""

    def answer(self, request: Request) -> Answer:
        version = re.fullmatch(r"/v1/(projects/[^/]+/secrets/[^/]+/versions/[^/]+):access", request.path)[1]
        if version not in VALUES:
            return error(404, f"Secret [{version}] not found or has no versions.")
        data = base64.b64encode(VALUES[version].encode()).decode()
        return Answer(200, {"name": version.replace("latest", "7"), "payload": {"data": data}})


def error(code: int, message: str) -> Answer:
    return Answer(code, {"error": {"code": code, "message": message, "status": "X"}})


@pytest.fixture
def manager(monkeypatch):
    for name in ("HF_TOKEN", "JUDGE_KEY", secrets.VARIABLE):
        monkeypatch.setenv(name, "")  # so that what a test sets is undone
    monkeypatch.setattr(google.auth, "default", lambda scopes: (AnonymousCredentials(), "my-project"))
    with served(SecretManager()) as service:
        monkeypatch.setattr(secrets, "ENDPOINT", service.url)
        yield service


def name_secrets(monkeypatch, **versions: str) -> None:
    monkeypatch.setenv(secrets.VARIABLE, json.dumps(versions))


def test_variables_are_filled_when_a_stage_starts(manager, monkeypatch):
    name_secrets(monkeypatch, HF_TOKEN=HF, JUDGE_KEY=JUDGE)
    with stage_job("sft_trainer", type("Metrics", (dict,), {"log_metric": dict.__setitem__})()):
        assert os.environ["HF_TOKEN"] == "hf_a-token"
        assert os.environ["JUDGE_KEY"] == "sk-a-key", "a line break at the end is no part of a key"
    import huggingface_hub

    assert huggingface_hub.get_token() == "hf_a-token", "the hub's client finds it"


def test_a_variable_that_has_a_value_keeps_it_and_nothing_is_asked_in_vain(manager, monkeypatch):
    name_secrets(monkeypatch, HF_TOKEN=HF)
    monkeypatch.setenv("HF_TOKEN", "mine")
    secrets.resolve()
    monkeypatch.delenv(secrets.VARIABLE)
    secrets.resolve()
    assert os.environ["HF_TOKEN"] == "mine"
    assert not manager.requests


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (error(404, "Secret not found"), r"there is no projects/.*/versions/latest .*404.*gcloud secrets create"),
        (
            error(403, "denied on resource"),
            r"may not read .*403.*roles/secretmanager.secretAccessor on projects/my-pro",
        ),
        (error(400, "is in DESTROYED state"), r"disabled or destroyed: is in DESTROYED state"),
        (Answer(418, "<html>"), "answers 418"),
    ],
)
def test_a_secret_that_cannot_be_read_is_one_line_with_what_to_do(manager, monkeypatch, answer, says):
    name_secrets(monkeypatch, JUDGE_KEY=JUDGE, HF_TOKEN=HF)
    manager.said["GET", f"/v1/{HF}:access"] = answer
    with pytest.raises(ConfigError, match=f"secrets.HF_TOKEN: .*{says}") as raised:
        secrets.resolve()
    assert "\n" not in str(raised.value)
    assert "sk-a-key" not in str(raised.value)


def test_a_bad_moment_is_waited_out(manager, monkeypatch):
    name_secrets(monkeypatch, HF_TOKEN=HF)
    manager.said["GET", f"/v1/{HF}:access"] = [error(503, "unavailable"), error(429, "slow down")]
    secrets.resolve()
    assert os.environ["HF_TOKEN"] == "hf_a-token"


def test_no_credentials_and_expired_ones_are_said(manager, monkeypatch):
    name_secrets(monkeypatch, HF_TOKEN=HF)

    def none(scopes):
        raise DefaultCredentialsError("none")

    monkeypatch.setattr(google.auth, "default", none)
    with pytest.raises(ConfigError, match=r"no credentials of Google Cloud here, .* for HF_TOKEN"):
        secrets.resolve()

    class Expired(AnonymousCredentials):
        def before_request(self, *_):
            raise RefreshError("expired")

    monkeypatch.setattr(google.auth, "default", lambda scopes: (Expired(), None))
    with pytest.raises(ConfigError, match=r"does not answer \(RefreshError\), asked for HF_TOKEN"):
        secrets.resolve()


def test_a_server_that_is_not_there_is_said(manager, monkeypatch):
    name_secrets(monkeypatch, HF_TOKEN=HF)
    monkeypatch.setattr(secrets, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"does not answer \(ConnectionError\)"):
        secrets.resolve()


def test_the_stage_ends_with_the_line_before_it_does_anything(manager, monkeypatch, capsys):
    name_secrets(monkeypatch, HF_TOKEN=HF.replace("hugging-face", "typo"))
    with pytest.raises(SystemExit) as raised, stage_job("sft_trainer", None):
        raise AssertionError("never reached")
    assert raised.value.code == 1
    started, error = capsys.readouterr().out.splitlines()
    assert started == "[sft_trainer] started"
    assert error.startswith("[sft_trainer] error: secrets.HF_TOKEN: there is no projects/my-project")
