"""Graders that come with the project, and sums and products of graders."""

import math

import pytest
import torch
from transformers import BertModel

from rlhf.data.template import Template
from rlhf.errors import ConfigError, ModelError, TrainingError
from rlhf.models.card import ModelCard
from rlhf.rewards import builtin
from rlhf.rewards.combined import Rewards
from rlhf.rewards.config import RewardFunction
from rlhf.rewards.groups import flattened, make_grader
from tests.models import untrained_reward_model


def grades(name: str, completions, options=None, **columns):
    """Of a built-in, called as its process calls it."""
    RewardFunction.parse({"builtin": name, "options": options or {}})
    prompts = ["P"] * len(completions)
    return builtin.make(name, options or {})(prompts=prompts, completions=completions, **columns)


def test_length_is_1_in_the_band_and_falls_to_0_outside():
    completions = ["one two", "one two three", "one two three four", "one " * 5, "one " * 6, "one " * 9, ""]
    assert grades("length", completions, {"least": 2, "most": 4}) == [1.0, 1.0, 1.0, 0.5, 0.0, 0.0, 0.0]
    assert grades("length", ["ab", "abcd"], {"unit": "characters", "most": 3, "slack": 0.0}) == [1.0, 0.0]
    assert grades("length", ["x " * 1000], {"least": 2}) == [1.0]


def test_regex_searches_or_matches_all_or_wants_none():
    said = ["call 911", "911", "none"]
    assert grades("regex", said, {"pattern": r"\d+"}) == [1.0, 1.0, 0.0]
    assert grades("regex", said, {"pattern": r"\d+", "mode": "fullmatch"}) == [0.0, 1.0, 0.0]
    assert grades("regex", said, {"pattern": r"\d+", "absent": True}) == [0.0, 0.0, 1.0]


def test_json_schema_tells_valid_from_other_json_from_none():
    schema = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer", "minimum": 1}}}
    said = ['{"a": 1}', '```json\n{"a": 2}\n```', '{"a": 0}', "[]", "a: 1", "", '{"a": NaN}', "[" * 100_000]
    assert grades("json_schema", said, {"schema": schema}) == [1.0, 1.0, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0]
    assert grades("json_schema", said[1:2], {"schema": schema, "fenced": False}) == [0.0]


def test_exact_match_is_against_a_column_and_can_look_for_the_answer_in_the_text():
    references = [" 42", "42", None, ""]
    assert grades("exact_match", ["42\n", "4", "42", "x"], reference=references) == [1.0, 0.0, None, None]
    options = {"column": "answer", "pattern": r"#### (\S+)", "ignore_case": True}
    assert grades("exact_match", ["1 #### no #### Yes", "yes"], options, answer=["yes", "yes"]) == [1.0, 0.0]


def test_rouge_and_similarity_are_against_a_column():
    said, references = ["the cat sat", "a dog", "x"], ["the cat sat", "the cat sat", None]
    assert grades("rouge", said, reference=references) == [1.0, 0.0, None]
    same, other, none = grades("similarity", said, reference=references)
    assert same == pytest.approx(1.0)
    assert 0 <= other < 0.3
    assert none is None
    with pytest.raises(ValueError, match="there is no 'summary', only reference"):
        grades("rouge", said, {"column": "summary"}, reference=references)


def test_toxicity_counts_whole_words_of_a_list():
    said = ["You IDIOT!", "idiotic, and fine", "a b c idiot"]
    assert grades("toxicity", said) == [0.0, 1.0, 0.0]
    assert grades("toxicity", said[2:], {"share": 0.5}) == [0.5]
    assert grades("toxicity", ["oh no", "yes"], {"words": ["oh no", "c++"]}) == [0.0, 1.0]


def test_messages_are_read_as_what_they_say():
    assert grades("regex", [[{"role": "assistant", "content": "yes"}]], {"pattern": "^yes$"}) == [1.0]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"builtin": "lenght"}, "builtin: found 'lenght', expected one of length, regex.* toxicity, reward_model"),
        (
            {"builtin": "length", "options": {"max": 3}},
            "length takes the options unit, least, most, slack; unknown: max",
        ),
        ({"builtin": "regex"}, "missing: pattern"),
        ({"builtin": "regex", "options": {"pattern": "("}}, "pattern: '\\(' is no regular expression"),
        ({"builtin": "exact_match", "options": {"pattern": "("}}, "pattern: '\\(' is no regular expression"),
        ({"builtin": "reward_model"}, "reward_model takes the options model; unknown: none; missing: model"),
        ({"builtin": "reward_model", "options": {"model": 1}}, "reward_model.model: found 1, expected str"),
        ({"builtin": "length", "options": {"most": "ten"}}, "length.most: found 'ten', expected int"),
        ({"builtin": "length", "options": {"unit": "tokens"}}, "unit: found 'tokens', expected words or characters"),
        ({"builtin": "length", "http": "http://x"}, "exactly one of function, http, builtin, sum, product"),
        ({"weight": 2.0}, "exactly one of"),
        ({"http": "ftp://x"}, "a URL that begins with http"),
        ({"function": "g.py", "options": {"a": 1}}, "options are for a builtin"),
        ({"sum": [{"builtin": "length"}, {"weight": 1.0}]}, r"sum.1: found"),
        ({"sum": [{"builtin": "length", "wieght": 2}]}, r"sum.0.wieght'?: did you mean 'weight'"),
    ],
)
def test_wrong_options_are_refused_by_name(options, expected):
    with pytest.raises(ConfigError, match=expected):
        RewardFunction.parse(options)


@pytest.fixture
def made():
    started = []

    def make(options):
        started.append(make_grader(RewardFunction.parse(options)))
        return started[-1]

    yield make
    for each in started:
        each.close()


def asked(grader, *completions, **columns):
    return grader.grade(["P"] * len(completions), list(completions), columns)


SHORT = {"builtin": "length", "options": {"most": 2}}


def test_a_sum_is_weighted_and_leaves_out_who_does_not_judge(made):
    grader = made({"sum": [{**SHORT, "weight": 2.0}, {"builtin": "exact_match", "weight": -1.0}], "name": "both"})
    assert asked(grader, "a b", "a b", "a b c d", reference=["a b", None, None]) == [1.0, 2.0, 0.0]
    assert asked(made({"sum": [{"builtin": "exact_match"}]}), "a", reference=[None]) == [None]


def test_a_product_is_weighted_by_powers_and_0_if_any_is(made):
    half = {"builtin": "length", "options": {"most": 2, "slack": 1.0}, "weight": 2.0}
    grader = made({"product": [half, {"builtin": "regex", "options": {"pattern": "a"}}]})
    assert asked(grader, "a b", "a b c", "x y", "a b c d") == [1.0, 0.25, 0.0, 0.0]


def test_a_negative_grade_in_a_product_is_refused_with_its_row(made, tmp_path):
    (tmp_path / "g.py").write_text(
        "def grade(completions, **_): return [-1.0 if c == 'b' else 1.0 for c in completions]"
    )
    grader = made({"product": [{"function": f"{tmp_path}/g.py"}, SHORT]})
    with pytest.raises(TrainingError, match=r"g.py:grade: gave -1 for row 2 of 2 \(id 'y'\), and stands in a product"):
        asked(grader, "a", "b", id=["x", "y"])


def test_a_row_that_a_part_cannot_grade_is_nan_in_the_group_and_said(made, tmp_path):
    (tmp_path / "g.py").write_text("def grade(completions, **_): return [1 if c == 'a' else 'no' for c in completions]")
    for kind in ("sum", "product"):
        grader = made({kind: [SHORT, {"function": f"{tmp_path}/g.py"}]})
        first, second = asked(grader, "a", "b", id=["x", "y"])
        assert first in (1.0, 2.0)
        assert math.isnan(second)
        assert "returned 'no' (str) for row 2 of 2 (id 'y')" in grader.faults[1]


def test_an_outermost_sum_is_its_parts_each_logged_by_itself():
    config = RewardFunction.parse({"sum": [SHORT, {"sum": [{**SHORT, "weight": 3.0}], "weight": 2.0}], "weight": 0.5})
    assert [(each.name, each.weight) for each in flattened(config)] == [("length", 0.5), ("length", 3.0)]
    alone = RewardFunction.parse({"product": [SHORT]})
    assert flattened(alone) == [alone]


def test_a_pattern_that_takes_for_ever_is_ended_and_its_row_skipped(made):
    options = {"builtin": "regex", "options": {"pattern": "^(a+)+$"}, "timeout_seconds": 1.5}
    grader = made(options)
    found = asked(grader, "b", "aaa", "a" * 60 + "b", "b")
    assert found[:2] + found[3:] == [0.0, 1.0, 0.0]
    assert math.isnan(found[2])
    assert "grader regex: hung for row 3 of 4" in grader.faults[2]


def test_similarity_by_an_encoder_is_the_cosine_of_mean_states(made, bert_folder):
    from transformers import AutoModel, AutoTokenizer

    short, long = "should i sue", "my brother sold my guitar on monday"
    grader = made({"builtin": "similarity", "options": {"model": str(bert_folder)}})
    same, other, swapped, none = asked(grader, long, short, long, "x", reference=[long, long, short, None])
    assert same == pytest.approx(1.0, abs=1e-5)
    assert none is None
    tokenizer, encoder = AutoTokenizer.from_pretrained(bert_folder), AutoModel.from_pretrained(bert_folder).eval()
    with torch.inference_mode():
        means = [encoder(**tokenizer(said, return_tensors="pt")).last_hidden_state[0].mean(0) for said in (short, long)]
    by_hand = torch.cosine_similarity(*means, dim=0).item()
    assert by_hand < 0.99
    assert other == pytest.approx(by_hand, abs=1e-4), "padding counts for nothing"
    assert swapped == pytest.approx(other, abs=1e-5)


def test_an_encoder_reads_some_texts_at_a_time(bert_folder, monkeypatch):
    sizes = []
    monkeypatch.setattr(builtin, "EMBEDDED_AT_ONCE", 2)
    forward = BertModel.forward
    monkeypatch.setattr(BertModel, "forward", lambda *a, **b: sizes.append(len(b["input_ids"])) or forward(*a, **b))
    texts = ["my brother", "sold my guitar on monday", "should i sue", "my boss", "my bike"]
    found = grades("similarity", texts, {"model": str(bert_folder)}, reference=texts)
    assert found == pytest.approx([1.0] * 5, abs=1e-5)
    assert sizes == [2, 2, 1] * 2


def test_an_encoder_that_is_not_there_is_named_before_anything_is_graded(made, tmp_path):
    with pytest.raises(ConfigError, match=rf"grader similarity: cannot be made: OSError: .*{tmp_path}/nowhere"):
        made({"builtin": "similarity", "options": {"model": f"{tmp_path}/nowhere"}})


def test_a_reward_model_gives_the_scores_that_it_gives_elsewhere(bert_folder, tmp_path):
    template = Template(suffix="TL;DR:")
    torch.manual_seed(0)
    model = untrained_reward_model(bert_folder, template)
    card = ModelCard(kind="reward_model", base="tiny", template_digest=template.digest, score_shift=-2.5)
    model.save(tmp_path / "model", card)
    options = {"builtin": "reward_model", "options": {"model": f"{tmp_path}/model"}, "weight": 2.0}
    texts, said = ["My brother.\nTL;DR:", "My boss.\nTL;DR:"], ["sold my guitar", "should i sue"]
    (config,) = flattened(RewardFunction.parse({"sum": [options]}))
    rewards = Rewards(None, 1.0, [make_grader(config, template)])
    messages = [[{"role": "user", "content": text}] for text in texts]
    scored = rewards.score(texts, messages, said, {"id": ["a", "b"]})
    expected = [score - 2.5 for score in model.score(texts, said)]
    assert scored.parts["reward_model"] == pytest.approx(expected, abs=1e-4), "of the rendered prompts"
    assert scored.total == pytest.approx([2 * score for score in expected], abs=1e-4)
    long = rewards.score(texts, messages, [said[0], "boss " * 600], {"id": ["a", "b"]})
    assert long.total[0] == pytest.approx(scored.total[0], abs=1e-4)
    assert math.isnan(long.total[1])
    assert "do not fit its 512 positions" in long.faults[1]
    with pytest.raises(ModelError, match="template"):
        make_grader(config, Template(suffix="Summary:"))


def test_a_reward_model_can_be_no_part_of_a_product():
    model = {"builtin": "reward_model", "options": {"model": "/nowhere"}}
    with pytest.raises(ConfigError, match="product: a reward_model can stand alone or in a sum"):
        RewardFunction.parse({"product": [SHORT, {"sum": [model]}]})
    assert len(flattened(RewardFunction.parse({"sum": [SHORT, {"sum": [model]}]}))) == 2
