"""TRL's RewardTrainer made to spend no time on padding, to smooth labels, and to serve encoders; the one file here
that knows its inside."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch.nn.functional import logsigmoid
from torch.utils.data import Sampler
from trl import RewardConfig, RewardTrainer

from rlhf.models.scoring import RewardModel
from rlhf.reward_trainer.batches import chunks
from rlhf.reward_trainer.config import RewardTrainerConfig
from rlhf.training import processes
from rlhf.training.run import training_arguments

Encoded = dict[str, list[int]]


def pairwise_loss(
    chosen: torch.Tensor, rejected: torch.Tensor, margin: torch.Tensor, label_smoothing: float
) -> torch.Tensor:
    """Pairwise logistic loss, in nats: Stiennon et al. 2020, eq. 1.

    Args:
        chosen, rejected: (pairs,) scores.
        margin: (pairs,) by how much chosen is to win before a pair counts as learned (Touvron et al. 2023, eq. 2).
        label_smoothing: Chance that a label is wrong; the loss is its expectation over that (Mitchell 2023, eq. 3).

    Returns:
        (pairs,) losses.
    """
    gap = chosen - rejected - margin
    return -(1 - label_smoothing) * logsigmoid(gap) - label_smoothing * logsigmoid(-gap)


class PairwiseTrainer(RewardTrainer):
    """RewardTrainer on encoded pairs, in a given order, each batch cut into parts of like lengths.

    Batches are what one process gets of an optimiser step. Gradients are those of the whole batch at once.
    """

    def __init__(
        self,
        reward_model: RewardModel,
        config: RewardTrainerConfig,
        pairs: Sequence[tuple[Encoded, Encoded, float]],
        order: Sequence[int],
        folder: str,
    ):
        """Set up.

        Args:
            pairs: Each chosen and rejected as `RewardModel.encode` gives them, and the margin.
            order: Indices of pairs, `config.batch_size` for each optimiser step.
            folder: For checkpoints.
        """
        self._reward_model, self._settings, self._order = reward_model, config, order
        arguments = training_arguments(
            RewardConfig,
            config,
            reward_model.model,
            len(order) // config.batch_size,
            folder,
            per_device_train_batch_size=config.batch_size // processes.count(),
            max_length=None,
            disable_dropout=False,  # the base's is off; TRL's switch would take an adapter's with it
            remove_unused_columns=False,
        )
        trainable = {name for name, value in reward_model.model.named_parameters() if value.requires_grad}
        # TRL takes a dataset that has the first two columns as tokenised, and leaves it alone; pairs are looked up.
        columns = {"chosen_ids": [[]] * len(pairs), "rejected_ids": [[]] * len(pairs), "index": range(len(pairs))}
        super().__init__(
            model=reward_model.model,
            args=arguments,
            train_dataset=Dataset.from_dict(columns),
            processing_class=reward_model.tokenizer,
            data_collator=lambda rows: self._collate([pairs[row["index"]] for row in rows]),
        )
        # It casts an adapter on a model in 4 bits to bfloat16, its score head too: three digits of a score.
        for name, parameter in self.model.named_parameters():
            if name in trainable:
                parameter.data = parameter.data.float()

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Gradients of one batch, part by part; returns its mean loss."""
        model.train()
        parts = self._prepare_inputs(inputs)["parts"]
        pairs = sum(len(part["margin"]) for part in parts)
        loss, correct = torch.zeros((), device=self.args.device), torch.zeros((), device=self.args.device)
        for number, part in enumerate(parts, 1):
            # Processes exchange gradients once, after the last part of each.
            apart = self.accelerator.no_sync(model) if number < len(parts) else contextlib.nullcontext()
            with apart:
                chosen, rejected = self._scores(model, part)
                part_loss = (
                    pairwise_loss(chosen, rejected, part["margin"], self._settings.label_smoothing).sum() / pairs
                )
                self.accelerator.backward(part_loss)
            loss += part_loss.detach()
            correct += (chosen > rejected).sum() / pairs
        if bool(self.accelerator.gather(loss).isfinite().all()):  # else the step is skipped
            self._metrics["train"]["accuracy"].append(self.accelerator.gather(correct).mean().item())
        return loss

    def _scores(self, model: Any, part: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = {name: value for name, value in part.items() if name != "margin"}
        chosen, rejected = self._reward_model.forward(model, **inputs).chunk(2)
        return chosen, rejected

    def _collate(self, pairs: Sequence[tuple[Encoded, Encoded, float]]) -> dict[str, Any]:
        lengths = [max(len(chosen["input_ids"]), len(rejected["input_ids"])) for chosen, rejected, _ in pairs]
        parts = []
        for indices in chunks(lengths, self._settings.tokens_per_forward):
            chosen, rejected, margins = zip(*(pairs[index] for index in indices), strict=True)
            parts.append({**self._reward_model.collate([*chosen, *rejected]), "margin": torch.tensor(margins)})
        return {"parts": parts}

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
        return _Given(self._order)


class _Given(Sampler):
    """An order that was decided before; accelerate deals its batches to the processes in turn."""

    def __init__(self, order: Sequence[int]):
        self._order = order

    def __iter__(self) -> Iterator[int]:
        return iter(self._order)

    def __len__(self) -> int:
        return len(self._order)
