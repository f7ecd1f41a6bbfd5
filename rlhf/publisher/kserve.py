"""A published model as an InferenceService of KServe, by the API of the cluster that this runs in."""

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import urllib3
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from pydantic import Field

from rlhf.config import StageConfig
from rlhf.errors import ConfigError, ModelError, RlhfError
from rlhf.progress import say

STAGE = "kserve"
GROUP, VERSION, PLURAL = "serving.kserve.io", "v1beta1", "inferenceservices"
MANAGED_BY = {"app.kubernetes.io/managed-by": "rlhf-pipeline"}

_POLL_SECONDS = 5.0
_SETTLE_SECONDS = 15.0
_FAILING_SECONDS = 180.0
_REQUEST_SECONDS = 60.0
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class ServingError(RlhfError):
    """The cluster does not serve the model; the message is one line."""


class KServeConfig(StageConfig):
    """An InferenceService; the fields are those of `kubernetes.kserve` in a profile, which describes them."""

    name: str = Field("", pattern=r"^$|^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$")
    namespace: str = ""
    runtime: str = ""
    args: list[str] = Field([])
    service_account: str = ""
    accelerator: str = "nvidia.com/gpu"
    count: int = Field(1, ge=0)
    cpu: int = Field(4, ge=1)
    memory: str = "24Gi"
    min_replicas: int = Field(1, ge=0)
    node_selector: dict[str, str] = Field({})
    tolerations: list[dict[str, Any]] = Field([])
    wait_minutes: int = Field(30, ge=1)
    volumes: dict[str, str] = Field(
        {}, description="{where pods have a volume: pvc:// URI of that}, for what is published to a volume."
    )


class Cluster:
    """The cluster that this pod is in, or that KUBECONFIG names."""

    def __init__(self, config: KServeConfig):
        """Find the way in; asks nothing yet.

        Raises:
            ServingError: There is none.
        """
        self._api = client.CustomObjectsApi(_connection())
        self._config = config
        self.namespace = config.namespace or _own_namespace()

    def check(self) -> None:
        """See that KServe is here and that `apply` may do all that it does, so that nobody trains a model in vain.

        Raises:
            ServingError: One of them is not so.
        """
        with self._explained("look for KServe"):
            self._api.get_api_resources(GROUP, VERSION, _request_timeout=_REQUEST_SECONDS)
        access = client.AuthorizationV1Api(self._api.api_client)
        for verb in ("get", "create", "update"):
            asked = client.V1ResourceAttributes(group=GROUP, resource=PLURAL, verb=verb, namespace=self.namespace)
            spec = client.V1SelfSubjectAccessReviewSpec(resource_attributes=asked)
            with self._explained("ask what this account may do"):
                answer = access.create_self_subject_access_review(
                    client.V1SelfSubjectAccessReview(spec=spec), _request_timeout=_REQUEST_SECONDS
                )
            if not answer.status.allowed:
                raise ServingError(self._forbidden(f"{verb} InferenceServices", answer.status.reason or ""))

    def apply(self, service: dict[str, Any]) -> None:
        """Make an InferenceService, or bring the one of that name up to date.

        Raises:
            ServingError: KServe is not here, does not want it, or there is one of that name that is somebody else's.
        """
        name = service["metadata"]["name"]
        where = (GROUP, VERSION, self.namespace, PLURAL)
        with self._explained(f"look for InferenceService {name}"):
            try:
                found = self._api.get_namespaced_custom_object(*where, name, _request_timeout=_REQUEST_SECONDS)
            except ApiException as error:
                if error.status != 404 or not _status(error).get("details"):
                    raise
                found = None
        if found is None:
            with self._explained(f"create InferenceService {name}"):
                self._api.create_namespaced_custom_object(*where, service, _request_timeout=_REQUEST_SECONDS)
            say(STAGE, f"created InferenceService {name} in {self.namespace}")
            return
        if not MANAGED_BY.items() <= found["metadata"].get("labels", {}).items():
            raise ServingError(
                f"InferenceService {name} in {self.namespace} is not this pipeline's; take another name in the "
                "profile's kubernetes.kserve.name or model_display_name, or delete it"
            )
        # Its spec is replaced rather than patched: what a profile does not say any more is to go.
        with self._explained(f"replace InferenceService {name}"):
            self._api.replace_namespaced_custom_object(
                *where, name, {**found, "spec": service["spec"]}, _request_timeout=_REQUEST_SECONDS
            )
        say(STAGE, f"replaced InferenceService {name} in {self.namespace}")
        # KServe's status has no generation of its own: until it has looked, it still says what was.
        time.sleep(_SETTLE_SECONDS)

    def wait(self, name: str) -> str:
        """Wait until a service is ready, for `wait_minutes` at most.

        Returns:
            Its URL.

        Raises:
            ServingError: It cannot become ready, or has not; the message has what KServe says of it.
        """
        deadline = time.monotonic() + self._config.wait_minutes * 60
        said, failing_since = "", None
        while True:
            status = self._look(name).get("status") or {}
            conditions = {each["type"]: each for each in status.get("conditions", [])}
            transition = status.get("modelStatus", {}).get("transitionStatus", "")
            if conditions.get("Ready", {}).get("status") == "True" and transition in ("", "UpToDate"):
                return status.get("url", "")
            why, now = _why_not_ready(status, conditions), time.monotonic()
            failing_since = (failing_since or now) if transition == "BlockedByFailedLoad" else None
            # A load that failed is tried again, and a store may have had a bad moment.
            if transition == "InvalidSpec" or (failing_since and now - failing_since >= _FAILING_SECONDS):
                raise ServingError(f"InferenceService {name} in {self.namespace} cannot become ready: {why}")
            if now > deadline:
                raise ServingError(
                    f"InferenceService {name} in {self.namespace} is not ready after {self._config.wait_minutes} "
                    f"minutes: {why}; it is left as it is: `kubectl describe inferenceservice {name} "
                    f"-n {self.namespace}`"
                )
            if why != said:
                say(STAGE, f"waiting for {name}: {why}")
                said = why
            time.sleep(_POLL_SECONDS)

    def _look(self, name: str) -> dict[str, Any]:
        with self._explained(f"look at InferenceService {name}"):
            return self._api.get_namespaced_custom_object(
                GROUP, VERSION, self.namespace, PLURAL, name, _request_timeout=_REQUEST_SECONDS
            )

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Errors of the API server as ours."""
        try:
            yield
        except ApiException as error:
            said = _message(error)
            if error.status == 401:
                raise ServingError(
                    f"the cluster does not take this pod's token (401), trying to {what}; it needs a service account "
                    "whose token is mounted"
                ) from error
            if error.status == 403:
                raise ServingError(self._forbidden(what, said)) from error
            if error.status == 404 and not _status(error).get("details"):
                raise ServingError(
                    f"this cluster has no KServe ({GROUP}/{VERSION} is not served); install KServe, or leave "
                    "deploy_model off"
                ) from error
            if error.status == 404:
                raise ServingError(f"not there, trying to {what} in {self.namespace}: {said}") from error
            if error.status == 409:
                raise ServingError(f"somebody else has just changed it, trying to {what}: {said}; retry") from error
            raise ServingError(f"the cluster refuses to {what} in {self.namespace} ({error.status}): {said}") from error
        except urllib3.exceptions.HTTPError as error:
            reason = getattr(error, "reason", None) or error
            raise ServingError(
                f"the cluster's API does not answer, trying to {what}: {type(reason).__name__}"
            ) from error

    def _forbidden(self, what: str, said: str) -> str:
        return (
            f"this pod's service account may not {what} in namespace {self.namespace} (403){': ' if said else ''}"
            f"{said}; it needs a Role with get, create and update on {PLURAL}.{GROUP}"
        )


def inference_service(config: KServeConfig, name: str, uri: str) -> dict[str, Any]:
    """The manifest: the Hugging Face runtime, which serves by vLLM where that knows the model.

    https://kserve.github.io/website/docs/model-serving/generative-inference/overview

    Args:
        name: Of the service, and of the model in requests.
        uri: Folder that the model is in, as KServe's storage initializer takes it.
    """
    limits: dict[str, str] = {"cpu": str(config.cpu), "memory": config.memory}
    tolerations = list(config.tolerations)
    if config.count:
        limits[config.accelerator] = str(config.count)
        tolerations.insert(0, {"key": config.accelerator, "operator": "Exists", "effect": "NoSchedule"})
    model: dict[str, Any] = {
        "modelFormat": {"name": "huggingface"},
        "args": [f"--model_name={name}", *config.args],
        "storageUri": uri,
        "resources": {"requests": dict(limits), "limits": limits},
    }
    if config.runtime:
        model["runtime"] = config.runtime
    predictor: dict[str, Any] = {"minReplicas": config.min_replicas, "model": model}
    for key, value in (
        ("serviceAccountName", config.service_account),
        ("nodeSelector", config.node_selector),
        ("tolerations", tolerations),
    ):
        if value:
            predictor[key] = value
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "InferenceService",
        "metadata": {"name": name, "labels": dict(MANAGED_BY)},
        "spec": {"predictor": predictor},
    }


def service_name(given: str, display_name: str) -> str:
    """A DNS label of RFC 1035, which the host name of a service must be.

    Raises:
        ConfigError: Nothing of the model's name can be in one.
    """
    if given:
        return given
    name = re.sub(r"[^a-z0-9]+", "-", display_name.lower()).lstrip("-0123456789")[:50].rstrip("-")
    if not name:
        raise ConfigError(
            f"model_display_name: found {display_name!r}, of which no name of a service can be made; expected letters "
            "of a to z, or a name in the profile's kubernetes.kserve.name"
        )
    return name


def storage_uri(published_to: str, volumes: dict[str, str]) -> str:
    """A published folder as KServe's storage initializer takes it.

    Args:
        published_to: The publisher's `publish_to`.
        volumes: {mount path: pvc://claim or pvc://claim/folder}.

    Raises:
        ModelError: A folder of one pod alone.
    """
    uri = published_to.rstrip("/")
    scheme, found, rest = uri.partition("://")
    if found and scheme != "file":
        return {"gcs": "gs", "s3a": "s3"}.get(scheme, scheme) + "://" + rest
    path = f"/{rest.lstrip('/')}" if found else uri
    for mount, claim in sorted(volumes.items(), key=lambda item: -len(item[0])):
        if path == mount.rstrip("/") or path.startswith(f"{mount.rstrip('/')}/"):
            return claim.rstrip("/") + path[len(mount.rstrip("/")) :]
    raise ModelError(
        f"publish_to: found {published_to!r}, which only the publisher's pod can read; expected gs:// or s3://, or a "
        "folder on one of the profile's kubernetes.volumes"
    )


def _connection() -> client.ApiClient:
    settings = client.Configuration()
    try:
        config.load_incluster_config(client_configuration=settings)
    except config.ConfigException:
        try:
            config.load_kube_config(_kubeconfig(), client_configuration=settings)
        except (config.ConfigException, OSError) as error:
            raise ServingError(
                "no cluster here: found neither a pod's service account nor KUBECONFIG; deploy_model is for Kubernetes"
            ) from error
    settings.retries = urllib3.Retry(total=5, backoff_factor=0.5, status_forcelist=(429, 500, 502, 503, 504),
                                     allowed_methods=None, raise_on_status=False)  # fmt: skip
    return client.ApiClient(settings)


def _own_namespace() -> str:
    if _NAMESPACE_FILE.is_file():
        return _NAMESPACE_FILE.read_text(encoding="utf-8").strip()
    _, current = config.list_kube_config_contexts(_kubeconfig())
    return current["context"].get("namespace") or "default"


def _kubeconfig() -> str | None:
    return os.environ.get("KUBECONFIG")  # which the client read when it was imported


def _status(error: ApiException) -> dict[str, Any]:
    """What the API server says; of an API that is not there, it says only `404 page not found`."""
    with suppress(ValueError, TypeError):
        said = json.loads(error.body)
        if isinstance(said, dict):
            return said
    return {}


def _message(error: ApiException) -> str:
    said = " ".join(str(_status(error).get("message") or error.reason).split())
    return said if len(said) <= 300 else said[:297] + "..."


def _why_not_ready(status: dict[str, Any], conditions: dict[str, dict[str, Any]]) -> str:
    """What KServe says, the most telling first: the failed load, then the first condition that is false."""
    failure = status.get("modelStatus", {}).get("lastFailureInfo") or {}
    if failure.get("message") or failure.get("reason"):
        return " ".join(f"{failure.get('reason', '')}: {failure.get('message', '')}".strip(": ").split())
    wrong = [each for each in conditions.values() if each.get("status") == "False"]
    wrong.sort(key=lambda each: each["type"] == "Ready")
    if wrong:
        first = wrong[0]
        return " ".join(f"{first['type']}: {first.get('reason', '')} {first.get('message', '')}".split())
    return "KServe has not said anything of it yet" if not conditions else "its pods are starting"
