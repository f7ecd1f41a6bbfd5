"""Kubeflow Pipelines on loopback: the part of its v2beta1 REST API that submitting needs, and Dex before it.

Requests are held against the API's published schema, as kfp_server_api was generated from it; so are the answers.
"""

import json
import uuid

import kfp_server_api
from google.protobuf import json_format
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec, PlatformSpec

from tests.http_server import Answer, Request, Service

API = "/apis/v2beta1"
SESSION = "session-5f2c9d"
# Nodes of a workflow that are no tasks of the pipeline, by the names that the server gives them.
ARGO_NODES = [
    *("rft-7k2mn", "root", "root-driver", "ppo-trainer-driver", "executor", "executor(0)", "executor(1)"),
    *("for-loop-2", "for-loop-2-driver", "iteration-item", "iteration-iterations", "iteration-iterations(0:0)"),
    *("condition-1", "condition-branches-1"),
]
USER, PASSWORD = "user@example.com", "correct horse"


class KubeflowServer(Service):
    """With `token`, it takes that bearer token only; with `dex`, a session of Dex only."""

    def __init__(self, *, token: str | None = None, dex: bool = False, multi_user: bool = False):
        super().__init__()
        self.token, self.dex, self.multi_user = token, dex, multi_user
        self.experiments = {"Default": "exp-default"}
        self.runs: dict[str, dict] = {}
        self.states = ["SUCCEEDED"]
        """Of a run, one for each time that somebody looks; the last one stays."""
        self.tasks: dict[str, str | list[str]] = {}
        """States, by name in the compiled file; of a task in a loop, one for each time round."""
        self.version = "2.17.0"

    def answer(self, request: Request) -> Answer:
        if self.dex and not request.path.startswith(API):
            return self._log_in(request)
        if self.dex and f"authservice_session={SESSION}" not in request.headers.get("Cookie", ""):
            return Answer(302, "", [("Location", "/dex/auth?client_id=kubeflow")])
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return Answer(401, {"error": f"token {request.headers.get('Authorization')} not taken", "code": 16})
        match request.method, request.path.removeprefix(API).split("/")[1:]:
            case "GET", ["healthz"]:
                # The server writes this one by hand: the schema has less.
                return Answer(200, {"commit_sha": "1f2e", "tag_name": self.version, "multi_user": self.multi_user})
            case "GET", ["experiments"]:
                return self._list_experiments(request)
            case "POST", ["experiments"]:
                body = _checked("V2beta1Experiment", request.json)
                self.experiments[body["display_name"]] = f"exp-{body['display_name']}"
                return _as("V2beta1Experiment", {**body, "experiment_id": f"exp-{body['display_name']}"})
            case "POST", ["runs"]:
                return self._create_run(request)
            case "GET", ["runs", run] if run in self.runs:
                return self._run(run)
            case "POST", ["runs", terminated] if terminated.removesuffix(":terminate") in self.runs:
                self.runs[terminated.removesuffix(":terminate")]["state"] = "CANCELING"
                return Answer()
        return Answer(404, {"error": "Not Found", "code": 5, "message": f"{request.path} not found"})

    def _list_experiments(self, request: Request) -> Answer:
        wanted = [p["stringValue"] for p in json.loads(request.query.get("filter", "{}")).get("predicates", [])]
        found = [
            {"experiment_id": id, "display_name": name}
            for name, id in self.experiments.items()
            if not wanted or name in wanted
        ]
        return _as("V2beta1ListExperimentsResponse", {"experiments": found, "total_size": len(found)})

    def _create_run(self, request: Request) -> Answer:
        body = _checked("V2beta1Run", request.json)
        spec = body["pipeline_spec"]
        json_format.ParseDict(spec.get("pipeline_spec", spec), PipelineSpec())
        json_format.ParseDict(spec.get("platform_spec", {}), PlatformSpec())
        if body["experiment_id"] not in self.experiments.values():
            return Answer(404, {"error": "Not Found", "code": 5, "message": "experiment not found"})
        run = str(uuid.uuid4())
        self.runs[run] = body
        return _as("V2beta1Run", {"run_id": run, "display_name": body["display_name"], "state": "PENDING"})

    def _run(self, run: str) -> Answer:
        state = self.runs[run].get("state") or (self.states.pop(0) if len(self.states) > 1 else self.states[0])
        details = [
            {"display_name": name, "state": each}
            for name, of_task in self.tasks.items()
            for each in ([of_task] if isinstance(of_task, str) else of_task)
        ]
        details += [{"display_name": name, "state": "RUNNING"} for name in ARGO_NODES]
        failed = {"error": {"code": 13, "message": "ppo-trainer: out of memory"}} if state == "FAILED" else {}
        return _as(
            "V2beta1Run",
            {
                **{"run_id": run, "display_name": "x", "state": state, "run_details": {"task_details": details}},
                **{name: value for name, value in self.runs[run].items() if name.startswith("pipeline_")},
                **failed,
            },
        )

    def _log_in(self, request: Request) -> Answer:
        """The walk from Kubeflow's gateway through Dex and back, as the browser is led."""
        match request.method, request.path:
            case "GET", "/pipeline" if "authservice_session" not in request.headers.get("Cookie", ""):
                return Answer(302, "", [("Location", "/dex/auth?client_id=kubeflow")])
            case "GET", "/dex/auth":
                return Answer(200, "<a href='/dex/auth/local'>Email</a><a href='/dex/auth/ldap'>LDAP</a>")
            case "GET", "/dex/auth/local":
                return Answer(302, "", [("Location", "/dex/auth/local/login?state=abc")])
            case "GET", "/dex/auth/local/login":
                return Answer(200, "<form method=post>")
            case "POST", "/dex/auth/local/login":
                if request.form != {"login": USER, "password": PASSWORD}:
                    return Answer(200, "<form method=post>Invalid Email Address and password")
                return Answer(303, "", [("Location", "/dex/approval?req=abc")])
            case "GET", "/dex/approval":
                return Answer(200, "<form method=post>Grant Access")
            case "POST", "/dex/approval" if request.form == {"approval": "approve"}:
                return Answer(303, "", [("Location", "/authservice/oidc/callback?code=1")])
            case "GET", "/authservice/oidc/callback":
                cookie = ("Set-Cookie", f"authservice_session={SESSION}; Path=/")
                return Answer(302, "", [("Location", "/pipeline"), cookie])
            case "GET", "/pipeline":
                return Answer(200, "<title>Kubeflow</title>")
        if request.path.startswith(f"/pipeline{API}"):
            inner = Request(
                request.method, request.path.removeprefix("/pipeline"), request.query, request.headers, request.body
            )
            return self.answer(inner)
        return Answer(404, "not found")


def _checked(model: str, body: dict) -> dict:
    """The body, of which every field is one of the schema's."""
    known = getattr(kfp_server_api, model).attribute_map.values()
    assert set(body) <= set(known), set(body) - set(known)
    return body


def _as(model: str, body: dict) -> Answer:
    return Answer(200, _checked(model, body))
