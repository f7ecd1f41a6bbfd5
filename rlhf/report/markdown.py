"""Text in Markdown."""

import re

from rlhf.report.page import visible

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|!~&])")


def plain(text: str) -> str:
    """Text that Markdown takes for text, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(visible(text).split()))
