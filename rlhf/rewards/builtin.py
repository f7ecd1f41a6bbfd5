"""Graders that come with the project. Each takes options and gives a function `fn(prompts, completions, **columns)`.

They run in a grader's process, so a pattern that takes for ever is ended like any other grader. Heavy packages are
imported by those that need them. What the trainer's process has to grade with, for it has the models and the data's
template, is in `BY_STAGE`; `rlhf.rewards.groups` makes it.
"""

import inspect
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Said = str | list[dict[str, str]]
Grader = Callable[..., list[float | None]]


def length(unit: str = "words", least: int = 0, most: int = 0, slack: float = 0.5) -> Grader:
    """1 within the band, falling linearly to 0 outside of it.

    Args:
        unit: words, or characters.
        least, most: The band, both included; `most` 0 is no upper end.
        slack: How far outside the grade is 0, as a share of the end that is passed.
    """
    if unit not in ("words", "characters"):
        raise ValueError(f"unit: found {unit!r}, expected words or characters")
    if least < 0 or slack < 0 or (most and most < least):
        raise ValueError("least, most and slack must not be negative, nor most less than least")

    def grade(completion: Said) -> float:
        count = len(text(completion).split()) if unit == "words" else len(text(completion))
        end = least if count < least else most if most and count > most else count
        return max(0.0, 1 - abs(count - end) / (slack * end)) if count != end and slack else float(count == end)

    return _each(grade)


def regex(pattern: str, mode: str = "search", absent: bool = False) -> Grader:
    """1 where a regular expression of Python's matches, else 0.

    Args:
        mode: search anywhere in the completion, or fullmatch all of it.
        absent: The other way round: 1 where it does not match.
    """
    if mode not in ("search", "fullmatch"):
        raise ValueError(f"mode: found {mode!r}, expected search or fullmatch")
    found = getattr(_compiled(pattern), mode)
    return _each(lambda completion: float((found(text(completion)) is None) == absent))


def json_schema(schema: dict, fenced: bool = True) -> Grader:
    """1 where the completion is JSON that a JSON Schema accepts, 0.5 where it is other JSON, else 0.

    Args:
        fenced: Take the content of a single Markdown code fence for the completion.
    """
    from jsonschema import exceptions, validators

    kind = validators.validator_for(schema, default=validators.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except exceptions.SchemaError as error:
        raise ValueError(f"schema: is no JSON Schema ({error.message})") from None
    check = kind(schema)

    def grade(completion: Said) -> float:
        said = text(completion).strip()
        inside = re.fullmatch(r"```(?:json)?\s*\n(.*)\n```", said, re.S) if fenced else None
        try:
            value = json.loads(inside[1] if inside else said, parse_constant=_no_json)
        except (ValueError, RecursionError):
            return 0.0
        return 1.0 if check.is_valid(value) else 0.5

    return _each(grade)


def exact_match(column: str = "reference", ignore_case: bool = False, pattern: str = "") -> Grader:
    """1 where the completion is what a column says, blanks at the ends aside; None where the column says nothing.

    Args:
        ignore_case: Whether `Paris` is `paris`.
        pattern: A regular expression; what its first group, or all of it, matches last in the completion is compared.
    """
    compiled = _compiled(pattern) if pattern else None

    def grade(completion: Said, wanted: str) -> float:
        said = text(completion)
        if compiled:
            found = list(compiled.finditer(said))
            if not found:
                return 0.0
            said = found[-1][1 if compiled.groups else 0] or ""
        said, wanted = said.strip(), wanted.strip()
        return float(said.casefold() == wanted.casefold() if ignore_case else said == wanted)

    return _against(column, grade)


def rouge(kind: str = "rougeL", column: str = "reference") -> Grader:
    """ROUGE's F measure (Lin 2004) against a column; None where the column says nothing.

    Args:
        kind: rouge1, rouge2, rougeL or rougeLsum.
    """
    from rlhf.metrics import ROUGE_TYPES

    if kind not in ROUGE_TYPES:
        raise ValueError(f"kind: found {kind!r}, expected one of {', '.join(ROUGE_TYPES)}")

    def grade(completion: Said, reference: str) -> float:
        from rlhf.rouge import f_measures

        ((*measures,),) = f_measures([text(completion)], [reference], False, 1)
        return measures[ROUGE_TYPES.index(kind)]

    return _against(column, grade)


def similarity(column: str = "reference", model: str = "") -> Grader:
    """Cosine of completion and column, in [0, 1]; None where the column says nothing.

    Args:
        model: Hugging Face encoder whose mean hidden states are compared: a folder, or an id where the grader's
            `network` is true; empty compares counts of three letters in a row, which takes no model and sees no
            meaning.
    """
    if not model:
        return _against(column, lambda completion, wanted: _cosine(_trigrams(text(completion)), _trigrams(wanted)))
    embed = _embedder(model)

    def grade(prompts: Sequence[Said], completions: Sequence[Said], **columns: Any) -> list[float | None]:
        wanted = _column(columns, column)
        rows = [i for i, each in enumerate(wanted) if each]
        grades: list[float | None] = [None] * len(wanted)
        if rows:
            ours, theirs = embed([text(completions[i]) for i in rows]), embed([wanted[i] for i in rows])
            for i, cosine in zip(rows, (ours * theirs).sum(1).tolist(), strict=True):
                grades[i] = max(0.0, cosine)
        return grades

    return grade


def toxicity(words: list = [], share: float = 0.0) -> Grader:
    """1 without a word of the list, else 0; or, with `share`, 1 less the share of such words times 1 / `share`.

    Args:
        words: Whole words or phrases, whatever their case; none takes a short list of insults.
        share: Of a completion's words, at which the grade comes to 0.
    """
    listed = [str(word) for word in words] or INSULTS
    found = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, listed))})(?!\w)", re.I)

    def grade(completion: Said) -> float:
        said = text(completion)
        hits = len(found.findall(said))
        if not share:
            return float(not hits)
        return max(0.0, 1 - hits / max(1, len(said.split())) / share)

    return _each(grade)


BUILTINS: dict[str, Callable[..., Grader]] = {
    each.__name__: each for each in (length, regex, json_schema, exact_match, rouge, similarity, toxicity)
}
BY_STAGE: Mapping[str, Mapping[str, type]] = {"reward_model": {"model": str}}
"""{name: {option: its type}}, all of them required. `reward_model` is the score of a model folder from reward_trainer,
or of any sequence classifier with one label."""
EMBEDDED_AT_ONCE = 16  # texts in one forward pass, for a grader has its memory_gb
INSULTS = ["idiot", "idiots", "moron", "morons", "stupid", "dumb", "scum", "bastard", "bitch", "whore", "fuck", "shit"]


def make(name: str, options: dict[str, Any]) -> Grader:
    """A grader by its name; options are already checked."""
    return BUILTINS[name](**options)


def check_options(name: str, options: dict[str, Any]) -> None:
    """See whether a built-in takes these options.

    Raises:
        ValueError: It does not, or there is none of that name.
    """
    if name in BY_STAGE:
        known, required = BY_STAGE[name], list(BY_STAGE[name])
    elif name in BUILTINS:
        parameters = inspect.signature(BUILTINS[name]).parameters
        known = {option: parameter.annotation for option, parameter in parameters.items()}
        required = [option for option, parameter in parameters.items() if parameter.default is parameter.empty]
    else:
        raise ValueError(f"builtin: found {name!r}, expected one of {', '.join([*BUILTINS, *BY_STAGE])}")
    unknown = [option for option in options if option not in known]
    missing = [option for option in required if option not in options]
    if unknown or missing:
        raise ValueError(
            f"{name} takes the options {', '.join(known)}; unknown: {', '.join(unknown) or 'none'}; missing: "
            f"{', '.join(missing) or 'none'}"
        )
    for option, value in options.items():
        kind = known[option]
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        fits = {int: number and value == int(value), float: number}.get(kind, isinstance(value, kind))
        if not fits:
            raise ValueError(f"{name}.{option}: found {value!r}, expected {kind.__name__}")
    if name in ("length", "regex", "exact_match", "toxicity"):  # the others load a package or a model
        make(name, options)


def text(said: Said) -> str:
    """What was said, of a text or of messages."""
    return said if isinstance(said, str) else "\n".join(message["content"] for message in said)


def _each(grade: Callable[[Said], float]) -> Grader:
    return lambda prompts, completions, **columns: [grade(completion) for completion in completions]


def _against(column: str, grade: Callable[[Said, str], float]) -> Grader:
    def graded(prompts: Sequence[Said], completions: Sequence[Said], **columns: Any) -> list[float | None]:
        wanted = _column(columns, column)
        return [grade(c, w) if w else None for c, w in zip(completions, wanted, strict=True)]

    return graded


def _column(columns: dict[str, Any], column: str) -> list[str]:
    if column not in columns:
        raise ValueError(f"column: there is no {column!r}, only {', '.join(columns) or 'none'}")
    return [each if isinstance(each, str) else "" for each in columns[column]]


def _compiled(pattern: str) -> re.Pattern:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern: {pattern!r} is no regular expression ({error})") from None


def _no_json(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def _trigrams(said: str) -> Counter:
    said = f"  {' '.join(said.lower().split())}  "
    return Counter(said[i : i + 3] for i in range(len(said) - 2))


def _cosine(one: Counter, other: Counter) -> float:
    norm = math.sqrt(sum(n * n for n in one.values()) * sum(n * n for n in other.values()))
    return sum(n * other[gram] for gram, n in one.items()) / norm if norm else 0.0


def _embedder(name: str) -> Callable[[list[str]], Any]:
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(name), AutoModel.from_pretrained(name, use_safetensors=True).eval()

    def mean_states(texts: list[str]) -> Any:
        encoded = tokenizer(texts, padding=True, truncation=True, max_length=512, return_tensors="pt")
        with torch.inference_mode():
            states = model(**encoded).last_hidden_state
        mask = encoded["attention_mask"][:, :, None]
        return (states * mask).sum(1) / mask.sum(1)

    def embed(texts: list[str]) -> Any:
        starts = range(0, len(texts), EMBEDDED_AT_ONCE)
        means = torch.cat([mean_states(texts[start : start + EMBEDDED_AT_ONCE]) for start in starts])
        return torch.nn.functional.normalize(means, dim=1)

    return embed
