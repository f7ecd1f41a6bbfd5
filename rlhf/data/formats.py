"""The shapes users bring, recognised by their fields and converted to canonical rows."""

import json
import re
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any, Literal

Kind = Literal["preferences", "prompts", "demonstrations"]

LONGEST_ROW_BYTES = 4 << 20
LARGEST_MARGIN = 3.4028234663852886e38  # of float32, as which margins are kept
ANNOTATOR_FIELDS = ("annotator", "annotator_id", "worker", "worker_id", "rater", "rater_id", "labeler", "labeler_id")


class Shape(StrEnum):
    """A published way to lay out a row; `FIELDS` says what each is recognised by."""

    VERTEX_TEXT = "Vertex text"
    VERTEX_CHAT = "Vertex chat"
    TRL = "TRL / CarperAI"
    TRL_CHAT = "TRL conversational"
    OPENAI_COMPARISONS = "OpenAI comparisons"
    OPENAI_TLDR = "OpenAI TL;DR"
    HH_RLHF = "HH-RLHF"


FIELDS = {
    Shape.VERTEX_TEXT: "input_text with candidate_0, candidate_1, choice, or with output_text",
    Shape.VERTEX_CHAT: "messages [{author, content}], context; candidate_0, candidate_1, choice beside or in the last",
    Shape.TRL: "prompt with chosen, rejected, or with completion or label",
    Shape.TRL_CHAT: "the same with lists of {role, content}, or messages",
    Shape.OPENAI_COMPARISONS: "info {post or article, title, subreddit}, summaries [{text}, {text}], choice",
    Shape.OPENAI_TLDR: "subreddit, title, post, summary",
    Shape.HH_RLHF: "chosen, rejected as transcripts with 'Human:' and 'Assistant:'",
}


class Reason(StrEnum):
    """Why a row stands in quarantine. The list is closed; `MEANINGS` explains each."""

    NOT_JSON = "not_json"
    TOO_LONG = "too_long"
    DUPLICATE_FIELD = "duplicate_field"
    MISSING_FIELD = "missing_field"
    NOT_TEXT = "not_text"
    BLANK_PROMPT = "blank_prompt"
    BLANK_CANDIDATE = "blank_candidate"
    BARE_SUFFIX = "bare_suffix"
    EQUAL_CANDIDATES = "equal_candidates"
    BAD_CHOICE = "bad_choice"
    BAD_MARGIN = "bad_margin"
    SEVERAL_TURNS = "several_turns"
    UNDESIRED = "undesired"
    REFUSED_BY_TEMPLATE = "refused_by_template"
    DUPLICATE = "duplicate"
    CONTRADICTORY = "contradictory"
    SHARED_PROMPT = "shared_prompt"


MEANINGS = {
    Reason.NOT_JSON: "not a JSON object, or nested too deep to be read",
    Reason.TOO_LONG: f"the row has more than {LONGEST_ROW_BYTES:,} bytes: line breaks are missing, or it is no text",
    Reason.DUPLICATE_FIELD: "a field stands in the row twice, so that one of its values would be lost",
    Reason.MISSING_FIELD: "a field needed for this dataset is not there, or is null",
    Reason.NOT_TEXT: "something else, or half a character (a lone surrogate), where text belongs",
    Reason.BLANK_PROMPT: "the prompt, its post or its last message is empty or only whitespace",
    Reason.BLANK_CANDIDATE: "a candidate, or the completion of a demonstration, is empty or only whitespace",
    Reason.BARE_SUFFIX: "the prompt or a candidate is only a marker such as 'TL;DR:'",
    Reason.EQUAL_CANDIDATES: "both candidates are the same, whitespace around them aside",
    Reason.BAD_CHOICE: "choice is not the number 0 or 1",
    Reason.BAD_MARGIN: "margin is not a number, or is negative, infinite or NaN",
    Reason.SEVERAL_TURNS: "a candidate is a conversation, not one reply",
    Reason.UNDESIRED: "its label is false: the completion is what a model should not write, and no demonstration",
    Reason.REFUSED_BY_TEMPLATE: "the model's chat template refuses the conversation: its roles, or their order",
    Reason.DUPLICATE: "the row before says the same, and duplicates are to be quarantined",
    Reason.CONTRADICTORY: "other rows label the same candidates the other way, and such are to be quarantined",
    Reason.SHARED_PROMPT: "the prompt is also evaluated on, and such are to be quarantined",
}


class Unfit(Exception):
    """A row cannot be used, for `reason`, because of `field` where it is one field's fault."""

    def __init__(self, reason: Reason, field: str = ""):
        super().__init__(reason, field)
        self.reason = reason
        self.field = field


def recognise(row: dict[str, Any]) -> Shape | None:
    """The shape of a row by its fields, null and empty ones aside; None where they fit none, or too few are there."""
    row = {name: value for name, value in row.items() if value not in (None, [])}
    if "summaries" in row:
        return Shape.OPENAI_COMPARISONS
    if "prompt" in row or isinstance(row.get("chosen"), list):
        chat = any(isinstance(row.get(name), list) for name in ("prompt", "chosen", "rejected", "completion"))
        return Shape.TRL_CHAT if chat else Shape.TRL
    if "messages" in row:
        if not isinstance(row["messages"], list):
            return None
        named = {name for message in row["messages"] if isinstance(message, dict) for name in message}
        return Shape.VERTEX_CHAT if "author" in named else Shape.TRL_CHAT if "role" in named else None
    if "input_text" in row or {"candidate_0", "candidate_1", "choice"} <= set(row):
        return Shape.VERTEX_TEXT
    if "post" in row and not {"title", "subreddit", "summary"}.isdisjoint(row):
        return Shape.OPENAI_TLDR
    if "rejected" in row and _ASSISTANT in str(row.get("chosen")):
        return Shape.HH_RLHF
    return None


def may_be_chat(row: dict[str, Any], shape: Shape) -> Shape | None:
    """The conversational shape that a row recognised as `shape` may be of, too, for want of what tells the two apart.

    A Vertex row without prompt, and a row of TRL's with a text as prompt and no answer, are laid out alike in both.
    """
    if shape is Shape.VERTEX_TEXT and row.get("input_text") is None:
        return Shape.VERTEX_CHAT
    answers = any(row.get(name) for name in ("chosen", "rejected", "completion")) or isinstance(row.get("label"), str)
    return Shape.TRL_CHAT if shape is Shape.TRL and not answers else None


def parse(text: str) -> dict[str, Any]:
    """A row's JSON object.

    Raises:
        Unfit: The text is longer than `LONGEST_ROW_BYTES`, no JSON object, or has a field twice.
    """
    if len(text) > LONGEST_ROW_BYTES or len(text.encode(errors="replace")) > LONGEST_ROW_BYTES:
        raise Unfit(Reason.TOO_LONG)
    try:
        value = json.loads(text, object_pairs_hook=_unambiguous)
    except (ValueError, RecursionError):
        raise Unfit(Reason.NOT_JSON) from None
    if not isinstance(value, dict):
        raise Unfit(Reason.NOT_JSON)
    return value


def is_cut_off(text: str) -> bool:
    """Whether a text that is no JSON is the beginning of an object."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return text.startswith("{") and (error.pos >= len(text.rstrip()) or not text.endswith("}"))
    except RecursionError:
        return False
    return False


def own_id(row: dict[str, Any]) -> str | None:
    """The row's `id`, where it is printable text or a whole number."""
    value = _without_point(row.get("id"))
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) and value.strip() and value.isprintable() else None


def annotator_field(row: dict[str, Any]) -> str | None:
    """The field that says who chose, by the names that published datasets give it."""
    return next((name for name in ANNOTATOR_FIELDS if annotator(row, name) is not None), None)


def annotator(row: dict[str, Any], name: str) -> str | None:
    """Who chose: a text or a whole number."""
    value = _without_point(row.get(name))
    return storable(str(value)) if isinstance(value, str | int) else None


def _without_point(value: Any) -> Any:
    """A whole number as such: data frames write 3 as 3.0 where other rows have none."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def storable(text: str) -> str:
    """Text as Parquet can hold it: a lone surrogate becomes the escape it came from."""
    return text.encode(errors="backslashreplace").decode()


def convert(
    row: dict[str, Any], shape: Shape, kind: Kind, suffix: str | None = None, keep_messages: bool = False
) -> dict[str, Any]:
    """A row of `shape` as a canonical row of `kind`, without `id` and `split`.

    Returns:
        preferences: prompt, chosen, rejected; position: 0 or 1, which candidate as laid out was chosen (None where
        the layout names the chosen one); margin: by how much it is better (None where the row does not say).
        prompts: prompt, reference (None where there is none). demonstrations: prompt, completion. With
        `keep_messages` also messages: the prompt's [{role, content}] as JSON (None where it is no conversation).

    Raises:
        Unfit: The row cannot be used.
    """
    canonical = _CONVERTERS[shape](row, kind)
    messages, position = canonical.pop("messages", None), canonical.pop("position", None)
    if kind == "prompts" and not (canonical["reference"] or "").strip():
        canonical["reference"] = None
    texts = {name: text for name, text in canonical.items() if name != "reference"}
    for name, text in texts.items():
        if not text.strip():
            raise Unfit(Reason.BLANK_PROMPT if name == "prompt" else Reason.BLANK_CANDIDATE, name)
    for name, text in texts.items():
        if _BARE_MARKER.fullmatch(text.strip()) or text.strip() == (suffix or "").strip():
            raise Unfit(Reason.BARE_SUFFIX, name)
    if kind == "preferences":
        if texts["chosen"].strip() == texts["rejected"].strip():
            raise Unfit(Reason.EQUAL_CANDIDATES)
        canonical |= {"position": position, "margin": _margin(row)}
    if keep_messages:
        canonical["messages"] = json.dumps(messages, ensure_ascii=False) if messages else None
    return canonical


# What prompts end in and candidates sometimes begin with: "TL;DR:", "[summary]:", "Answer:".
_BARE_MARKER = re.compile(r"\[\w+\]:|tl;?dr:?|[\w;]{1,20}:", re.IGNORECASE)


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        if twice in _USED_FIELDS:
            raise Unfit(Reason.DUPLICATE_FIELD, twice)
    return row


_USED_FIELDS = {
    *("input_text", "output_text", "candidate_0", "candidate_1", "choice", "messages", "author", "role", "content"),
    *("context", "prompt", "chosen", "rejected", "completion", "label", "info", "summaries", "text", "post", "article"),
    *("title", "subreddit", "summary", "id", "margin", *ANNOTATOR_FIELDS),
}


def _need(row: dict[str, Any], name: str) -> Any:
    if row.get(name) is None:
        raise Unfit(Reason.MISSING_FIELD, name)
    return row[name]


def _text(row: dict[str, Any], name: str) -> str:
    value = _need(row, name)
    if not isinstance(value, str):
        raise Unfit(Reason.NOT_TEXT, name)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Unfit(Reason.NOT_TEXT, name) from None
    return value


def _optional_text(row: dict[str, Any], name: str) -> str | None:
    return None if row.get(name) is None else _text(row, name)


def _answer(row: dict[str, Any], name: str, kind: Kind) -> dict[str, Any]:
    """What a prompt's answer is: a demonstration's completion, or the reference that a prompt may have."""
    return {"reference": _optional_text(row, name)} if kind == "prompts" else {"completion": _text(row, name)}


def _pair(row: dict[str, Any], candidates: tuple[str, str]) -> dict[str, Any]:
    """Chosen, rejected and position by `choice`."""
    if "choice" not in row:
        raise Unfit(Reason.MISSING_FIELD, "choice")
    choice = row["choice"]
    # Data frames write 1 as 1.0. True is no choice, though Python counts it as 1.
    if isinstance(choice, bool) or not isinstance(choice, int | float) or choice not in (0, 1):
        raise Unfit(Reason.BAD_CHOICE, "choice")
    position = int(choice)
    return {"chosen": candidates[position], "rejected": candidates[1 - position], "position": position}


def _margin(row: dict[str, Any]) -> float | None:
    """TRL's name: its RewardTrainer subtracts the margin from the difference of the scores."""
    margin = row.get("margin")
    if margin is None:
        return None
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not 0 <= margin <= LARGEST_MARGIN:
        raise Unfit(Reason.BAD_MARGIN, "margin")
    return abs(float(margin))  # -0.0 is 0


def _vertex_text(row: dict[str, Any], kind: Kind) -> dict[str, Any]:
    prompt = {"prompt": _text(row, "input_text")}
    if kind == "preferences":
        return prompt | _pair(row, (_text(row, "candidate_0"), _text(row, "candidate_1")))
    return prompt | _answer(row, "output_text", kind)


def _messages_row(row: dict[str, Any], kind: Kind) -> dict[str, Any]:
    """Vertex chat, and TRL's `messages`. The last message may be the answer, or hold the candidates."""
    messages = _messages(row, "messages")
    if kind == "preferences":
        last = row["messages"][-1]
        holder = row if last.get("candidate_0") is None else last
        if holder is last and messages[-1]["role"] != "user":
            messages.pop()
        candidates = _text(holder, "candidate_0"), _text(holder, "candidate_1")
        return _conversation(messages, _optional_text(row, "context")) | _pair(holder, candidates)
    answer = _answer(row, "output_text", "prompts")["reference"]
    if messages[-1]["role"] == "assistant":
        answer = answer or messages[-1]["content"]
        messages.pop()
    prompt = _conversation(messages, _optional_text(row, "context"))
    return prompt | _answer({"messages": answer}, "messages", kind)


def _trl(row: dict[str, Any], kind: Kind) -> dict[str, Any]:
    if _messages_demonstrate(row, kind):
        return _messages_row(row, kind)
    prompt = {"prompt": _text(row, "prompt")}
    if kind == "preferences":
        return prompt | {"chosen": _text(row, "chosen"), "rejected": _text(row, "rejected")}
    if _is_undesired(row, kind):
        return prompt | {"reference": None}
    answers = [name for name in ("completion", "label") if row.get(name) is not None]
    if kind == "demonstrations" and not answers and row.get("chosen") is not None:
        answers = ["chosen"]  # of a pair, the better one demonstrates
    return prompt | _answer(row, answers[0] if answers else "label" if "label" in row else "completion", kind)


def _trl_chat(row: dict[str, Any], kind: Kind) -> dict[str, Any]:
    """`prompt` may be missing (then it is what chosen and rejected share), or stand in them as well."""
    names = ("prompt", "chosen", "rejected")
    bare = row.get("messages") is not None and all(row.get(name) in (None, []) for name in names)
    if bare or _messages_demonstrate(row, kind):
        return _messages_row(row, kind)
    prompt = _messages(row, "prompt", "user") if row.get("prompt") else []
    if kind == "preferences":
        chosen, rejected = _messages(row, "chosen", "assistant"), _messages(row, "rejected", "assistant")
        shared = chosen[: _common(chosen[:-1], rejected[:-1])]
        replies = {"chosen": chosen[len(shared) :], "rejected": rejected[len(shared) :]}
        return _conversation(_joined(prompt, shared)) | {name: _reply(reply, name) for name, reply in replies.items()}
    answer = None if _is_undesired(row, kind) else row.get("completion")
    demonstrates = kind == "demonstrations" and answer is None  # of a pair, the better one does
    if row.get("chosen") not in (None, []):
        try:
            *shared, chosen = _messages(row, "chosen", "assistant")
        except Unfit:  # as a tool's call, of which nothing but what it shares with the prompt is wanted
            if demonstrates or not prompt:
                raise
        else:
            prompt = _joined(prompt, shared)
            answer = chosen["content"] if demonstrates else answer
    if isinstance(answer, list):
        answer = _reply(_messages(row, "completion"), "completion")
    return _conversation(prompt) | _answer({"completion": answer}, "completion", kind)


def _messages_demonstrate(row: dict[str, Any], kind: Kind) -> bool:
    """Whether only the `messages` that stand beside a prompt, and begin with it, have an answer."""
    if kind != "demonstrations" or not isinstance(row.get("messages"), list):
        return False
    return all(row.get(name) in (None, []) for name in ("completion", "label", "chosen"))


def _is_undesired(row: dict[str, Any], kind: Kind) -> bool:
    """Whether the completion is one not to write, as the rows of TRL's KTOTrainer say in `label`.

    Raises:
        Unfit: It is, and would be demonstrated.
    """
    undesired = row.get("label") is False and row.get("completion") is not None
    if undesired and kind == "demonstrations":
        raise Unfit(Reason.UNDESIRED, "label")
    return undesired


def _joined(prompt: list[dict[str, str]], shared: list[dict[str, str]]) -> list[dict[str, str]]:
    """The prompt and what follows it. In some datasets chosen and rejected hold the prompt as well, or its end."""
    asked, said = ([(message["role"], message["content"].strip()) for message in part] for part in (prompt, shared))
    if all(message in said for message in asked):
        return shared
    start = next(start for start in range(len(asked) + 1) if asked[start:] == said[: len(asked) - start])
    return prompt[:start] + shared


def _openai_comparison(row: dict[str, Any], kind: Kind) -> dict[str, Any]:
    info, summaries = _need(row, "info"), _need(row, "summaries")
    if not isinstance(info, dict):
        raise Unfit(Reason.NOT_TEXT, "info")
    prompt = {"prompt": _post(info)}
    if kind != "preferences":
        return prompt | _answer({}, "summary", kind)
    if not isinstance(summaries, list) or len(summaries) != 2 or not all(isinstance(s, dict) for s in summaries):
        raise Unfit(Reason.MISSING_FIELD, "summaries")
    return prompt | _pair(row, (_text(summaries[0], "text"), _text(summaries[1], "text")))


def _openai_tldr(row: dict[str, Any], kind: Kind) -> dict[str, Any]:
    if kind == "preferences":
        raise Unfit(Reason.MISSING_FIELD, "summaries")
    return {"prompt": _post(row)} | _answer(row, "summary", kind)


def _hh_rlhf(row: dict[str, Any], kind: Kind) -> dict[str, Any]:
    """The prompt is what both transcripts share, up to the last `Assistant:` in it."""
    chosen, rejected = _text(row, "chosen"), _text(row, "rejected")
    for name, candidate in (("chosen", chosen), ("rejected", rejected)):
        if not candidate.strip():
            raise Unfit(Reason.BLANK_CANDIDATE, name)
    shared = chosen[: _common(chosen, rejected)] if kind == "preferences" else chosen
    prompt = shared[: shared.rfind(_ASSISTANT) + len(_ASSISTANT)] if _ASSISTANT in shared else ""
    if kind != "preferences":
        return {"prompt": prompt} | _answer({}, "completion", kind)
    replies = {"chosen": chosen[len(prompt) :], "rejected": rejected[len(prompt) :]}
    for name, reply in replies.items():
        if prompt and _HUMAN in reply:
            raise Unfit(Reason.SEVERAL_TURNS, name)
    return {"prompt": prompt, **replies}


_ASSISTANT = "\n\nAssistant:"
_HUMAN = "\n\nHuman:"

_CONVERTERS: dict[Shape, Callable[[dict[str, Any], Kind], dict[str, Any]]] = {
    Shape.VERTEX_TEXT: _vertex_text,
    Shape.VERTEX_CHAT: _messages_row,
    Shape.TRL: _trl,
    Shape.TRL_CHAT: _trl_chat,
    Shape.OPENAI_COMPARISONS: _openai_comparison,
    Shape.OPENAI_TLDR: _openai_tldr,
    Shape.HH_RLHF: _hh_rlhf,
}


def _post(post: dict[str, Any]) -> str:
    """A Reddit post or a news article, laid out as in Huang et al. 2024: labelled parts, an empty line between."""
    name = "article" if post.get("post") is None and "article" in post else "post"
    body = _text(post, name)
    if not body.strip():
        raise Unfit(Reason.BLANK_PROMPT, name)
    subreddit, title = _optional_text(post, "subreddit"), _optional_text(post, "title")
    parts = [
        f"SUBREDDIT: r/{subreddit.removeprefix('r/')}" if subreddit else "",
        f"TITLE: {title}" if title else "",
        f"{name.upper()}: {body}",
        "TL;DR:",
    ]
    return "\n\n".join(part for part in parts if part)


def _messages(row: dict[str, Any], name: str, text_is_from: str = "") -> list[dict[str, str]]:
    """[{role, content}] of a field that holds messages, or the text of one. Vertex calls the role author."""
    value = _need(row, name)
    if isinstance(value, str) and text_is_from:
        value = [{"role": text_is_from, "content": value}]
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise Unfit(Reason.NOT_TEXT, name)
    if not value:
        raise Unfit(Reason.MISSING_FIELD, name)
    messages = []
    for message in value:
        role = _text(message, "author" if "author" in message else "role")
        # Where the message is there for its candidates, it needs no content.
        is_holder = message.get("candidate_0") is not None and message.get("content") is None
        content = "" if is_holder else _text(message, "content")
        messages.append({"role": role, "content": content})
    return messages


def _reply(messages: list[dict[str, str]], name: str) -> str:
    if len(messages) != 1:
        raise Unfit(Reason.SEVERAL_TURNS, name)
    return messages[0]["content"]


def _conversation(messages: list[dict[str, str]], context: str | None = None) -> dict[str, Any]:
    """A conversation as plain text: `role: content` lines, then `assistant:` for the reply to follow; and as it is."""
    if not messages:
        raise Unfit(Reason.MISSING_FIELD, "prompt")
    if not messages[-1]["content"].strip():
        raise Unfit(Reason.BLANK_PROMPT, "content")
    messages = [*([{"role": "system", "content": context}] if context else []), *messages]
    lines = [f"{message['role']}: {message['content']}" for message in messages]
    return {"prompt": "\n".join([*lines, "assistant:"]), "messages": messages}


def _common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many items both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
