"""The Hugging Face trainers that a policy is fine-tuned with: TRL's for causal models, Seq2SeqTrainer for others."""

import random
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy
from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer
from trl import SFTConfig, SFTTrainer

from rlhf.models.loading import Kind
from rlhf.models.policy import Policy
from rlhf.sft_trainer.config import SFTTrainerConfig
from rlhf.sft_trainer.demonstrations import IGNORED
from rlhf.sft_trainer.packing import PackingCollator
from rlhf.training import processes
from rlhf.training.run import training_arguments


def make_trainer(
    policy: Policy, examples: Sequence[dict[str, list[int]]], config: SFTTrainerConfig, steps: int, folder: str
) -> Trainer:
    """A trainer whose steps have `config.batch_size` examples each, the same on any number of processes.

    The loss of a step is the mean over all of its tokens, however they are dealt to processes and forward passes.

    Args:
        examples: `input_ids` and `labels`.
        folder: For checkpoints.
    """
    share = config.batch_size // processes.count()
    microbatch = config.microbatch_size or share
    settings = {
        "per_device_train_batch_size": microbatch,
        "gradient_accumulation_steps": share // microbatch,
        "train_sampling_strategy": "sequential",  # the order is decided here
    }
    order = training_order(len(examples), config.batch_size * steps, config.seed)
    data = Dataset.from_list(list(examples)).select(order)
    if policy.kind is Kind.SEQ2SEQ:
        return Seq2SeqTrainer(
            model=policy.model,
            args=training_arguments(Seq2SeqTrainingArguments, config, policy.model, steps, folder, **settings),
            train_dataset=data,
            data_collator=DataCollatorForSeq2Seq(policy.tokenizer, policy.model),
            compute_loss_func=_mean_over_tokens,
        )
    trainable = [parameter for parameter in policy.model.parameters() if parameter.requires_grad]
    length = config.packed_length or (policy.template.prompt_sequence_length + policy.template.target_sequence_length)
    trainer = SFTTrainer(
        model=policy.model,
        args=training_arguments(
            SFTConfig,
            config,
            policy.model,
            steps,
            folder,
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
            **settings,
        ),
        train_dataset=data,
        processing_class=policy.tokenizer,
        data_collator=PackingCollator(length, policy.pad) if config.packing else None,
    )
    # It casts an adapter on a model in 4 bits to bfloat16, which AdamW's small updates do not move.
    for parameter in trainable:
        parameter.data = parameter.data.float()
    return trainer


def training_order(rows: int, taken: int, seed: int) -> list[int]:
    """Which row comes when, over as many passes as it takes; every pass is shuffled anew."""
    draw = random.Random(seed)
    order: list[int] = []
    while len(order) < taken:
        order += draw.sample(range(rows), rows)
    return order[:taken]


def _mean_over_tokens(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """The loss of T5 and its like, which know only the mean over one forward pass on one device."""
    total = cross_entropy(outputs.logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
    return total / num_items_in_batch
