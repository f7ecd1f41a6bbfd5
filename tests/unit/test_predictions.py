"""Files of predictions, wherever they lie."""

import json

import pytest

from rlhf.data.predictions import read_predictions
from rlhf.errors import DataError
from tests import stores

LINE = {
    "id": "a",
    "prompt": "p",
    "prediction": "one\u2028line",
    "finish_reason": "stop",
    "tokens": 2,
    "model": "m",
    "template_digest": None,
}


def test_predictions_are_read_from_a_store_as_from_a_disk(tmp_path):
    content = f"{json.dumps(LINE, ensure_ascii=False)}\n\n{json.dumps(LINE | {'id': 'b'})}\n".encode()
    (tmp_path / "predictions.jsonl").write_bytes(content)
    with stores.web() as store:
        store.put("predictions.jsonl", content)
        found = read_predictions([tmp_path / "predictions.jsonl", store.uri("predictions.jsonl")])
    assert [prediction.id for prediction in found] == ["a", "b", "a", "b"]
    assert {prediction.prediction for prediction in found} == {"one\u2028line"}


def test_a_file_that_is_not_there_is_named_without_its_secrets():
    with stores.web() as store, pytest.raises(DataError) as error:
        read_predictions(store.uri("none.jsonl?token=abc"))
    assert "none.jsonl?token=…: cannot be read as predictions of bulk_inference (FileNotFoundError" in str(error.value)
    assert "abc" not in str(error.value)


def test_a_line_that_is_no_prediction_is_named(tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_text(f"{json.dumps(LINE)}\n{{}}\n")
    with pytest.raises(DataError, match=r"predictions\.jsonl, line 2: id: Field required"):
        read_predictions(path)
