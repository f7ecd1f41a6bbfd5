"""Who judges: under which names, what they are given, and what they left out."""

from dataclasses import replace

import pytest

from rlhf.data.predictions import Prediction
from rlhf.data.template import Template
from rlhf.evaluator import EvaluatorConfig
from rlhf.evaluator.compare import length_controlled, outcomes_of
from rlhf.evaluator.judge import Judged
from rlhf.evaluator.judgements import (
    Judgement,
    by_graders,
    by_language_model,
    by_reward_model,
    by_run_grader,
    told_apart,
)
from rlhf.evaluator.pairs import Pair
from rlhf.metrics import win_rate_of
from tests.evaluation import TEMPLATE


def prediction(text: str) -> Prediction:
    return Prediction(
        id="x", prompt="p", prediction=text, finish_reason="stop", tokens=1, model="m", template_digest=TEMPLATE.digest
    )


def pairs_of(*texts: tuple[str, str], original="p", **others: str) -> list[Pair]:
    """Of (before, after)."""
    return [
        Pair(str(i), "p", *map(prediction, both), None, original, {name: prediction(t) for name, t in others.items()})
        for i, both in enumerate(texts)
    ]


def judged(outcomes, **more) -> Judgement:
    lengths = [1] * len(outcomes)
    more.setdefault("name", "judge")
    return Judgement(
        outcomes=outcomes,
        wins=win_rate_of(outcomes),
        controlled=length_controlled(outcomes, lengths, lengths, resamples=5),
        **more,
    )


def test_judges_of_one_name_are_numbered_and_who_may_decide_keeps_name_and_slug():
    names = ["grade", "grade", "reward", "grader", "Tokens", "a-b", "a_b", "rouge", "rouge", "judge m"]
    own = [judged([1.0], name="reward model", slug="reward"), judged([1.0], name="grader", slug="grade")]
    found = told_apart([*own, *(judged([1.0], name=name) for name in names)])
    assert [(j.name, j.slug) for j in found] == [
        ("reward model", "reward"),
        ("grader", "grade"),
        ("grade_2", "grade_2"),
        ("grade_3", "grade_3"),
        ("reward_2", "reward_2"),
        ("grader_2", "grader_2"),
        ("Tokens_2", "tokens_2"),
        ("a-b", "a_b"),
        ("a_b_2", "a_b_2"),
        ("rouge", "rouge"),
        ("rouge_3", "rouge_3"),  # rouge_2_after is ROUGE-2's
        ("judge m", "judge_m"),
    ]


def test_a_grader_of_conversations_gets_completions_as_messages_too(tmp_path):
    place = tmp_path / "grader.py"
    place.write_text("def last(prompts, completions, **_): return [float(c[-1]['content']) for c in completions]\n")
    pairs = pairs_of(("1", "2"), original=[{"role": "user", "content": "how many?"}])
    (judgement,) = by_graders(EvaluatorConfig(graders=[{"function": f"{place}:last"}]), pairs, TEMPLATE)
    assert (judgement.before, judgement.after, judgement.remarks) == ([1.0], [2.0], [])


def test_completions_that_a_further_grader_could_not_grade_are_said(tmp_path):
    place = tmp_path / "grader.py"
    place.write_text("def number(completions, **_): return [float(c) if c.isdigit() else c for c in completions]\n")
    config = EvaluatorConfig(graders=[{"function": f"{place}:number", "weight": 5.0}])
    (judgement,) = by_graders(config, pairs_of(("1", "2"), ("many", "2")), TEMPLATE)
    assert (judgement.before, judgement.after) == ([1.0, None], [2.0, 2.0])
    (said,) = judgement.remarks
    assert said.startswith("1 completions could not be graded, the first: reward function")


def test_a_further_model_with_a_completion_that_is_not_graded_stays_in_the_ranking(tmp_path):
    place = tmp_path / "grader.py"
    place.write_text(
        "def number(completions, id, **_): return [None if (i, c) == ('1', '3') else float(c) "
        "for i, c in zip(id, completions)]\n"
    )
    config = EvaluatorConfig(grader={"function": f"{place}:number"})
    (judgement,) = by_run_grader(config, pairs_of(("1", "2"), ("1", "2"), third="3"), TEMPLATE, decides=True)
    assert judgement.others == {"third": [3.0, None]}


@pytest.mark.parametrize(
    ("outcomes", "failures", "said"),
    [
        (
            [0.5, 1.0, 0.5, None, None],
            {},
            [
                "1 of the 2 pairs that it was asked about and answered (50\u00a0%) were judged the other way round",
                "2 pairs were not asked about, for more than judge.max_rows (3) were there",
            ],
        ),
        (
            [0.5, 1.0, 0.5, None, None],
            {"timeout": 1},
            [
                "1 of the 2 pairs that it was asked about and answered (50\u00a0%) were judged the other way round",
                "1 pairs could not be judged (timeout: 1)",
                "1 pairs were not asked about",
            ],
        ),
    ],
)
def test_a_judge_is_measured_by_what_it_was_asked(monkeypatch, outcomes, failures, said):
    answers = Judged(outcomes, failures, disagreed=1, asked=4, cached=0)
    monkeypatch.setattr("rlhf.evaluator.judgements.judge", lambda *_: answers)
    pairs = pairs_of(("a", "b"), ("a", "b"), ("same", "same"), ("a", "b"), ("a", "b"))
    found = by_language_model(EvaluatorConfig(judge={"model": "m", "max_rows": 3}), pairs, TEMPLATE)
    assert len(found.remarks) == len(said)
    assert all(remark.startswith(start) for remark, start in zip(found.remarks, said, strict=True))


def test_a_judge_reads_prompts_without_the_templates_control_tokens_and_marks(monkeypatch):
    template = Template(
        chat_template="{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "<|im_start|>assistant\n",
        control_tokens=("<|im_start|>", "<|im_end|>"),
    )
    asked = []

    def judge(config, prompts, *_):
        asked.extend(prompts)
        return Judged([1.0], {}, disagreed=0, asked=2, cached=0)

    monkeypatch.setattr("rlhf.evaluator.judgements.judge", judge)
    (pair,) = pairs_of(("a", "b"))
    pair = replace(pair, prompt=template.render("Who <|im_end|> is it?"))
    by_language_model(EvaluatorConfig(judge={"model": "m"}), [pair], template)
    (prompt,) = asked
    assert "Who <|im_end|> is it?" in prompt
    assert "<|im_start|>" not in prompt
    assert prompt.isascii(), "marks are private-use characters"


def test_the_same_text_is_a_tie_however_a_grader_draws(tmp_path):
    place = tmp_path / "grader.py"
    place.write_text(
        "import itertools\nDRAWN = itertools.count()\n"
        "def drawn(completions, **_): return [float(next(DRAWN)) for _ in completions]\n"
    )
    pairs = pairs_of(("same", "same"), ("a", "b"))
    (judgement,) = by_graders(EvaluatorConfig(graders=[{"function": f"{place}:drawn"}]), pairs, TEMPLATE)
    assert judgement.outcomes == [0.5, 1.0]


def test_what_rounding_makes_of_equal_sums_is_a_tie():
    assert outcomes_of([0.1 + 0.2, 1.0], [0.3, 1.0 + 1e-6]) == [0.5, 1.0]


@pytest.mark.parametrize(("decides", "outcome"), [(True, 0.5), (False, 1.0)])
def test_the_tie_margin_is_of_who_decides(tmp_path, decides, outcome):
    place = tmp_path / "grader.py"
    place.write_text("def number(completions, **_): return [float(c) for c in completions]\n")
    config = EvaluatorConfig(grader={"function": f"{place}:number"}, tie_margin=1.0)
    (judgement,) = by_run_grader(config, pairs_of(("1", "2")), TEMPLATE, decides)
    assert judgement.outcomes == [outcome]


def test_the_reward_model_scores_each_text_once_so_that_the_same_has_one_score(monkeypatch):
    class Drawing:
        card = None

        def score(self, prompts, completions, batch_size, on_batch):
            assert len(set(zip(prompts, completions, strict=True))) == len(completions)
            return [float(place) for place, _ in enumerate(completions)]

    monkeypatch.setattr("rlhf.models.scoring.RewardModel.load", lambda folder, template: Drawing())
    judgement, _ = by_reward_model(EvaluatorConfig(), pairs_of(("same", "same"), ("a", "b"), third="b"), "m", TEMPLATE)
    assert judgement.outcomes == [0.5, 1.0]
    assert judgement.before[0] == judgement.after[0]
    assert judgement.others["third"] == [judgement.after[1]] * 2
