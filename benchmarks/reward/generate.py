"""Made-up preferences of the lengths that real ones have, and a tiny decoder to train on them."""

import random
from pathlib import Path

from rlhf.data.store import write_dataset
from rlhf.data.template import Template

PROMPT_TOKENS = 448
TEMPLATE = Template(suffix="TL;DR:", prompt_sequence_length=PROMPT_TOKENS, target_sequence_length=64)
# Words, log-normal as those of the posts and summaries of Stiennon et al. 2020: most posts are half as long as the
# longest, summaries a tenth of their posts.
_PROMPT_WORDS, _PROMPT_SPREAD, _PROMPT_RANGE = 200, 0.5, (40, 420)
_ANSWER_WORDS, _ANSWER_SPREAD, _ANSWER_RANGE = 24, 0.4, (6, 60)
_WORDS = [f"{a}{b}" for a in ("ba", "ko", "mi", "su", "te") for b in ("la", "ne", "ri", "to", "vu", "xa", "zo")]
_GOOD, _BAD = _WORDS[:5], _WORDS[5:10]


def write_preferences(folder: Path, train: int, held_out: int, seed: int = 0) -> None:
    """A canonical dataset; the chosen response has more of some words than the rejected one, in nine of ten pairs."""
    draw = random.Random(seed)

    def words(count: int, from_words: list[str]) -> list[str]:
        return draw.choices(from_words, k=count)

    def length(middle: float, spread: float, bounds: tuple[int, int]) -> int:
        return min(max(round(draw.lognormvariate(0, spread) * middle), bounds[0]), bounds[1])

    rows = []
    for number in range(train + held_out):
        prompt = " ".join(words(length(_PROMPT_WORDS, _PROMPT_SPREAD, _PROMPT_RANGE), _WORDS))
        sides = []
        for sort in (_GOOD, _BAD):
            count = length(_ANSWER_WORDS, _ANSWER_SPREAD, _ANSWER_RANGE)
            answer = words(count - count // 4, _WORDS) + words(count // 4, sort)
            sides.append(" ".join(draw.sample(answer, count)))
        chosen, rejected = sides if draw.random() < 0.9 else reversed(sides)
        split = "train" if number < train else "eval"
        rows.append({"id": str(number), "prompt": prompt, "chosen": chosen, "rejected": rejected, "split": split})
    write_dataset(folder, "preferences", rows, TEMPLATE)


def write_model(folder: Path) -> None:
    """A Llama of 4 layers and width 256 with random weights, whose tokenizer knows every word."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<pad>", "</s>", "<unk>"]
    vocabulary = {word: index for index, word in enumerate([*special, *_WORDS, "TL", ";", "DR", ":"])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=1024,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
