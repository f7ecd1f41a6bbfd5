"""What pipelines do for a run with a grader: its files are sent along, and its plan has what it needs."""

from pathlib import Path

import pytest
import yaml

from pipelines import params, plan
from pipelines.placement.cluster import load_profile
from pipelines.placement.local import place
from pipelines.rft import build
from pipelines.submit import check


def test_files_of_graders_travel_as_text_wherever_they_stand(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("g.py").write_text("def f(): ...\n")
    values = {
        "grader": {"sum": [{"function": "g.py:f", "weight": 2.0}, {"builtin": "rouge"}]},
        "ppo": {"reward_functions": [{"function": "g.py"}, {"function": "package.module:f"}]},
        "evaluation": {"graders": [{"function": "gs://bucket/g.py:f"}]},
        "kl_coeff": 0.1,
    }
    sent = params.with_graders(values)
    assert sent["grader"]["sum"] == [
        {"function": "g.py:f", "weight": 2.0, "source": "def f(): ...\n"}, {"builtin": "rouge"},
    ]  # fmt: skip
    assert sent["ppo"]["reward_functions"][0]["source"] == "def f(): ...\n"
    assert sent["ppo"]["reward_functions"][1] == {"function": "package.module:f"}
    assert sent["evaluation"] == values["evaluation"]
    assert "source" not in values["grader"]["sum"][0]


def test_a_file_that_cannot_travel_is_named(tmp_path):
    with pytest.raises(
        params.ParameterError, match=r"ppo.reward_functions.0.function: no/g.py cannot be read \(No such"
    ):
        params.with_graders({"ppo": {"reward_functions": [{"function": "no/g.py:f"}]}})
    (tmp_path / "g.py").write_text("#" * 70_000)
    with pytest.raises(params.ParameterError, match="has 70,000 characters, expected at most 65,536"):
        params.with_graders({"grader": {"function": f"{tmp_path}/g.py"}})


def test_parameters_that_no_task_could_be_started_with_are_refused_before_anything_is_sent(tmp_path):
    """Kubeflow Pipelines gives them to a process as one argument, of which Linux takes 128 KiB."""
    parts = []
    for name in ("a", "b"):
        (tmp_path / f"{name}.py").write_text(f"# {'é' * 27_000}\n")
        parts.append({"function": f"{tmp_path}/{name}.py"})
    values = {"prompt_dataset": "gs://b/p", "large_model_reference": "t5-small", "grader": parts[0]}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(values))
    profile, pipeline = load_profile("kubeflow-l4"), build(place)
    check.parameters(tmp_path / "p.yaml", pipeline, profile)
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({**values, "grader": {"sum": parts}}))
    with pytest.raises(params.ParameterError, match=r"^grader: has 10\d,\d\d\d of .* at most 98,304"):
        check.parameters(tmp_path / "p.yaml", pipeline, profile)


def test_the_plan_counts_a_reference_where_all_weights_are_tuned(llama_folder):
    grader = {"grader": {"builtin": "length"}}
    profile = load_profile("kubeflow-l4")
    job = plan.job_of(str(llama_folder), grader)
    parts = {part.name: part.size for part in plan.need_of("grpo_trainer", job, profile).parts}
    assert parts["reference"] == parts["weights"] == 4 * job.policy.parameters
    assert plan.need_of("ppo_trainer", job, profile) is None
    assert plan.need_of("evaluator", job, profile) is None
    adapted = plan.job_of(str(llama_folder), {**grader, "grpo": {"tuning": "lora"}})
    assert "reference" not in {part.name for part in plan.need_of("grpo_trainer", adapted, profile).parts}
    assert plan.need_of("publisher", adapted, profile) is not None
    assert plan.problems(job, profile) == []
    assert plan.need_of("grpo_trainer", plan.job_of(str(llama_folder), {}), profile) is None
