"""What a release publishes is loaded by others, and a release that is not ready is refused."""

import hashlib
import importlib
import json
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import yaml
from kfp import components

from components.images import STAGES, image
from pipelines import PIPELINES, release
from pipelines.compile import PLACEMENTS
from pipelines.placement.local import place

IMAGES = {stage: f"registry.example/team/rlhf-{stage.replace('_', '-')}@sha256:{'ab' * 32}" for stage in STAGES}
READY = "# Changelog\n\n## [Unreleased]\n\n## [0.1.0] - 2026-11-22\n\n### Added\n\n- All of it.\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("release")
    release.write(IMAGES, out)
    return out


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address(folder):
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize("stage", STAGES)
def test_a_component_is_loaded_from_its_address_with_the_image_that_was_pushed(address, stage):
    loaded = components.load_component_from_url(f"{address}/components/{stage}.yaml")
    ours = getattr(importlib.import_module(f"components.{stage}.component"), stage)
    assert set(loaded.component_spec.inputs) == set(ours.component_spec.inputs)
    assert set(loaded.component_spec.outputs) == set(ours.component_spec.outputs)
    (executor,) = loaded.pipeline_spec.deployment_spec["executors"].values()
    assert executor["container"]["image"] == IMAGES[stage]
    assert ours.component_spec.implementation.container.image == image(stage), "the module's own stays as it was"


@pytest.mark.parametrize("platform", PLACEMENTS)
@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_is_loaded_from_its_address(address, platform, name):
    loaded = components.load_component_from_url(f"{address}/{platform}/{name}.yaml")
    ours = importlib.import_module(f"pipelines.{name}").build(place)
    assert set(loaded.component_spec.inputs) == set(ours.component_spec.inputs)


def test_sums_are_those_of_the_files_and_leave_none_out(folder):
    sums = dict(reversed(line.split("  ")) for line in (folder / "SHA256SUMS").read_text().splitlines())
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml")}
    assert set(sums) == files
    assert all(hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest for name, digest in sums.items())


def version(folder: Path, changelog: str, number: str = "0.1.0", tags: tuple[str, ...] = ()) -> str:
    (folder / "pyproject.toml").write_text(f'[project]\nversion = "{number}"\n')
    (folder / "CHANGELOG.md").write_text(changelog)
    return release.check_version(folder / "pyproject.toml", folder / "CHANGELOG.md", list(tags))


def test_a_version_with_its_section_is_ready(tmp_path):
    assert version(tmp_path, READY, tags=("v0.0.9",)) == "0.1.0"


@pytest.mark.parametrize(
    ("changelog", "number", "tags", "said"),
    [
        (READY, "0.1.0", ("v0.1.0",), "has a tag"),
        (READY, "0.2.0", (), "newest section is [0.1.0]"),
        (READY, "0.2.dev0", (), "expected three numbers"),
        (READY.replace("## [0.1.0]", "- More.\n\n## [0.1.0]"), "0.1.0", (), "unreleased changes"),
        (READY.replace(" - 2026-11-22", ""), "0.1.0", (), "newest section is [0.1.0]"),
        (READY.partition("### Added")[0], "0.1.0", (), "is empty"),
        ("# Changelog\n", "0.1.0", (), "newest section is none"),
    ],
)
def test_a_release_that_is_not_ready_is_refused(tmp_path, changelog, number, tags, said):
    with pytest.raises(release.ReleaseError) as raised:
        version(tmp_path, changelog, number, tags)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_kfp_does_not_load_is_no_release(tmp_path, monkeypatch):
    def broken(profile, images, out):
        path = out / "broken.yaml"
        path.write_text(yaml.safe_dump({"no": "pipeline"}))
        return [path]

    monkeypatch.setattr(release, "compile_pipelines", broken)
    with pytest.raises(release.ReleaseError, match=r"broken\.yaml: KFP does not load it"):
        release.write(IMAGES, tmp_path / "release")


def test_images_that_were_not_pushed_are_no_release(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(release, "check_version", lambda *args: "0.1.0")
    table = tmp_path / "images.json"
    table.write_text(
        json.dumps({stage: {"image": f"r/rlhf-{stage}:v1", "digest": "sha256:1"} for stage in STAGES[:-1]})
    )
    monkeypatch.setattr(sys, "argv", ["release", "--images", str(table), "--out", str(tmp_path / "out")])
    assert release.main() == 1
    assert "publisher" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_tags_of_other_commits_count(tmp_path, monkeypatch):
    git = partial(subprocess.run, cwd=tmp_path, check=True, capture_output=True)
    commit = ["git", "-c", "user.name=n", "-c", "user.email=e", "commit", "-q", "--allow-empty", "-m", "m"]
    git(["git", "init", "-q"])
    git(commit)
    git(["git", "tag", "v0.1.0"])
    monkeypatch.setattr(release, "ROOT", tmp_path)
    assert release._tags() == [], "the release of this commit can be made again"
    git(commit)
    assert release._tags() == ["v0.1.0"]
