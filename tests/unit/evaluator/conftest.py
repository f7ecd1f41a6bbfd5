from pathlib import Path

import pytest

from tests.evaluation import Job, WordCounter, write_reward_model


@pytest.fixture(scope="session")
def reward_model(tmp_path_factory) -> Path:
    """A tiny random one."""
    return write_reward_model(tmp_path_factory.mktemp("reward_model"))


@pytest.fixture
def job(tmp_path, reward_model) -> Job:
    """Inputs of the evaluator."""
    return Job(tmp_path, reward_model)


@pytest.fixture
def scored(job, monkeypatch) -> Job:
    """The same with a reward model that counts words."""
    monkeypatch.setattr("rlhf.models.scoring.RewardModel.load", lambda folder, template: WordCounter())
    return job
