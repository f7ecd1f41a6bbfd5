"""Chat templates as Hugging Face tokenizers bring them, rendered without transformers.

`transformers.utils.chat_template_utils` is what they are written for, and what this follows: the same sandbox, the
same functions, the same variables.

What comes from data and is spelled like a control token (`<|im_end|>` in a message) is rendered between two private
characters, `MARK_START` and `MARK_END`, so that whoever makes token ids can tell it from the template's own marks; so
do transformers' `sanitize_control_tokens`, with the same characters. Ordinary text has none.
"""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

Message = dict[str, str]
"""`role` and `content`."""

MESSAGES = "messages"
"""A column that datasets with prompts have besides, where their template has a chat template: [{role, content}] as
JSON, of rows that came as conversations."""

# What `strftime_now` says: the same data gives the same prompts on any day. It is the date that the templates of
# Llama 3.1 and 3.2, which ask for one, put in where there is no clock.
TODAY = datetime(2024, 7, 26)

MARK_START, MARK_END = "\U000f0000", "\U000f0001"

# How nearly all models spell control tokens. Reasoning marks are none: templates look for them in what was said.
_CONTROL_SHAPE = re.compile(r"<(?!/?think>)[^<>\s]{1,80}>|\[/?[A-Z0-9_]{2,40}\]")
_MARKED = re.compile(f"{MARK_START}(.*?){MARK_END}", re.DOTALL)
_MARKS = str.maketrans("", "", MARK_START + MARK_END)
_PROBE = "\u2063probe\u2063"  # stands in no template
_HELLO = {"role": "user", "content": "Hello."}


def prompt_of(row: Mapping[str, Any]) -> str | list[Message]:
    """A row's prompt as it came: text, or messages. Graders get it so, in training and in evaluation alike."""
    messages = row.get(MESSAGES)
    return json.loads(messages) if messages else row["prompt"]


def render_messages(
    chat_template: str,
    special_tokens: Mapping[str, str],
    messages: Sequence[Message],
    add_generation_prompt: bool = True,
) -> str:
    """`tokenizer.apply_chat_template(messages, tokenize=False)`.

    Args:
        chat_template: In Jinja.
        special_tokens: `bos_token` and others, by the names that the template may use.
        messages: From the first to the last.
        add_generation_prompt: End where the assistant is to go on.

    Raises:
        ValueError: The template is broken, or refuses the messages; in one line.
    """
    try:
        return _compiled(chat_template).render(
            messages=[dict(message) for message in messages],
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **special_tokens,
        )
    except Exception as error:  # a template is a program, and fails in as many ways
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def takes_system_message(chat_template: str, special_tokens: Mapping[str, str]) -> bool:
    """Whether a system message before the user's is rendered; some templates refuse it, some leave it out."""
    return _takes_system_message(chat_template, tuple(special_tokens.items()))


def before_completion(chat_template: str, special_tokens: Mapping[str, str]) -> str | None:
    """The whitespace that the template puts between its generation prompt and what an assistant said.

    None where it cannot be told: an assistant's message is laid out otherwise than the generation prompt.
    """
    return _before_completion(chat_template, tuple(special_tokens.items()))


def after_completion(chat_template: str, special_tokens: Mapping[str, str]) -> str:
    """What the template puts behind what an assistant said; empty where it cannot be told."""
    whole = _exchange(chat_template, tuple(special_tokens.items()))
    return whole.rpartition(_PROBE)[2] if _PROBE in whole else ""


def is_control_shaped(token: str) -> bool:
    """Whether `mark` knows a token by its spelling."""
    return _CONTROL_SHAPE.fullmatch(token) is not None


def mark(text: str, control_tokens: Sequence[str] = ()) -> str:
    """Text from data with marks around what is spelled like a control token.

    Args:
        text: From data; marks that it brings along are taken out.
        control_tokens: Those that `is_control_shaped` does not know.
    """
    return _control_pattern(tuple(control_tokens)).sub(f"{MARK_START}\\g<0>{MARK_END}", text.translate(_MARKS))


def without_marks(text: str) -> str:
    """Rendered text for people, and for whoever needs no marks."""
    return text.translate(_MARKS)


def marked_ranges(text: str) -> tuple[str, list[tuple[int, int]]]:
    """The text without marks, and where in it the marked pieces are (start, end)."""
    pieces, ranges, length = [], [], 0
    for number, piece in enumerate(_MARKED.split(text)):
        piece = without_marks(piece)  # a template that splits what was said may part a mark from its other
        if number % 2:
            ranges.append((length, length + len(piece)))
        pieces.append(piece)
        length += len(piece)
    return "".join(pieces), ranges


def without_control_tokens(text: str, control_tokens: Sequence[str] = ()) -> str:
    """Rendered text less the template's own control tokens, for models that do not know them."""
    pieces = _MARKED.split(text)
    pattern = _control_pattern(tuple(control_tokens))
    return without_marks(
        "".join(piece if number % 2 else pattern.sub("", piece) for number, piece in enumerate(pieces))
    )


@lru_cache(maxsize=8)
def _control_pattern(control_tokens: tuple[str, ...]) -> re.Pattern:
    longest_first = sorted(control_tokens, key=len, reverse=True)
    return re.compile("|".join([*map(re.escape, longest_first), _CONTROL_SHAPE.pattern]))


@lru_cache(maxsize=8)
def _takes_system_message(chat_template: str, special_tokens: tuple[tuple[str, str], ...]) -> bool:
    messages = [{"role": "system", "content": _PROBE}, _HELLO]
    try:
        return _PROBE in render_messages(chat_template, dict(special_tokens), messages)
    except ValueError:
        return False


@lru_cache(maxsize=8)
def _before_completion(chat_template: str, special_tokens: tuple[tuple[str, str], ...]) -> str | None:
    whole = _exchange(chat_template, special_tokens)
    try:
        prompt = render_messages(chat_template, dict(special_tokens), [_HELLO])
    except ValueError:
        return None
    between, found, _ = whole.removeprefix(prompt).partition(_PROBE)
    return between if whole.startswith(prompt) and found and not between.strip() else None


@lru_cache(maxsize=8)
def _exchange(chat_template: str, special_tokens: tuple[tuple[str, str], ...]) -> str:
    """A question and its answer, `_PROBE`; empty where the template refuses them."""
    reply = {"role": "assistant", "content": _PROBE}
    try:
        return render_messages(chat_template, dict(special_tokens), [_HELLO, reply], add_generation_prompt=False)
    except ValueError:
        return ""


class _Generation(Extension):
    """`{% generation %}`: marks what an assistant said, for losses on that alone; here it is only taken."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        return jinja2.nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


@lru_cache(maxsize=8)
def _compiled(chat_template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: TODAY.strftime(form)
    environment.globals["namespace"] = _Namespace
    return environment.from_string(chat_template)


class _Namespace(jinja2.utils.Namespace):
    """Without names that begin with _, as transformers has it: they would lead out of the sandbox."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, args = args[0], args[1:]
        attributes = dict(*args, **kwargs)
        for name in attributes:
            _refuse_private(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace takes no name that begins with _, found {name!r}")


def _to_json(value: Any, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """Unlike Jinja's, it does not escape what HTML would need."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
