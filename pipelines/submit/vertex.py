"""Runs on Vertex AI Pipelines, through google-cloud-aiplatform."""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import google.auth
import requests
from google.api_core import exceptions as api
from google.auth import exceptions as auth
from google.cloud import aiplatform, storage
from google.protobuf import json_format

from pipelines.submit.errors import SubmitError, Unreachable
from pipelines.submit.follow import Status, by_name

SCOPE = "https://www.googleapis.com/auth/cloud-platform"
LOGIN = "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS to a key file"
TIMEOUT_SECONDS = 60.0

_PATTERNS = {
    "project": (r"([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]|\d+", "a project id such as my-project"),
    "location": (r"[a-z]+-[a-z]+\d+", "a region such as us-central1"),
    "pipeline root": (r"gs://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9](/[^\s?#]*)?", "gs://bucket/folder for the outputs"),
    "service account": (r"[^@\s]+@[^@\s]+\.[^@\s]+", "an address such as name@my-project.iam.gserviceaccount.com"),
    "encryption key": (
        r"projects/[^/]+/locations/(?P<location>[^/]+)/keyRings/[^/]+/cryptoKeys/[^/]+",
        "projects/P/locations/L/keyRings/R/cryptoKeys/K",
    ),
    "network": (r"projects/[^/]+/global/networks/[^/]+", "projects/NUMBER/global/networks/NAME"),
    "tensorboard_resource_id": (
        r"projects/[^/]+/locations/(?P<location>[^/]+)/tensorboards/[^/]+",
        "projects/P/locations/L/tensorboards/T",
    ),
}


def check_settings(settings: dict[str, str | None]) -> None:
    """See that each setting has the shape of what it names, and that regions agree.

    Args:
        settings: By their names in the messages, which are the keys of `_PATTERNS`; one that is not needed may be None.

    Raises:
        SubmitError: One is missing or malformed, or names another region.
    """
    for name in ("project", "location", "pipeline root"):
        if not settings[name]:
            variable = {"pipeline root": "ROOT"}.get(name, name.upper())
            raise SubmitError(f"{name}: none given, expected {_PATTERNS[name][1]}; set {variable}=")
    for name, value in settings.items():
        if not value:
            continue
        pattern, expected = _PATTERNS[name]
        found = re.fullmatch(pattern, value)
        if not found:
            raise SubmitError(f"{name}: found {value!r}, expected {expected}")
        region = found.groupdict().get("location")
        if region and region != settings["location"]:
            raise SubmitError(
                f"{name}: is in {region}, but the run is to be in {settings['location']}; both must be the same"
            )


def labels(given: list[str]) -> dict[str, str]:
    """Labels from "name=value", by Google Cloud's rules.

    Raises:
        SubmitError: One is malformed.
    """
    found = {}
    for label in given:
        name, equals, value = label.partition("=")
        if (
            not equals
            or not re.fullmatch(r"[a-z][a-z0-9_-]{0,62}", name)
            or not re.fullmatch(r"[a-z0-9_-]{0,63}", value)
        ):
            raise SubmitError(
                f"label: found {label!r}, expected name=value of small letters, digits, '_' and '-', up to 63 of each"
            )
        found[name] = value
    return found


class Vertex:
    """One project, one region, the application-default credentials."""

    def __init__(self, project: str, location: str, api_endpoint: str | None = None):
        """Find the credentials; sends nothing yet.

        Args:
            api_endpoint: Of a private endpoint; None: Google's for the region.

        Raises:
            SubmitError: There are no credentials, or they are damaged.
        """
        self.project, self.location = project, location
        with self._explained("log in"):
            self._credentials, _ = google.auth.default(scopes=[SCOPE])
        # REST, not gRPC: it passes through the proxies that companies have, and its errors are HTTP's.
        self._client = aiplatform.gapic.PipelineServiceClient(
            credentials=self._credentials,
            transport="rest",
            client_options={"api_endpoint": api_endpoint or f"{location}-aiplatform.googleapis.com"},
        )
        self._parent = f"projects/{project}/locations/{location}"

    def submit(
        self,
        file: Path,
        arguments: dict[str, Any],
        name: str,
        *,
        pipeline_root: str,
        labels: dict[str, str] | None = None,
        service_account: str | None = None,
        encryption_key: str | None = None,
        network: str | None = None,
    ) -> str:
        """Start a run.

        Args:
            file: Compiled for Vertex.
            arguments: Checked (`check.parameters`).
            name: The run's id, unique in the region.
            pipeline_root: gs:// folder for the outputs; its bucket must be there.

        Returns:
            The run's id.

        Raises:
            SubmitError: The bucket is missing, or Vertex refuses.
        """
        self._check_bucket(pipeline_root)
        with self._explained("start a run"):
            job = aiplatform.PipelineJob(
                display_name=name,
                job_id=name,
                template_path=str(file),
                pipeline_root=pipeline_root,
                parameter_values=arguments,
                encryption_spec_key_name=encryption_key,
                labels=labels or None,
                project=self.project,
                location=self.location,
                credentials=self._credentials,
            ).to_dict()
            # Not by PipelineJob.submit: it makes a bucket that is missing, and asks other APIs about one that is not.
            message = aiplatform.gapic.PipelineJob(service_account=service_account, network=network)
            json_format.ParseDict(job, message._pb)
            self._client.create_pipeline_job(
                parent=self._parent, pipeline_job=message, pipeline_job_id=name, timeout=TIMEOUT_SECONDS, retry=None
            )
        return name

    def status(self, run: str) -> Status:
        """How a run is doing."""
        with self._explained(f"look at run {run}"):
            found = self._client.get_pipeline_job(name=self._name(run), timeout=TIMEOUT_SECONDS, retry=None)
            job = json_format.MessageToDict(found._pb)
        tasks = [
            task
            for task in job.get("jobDetail", {}).get("taskDetails", [])
            if task.get("taskName") and not re.search(r"(^|-)(for-loop|condition)-\d+$", task["taskName"])
        ]
        errors = {task["taskName"]: task["error"]["message"] for task in tasks if task.get("error", {}).get("message")}
        if job.get("error", {}).get("message"):
            errors[""] = job["error"]["message"]
        return Status(
            state=job.get("state", "PENDING").removeprefix("PIPELINE_STATE_"),
            tasks=by_name((task["taskName"], task["state"]) for task in tasks if task.get("state")),
            errors={name: " ".join(said.split()) for name, said in errors.items()},
        )

    def stop(self, run: str) -> None:
        """End a run."""
        with self._explained(f"stop run {run}"):
            self._client.cancel_pipeline_job(name=self._name(run), timeout=TIMEOUT_SECONDS, retry=None)

    def link(self, run: str) -> str:
        """The run's page."""
        return (
            f"https://console.cloud.google.com/vertex-ai/locations/{self.location}/pipelines/runs/{run}"
            f"?project={self.project}"
        )

    def _name(self, run: str) -> str:
        return f"{self._parent}/pipelineJobs/{run}"

    def _check_bucket(self, pipeline_root: str) -> None:
        """A bucket of a mistyped name is not made, as aiplatform would; one that we may not see may still be there."""
        bucket = pipeline_root.removeprefix("gs://").partition("/")[0]
        with self._explained("look at the pipeline root's bucket"), contextlib.suppress(api.Forbidden):
            client = storage.Client(project=self.project, credentials=self._credentials)
            if not client.bucket(bucket).exists(timeout=TIMEOUT_SECONDS, retry=None):
                raise SubmitError(
                    f"pipeline root: there is no bucket {bucket}; make it with "
                    f"`gcloud storage buckets create gs://{bucket} --location={self.location}`"
                )

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Errors of Google's clients as ours."""
        try:
            yield
        except auth.DefaultCredentialsError as error:
            raise SubmitError(f"login: no usable credentials of Google Cloud here; {LOGIN}") from error
        except auth.RefreshError as error:
            raise SubmitError(
                f"login: Google Cloud does not take it any more: it has expired or was revoked; {LOGIN}"
            ) from error
        except (auth.TransportError, requests.RequestException, api.RetryError, api.ServerError) as error:
            raise Unreachable(
                f"Google Cloud does not answer, trying to {what} in {self.location}: {_message(error)}; check the "
                "network, LOCATION and API_ENDPOINT"
            ) from error
        except api.Unauthorized as error:
            raise SubmitError(f"login: Vertex AI does not take it (401): the token has expired; {LOGIN}") from error
        except api.Forbidden as error:
            raise SubmitError(
                f"login: it may not {what} in project {self.project} (403): {_message(error)}; it needs the role "
                "roles/aiplatform.user, and roles/iam.serviceAccountUser on the service account"
            ) from error
        except api.NotFound as error:
            raise SubmitError(
                f"not there (404), trying to {what} in project {self.project}, {self.location}: {_message(error)}; "
                "check PROJECT, LOCATION and the run's id"
            ) from error
        except api.Conflict as error:
            raise SubmitError("name: there is a run of that name already (409); give another NAME") from error
        except api.GoogleAPICallError as error:
            raise SubmitError(f"Vertex AI refuses to {what} ({error.code}): {_message(error)}") from error
        except ValueError as error:
            raise SubmitError(f"aiplatform refuses to {what}: {_message(error)}") from error


def _message(error: Exception) -> str:
    said = getattr(error, "message", None) or str(error)
    with contextlib.suppress(ValueError, TypeError, KeyError):
        said = json.loads(said)["error"]["message"]
    if isinstance(error, requests.RequestException | auth.TransportError):
        said = "connection refused" if "refused" in str(error) else type(error).__name__
    said = re.sub(r"^[A-Z]+ https?://\S+: ", "", " ".join(str(said).split()))
    return said if len(said) <= 300 else said[:297] + "..."
