import os
import random
import subprocess
import sys

import numpy as np
import pytest

from rlhf.data_validation import near_duplicates as module
from rlhf.data_validation.near_duplicates import NearDuplicates, jaccard, near_duplicates, shingles


def words(number: int, start: str = "word") -> list[str]:
    return [f"{start}{i}" for i in range(number)]


def changed(text: list[str], *positions: int) -> str:
    return " ".join("other" if i in positions else word for i, word in enumerate(text))


def counted(monkeypatch) -> list:
    """Calls of the exact comparison from now on."""
    calls = []
    monkeypatch.setattr(module, "jaccard", lambda a, b: calls.append(1) or jaccard(a, b))
    return calls


def test_a_word_changed_in_a_long_text_makes_a_near_duplicate_with_the_exact_similarity():
    text = words(100)
    result = near_duplicates([" ".join(text), "something else altogether, of a few words", changed(text, 50)])
    assert result == NearDuplicates(2, ((0, 2, pytest.approx(91 / 101)),))


def test_what_lies_below_the_threshold_is_not_reported_even_where_the_hashes_agree():
    text = words(45)
    texts = [" ".join(text), changed(text, 20)]
    assert near_duplicates(texts, 0.78).pairs == ((0, 1, pytest.approx(36 / 46)),)
    assert near_duplicates(texts, 0.79) == NearDuplicates(0, ())


def test_exact_duplicates_are_not_near_duplicates():
    text = " ".join(words(50))
    assert near_duplicates([text, text, f"  {text}\n"]) == NearDuplicates(0, ())


def test_case_and_punctuation_make_near_duplicates_of_similarity_one():
    assert near_duplicates(["Do I sue them, now?", "do i SUE them now"]).pairs == ((0, 1, 1.0),)


def test_every_copy_of_a_near_duplicate_counts_and_the_first_stands_for_all():
    text = words(100)
    near = changed(text, 3)
    result = near_duplicates([near, " ".join(text), f"{near}\n", near])
    assert result.texts == 4
    assert [pair[:2] for pair in result.pairs] == [(0, 1)]


def test_the_most_similar_pair_comes_first():
    a, b = words(100), words(100, "noun")
    texts = [" ".join(a), changed(a, 20, 60), " ".join(b), changed(b, 20)]
    assert [pair[:2] for pair in near_duplicates(texts).pairs] == [(2, 3), (0, 1)]


def test_every_text_is_paired_and_the_most_similar_ones_with_each_other():
    a = words(200)
    texts = [changed(a, 20, 60, 100), changed(a, 20), " ".join(a), changed(a, 20, 60, 100, 140)]
    result = near_duplicates(texts)
    assert result.texts == 4
    assert {pair[:2] for pair in result.pairs} == {(1, 2), (0, 3)}
    chain = near_duplicates([*texts[1:3], changed(a, 20, 60)])
    assert {pair[:2] for pair in chain.pairs} == {(0, 1), (0, 2)}


def test_exactly_the_texts_that_all_comparisons_find_are_found():
    rng = random.Random(0)
    vocabulary = words(300)
    texts = [rng.choices(vocabulary, k=rng.randint(30, 120)) for _ in range(150)]
    texts = [" ".join(text) for text in texts] + [changed(text, *rng.sample(range(30), 1)) for text in texts]
    sets = [set(shingles(text)) for text in texts]
    pairs = {(i, j) for j in range(len(texts)) for i in range(j) if jaccard(sets[i], sets[j]) >= 0.8}
    assert 100 < len(pairs) < 150  # some of the changed ones are too short to be near
    result = near_duplicates(texts)
    assert {pair[:2] for pair in result.pairs} == pairs
    assert result.texts == len({i for pair in pairs for i in pair})


def one_family(seed: int) -> list[str]:
    """So many texts so alike that not all pairs are compared, most of them a little less than near."""
    rng = random.Random(seed)
    return [changed(words(80), *rng.sample(range(80), 4)) for _ in range(1500)]


def test_the_count_does_not_depend_on_the_order_of_the_texts():
    texts = one_family(1)
    result, again = (near_duplicates(order, 0.7) for order in (texts, random.Random(2).sample(texts, len(texts))))
    assert 500 < result.texts < 1500
    assert again.texts == result.texts
    assert sorted(s for *_, s in again.pairs) == sorted(s for *_, s in result.pairs)


def test_another_process_finds_the_same_with_the_same_seed():
    code = (
        "from rlhf.data_validation.near_duplicates import near_duplicates\n"
        f"print(near_duplicates({one_family(1)}, 0.7))"
    )
    first, second = (
        subprocess.run(
            [sys.executable, "-"],
            input=code,
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in "12"
    )
    assert first == second
    assert first == f"{near_duplicates(one_family(1), 0.7)}\n"
    assert first != f"{near_duplicates(one_family(1), 0.7, seed=1)}\n"


def test_thousands_of_copies_are_compared_once(monkeypatch):
    calls = counted(monkeypatch)
    text = words(50)
    assert near_duplicates([" ".join(text)] * 3000 + [f"{' '.join(text)} more"] * 3000).texts == 6000
    assert len(calls) == 1


def test_thousands_of_texts_from_one_template_take_a_comparison_each(monkeypatch):
    calls = counted(monkeypatch)
    assert near_duplicates([f"{' '.join(words(50))}{'!' * i}" for i in range(3000)]).texts == 3000
    assert len(calls) < 3000


def test_thousands_of_texts_that_are_not_quite_near_take_a_few_comparisons_each(monkeypatch):
    calls = counted(monkeypatch)
    base = words(100)
    texts = [f"{' '.join(base)} {' '.join(words(15, f'n{i}x'))} {' '.join(base[50:])}" for i in range(1500)]
    assert near_duplicates(texts).texts == 0
    assert 0 < len(calls) <= 1500 * 20


def test_texts_that_share_a_bucket_by_chance_are_not_compared(monkeypatch):
    calls = counted(monkeypatch)
    assert near_duplicates([" ".join(words(50) + words(50, f"n{i}x")) for i in range(300)]).texts == 0
    assert not calls


def test_of_a_bucket_of_thousands_only_so_many_pairs_are_looked_at():
    everything_equal = np.ones((3000, module.BANDS * module.ROWS_PER_BAND), dtype=np.uint32)
    assert len(module._most_similar_first(everything_equal, 0.0)) < 3000 * 20


@pytest.mark.parametrize(
    ("texts", "near"),
    [
        ([], 0),
        (["one text"], 0),
        (["", " ", "\n"], 0),
        (["Yes.", "yes!"], 2),
        (["yes", "no"], 0),
        (["yes", "yes sir"], 0),
        (["!!!", "???", "🙂"], 0),
    ],
)
def test_short_texts_resemble_only_texts_of_the_same_words(texts, near):
    assert near_duplicates(texts).texts == near


def test_scripts_without_spaces_are_compared_character_by_character():
    text = (
        "我弟弟没有问我就把我的吉他卖了我星期一才知道现在不知道该怎么办朋友们说"
        "应该冷静地和他谈谈可是我很难过因为那是爷爷送给我的礼物我保存了很多年"
    )
    assert near_duplicates([text, text.replace("星期一", "星期二")]).texts == 2
    assert near_duplicates([text, text[::-1]]).texts == 0


def test_half_characters_do_no_harm():
    text = " ".join(words(60))
    assert near_duplicates([f"\ud800 {text}", f"{text} \udfff", "\ud83d"]).texts == 2


@pytest.mark.parametrize("threshold", [0.0, 0.69, 1.01])
def test_a_threshold_at_which_too_many_are_overlooked_is_refused(threshold):
    with pytest.raises(ValueError, match=r"threshold is .*expected 0\.7 to 1"):
        near_duplicates([], threshold)
