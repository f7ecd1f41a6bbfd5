import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import huggingface_hub.constants
import pytest

from rlhf.data.template import Template
from rlhf.errors import ModelError
from rlhf.models import references
from rlhf.models.card import ModelCard

CONFIG = json.dumps({"model_type": "llama"})
WEIGHTS = "model.safetensors"


def model_folder(folder: Path, *names: str, config: str | None = CONFIG) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"x")
    if config is not None:
        (folder / "config.json").write_text(config)
    return folder


HUB = {  # answers of the Hub's API: status, header that names the error, body
    "/api/models/org/good": (
        200,
        "",
        {"id": "org/good", "siblings": [{"rfilename": "config.json"}, {"rfilename": WEIGHTS}]},
    ),
    "/api/models/google/flan-t5-small": (
        200,
        "",
        {"id": "x", "siblings": [{"rfilename": "config.json"}, {"rfilename": WEIGHTS}]},
    ),
    "/api/models/org/pickled": (
        200,
        "",
        {"id": "x", "siblings": [{"rfilename": "config.json"}, {"rfilename": "pytorch_model.bin"}]},
    ),
    "/api/models/org/dataset-like": (200, "", {"id": "x", "siblings": [{"rfilename": "README.md"}]}),
    "/api/models/meta/gated": (
        200,
        "",
        {"id": "x", "gated": "manual", "siblings": [{"rfilename": "config.json"}, {"rfilename": WEIGHTS}]},
    ),
    "/api/models/meta/gated/auth-check": (403, "GatedRepo", {}),
    "/api/models/org/broken": (418, "", {}),
}


@pytest.fixture
def hub(monkeypatch):
    """A server that answers as the Hugging Face Hub does, on loopback."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status, code, body = HUB.get(self.path.split("?")[0], (404, "RepoNotFound", {}))
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield
    server.shutdown()
    server.server_close()


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path / "home"))
    return tmp_path / "hub"


@pytest.mark.parametrize("reference", ["org/good", "hf://org/good", "t5-small", "T5_SMALL"])
def test_a_model_on_the_hub_passes(hub, reference):
    references.check(reference, "large_model_reference")


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("org/none", "no such model on the Hugging Face Hub"),
        ("gpt2", "no local folder of that name and no such model"),
        ("meta/gated", "this model is gated; accept its licence at .*HF_TOKEN"),
        ("org/pickled", r"only has pickle weights \(pytorch_model.bin\)"),
        ("org/dataset-like", "no config.json"),
        ("org/broken", "cannot be asked for it .*418"),
    ],
)
def test_a_model_on_the_hub_that_cannot_be_used_is_one_clear_line(hub, empty_cache, reference, says):
    with pytest.raises(ModelError, match=says) as error:
        references.check(reference, "large_model_reference")
    assert str(error.value).startswith(f"large_model_reference '{reference}'")
    assert "\n" not in str(error.value)


def test_a_hub_that_cannot_be_reached_is_said_at_once(monkeypatch, empty_cache):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(ModelError, match="the Hugging Face Hub cannot be asked for it"):
        references.check("org/good", "large_model_reference")
    assert time.monotonic() - started < 5


def test_offline_a_cached_model_passes_and_another_does_not(monkeypatch, empty_cache):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set"):
        references.check("org/good", "large_model_reference")
    repository = empty_cache / "models--org--good"
    (repository / "snapshots").mkdir(parents=True)
    model_folder(repository / "snapshots" / "abc", WEIGHTS)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    references.check("org/good", "large_model_reference")


def test_a_local_folder_passes_by_path_and_by_relative_name(tmp_path, monkeypatch):
    model_folder(tmp_path / "model", WEIGHTS)
    monkeypatch.chdir(tmp_path)
    for reference in (str(tmp_path / "model"), "model", "./model", f"file://{tmp_path}/model"):
        references.check(reference, "large_model_reference")
    assert references.resolve(f"file://{tmp_path}/model") == str(tmp_path / "model")


@pytest.mark.parametrize(
    ("names", "config", "says"),
    [
        ((), None, "no config.json"),
        ((WEIGHTS,), None, "no config.json"),
        ((), CONFIG, r"no weights there, expected \*.safetensors"),
        (("pytorch_model.bin",), CONFIG, r"only has pickle weights \(pytorch_model.bin\).*refused"),
        ((WEIGHTS,), "{", "config.json is not JSON"),
        ((WEIGHTS,), "{}", "names no model_type"),
    ],
)
def test_a_folder_that_is_no_usable_model_is_refused(tmp_path, names, config, says):
    folder = model_folder(tmp_path / "model", *names, config=config)
    with pytest.raises(ModelError, match=says) as error:
        references.check(str(folder), "reward.base_model")
    assert str(error.value).startswith(f"reward.base_model '{folder}'")


def test_pickles_beside_safetensors_do_no_harm(tmp_path):
    references.check(str(model_folder(tmp_path / "m", WEIGHTS, "pytorch_model.bin")), "large_model_reference")


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("/no/such/model", "no such folder"),
        ("", "found ''"),
        ("not a model", "found 'not a model', expected a Hugging Face id"),
        ("hf://only/half/right", "expected hf://owner/name"),
        ("nosuch://bucket/model", "Protocol not known"),
        ("memory://nothing/there", "nothing there"),
        ("text-bison@001", "private model"),
        ("BISON_002", "private model"),
    ],
)
def test_a_reference_without_meaning_is_refused_by_name(reference, says):
    with pytest.raises(ModelError, match=says) as error:
        references.check(reference, "large_model_reference")
    assert str(error.value).startswith("large_model_reference")


def test_the_old_short_names_stand_for_open_models():
    assert references.resolve("t5-xxl") == references.resolve("T5_XXL") == "google/flan-t5-xxl"
    assert references.resolve("llama-2-7b-chat") == "meta-llama/Llama-2-7b-chat-hf"
    assert references.resolve("hf://org/name") == references.resolve("org/name") == "org/name"


def test_a_model_in_a_bucket_is_downloaded_once_and_without_pickles(monkeypatch, empty_cache):
    bucket = fsspec.filesystem("memory")
    bucket.pipe(
        {"/b/m/config.json": CONFIG.encode(), f"/b/m/{WEIGHTS}": b"1", "/b/m/old.bin": b"", "/b/m/sub/x.json": b"{}"}
    )
    references.check("memory://b/m", "large_model_reference")
    folder = Path(references.resolve("memory://b/m"))
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()) == [
        "config.json",
        "model.safetensors",
        "sub/x.json",
    ]
    with monkeypatch.context() as patch:
        patch.setattr(type(bucket), "get_file", None)
        assert references.resolve("memory://b/m") == str(folder)
    bucket.pipe(f"/b/m/{WEIGHTS}", b"longer")
    assert (Path(references.resolve("memory://b/m")) / WEIGHTS).read_bytes() == b"longer"
    bucket.rm("/b", recursive=True)


def test_a_bucket_whose_files_lead_out_of_its_folder_is_refused(empty_cache):
    bucket = fsspec.filesystem("memory")
    bucket.pipe({"/b/m/config.json": CONFIG.encode(), f"/b/m/{WEIGHTS}": b"1", "/b/m/../../../../escaped.json": b"{}"})
    with pytest.raises(ModelError, match=r"'memory://b/m'.* '../../../../escaped.json' leads out of its folder"):
        references.resolve("memory://b/m")
    assert not [*empty_cache.parent.rglob("escaped.json"), *empty_cache.parent.rglob(WEIGHTS)]
    bucket.rm("/b", recursive=True)


def test_checking_a_reference_loads_no_torch():
    code = "import sys, rlhf.models.references, rlhf.models.card; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_card_is_read_as_it_was_saved(tmp_path):
    card = ModelCard(kind="reward_model", base="org/base", template_digest="t", data_digest="d", score_shift=-0.5)
    card.save(tmp_path)
    assert ModelCard.load(tmp_path) == card
    assert card.versions["rlhf"]


@pytest.mark.parametrize(
    ("kind", "expected"), [("reward_model", "policy"), ("policy", "reward_model"), ("base", "reward_model")]
)
def test_a_model_of_another_kind_is_refused(tmp_path, kind, expected):
    with pytest.raises(ModelError, match=rf"{tmp_path}: found a model of kind '{kind}', expected '{expected}'"):
        ModelCard(kind=kind, base="b").require_kind(expected, tmp_path)


def test_a_base_serves_as_an_untuned_policy(tmp_path):
    ModelCard(kind="base", base="b").require_kind("policy", tmp_path)


@pytest.mark.parametrize(
    "content", [None, "{", "{}", '{"kind": "other", "base": "b"}', '{"kind": "base", "base": "b", "x": 1}']
)
def test_what_is_no_card_is_refused_by_name(tmp_path, content):
    if content is not None:
        (tmp_path / "rlhf.json").write_text(content)
    with pytest.raises(ModelError, match=r"rlhf\.json"):
        ModelCard.load(tmp_path)


def test_a_model_of_another_template_is_refused_with_both_digests():
    data, other = Template(suffix="TL;DR:"), Template()
    card = ModelCard(kind="policy", base="b", template_digest=data.digest)
    card.require_template(data, "model")
    with pytest.raises(ModelError, match=f"model: trained with prompt template {data.digest}.*{other.digest}"):
        card.require_template(other, "model")
    ModelCard(kind="base", base="b").require_template(other, "model")


def test_of_several_processes_one_copies_a_model_and_the_others_wait(tmp_path):
    model_folder(tmp_path / "store", WEIGHTS)
    script = (
        "import sys, time, fsspec\n"
        "from fsspec.implementations.local import LocalFileSystem\n"
        "from rlhf.models import references\n"
        "class Slow(LocalFileSystem):\n"
        "    protocol = 'slow'\n"
        "    def get_file(self, *args, **options):\n"
        "        print('copied', flush=True)\n"
        "        time.sleep(0.3)\n"
        "        return super().get_file(*args, **options)\n"
        "    @classmethod\n"
        "    def _strip_protocol(cls, path):\n"
        "        return super()._strip_protocol(str(path).removeprefix('slow://'))\n"
        "fsspec.register_implementation('slow', Slow)\n"
        "print(references.resolve(sys.argv[1]))\n"
    )
    command = [sys.executable, "-c", script, f"slow://{tmp_path}/store"]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home")}
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(3)]
    said = [process.communicate(timeout=60)[0].split() for process in started]
    assert [process.returncode for process in started] == [0, 0, 0]
    assert sum(words.count("copied") for words in said) == 2, "its two files, once"
    assert len({words[-1] for words in said}) == 1


def test_what_is_said_of_a_model_holds_no_secret_of_its_address():
    with pytest.raises(ModelError, match=r"sig=…") as error:
        references.check("memory://nothing/there?sig=s3cret", "large_model_reference")
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_the_base_of_an_adapter_is_looked_at_too(tmp_path, place):
    base = model_folder(tmp_path / "base", WEIGHTS)
    folder = model_folder(tmp_path / "adapter", "adapter_config.json", "adapter_model.safetensors", config=None)
    reference = str(folder) if place == "folder" else "memory://adapters/one"

    def stands_on(base: Path) -> None:
        ModelCard(kind="policy", base=str(base)).save(folder)
        files = {f"/adapters/one/{file.name}": file.read_bytes() for file in folder.iterdir()}
        fsspec.filesystem("memory").pipe(files)

    stands_on(base)
    references.check(reference, "large_model_reference")
    stands_on(tmp_path / "gone")
    with pytest.raises(ModelError, match=f"large_model_reference '{reference}': its base '.*gone': no such folder"):
        references.check(reference, "large_model_reference")
