"""How a policy does on the demonstrations held out, while it is trained."""

from collections.abc import Sequence
from statistics import fmean

import torch
from torch.nn import functional

from rlhf.metrics import rouge
from rlhf.models.loading import Kind, computing_in, working_dtype
from rlhf.models.policy import Policy, pad_left, pad_right
from rlhf.sft_trainer.demonstrations import IGNORED, Demonstration
from rlhf.training import processes

SHOWN = 4
"""Prompts whose completions are kept for the report."""

ROUGE_TAGS = {"rouge1": "sft/rouge_1", "rouge2": "sft/rouge_2", "rougeL": "sft/rouge_l", "rougeLsum": "sft/rouge_lsum"}
LOSS, ENDED = "sft/eval_loss", "sft/ended"
MEASURES = (LOSS, *ROUGE_TAGS.values(), ENDED)


class HeldOut:
    """Held-out demonstrations, and the policy that is measured on them.

    Args:
        learn_prompt: Whether prompts are in the loss, as they are in training.
        samples: Prompts that the policy completes at each measurement, at most; one with several demonstrations
            counts once.
        batch_size: Rows of a forward pass.
    """

    def __init__(
        self,
        policy: Policy,
        demonstrations: Sequence[Demonstration],
        learn_prompt: bool,
        samples: int,
        batch_size: int,
    ):
        self.policy, self.batch_size = policy, batch_size
        self._examples = [each.example(policy.kind is Kind.SEQ2SEQ, learn_prompt) for each in demonstrations]
        self._sampled = list({each.key: each for each in reversed(demonstrations)}.values())[::-1][:samples]

    @property
    def shown(self) -> list[Demonstration]:
        return self._sampled[:SHOWN]

    def measure(self) -> tuple[dict[str, float], list[tuple[str, bool]]]:
        """Measures by TensorBoard tag, and of each demonstration in `shown` what the policy says and whether it ends.

        The same on every process.

        The loss is nats a token over all of the held-out demonstrations. ROUGE F measures (no stemming) and the share
        that ends by EOS are of greedy completions.
        """
        training = self.policy.model.training
        self.policy.model.eval()
        measures = {LOSS: self._loss()}
        completions = self._complete()
        self.policy.model.train(training)
        texts = [self.policy.decode(ids) for ids in completions]
        scores = rouge(texts, [each.answer for each in self._sampled])
        measures |= {ROUGE_TAGS[kind]: value for kind, value in scores.mean.items()}
        measures[ENDED] = fmean(ids[-1] == self.policy.eos for ids in completions)
        return measures, [
            (text, ids[-1] == self.policy.eos) for _, text, ids in zip(self.shown, texts, completions, strict=False)
        ]

    def _complete(self) -> list[list[int]]:
        part = [each.prompt for each in self._sampled][processes.rank() :: processes.count()]
        length = self.policy.template.target_sequence_length
        return processes.interleave(processes.gather(self.policy.generate(part, length, 0.0, self.batch_size)))

    @torch.no_grad()
    def _loss(self) -> float:
        examples = sorted(self._examples, key=lambda example: len(example["input_ids"]))
        part = examples[processes.rank() :: processes.count()]
        nats, tokens = 0.0, 0
        for start in range(0, len(part), self.batch_size):
            logits, labels = self._predict(part[start : start + self.batch_size])
            nats += functional.cross_entropy(
                logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
            ).item()
            tokens += (labels != IGNORED).sum().item()
        parts = processes.gather((nats, tokens))
        return sum(nats for nats, _ in parts) / sum(tokens for _, tokens in parts)

    def _predict(self, examples: Sequence[dict[str, list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (rows, tokens, vocabulary) and what is to be predicted (rows, tokens)."""
        model, pad = self.policy.model, self.policy.pad
        with computing_in(working_dtype("auto", model.device), model.device):  # as in training
            if self.policy.kind is Kind.SEQ2SEQ:
                ids, mask = pad_right([example["input_ids"] for example in examples], pad, model.device)
                labels, _ = pad_right([example["labels"] for example in examples], IGNORED, model.device)
                return model(input_ids=ids, attention_mask=mask, labels=labels).logits, labels
            # On the left, so that the tokens in question are the last ones and no other logits are made.
            ids, mask = pad_left([example["input_ids"] for example in examples], pad, model.device)
            labels, _ = pad_left([[IGNORED, *example["labels"][1:]] for example in examples], IGNORED, model.device)
            learned = labels.shape[1] - (labels != IGNORED).any(0).int().argmax().item()
            logits = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=(mask.cumsum(1) - 1).clamp_min(0),
                use_cache=False,
                logits_to_keep=learned + 1,
            ).logits
            return logits[:, :-1], labels[:, -learned:]
