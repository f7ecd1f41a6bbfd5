"""Every block of code in the documents is run, or checked as far as it can be without a cluster, a GPU or the net."""

import ast
import importlib.util
import inspect
import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from google_cloud_pipeline_components.preview.llm import rlhf_pipeline

from docs import commands, cures, errors, over_optimisation, parameters
from pipelines import params, plan, rft, rlhf
from pipelines.placement.cluster import Kubernetes, Vertex, load_profile
from pipelines.placement.local import place
from rlhf.config import StageConfig
from rlhf.data import formats
from rlhf.data_validation import DataValidationConfig
from rlhf.data_validation.steps import StepCount
from rlhf.models import sizes
from tests.validation import said, validate

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md", "containers/README.md")),
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if path.name not in ("errors.md", "commands.md")),
]
# A line of a program that is not ours, or a block that cannot be run, says why in a comment above it.
MARK = re.compile(r"<!-- cannot run here: (.+) -->\n$")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LANGUAGES = {"sh", "yaml", "python", "json", "text"}
PIPELINES = {"rlhf": rlhf.build(place), "rft": rft.build(place)}
PROFILE = {"kubernetes": Kubernetes, "vertex": Vertex}
# What make calls, and takes arguments that are worth a look.
OURS = {
    *("pipelines.run", "pipelines.plan", "pipelines.compile", "pipelines.release", "pipelines.submit"),
    *("examples.demo", "containers.build"),
}


class Block(NamedTuple):
    document: Path
    language: str
    text: str
    mark: str
    line: int

    def __str__(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"


def blocks_of(document: Path) -> list[Block]:
    text = document.read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        mark = MARK.search(text[: match.start()])
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(document, match[1], match[2], mark[1] if mark else "", line))
    return found


# Notebooks' pages have what their cells have, and those are run by tests/notebooks.
BLOCKS = [block for document in DOCUMENTS for block in blocks_of(document)]
NOTEBOOKS = ROOT / "docs" / "notebooks"


def of(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_block_says_what_it_is_in(block):
    assert block.language in LANGUAGES


def lines_of(block: Block) -> list[list[str]]:
    """Commands as words, continued lines joined, without comments."""
    return [
        words for line in re.sub(r"\\\n", " ", block.text).splitlines() if (words := shlex.split(line, comments=True))
    ]


@pytest.mark.parametrize("block", of("sh"), ids=str)
def test_every_command_is_one_that_make_and_the_programs_take(block):
    for words in lines_of(block):
        program = words[0].removeprefix(".venv/bin/")
        if program == "make":
            make_takes(words[1:])
        elif program == "rlhf":
            commands.parsed(f"rlhf {words[1]}", words[2:])
        elif program == "python" and words[1] == "-m":
            takes(words[2], words[3:])
        elif program == "python":
            saved = [each.text.partition("\n")[0] for each in blocks_of(block.document) if each.language == "python"]
            assert f"# {words[1]}" in saved, f"no block of this page is named {words[1]} in its first line"
        elif program != "export":
            assert block.mark, f"{program}: no program of ours, so say above the block why it cannot run here"


def make_takes(arguments: list[str]) -> None:
    """See what make would run, and that each program takes its arguments."""
    known = (ROOT / "Makefile").read_text(encoding="utf-8")
    for name in (argument.partition("=")[0] for argument in arguments if "=" in argument):
        assert re.search(rf"\$\({name}\)|[a-z]={name}\b|^{name} \?=", known, re.MULTILINE), f"make reads no {name}"
    # The tests themselves may have been started by make, with variables of its own.
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    dry = subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, env=clean, capture_output=True, text=True)
    assert dry.returncode == 0, dry.stderr
    for line in re.sub(r"\\\n", " ", dry.stdout).splitlines():
        if called := re.search(r"python\S* -m (\S+)(.*)", line.partition(" || ")[0]):
            takes(called[1], shlex.split(called[2]))


def takes(module: str, arguments: list[str]) -> None:
    if module in OURS:
        path = ROOT / module.replace(".", "/")
        name = f"{module}.__main__" if path.is_dir() else module
        with commands.stopped_after_parsing(module, arguments):
            importlib.import_module(name).main()
    else:
        assert importlib.util.find_spec(module), module


@pytest.mark.parametrize("block", of("yaml"), ids=str)
def test_every_yaml_is_a_parameter_file_a_part_of_a_profile_or_a_manifest(block, tmp_path):
    for document in re.split(r"^---$", block.text, flags=re.MULTILINE):
        path = tmp_path / "block.yaml"
        path.write_text(document, encoding="utf-8")
        values = params.read(path)
        if "apiVersion" in values:
            assert {"kind", "metadata"} <= set(values)
        elif set(values) <= set(PROFILE):
            for name, part in values.items():
                PROFILE[name].model_validate(yaml.safe_load(document)[name])
                assert part
        else:
            fits(values)


def fits(values: dict[str, Any]) -> None:
    """See that one of the pipelines takes these parameters; what is required and not there is of no interest."""
    name = "rft" if {"grader", "grpo"} & set(values) else "rlhf"
    needed = {
        "prompt_dataset": "p",
        "preference_dataset": "p",
        "large_model_reference": "m",
        "grader": {"builtin": "rouge"},
    }
    known = PIPELINES[name].pipeline_spec.root.input_definitions.parameters
    full = {each: value for each, value in needed.items() if each in known} | values
    arguments, _ = params.check(full, PIPELINES[name])
    for struct, config in parameters.STRUCTS.items():
        if struct in values:
            config.parse(with_required(config, arguments[struct], full), struct)


def with_required(config: type[StageConfig], options: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    required = {name: values[name] for name, field in config.model_fields.items() if field.is_required()}
    return required | options


# Of models that are named in the documents; their configs are on the Hub.
CONFIGS = {
    "Qwen/Qwen2.5-0.5B": {
        **{"model_type": "qwen2", "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864},
        **{"num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True},
    },
    "google-t5/t5-base": {"model_type": "t5", "d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
    "google-bert/bert-base-cased": {"model_type": "bert", "vocab_size": 28996},
}
CONFIGS["Qwen/Qwen2.5-0.5B-Instruct"] = CONFIGS["Qwen/Qwen2.5-0.5B"]


def planned_commands() -> list[Any]:
    """Each command for a cluster whose file of parameters there is, with that and its profile."""
    found = []
    for block in of("sh"):
        # One tutorial goes on with the other's file.
        pages = [block.document, ROOT / "docs" / "tutorials" / "kubeflow.md"]
        saved = [each for page in pages for each in blocks_of(page) if each.text.startswith("# my.yaml")]
        for words in lines_of(block):
            given = dict(word.split("=", 1) for word in words if "=" in word)
            if words[:2] not in (["make", "submit"], ["make", "plan"]) or "PARAMS" not in given:
                continue
            mine = given["PARAMS"] == "my.yaml"
            text = saved[0].text if mine else (ROOT / given["PARAMS"]).read_text(encoding="utf-8")
            profile = given.get("PROFILE", f"{given.get('PLATFORM')}-l4")
            # A profile of one's own is a copy of the smallest.
            profile = f"{given['PLATFORM']}-l4" if profile == "mine.yaml" else profile
            found.append(pytest.param(text, profile, id=f"{block}-{words[1]}"))
    return found


@pytest.mark.parametrize(("text", "profile"), planned_commands())
def test_what_is_submitted_by_a_command_of_the_documents_fits_its_profile(text, profile, tmp_path, monkeypatch):
    for name, config in CONFIGS.items():
        monkeypatch.setitem(sizes.KNOWN, name, config)
    (tmp_path / "my.yaml").write_text(text, encoding="utf-8")
    values = params.read(tmp_path / "my.yaml")
    assert plan.problems(plan.job_of(values["large_model_reference"], values), load_profile(profile)) == []


def test_every_python_block_runs_and_a_grader_in_it_grades(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert of("python")
    for block in of("python"):
        if block.document.parent == NOTEBOOKS:
            continue
        names: dict[str, Any] = {}
        exec(compile(block.text, str(block), "exec"), names)
        if "grade" in names:
            said = ["42", '{"answer": 42}', '{"answer": 41}', ""]
            grades = names["grade"](prompts=["p"] * 4, completions=said, reference=["42"] * 4, id=list("abcd"))
            assert len(grades) == 4
            assert all(isinstance(grade, float) for grade in grades)
            assert len(set(grades)) > 1, "a grader that cannot tell answers apart teaches nothing"


def test_the_rows_of_the_quickstart_serve_as_preferences_and_as_prompts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = [block for block in of("python") if block.document.name == "quickstart.md"]
    exec(block.text, {})
    rows = [formats.parse(line) for line in (tmp_path / "mine.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 200
    for row in rows:
        shape = formats.recognise(row)
        pair = formats.convert(row, shape, "preferences")
        assert pair["chosen"].startswith("my ")
        assert formats.convert(row, shape, "prompts")["prompt"] == pair["prompt"]


def test_the_first_stage_takes_the_quickstart_and_warns_of_what_the_page_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in blocks_of(ROOT / "docs" / "quickstart.md"):
        if block.language == "python":
            exec(block.text, {})
        elif block.language == "yaml":
            (tmp_path / "my.yaml").write_text(block.text, encoding="utf-8")
    values = params.read("my.yaml")
    model = tmp_path / values["large_model_reference"]
    model.mkdir(parents=True)
    (model / "config.json").write_text('{"model_type": "llama"}')
    (model / "model.safetensors").touch()
    options = {name: value for name, value in values.items() if name in DataValidationConfig.model_fields}
    metrics = validate(options | values["data_validation"], tmp_path)
    assert (metrics["rows_read"], metrics["quarantined"], metrics["rows_evaluation"] >= 50) == (400, 0, True)
    warned = {found["check"] for found in said(tmp_path)["verdicts"] if found["outcome"] == "warning"}
    assert warned == {"length_bias", "shared_prompts"}


def test_every_json_block_is_json():
    for block in of("json"):
        for line in block.text.splitlines():
            json.loads(line)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_option_that_is_named_is_there(document):
    """`ppo.batch_size`, `ppo: {batch_size: 64}`, `kubernetes.kserve.name`: of pipelines, configs and profiles."""
    text = BLOCK.sub("", document.read_text(encoding="utf-8"))
    text = re.sub(r"^### What comes out$.*?^## ", "", text, flags=re.DOTALL | re.MULTILINE)  # keys of another file
    for code in re.findall(r"`([^`\n]+)`", text):
        if re.fullmatch(rf"({'|'.join(parameters.STRUCTS)}): \{{.*\}}", code) and "..." not in code:
            fits(yaml.safe_load(code))
        elif named := re.fullmatch(r"(\w+)((?:\.\w+)+)", code):
            start = parameters.STRUCTS.get(named[1]) or PROFILE.get(named[1])
            if start:
                has(start, named[2].strip(".").split("."), code)


def has(part: Any, names: list[str], code: str) -> None:
    for name in names:
        if not hasattr(part, "model_fields"):
            return  # a mapping with names of its own, such as `vertex.secrets`
        assert name in part.model_fields, code
        annotation = part.model_fields[name].annotation
        inner = [annotation, *getattr(annotation, "__args__", ())]
        part = next((each for each in inner if hasattr(each, "model_fields")), None)


def test_every_error_says_what_to_do():
    lacking = [message.said for message in errors.messages() if not message.cure]
    assert not lacking, "end the message with what to do after '; ', or add it to docs/cures.py"


def test_no_cure_is_for_a_message_that_is_gone():
    assert set(cures.CURES) <= {message.said for message in errors.messages()}


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """All texts of the code, with gaps."""
    found = []
    for folder in ("components", "containers", "pipelines", "rlhf"):
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found += [text for node in ast.walk(tree) if isinstance(node, ast.expr) and (text := errors.text_of(node))]
    return found


@pytest.mark.parametrize("name", ["submit.md", "serving.md"])
def test_every_message_in_a_table_of_what_is_said_is_one_of_the_code(name, texts):
    table = re.split(r"^\| said \|.*\n\| --- .*\n", (ROOT / "docs" / name).read_text(encoding="utf-8"), flags=re.M)[1]
    cells = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| ")]
    assert cells
    for message in re.findall(r"`([^`]+)`", " ".join(cells)):
        pieces = [piece.strip() for piece in re.split(r"\.\.\.|\d\d+ |^build/images\.json|^\w+: (?=found)", message)]
        pieces = [piece for piece in pieces if len(piece) > 3]
        assert any(all(piece in text for piece in pieces) for text in texts), message


@pytest.mark.parametrize("page", [commands, errors], ids=["commands", "errors"])
def test_the_pages_of_commands_and_errors_are_fresh(page):
    path = Path(page.__file__).with_suffix(".md")
    assert path.read_text(encoding="utf-8") == page.render(), "run `make docs`"


def test_the_table_of_over_optimisation_has_the_figures_that_were_recorded():
    page = (ROOT / "docs" / "concepts" / "over-optimisation.md").read_text(encoding="utf-8")
    assert "\n".join("| " + " | ".join(row) + " |" for row in over_optimisation.rows()) in page


def test_the_page_on_migration_has_every_parameter_of_the_old_pipeline_and_its_steps_are_right():
    page = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
    table = page.split("## Parameter by parameter")[1].split("\nSettings that")[0]
    told = [name for line in table.splitlines() for name in re.findall(r"`(\w+)`", line.split(" | ")[0])]
    assert sorted(told) == sorted(inspect.signature(rlhf_pipeline.pipeline_func).parameters)
    steps = re.findall(r"^\| \w+ \| ([\d,]+) \| (\d+) \| .*= (\d+) \|$", page, re.MULTILINE)
    assert len(steps) == 4
    for rows, epochs, count in steps:
        assert StepCount(int(rows.replace(",", "")), 64, None).by_epoch(int(epochs)) == int(count)
