"""Vertex AI Pipelines on loopback: the part of its v1 REST API that submitting needs, and a bucket of Cloud Storage.

Requests are held against the API's published schema: a body becomes the API's own message, or is refused.
"""

import re

from google.auth import jwt
from google.cloud.aiplatform_v1.types import PipelineJob
from google.protobuf import json_format

from tests.http_server import Answer, Request, Service

ACCESS_TOKEN = "ya29.secret-access-token"
PARENT = "/v1/projects/my-project/locations/europe-west4"


class VertexServer(Service):
    """Takes requests signed with the key of `certificate`, for `bucket`."""

    def __init__(self, certificate: bytes, bucket: str = "bucket"):
        super().__init__()
        self._certificate, self.bucket = certificate, bucket
        self.jobs: dict[str, PipelineJob] = {}
        self.states = ["PIPELINE_STATE_SUCCEEDED"]
        """Of a run, one for each time that somebody looks; the last one stays."""
        self.tasks: dict[str, str] = {}

    def answer(self, request: Request) -> Answer:
        if request.path == "/token":
            self._issuer(request.form["assertion"])
            return Answer(200, {"access_token": ACCESS_TOKEN, "expires_in": 3600, "token_type": "Bearer"})
        token = request.headers["Authorization"].removeprefix("Bearer ")
        if token != ACCESS_TOKEN:  # else signed by the account itself, as Google's APIs take it, too
            self._issuer(token)
        if match := re.fullmatch(r"/storage/v1/b/([^/]+)", request.path):
            return Answer(200, {"name": match[1]}) if match[1] == self.bucket else _error(404, "no bucket")
        jobs = f"{PARENT}/pipelineJobs"
        if (request.method, request.path) == ("POST", jobs):
            job = json_format.ParseDict(request.json, PipelineJob()._pb)
            name = f"{jobs.removeprefix('/v1/')}/{request.query['pipelineJobId']}"
            if name in self.jobs:
                return _error(409, "already exists")
            job.name = name
            self.jobs[name] = PipelineJob(job)
            return Answer(200, json_format.MessageToDict(job))
        name = request.path.removeprefix("/v1/").removesuffix(":cancel")
        if name not in self.jobs:
            return _error(404, f"{name} not found")
        if request.path.endswith(":cancel"):
            return Answer()
        body = json_format.MessageToDict(self.jobs[name]._pb)
        body["state"] = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        body["jobDetail"] = {"taskDetails": [{"taskName": n, "state": s} for n, s in self.tasks.items()]}
        if body["state"].endswith("FAILED"):
            body["error"] = {"code": 9, "message": "The replica ran out of memory."}
        json_format.ParseDict(body, PipelineJob()._pb)
        return Answer(200, body)

    def _issuer(self, token: str) -> None:
        claims = jwt.decode(token, certs=self._certificate, audience=None)
        assert claims["iss"] == "submitter@my-project.iam.gserviceaccount.com"


def _error(status: int, message: str) -> Answer:
    return Answer(status, {"error": {"code": status, "message": message}})
