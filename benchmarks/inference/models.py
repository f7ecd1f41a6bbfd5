"""Models whose greedy answers end after as many tokens as their prompt's last word says, at the cost of any other.

A prompt ends in `count37`; the answer is `count36 count35 ... count0` and the end of the text. All layers compute as
those of a random model do, and add nothing to what a token's embedding says, so that the next token follows from the
last one alone; in the T5, whose output layer is its embedding, the last feed-forward layer counts. Answers of the T5
begin with no word: there the last cross-attention, which is the same everywhere and so tells the mean of the prompt,
says what the prompt ended in.
"""

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

PROMPTS, SHORTEST, LONGEST = 512, 16, 512  # tokens
FEWEST, MOST = 5, 64  # tokens of an answer, its end included
PAD, EOS, UNK = 0, 1, 2
COUNTS = MOST  # words count0 to count63
_WORDS = 1024
_LAYERS, _HIDDEN, _HEADS = 4, 256, 4


def prompts() -> list[str]:
    """Made-up prompts, uniform in length; the answer's length is uniform too, and has nothing to do with it."""
    draw = random.Random(0)
    made = []
    for _ in range(PROMPTS):
        words = [f"w{draw.randrange(_WORDS)}" for _ in range(draw.randint(SHORTEST, LONGEST) - 1)]
        made.append(" ".join([*words, f"count{draw.randint(FEWEST, MOST) - 1}"]))
    return made


def write(architecture: str, folder: Path) -> None:
    """Write a Hugging Face folder with a tokenizer."""
    torch.manual_seed(0)
    {"llama": _llama, "t5": _t5}[architecture]().save_pretrained(folder)
    _tokenizer().save_pretrained(folder)


def _size() -> int:
    return 3 + COUNTS + _WORDS


@torch.no_grad()
def _llama() -> LlamaForCausalLM:
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=_size(),
            hidden_size=_HIDDEN,
            intermediate_size=_HIDDEN * 8 // 3,
            num_hidden_layers=_LAYERS,
            num_attention_heads=_HEADS,
            num_key_value_heads=_HEADS,
            max_position_embeddings=2 * LONGEST,
            pad_token_id=PAD,
            bos_token_id=None,
            eos_token_id=EOS,
        )
    )
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    embeddings = torch.nn.functional.normalize(torch.randn(_size(), _HIDDEN), dim=1)
    model.get_input_embeddings().weight.copy_(embeddings)
    model.get_output_embeddings().weight.copy_(_next(embeddings))
    return model


@torch.no_grad()
def _t5() -> T5ForConditionalGeneration:
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=_size(),
            d_model=_HIDDEN,
            d_kv=_HIDDEN // _HEADS,
            d_ff=_HIDDEN * 8 // 3,
            num_layers=_LAYERS,
            num_heads=_HEADS,
            dropout_rate=0.0,
            tie_word_embeddings=False,  # as transformers reads it, outputs are not scaled; it ties them all the same
            decoder_start_token_id=PAD,
            pad_token_id=PAD,
            eos_token_id=EOS,
        )
    )
    for name, weight in model.named_parameters():
        if name.endswith((".o.weight", ".wo.weight")):
            weight.zero_()
    half = _HIDDEN // 2  # the first half of the residual stream is for counts and the end: a dimension each
    embeddings = torch.zeros(_size(), _HIDDEN)
    embeddings[3 : 3 + COUNTS, :COUNTS] = torch.eye(COUNTS)
    embeddings[EOS, COUNTS] = 1
    embeddings[3 + COUNTS :, half:] = torch.nn.functional.normalize(torch.randn(_WORDS, half), dim=1)
    model.get_input_embeddings().weight.copy_(embeddings)
    last = model.decoder.block[-1]
    cross = last.layer[1].EncDecAttention
    cross.q.weight.zero_()  # the same attention everywhere: the mean of the encoder's states
    cross.v.weight.copy_(torch.eye(_HIDDEN))
    cross.v.weight[half:] = 0
    # Far below a word's own embedding, and all there is at the start.
    cross.o.weight.copy_(0.05 * torch.eye(_HIDDEN))
    feed_forward = last.layer[2].DenseReluDense
    feed_forward.wi.weight.zero_()
    feed_forward.wi.weight[:COUNTS, :COUNTS] = torch.eye(COUNTS)
    for count in range(COUNTS):  # to the next lower one, and to the end
        feed_forward.wo.weight[count - 1 if count else COUNTS, count] = 10.0
    return model


def _next(embeddings: torch.Tensor) -> torch.Tensor:
    """An output layer that names the word after the one whose embedding it reads: the next lower count, and the end."""
    output = torch.zeros_like(embeddings)
    for count in range(COUNTS - 1):
        output[3 + count] = embeddings[3 + count + 1]
    output[EOS] = embeddings[3]
    return output


def _tokenizer() -> PreTrainedTokenizerFast:
    names = ["<pad>", "<eos>", "<unk>", *(f"count{i}" for i in range(COUNTS)), *(f"w{i}" for i in range(_WORDS))]
    words = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
