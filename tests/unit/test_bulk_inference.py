"""Bulk inference: which completions are written, in what order, and what happens when it is stopped."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.bulk_inference import BulkInferenceConfig
from rlhf.bulk_inference import stage as bulk_inference
from rlhf.bulk_inference.journal import Journal
from rlhf.data.store import write_dataset
from rlhf.data.template import Template
from rlhf.errors import ConfigError, DataError, ModelError, Stopped, TrainingError
from rlhf.models.engines import Transformers
from rlhf.models.policy import Policy
from tests.conftest import TEXTS

TEMPLATE = Template(suffix="TL;DR:", target_sequence_length=12)
COUNT = 23


@pytest.fixture
def prompts(tmp_path) -> Path:
    rows = [
        {"id": f"row-{i}", "prompt": " ".join([TEXTS[i % 2].split("\n")[0]] * (i % 5 + 1)), "reference": f"say {i}"}
        for i in range(COUNT)
    ]
    write_dataset(tmp_path / "prompts", "prompts", rows, TEMPLATE)
    return tmp_path / "prompts"


def answers(prompts: Path, model: Path, name: str = "out", shard: int = 0, **options: Any) -> list:
    out = prompts.parent / f"{name}.jsonl"
    config = BulkInferenceConfig(**options)
    paths = {"prompts": str(prompts), "model": str(model), "predictions": str(out)}
    bulk_inference.run(config, **paths, shard=shard)
    return [json.loads(line) for line in out.read_text(encoding="utf-8").split("\n") if line]


def test_every_prompt_is_answered_once_in_order(prompts, policy_folder):
    lines = answers(prompts, policy_folder)
    assert [line["id"] for line in lines] == [f"row-{i}" for i in range(COUNT)]
    assert {line["template_digest"] for line in lines} == {TEMPLATE.digest}
    assert all(line["finish_reason"] == "length" for line in lines if line["tokens"] == 12 and line["prediction"])
    assert not list(prompts.parent.glob("*.parts")), "what was kept for a restart is gone"


def test_a_prompt_that_leaves_no_room_for_its_answer_is_named(prompts, llama_folder, tmp_path):
    positions = Policy.load(llama_folder).positions
    long = Template(suffix="TL;DR:", prompt_sequence_length=2 * positions, target_sequence_length=12)
    rows = [{"id": f"row-{i}", "prompt": "My brother. " * i * positions, "reference": None} for i in (0, 1)]
    write_dataset(tmp_path / "long", "prompts", rows, long)
    with pytest.raises(DataError, match=f"row 'row-1' has .* tokens, expected 1 to {positions - 12}"):
        answers(tmp_path / "long", llama_folder)


def test_greedy_answers_are_the_models_own(prompts, policy_folder):
    lines = answers(prompts, policy_folder, temperature=0.0)
    policy = Policy.load(policy_folder, TEMPLATE)
    for line in lines[:3]:
        ids = policy.generate([policy.encode_prompt(line["prompt"])], 12, 0.0)[0]
        assert (line["prediction"], line["tokens"]) == (policy.decode(ids), len(ids))
        assert line["finish_reason"] == ("stop" if ids[-1] == policy.eos else "length")


def test_shards_together_are_the_whole(prompts, llama_folder):
    whole = answers(prompts, llama_folder)
    parts = [answers(prompts, llama_folder, f"part{i}", shard=i, shards=3) for i in range(3)]
    assert [line for part in parts for line in part] == whole
    assert all(parts)


def test_more_shards_than_prompts_leave_empty_files(prompts, llama_folder):
    assert answers(prompts, llama_folder, shard=0, shards=COUNT + 1) == []
    assert len(answers(prompts, llama_folder, shard=COUNT, shards=COUNT + 1)) == 1


def test_a_shard_that_does_not_exist_is_refused(prompts, llama_folder):
    with pytest.raises(ConfigError, match="shard: found 3 of 3, expected 0 to 2"):
        answers(prompts, llama_folder, shard=3, shards=3)


def test_what_is_sampled_depends_on_neither_batches_nor_shards_but_on_the_seed(prompts, policy_folder):
    once = answers(prompts, policy_folder)
    assert answers(prompts, policy_folder, tokens_at_once=1) == once
    assert answers(prompts, policy_folder, seed=1) != once


def test_several_samples_of_a_prompt_differ_and_the_first_is_that_of_one(prompts, llama_folder):
    lines = answers(prompts, llama_folder, samples=3)
    assert [(line["id"], line["sample"]) for line in lines[:4]] == [
        ("row-0", 0),
        ("row-0", 1),
        ("row-0", 2),
        ("row-1", 0),
    ]
    texts = [line["prediction"] for line in lines]
    assert any(len(set(texts[i : i + 3])) > 1 for i in range(0, len(texts), 3))
    assert texts[::3] == [line["prediction"] for line in answers(prompts, llama_folder)]


def test_the_old_bulk_inferrers_shape(prompts, llama_folder):
    lines = answers(prompts, llama_folder, format="vertex")
    assert lines[4].keys() == {"inputs", "prediction"}
    assert lines[4]["inputs"]["inputs_pretokenized"].endswith("TL;DR:")
    assert lines[4]["inputs"]["targets_pretokenized"] == "say 4"


class Killed(Exception):
    """Stands for SIGKILL: nothing of the stage runs after it."""


def test_a_run_that_was_killed_goes_on_where_it_stopped(prompts, policy_folder, monkeypatch):
    whole = answers(prompts, policy_folder)
    monkeypatch.setattr(bulk_inference, "SECONDS_BETWEEN_PARTS", 0.0)
    asked: list[int] = []
    generate = Policy.generate

    def dies_at(limit: int):
        def counted(self, prompts, *arguments, **options):
            if len(asked) >= limit:
                raise Killed
            asked.extend(range(len(prompts)))
            return generate(self, prompts, *arguments, **options)

        return counted

    for limit in (5, 14):
        monkeypatch.setattr(Policy, "generate", dies_at(limit))
        with pytest.raises(Killed):
            answers(prompts, policy_folder, "broken", tokens_at_once=1)
        assert not (prompts.parent / "broken.jsonl").exists()
    monkeypatch.setattr(Policy, "generate", dies_at(1000))
    assert answers(prompts, policy_folder, "broken", tokens_at_once=1) == whole
    assert len(asked) == COUNT, "no prompt is asked twice"


def test_half_a_line_that_a_killed_writer_left_is_asked_again(prompts, llama_folder, tmp_path):
    whole = answers(prompts, llama_folder)
    kept = tmp_path / "kept"
    uri, job = None, None

    class Peek(Journal):
        def __init__(self, *found):
            nonlocal uri, job
            uri, job = found
            super().__init__(*found)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bulk_inference, "Journal", Peek)
        answers(prompts, llama_folder, checkpoint_dir=str(kept))
    journal = Journal(uri, job)
    journal.write({place: {**line, "prompt_cut": False} for place, line in enumerate(whole[:4])})
    part = next(kept.glob("*/part-*"))
    part.write_bytes(part.read_bytes()[:-20])
    assert len(Journal(uri, job).lines) == 3
    assert answers(prompts, llama_folder, checkpoint_dir=str(kept)) == whole
    assert not any(kept.iterdir())


def test_models_and_shards_of_one_pipeline_may_share_a_checkpoint_dir(
    prompts, llama_folder, t5_folder, monkeypatch, tmp_path
):
    monkeypatch.setattr(Transformers, "_generate", lambda *_: (_ for _ in ()).throw(Killed))
    for model, shard in ((llama_folder, 0), (llama_folder, 1), (t5_folder, 0)):
        with pytest.raises(Killed):
            answers(prompts, model, checkpoint_dir=str(tmp_path / "kept"), shards=2, shard=shard)
    assert len(list((tmp_path / "kept").iterdir())) == 3


def test_completions_of_another_run_are_refused(prompts, llama_folder, monkeypatch, tmp_path):
    monkeypatch.setattr(bulk_inference, "SECONDS_BETWEEN_PARTS", 0.0)
    kept = str(tmp_path / "kept")
    monkeypatch.setattr(Transformers, "_generate", lambda *_: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        answers(prompts, llama_folder, checkpoint_dir=kept)
    with pytest.raises(ConfigError, match=r"another run \(temperature: 0.7 there, 0.0 now\)"):
        answers(prompts, llama_folder, checkpoint_dir=kept, temperature=0.0)


def test_what_a_journal_is_of_is_written_once_and_whole(tmp_path):
    uri, file = str(tmp_path / "kept"), tmp_path / "kept/job.json"
    Journal(uri, {"seed": 1}).write({0: {"id": "a"}})
    written = file.stat()
    assert Journal(uri, {"seed": 1}).lines == {0: {"id": "a"}}
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["job.json", "part-000000.jsonl"]


@pytest.mark.parametrize("found", ['{"se', "", "7", None])
def test_completions_of_nobody_knows_what_run_are_refused(found, tmp_path):
    uri, file = str(tmp_path / "kept"), tmp_path / "kept/job.json"
    Journal(uri, {"seed": 1}).write({0: {"id": "a"}})
    file.unlink() if found is None else file.write_text(found)
    with pytest.raises(ConfigError, match=r"kept'.*job.json.*clear this one to start anew"):
        Journal(uri, {"seed": 1})
    (tmp_path / "kept/part-000000.jsonl").unlink()
    assert Journal(uri, {"seed": 1}).lines == {}
    assert json.loads(file.read_text()) == {"seed": 1}


def test_what_differs_between_two_runs_is_said_without_secrets(tmp_path):
    Journal(str(tmp_path), {"model": "gs://team/a?token=s3cret"})
    with pytest.raises(ConfigError, match=r"another run .*gs://team/a") as error:
        Journal(str(tmp_path), {"model": "gs://team/b?token=s3cret"})
    assert "s3cret" not in str(error.value)


def test_sigterm_keeps_what_there_is(prompts, llama_folder, monkeypatch):
    whole = answers(prompts, llama_folder)
    generate = Policy.generate
    calls: list[int] = []

    def terminated(self, rows, *arguments, **options):
        calls.append(len(rows))
        if len(calls) == 3:
            signal.raise_signal(signal.SIGTERM)
        return generate(self, rows, *arguments, **options)

    monkeypatch.setattr(Policy, "generate", terminated)
    with pytest.raises(Stopped, match=f"after 3 of {COUNT} completions"):
        answers(prompts, llama_folder, "broken", tokens_at_once=1)
    assert answers(prompts, llama_folder, "broken", tokens_at_once=1) == whole
    assert sum(calls) == COUNT


def test_where_completions_are_kept_is_said_without_its_secret(prompts, llama_folder, monkeypatch, tmp_path):
    generate = Policy.generate

    def terminated(self, rows, *arguments, **options):
        signal.raise_signal(signal.SIGTERM)
        return generate(self, rows, *arguments, **options)

    monkeypatch.setattr(Policy, "generate", terminated)
    with pytest.raises(Stopped, match=r"kept in .*/kept\?sig=….*; run again") as stopped:
        answers(prompts, llama_folder, tokens_at_once=1, checkpoint_dir=f"{tmp_path}/kept?sig=s3cret")
    assert "s3cret" not in str(stopped.value)


def test_where_memory_runs_out_it_goes_on_with_half_as_many(prompts, llama_folder, monkeypatch, capsys):
    whole = answers(prompts, llama_folder)
    generate = Policy.generate

    def small(self, rows, *arguments, **options):
        if len(rows) > 11:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return generate(self, rows, *arguments, **options)

    monkeypatch.setattr(Policy, "generate", small)
    assert answers(prompts, llama_folder, "small") == whole
    assert "out of memory with 23 prompts at once; going on with 11" in capsys.readouterr().out


def test_memory_that_does_not_do_for_one_prompt_ends_the_stage(prompts, llama_folder, monkeypatch):
    def none(self, rows, *arguments, **options):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(Policy, "generate", none)
    with pytest.raises(ModelError, match="out of memory with one prompt and its completion"):
        answers(prompts, llama_folder)


def test_other_errors_are_not_taken_for_a_lack_of_memory(prompts, llama_folder, monkeypatch):
    def broken(self, rows, *arguments, **options):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(Policy, "generate", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        answers(prompts, llama_folder)


def test_a_dataset_without_rows_is_refused(tmp_path, llama_folder):
    write_dataset(tmp_path / "prompts", "prompts", [], TEMPLATE)
    with pytest.raises(DataError, match="found no rows"):
        answers(tmp_path / "prompts", llama_folder)


def test_texts_of_any_characters_come_back_as_they_are(tmp_path, llama_folder):
    odd = "a\u2028b </script>\u202e \x00 c"
    write_dataset(tmp_path / "prompts", "prompts", [{"id": "one\n", "prompt": odd}], TEMPLATE)
    (line,) = answers(tmp_path / "prompts", llama_folder)
    assert line["id"] == "one\n"
    assert line["prompt"].startswith(odd)


def test_a_journal_whose_removal_was_cut_short_is_still_one(tmp_path, monkeypatch):
    uri = str(tmp_path / "kept")
    journal = Journal(uri, {"seed": 1})
    for place in range(3):
        journal.write({place: {"id": str(place)}})
    rm = type(journal._fs).rm

    def killed(self, path, recursive=False, **more):
        if len(list((tmp_path / "kept").iterdir())) <= 2:
            raise OSError("killed")
        if recursive:  # in no order
            path, recursive = f"{uri}/job.json", False
        rm(self, path, recursive=recursive, **more)

    with monkeypatch.context() as patched:
        patched.setattr(type(journal._fs), "rm", killed)
        with pytest.raises(TrainingError, match="killed"):
            journal.remove()
    left = Journal(uri, {"seed": 1})
    assert len(left.lines) == 1
    left.remove()
    assert not (tmp_path / "kept").exists()
