"""What a component does around its stage: metrics, metadata, time, memory, and errors."""

import json
import math
from types import SimpleNamespace

import pytest

from rlhf.errors import ConfigError, DataError
from rlhf.job import merge_options, stage_job


class Metrics(dict):
    log_metric = dict.__setitem__


def test_a_stage_logs_its_metrics_time_and_memory():
    metrics = Metrics()
    with stage_job("evaluator", metrics) as job:
        job.log({"win_rate": 0.7})
    assert metrics["win_rate"] == 0.7
    assert 0 <= metrics["seconds"] < 5
    assert 0.005 < metrics["peak_rss_gb"] < 50


def test_a_stage_speaks_before_it_loads_anything(capsys):
    with stage_job("evaluator", Metrics()):
        assert capsys.readouterr().out == "[evaluator] started\n"


def test_a_metric_that_json_cannot_carry_is_left_out():
    metrics = Metrics()
    with stage_job("evaluator", metrics) as job:
        job.log({"win_rate": math.nan, "wins": 3})
    assert "win_rate" not in metrics
    assert metrics["wins"] == 3.0


def test_an_error_for_the_user_is_one_line_and_exit_status_1(capsys):
    metrics = Metrics()
    with pytest.raises(SystemExit) as exit_, stage_job("data_validation", metrics):
        raise DataError("prompt_dataset: no such file")
    assert exit_.value.code == 1
    assert capsys.readouterr().out.splitlines()[1:] == ["[data_validation] error: prompt_dataset: no such file"]
    assert not metrics


def test_an_error_names_a_setting_as_the_orchestrators_user_knows_it(capsys):
    parameters = {"ppo.train_steps": "reinforcement_learning_train_steps"}
    with pytest.raises(SystemExit), stage_job("data_validation", Metrics(), parameters):
        raise ConfigError("ppo.train_steps: found -2; ppo.gamma: found 3")
    assert capsys.readouterr().out.endswith("error: reinforcement_learning_train_steps: found -2; ppo.gamma: found 3\n")


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), stage_job("evaluator", Metrics()):
        _ = 1 / 0


@pytest.mark.parametrize("card", ["manifest.json", "rlhf.json"])
def test_digests_reach_the_artifacts_metadata(card, tmp_path):
    (tmp_path / card).write_text(json.dumps({"template_digest": "ab12", "rows": 3, "shards": ["part-00000.parquet"]}))
    artifact = SimpleNamespace(path=str(tmp_path), metadata={})
    with stage_job("evaluator", Metrics()) as job:
        job.describe(artifact)
    assert artifact.metadata == {"template_digest": "ab12", "rows": 3}


def test_a_setting_with_a_parameter_of_its_own_is_refused_among_the_options():
    with pytest.raises(ConfigError, match=r"ppo\.kl_coeff: found 0\.2 in ppo"):
        merge_options({"kl_coeff": 0.2}, "ppo", kl_coeff=0.1, seed=0)
    assert merge_options({"gamma": 1.0}, "ppo", kl_coeff=0.1) == {"gamma": 1.0, "kl_coeff": 0.1}


def test_data_that_was_written_again_under_an_unchanged_uri_is_noticed(tmp_path):
    def artifact(metadata):
        return SimpleNamespace(path=str(tmp_path), metadata=metadata)

    (tmp_path / "manifest.json").write_text(json.dumps({"digest": "new"}))
    with stage_job("reward_trainer", Metrics()) as job:
        job.check(artifact({"digest": "new"}), artifact({}))
        with pytest.raises(DataError, match="holds data of digest new, data_validation described it as old"):
            job.check(artifact({"digest": "old"}))
