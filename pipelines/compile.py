"""Compile the pipelines for clusters, with the images that were pushed: `python -m pipelines.compile`."""

import argparse
import importlib
import sys
from pathlib import Path

from kfp import compiler

from components.images import TABLE, ImageError, pinned_images
from pipelines import PIPELINES
from pipelines.placement import kubeflow, vertex
from pipelines.placement.cluster import Profile, ProfileError, load_profile

PLACEMENTS = {"kubeflow": kubeflow, "vertex": vertex}


def compile_pipelines(profile: Profile, images: dict[str, str], out: Path) -> list[Path]:
    """Write every pipeline as `<out>/<platform>/<pipeline>.yaml`.

    Args:
        profile: Where and how large.
        images: {stage: image}, from `components.images.pinned_images`.
        out: Folder, made if missing.
    """
    platform = PLACEMENTS[profile.platform]
    place = platform.placement(profile, images)
    paths = []
    for name in PIPELINES:
        path = out / profile.platform / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        pipeline = importlib.import_module(f"pipelines.{name}").build(place)
        compiler.Compiler().compile(platform.finish(pipeline, profile), str(path))
        paths.append(path)
    return paths


class UploadError(Exception):
    """A registry of templates did not take a pipeline; the message is one line."""


def upload_templates(host: str, paths: list[Path], tag: str | None) -> None:
    """Upload the pipelines for Vertex, which are one document each, to a registry of KFP templates.

    Args:
        host: "https://<location>-kfp.pkg.dev/<project>/<repository>".
        paths: What `compile_pipelines` wrote.
        tag: Of the uploaded versions.

    Raises:
        UploadError: The registry is not there, or does not take one.
    """
    from google.auth.exceptions import GoogleAuthError
    from kfp.registry import RegistryClient
    from requests import RequestException

    try:
        client = RegistryClient(host=host)
        for path in paths:
            name, version = client.upload_pipeline(str(path), tags=[tag] if tag else None)
            print(f"{host}/{name}/{version}")
    except (GoogleAuthError, RequestException) as error:
        said = " ".join(str(error).split())[:200]
        raise UploadError(f"templates: {host} did not take the pipelines: {said}") from None


def main() -> int:
    """Compile and name the files.

    Returns:
        Exit status: 0, or 2 when images or profile cannot be used, or a registry does not take the templates.
    """
    parser = argparse.ArgumentParser(prog="python -m pipelines.compile", description="Compile the pipelines.")
    parser.add_argument("--platform", choices=[*PLACEMENTS, "all"], default="all")
    parser.add_argument("--profile", help="from pipelines/profiles, or a path (default: <platform>-l4)")
    parser.add_argument("--images", default=TABLE, type=Path, help="what `make push` wrote (default: %(default)s)")
    parser.add_argument("--registry", help="refuse images that were not pushed to this host/path")
    parser.add_argument("--tag", help="refuse images that were not pushed with this tag")
    parser.add_argument(
        "--templates", help="also upload those for Vertex to this registry of KFP templates, with the tag"
    )
    parser.add_argument("--location", help="refuse a profile for Vertex whose accelerators this region has not")
    parser.add_argument("--out", default="build", type=Path, help="default: %(default)s")
    given = parser.parse_args()
    try:
        images = pinned_images(given.images, given.registry, given.tag)
        platforms = list(PLACEMENTS) if given.platform == "all" else [given.platform]
        profiles = [load_profile(given.profile or f"{platform}-l4") for platform in platforms]
        if given.profile:
            profiles = profiles[:1]
            if profiles[0].platform not in platforms:
                raise ProfileError(
                    f"profile: {given.profile} is for {profiles[0].platform}, expected one for {given.platform}"
                )
        for profile in profiles:
            if given.location:
                profile.check_region(given.location)
    except (ImageError, ProfileError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for profile in profiles:
        paths = compile_pipelines(profile, images, given.out)
        for path in paths:
            print(path)
        if given.templates and profile.platform == "vertex":
            try:
                upload_templates(given.templates, paths, given.tag)
            except UploadError as error:
                print(f"error: {error}", file=sys.stderr)
                return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
