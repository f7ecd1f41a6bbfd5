"""Random models of a workload's sizes, written once and read by every system."""

import json
import math
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from benchmarks.ppo.workloads import EOS, PAD, SPECIAL, UNK, Workload, word

_NEVER = -25.0  # logit of a token that is not to be sampled, against about 0 of the others
_CONSTANT = 300.0  # dimension 0 of the residual stream, in norms of an embedding: dwarfs all others of it
_HEAD_SIZE = 64


def write(workload: Workload, folder: Path) -> None:
    """Write `policy` and `reward` under `folder`, Hugging Face folders with tokenizers."""
    torch.manual_seed(0)
    policy, reward = _llamas(workload) if workload.architecture == "llama" else _t5_and_bert(workload)
    words = workload.vocabulary - len(SPECIAL)
    probability = workload.end_probability
    odds = probability / (1 - probability) * words
    logit = workload.temperature * math.log(odds) if odds else _NEVER
    _set_logits(policy, {PAD: _NEVER, UNK: _NEVER, EOS: logit})
    pairs = workload.architecture != "llama"
    for model, name, tokenizer in (
        (policy, "policy", _tokenizer(workload.vocabulary, pairs=False)),
        (reward, "reward", _tokenizer(workload.vocabulary, pairs)),
    ):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def _llamas(workload: Workload):
    config = LlamaConfig(
        **_sizes(workload),
        num_key_value_heads=workload.hidden // _HEAD_SIZE,
        max_position_embeddings=2048,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=EOS,
    )
    policy = LlamaForCausalLM(config)
    config.num_labels = 1
    return policy, LlamaForSequenceClassification(config)


def _t5_and_bert(workload: Workload):
    policy = T5Config(
        vocab_size=workload.vocabulary,
        d_model=workload.hidden,
        d_kv=_HEAD_SIZE,
        d_ff=workload.hidden * 8 // 3,
        num_layers=workload.layers,
        num_heads=workload.hidden // _HEAD_SIZE,
        dropout_rate=0.0,
        decoder_start_token_id=PAD,
        pad_token_id=PAD,
        eos_token_id=EOS,
    )
    reward = BertConfig(
        **_sizes(workload),
        num_labels=1,
        pad_token_id=PAD,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return T5ForConditionalGeneration(policy), BertForSequenceClassification(reward)


def _sizes(workload: Workload) -> dict[str, int]:
    return {
        "vocab_size": workload.vocabulary,
        "hidden_size": workload.hidden,
        "intermediate_size": workload.hidden * 8 // 3,
        "num_hidden_layers": workload.layers,
        "num_attention_heads": workload.hidden // _HEAD_SIZE,
    }


@torch.no_grad()
def _set_logits(model: nn.Module, wanted: dict[int, float]) -> None:
    """Give tokens the logits `wanted` at every position, and the others about 0 in comparison.

    Dimension 0 of the residual stream is made a constant: every token's embedding has it, and no layer writes to it.
    Behind the last norm it is then the square root of the width; in the output layer only these tokens read it.
    """
    embeddings = model.get_input_embeddings().weight
    output = model.get_output_embeddings().weight
    tied = output.data_ptr() == embeddings.data_ptr()
    constant = _CONSTANT * embeddings.norm(dim=1).mean().item()
    embeddings[:, 0] = constant
    for name, module in model.named_modules():
        if name.endswith(("o_proj", "down_proj", "Attention.o", "DenseReluDense.wo")):
            module.weight[0] = 0
    if not tied:
        output[:, 0] = 0
    for token, logit in wanted.items():
        output[token] = 0
        # T5 ties the two, so that every other token reads the dimension too, and divides by the root of the width.
        output[token, 0] = constant + logit if tied else logit / math.sqrt(model.config.hidden_size)


def _tokenizer(size: int, pairs: bool) -> PreTrainedTokenizerFast:
    """A token a word, with blanks between; for pairs, <eos> separates and closes two texts."""
    names = {PAD: "<pad>", EOS: "<eos>", UNK: "<unk>"}
    vocabulary = {names.get(i, word(i)): i for i in range(size)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if pairs:
        words.post_processor = processors.TemplateProcessing(
            single="$A <eos>", pair="$A <eos> $B:1 <eos>:1", special_tokens=[("<eos>", EOS)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


if __name__ == "__main__":
    job = json.loads(Path(sys.argv[1]).read_text())
    write(Workload(**job["workload"]), Path(job["folder"]))
    Path(sys.argv[2]).write_text("null")
