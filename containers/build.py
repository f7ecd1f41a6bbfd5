"""Build the stages' images, test and push them: `python -m containers.build build|test|push`, or `make build push`."""

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path

from components.images import STAGES, TABLE, ImageError, cluster_images, local_images
from containers import engine

ROOT = Path(__file__).parents[1]
# Files of every stage that each image has, as in the Dockerfile: what says which options a stage takes.
_OPTIONS = re.compile(r"__init__\.py|config\.py|.*_options\.py")
LOGS = Path("build/containers")

# Stages without a model need no torch.
LIGHT = frozenset({"data_validation"})
# Stages that sample, which vLLM can do for them.
SAMPLING = frozenset({"ppo_trainer", "grpo_trainer", "bulk_inference"})
# Where the layers of the last build can be had by a machine that has none; see cloudbuild.yaml.
CACHE_TAG = "cache"


def main() -> int:
    """Build, test or push, saying one line for each image.

    Returns:
        Exit status: 0, or 2 after one line of what is wrong.
    """
    given = _arguments()
    try:
        stages = _stages(given.stages)
        dirty = git("status", "--porcelain") != ""
        tag = given.tag or default_tag(dirty)
        if given.command == "build":
            if dirty:
                print(f"warning: the tree has changes that are not committed; they go into images tagged {tag}")
            names = local_images(given.registry, tag)
            engine.check()
            for stage in stages:
                build(stage, names[stage], given)
        elif given.command == "test":
            names = local_images(given.registry, tag)
            test({stage: names[stage] for stage in stages}, given.tests, given.network)
        else:
            if dirty and not given.tag:
                raise ImageError("the tree has changes that are not committed; commit them, or name a TAG")
            names = cluster_images(given.registry, tag)
            push({stage: names[stage] for stage in stages}, cache=given.cache)
    except (ImageError, engine.EngineError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def build(stage: str, name: str, given: argparse.Namespace) -> None:
    """Build one stage's image.

    Raises:
        engine.EngineError: It did not build.
    """
    began = time.monotonic()
    arguments = {
        "STAGE": stage,
        "DEPENDENCIES": "light" if stage in LIGHT else "models",
        "REVISION": revision(stage),
        "TORCH": given.torch,
        "BASE_IMAGE": given.base_image,
        "TORCH_INDEX": given.torch_index,
    }
    if given.vllm and stage in SAMPLING:
        arguments |= {"DEPENDENCIES": "vllm", "VLLM": given.vllm}
    options = ["--network", given.network] if given.network else []
    if given.cache:
        options += ["--cache-from", f"{name.rpartition(':')[0]}:{CACHE_TAG}"]
        arguments["BUILDKIT_INLINE_CACHE"] = "1"
    for key, value in arguments.items():
        options += ["--build-arg", f"{key}={value}"] if value else []
    engine.run(
        *("build", "--progress", "plain", "--file", str(ROOT / "containers/Dockerfile"), "--target", "stage"),
        *("--tag", name, *options, str(ROOT)),
        log=LOGS / f"{stage}.log",
        base=given.base_image or default_base(),
    )
    size = int(engine.run("image", "inspect", "--format", "{{.Size}}", name))
    print(f"{name}: {size / 1e6:,.0f} MB, built in {time.monotonic() - began:.1f} s", flush=True)


def test(names: dict[str, str], tests: str, network: str) -> None:
    """Start every stage in its image as a cluster may, then run tests of the library on what one image holds.

    Args:
        names: {stage: image}.
        tests: Files or folders of tests.
        network: Through which pip, which is no part of the images, gets pytest.

    Raises:
        engine.EngineError: A stage does not start, or a test fails.
    """
    options = ["--rm", "--read-only", "--tmpfs", "/tmp:mode=1777,exec", "--cap-drop", "ALL"]
    for stage, name in names.items():
        engine.run("run", *options, "--network", "none", name, "python", "-m", f"rlhf.{stage}", "--help")
        print(f"{name}: starts", flush=True)
    if not (models := [stage for stage in names if stage not in LIGHT]):
        return
    source = ["--volume", f"{ROOT}:/src:ro", "--workdir", "/src", *(["--network", network] if network else [])]
    log = LOGS / "tests.log"
    engine.run("run", *options, *source, names[models[0]], "sh", "-euc", _PYTEST.format(tests=tests), log=log)
    print(f"{names[models[0]]}: {log.read_text(encoding='utf-8').strip().splitlines()[-1]}")


# The base's own Python has the pip that the images' has not.
_PYTEST = """
$(readlink -f "$(command -v python)") - > /tmp/tools.txt <<'END'
import tomllib
print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["dev"], sep="\\n")
END
$(readlink -f "$(command -v python)") -m pip install --quiet --no-cache-dir --target /tmp/tools \
    -c constraints.txt -r /tmp/tools.txt
export PYTHONPATH=/tmp/tools HF_HUB_OFFLINE=1
python -m pytest -q -p no:cacheprovider -n auto --dist loadfile -m "not slow" {tests}
"""


def push(names: dict[str, str], cache: bool = False) -> None:
    """Push images and record their digests in `TABLE`; no tag that somebody may have used is moved.

    Args:
        names: {stage: image}.
        cache: Push each also as what the next build takes layers from.

    Raises:
        ImageError: An image is not built, or its tag is taken by another one.
        engine.EngineError: The registry did not take one.
    """
    for name in names.values():
        _check_tag_is_free(name)
    table = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.is_file() else {}
    for stage, name in names.items():
        said = engine.run("push", name)
        digest = re.search(r"digest: (sha256:[0-9a-f]{64})", said)
        if digest is None:
            raise engine.EngineError(f"{name} was pushed, but the engine named no digest: {said.strip()[-200:]}")
        if cache:
            latest = f"{name.rpartition(':')[0]}:{CACHE_TAG}"
            engine.run("tag", name, latest)
            engine.run("push", latest)
        table[stage] = {"image": name, "digest": digest[1]}
        TABLE.parent.mkdir(parents=True, exist_ok=True)
        TABLE.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
        print(f"{name}@{digest[1]}", flush=True)


def _check_tag_is_free(name: str) -> None:
    """A tag may only be pushed again with the same content.

    An image's id is the digest of its config; where Docker keeps images in containerd's store, of its manifest.
    """
    try:
        (inspected,) = json.loads(engine.run("image", "inspect", name))
    except engine.EngineError as error:
        if "No such image" in str(error):
            raise ImageError(f"{name}: not built here; run `make build` with the same REGISTRY and TAG") from None
        raise
    insecure = ["--insecure"] if re.match(r"(localhost|127\.0\.0\.1)[:/]", name) else []
    try:
        found = json.loads(engine.run("manifest", "inspect", "--verbose", *insecure, name))
    except engine.EngineError as error:
        if re.search(r"no such manifest|manifest unknown|not found", str(error)):
            return
        raise
    digests = {inspected["Id"], *(each.rpartition("@")[2] for each in inspected.get("RepoDigests") or [])}
    for manifest in found if isinstance(found, list) else [found]:  # a list, where it is of several platforms
        config = (manifest.get("SchemaV2Manifest") or manifest.get("OCIManifest") or {}).get("config", {})
        if {manifest["Descriptor"]["digest"], config.get("digest")} & digests:
            break
    else:
        raise ImageError(f"{name}: the registry has this tag with other content; commit, or name another TAG")


def default_tag(dirty: bool) -> str:
    """The commit, and whether the tree is what was committed."""
    commit = git("rev-parse", "--short=12", "HEAD")
    if not commit:
        raise ImageError("tag: none given, and this is no git checkout; set TAG=...")
    return f"{commit}-dirty" if dirty else commit


def revision(stage: str) -> str:
    """The last commit that changed what the stage's image is made of.

    Not the newest commit: an image, its digest and what ran in it then outlive commits that do not touch it.

    Raises:
        ImageError: This is a shallow clone, in which the newest commit seems to have changed everything.
    """
    if git("rev-parse", "--is-shallow-repository") == "true":
        raise ImageError(
            "revision: this clone is shallow, expected the whole history, which says when an image's files changed; "
            "run `git fetch --unshallow`"
        )
    others = [path.parent for path in (ROOT / "rlhf").glob("*/stage.py") if path.parent.name != stage]
    not_in_it = [file for folder in others for file in folder.glob("*.py") if not _OPTIONS.fullmatch(file.name)]
    paths = ["rlhf", "containers/Dockerfile", "containers/locks", "containers/slim.py", ".dockerignore"]
    paths += [f":(exclude){file.relative_to(ROOT)}" for file in not_in_it]
    commit = git("log", "-1", "--format=%H", "--", *paths)
    return f"{commit}-dirty" if git("status", "--porcelain", "--", *paths) else commit


def default_base() -> str:
    """The base image that the Dockerfile names."""
    return re.search(r"^ARG BASE_IMAGE=(\S+)", (ROOT / "containers/Dockerfile").read_text(), re.MULTILINE)[1]


def git(*arguments: str) -> str:
    """What git says; nothing where this is no checkout."""
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return ""


def _stages(names: str) -> tuple[str, ...]:
    groups = {"": STAGES, "light": tuple(LIGHT), "models": tuple(stage for stage in STAGES if stage not in LIGHT)}
    stages = groups.get(names.strip()) or tuple(names.replace("-", "_").split())
    if unknown := [stage for stage in stages if stage not in STAGES]:
        raise ImageError(f"stages: found {unknown[0]!r}, expected some of {', '.join(STAGES)}")
    return stages


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m containers.build", description=__doc__)
    parser.add_argument("command", choices=("build", "test", "push"))
    parser.add_argument("--registry", default="", help="host/path; images that stay here need none")
    parser.add_argument("--tag", default="", help="default: the commit")
    parser.add_argument("--stages", default="", help="default: all of them; or light, or models")
    parser.add_argument("--base-image", default="", help="with Python 3.11 (default: the Dockerfile's)")
    parser.add_argument(
        "--torch", default="cuda", choices=("cpu", "cuda"), help="build of torch (default: %(default)s)"
    )
    parser.add_argument("--torch-index", default="", help="a package index that has the CPU build")
    parser.add_argument("--vllm", default="", help="version of vLLM for images that sample (default: none)")
    parser.add_argument("--network", default="", help="of what installs packages, as `docker build --network`")
    parser.add_argument("--tests", default="tests/unit", help="what `test` runs (default: %(default)s)")
    parser.add_argument("--cache", action="store_true", help="take layers from, and leave them in, the registry")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
