"""The prompt template: decided once by data_validation, saved beside the data, used by every later stage."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rlhf.data import chat
from rlhf.errors import DataError

FILE_NAME = "template.json"

_LINE_BREAK = re.compile(r"[\r\n]+")
# The end of a sentence: its mark, closing quotes or brackets, then a blank; CJK marks need no blank.
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s)|[。！？]")


class Template(BaseModel):
    """How a dataset's bare prompt becomes the text a model reads.

    Without a chat template that is plain text. With one, a bare prompt is one user message, and a row that came as
    a conversation has its `messages`; text from data that is spelled like a control token then stands between marks
    (see `rlhf.data.chat`), which `Policy` and `RewardModel` take out.

    Data and models made with different templates do not fit each other; `digest` is how stages notice.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: Literal[1] = Field(1, description="Of these rules; raised when the same fields would give other text.")
    instruction: str = Field("", description="Stands before every prompt, with an empty line between.")
    suffix: str = Field("", description="Ends every prompt, for example 'TL;DR:'; never doubled.")
    chat_template: str = Field("", description="The model's own, in Jinja; empty for plain text.")
    special_tokens: dict[str, str] = Field({}, description="Tokens that the chat template may name, as bos_token.")
    control_tokens: tuple[str, ...] = Field(
        (), description="Special tokens of the model that are spelled neither like <this> nor like [THIS]."
    )
    prompt_sequence_length: int = Field(512, ge=1, description="Tokens of the rendered prompt, at most.")
    target_sequence_length: int = Field(64, ge=1, description="Tokens of the completion, at most.")

    @property
    def digest(self) -> str:
        """16 hex digits that change with any field that can change the text."""
        unused = set() if self.chat_template else {"chat_template", "special_tokens", "control_tokens"}
        canonical = json.dumps(self.model_dump(exclude=unused), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def render(self, prompt: str, messages: str | None = None) -> str:
        """The text a model reads: instruction, an empty line, the prompt, the suffix.

        A suffix that the prompt already ends in is kept, with the whitespace before it; one that is not there is
        appended. Trailing whitespace is always the suffix's own, so that every prompt ends alike.

        With a chat template, the prompt and its suffix are the (last) user message, the instruction is a system
        message, before the conversation's own if it has one, and the text ends where the assistant is to answer.
        Where the template takes no system message, its text stands before the first user message instead.

        Args:
            prompt: The bare prompt.
            messages: The column of that name: [{role, content}] in JSON where the row came as a conversation.

        Raises:
            DataError: The chat template refuses the conversation.
        """
        parts = self._parts(prompt, messages)
        return parts.text(parts.body)

    def body(self, prompt: str, messages: str | None = None) -> str:
        """The prompt less its suffix and the whitespace around it: what makes it the same prompt as another.

        With a chat template a conversation is its turns, as `role: content` lines; one turn of the user alone is the
        same as that text as a bare prompt.

        Args:
            prompt, messages: As for `render`.
        """
        if not self.chat_template or not messages:
            return self._split(prompt)[0].strip()
        turns = json.loads(messages)
        texts = [turn["content"].strip() for turn in turns]
        asked = _asked(turns)
        texts[asked] = self._split(turns[asked]["content"])[0].strip()
        if [turn["role"] for turn in turns] == ["user"]:
            return texts[0]
        return "\n".join(f"{turn['role']}: {text}" for turn, text in zip(turns, texts, strict=True))

    def fit(self, prompt: str, count_tokens: Callable[[str], int], messages: str | None = None) -> tuple[str, bool]:
        """Render into at most `prompt_sequence_length` tokens.

        An over-long prompt is cut at its last line break that fits, as in Stiennon et al. 2020. Where that would
        lose more than half of what fits (a post that is one long paragraph under a title), it is cut at the last
        sentence that fits, and if that loses as much, between characters. Instruction and suffix always stay.

        Of a conversation the last user message is cut so. Where less than half of it would be left, the oldest turns
        go, one after the other, until it is more; only the last turn alone is cut further. System messages stay.

        Args:
            prompt, messages: As for `render`.
            count_tokens: Tokens of a text, special tokens included where the model gets them. Called once for a
                prompt that fits, and about log2(characters) times for one that does not.

        Returns:
            The rendered text, and whether it was cut.

        Raises:
            DataError: What stays leaves no room for the prompt, or the chat template refuses the conversation.
        """
        parts = self._parts(prompt, messages)
        text = parts.text(parts.body)
        if count_tokens(text) <= self.prompt_sequence_length:
            return text, False
        for turns_gone, shorter in enumerate(parts.from_later_turns()):
            text = shorter.text(shorter.body)
            if turns_gone and count_tokens(text) <= self.prompt_sequence_length:
                return text, True
            if (text := self._cut(shorter, count_tokens)) is not None:
                return text, True
        system = ", the chat template" if self.chat_template else ""
        raise DataError(
            f"prompt_sequence_length: {self.prompt_sequence_length} tokens leave no room for a prompt beside the "
            f"instruction {self.instruction!r}{system} and the suffix {self.suffix!r}; raise it or shorten these"
        )

    def completion(self, prompt_text: str, completion: str) -> str:
        """The completion as it follows the rendered prompt: stripped, one space before it unless one is there.

        After a chat template's generation prompt it follows as the template lays out what an assistant said.
        """
        before = chat.before_completion(self.chat_template, self.special_tokens) if self.chat_template else None
        if before is None:
            before = "" if prompt_text[-1:].isspace() else " "
        return before + completion.strip()

    def without_control_tokens(self, prompt_text: str) -> str:
        """A rendered prompt for models that do not know the chat template's control tokens; plain text as it is."""
        if not self.chat_template:
            return prompt_text
        return chat.without_control_tokens(prompt_text, self.control_tokens).strip()

    def save(self, folder: str | Path) -> None:
        """Write template.json into `folder`."""
        (Path(folder) / FILE_NAME).write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read template.json from `folder`.

        Raises:
            DataError: It is missing, or not a template of this version.
        """
        path = Path(folder) / FILE_NAME
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError as error:
            raise DataError(f"{path}: no such file, expected the template saved by data_validation") from error
        except (OSError, ValidationError) as error:
            raise DataError(f"{path}: not a prompt template ({' '.join(str(error).split())})") from error

    def _parts(self, prompt: str, messages: str | None) -> "_Plain | _Chat":
        if not self.chat_template:
            body, ending = self._split(prompt)
            return _Plain(f"{self.instruction}\n\n" if self.instruction else "", body, ending)
        turns = json.loads(messages) if messages else [{"role": "user", "content": prompt}]
        own = next((i for i, turn in enumerate(turns) if turn["role"] != "system"), len(turns))
        system = "\n\n".join(filter(None, [self.instruction, *(turn["content"] for turn in turns[:own])]))
        turns = turns[own:]
        if not turns:
            raise DataError("chat_template: a conversation has system messages only, expected one of the user")
        asked = _asked(turns)
        return _Chat(self, system, turns, asked, *self._split(turns[asked]["content"]))

    def _cut(self, parts: "_Plain | _Chat", count_tokens: Callable[[str], int]) -> str | None:
        """The parts with as much of a body that does not fit as does; None where less than must stay would."""

        def fits(length: int) -> bool:
            return count_tokens(parts.text(parts.body[:length].rstrip())) <= self.prompt_sequence_length

        longest, too_long = parts.least, len(parts.body)
        if longest and not fits(longest):
            return None
        while too_long - longest > 1:
            middle = (longest + too_long) // 2
            longest, too_long = (middle, too_long) if fits(middle) else (longest, middle)
        # Tokens are not strictly monotonic in characters: a shorter text may need one token more.
        for length in _cuts(parts.body[:longest]):
            if length >= parts.least and fits(length):
                return parts.text(parts.body[:length].rstrip())
        return None

    def _split(self, prompt: str) -> tuple[str, str]:
        """The prompt's body, and its ending: the whitespace before the suffix, and the suffix."""
        mark = self.suffix.strip()
        if not mark:
            return prompt, self.suffix
        lead = self.suffix[: len(self.suffix) - len(self.suffix.lstrip())]
        body = prompt.rstrip()
        if body.endswith(mark):
            body = body[: -len(mark)]
            gap = body[len(body.rstrip()) :]
        else:
            gap = lead or prompt[len(body) :] or " "
        return body.rstrip(), gap + self.suffix.lstrip()


@dataclass(frozen=True)
class _Plain:
    """A prompt in plain text."""

    head: str
    body: str
    """What may be cut."""
    ending: str
    least: int = 0
    """Characters of the body that must stay."""

    def text(self, body: str) -> str:
        return self.head + body + self.ending

    def from_later_turns(self) -> Iterator[Self]:
        yield self


@dataclass(frozen=True)
class _Chat:
    """A conversation, and what of it may be cut."""

    template: Template
    system: str
    turns: list[chat.Message]
    asked: int
    """Which turn has the body."""
    body: str
    ending: str
    least: int = 0

    def text(self, body: str) -> str:
        chat_template, special_tokens = self.template.chat_template, self.template.special_tokens
        turns = [dict(turn) for turn in self.turns]
        turns[self.asked]["content"] = body + self.ending
        if self.system and chat.takes_system_message(chat_template, special_tokens):
            turns.insert(0, {"role": "system", "content": self.system})
        elif self.system:
            first = next((turn for turn in turns if turn["role"] == "user"), turns[0])
            first["content"] = f"{self.system}\n\n{first['content']}"
        for turn in turns:
            turn["content"] = chat.mark(turn["content"], self.template.control_tokens)
        try:
            return chat.render_messages(chat_template, special_tokens, turns)
        except ValueError as error:
            roles = ", ".join(turn["role"] for turn in turns)
            raise DataError(
                f"chat_template: the model's chat template refuses a conversation of {roles} ({error})"
            ) from error

    def from_later_turns(self) -> Iterator[Self]:
        """As it is, then with ever more of the oldest turns gone; a user begins each time."""
        starts = [0, *(i for i in range(1, self.asked + 1) if self.turns[i]["role"] == "user")]
        for start in starts:
            least = 0 if start == starts[-1] else (len(self.body) + 1) // 2
            yield replace(self, turns=self.turns[start:], asked=self.asked - start, least=least)


def _asked(turns: list[chat.Message]) -> int:
    """The turn that ends in the suffix: the user's last, or where there is none the last."""
    return max((i for i, turn in enumerate(turns) if turn["role"] == "user"), default=len(turns) - 1)


def _cuts(fitting: str) -> list[int]:
    """Lengths to cut at, best first: at line breaks, at sentences, between characters."""
    half = len(fitting) / 2
    lines = [m.start() for m in _LINE_BREAK.finditer(fitting)]
    sentences = [m.end() for m in _SENTENCE_END.finditer(fitting + " ")]
    preferred = [cut for cuts in (lines, sentences) for cut in reversed(cuts) if cut > half]
    blank = len(fitting) - len(fitting.lstrip())
    return [*preferred, *range(len(fitting), blank, -1)]
