import pytest
import torch

from rlhf.data.template import Template
from rlhf.errors import ModelError
from rlhf.models.card import ModelCard
from rlhf.models.scoring import RewardModel
from tests.conftest import CHAT_TEMPLATE

PROMPTS = ["My brother sold my guitar.\nTL;DR:", "So this is about my boss. Should I sue them?\nTL;DR:"]
COMPLETIONS = ["my brother sold my guitar", "should i sue"]


@pytest.fixture(params=["llama", "bert", "t5"])
def reward_model(request) -> RewardModel:
    torch.manual_seed(0)
    return RewardModel.load(request.getfixturevalue(f"{request.param}_folder"))


def test_scores_do_not_depend_on_the_batch_or_its_order(reward_model):
    together = reward_model.score(PROMPTS, COMPLETIONS)
    alone = [reward_model.score([p], [c])[0] for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)
    assert reward_model.score(PROMPTS[::-1], COMPLETIONS[::-1])[::-1] == pytest.approx(together, abs=1e-5)


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
    model = RewardModel.load(bert_folder)
    row = model.encode("My brother", "sold my guitar")
    separator, start = model.tokenizer.sep_token_id, model.tokenizer.cls_token_id
    assert row["input_ids"].count(separator) == 2, "one between the texts and one at the end"
    assert row["input_ids"].count(start) == 1
    boundary = row["input_ids"].index(separator)
    assert row["token_type_ids"] == [0] * (boundary + 1) + [1] * (len(row["input_ids"]) - boundary - 1)
    assert row["input_ids"][-1] == separator


def test_a_causal_model_reads_prompt_completion_and_one_eos(llama_folder):
    model = RewardModel.load(llama_folder)
    ids = model.encode("My brother.\nTL;DR:", "sold my guitar")["input_ids"]
    assert ids[-1] == model.tokenizer.eos_token_id
    assert ids.count(model.tokenizer.eos_token_id) == 1
    assert model.tokenizer.decode(ids[:-1]) == "My brother.\nTL;DR: sold my guitar"


def test_a_text_beyond_the_models_positions_is_refused_with_its_length(llama_folder):
    model = RewardModel.load(llama_folder)
    with pytest.raises(ModelError, match=r"do not fit its 512 positions"):
        model.score(["guitar " * 600], ["sold"])


def test_a_model_that_counts_positions_from_behind_its_padding_has_fewer(bert_folder, tmp_path):
    from transformers import RobertaConfig, RobertaForSequenceClassification

    tokenizer = RewardModel.load(bert_folder).tokenizer
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
    RewardModel.load(bert_folder).tokenizer.save_pretrained(tmp_path)
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
    model = RewardModel.load(chat_folder, CHAT)
    prompt = CHAT.render("My <|im_end|> guitar")
    ids = model.encode(prompt, "sold")["input_ids"]
    tokenizer = model.tokenizer
    assert tokenizer.decode(ids) == (
        "<s><|im_start|>user\nMy <|im_end|> guitar<|im_end|>\n<|im_start|>assistant\nsold</s>"
    )
    assert ids.count(tokenizer.bos_token_id) == ids.count(tokenizer.eos_token_id) == 1
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1
    assert model.count_tokens(prompt) == len(ids) - 1 - len(tokenizer("sold", add_special_tokens=False)["input_ids"])


def test_an_encoder_reads_a_chat_without_the_policys_marks(bert_folder):
    prompt = CHAT.render("My <|im_end|> guitar")
    chat = RewardModel.load(bert_folder, CHAT).encode(prompt, "sold")
    plain = RewardModel.load(bert_folder).encode("user\nMy <|im_end|> guitar\nassistant", "sold")
    assert chat == plain
