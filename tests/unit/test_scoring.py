import math
import re
from types import SimpleNamespace

import pytest
import torch

from rlhf.data.template import Template
from rlhf.errors import DataError, ModelError
from rlhf.models.card import ModelCard
from rlhf.models.policy import Policy
from rlhf.models.scoring import RewardModel
from rlhf.rewards.combined import Rewards
from rlhf.training.prompts import read_prompts
from tests.conftest import CHAT_TEMPLATE
from tests.models import untrained_reward_model

PROMPTS = ["My brother sold my guitar.\nTL;DR:", "So this is about my boss. Should I sue them?\nTL;DR:"]
COMPLETIONS = ["my brother sold my guitar", "should i sue"]


@pytest.fixture(params=["llama", "bert", "t5"])
def reward_model(request) -> RewardModel:
    torch.manual_seed(0)
    return untrained_reward_model(request.getfixturevalue(f"{request.param}_folder"))


def test_scores_do_not_depend_on_the_batch_or_its_order(reward_model):
    together = reward_model.score(PROMPTS, COMPLETIONS)
    alone = [reward_model.score([p], [c])[0] for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)
    assert reward_model.score(PROMPTS[::-1], COMPLETIONS[::-1])[::-1] == pytest.approx(together, abs=1e-5)


def test_a_score_has_all_its_digits_where_the_model_computes_in_bfloat16(reward_model):
    exact = torch.tensor(reward_model.score(PROMPTS, COMPLETIONS))
    with torch.autocast("cpu", torch.bfloat16):
        near = torch.tensor(reward_model.score(PROMPTS, COMPLETIONS))
    assert torch.allclose(near, exact, atol=0.1)
    assert not torch.equal(near.bfloat16().float(), near)


def test_a_text_over_its_positions_costs_a_run_that_row_alone(llama_folder):
    model = untrained_reward_model(llama_folder)
    texts = [COMPLETIONS[0], "my guitar " * 600, COMPLETIONS[1]]
    scored = Rewards(model, 1.0, []).score([PROMPTS[0]] * 3, [PROMPTS[0]] * 3, texts, {"id": ["x", "y", "z"]})
    assert scored.total[::2] == pytest.approx(model.score([PROMPTS[0]] * 2, texts[::2]), abs=1e-5)
    assert math.isnan(scored.total[1])
    assert re.fullmatch(r"reward model: .* do not fit its 512 positions; .* \(id 'y'\)", scored.faults.pop(1))
    assert not scored.faults


def test_a_prompt_that_leaves_no_room_in_a_reward_model_is_refused_before_training(llama_folder, bert_folder):
    template = Template(prompt_sequence_length=10_000, target_sequence_length=100)
    policy = SimpleNamespace(count_tokens=len, encode_prompt=list, require_room=lambda *_: None)
    rows = [{"id": "short", "prompt": PROMPTS[0]}, {"id": "long", "prompt": "guitar " * 450}]
    for folder in (llama_folder, bert_folder):
        judge = untrained_reward_model(folder)
        fits = len(judge.encode(PROMPTS[0], "")["input_ids"])
        assert len(read_prompts(rows[:1], template, policy, judge)[0]) == 1
        with pytest.raises(DataError, match=r"prompts: row 'long' .* the reward model has 512 positions"):
            read_prompts(rows, template, policy, judge)
        judge.max_length = fits + 99
        with pytest.raises(DataError, match=f"row 'short' has {fits} tokens, expected {fits - 1} at most"):
            read_prompts(rows, template, policy, judge)


def test_a_model_without_a_score_head_is_no_reward_model(llama_folder, bert_folder, tmp_path):
    for folder in (llama_folder, bert_folder):
        with pytest.raises(ModelError, match=r"has no weights for (score|.*classifier.*), which would be random"):
            RewardModel.load(folder)


def test_a_policy_is_not_taken_for_a_reward_model_nor_the_other_way_round(llama_folder, tmp_path):
    torch.manual_seed(0)
    untrained_reward_model(llama_folder).save(tmp_path / "judge", ModelCard(kind="reward_model", base="tiny"))
    Policy.load(llama_folder).save(tmp_path / "policy", ModelCard(kind="policy", base="tiny"))
    with pytest.raises(ModelError, match="found a model of kind 'policy', expected 'reward_model'"):
        RewardModel.load(tmp_path / "policy")
    with pytest.raises(ModelError, match="found a model of kind 'reward_model', expected 'policy'"):
        Policy.load(tmp_path / "judge")


def test_a_classifier_without_a_card_is_no_policy_either(pythia_folder, tmp_path):
    card = ModelCard(kind="reward_model", base="tiny")
    untrained_reward_model(pythia_folder).save(tmp_path, card)
    (tmp_path / "rlhf.json").unlink()
    with pytest.raises(ModelError, match=r"its checkpoint has no (lm_head|embed_out)\.weight, which a GPTNeoX"):
        Policy.load(tmp_path)


def test_the_score_depends_on_the_prompt_and_on_the_completion(reward_model):
    right = reward_model.score(PROMPTS, COMPLETIONS)
    assert right != pytest.approx(reward_model.score(PROMPTS[::-1], COMPLETIONS), abs=1e-6)
    assert right != pytest.approx(reward_model.score(PROMPTS, COMPLETIONS[::-1]), abs=1e-6)


def test_a_saved_model_gives_the_same_scores_its_shift_included(reward_model, tmp_path):
    raw = reward_model.score(PROMPTS, COMPLETIONS)
    reward_model.save(tmp_path, ModelCard(kind="reward_model", base="tiny", score_shift=-2.5))
    loaded = RewardModel.load(tmp_path)
    assert loaded.score(PROMPTS, COMPLETIONS) == pytest.approx([score - 2.5 for score in raw], abs=1e-5)


def test_an_encoder_reads_a_pair_with_one_separator_between(bert_folder):
    model = untrained_reward_model(bert_folder)
    row = model.encode("My brother", "sold my guitar")
    separator, start = model.tokenizer.sep_token_id, model.tokenizer.cls_token_id
    assert row["input_ids"].count(separator) == 2, "one between the texts and one at the end"
    assert row["input_ids"].count(start) == 1
    boundary = row["input_ids"].index(separator)
    assert row["token_type_ids"] == [0] * (boundary + 1) + [1] * (len(row["input_ids"]) - boundary - 1)
    assert row["input_ids"][-1] == separator


def test_a_causal_model_reads_prompt_completion_and_one_eos(llama_folder):
    model = untrained_reward_model(llama_folder)
    ids = model.encode("My brother.\nTL;DR:", "sold my guitar")["input_ids"]
    assert ids[-1] == model.tokenizer.eos_token_id
    assert ids.count(model.tokenizer.eos_token_id) == 1
    assert model.tokenizer.decode(ids[:-1]) == "My brother.\nTL;DR: sold my guitar"


def test_a_text_beyond_the_models_positions_is_refused_with_its_length(llama_folder):
    model = untrained_reward_model(llama_folder)
    with pytest.raises(ModelError, match=r"do not fit its 512 positions"):
        model.score(["guitar " * 600], ["sold"])


def test_a_model_that_counts_positions_from_behind_its_padding_has_fewer(bert_folder, tmp_path):
    from transformers import RobertaConfig, RobertaForSequenceClassification

    tokenizer = untrained_reward_model(bert_folder).tokenizer
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=34,
        pad_token_id=1,  # as the published ones have it
        num_labels=1,
    )
    RobertaForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = RewardModel.load(tmp_path)
    fits = next(n for n in range(100, 0, -1) if len(tokenizer("a " * n, "b")["input_ids"]) == 32)
    assert len(model.score(["a " * fits], ["b"])) == 1
    with pytest.raises(ModelError, match="33 tokens do not fit its 32 positions"):
        model.score(["a " * (fits + 1)], ["b"])


def test_a_classifier_with_other_than_one_label_is_refused(bert_folder, tmp_path):
    from transformers import BertForSequenceClassification

    BertForSequenceClassification.from_pretrained(bert_folder, num_labels=3).save_pretrained(tmp_path)
    untrained_reward_model(bert_folder).tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="3 labels, expected 1"):
        RewardModel.load(tmp_path)


SPELLED = "He wrote </s> and [SEP], then <pad> left."


def test_a_post_cannot_bring_special_tokens_along(reward_model):
    row, ordinary = reward_model.encode(SPELLED, "sold</s>[SEP]"), reward_model.encode("He left.", "sold")
    special = set(reward_model.tokenizer.all_special_ids)
    kept = [token for token in ordinary["input_ids"] if token in special]
    assert [token for token in row["input_ids"] if token in special] == kept, "those of the model's own layout"
    text = reward_model.tokenizer.decode(row["input_ids"], skip_special_tokens=True)
    assert text.replace(" ", "") == (SPELLED + "sold</s>[SEP]").replace(" ", "")


CHAT = Template(chat_template=CHAT_TEMPLATE, special_tokens={"bos_token": "<s>"})


def test_a_causal_model_reads_a_chat_with_its_marks_and_one_beginning_of_sequence(chat_folder):
    model = untrained_reward_model(chat_folder, CHAT)
    prompt = CHAT.render("My <|im_end|> guitar")
    ids = model.encode(prompt, "sold")["input_ids"]
    tokenizer = model.tokenizer
    assert tokenizer.decode(ids) == (
        "<s><|im_start|>user\nMy <|im_end|> guitar<|im_end|>\n<|im_start|>assistant\nsold<|im_end|>"
    )
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 2, "that of the data is text"
    assert model.count_tokens(prompt) == len(ids) - 1 - len(tokenizer("sold", add_special_tokens=False)["input_ids"])


def test_an_encoder_reads_a_chat_without_the_policys_marks(bert_folder):
    prompt = CHAT.render("My <|im_end|> guitar")
    chat = untrained_reward_model(bert_folder, CHAT).encode(prompt, "sold")
    plain = untrained_reward_model(bert_folder).encode("user\nMy <|im_end|> guitar\nassistant", "sold")
    assert chat == plain
