"""Keys in environment variables, and tokens that get there from Google's Secret Manager when a stage starts, so that no
file or job ever holds them."""

import base64
import json
import os

from rlhf.errors import ConfigError

# {environment variable: projects/P/secrets/S/versions/V} as JSON. Must be what pipelines.placement.vertex sets.
VARIABLE = "RLHF_SECRETS"
ENDPOINT = "https://secretmanager.googleapis.com"

_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
_TIMEOUT_SECONDS = 30.0
_TRIES = 3


def resolve() -> None:
    """Fill the environment variables that `RLHF_SECRETS` names; does nothing where it is not set.

    A variable that already has a value keeps it: a process that a stage starts has what the stage was given.

    Raises:
        ConfigError: There are no credentials, a secret is missing or destroyed, or may not be read. No message ever
            has what a secret holds.
    """
    named = {name: version for name, version in _named().items() if not os.environ.get(name)}
    if not named:
        return
    import google.auth
    from google.auth import exceptions
    from google.auth.transport.requests import AuthorizedSession
    from requests import RequestException
    from requests.adapters import HTTPAdapter
    from urllib3 import Retry

    try:
        credentials, _ = google.auth.default(scopes=[_SCOPE])
        with AuthorizedSession(credentials) as session:
            again = Retry(total=_TRIES, backoff_factor=0.5, status_forcelist=(429, 500, 502, 503, 504),
                          raise_on_status=False)  # fmt: skip
            session.mount(ENDPOINT, HTTPAdapter(max_retries=again))
            for name, version in named.items():
                os.environ[name] = _read(session, name, version)
    except exceptions.DefaultCredentialsError as error:
        raise ConfigError(
            f"secrets: no credentials of Google Cloud here, expected those of a service account, for {', '.join(named)}"
        ) from error
    except (exceptions.GoogleAuthError, RequestException) as error:
        raise ConfigError(
            f"secrets: Secret Manager does not answer ({type(error).__name__}), asked for {', '.join(named)}"
        ) from error


def key_in(variable: str, parameter: str) -> str:
    """The key that an environment variable holds, as a header takes it.

    Args:
        parameter: What named the variable, for messages.

    Raises:
        ConfigError: There is none, or it has characters that no key has. No message ever has the key.
    """
    key = os.environ.get(variable, "").strip()  # what a Secret is made from often ends in a line break
    if not key or not key.isascii() or not key.isprintable():
        what = "characters that no key has" if key else "empty or unset"
        raise ConfigError(
            f"{parameter}: found the environment variable {variable} {what}, expected the key in it; on a cluster it "
            "comes from a Secret"
        )
    return key


def _named() -> dict[str, str]:
    try:
        named = json.loads(os.environ.get(VARIABLE) or "{}")
        return {str(name): str(version) for name, version in named.items()}
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"{VARIABLE}: expected JSON of variables and versions of secrets") from error


def _read(session, name: str, version: str) -> str:
    answer = session.get(f"{ENDPOINT}/v1/{version}:access", timeout=_TIMEOUT_SECONDS)
    if answer.ok:
        return base64.b64decode(answer.json()["payload"]["data"]).decode("utf-8").strip()
    secret = version.split("/versions/")[0]
    said = _message(answer)
    if answer.status_code == 404:
        raise ConfigError(
            f"secrets.{name}: there is no {version} in Secret Manager (404): {said}; make it with "
            f"`gcloud secrets create`, or name another in the profile's vertex.secrets"
        )
    if answer.status_code in (401, 403):
        raise ConfigError(
            f"secrets.{name}: this job's service account may not read {version} ({answer.status_code}): {said}; give "
            f"it roles/secretmanager.secretAccessor on {secret}"
        )
    if answer.status_code == 400:
        raise ConfigError(f"secrets.{name}: {version} cannot be read (400), it may be disabled or destroyed: {said}")
    raise ConfigError(f"secrets.{name}: Secret Manager answers {answer.status_code} for {version}: {said}")


def _message(answer) -> str:
    try:
        said = answer.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        said = answer.reason or ""
    return " ".join(str(said).split())[:300]
