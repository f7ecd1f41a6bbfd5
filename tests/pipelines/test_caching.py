"""What is run again: the pipeline as it is, with kfp.local's cache and stages that do next to nothing."""

import functools
import re

import kfp.local
import pytest
import yaml
from kfp.dsl.base_component import BaseComponent

from components.images import STAGES
from pipelines import local
from pipelines.compile import compile_pipelines
from pipelines.placement.cluster import load_profile, stage_of
from pipelines.rft import build as build_rft
from pipelines.rlhf import build
from tests.pipelines.test_publishing import stand_in

ALL = [
    *("data-fingerprint", "data-validation", "sft-trainer", "reward-trainer", "ppo-trainer"),
    *("bulk-inference-before", "bulk-inference-after", "evaluator"),
]
ALL_OF_RFT = [
    *("data-fingerprint", "data-validation", "grpo-trainer", "bulk-inference-before", "bulk-inference-after"),
    "evaluator",
]
RETURNED = {"data-validation": "return [0]", "evaluator": "return 'hold'"}


def leaves_its_outputs(component: BaseComponent) -> str:
    """What a stand-in does: the cache wants to see that an output is still there."""
    outputs = component.component_spec.outputs or {}
    lines = [f"open({name}.path, 'w').close()" for name, spec in outputs.items() if spec.type.startswith("system.")]
    return "\n".join([*lines, RETURNED.get(component.name, "pass")])


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """Runs the pipeline on two files, and says which tasks were not taken from the cache."""
    monkeypatch.setattr(
        local.local,
        "init",
        functools.partial(kfp.local.init, enable_caching=True, cache_root=str(tmp_path / "cache")),
    )
    for name in ("preferences.jsonl", "prompts.jsonl"):
        (tmp_path / name).write_text("{}\n")

    def run(images: dict[str, str], build=build, **parameters) -> list[str]:
        def place(component):
            if component.name != "data-fingerprint":  # as it is
                component = stand_in(component, tmp_path, leaves_its_outputs(component))
            return lambda **arguments: component(**arguments).set_container_image(images[stage_of(component)])

        arguments = {"prompt_dataset": str(tmp_path / "prompts.jsonl"), "large_model_reference": "t5-small"}
        if build is not build_rft:
            arguments["preference_dataset"] = str(tmp_path / "preferences.jsonl")
        local.run(build(place), {**arguments, **parameters}, tmp_path / "run")
        return sorted(re.findall(r"^([\w-]+): finished", capfd.readouterr().out, re.M))

    return run


def digests(**changed: str) -> dict[str, str]:
    return {stage: f"r.example/{stage}@sha256:{changed.get(stage, '0') * 64}" for stage in STAGES}


def test_a_step_is_run_again_when_its_image_or_its_data_changed_and_not_otherwise(run, tmp_path):
    assert run(digests()) == sorted(ALL)
    assert run(digests()) == ["data-fingerprint"], "what is unchanged is taken from the cache"
    # A changed image: that stage, and those that read what it made.
    assert run(digests(ppo_trainer="1")) == sorted(
        ["data-fingerprint", "ppo-trainer", "bulk-inference-after", "evaluator"]
    )
    assert run(digests(ppo_trainer="1", evaluator="1")) == ["data-fingerprint", "evaluator"]
    # Changed data under the same URI.
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    assert run(digests()) == sorted(ALL)
    assert run(digests()) == ["data-fingerprint"]


@pytest.mark.parametrize("pipeline", ["rft", "rlhf"])
def test_a_run_is_made_again_when_the_file_of_a_grader_changed_under_its_uri(pipeline, run, tmp_path):
    grader = {"function": f"file://{tmp_path}/g.py:grade"}
    (tmp_path / "g.py").write_text("def grade(completions, **columns): return [1.0] * len(completions)\n")
    options = {"ppo": {"reward_functions": [grader]}} if pipeline == "rlhf" else {"build": build_rft, "grader": grader}
    tasks = sorted(ALL if pipeline == "rlhf" else ALL_OF_RFT)
    assert run(digests(), **options) == tasks
    assert run(digests(), **options) == ["data-fingerprint"]
    (tmp_path / "g.py").write_text("def grade(completions, **columns): return [0.0] * len(completions)  # worse\n")
    assert run(digests(), **options) == tasks


def test_a_run_is_made_again_when_the_reward_models_base_or_others_predictions_changed(run, tmp_path):
    base, others = tmp_path / "base", tmp_path / "others.jsonl"
    base.mkdir()
    (base / "config.json").write_text("{}")
    others.write_text("{}\n")
    options = {"reward": {"base_model": str(base)}, "evaluation": {"others": {"mine": str(others)}}}
    assert run(digests(), **options) == sorted(ALL)
    (base / "config.json").write_text("{ }")
    assert run(digests(), **options) == sorted(ALL)
    others.write_text("{ }\n")
    assert run(digests(), **options) == sorted(ALL)
    assert run(digests(), **options) == ["data-fingerprint"]


@pytest.mark.parametrize("profile", ["kubeflow-l4", "vertex-l4"])
def test_what_clusters_make_their_keys_of_names_the_image_by_digest_and_the_data(profile, tmp_path):
    """Both take the image, the command, and the parameters; of artifacts their identity."""
    paths = compile_pipelines(load_profile(profile), digests(), tmp_path)
    text = next(path for path in paths if path.stem == "rlhf").read_text()
    assert set(re.findall(r"r\.example/\S+", text)) == set(digests().values()) - {digests()["grpo_trainer"]}
    spec = next(yaml.safe_load_all(text))
    tasks = spec["root"]["dag"]["tasks"]
    assert tasks["data-validation"]["inputs"]["parameters"]["sources"] == {
        "taskOutputParameter": {"outputParameterKey": "Output", "producerTask": "data-fingerprint"}
    }
    cached = {name for name, task in tasks.items() if task.get("cachingOptions", {}).get("enableCache")}
    assert cached == {"data-validation", "sft-trainer", "reward-trainer", "ppo-trainer", "evaluator"}


def test_a_file_is_known_by_what_its_store_says_of_it(tmp_path):
    from rlhf.data_validation.fingerprint import fingerprint

    file = tmp_path / "a.jsonl"
    file.write_text("{}\n")
    given = {"prompt_dataset": str(file), "eval_dataset": ""}
    first = fingerprint(given, "t5-small")
    assert fingerprint(given, "t5-small") == first
    assert fingerprint({**given, "eval_dataset": str(file)}, "t5-small") != first
    assert fingerprint(given, "t5-large") != first
    file.write_text("{ }\n")
    assert fingerprint(given, "t5-small") != first


@pytest.mark.parametrize("scheme", ["file://", ""])
def test_a_model_in_a_folder_counts_with_its_files(tmp_path, scheme):
    from rlhf.data_validation.fingerprint import fingerprint

    model = f"{scheme}{tmp_path}/model"
    graders = ({"builtin": kind, "options": {"model": model}} for kind in ("reward_model", "similarity"))
    given = [({}, model, None), *(({}, "t5-small", [named]) for named in ({"base_model": model}, *graders))]
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    first = [fingerprint(*each) for each in given]
    assert [fingerprint(*each) for each in given] == first
    (tmp_path / "model/config.json").write_text("{ }")
    again = [fingerprint(*each) for each in given]
    assert all(one != other for one, other in zip(again, first, strict=True))


def test_predictions_of_further_models_count_with_their_files(tmp_path):
    from rlhf.data_validation.fingerprint import fingerprint

    options = [{"others": {"mine": f"{tmp_path}/mine.jsonl"}}]
    (tmp_path / "mine.jsonl").write_text("{}\n")
    first = fingerprint({}, "t5-small", options)
    assert fingerprint({}, "t5-small", options) == first
    (tmp_path / "mine.jsonl").write_text("{ }\n")
    assert fingerprint({}, "t5-small", options) != first


@pytest.mark.parametrize(
    "options",
    [{"base_model": 3}, {"others": ["a"]}, {"others": {"a": None}}, {"builtin": "x", "options": 1}, "text", None],
)
def test_options_that_are_wrong_are_left_to_data_validation(options):
    from rlhf.data_validation.fingerprint import fingerprint

    assert fingerprint({}, "t5-small", [options]) == fingerprint({}, "t5-small", [options])


def test_files_of_graders_count_wherever_they_stand_unless_their_text_travels(tmp_path):
    from rlhf.data_validation.fingerprint import fingerprint

    file = tmp_path / "g.py"
    file.write_text("def grade(): ...")
    named = {"function": f"{file}:grade"}
    deep = {"reward_functions": [{"product": [{"builtin": "rouge"}, {"function": str(file)}], "weight": 2.0}]}
    sent = named | {"source": "def grade(): ..."}
    module = {"function": "package.module:grade"}
    before = [fingerprint({}, "m", [options]) for options in (named, deep, sent, module, {})]
    file.write_text("def grade(): return")
    after = [fingerprint({}, "m", [options]) for options in (named, deep, sent, module, {})]
    assert [one == other for one, other in zip(before, after, strict=True)] == [False, False, True, True, True]
    assert fingerprint({}, "m", [named]) == after[0]
    file.unlink()
    assert fingerprint({}, "m", [named]) != fingerprint({}, "m", [named]), "what is wrong is data_validation's to say"


@pytest.mark.parametrize("missing", ["nothing/here.jsonl", "abfs://b/x.jsonl"])
def test_what_cannot_be_told_is_never_taken_for_the_same_and_is_left_to_data_validation(missing, capsys):
    from rlhf.data_validation.fingerprint import fingerprint

    given = {"prompt_dataset": missing}
    assert fingerprint(given, "m") != fingerprint(given, "m")
    assert "[data_validation] whether the data has changed cannot be told" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ({"size": 3, "ETag": '"ab"', "LastModified": "now"}, '3 etag="ab"'),
        ({"size": 3, "md5Hash": "cd", "etag": "x", "updated": "now"}, "3 md5hash=cd"),
        ({"size": 3, "blob_id": "ef", "last_commit": None}, "3 blob_id=ef"),
        ({"size": 3, "mtime": 1.5, "ino": 7}, "3 mtime=1.5"),
    ],
)
def test_a_checksum_is_taken_before_a_time(info, expected):
    from rlhf.data_validation.fingerprint import _identity

    assert _identity("a", info) == expected
