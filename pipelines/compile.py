"""Compile the pipelines for clusters: `python -m pipelines.compile --registry R --tag T`."""

import argparse
import importlib
import sys
from pathlib import Path

from kfp import compiler

from components.images import ImageError, cluster_images
from pipelines import PIPELINES
from pipelines.placement import kubeflow, vertex
from pipelines.placement.cluster import Profile, ProfileError, load_profile

PLACEMENTS = {"kubeflow": kubeflow.placement, "vertex": vertex.placement}


def compile_pipelines(profile: Profile, images: dict[str, str], out: Path) -> list[Path]:
    """Write every pipeline as `<out>/<platform>/<pipeline>.yaml`.

    Args:
        profile: Where and how large.
        images: {stage: image}, from `components.images.cluster_images`.
        out: Folder, made if missing.
    """
    place = PLACEMENTS[profile.platform](profile, images)
    paths = []
    for name in PIPELINES:
        path = out / profile.platform / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        compiler.Compiler().compile(importlib.import_module(f"pipelines.{name}").build(place), str(path))
        paths.append(path)
    return paths


def main() -> int:
    """Compile and name the files.

    Returns:
        Exit status: 0, or 2 when registry, tag or profile cannot be used.
    """
    parser = argparse.ArgumentParser(prog="python -m pipelines.compile", description="Compile the pipelines.")
    parser.add_argument("--platform", choices=[*PLACEMENTS, "all"], default="all")
    parser.add_argument("--profile", help="from pipelines/profiles, or a path (default: <platform>-l4)")
    parser.add_argument("--registry", help="where the images were pushed, host/path")
    parser.add_argument("--tag", help="the tag that the images were pushed with")
    parser.add_argument("--out", default="build", type=Path, help="default: %(default)s")
    given = parser.parse_args()
    try:
        images = cluster_images(given.registry, given.tag)
        platforms = list(PLACEMENTS) if given.platform == "all" else [given.platform]
        profiles = [load_profile(given.profile or f"{platform}-l4") for platform in platforms]
        if given.profile:
            profiles = profiles[:1]
            if profiles[0].platform not in platforms:
                raise ProfileError(
                    f"profile: {given.profile} is for {profiles[0].platform}, expected one for {given.platform}"
                )
    except (ImageError, ProfileError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for profile in profiles:
        for path in compile_pipelines(profile, images, given.out):
            print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
