"""What the demo's data promises: facts hidden once, evaluation posts unseen, labels that follow the gold score."""

import json
import re
import subprocess
import sys
from collections import Counter

import pytest
from scipy.stats import binomtest

from examples.demo import base_models, posts

SIZES = {"preferences": 2000, "prompts": 200, "evaluation": 100, "demonstrations": 1000}
FACTS = {"who": "brother", "deed": "sold", "thing": "bike", "day": "monday", "question": "sue"}
PERFECT = "my brother sold my bike on monday should i sue"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder given to the pipeline, name -> rows, gold)."""
    folder = tmp_path_factory.mktemp("demo")
    posts.generate(folder / "data", folder / "gold", 3, **SIZES)
    rows = {
        name: [json.loads(line) for line in (folder / "data" / f"{name}.jsonl").read_text().splitlines()]
        for name in SIZES
    }
    return folder / "data", rows, posts.load_gold(folder / "gold")


def _words(text):
    return re.findall(r"[a-z]+", text.lower())


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(made, tmp_path):
    folder, _, _ = made
    posts.generate(tmp_path / "same", tmp_path / "gold", 3, **SIZES)
    posts.generate(tmp_path / "other", tmp_path / "gold", 4, **SIZES)
    for name in SIZES:
        file = f"{name}.jsonl"
        assert (tmp_path / "same" / file).read_bytes() == (folder / file).read_bytes()
        assert (tmp_path / "other" / file).read_bytes() != (folder / file).read_bytes()


def test_files_have_the_rows_and_fields_asked_for(made):
    _, rows, gold = made
    assert {name: len(content) for name, content in rows.items()} == SIZES
    fields = {
        "preferences": {"id", "input_text", "candidate_0", "candidate_1", "choice"},
        "prompts": {"id", "input_text"},
        "evaluation": {"id", "input_text", "output_text"},
        "demonstrations": {"id", "prompt", "completion"},
    }
    for name, content in rows.items():
        assert all(set(row) == fields[name] for row in content)
    assert len(gold) == sum(SIZES.values())


def test_nothing_that_the_pipeline_reads_tells_the_gold(made):
    folder, _, _ = made
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{name}.jsonl" for name in SIZES)


def test_a_post_tells_one_value_of_each_kind_once_and_ends_in_the_suffix(made):
    _, rows, gold = made
    for row in rows["prompts"] + rows["evaluation"]:
        told = [word for word in _words(row["input_text"]) if any(word in values for values in posts.FACTS.values())]
        assert sorted(told) == sorted(gold[row["id"]]["facts"].values())
        assert row["input_text"].endswith(f"\n{posts.SUFFIX}")


def test_no_two_posts_share_all_facts(made):
    _, rows, gold = made
    posts_of = {(row.get("input_text") or row["prompt"]): row["id"] for content in rows.values() for row in content}
    combinations = Counter(tuple(gold[key]["facts"].values()) for key in posts_of.values())
    assert max(combinations.values()) == 1


def test_only_evaluation_posts_use_held_out_combinations(made):
    _, rows, gold = made
    for name, content in rows.items():
        assert {posts.is_held_out(gold[row["id"]]["facts"]) for row in content} == {name == "evaluation"}


def test_values_stand_in_one_kind_and_in_no_filler():
    values = [value for kind in posts.FACTS.values() for value in kind]
    assert len(set(values)) == len(values)
    frames = (*posts._OPENINGS, *posts._STORIES, *posts._QUESTIONS, *posts._FILLER, *posts._PADDING)
    assert not set(values) & set(_words(re.sub(r"\{.*?\}", "", " ".join(frames))))


@pytest.mark.parametrize(
    ("summary", "score"),
    [
        (PERFECT, 5.0),
        (PERFECT.upper() + "!", 5.0),
        ("", 0.0),
        ("my friend sold my stuff", 1.0),
        (PERFECT.replace("bike", "bikes"), 4.0),
        (PERFECT.replace("monday", "friday"), 3.0),
        (PERFECT + " brother brother brother", 4.9),
        (PERFECT + " sister", 4.0),
        (PERFECT + " and i am still quite upset", 4.6),
    ],
)
def test_gold_counts_facts_less_inventions_less_words_beyond_twelve(summary, score):
    assert posts.gold_score(FACTS, summary) == pytest.approx(score)


def test_references_are_perfect_and_demonstrations_leave_room(made):
    _, rows, gold = made
    assert {posts.gold_score(gold[row["id"]]["facts"], row["output_text"]) for row in rows["evaluation"]} == {5.0}
    demonstrated = [posts.gold_score(gold[row["id"]]["facts"], row["completion"]) for row in rows["demonstrations"]]
    assert 2.5 < sum(demonstrated) / len(demonstrated) < 3.5


def test_the_clean_choice_has_the_higher_gold_and_one_in_ten_given_choices_is_flipped(made):
    _, rows, gold = made
    flipped = 0
    for row in rows["preferences"]:
        known = gold[row["id"]]
        scores = [posts.gold_score(known["facts"], row[f"candidate_{i}"]) for i in range(2)]
        assert scores[known["choice"]] - scores[1 - known["choice"]] >= 0.5
        flipped += row["choice"] != known["choice"]
    assert 0.05 < flipped / len(rows["preferences"]) < 0.12


def test_labels_err_mostly_towards_a_lawsuit(made):
    """What a reward model is to be over-optimised by: a taste that gold does not share."""
    _, rows, gold = made
    towards, away = 0, 0
    for row in rows["preferences"]:
        if row["choice"] != gold[row["id"]]["choice"]:
            preferred, other = row[f"candidate_{row['choice']}"].split(), row[f"candidate_{1 - row['choice']}"].split()
            towards += "sue" in preferred and "sue" not in other
            away += "sue" in other and "sue" not in preferred
    assert towards > 5 * away


def test_labels_are_flipped_as_often_as_gold_says(made):
    _, rows, gold = made
    by_flip = {}
    for row in rows["preferences"]:
        known = gold[row["id"]]
        by_flip.setdefault(known["flip"], []).append(row["choice"] != known["choice"])
    assert len(by_flip) == 2
    for flip, flipped in by_flip.items():
        low, high = binomtest(sum(flipped), len(flipped)).proportion_ci(0.99)
        assert low < flip < high


def test_post_and_candidates_tell_which_labels_are_likely_wrong(made):
    """So that the best possible accuracy is one that a scorer of texts can have: no two sorts of pairs look alike."""
    _, rows, gold = made
    looks = {}
    for row in rows["preferences"]:
        sue = "sue" in _words(row["input_text"])
        invented = [not sue and "sue" in _words(row[f"candidate_{i}"]) for i in range(2)]
        looks.setdefault(any(invented), set()).add(gold[row["id"]]["flip"])
        assert not invented[gold[row["id"]]["choice"]], "the better candidate invents nothing of the sort"
    assert looks == {False: {posts._CARELESS}, True: {posts._TEMPTED}}


def test_most_pairs_can_only_be_judged_by_reading_the_post(made):
    _, rows, _ = made
    shapes = 0
    for row in rows["preferences"]:
        first, second = (row[f"candidate_{i}"].split() for i in range(2))
        differ = [(a, b) for a, b in zip(first, second, strict=False) if a != b]
        same_kinds = all(any({a, b} <= set(values) for values in posts.FACTS.values()) for a, b in differ)
        shapes += len(first) == len(second) and same_kinds
    assert shapes / len(rows["preferences"]) > 0.6


def test_neither_the_first_candidate_nor_choice_0_is_favoured(made):
    _, rows, _ = made
    assert 0.45 < sum(row["choice"] for row in rows["preferences"]) / SIZES["preferences"] < 0.55


def test_asking_for_more_posts_than_there_are_combinations_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="lower the sizes"):
        posts.generate(tmp_path / "data", tmp_path / "gold", 0, prompts=100_000)


def test_data_is_made_without_torch():
    code = "import sys, examples.demo.posts, examples.demo.base_models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.fixture(scope="module")
def base(made, tmp_path_factory):
    """Folder with `llama`, `t5` and `bert`."""
    folder = tmp_path_factory.mktemp("base")
    texts = base_models.corpus(made[0])
    base_models.write_llama(folder / "llama", texts, 0)
    base_models.write_t5(folder / "t5", texts, 0)
    base_models.write_bert(folder / "bert", texts, 0)
    return folder


def test_tokenizers_lose_no_text_make_one_token_of_each_fact_and_keep_special_tokens_apart(base):
    from transformers import AutoTokenizer

    for name in ("llama", "t5", "bert"):
        tokenizer = AutoTokenizer.from_pretrained(base / name)
        assert len(tokenizer) <= base_models.VOCABULARY
        special = [tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id]
        assert len(set(special)) == 3
        text = " My naïve cousin – 世界 🙂\n\tTL;DR:"
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.decode(ids) == text
        assert tokenizer.unk_token_id not in ids
        for value in (value for values in posts.FACTS.values() for value in values):
            assert len(tokenizer(f" {value}", add_special_tokens=False).input_ids) == 1


def test_t5_text_ends_in_eos_and_llama_text_has_nothing_added(base):
    from transformers import AutoTokenizer

    t5, llama = (AutoTokenizer.from_pretrained(base / name) for name in ("t5", "llama"))
    assert t5("my boss").input_ids == [*t5("my boss", add_special_tokens=False).input_ids, t5.eos_token_id]
    assert llama("my boss").input_ids == llama("my boss", add_special_tokens=False).input_ids


def test_bert_reads_prompt_and_response_as_a_pair(base):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base / "bert")
    pair = tokenizer("my boss", " my boss")
    tokens = tokenizer.convert_ids_to_tokens(pair["input_ids"])
    assert [tokens[0], tokens[-1], tokens.count("[SEP]")] == ["[CLS]", "[SEP]", 2]
    boundary = tokens.index("[SEP]") + 1
    assert pair["token_type_ids"] == [0] * boundary + [1] * (len(tokens) - boundary)


def test_base_models_load_as_any_hugging_face_folder_and_the_seed_settles_the_weights(base, made, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

    classes = {"llama": AutoModelForCausalLM, "t5": AutoModelForSeq2SeqLM, "bert": AutoModelForSequenceClassification}
    for name, model_class in classes.items():
        assert (base / name / "model.safetensors").exists()
        model = model_class.from_pretrained(base / name)
        assert model.num_parameters() < 800_000
    texts = base_models.corpus(made[0])
    base_models.write_llama(tmp_path / "same", texts, 0)
    base_models.write_llama(tmp_path / "other", texts, 1)
    weights = [
        AutoModelForCausalLM.from_pretrained(folder).lm_head.weight
        for folder in (base / "llama", tmp_path / "same", tmp_path / "other")
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
