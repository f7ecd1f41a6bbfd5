"""From texts to token ids: no text that comes from data can become a special token, however it is spelled."""

import re
from functools import lru_cache

from transformers import BatchEncoding, PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import encode_marked_chat

from rlhf.data.chat import MARK_END, MARK_START, is_control_shaped, marked_ranges


def encode_text(tokenizer: PreTrainedTokenizerBase, *texts: str, add_special_tokens: bool = True) -> BatchEncoding:
    """Tokenise a text, or a pair of texts, that come from data as a whole.

    What is spelled like a special token is read as ordinary text; special tokens are only those that the tokenizer
    adds of itself. A few tokenizers (T5's) have their special tokens among their words, and would still read it as
    one: for them it gets a blank after its first character.
    """
    if leaky := _made_of_text(tokenizer):
        texts = tuple(_broken(tokenizer, leaky, text) for text in texts)
    return tokenizer(*texts, add_special_tokens=add_special_tokens, split_special_tokens=True, verbose=False)


def encode_chat(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of text that a chat template rendered, with `rlhf.data.chat`'s marks on what comes from data.

    The template's own control tokens are special tokens and nothing is added to them: a beginning of sequence, where
    the model wants one, is in the template.
    """
    plain, from_data = marked_ranges(text)
    spans = [
        found.span()
        for found in (_control_tokens(tokenizer).finditer(plain) if from_data else ())
        if any(start < found.end() and found.start() < end for start, end in from_data)
    ]
    if not spans:
        return tokenizer(plain, add_special_tokens=False, verbose=False)["input_ids"]
    try:
        return encode_marked_chat(tokenizer, _around(plain, spans, MARK_START, MARK_END))
    except ValueError:  # a special token is among the tokenizer's words
        broken = _around(plain, [(start + 1, start + 1) for start, _ in spans], " ", "")
        return tokenizer(broken, add_special_tokens=False, verbose=False)["input_ids"]


def _around(text: str, spans: list[tuple[int, int]], before: str, after: str) -> str:
    pieces, done = [], 0
    for start, end in spans:
        pieces += [text[done:start], before, text[start:end], after]
        done = end
    return "".join([*pieces, text[done:]])


@lru_cache(maxsize=8)
def _control_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern:
    """Special tokens, and added ones that are spelled like them (`<tool_call>`)."""
    added = tokenizer.added_tokens_decoder.values()
    return _any_of([token.content for token in added if token.special or is_control_shaped(token.content)])


@lru_cache(maxsize=8)
def _made_of_text(tokenizer: PreTrainedTokenizerBase) -> re.Pattern | None:
    """The special tokens that the tokenizer makes of plain text; that of unknown text is no harm."""
    special = {i: token.content for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    special.pop(tokenizer.unk_token_id, None)
    if not special:
        return None
    encoded = tokenizer(list(special.values()), add_special_tokens=False, split_special_tokens=True, verbose=False)
    made = [special[i] for i, ids in zip(special, encoded["input_ids"], strict=True) if i in ids]
    return _any_of(made) if made else None


def _broken(tokenizer: PreTrainedTokenizerBase, leaky: re.Pattern, text: str) -> str:
    # Normalisation may be what makes the token: of full-width brackets, say.
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    normal = normalizer.normalize_str(text) if normalizer is not None else text
    return leaky.sub(lambda found: f"{found[0][0]} {found[0][1:]}", normal) if leaky.search(normal) else text


def _any_of(tokens: list[str]) -> re.Pattern:
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)")
