"""How one logs in to Kubeflow Pipelines: a bearer token, a session of Dex, or the token of the pod this runs in."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import requests
from kfp.client.token_credentials_base import TokenCredentialsBase
from requests.cookies import get_cookie_header

from pipelines.submit.errors import SubmitError, Unreachable

# Secrets come from these or from files, never from the command line, which every user of a machine can read.
TOKEN_VARIABLE, PASSWORD_VARIABLE = "KFP_TOKEN", "KFP_PASSWORD"
# Where Kubeflow projects a pod's token for Kubeflow Pipelines, and the variable that says so (both kfp's).
POD_TOKEN_VARIABLE, POD_TOKEN = "KF_PIPELINES_SA_TOKEN_PATH", "/var/run/secrets/kubeflow/pipelines/token"

TIMEOUT = (10, 30)  # seconds to connect, to answer


@dataclass
class Login(TokenCredentialsBase):
    """What goes with every request. Knows its secrets, so that no message shows them."""

    token: str | None = None
    token_file: Path | None = None
    """Read for every request: a projected token is exchanged for a new one while a run is followed."""
    cookie: str | None = None
    _seen: set[str] = field(default_factory=set, repr=False)

    def headers(self) -> dict[str, str]:
        """Of a request.

        Raises:
            SubmitError: The token's file cannot be read, or is empty.
        """
        if self.cookie:
            self._seen.update(part.partition("=")[2] for part in self.cookie.split("; "))
            return {"Cookie": self.cookie}
        if token := self._token():
            return {"Authorization": f"Bearer {token}"}
        return {}

    def refresh_api_key_hook(self, config) -> None:
        """For kfp's client, which calls this before each request."""
        config.api_key["authorization"] = self._token()

    def redact(self, text: str) -> str:
        """The text without secrets, whoever put them there."""
        for secret in sorted(self._seen - {""}, key=len, reverse=True):
            text = text.replace(secret, "***")
        return text

    def hide(self, secret: str) -> None:
        """Have `redact` know a secret."""
        self._seen.add(secret)

    def _token(self) -> str | None:
        token = _read(self.token_file, "token file") if self.token_file else self.token
        if token:
            self._seen.add(token)
        return token

    def __repr__(self) -> str:
        return "Login(***)"


def log_in(
    host: str,
    *,
    token_file: str | None = None,
    dex_user: str | None = None,
    password_file: str | None = None,
    connector: str = "local",
    ca_file: str | None = None,
) -> Login:
    """Log in by the first way that is given: Dex, a token, the pod's token; else none is needed, as by port-forwarding.

    Args:
        host: Address of Kubeflow Pipelines, from `kubeflow.address`.
        token_file: File with a bearer token; `$KFP_TOKEN` has one otherwise.
        dex_user: Name to log in to Dex with; the password is in `password_file` or `$KFP_PASSWORD`.
        connector: Dex's way to log in where it offers several: local, ldap.
        ca_file: PEM of the authority that signed the server's certificate.

    Raises:
        SubmitError: There is no password or token where there should be one, or Dex refuses.
    """
    if dex_user:
        password = _read(Path(password_file), "password file") if password_file else os.environ.get(PASSWORD_VARIABLE)
        if not password:
            raise SubmitError(
                f"password: none given for {dex_user}, expected it in ${PASSWORD_VARIABLE} or in a file (PASSWORD_FILE)"
            )
        login = Login()
        login.hide(password)
        try:
            login.cookie = _dex_session(host, dex_user, password, connector, ca_file or True)
        except SubmitError as error:
            raise type(error)(login.redact(str(error))) from None
        return login
    if token_file:
        return Login(token_file=Path(token_file))
    if token := os.environ.get(TOKEN_VARIABLE, "").strip():
        return Login(token=token)
    pod_token = Path(os.environ.get(POD_TOKEN_VARIABLE) or POD_TOKEN)
    return Login(token_file=pod_token) if pod_token.is_file() else Login()


def _dex_session(host: str, user: str, password: str, connector: str, verify: str | bool) -> str:
    """The cookies of a session, by the forms that a person fills in a browser (Kubeflow docs, "Connect the SDK")."""
    with requests.Session() as session:
        session.verify = verify
        page = _get(session, host)
        if page.status_code in (401, 403):  # oauth2-proxy shows a button first
            start = urlsplit(host)._replace(path="/oauth2/start", query=urlencode({"rd": urlsplit(host).path or "/"}))
            page = _get(session, start.geturl())
        if urlsplit(page.url).path.endswith("/auth"):  # several ways to log in
            way = urlsplit(page.url)
            page = _get(session, way._replace(path=f"{way.path}/{connector}").geturl())
        form = urlsplit(page.url)
        if page.status_code != 200 or not form.path.endswith("/login"):
            raise SubmitError(
                f"host: {host} led to {form.netloc}{form.path} ({page.status_code}) and not to Dex's login; "
                "leave DEX_USER out if it needs no login, or set a token"
            )
        if form.scheme != "https" and urlsplit(host).scheme == "https":
            raise SubmitError(f"host: its login at {form.netloc} is not encrypted, so no password is sent there")
        page = _send(session, page.url, {"login": user, "password": password})
        if urlsplit(page.url).path.endswith("/approval"):
            page = _send(session, page.url, {"approval": "approve"})
        cookie = get_cookie_header(session.cookies, requests.Request("GET", host).prepare())
        if page.status_code >= 400 or not page.history or not cookie:
            raise SubmitError(f"login: Dex at {form.netloc} refuses {user}; check DEX_USER and the password")
        return cookie


def _get(session: requests.Session, url: str) -> requests.Response:
    return _reached(lambda: session.get(url, timeout=TIMEOUT), url)


def _send(session: requests.Session, url: str, fields: dict[str, str]) -> requests.Response:
    return _reached(lambda: session.post(url, data=fields, timeout=TIMEOUT), url)


def _reached(ask, url: str) -> requests.Response:
    try:
        return ask()
    except requests.RequestException as error:
        raise unreachable(url, error) from None


def unreachable(url: str, error: Exception) -> SubmitError:
    """Why a server was not reached, in a line."""
    host = urlsplit(url).netloc
    text = str(error)
    if "CERTIFICATE_VERIFY_FAILED" in text or "certificate verify failed" in text:
        return SubmitError(
            f"host: the certificate of {host} is not trusted here; set CA_FILE to the PEM of who signed it"
        )
    if "WRONG_VERSION_NUMBER" in text or "record layer failure" in text:
        return SubmitError(f"host: {host} does not speak TLS; write http:// if that is meant")
    causes = {
        "Name or service not known": "there is no host of that name",
        "nodename nor servname": "there is no host of that name",
        "Temporary failure in name resolution": "its name cannot be looked up",
        "Connection refused": "nothing listens there",
        "timed out": "it did not answer in time",
        "No route to host": "there is no route to it",
        "RemoteDisconnected": "it closed the connection",
        "Connection reset": "it closed the connection",
    }
    cause = next((said for found, said in causes.items() if found in text), type(error).__name__)
    return Unreachable(f"host: {host} cannot be reached: {cause}; check HOST, the VPN, or that port-forwarding runs")


def _read(path: Path, what: str) -> str:
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SubmitError(f"{what}: {path} cannot be read ({getattr(error, 'strerror', None) or 'not text'})") from None
    if not secret:
        raise SubmitError(f"{what}: {path} is empty")
    return secret
