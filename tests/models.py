"""More architectures for tests, each with the tokenizer and the special tokens that its published models have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from transformers import (
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    DebertaV2Config,
    DebertaV2Model,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    RobertaConfig,
    RobertaModel,
)

from rlhf.data.template import Template
from rlhf.reward_trainer.config import RewardTrainerConfig

if TYPE_CHECKING:
    from rlhf.models.scoring import RewardModel

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
SPREAD = 0.1  # of the first weights: at the usual 0.02, models as small as these score every text alike


def untrained_reward_model(folder: Path, template: Template | None = None) -> RewardModel:
    """A reward model with a new head, as its trainer starts."""
    from rlhf.models.scoring import RewardModel

    return RewardModel.to_train(folder, template or Template(), RewardTrainerConfig())[0]


def write_pythia(folder: Path, llama: Path) -> None:
    """A GPT-NeoX whose tokenizer has one special token, <|endoftext|>, and no padding."""
    import torch

    tokenizer = _only_endoftext(llama)
    torch.manual_seed(0)
    end = tokenizer.eos_token_id
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer),
        **SIZE,
        max_position_embeddings=256,
        initializer_range=SPREAD,
        bos_token_id=end,
        eos_token_id=end,
        hidden_dropout=0.1,
        attention_dropout=0.1,
    )
    _save(GPTNeoXForCausalLM(config), tokenizer, folder)


def write_qwen(folder: Path, llama: Path) -> None:
    """A Qwen2 with grouped-query attention and more rows of embeddings than tokens."""
    import torch

    tokenizer = _only_endoftext(llama)
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer) + 13,
        **SIZE,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=SPREAD,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )
    _save(Qwen2ForCausalLM(config), tokenizer, folder)


def write_deberta(folder: Path, bert: Path) -> None:
    """A DeBERTa-v3: relative positions, one segment, and a pooler that its checkpoints lack."""
    import torch

    tokenizer = AutoTokenizer.from_pretrained(bert)
    torch.manual_seed(0)
    config = DebertaV2Config(
        vocab_size=len(tokenizer),
        **SIZE,
        type_vocab_size=0,
        max_position_embeddings=256,
        relative_attention=True,
        position_buckets=32,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        initializer_range=SPREAD,
        pad_token_id=tokenizer.pad_token_id,
    )
    _save(DebertaV2Model(config), tokenizer, folder)


def write_roberta(folder: Path, bert: Path) -> None:
    """A RoBERTa: a score head of two layers, and positions that count from behind the padding token."""
    import torch

    tokenizer = AutoTokenizer.from_pretrained(bert)
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        **SIZE,
        type_vocab_size=2,
        max_position_embeddings=258,
        initializer_range=SPREAD,
        pad_token_id=tokenizer.pad_token_id,
    )
    _save(RobertaModel(config, add_pooling_layer=False), tokenizer, folder)


def write_gpt2(folder: Path, llama: Path) -> None:
    """A GPT-2: its trunk is called `transformer`, as that of T5's classifiers is."""
    import torch

    tokenizer = AutoTokenizer.from_pretrained(llama)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=256,
        n_embd=32,
        n_layer=2,
        n_head=4,
        initializer_range=SPREAD,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    _save(GPT2LMHeadModel(config), tokenizer, folder)


def write_bart(folder: Path, t5: Path) -> None:
    """A BART: an encoder-decoder whose trunk stands under a name, as T5's does not."""
    import torch

    tokenizer = AutoTokenizer.from_pretrained(t5)
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=256,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        init_std=SPREAD,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=None,
    )
    _save(BartForConditionalGeneration(config), tokenizer, folder)


def _only_endoftext(llama: Path):
    """The Llama's tokenizer as GPT-NeoX's are: one token begins, ends and stands for what is unknown."""
    import json
    import tempfile

    from transformers import PreTrainedTokenizerFast

    with tempfile.TemporaryDirectory() as folder:
        AutoTokenizer.from_pretrained(llama).save_pretrained(folder)
        text = Path(folder, "tokenizer.json").read_text(encoding="utf-8").replace("</s>", "<|endoftext|>")
        tokenizer = json.loads(text)
        tokenizer["added_tokens"] = [t for t in tokenizer["added_tokens"] if t["content"] == "<|endoftext|>"]
        Path(folder, "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
        end = "<|endoftext|>"
        return PreTrainedTokenizerFast(
            tokenizer_file=str(Path(folder, "tokenizer.json")), bos_token=end, eos_token=end, unk_token=end
        )


def _save(model, tokenizer, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
