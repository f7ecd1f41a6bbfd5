"""Make and check what a release publishes: `python -m pipelines.release`, after `make push`.

Components and pipelines as files that others load by address (`kfp.components.load_component_from_url`), with the
images that were pushed, by digest.
"""

import argparse
import copy
import hashlib
import importlib
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from kfp import compiler, components

from components.images import STAGES, TABLE, ImageError, pinned_images
from pipelines.compile import PLACEMENTS, compile_pipelines
from pipelines.placement.cluster import load_profile

ROOT = Path(__file__).parents[1]


class ReleaseError(Exception):
    """Something is not ready to be released; the message is one line that says what to do."""


def check_version(project: Path, changelog: Path, tags: list[str]) -> str:
    """The version that is to be released.

    Args:
        project: pyproject.toml.
        changelog: CHANGELOG.md, in the format of Keep a Changelog.
        tags: Of releases that there are.

    Raises:
        ReleaseError: The version is no plain one, is released already, or has no section in the changelog; or changes
            are still listed as unreleased.
    """
    version = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"]
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise ReleaseError(f"version: found {version!r} in {project.name}, expected three numbers such as 0.2.0")
    if f"v{version}" in tags:
        raise ReleaseError(f"version: {version} has a tag v{version}; raise it in {project.name}")
    sections = re.split(r"^## ", changelog.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    for section in sections:
        title, _, text = section.partition("\n")
        if title.startswith("[Unreleased]") and text.strip():
            raise ReleaseError(
                f"{changelog.name}: has unreleased changes; move them under `## [{version}] - YYYY-MM-DD`"
            )
    newest = next((section for section in sections if not section.startswith("[Unreleased]")), "")
    if not re.match(rf"\[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d\n", newest):
        found = newest.partition("\n")[0] or "none"
        raise ReleaseError(
            f"{changelog.name}: its newest section is {found}; write `## [{version}] - YYYY-MM-DD` with what changed"
        )
    if not newest.partition("\n")[2].strip():
        raise ReleaseError(f"{changelog.name}: the section of {version} is empty; say what changed")
    return version


def write(images: dict[str, str], out: Path) -> list[Path]:
    """Write components and pipelines into `out`, which is emptied first, and their digests as SHA256SUMS.

    Args:
        images: {stage: image}, from `components.images.pinned_images`.

    Returns:
        The files, each of which `kfp.components.load_component_from_file` loads.

    Raises:
        ReleaseError: One is not loaded.
    """
    shutil.rmtree(out, ignore_errors=True)
    (out / "components").mkdir(parents=True)
    paths = []
    for stage in STAGES:
        path = out / "components" / f"{stage}.yaml"
        compiler.Compiler().compile(_component(stage, images[stage]), str(path))
        paths.append(path)
    for platform in PLACEMENTS:
        paths += compile_pipelines(load_profile(f"{platform}-l4"), images, out)
    for path in paths:
        try:
            components.load_component_from_file(str(path))
        except Exception as error:  # whatever KFP raises, its users would see
            raise ReleaseError(f"{path}: KFP does not load it ({' '.join(str(error).split())[:200]})") from error
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(out).as_posix()}\n" for path in paths]
    (out / "SHA256SUMS").write_text("".join(sums), encoding="utf-8")
    return paths


def _component(stage: str, image: str):
    """The stage's component with that image; the module's own stays as it is."""
    component = copy.copy(getattr(importlib.import_module(f"components.{stage}.component"), stage))
    component.component_spec = copy.deepcopy(component.component_spec)
    component.component_spec.implementation.container.image = image
    return component


def _tags() -> list[str]:
    """Tags of releases, but for those of this commit, whose release can be made again."""
    command = ["git", "tag", "--list", "v*", "--no-contains", "HEAD"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []  # no checkout, so nothing that could be tagged
    return done.stdout.split()


def main() -> int:
    """Check, write, and name the files.

    Returns:
        Exit status: 0, or 1 when something is not ready.
    """
    parser = argparse.ArgumentParser(prog="python -m pipelines.release", description="Make and check a release.")
    parser.add_argument("--images", default=TABLE, type=Path, help="what `make push` wrote (default: %(default)s)")
    parser.add_argument("--registry", help="refuse images that were not pushed to this host/path")
    parser.add_argument("--tag", help="refuse images that were not pushed with this tag")
    parser.add_argument("--out", default="build/release", type=Path, help="default: %(default)s")
    given = parser.parse_args()
    try:
        version = check_version(ROOT / "pyproject.toml", ROOT / "CHANGELOG.md", _tags())
        paths = write(pinned_images(given.images, given.registry, given.tag), given.out)
    except (ReleaseError, ImageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for path in [*paths, given.out / "SHA256SUMS"]:
        print(path)
    print(f"ready: tag this commit v{version}, and publish what is in {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
