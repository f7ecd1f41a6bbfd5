"""`python -m pipelines.submit kubeflow|vertex`: check, compile, submit, follow."""

import argparse
import importlib
import logging
import re
import shlex
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import yaml

from components.images import TABLE
from pipelines import PIPELINES
from pipelines.params import ParameterError
from pipelines.placement.cluster import Profile, ProfileError, load_profile
from pipelines.submit import check
from pipelines.submit.errors import SubmitError
from pipelines.submit.follow import Status, follow


class Platform(Protocol):
    """What `kubeflow.Kubeflow` and `vertex.Vertex` have in common."""

    def status(self, run: str) -> Status: ...
    def stop(self, run: str) -> None: ...
    def link(self, run: str) -> str: ...


def main(arguments: Sequence[str] | None = None) -> int:
    """Submit a pipeline and follow it, or follow or stop a run.

    Returns:
        Exit status: 0; 1 where the run failed; 2 where nothing could be done; 130 after Ctrl-C.
    """
    given = _parser().parse_args(arguments)
    # The clients' own logs show requests, and tracebacks of what is said here in a line.
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    run = given.follow
    platform = None
    try:
        if not (given.follow or given.stop):
            platform, run = _submit(given)
            print(f"submitted: {run}\nlook: {platform.link(run)}", flush=True)
            if not given.wait:
                return 0
        else:
            platform = _connect(given)
        if given.stop:
            platform.stop(given.stop)
            print(f"asked to stop: {given.stop}\nlook: {platform.link(given.stop)}")
            return 0
        return _followed(platform, run, given.every)
    except (ParameterError, SubmitError) as error:
        print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
        if platform and run:
            print(f"not followed any more; the run goes on\n{_how_to_go_on(given, platform, run)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if platform and run:
            print(f"\ninterrupted; the run goes on\n{_how_to_go_on(given, platform, run)}", file=sys.stderr)
        else:
            print("\ninterrupted; see in the list of runs whether it was submitted", file=sys.stderr)
        return 130


def _submit(given: argparse.Namespace) -> tuple[Platform, str]:
    if not given.params:
        raise SubmitError("PARAMS: none given, expected a file of parameters; see examples/")
    from pipelines.placement.local import place

    pipeline = importlib.import_module(f"pipelines.{given.pipeline}").build(place)
    profile = _profile(given)
    arguments, said = check.parameters(given.params, pipeline, profile)
    if given.plan:
        said += check.fits(arguments, profile)
    name = given.name or f"{given.pipeline}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    check.dns_label(name, "name", letter_first=True)
    if given.platform == "kubeflow":
        return _submit_to_kubeflow(given, arguments, name, said)
    return _submit_to_vertex(given, profile, arguments, name, said)


def _profile(given: argparse.Namespace) -> Profile:
    try:
        profile = load_profile(given.profile or f"{given.platform}-l4")
    except ProfileError as error:
        raise SubmitError(str(error)) from error
    if profile.platform != given.platform:
        raise SubmitError(f"profile: {given.profile} is for {profile.platform}, expected one for {given.platform}")
    return profile


def _submit_to_kubeflow(given, arguments: dict[str, Any], name: str, said: list[str]) -> tuple[Platform, str]:
    platform = _connect(given)
    _warn([*said, *platform.warnings])
    with tempfile.TemporaryDirectory(prefix="submit-") as folder:
        run = platform.submit(
            _compiled(given, Path(folder)),
            arguments,
            name,
            experiment=given.experiment,
            new_experiment=given.new_experiment,
            pipeline_root=given.pipeline_root,
            service_account=given.service_account,
        )
    return platform, run


def _submit_to_vertex(
    given, profile: Profile, arguments: dict[str, Any], name: str, said: list[str]
) -> tuple[Platform, str]:
    from pipelines.submit import vertex

    key = given.encryption_key or arguments.get("encryption_spec_key_name")
    # Jobs have an account of their own; what is no job, as the fingerprint of the data, has the run's.
    account = given.service_account or profile.vertex.service_account or None
    vertex.check_settings(
        {
            "project": given.project,
            "location": given.location,
            "pipeline root": given.pipeline_root,
            "service account": account,
            "encryption key": key,
            "network": given.network,
            "tensorboard_resource_id": arguments.get("tensorboard_resource_id"),
        }
    )
    if arguments.get("tensorboard_resource_id") and not account:
        raise SubmitError(
            "tensorboard_resource_id: Vertex AI streams from jobs that have a service account of their own; set "
            "SERVICE_ACCOUNT=, or name it in the profile's vertex.service_account"
        )
    try:
        profile.check_region(given.location)
    except ProfileError as error:
        raise SubmitError(str(error)) from error
    if key:  # the run's own jobs take it from there, whichever way it was given
        arguments = {**arguments, "encryption_spec_key_name": key}
    labels = vertex.labels(given.label)
    platform = _connect(given)
    _warn(said)
    with tempfile.TemporaryDirectory(prefix="submit-") as folder:
        run = platform.submit(
            _compiled(given, Path(folder)),
            arguments,
            name,
            pipeline_root=given.pipeline_root,
            labels=labels,
            service_account=account,
            encryption_key=key,
            network=given.network,
        )
    return platform, run


def _connect(given: argparse.Namespace) -> Any:
    if given.platform == "vertex":
        from pipelines.submit import vertex

        if not given.project or not given.location:
            raise SubmitError("project, location: expected both; set PROJECT= and LOCATION=")
        return vertex.Vertex(given.project, given.location, given.api_endpoint)
    from pipelines.submit import kubeflow, login

    if given.namespace:
        check.dns_label(given.namespace, "namespace")
    host = kubeflow.address(given.host)
    logged_in = login.log_in(
        host,
        token_file=given.token_file,
        dex_user=given.dex_user,
        password_file=given.password_file,
        connector=given.dex_connector or "local",
        ca_file=given.ca_file,
    )
    return kubeflow.Kubeflow(host, logged_in, given.namespace, given.ca_file)


def _compiled(given: argparse.Namespace, folder: Path) -> Path:
    """The file that `make compile` would write, by the same command: images pinned, or refused, in the same way."""
    command = [sys.executable, "-m", "pipelines.compile", "--platform", given.platform, "--out", str(folder)]
    for option in ("images", "registry", "tag", "profile"):
        if getattr(given, option):
            command += [f"--{option}", str(getattr(given, option))]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        lines = ended.stderr.strip().splitlines() or ["pipelines.compile ended without saying why"]
        raise SubmitError(lines[-1].removeprefix("error: "))
    path = folder / given.platform / f"{given.pipeline}.yaml"
    if not given.cache:
        _switch_caching_off(path)
    return path


def _switch_caching_off(path: Path) -> None:
    """For every task, those in loops too: kfp's client would only do so for the others."""
    documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    spec = documents[0]
    for component in [spec["root"], *spec["components"].values()]:
        for task in component.get("dag", {}).get("tasks", {}).values():
            task["cachingOptions"] = {"enableCache": False}
    path.write_text(yaml.safe_dump_all(documents, sort_keys=False), encoding="utf-8")


def _followed(platform: Platform, run: str, every: float) -> int:
    status = follow(lambda: platform.status(run), every, lambda line: print(line, flush=True))
    if status.state == "SUCCEEDED":
        return 0
    for task, said in status.errors.items():
        print(f"{task or 'run'}: {said}", file=sys.stderr)
    failed = [task for task, state in status.tasks.items() if state == "FAILED"]
    where = f" at {', '.join(failed)}" if failed else ""
    print(f"error: the run ended as {status.state.lower()}{where}; logs: {platform.link(run)}", file=sys.stderr)
    return 1


# Options by which a run is found again; none of them is a secret.
_TO_CONNECT = {
    "kubeflow": ("host", "namespace", "token_file", "dex_user", "password_file", "dex_connector", "ca_file"),
    "vertex": ("project", "location", "api_endpoint"),
}


def _how_to_go_on(given: argparse.Namespace, platform: Platform, run: str) -> str:
    command = f"make submit PLATFORM={given.platform}" + "".join(
        f" {name.upper()}={shlex.quote(value)}"
        for name in _TO_CONNECT[given.platform]
        if (value := getattr(given, name))
    )
    run = shlex.quote(run)
    return f"look: {platform.link(run)}\nfollow: {command} FOLLOW={run}\nstop: {command} STOP={run}"


def _warn(said: list[str]) -> None:
    for warning in said:
        print(f"warning: {warning}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipelines.submit", description="Submit a pipeline to a cluster.")
    platforms = parser.add_subparsers(dest="platform", required=True, metavar="PLATFORM")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--params", help="file of pipeline parameters, YAML or JSON")
    common.add_argument("--pipeline", default="rlhf", choices=PIPELINES, help="which pipeline (default: %(default)s)")
    common.add_argument("--images", default=TABLE, type=Path, help="what `make push` wrote (default: %(default)s)")
    common.add_argument("--registry", help="refuse images that were not pushed to this host/path")
    common.add_argument("--tag", help="refuse images that were not pushed with this tag")
    common.add_argument("--profile", help="from pipelines/profiles, or a path (default: <platform>-l4)")
    common.add_argument("--name", help="of the run, a DNS label (default: the pipeline's and the time)")
    common.add_argument("--pipeline-root", help="URI of the folder for outputs")
    common.add_argument("--service-account", help="that the run's pods or jobs act as")
    common.add_argument("--no-plan", dest="plan", action="store_false", help="do not see whether the models fit")
    common.add_argument("--no-cache", dest="cache", action="store_false", help="run every step again")
    common.add_argument("--no-wait", dest="wait", action="store_false", help="end once the run is submitted")
    common.add_argument("--every", type=_seconds, default=15.0, help="seconds between looks (default: %(default)s)")
    instead = common.add_mutually_exclusive_group()
    instead.add_argument("--follow", metavar="RUN", help="submit nothing; follow this run")
    instead.add_argument("--stop", metavar="RUN", help="submit nothing; end this run")

    kubeflow = platforms.add_parser("kubeflow", parents=[common], help="self-hosted Kubeflow Pipelines")
    kubeflow.add_argument("--host", help="address of Kubeflow Pipelines (default in a pod: the cluster's own)")
    kubeflow.add_argument("--namespace", help="of your profile, where the server has several users")
    kubeflow.add_argument("--experiment", help="to put the run in (default: rlhf, made if missing)")
    kubeflow.add_argument("--new-experiment", action="store_true", help="make the experiment if it is missing")
    kubeflow.add_argument("--token-file", help="file with a bearer token (default: $KFP_TOKEN, or the pod's own)")
    kubeflow.add_argument("--dex-user", help="log in to Dex as this user")
    kubeflow.add_argument("--password-file", help="file with the user's password (default: $KFP_PASSWORD)")
    kubeflow.add_argument("--dex-connector", help="Dex's way to log in (default: local)")
    kubeflow.add_argument("--ca-file", help="PEM of the authority that signed the server's certificate")

    vertex = platforms.add_parser("vertex", parents=[common], help="Vertex AI Pipelines")
    vertex.add_argument("--project")
    vertex.add_argument("--location", help="region, such as us-central1")
    vertex.add_argument("--label", action="append", default=[], metavar="NAME=VALUE", help="of the run; repeatable")
    vertex.add_argument("--encryption-key", help="customer-managed key (default: encryption_spec_key_name in PARAMS)")
    vertex.add_argument("--network", help="projects/NUMBER/global/networks/NAME to peer with")
    vertex.add_argument("--api-endpoint", help="of a private endpoint (default: Google's for the region)")
    return parser


def _seconds(text: str) -> float:
    if not re.fullmatch(r"\d+(\.\d+)?", text) or float(text) <= 0:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected seconds, more than 0")
    return float(text)


if __name__ == "__main__":
    sys.exit(main())
