"""What judges beside the reward model, or in its place, and models that are ranked with the two."""

import json

import pytest

from rlhf.errors import ConfigError, TrainingError

GRADER = """
def dogs(prompts, completions, reference, **columns):
    return [None if "fish" in (r or "") else float("dog" in c) for c, r in zip(completions, reference)]
"""


def test_a_grader_judges_beside_the_reward_model(scored):
    place = scored.folder / "grader.py"
    place.write_text(GRADER)
    metrics = scored.run(graders=[{"function": f"{place}:dogs"}])
    assert (metrics["dogs_wins"], metrics["dogs_not_judged"]) == (8, 4)
    assert (metrics["dogs_before"], metrics["dogs_after"]) == (0.0, 1.0)
    assert "dogs" in scored.report


def test_a_grader_that_fails_is_named(scored):
    place = scored.folder / "grader.py"
    place.write_text("def bad(prompts, completions, **columns):\n    raise KeyError('no such word')\n")
    with pytest.raises(TrainingError, match=r"bad.*KeyError"):
        scored.run(graders=[{"function": f"{place}:bad"}])


def test_without_a_reward_model_the_run_s_grader_decides(job):
    place = job.folder / "grader.py"
    place.write_text(GRADER)
    parts = [{"function": f"{place}:dogs", "weight": 2.0}, {"builtin": "length", "options": {"most": 9}}]
    job.reward_model = ""
    metrics = job.run(grader={"sum": parts}, kl_limit=3.0)
    assert (metrics["grade_before"], metrics["grade_after"]) == (1.0, pytest.approx((8 * 3 + 4 * 1) / 12))
    assert (metrics["wins"], metrics["ties"], metrics["promote"]) == (8, 4, 1.0)
    assert (metrics["dogs_wins"], metrics["dogs_not_judged"], metrics["length_ties"]) == (8, 4, 12)
    assert not any(name.startswith("reward") for name in metrics)
    assert "By the grader, the tuned model is better than the one before" in job.report
    assert "By the reward model" not in job.report
    assert "| Grade | 1.000 |" in (job.folder / "summary.md").read_text(encoding="utf-8")


def test_a_completion_that_the_run_s_grader_cannot_grade_is_left_out_and_said(job):
    place = job.folder / "grader.py"
    place.write_text(
        "def grade(completions, id, **_): return ['x' if i == 'row-3' else len(c) for i, c in zip(id, completions)]"
    )
    job.reward_model = ""
    metrics = job.run(grader={"function": str(place)})
    assert metrics["not_judged"] == 1
    assert "grader: 2 completions could not be graded, the first: reward function" in job.report


def test_nobody_who_decides_is_refused(job):
    job.reward_model = ""
    with pytest.raises(ConfigError, match=r"evaluation.grader: found none, and no reward model either"):
        job.run()


def test_judges_of_one_name_do_not_replace_each_other(scored):
    place = scored.folder / "grader.py"
    place.write_text(
        "def grade(completions, **_): return [5.0] * len(completions)\n"
        "def reward(completions, **_): return [7.0] * len(completions)\n"
    )
    names = ["grade", "grade", "reward"]
    metrics = scored.run(graders=[{"function": f"{place}:{name}"} for name in names], grader={"builtin": "length"})
    assert (metrics["reward_before"], metrics["reward_after"]) == (2.0, 4.0)
    assert metrics["grade_after"] == 1.0
    assert [metrics[f"{name}_after"] for name in ("grade_2", "grade_3", "reward_2")] == [5.0, 5.0, 7.0]
    row = json.loads((scored.folder / "side_by_side.jsonl").read_text().splitlines()[0])
    assert list(row["scores"]) == ["reward model", "grader", "grade_2", "grade_3", "reward_2"]
    shown = (scored.folder / "report.html").read_text(encoding="utf-8")
    assert all(f"{name}: most for After" in shown for name in ("grader", "grade_2", "grade_3", "reward_2", "tokens"))


def test_where_no_pair_is_graded_on_both_sides_the_page_says_so_and_holds(job):
    place = job.folder / "grader.py"
    place.write_text("def old(completions, **_): return [1.0 if 'sleptsat' in c else None for c in completions]\n")
    job.reward_model = ""
    metrics = job.run(grader={"function": f"{place}:old"})
    assert (metrics["not_judged"], metrics["promote"]) == (12, 0.0)
    assert "of 12 of 12 pairs (100\u00a0%) the grader said nothing" in job.report.replace("100 %", "100\u00a0%")
    assert "left too many pairs without a judgement" in job.report


def test_further_models_are_ranked(scored):
    other = scored.predictions("a dog slept home and sat", "third")
    path = scored.folder / "third.jsonl"
    path.write_text("\n".join(map(json.dumps, other)))
    scored.run(others={"third": str(path)})
    strengths = (scored.folder / "report.html").read_text(encoding="utf-8").split("Bradley-Terry")[-1]
    places = [strengths.index(f">{name}<") for name in ("third", "after", "before")]
    assert places == sorted(places)
