"""Goldens of one PPO update by TRL 1.12.0, the last release that has a PPO trainer: run by hand, result committed.

    pip install torch==2.13.0 trl==1.12.0 transformers==5.23.0
    python tests/goldens/ppo_trl_1_12.py

in a virtual environment of its own; nothing is downloaded. Writes `ppo_trl_1_12.safetensors` beside this file.

Tiny random Llama models answer padded prompts with fixed completions, `PPOTrainer.train` makes one update of two
epochs on all of them at once, and what it computes is read from its own variables: nothing is computed here a second
time. What the file holds:

- `weights/{policy,reference,reward,value}/<parameter>`: the models (their config is in the metadata).
- `queries` (episodes, prompt tokens), padded on the left, and `responses` (episodes, response tokens), padded on the
  right. In order: cut off, ended, nothing but EOS, EOS as the last token there is room for, one short of that, ended.
- `k1/...` and `k3/...`, one run with each KL estimator, of (episodes, response tokens) unless said otherwise:
  `raw_scores` and `scores` (episodes,), before and after the penalty for a missing EOS; `log_probs`,
  `reference_log_probs` (1 under the mask: TRL's mark), `values`, `kl`, `rewards`, `advantages` (whitened), `returns`,
  `mask`, and `value_mask`, one position longer where there is room.
- `k1/1/...`, `k1/2/...`, the same for k3, of either epoch: `log_probs`, `values`, and the scalars `policy_loss`,
  `value_loss`, `policy_clip_fraction`, `value_clip_fraction`. In epoch 1 nothing is clipped; before epoch 2 the weights
  took a long step.
- `gradients/{1,2}/{policy,value}/<parameter>`, of k1, before the step of either epoch.
- `weights_2/{policy,value}/<parameter>`, of k1: the models of epoch 2.
"""

import copy
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import numpy as np
import torch
import transformers
import trl
from datasets import Dataset
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

PAD, EOS, VOCABULARY = 0, 1, 48
MODEL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,  # so that logits, values and gradients are of the size of 1, not of rounding errors
    "pad_token_id": PAD,
    "eos_token_id": EOS,
    "bos_token_id": None,
}
SETTINGS = {
    "num_ppo_epochs": 2,
    "num_mini_batches": 1,
    "temperature": 0.7,
    "missing_eos_penalty": 1.0,
    "kl_coef": 0.05,
    "gamma": 0.99,
    "lam": 0.95,
    "cliprange": 0.2,
    "cliprange_value": 0.2,
    "vf_coef": 0.1,
    "learning_rate": 0.004,
}
PROMPT_LENGTHS = (3, 7, 5, 4, 6, 2)
RESPONSE_LENGTH = 8
RESPONSE_LENGTHS = (8, 5, 1, 8, 7, 3)  # the EOS counted
CUT_OFF = 0  # the row without an EOS

Tensors = dict[str, torch.Tensor]


def make_models() -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    policy = LlamaForCausalLM(LlamaConfig(**MODEL))
    reference = copy.deepcopy(policy)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    reward, value = (LlamaForSequenceClassification(LlamaConfig(**MODEL, num_labels=1)) for _ in range(2))
    return {"policy": policy, "reference": reference, "reward": reward, "value": value}


def make_tokens() -> tuple[list[list[int]], torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    prompts = [torch.randint(2, VOCABULARY, (n,), generator=random).tolist() for n in PROMPT_LENGTHS]
    responses = torch.randint(2, VOCABULARY, (len(prompts), RESPONSE_LENGTH), generator=random)
    for row, length in enumerate(RESPONSE_LENGTHS):
        responses[row, length:] = PAD
        if row != CUT_OFF:
            responses[row, length - 1] = EOS
    return prompts, responses


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": PAD, "<eos>": EOS} | {f"w{i}": i for i in range(2, VOCABULARY)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w2")),
        pad_token="<pad>",
        eos_token="<eos>",
        padding_side="left",
    )


def parameters(model: torch.nn.Module, name: str) -> Tensors:
    return {f"{name}/{key}": value.detach().clone() for key, value in model.named_parameters()}


def gradients(model: torch.nn.Module, name: str) -> Tensors:
    return {f"{name}/{key}": value.grad.clone() for key, value in model.named_parameters()}


def prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {f"{prefix}/{key}": value for key, value in tensors.items()}


class Recorder:
    """Reads the variables of `PPOTrainer.train` where it calls out."""

    def __init__(self, trainer: PPOTrainer, models: dict[str, torch.nn.Module]):
        self.update: Tensors = {}  # of the rollout
        self.epochs: list[Tensors] = []
        self.gradients: list[Tensors] = []
        self.weights: list[Tensors] = []  # after each step
        self.trained = {name: models[name] for name in ("policy", "value")}
        self.stats: Tensors = {}
        self.backward = trainer.accelerator.backward
        trainer.accelerator.backward = self.on_backward
        optimizer = trainer.optimizer.optimizer
        optimizer.register_step_pre_hook(lambda *_: self.gradients.append(self.of_both(gradients)))
        optimizer.register_step_post_hook(lambda *_: self.weights.append(self.of_both(parameters)))

    def of_both(self, what) -> Tensors:
        return {key: value for name, model in self.trained.items() for key, value in what(model, name).items()}

    def on_backward(self, loss: torch.Tensor) -> None:
        variables = sys._getframe(1).f_locals
        if not self.epochs:
            names = {"log_probs": "logprobs", "reference_log_probs": "ref_logprobs", "queries": "queries"}
            names |= {
                name: name for name in ("scores", "responses", "values", "kl", "rewards", "advantages", "returns")
            }
            self.update = {name: variables[theirs].detach().clone() for name, theirs in names.items()}
            self.update["mask"] = ~variables["padding_mask"]
            self.update["value_mask"] = ~variables["padding_mask_p1"]
            # Filled in after this call, in place.
            self.stats["policy_clip_fraction"] = variables["pg_clipfrac_stats"]
            self.stats["value_clip_fraction"] = variables["vf_clipfrac_stats"]
        names = {"log_probs": "new_logprobs", "values": "vpred", "policy_loss": "pg_loss", "value_loss": "vf_loss"}
        self.epochs.append({name: variables[theirs].detach().clone() for name, theirs in names.items()})
        self.backward(loss)

    def finish(self) -> Tensors:
        found = dict(self.update)
        for i, epoch in enumerate(self.epochs):
            fractions = {name: stat[i, 0, 0].clone() for name, stat in self.stats.items()}
            found |= prefixed(str(i + 1), epoch | fractions)
        return found


def run(models: dict[str, torch.nn.Module], kl_estimator: str) -> Recorder:
    prompts, responses = make_tokens()

    def answer(model, queries, _batch_size, pad, _generation_config):
        """In place of sampling: the fixed completions, and the logits that TRL would have sampled them from."""
        query_responses = torch.cat((queries, responses), 1)
        logits = ppo_trainer.forward(model, query_responses, pad).logits[:, queries.shape[1] - 1 : -1]
        return query_responses, logits / (SETTINGS["temperature"] + 1e-7)

    def scored(*args):
        result = get_reward(*args)
        if args[0] is models["reward"]:
            raw_scores.append(result[1].clone())
        return result

    raw_scores: list[torch.Tensor] = []
    get_reward = ppo_trainer.get_reward
    ppo_trainer.get_reward, ppo_trainer.batch_generation = scored, torch.no_grad()(answer)
    with tempfile.TemporaryDirectory() as folder:
        trainer = PPOTrainer(
            args=PPOConfig(
                output_dir=folder,
                report_to="none",
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                per_device_train_batch_size=len(prompts),
                gradient_accumulation_steps=1,
                total_episodes=len(prompts),
                response_length=RESPONSE_LENGTH,
                stop_token="eos",
                kl_estimator=kl_estimator,
                num_sample_generations=0,
                save_strategy="no",
                disable_tqdm=True,
                **SETTINGS,
            ),
            processing_class=make_tokenizer(),
            model=models["policy"],
            ref_model=models["reference"],
            reward_model=models["reward"],
            value_model=models["value"],
            train_dataset=Dataset.from_dict({"input_ids": prompts}),
        )
        recorder = Recorder(trainer, models)
        trainer.train()
    ppo_trainer.get_reward = get_reward
    (recorder.update["raw_scores"],) = raw_scores
    return recorder


def main() -> None:
    np.random.permutation = np.arange  # rows keep their order in every epoch, so that they can be compared
    models = make_models()
    golden: Tensors = {}
    for name, model in models.items():
        golden |= prefixed("weights", parameters(model, name))
    for estimator in ("k1", "k3"):
        recorder = run(copy.deepcopy(models), estimator)
        found = recorder.finish()
        golden |= {name: found.pop(name).int() for name in ("queries", "responses")}
        golden |= prefixed(estimator, found)
        if estimator == "k1":
            for i, gradient in enumerate(recorder.gradients):
                golden |= prefixed(f"gradients/{i + 1}", gradient)
            golden |= prefixed("weights_2", recorder.weights[0])
    metadata = {
        "versions": {"trl": trl.__version__, "transformers": transformers.__version__, "torch": torch.__version__},
        "settings": SETTINGS,
        "model": MODEL,
    }
    path = Path(__file__).with_suffix(".safetensors")
    save_file(golden, path, {name: json.dumps(value) for name, value in metadata.items()})
    path.chmod(0o644)


if __name__ == "__main__":
    main()
