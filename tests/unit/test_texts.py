import json
import math
import subprocess
import sys
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer, _lcs_table

from rlhf import rouge as module
from rlhf.errors import ConfigError
from rlhf.evaluator.texts import bertscore, bleu, chrf
from rlhf.metrics import ROUGE_TYPES, rouge
from rlhf.rouge import longest_common_subsequence

WORDS = ["the", "cats", "cat", "sat", "running", "runs", "a", "mat", "don't", "42", "ÉTÉ", "...", "", "Ünder", "x_y"]
texts = st.lists(st.sampled_from([*WORDS, *WORDS, "\n", "\n\n"]), max_size=30).map(" ".join) | st.text(max_size=40)
pairs = st.lists(st.tuples(texts, texts), min_size=1, max_size=6)


def by_rouge_score(predictions, references, stemming=False):
    scorer = RougeScorer(ROUGE_TYPES, use_stemmer=stemming)
    scores = [scorer.score(reference, text) for text, reference in zip(predictions, references, strict=True)]
    return {kind: [score[kind].fmeasure for score in scores] for kind in ROUGE_TYPES}


@settings(max_examples=200, deadline=None)
@given(pairs, st.booleans())
def test_rouge_is_rouge_scores_to_the_last_bit(pairs, stemming):
    predictions, references = zip(*pairs, strict=True)
    assert rouge(predictions, references, stemming).rows == by_rouge_score(predictions, references, stemming)


@pytest.mark.parametrize("stemming", [False, True])
@pytest.mark.parametrize("model", ["tuned", "untuned"])
def test_rouge_is_rouge_scores_row_by_row_on_real_predictions(real_data, model, stemming):
    folder = real_data / "vertex_text"

    def column(file: str, name: str) -> list[str]:
        return [json.loads(line)[name] for line in (folder / file).read_text(encoding="utf-8").splitlines()]

    predictions = column(f"eval_predictions_{model}.jsonl", "prediction")
    references = column("eval_with_references.jsonl", "output_text")
    found = rouge(predictions, references, stemming).rows
    assert len(found["rougeLsum"]) == 14
    for kind, expected in by_rouge_score(predictions, references, stemming).items():
        assert found[kind] == pytest.approx(expected, abs=1e-12)


@settings(deadline=None)
@given(st.lists(st.sampled_from("abcd"), max_size=70), st.lists(st.sampled_from("abcd"), max_size=70))
def test_the_longest_common_subsequence_is_the_last_cell_of_the_table(a, b):
    assert longest_common_subsequence(a, b) == _lcs_table(a, b)[-1][-1]


@pytest.fixture
def at_once(monkeypatch):
    """Helpers are started after the first chunk, however little is left; the processes that were started."""
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    monkeypatch.setattr(module, "WORTH", 1e-9)
    started = []

    class Process(subprocess.Popen):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Process)
    return started


def some(rows):
    predictions = [f"cat {row % 7} sat\non mat {row % 11}" for row in range(rows)]
    return predictions, [f"running cats sat {row % 5}\non a mat {row}" for row in range(rows)]


def test_rouge_by_several_processes_is_in_the_rows_order(at_once):
    predictions, references = some(1500)
    found = rouge(predictions, references, stemming=True, processes=2).rows
    assert [process.returncode for process in at_once] == [0]
    assert found == by_rouge_score(predictions, references, stemming=True)


def test_a_helper_that_dies_loses_no_row(at_once, monkeypatch):
    monkeypatch.setattr(module.sys, "executable", "/bin/false")
    predictions, references = some(500)
    assert rouge(predictions, references, processes=2).rows == by_rouge_score(predictions, references)
    assert len(at_once) == 1


def test_one_process_is_alone_if_told_so(at_once):
    predictions, references = some(500)
    rouge(predictions, references, processes=1)
    assert at_once == []


def test_a_little_work_starts_no_process(monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    assert len(rouge(*some(250), processes=8).rows["rouge1"]) == 250


def test_a_helper_imports_neither_torch_nor_kfp():
    code = "import sys, rlhf.rouge; print(sorted({'torch', 'kfp', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_rouge_of_texts_that_do_not_pair_up_is_refused():
    with pytest.raises(ValueError, match="shorter"):
        rouge(["a", "b"], ["a"])


def test_bleu_is_papinenis_formula():
    # 6 of 7 words, 4 of 6 pairs, 2 of 5 triples, 1 of 4 runs of four; 7 words against 8: brevity exp(1 - 8/7)
    expected = 100 * math.exp(1 - 8 / 7) * (6 / 7 * 4 / 6 * 2 / 5 * 1 / 4) ** (1 / 4)
    assert bleu(["a b c d x e f"], ["a b c d e f g h"]) == pytest.approx(expected)


def test_bleu_and_chrf_are_of_the_whole_corpus_and_not_means_of_rows():
    predictions, references = ["a b c d e f g h i j", "x"], ["a b c d e f g h i j", "y"]
    assert bleu(predictions, references) > 80
    assert chrf(predictions, references) > 80
    assert bleu(references, references) == pytest.approx(100)
    assert chrf(references, references) == pytest.approx(100)
    assert chrf(["nothing"], ["zzz"]) == 0


def test_chrf_is_popovics_formula():
    # Characters without spaces: ab against abc. 1-grams: precision 2/2, recall 2/3; 2-grams: 1/1, 1/2; no 3-grams.
    precision, recall = (1 + 1) / 2, (2 / 3 + 1 / 2) / 2
    assert chrf(["a b"], ["a bc"]) == pytest.approx(100 * 5 * precision * recall / (4 * precision + recall))


@pytest.mark.parametrize("measure", [bleu, chrf])
def test_texts_that_do_not_pair_up_are_refused_and_of_none_nothing_is_said(measure):
    with pytest.raises(ValueError, match="shorter"):
        measure(["a", "b"], ["a"])
    assert measure([], []) is None
    assert measure([""], ["a reference of five words"]) == 0


def test_without_bert_score_one_is_told_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "bert_score", None)
    with pytest.raises(ConfigError, match="pip install bert-score"):
        bertscore(["a"], ["b"], "roberta-large")


@pytest.fixture
def bert_score(monkeypatch):
    """A stand-in that knows one model and gives texts that are equal 1."""
    package, utils = ModuleType("bert_score"), ModuleType("bert_score.utils")

    def score(predictions, references, model_type):
        assert all(map(str.strip, [*predictions, *references])), "bert-score cannot encode what is blank"
        f1 = np.array([float(text == reference) for text, reference in zip(predictions, references, strict=True)])
        return None, None, f1

    package.score, utils.model2layers = score, {"roberta-large": 17}
    monkeypatch.setitem(sys.modules, "bert_score", package)
    monkeypatch.setitem(sys.modules, "bert_score.utils", utils)


def test_bertscore_is_by_row_and_zero_of_what_is_blank(bert_score):
    predictions, references = ["a", " ", "b", "c", "d"], ["a", "x", "b", "", "e"]
    assert bertscore(predictions, references, "roberta-large") == [1, 0, 1, 0, 0]
    assert bertscore([""], ["a"], "roberta-large") == [0]


def test_a_model_that_bert_score_does_not_know_is_named(bert_score):
    with pytest.raises(ConfigError, match="'mine'; expected one of roberta-large"):
        bertscore(["a"], ["b"], "mine")
