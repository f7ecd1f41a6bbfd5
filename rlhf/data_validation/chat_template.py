"""The chat template of a model, and the tokens it names, read without loading the model."""

import json
from dataclasses import dataclass
from typing import Any

from huggingface_hub.errors import EntryNotFoundError
from tokenizers import Tokenizer

from rlhf.data.chat import is_control_shaped, render_messages
from rlhf.data_validation.tokens import read_model_file
from rlhf.errors import ModelError

TEMPLATE_FILE = "chat_template.jinja"
CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")


@dataclass(frozen=True)
class ChatTemplate:
    """What of a model a prompt template needs to render conversations; empty for plain text."""

    text: str = ""
    special_tokens: dict[str, str] | None = None
    control_tokens: tuple[str, ...] = ()
    source: str = ""
    """In words, where it was found."""

    @property
    def fields(self) -> dict[str, Any]:
        """Of `rlhf.data.template.Template`."""
        return {
            "chat_template": self.text,
            "special_tokens": self.special_tokens or {},
            "control_tokens": self.control_tokens,
        }


def load_chat_template(reference: str, tokenizer: Tokenizer | None) -> ChatTemplate:
    """Read or download a model's chat template, as transformers finds it.

    Args:
        reference: A model that `references.check` passed.
        tokenizer: The model's, for the spelling of its special tokens.

    Raises:
        ModelError: There is none, it cannot be read, or it renders no message of a user.
    """
    label = f"chat_template: 'model', and large_model_reference {reference!r}"
    config = _config(reference, label)
    own = _read(reference, TEMPLATE_FILE, label)
    if own is not None:
        text, source = own.decode(errors="replace"), TEMPLATE_FILE
    else:
        text, source = _of_config(config.get("chat_template"), label), CONFIG_FILE
    if not text.strip():
        raise ModelError(
            f"{label} has no chat template (no {TEMPLATE_FILE}, and no chat_template in {CONFIG_FILE}); take a model "
            "that was tuned to chat, or chat_template 'none' for plain text"
        )
    tokens = {name: token for name in SPECIAL_TOKENS if (token := _token(config.get(name)))}
    try:
        shown = render_messages(text, tokens, [{"role": "user", "content": "Hello."}])
    except ValueError as error:
        raise ModelError(f"{label} has a chat template in {source} that cannot be rendered ({error})") from error
    if "Hello." not in shown:
        raise ModelError(f"{label} has a chat template in {source} that leaves out what the user says")
    added = tokenizer.get_added_tokens_decoder().values() if tokenizer is not None else ()
    unusual = sorted(t.content for t in added if t.special and t.content.strip() and not is_control_shaped(t.content))
    return ChatTemplate(text, tokens, tuple(unusual), f"{source} of {reference}")


def _config(reference: str, label: str) -> dict[str, Any]:
    content = _read(reference, CONFIG_FILE, label)
    try:
        config = json.loads(content) if content is not None else {}
    except ValueError as error:
        raise ModelError(f"{label} has a {CONFIG_FILE} that is not JSON ({error}); download the model again") from error
    if not isinstance(config, dict):
        raise ModelError(f"{label} has a {CONFIG_FILE} that holds no JSON object; download the model again")
    return config


def _of_config(value: Any, label: str) -> str:
    """The template of that name, or the one named default of several."""
    if not isinstance(value, list):
        return value if isinstance(value, str) else ""
    named = {t.get("name"): t.get("template") for t in value if isinstance(t, dict)}
    if not isinstance(named.get("default"), str):
        found = ", ".join(map(str, named)) or "none"
        raise ModelError(f"{label} has several chat templates in {CONFIG_FILE} ({found}), expected one named default")
    return named["default"]


def _token(value: Any) -> str:
    """A special token, written as text or as an object with its content."""
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else ""


def _read(reference: str, name: str, label: str) -> bytes | None:
    try:
        return read_model_file(reference, name)
    except (FileNotFoundError, EntryNotFoundError):
        return None
    except Exception as error:  # the Hub's and each file system's client have exceptions of their own
        cause = " ".join(str(error).split())
        raise ModelError(f"{label}: {name} cannot be read ({type(error).__name__}: {cause})") from error
