"""Goldens of one PPO update of a T5 by TRL 0.11.4, the last release that trains one: run by hand, result committed.

    pip install torch==2.13.0 trl==0.11.4 transformers==4.46.3 rich
    python tests/goldens/ppo_trl_0_11.py

in a virtual environment of its own; nothing is downloaded. Writes `ppo_trl_0_11.safetensors` beside this file.

A tiny random T5 with a value head has answered padded prompts with fixed completions of fixed scores, and
`PPOTrainer.step` makes one update of two epochs on all of them at once. What its methods take and give is written
down: nothing is computed here a second time. What the file holds:

- `weights/{policy,reference}/<parameter>`: the models (their config is in the metadata), under TRL's names:
  `pretrained_model.*` is the T5, `v_head.summary.*` the linear layer on the decoder's last hidden state.
- `queries` (episodes, prompt tokens) and `responses` (episodes, response tokens), both padded on the right. TRL takes
  responses with the decoder's start token in front; `responses` is without it.
- Of (episodes, response tokens) unless said otherwise: `scores` (episodes,), `log_probs`, `reference_log_probs`,
  `values`, `kl`, `rewards`, `advantages` (whitened), `returns` and `mask`. Under the mask, `values` are 0 and the
  others hold numbers that TRL never uses. TRL leaves the first token of every completion out of `mask`, and so out of
  rewards and losses.
- `1/...`, `2/...`, of either epoch: `log_probs`, `values`, and the scalars `policy_loss`, `value_loss`,
  `policy_clip_fraction`, `value_clip_fraction`. In epoch 1 nothing is clipped; before epoch 2 the weights took a long
  step.
- `gradients/{1,2}/<parameter>` of the policy with its head, before the step of either epoch.
- `weights_2/<parameter>`: the policy of epoch 2.
- `kl_controller` (steps, 6), of TRL's adaptive controller: coefficient, KL, target, horizon, episodes, next
  coefficient.
"""

import copy
import json
from pathlib import Path

import numpy as np
import torch
import transformers
import trl
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration
from trl import AutoModelForSeq2SeqLMWithValueHead, PPOConfig, PPOTrainer
from trl.trainer import AdaptiveKLController

PAD, EOS, VOCABULARY = 0, 1, 48
MODEL = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 1,
    "num_heads": 2,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
    "dropout_rate": 0.0,
    "pad_token_id": PAD,
    "eos_token_id": EOS,
    "decoder_start_token_id": PAD,
}
SETTINGS = {
    "ppo_epochs": 2,
    "init_kl_coef": 0.05,
    "gamma": 0.99,
    "lam": 0.95,
    "cliprange": 0.2,
    "cliprange_value": 0.2,
    "vf_coef": 0.1,
    "learning_rate": 0.008,
}
PROMPT_LENGTHS = (3, 7, 5, 4, 6, 2)
RESPONSE_LENGTHS = (8, 5, 2, 8, 7, 3)  # the EOS counted; TRL fails at a completion of one token
CUT_OFF = 0  # the row without an EOS
SCORES = (0.7, -1.3, 0.2, 2.1, -0.4, 0.9)
KL_CONTROLLER = (
    (0.1, 3.0, 6.0, 1000, 64),
    (0.2, 6.5, 6.0, 1000, 64),
    (0.2, 60.0, 6.0, 500, 32),
    (0.05, 6.0, 6.0, 10, 8),
)

Tensors = dict[str, torch.Tensor]


def make_policy() -> AutoModelForSeq2SeqLMWithValueHead:
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLMWithValueHead(T5ForConditionalGeneration(T5Config(**MODEL)), summary_dropout_prob=0.0)
    model.is_peft_model = False
    return model


def make_reference(policy: AutoModelForSeq2SeqLMWithValueHead) -> AutoModelForSeq2SeqLMWithValueHead:
    reference = copy.deepcopy(policy)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return reference


def make_tokens() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    random = torch.Generator().manual_seed(1)
    prompts = [torch.randint(2, VOCABULARY, (n,), generator=random) for n in PROMPT_LENGTHS]
    responses = [torch.randint(2, VOCABULARY, (n,), generator=random) for n in RESPONSE_LENGTHS]
    for row, response in enumerate(responses):
        if row != CUT_OFF:
            response[-1] = EOS
    return prompts, responses


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": PAD, "<eos>": EOS} | {f"w{i}": i for i in range(2, VOCABULARY)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w2")), pad_token="<pad>", eos_token="<eos>"
    )


def parameters(model: torch.nn.Module) -> Tensors:
    return {key: value.detach().clone() for key, value in model.named_parameters()}


def gradients(model: torch.nn.Module) -> Tensors:
    return {key: value.grad.clone() for key, value in model.named_parameters()}


def prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {f"{prefix}/{key}": value for key, value in tensors.items()}


class RecordingTrainer(PPOTrainer):
    """Writes down what its own methods take and give."""

    def __init__(self, *args):
        super().__init__(*args)
        self.found: Tensors = {}
        self.epoch = 0
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        optimizer.register_step_pre_hook(lambda *_: self.note(f"gradients/{self.epoch}", gradients(self.model)))
        optimizer.register_step_post_hook(lambda *_: self.note(f"weights_{self.epoch + 1}", parameters(self.model)))

    def note(self, prefix: str, tensors: Tensors) -> None:
        self.found |= prefixed(prefix, {name: tensor.detach().clone() for name, tensor in tensors.items()})

    def compute_rewards(self, scores, logprobs, ref_logprobs, masks):
        rewards, non_score, kl = super().compute_rewards(scores, logprobs, ref_logprobs, masks)
        self.found |= {
            "scores": scores,
            "log_probs": logprobs,
            "reference_log_probs": ref_logprobs,
            "mask": masks.bool(),
        }
        self.found |= {"rewards": rewards, "kl": kl}
        return rewards, non_score, kl

    def compute_advantages(self, values, rewards, mask):
        values, advantages, returns = super().compute_advantages(values, rewards, mask)
        self.found |= {"values": values, "advantages": advantages, "returns": returns}
        return values, advantages, returns

    def loss(self, old_logprobs, values, logits, vpreds, logprobs, mask, advantages, returns):
        result = super().loss(old_logprobs, values, logits, vpreds, logprobs, mask, advantages, returns)
        stats = result[-1]
        names = {"policy_loss": "loss/policy", "value_loss": "loss/value"}
        names |= {"policy_clip_fraction": "policy/clipfrac", "value_clip_fraction": "val/clipfrac"}
        self.epoch += 1
        scalars = {name: stats[theirs] for name, theirs in names.items()}
        self.note(str(self.epoch), {"log_probs": logprobs, "values": vpreds} | scalars)
        return result


def kl_controller() -> torch.Tensor:
    rows = []
    for coefficient, kl, target, horizon, episodes in KL_CONTROLLER:
        controller = AdaptiveKLController(coefficient, target, horizon)
        controller.update(kl, episodes)
        rows.append((coefficient, kl, target, horizon, episodes, controller.value))
    return torch.tensor(rows, dtype=torch.float64)


def main() -> None:
    np.random.permutation = np.arange  # rows keep their order in every epoch, so that they can be compared
    policy = make_policy()
    reference = make_reference(policy)
    prompts, responses = make_tokens()
    golden = prefixed("weights/policy", parameters(policy)) | prefixed("weights/reference", parameters(reference))
    config = PPOConfig(
        batch_size=len(prompts),
        mini_batch_size=len(prompts),
        adap_kl_ctrl=False,
        ratio_threshold=1e9,  # the long step is meant
        accelerator_kwargs={"cpu": True},
        **SETTINGS,
    )
    trainer = RecordingTrainer(config, policy, reference, make_tokenizer())
    start = torch.tensor([PAD])
    trainer.step(prompts, [torch.cat((start, response)) for response in responses], list(map(torch.tensor, SCORES)))
    golden |= {name: tensor for name, tensor in trainer.found.items() if not name.startswith("weights_3")}
    golden["queries"] = pad_sequence(prompts, batch_first=True, padding_value=PAD).int()
    golden["responses"] = pad_sequence(responses, batch_first=True, padding_value=PAD).int()
    golden["kl_controller"] = kl_controller()
    metadata = {
        "versions": {"trl": trl.__version__, "transformers": transformers.__version__, "torch": torch.__version__},
        "settings": SETTINGS,
        "model": MODEL,
    }
    path = Path(__file__).with_suffix(".safetensors")
    save_file(
        {name: tensor.contiguous() for name, tensor in golden.items()},
        path,
        {name: json.dumps(value) for name, value in metadata.items()},
    )
    path.chmod(0o644)


if __name__ == "__main__":
    main()
