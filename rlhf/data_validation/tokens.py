"""How long the texts are in the model's own tokens, counted without loading the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from tokenizers import Tokenizer

from rlhf.data.chat import MESSAGES, without_marks
from rlhf.data.file_systems import file_system
from rlhf.data.template import Template
from rlhf.errors import ModelError
from rlhf.metrics import Share, share
from rlhf.models import references

FILE_NAME = "tokenizer.json"
TEXTS_AT_ONCE = 1000
EXAMPLES = 2


def load_tokenizer(reference: str) -> tuple[Tokenizer | None, str]:
    """Read or download the tokenizer.json of a model, nothing else of it.

    Args:
        reference: A model that `references.check` passed.

    Returns:
        The tokenizer and an empty text; or None and, in words, why there is none.

    Raises:
        ModelError: There is one, and it is damaged.
    """
    try:
        content = read_model_file(reference, FILE_NAME)
    except (FileNotFoundError, EntryNotFoundError):
        return None, f"no {FILE_NAME} was found with {reference}"
    except Exception as error:  # the Hub's and each file system's client have exceptions of their own
        cause = " ".join(str(error).split())
        return None, f"the {FILE_NAME} of {reference} cannot be read ({type(error).__name__}: {cause})"
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # `tokenizers` raises no narrower class
        raise ModelError(
            f"large_model_reference {reference!r}: its {FILE_NAME} cannot be read ({error}); download the model again"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer, ""


@dataclass(frozen=True)
class TokenLengths:
    """Of some rows of a dataset, in the model's tokens."""

    prompts: list[int]
    """Rendered prompts, special tokens included."""
    completions: list[int]
    """Candidates or completions, with their end-of-sequence token."""
    prompts_cut: Share
    """Prompts over prompt_sequence_length."""
    completions_over: Share
    """Completions over target_sequence_length."""
    examples: dict[str, list[int]]
    """Indexes of some of the rows, by `prompts_cut` and `completions_over`."""


def token_lengths(rows: Sequence[Mapping[str, Any]], template: Template, tokenizer: Tokenizer) -> TokenLengths:
    """Count the tokens of canonical rows.

    Raises:
        DataError: Instruction and suffix leave no room for a prompt.
    """
    plain = not template.chat_template
    rendered = [template.render(row["prompt"], row.get(MESSAGES)) for row in rows]
    # As rlhf.models.encoding has it, but that control tokens in a message count as one token each.
    tokenizer.encode_special_tokens = plain
    prompts = _lengths([without_marks(text) for text in rendered], tokenizer, special_tokens=plain)
    cut = [index for index, length in enumerate(prompts) if length > template.prompt_sequence_length]
    if cut:

        def count(text: str) -> int:
            return len(tokenizer.encode(without_marks(text), add_special_tokens=plain).ids)

        template.fit(rows[cut[0]]["prompt"], count, rows[cut[0]].get(MESSAGES))
    tokenizer.encode_special_tokens = True
    of = [
        (index, template.completion(rendered[index], row[side]))
        for index, row in enumerate(rows)
        for side in ("chosen", "rejected", "completion")
        if side in row
    ]
    completions = [n + 1 for n in _lengths([text for _, text in of], tokenizer, special_tokens=False)]
    over = [
        index for (index, _), length in zip(of, completions, strict=True) if length > template.target_sequence_length
    ]
    return TokenLengths(
        prompts,
        completions,
        share(len(cut), len(prompts)),
        share(len(over), len(completions)),
        {"prompts_cut": cut[:EXAMPLES], "completions_over": list(dict.fromkeys(over))[:EXAMPLES]},
    )


def read_model_file(reference: str, name: str) -> bytes:
    """Read or download one file of a model.

    Raises:
        FileNotFoundError, EntryNotFoundError: It has none of that name; and what file systems and the Hub raise.
    """
    if "://" in reference and not reference.startswith(("hf://", "file://")):
        fs, folder = file_system(reference)
        return fs.cat_file(f"{folder.rstrip('/')}/{name}")
    model = references.resolve(reference)
    folder = Path(model)
    return (folder / name if folder.is_dir() else Path(hf_hub_download(model, name))).read_bytes()


def _lengths(texts: list[str], tokenizer: Tokenizer, special_tokens: bool) -> list[int]:
    return [
        len(encoding.ids)
        for start in range(0, len(texts), TEXTS_AT_ONCE)
        for encoding in tokenizer.encode_batch_fast(
            texts[start : start + TEXTS_AT_ONCE], add_special_tokens=special_tokens
        )
    ]
