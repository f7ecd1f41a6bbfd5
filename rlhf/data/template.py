"""The prompt template: decided once by data_validation, saved beside the data, used by every later stage."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rlhf.errors import DataError

FILE_NAME = "template.json"

_LINE_BREAK = re.compile(r"[\r\n]+")
# The end of a sentence: its mark, closing quotes or brackets, then a blank; CJK marks need no blank.
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s)|[。！？]")


class Template(BaseModel):
    """How a dataset's bare prompt becomes the text a model reads.

    Data and models made with different templates do not fit each other; `digest` is how stages notice.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: Literal[1] = Field(1, description="Of these rules; raised when the same fields would give other text.")
    instruction: str = Field("", description="Stands before every prompt, with an empty line between.")
    suffix: str = Field("", description="Ends every prompt, for example 'TL;DR:'; never doubled.")
    prompt_sequence_length: int = Field(512, ge=1, description="Tokens of the rendered prompt, at most.")
    target_sequence_length: int = Field(64, ge=1, description="Tokens of the completion, at most.")

    @property
    def digest(self) -> str:
        """16 hex digits that change with any field."""
        canonical = json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def render(self, prompt: str) -> str:
        """The text a model reads: instruction, an empty line, the prompt, the suffix.

        A suffix that the prompt already ends in is kept, with the whitespace before it; one that is not there is
        appended. Trailing whitespace is always the suffix's own, so that every prompt ends alike.
        """
        body, ending = self._split(prompt)
        return self._head + body + ending

    def body(self, prompt: str) -> str:
        """The prompt less its suffix and the whitespace around it: what makes it the same prompt as another."""
        return self._split(prompt)[0].strip()

    def fit(self, prompt: str, count_tokens: Callable[[str], int]) -> tuple[str, bool]:
        """Render `prompt` into at most `prompt_sequence_length` tokens.

        An over-long prompt is cut at its last line break that fits, as in Stiennon et al. 2020. Where that would
        lose more than half of what fits (a post that is one long paragraph under a title), it is cut at the last
        sentence that fits, and if that loses as much, between characters. Instruction and suffix always stay.

        Args:
            prompt: The bare prompt.
            count_tokens: Tokens of a text, special tokens included where the model gets them. Called once for a
                prompt that fits, and about log2(characters) times for one that does not.

        Returns:
            The rendered text, and whether it was cut.

        Raises:
            DataError: Instruction and suffix leave no room for the prompt.
        """
        text = self.render(prompt)
        if count_tokens(text) <= self.prompt_sequence_length:
            return text, False
        body, ending = self._split(prompt)

        def fits(length: int) -> bool:
            return count_tokens(self._head + body[:length].rstrip() + ending) <= self.prompt_sequence_length

        longest, too_long = 0, len(body)
        while too_long - longest > 1:
            middle = (longest + too_long) // 2
            longest, too_long = (middle, too_long) if fits(middle) else (longest, middle)
        # Tokens are not strictly monotonic in characters: a shorter text may need one token more.
        for length in _cuts(body[:longest]):
            if fits(length):
                return self._head + body[:length].rstrip() + ending, True
        raise DataError(
            f"prompt_sequence_length: {self.prompt_sequence_length} tokens leave no room for a prompt beside the "
            f"instruction {self.instruction!r} and the suffix {self.suffix!r}; raise it or shorten these"
        )

    @staticmethod
    def completion(prompt_text: str, completion: str) -> str:
        """The completion as it follows the rendered prompt: stripped, one space before it unless one is there."""
        return completion.strip() if prompt_text[-1:].isspace() else " " + completion.strip()

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

    @property
    def _head(self) -> str:
        return f"{self.instruction}\n\n" if self.instruction else ""

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


def _cuts(fitting: str) -> list[int]:
    """Lengths to cut at, best first: at line breaks, at sentences, between characters."""
    half = len(fitting) / 2
    lines = [m.start() for m in _LINE_BREAK.finditer(fitting)]
    sentences = [m.end() for m in _SENTENCE_END.finditer(fitting + " ")]
    preferred = [cut for cuts in (lines, sentences) for cut in reversed(cuts) if cut > half]
    blank = len(fitting) - len(fitting.lstrip())
    return [*preferred, *range(len(fitting), blank, -1)]
