"""How long the texts are in the model's own tokens, counted without loading the model."""

from collections.abc import Mapping
from pathlib import Path

import fsspec
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from tokenizers import Tokenizer

from rlhf.data.formats import Converted
from rlhf.data.template import Template
from rlhf.errors import ModelError
from rlhf.models import references

FILE_NAME = "tokenizer.json"
TEXTS_AT_ONCE = 1000


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
        content = _read(reference)
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


def too_long(converted: Mapping[str, Converted], template: Template, tokenizer: Tokenizer) -> dict[str, float]:
    """Shares of the texts that are longer than the template allows.

    Returns:
        prompts_cut_share_<dataset>: rendered prompts, special tokens included, over prompt_sequence_length.
        completions_over_share_<dataset>: candidates or completions that with their end-of-sequence token are over
        target_sequence_length. Datasets without rows are left out.

    Raises:
        DataError: Instruction and suffix leave no room for a prompt.
    """
    shares = {}
    for name, result in converted.items():
        if not result.rows:
            continue
        prompts = [template.render(row["prompt"]) for row in result.rows]
        lengths = _lengths(prompts, tokenizer, special_tokens=True)
        cut = [row for row, n in zip(result.rows, lengths, strict=True) if n > template.prompt_sequence_length]
        if cut:
            template.fit(cut[0]["prompt"], lambda text: len(tokenizer.encode(text).ids))
        shares[f"prompts_cut_share_{name}"] = len(cut) / len(prompts)
        completions = [
            template.completion(prompt, row[side])
            for prompt, row in zip(prompts, result.rows, strict=True)
            for side in ("chosen", "rejected", "completion")
            if side in row
        ]
        if completions:
            lengths = _lengths(completions, tokenizer, special_tokens=False)
            over = sum(n + 1 > template.target_sequence_length for n in lengths)
            shares[f"completions_over_share_{name}"] = over / len(completions)
    return shares


def _read(reference: str) -> bytes:
    if "://" in reference and not reference.startswith(("hf://", "file://")):
        fs, folder = fsspec.core.url_to_fs(reference)
        return fs.cat_file(f"{folder.rstrip('/')}/{FILE_NAME}")
    model = references.resolve(reference)
    folder = Path(model)
    return (folder / FILE_NAME if folder.is_dir() else Path(hf_hub_download(model, FILE_NAME))).read_bytes()


def _lengths(texts: list[str], tokenizer: Tokenizer, special_tokens: bool) -> list[int]:
    return [
        len(encoding.ids)
        for start in range(0, len(texts), TEXTS_AT_ONCE)
        for encoding in tokenizer.encode_batch_fast(
            texts[start : start + TEXTS_AT_ONCE], add_special_tokens=special_tokens
        )
    ]
