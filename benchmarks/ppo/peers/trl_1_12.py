"""The last PPO that TRL shipped, on a job of the benchmark: `python trl_1_12.py job.json result.json`, in its own venv.

Policy and critic are two whole models, as it wants them; the critic starts from the reward model.
"""

import json
import os
import resource
import sys
import tempfile
import time

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch
import transformers
import trl
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer


class Clock(TrainerCallback):
    """Seconds since training began, at the end of each update."""

    def __init__(self):
        self.ends = []

    def on_train_begin(self, *arguments, **keywords):
        self.start = time.perf_counter()

    def on_step_end(self, *arguments, **keywords):
        self.ends.append(time.perf_counter() - self.start)


def main(job, target):
    tokenizer = AutoTokenizer.from_pretrained(job["policy"], padding_side="left")
    policy, reference = (AutoModelForCausalLM.from_pretrained(job["policy"], dtype=torch.float32) for _ in range(2))
    adapter = None
    if job["lora"]:
        rank, alpha = job["lora"]
        reference = None  # the policy without its adapter
        adapter = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    reward, critic = (
        AutoModelForSequenceClassification.from_pretrained(job["reward"], dtype=torch.float32) for _ in range(2)
    )
    order, sampled = [], watch_rollouts()
    if job["standardise"]:
        standardise(reward)
    collate = transformers.DataCollatorWithPadding(tokenizer)

    def remember_order(rows):
        order.append([row["row"] for row in rows])
        return collate([{"input_ids": row["input_ids"]} for row in rows])

    prompts = tokenizer(job["prompts"])["input_ids"]

    clock = Clock()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = PPOTrainer(
            args=PPOConfig(
                output_dir=scratch,
                use_cpu=not job["gpu"],
                bf16=job["gpu"],
                gradient_checkpointing=False,
                per_device_train_batch_size=job["micro_batch"],
                gradient_accumulation_steps=job["batch"] // job["micro_batch"],
                local_rollout_forward_batch_size=job["batch"],
                total_episodes=job["batch"] * job["updates"],
                num_ppo_epochs=job["epochs"],
                response_length=job["response"],
                stop_token="eos",
                missing_eos_penalty=job["missing_eos_penalty"],
                temperature=job["temperature"],
                kl_coef=job["kl_coeff"],
                vf_coef=job["value_coeff"],
                learning_rate=job["learning_rate"],
                num_sample_generations=0,
                logging_steps=1,
                save_strategy="no",
                eval_strategy="no",
                report_to="none",
                disable_tqdm=True,
                seed=job["seed"],
            ),
            processing_class=tokenizer,
            model=policy,
            ref_model=reference,
            reward_model=reward,
            value_model=critic,
            train_dataset=Dataset.from_list([{"row": i, "input_ids": ids} for i, ids in enumerate(prompts)]),
            data_collator=remember_order,
            callbacks=[clock],
            peft_config=adapter,
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    responses = [[cut(row, tokenizer.eos_token_id) for row in rows.tolist()] for rows in sampled]
    result = {
        "system": f"TRL {trl.__version__}, transformers {transformers.__version__}, torch {torch.__version__}",
        "threads": torch.get_num_threads(),
        "ends": clock.ends,
        "lengths": [sum(map(len, rows)) / len(rows) for rows in responses],
        "peak_rss": peak,
        "peak_gpu": torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0,
    }
    if job["completions"]:
        # The data loader is an update ahead: it has one batch more than there were updates, or none.
        result["completions"] = [
            list(zip(rows, tokenizer.batch_decode(texts, skip_special_tokens=True), strict=True))
            for rows, texts in zip(order, responses, strict=False)
        ]
    with open(target, "w") as file:
        json.dump(result, file)


def watch_rollouts():
    """A list that fills up as training goes: the token ids of each update's answers."""
    sampled, generate = [], ppo_trainer.batch_generation

    def generation(model, queries, *arguments):
        found = generate(model, queries, *arguments)
        sampled.append(found[0][:, queries.shape[1] :])
        return found

    ppo_trainer.batch_generation = generation
    return sampled


def standardise(reward_model):
    """Shift and scale the reward model's scores by mean and deviation of the first update's."""
    score, first = ppo_trainer.get_reward, []

    def standardised(model, *arguments):
        logits, scores, lengths = score(model, *arguments)
        if model is reward_model:
            if not first:
                first.extend((scores.mean(), scores.std()))
            scores = (scores - first[0]) / first[1]
        return logits, scores, lengths

    ppo_trainer.get_reward = standardised


def cut(ids, eos):
    """Up to and with the first EOS."""
    return ids[: ids.index(eos) + 1] if eos in ids else ids


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        main(json.load(file), sys.argv[2])
