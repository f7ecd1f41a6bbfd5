"""What is measured: each in a process of its own, from preferences on disk to trained weights."""

import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from rlhf.data.store import read_dataset
from rlhf.metrics import accuracy

LEARNING_RATE = 3e-4
SEED = 0


def ours(model: Path, data: Path, steps: int, batch_size: int) -> tuple[Any, float]:
    """Train with the stage's own functions; the reward model, and the seconds it took."""
    from rlhf.models.scoring import RewardModel
    from rlhf.reward_trainer.batches import training_order
    from rlhf.reward_trainer.config import RewardTrainerConfig
    from rlhf.reward_trainer.pairs import encode_pairs
    from rlhf.reward_trainer.trainer import PairwiseTrainer
    from rlhf.tracking import Tracker
    from rlhf.training.run import fit

    rows, template = _train_rows(data)
    config = RewardTrainerConfig(
        train_steps=steps,
        batch_size=batch_size,
        learning_rate=LEARNING_RATE,
        learning_rate_schedule="linear",
        seed=SEED,
    )
    reward_model, _ = RewardModel.to_train(model, template, config)
    started = time.perf_counter()
    pairs, _ = encode_pairs(rows, template, reward_model)
    order = training_order([pair.key for pair in pairs], batch_size, steps, SEED)
    with tempfile.TemporaryDirectory() as scratch:
        encoded = [(pair.chosen, pair.rejected, 0.0) for pair in pairs]
        trainer = PairwiseTrainer(reward_model, config, encoded, order, scratch)
        fit(trainer, config, stage="ours", tags={}, tracker=Tracker(None), checkpoints=None)
    return reward_model, time.perf_counter() - started


def trl(model: Path, data: Path, steps: int, batch_size: int) -> tuple[Any, float]:
    """Train with TRL's RewardTrainer as it is shipped."""
    return _trl(model, data, steps, batch_size)


def trl_without_checkpointing(model: Path, data: Path, steps: int, batch_size: int) -> tuple[Any, float]:
    """The same without its default of computing activations twice, which trades time for memory."""
    return _trl(model, data, steps, batch_size, gradient_checkpointing=False)


def _trl(model: Path, data: Path, steps: int, batch_size: int, **options: Any) -> tuple[Any, float]:
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    from rlhf.models.scoring import RewardModel
    from rlhf.reward_trainer.config import RewardTrainerConfig

    rows, template = _train_rows(data)
    # The same first weights as ours.
    reward_model, _ = RewardModel.to_train(model, template, RewardTrainerConfig(seed=SEED))
    texts = [
        {
            "prompt": template.render(row["prompt"]),
            **{side: template.completion(template.render(row["prompt"]), row[side]) for side in ("chosen", "rejected")},
        }
        for row in rows
    ]
    with tempfile.TemporaryDirectory() as scratch:
        arguments = RewardConfig(
            output_dir=scratch,
            max_steps=steps,
            per_device_train_batch_size=batch_size,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="linear",
            seed=SEED,
            use_cpu=True,
            bf16=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **options,
        )
        started = time.perf_counter()
        trainer = RewardTrainer(
            model=reward_model.model,
            args=arguments,
            train_dataset=Dataset.from_list(texts),
            processing_class=reward_model.tokenizer,
        )
        trainer.train()
        seconds = time.perf_counter() - started
    return reward_model, seconds


def measure(what: Callable, model: Path, data: Path, steps: int, batch_size: int) -> tuple[float, float, float]:
    """Pairs a second, peak resident memory in 1e9 bytes, and accuracy on held-out pairs, of a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_run, what, model, data, steps, batch_size).result()


def _run(what: Callable, model: Path, data: Path, steps: int, batch_size: int) -> tuple[float, float, float]:
    from rlhf.models.loading import prepare_torch

    prepare_torch(SEED)
    reward_model, seconds = what(model, data, steps, batch_size)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    rows, _, template = read_dataset(data, "preferences")
    held_out = [row for row in rows if row["split"] == "eval"]
    prompts = [template.render(row["prompt"]) for row in held_out]
    scores = [reward_model.score(prompts, [row[side] for row in held_out]) for side in ("chosen", "rejected")]
    return steps * batch_size / seconds, peak, accuracy(*scores).rate


def _train_rows(data: Path) -> tuple[list[dict[str, Any]], Any]:
    rows, _, template = read_dataset(data, "preferences")
    return [row for row in rows if row["split"] == "train"], template
