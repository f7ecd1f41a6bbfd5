"""Makes the demo's base models: a tokenizer fitted to the demo's texts, and random weights in Hugging Face folders.

The pipeline loads them as it loads any user's model, so the demo takes the path that a real model takes.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCABULARY = 1024
_MAX_LENGTH = 512  # tokens of prompt and completion together
# Near 1 / sqrt(width). From the usual 0.02, the Llama did not learn to copy from the post in 400 SFT steps; from this
# it did in 300.
_INITIALIZER_RANGE = 0.1
# BERT adds positions and segments to its words. Drawn as large as the words they drown them: attention then cannot
# match a word of the summary with the same word of the post, and 400 steps of reward training did not get past 0.70
# against clean labels; with positions this much smaller, 150 steps reach 0.94.
_POSITION_SCALE = 0.1
_SEGMENT_SCALE = 0.3


def corpus(folder: Path) -> list[str]:
    """The texts of preferences and demonstrations in `folder`, in order: what the tokenizer is fitted to."""
    texts = []
    for name in ("preferences", "demonstrations"):
        with (Path(folder) / f"{name}.jsonl").open(encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                # Completions carry a leading space: that is how they follow a prompt.
                texts += [row[key] for key in ("input_text", "prompt") if key in row]
                texts += [f" {row[key]}" for key in ("candidate_0", "candidate_1", "completion") if key in row]
    return texts


def write_llama(folder: Path, texts: Iterable[str], seed: int = 0) -> None:
    """Write a Llama of 2 layers, width 128 and 4 heads with tied embeddings (0.43 M parameters).

    Args:
        folder: Becomes an ordinary Hugging Face folder: config, safetensors, tokenizer.
        texts: What the tokenizer is fitted to, see `corpus`.
        seed: Of the random weights.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tokenizer(texts, pad="<pad>", bos=None, eos="</s>", unk="<unk>")
    _save(
        LlamaForCausalLM,
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=_MAX_LENGTH,
            tie_word_embeddings=True,
            initializer_range=_INITIALIZER_RANGE,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        ),
        tokenizer,
        folder,
        seed,
    )


def write_t5(folder: Path, texts: Iterable[str], seed: int = 0) -> None:
    """Write a T5 of 2 + 2 layers and width 128 (0.7 M parameters); its tokenizer ends every text with EOS.

    Args:
        folder, texts, seed: As for `write_llama`.
    """
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = _tokenizer(texts, pad="<pad>", bos=None, eos="</s>", unk="<unk>", single="$A </s>")
    _save(
        T5ForConditionalGeneration,
        T5Config(
            vocab_size=len(tokenizer),
            d_model=128,
            d_kv=32,
            d_ff=256,
            num_layers=2,
            num_decoder_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.pad_token_id,
        ),
        tokenizer,
        folder,
        seed,
    )


def write_bert(folder: Path, texts: Iterable[str], seed: int = 0) -> None:
    """Write a BERT of 2 layers, width 128 and 4 heads, for a reward model that reads pairs of prompt and response.

    `tokenizer(prompt, response)` gives `[CLS] prompt [SEP] response [SEP]` with `token_type_ids`.

    Args:
        folder, texts, seed: As for `write_llama`.
    """
    from transformers import BertConfig, BertModel

    def quieten(model: BertModel) -> None:
        model.embeddings.position_embeddings.weight.data.mul_(_POSITION_SCALE)
        model.embeddings.token_type_embeddings.weight.data.mul_(_SEGMENT_SCALE)

    tokenizer = _tokenizer(
        texts,
        pad="[PAD]",
        bos="[CLS]",
        eos="[SEP]",
        unk="[UNK]",
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    _save(
        BertModel,
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=256,
            initializer_range=_INITIALIZER_RANGE,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            max_position_embeddings=_MAX_LENGTH,
            pad_token_id=tokenizer.pad_token_id,
        ),
        tokenizer,
        folder,
        seed,
        quieten,
    )


def _tokenizer(
    texts: Iterable[str],
    *,
    pad: str,
    bos: str | None,
    eos: str,
    unk: str,
    single: str | None = None,
    pair: str | None = None,
    **options: object,
):
    """A byte-level BPE: no text is unknown to it, and the same texts give the same merges."""
    from transformers import PreTrainedTokenizerFast

    special = [token for token in (pad, bos, eos, unk) if token]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    if single:
        ids = [(token, tokenizer.token_to_id(token)) for token in special]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        unk_token=unk,
        model_max_length=_MAX_LENGTH,
        clean_up_tokenization_spaces=False,
        **{"model_input_names": ["input_ids", "attention_mask"], **options},
    )


def _save(
    model_class: type,
    config,
    tokenizer,
    folder: Path,
    seed: int,
    adjust: Callable[[Any], None] = lambda model: None,
) -> None:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)
    adjust(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
