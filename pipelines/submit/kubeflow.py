"""Runs on self-hosted Kubeflow Pipelines, through kfp's client."""

import contextlib
import difflib
import io
import json
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kfp
import requests
import urllib3
from kfp_server_api import ApiException

from pipelines.submit.errors import SubmitError, Unreachable
from pipelines.submit.follow import Status, by_name
from pipelines.submit.login import TIMEOUT, Login, unreachable

# Where pods find it, unless kfp's own variable says otherwise.
IN_CLUSTER = "http://ml-pipeline.kubeflow.svc.cluster.local:8888"
NAMESPACE_OF_POD = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
DEFAULT_EXPERIMENT = "rlhf"
# As in components/*/metadata.yaml. Drivers of older ones refuse what kfp compiles: `unknown field "optional"`.
OLDEST_SERVER = "2.17.0"


def address(host: str | None) -> str:
    """The address of Kubeflow Pipelines, from what a person copied out of a browser.

    Raises:
        SubmitError: There is none, or it is no address.
    """
    host = host or os.environ.get("KF_PIPELINES_ENDPOINT")
    if not host and os.environ.get("KUBERNETES_SERVICE_HOST"):
        host = IN_CLUSTER
    if not host:
        raise SubmitError(
            "host: none given, expected the address of Kubeflow Pipelines; set HOST=https://kubeflow.example/pipeline"
        )
    url = urlsplit(host if "://" in host else f"https://{host}")
    if url.scheme not in ("http", "https") or not url.hostname or any(c.isspace() for c in host):
        raise SubmitError(f"host: found {host!r}, expected an address such as https://kubeflow.example/pipeline")
    if url.username or url.password:
        raise SubmitError(
            "host: has a name or password in it, where others can read it; see docs/submit.md, Logging in"
        )
    return f"{url.scheme}://{url.netloc}{url.path}".rstrip("/")


class Kubeflow:
    """One server, one login, one namespace."""

    def __init__(self, host: str, login: Login, namespace: str | None = None, ca_file: str | None = None):
        """Find the server.

        Args:
            host: From `address`.
            namespace: Of the user, where the server has several.
            ca_file: PEM of the authority that signed the server's certificate.

        Raises:
            SubmitError: It is not there, is something else, or refuses the login; or needs a namespace.
        """
        self.host, self._login = host, login
        server = self._probe(ca_file)
        self.namespace = self._namespace(namespace) if server.get("multi_user") else None
        self.warnings = _too_old(server)
        self._shown: dict[str, dict[str, str]] = {}
        with self._explained("reach it"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._client = kfp.Client(
                host=host,
                cookies=login.cookie,
                credentials=login if login.headers().get("Authorization") else None,
                namespace=self.namespace or "kubeflow",
                ssl_ca_cert=ca_file,
            )

    def submit(
        self,
        file: Path,
        arguments: dict[str, Any],
        name: str,
        *,
        experiment: str | None = None,
        new_experiment: bool = False,
        pipeline_root: str | None = None,
        service_account: str | None = None,
    ) -> str:
        """Start a run.

        Args:
            file: Compiled for Kubeflow.
            arguments: Checked (`check.parameters`).
            name: Of the run.
            experiment: To put it in; must be there, unless `new_experiment`. None: one called rlhf, made if missing.

        Returns:
            The run's id.

        Raises:
            SubmitError: The experiment is missing, or the server refuses.
        """
        with self._explained(f"start a run{self._in_namespace()}"):
            found = self._experiment(experiment or DEFAULT_EXPERIMENT, make=new_experiment or experiment is None)
            return self._client.run_pipeline(
                experiment_id=found,
                job_name=name,
                pipeline_package_path=str(file),
                params=arguments,
                pipeline_root=pipeline_root,
                service_account=service_account,
            ).run_id

    def status(self, run: str) -> Status:
        """How a run is doing."""
        with self._explained(f"look at run {run}"):
            found = self._client.get_run(run)
            shown = self._shown_names(run, found)
        details = (found.run_details and found.run_details.task_details) or []
        # The server lists all of Argo's nodes, drivers, executors, loops and the workflow itself among them.
        tasks = [(shown[task.display_name], task) for task in details if task.display_name in shown]
        errors = {name: task.error.message for name, task in tasks if task.error and task.error.message}
        if found.error and found.error.message:
            errors[""] = found.error.message
        return Status(
            state=found.state or "PENDING",
            tasks=by_name((name, task.state) for name, task in tasks if task.state),
            errors={name: self._login.redact(" ".join(said.split())) for name, said in errors.items()},
        )

    def stop(self, run: str) -> None:
        """End a run."""
        with self._explained(f"stop run {run}"):
            self._client.terminate_run(run)

    def link(self, run: str) -> str:
        """The run's page."""
        return f"{self.host}/#/runs/details/{run}"

    def _shown_names(self, run: str, found: Any) -> dict[str, str]:
        """{name of a task in the compiled file, or as it is shown: as it is shown}, of the stages of a run."""
        if run not in self._shown:
            spec, uploaded = found.pipeline_spec, found.pipeline_version_reference
            if not spec and uploaded:  # and started in the UI
                with contextlib.suppress(ApiException):
                    version = self._client.get_pipeline_version(uploaded.pipeline_id, uploaded.pipeline_version_id)
                    spec = version.pipeline_spec
            self._shown[run] = _stages_of((spec or {}).get("pipeline_spec", spec or {}))
        return self._shown[run]

    def _probe(self, ca_file: str | None) -> dict[str, Any]:
        """What the server says of itself; asked here, for kfp's client logs errors and retries."""
        url = f"{self.host}/apis/v2beta1/healthz"
        try:
            answer = requests.get(
                url, headers=self._login.headers(), timeout=TIMEOUT, allow_redirects=False, verify=ca_file or True
            )
        except requests.RequestException as error:
            raise unreachable(url, error) from None
        if answer.is_redirect:
            to = urlsplit(answer.headers["Location"])
            here = urlsplit(self.host)
            if to.scheme == "https" and here.scheme == "http" and to.hostname == here.hostname:
                raise SubmitError(f"host: {self.host} moved to https; set HOST=https{self.host.removeprefix('http')}")
            raise SubmitError(
                f"host: {here.netloc} asks for a login; set DEX_USER and $KFP_PASSWORD, or a token (docs/submit.md)"
            )
        if answer.status_code >= 400:
            raise self._refused(answer.status_code, answer.text, "reach it", probing=True)
        try:
            said = answer.json()
        except requests.JSONDecodeError:
            said = None
        if not isinstance(said, dict):
            raise SubmitError(
                f"host: {url} answers a page and not Kubeflow Pipelines' API; HOST is the address in the browser up to "
                "/#/, and ends with /pipeline on the Kubeflow platform; or it wants a login (docs/submit.md)"
            )
        return said

    def _namespace(self, given: str | None) -> str:
        if given:
            return given
        with contextlib.suppress(OSError):
            return NAMESPACE_OF_POD.read_text(encoding="utf-8").strip()
        raise SubmitError(
            "namespace: none given, and this server has several users; set NAMESPACE to that of your profile"
        )

    def _experiment(self, name: str, make: bool) -> str:
        with contextlib.suppress(ValueError):  # kfp's word for none of that name
            return self._client.get_experiment(experiment_name=name, namespace=self.namespace).experiment_id
        if make:
            return self._client.create_experiment(name, namespace=self.namespace).experiment_id
        listed = self._client.list_experiments(page_size=100, namespace=self.namespace).experiments or []
        names = sorted(experiment.display_name for experiment in listed)
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(names[:10]) or 'none'};"
        raise SubmitError(f"experiment: {name} is not there; {hint} NEW_EXPERIMENT=1 makes it")

    def _in_namespace(self) -> str:
        return f" in namespace {self.namespace}" if self.namespace else ""

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Errors of kfp's client as ours. What it prints is for notebooks."""
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                yield
        except ApiException as error:
            body = error.body.decode(errors="replace") if isinstance(error.body, bytes) else str(error.body or "")
            raise self._refused(error.status or 0, body or str(error.reason), what) from None
        except urllib3.exceptions.HTTPError as error:
            raise unreachable(self.host, error) from None

    def _refused(self, status: int, body: str, what: str, *, probing: bool = False) -> SubmitError:
        """An answer that is an error, in a line. Of the body only the message is shown: headers carry cookies."""
        said = self._login.redact(_message(body))
        if status == 401:
            return SubmitError(
                "login: the server does not take it (401): the token or session has expired, or is for another "
                "cluster; get a new one (docs/submit.md, Logging in)"
            )
        if status == 403:
            return SubmitError(
                f"login: it may not {what} (403){said and f': {said}'}; check NAMESPACE, or ask its owner for the role "
                "kubeflow-edit there"
            )
        if status == 404 and probing:
            return SubmitError(
                f"host: there is no Kubeflow Pipelines at {self.host} (404); HOST is the address in the browser up to "
                "/#/, and ends with /pipeline on the Kubeflow platform"
            )
        if status == 404:
            return SubmitError(f"not there (404), trying to {what}{said and f': {said}'}; check the id and NAMESPACE")
        kind = Unreachable if status >= 500 and (probing or what.startswith("look")) else SubmitError
        return kind(f"the cluster refuses to {what} ({status}){said and f': {said}'}")


def _message(body: str) -> str:
    """What a server says in an error: of JSON the message; of a page, which says nothing, nothing."""
    try:
        content = json.loads(body)
    except ValueError:
        said = "" if body.lstrip().startswith("<") else body
    else:
        said = content.get("message") or content.get("error_message") or content.get("error") or ""
    said = " ".join(str(said).split())
    return said if len(said) <= 300 else said[:297] + "..."


def _stages_of(spec: dict[str, Any]) -> dict[str, str]:
    """Tasks that run a component, whatever loops and conditions they stand in, under both of their names."""
    components = spec.get("components", {})
    names = {
        name: task["taskInfo"]["name"]
        for each in [spec.get("root", {}), *components.values()]
        for name, task in each.get("dag", {}).get("tasks", {}).items()
        if "dag" not in components[task["componentRef"]["name"]]
    }
    return {shown: shown for shown in names.values()} | names


def _too_old(server: dict[str, Any]) -> list[str]:
    """A warning where the server says that it is older than what compiled files need; not all say what they are."""
    version = str(server.get("tag_name") or server.get("apiServerTagName") or "")  # the API's, or the UI's before it
    found = re.match(r"v?(\d+)\.(\d+)\.(\d+)", version)
    if not found or tuple(map(int, found.groups())) >= tuple(map(int, OLDEST_SERVER.split("."))):
        return []
    return [
        f"host: found Kubeflow Pipelines {version}, expected {OLDEST_SERVER} or newer; its driver may fail every task "
        'with `unknown field "optional"`: have it upgraded'
    ]
