"""The API of a Kubernetes cluster on loopback, as far as InferenceServices go, and Kubeflow's Model Registry.

Answers have the shape of https://kubernetes.io/docs/reference/generated/kubernetes-api/v1.30/#status-v1-meta; bodies
for the registry are held against the schema that its client was generated from.
"""

import copy
import itertools
import json
import re

import mr_openapi

from tests.http_server import Answer, Request, Service

TOKEN = "pod-token-5f2c9d"
SERVICES = "/apis/serving.kserve.io/v1beta1/namespaces/{}/inferenceservices"
REGISTRY = "/api/model_registry/v1"


class Cluster(Service):
    """Takes one token; `kserve` is whether KServe is installed, `statuses` what a service says, look by look.

    `denied` are verbs that a review of what the account may do denies, besides all where it is not `allowed`.
    """

    def __init__(self, kserve: bool = True, allowed: bool = True):
        super().__init__()
        self.kserve, self.allowed = kserve, allowed
        self.denied: set[str] = set()
        self.namespaces = {"mine"}
        self.services: dict[str, dict] = {}
        self.statuses: list[dict] = [ready()]
        """Of a service, one for each time that somebody looks at one that is there; the last one stays."""

    def answer(self, request: Request) -> Answer:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return status(401, "Unauthorized")
        if request.path == "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews":
            verb = request.json["spec"]["resourceAttributes"]["verb"]
            allowed = self.allowed and verb not in self.denied
            said = {} if allowed else {"reason": "no RBAC policy matched"}
            return Answer(201, {**request.json, "status": {"allowed": allowed, **said}})
        if not self.kserve:
            return Answer(404, "404 page not found\n")
        if request.path == "/apis/serving.kserve.io/v1beta1":
            return Answer(
                200, {"kind": "APIResourceList", "groupVersion": "serving.kserve.io/v1beta1", "resources": []}
            )
        namespace, name = re.fullmatch(SERVICES.format("([^/]+)") + "(?:/([^/]+))?", request.path).groups()
        if not self.allowed:
            return status(403, f'inferenceservices is forbidden: User "sa" cannot act in namespace "{namespace}"')
        match request.method:
            case "POST":
                if namespace not in self.namespaces:
                    return status(404, f'namespaces "{namespace}" not found', name=namespace, kind="namespaces")
                name = request.json["metadata"]["name"]
                return Answer(201, self._keep(namespace, name, request.json, version=1))
            case "GET" if found := self.services.get(f"{namespace}/{name}"):
                said = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
                return Answer(200, {**found, "status": said})
            case "PUT" if found := self.services.get(f"{namespace}/{name}"):
                version = int(found["metadata"]["resourceVersion"])
                if request.json["metadata"]["resourceVersion"] != str(version):
                    return status(409, "the object has been modified")
                return Answer(200, self._keep(namespace, name, request.json, version + 1))
        return status(404, f'inferenceservices "{name}" not found', name=name, kind="inferenceservices")

    def _keep(self, namespace: str, name: str, body: dict, version: int) -> dict:
        assert (body["apiVersion"], body["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
        kept = copy.deepcopy(body)
        kept["metadata"] |= {"namespace": namespace, "resourceVersion": str(version), "finalizers": ["kserve"]}
        self.services[f"{namespace}/{name}"] = kept
        return kept


def ready(url: str = "http://mine.example") -> dict:
    conditions = [{"type": "PredictorReady", "status": "True"}, {"type": "Ready", "status": "True"}]
    return {"url": url, "conditions": conditions, "modelStatus": {"transitionStatus": "UpToDate"}}


def unready(reason: str, message: str, transition: str = "InProgress", /, **failure: str) -> dict:
    conditions = [
        {"type": "PredictorReady", "status": "False", "reason": reason, "message": message},
        {"type": "Ready", "status": "False", "reason": reason},
    ]
    return {"conditions": conditions, "modelStatus": {"transitionStatus": transition, "lastFailureInfo": failure}}


def status(code: int, message: str, /, **details: str) -> Answer:
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}
    return Answer(code, {**body, **({"details": details} if details else {})})


class Registry(Service):
    """Kubeflow's Model Registry: what was entered stands in `entered`, by path."""

    def __init__(self):
        super().__init__()
        self.entered: dict[str, list[dict]] = {}
        self._ids = itertools.count(1)

    def answer(self, request: Request) -> Answer:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return Answer(401, {"code": "401", "message": "who are you"})
        path = request.path.removeprefix(REGISTRY)
        if request.method == "POST":
            kinds = {"registered_models": "RegisteredModelCreate", "model_versions": "ModelVersionCreate"}
            kind = getattr(mr_openapi, kinds.get(path.strip("/"), "Artifact"))
            kind.from_json(request.body.decode())  # the published schema
            entry = {**request.json, "id": str(next(self._ids)), "createTimeSinceEpoch": "1", "state": "LIVE"}
            self.entered.setdefault(path, []).append(entry)
            return Answer(201, entry)
        if request.method == "PATCH" and (found := re.fullmatch(r"/model_artifacts/(\d+)", path)):
            mr_openapi.ModelArtifactUpdate.from_json(request.body.decode())
            (entry,) = [each for kept in self.entered.values() for each in kept if each["id"] == found[1]]
            entry |= request.json
            return Answer(200, entry)
        singular = {"/registered_model": "/registered_models", "/model_version": "/model_versions"}
        if path in singular:
            wanted = [("name", request.query.get("name")), ("registeredModelId", request.query.get("parentResourceId"))]
            for entry in self.entered.get(singular[path], []):
                if all(entry.get(key) == value for key, value in wanted if value):
                    return Answer(200, entry)
            return Answer(404, {"code": "404", "message": "not found"})
        if path in ("/artifact", "/model_artifact"):
            kept = self.entered.get(f"/model_versions/{request.query['parentResourceId']}/artifacts")
            return Answer(200, kept[0]) if kept else Answer(404, {"code": "404", "message": "not found"})
        if path in ("/registered_models", *self.entered) or path.endswith("/artifacts"):
            items = self.entered.get(path, [])
            return Answer(200, {"items": items, "nextPageToken": "", "pageSize": len(items), "size": len(items)})
        return Answer(404, {"code": "404", "message": f"{request.path} not found"})


def kubeconfig(url: str, namespace: str = "mine", token: str = TOKEN) -> str:
    """The file that KUBECONFIG names."""
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": url}}],
            "users": [{"name": "u", "user": {"token": token}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": namespace}}],
        }
    )
