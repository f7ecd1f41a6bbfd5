"""The last PPO of TRL that took an encoder-decoder policy: `python trl_0_11.py job.json result.json`, in its own venv.

The value head is on the policy's decoder; the reward model, an encoder, reads prompt and answer as one text.
"""

import json
import resource
import sys
import time

import torch
import transformers
import trl
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast
from trl import AutoModelForSeq2SeqLMWithValueHead, PPOConfig, PPOTrainer, create_reference_model


def main(job, target):
    torch.manual_seed(job["seed"])
    tokenizer = PreTrainedTokenizerFast.from_pretrained(job["policy"])
    policy = AutoModelForSeq2SeqLMWithValueHead(AutoModelForSeq2SeqLM.from_pretrained(job["policy"]))
    policy.is_peft_model = False  # PPOTrainer asks, and only `from_pretrained` of the wrapper sets it
    reward = AutoModelForSequenceClassification.from_pretrained(job["reward"]).eval()
    longest = reward.config.max_position_embeddings
    trainer = PPOTrainer(
        PPOConfig(
            batch_size=job["batch"],
            mini_batch_size=job["micro_batch"],
            gradient_accumulation_steps=job["batch"] // job["micro_batch"],
            ppo_epochs=job["epochs"],
            learning_rate=job["learning_rate"],
            init_kl_coef=job["kl_coeff"],
            vf_coef=job["value_coeff"],
            seed=job["seed"],
        ),
        policy,
        create_reference_model(policy),
        tokenizer,
    )
    pad = tokenizer.pad_token_id
    sampling = {
        "max_new_tokens": job["response"],
        "do_sample": True,
        "top_k": 0,
        "top_p": 1.0,
        "temperature": job["temperature"],
        "pad_token_id": pad,
        "eos_token_id": tokenizer.eos_token_id,
    }
    start, ends, lengths = time.perf_counter(), [], []
    for update in range(job["updates"]):
        rows = job["prompts"][update * job["batch"] : (update + 1) * job["batch"]]
        prompts = [torch.tensor(ids) for ids in tokenizer(rows)["input_ids"]]
        answers = trainer.generate(prompts, batch_size=len(prompts), return_prompt=False, **sampling)
        texts = [torch.cat(pair) for pair in zip(prompts, answers, strict=True)]
        ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=pad)[:, :longest]
        with torch.no_grad():
            scores = reward(input_ids=ids, attention_mask=(ids != pad).long()).logits[:, 0]
        trainer.step(prompts, answers, list(scores))
        ends.append(time.perf_counter() - start)
        lengths.append(sum(len(ids) - 1 for ids in answers) / len(answers))  # less the start token of the decoder
    result = {
        "system": f"TRL {trl.__version__}, transformers {transformers.__version__}, torch {torch.__version__}",
        "threads": torch.get_num_threads(),
        "ends": ends,
        "lengths": lengths,
        "peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "peak_gpu": torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0,
    }
    with open(target, "w") as file:
        json.dump(result, file)


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        main(json.load(file), sys.argv[2])
