"""Private data in texts, which a model that is trained on them can learn to say: found, counted and shown masked."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from phonenumbers import Leniency, PhoneNumberMatcher, PhoneNumberType, number_type

EMAIL = "e-mail address"
PHONE = "phone number"
LOOKED_FOR = (
    "Looked for: an e-mail address, a phone number (with +, or as it is written in North America or the UK) or a key. "
    "Names, postal addresses and other numbers are not looked for."
)

# An address as people write it, ASCII only: the local part and labels have the lengths of RFC 5321 and RFC 1035, the
# domain ends in a word of letters. RFC 5322 allows more, of which next to nothing is ever meant as an address.
_EMAIL = re.compile(
    r"(?<![\w.%+-])([a-z0-9_][\w.%+-]{0,63})@((?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.){1,8})([a-z]{2,24})(?![\w-])",
    re.ASCII | re.IGNORECASE,
)

# What a phone number looks like at least: libphonenumber decides, but takes a hundred times as long to say no. Without
# a country, ten digits or more in two or three groups of at least three; what stands before them is left to it.
_GAP = r"[^\w\n,;:=*+]"
_INTERNATIONAL = re.compile(rf"[+＋]{_GAP}?\d(?:{_GAP}{{0,4}}\d){{6}}")
_NATIONAL = re.compile(
    rf"(?<!\d)(?=\d(?:{_GAP}{{0,4}}\d){{9}})\d{{3,6}}{_GAP}{{1,4}}(?:\d{{3,4}}{_GAP}{{1,4}})?\d{{3,6}}(?!\d)"
)
# Candidates without success, after which libphonenumber gives a text up: so many digits are a table, not a number.
_TRIES = 100
# Where numbers written without a country are looked for: North America as a whole shares the plan of the US.
NATIONAL_REGIONS = ("US", "GB")
# Lines of companies and helplines.
_NOBODYS = {PhoneNumberType.TOLL_FREE, PhoneNumberType.PREMIUM_RATE, PhoneNumberType.SHARED_COST, PhoneNumberType.UAN}


@dataclass(frozen=True)
class KeyFormat:
    """A published format of keys."""

    kind: str
    prefixes: tuple[str, ...]
    """A key begins with one of them, which is all that is shown of it; a text without any has none."""
    rest: str
    """What follows the prefix, as a regular expression."""


# Lengths are those of gitleaks 8 (config/gitleaks.toml) where the publisher names none.
KEY_FORMATS = (
    # docs.aws.amazon.com/IAM/latest/UserGuide/reference_identifiers.html: long-term and temporary keys, base 32
    KeyFormat("AWS access key id", ("AKIA", "ASIA"), r"[A-Z2-7]{16}(?![A-Z0-9])"),
    # github.blog/engineering/behind-githubs-new-authentication-token-formats; those of installations may be JWTs since
    # github.blog/changelog/2026-05-15-github-app-installation-tokens-per-request-override-header
    KeyFormat("GitHub token", ("ghp_", "gho_", "ghu_", "ghr_"), r"[A-Za-z0-9]{36}"),
    KeyFormat("GitHub token", ("ghs_",), r"[\w.-]{36}"),
    KeyFormat("GitHub token", ("github_pat_",), r"\w{82}"),
    # cloud.google.com/docs/authentication/api-keys shows one
    KeyFormat("Google API key", ("AIza",), r"[\w-]{35}"),
    # docs.slack.dev/authentication/tokens
    KeyFormat("Slack token", ("xoxb-", "xoxp-", "xoxe-", "xoxe.xoxb-", "xoxe.xoxp-", "xapp-"), r"\d[A-Za-z0-9-]{20}"),
    # gitleaks, rule openai-api-key: T3BlbkFJ is "OpenAI" in base 64
    KeyFormat("OpenAI API key", ("sk-proj-", "sk-svcacct-", "sk-admin-"), r"[\w-]{20,100}T3BlbkFJ[\w-]{20}"),
    KeyFormat("OpenAI API key", ("sk-",), r"[A-Za-z0-9]{20}T3BlbkFJ[A-Za-z0-9]{20}"),
    # gitleaks, rules anthropic-api-key (api03) and anthropic-admin-api-key (admin01)
    KeyFormat("Anthropic API key", ("sk-ant-",), r"[a-z]{2,9}\d\d-[\w-]{80}"),
    # gitleaks, rule huggingface-access-token
    KeyFormat("Hugging Face token", ("hf_",), r"[A-Za-z0-9]{34}(?![A-Za-z0-9])"),
    # RFC 7468 for PEM, RFC 9580 section 6.2 for OpenPGP: "BEGIN", headers at times, then a line of base 64
    KeyFormat(
        "private key",
        ("-----BEGIN ",),
        r"(?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----[\s\S]{1,300}?[A-Za-z0-9+/]{40}",
    ),
    # RFC 7519: two JSON objects ("eyJ" is '{"' in base 64) and a signature
    KeyFormat("JSON web token", ("eyJ",), r"[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10}"),
)
_KEYS = [
    (form, re.compile(rf"(?<![\w-])({'|'.join(map(re.escape, form.prefixes))}){form.rest}", re.ASCII))
    for form in KEY_FORMATS
]


@dataclass(frozen=True)
class Finding:
    """Something private in a text, without what is private about it."""

    kind: str
    """`EMAIL`, `PHONE` or the kind of one of `KEY_FORMATS`."""
    index: int
    """Position of the text."""
    masked: str
    """Enough to find it in the text, too little to restore it: `j…@e…com`, `+1 … 42`, `AKIA…`."""


@dataclass(frozen=True)
class PrivateData:
    """What `find_private` found."""

    findings: tuple[Finding, ...]
    """By text; what stands in a text twice is there once."""

    @property
    def texts(self) -> dict[str, int]:
        """{kind: texts with at least one}, the most frequent first."""
        once = dict.fromkeys((finding.kind, finding.index) for finding in self.findings)
        return dict(Counter(kind for kind, _ in once).most_common())


def find_private(texts: Iterable[str]) -> PrivateData:
    """Find e-mail addresses, phone numbers and keys.

    Phone numbers are those that Google's libphonenumber holds to be in use: with "+" and a country code those of every
    country (its leniency VALID); without, those of North America and the United Kingdom, and only if they are grouped
    as people there write them (STRICT_GROUPING, with a separator), for other digits are valid numbers, too often:
    "12345678910" and "23 45 67 89 01" are some of Ohio. Toll-free and other service lines are nobody's, and left out.

    Names, addresses and everything else that only a reader would recognise are not looked for.
    """
    return PrivateData(
        tuple(
            Finding(kind, index, masked)
            for index, text in enumerate(texts)
            for kind, masked, _ in {(span.kind, span.masked, span.what): None for span in _spans(text)}
        )
    )


def mask_private(text: str) -> str:
    """The text with what `find_private` finds replaced by its masked form, keys to their end."""
    return _masked(text, text)


def mask_private_json(text: str) -> str:
    """The same of JSON, be it cut off or damaged: what its escapes stand for is looked at, so that no `\\n` hides what
    begins a line; what is not private stays as it is written."""
    written = _CHARACTER.findall(text)
    return _masked("".join(json.loads(f'"{each}"') if len(each) > 1 else each for each in written), written)


def _masked(text: str, written: Sequence[str]) -> str:
    """`written` has each of the text's characters as it is to be shown."""
    shown, before = [], 0
    for span in sorted(_spans(text), key=lambda span: (span.start, -span.end)):
        if span.start >= before:
            shown += [*written[before : span.start], span.masked]
            before = span.end
    return "".join([*shown, *written[before:]])


_CHARACTER = re.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})|[\s\S]')


@dataclass(frozen=True, repr=False)
class _Span:
    kind: str
    masked: str
    what: str
    """Tells one from another in the same text; never shown."""
    start: int
    end: int


def _spans(text: str) -> Iterator[_Span]:
    yield from _emails(text)
    yield from _phones(text)
    yield from _keys(text)


def _emails(text: str) -> Iterator[_Span]:
    if "@" in text:
        for match in _EMAIL.finditer(text):
            local, domain, top = match.groups()
            yield _Span(EMAIL, f"{_first(local)}…@{_first(domain[:-1])}…{top}", match.group(), *match.span())


def _phones(text: str) -> Iterator[_Span]:
    found = []
    if _INTERNATIONAL.search(text):
        found += PhoneNumberMatcher(text, None, Leniency.VALID, _TRIES)
    if _NATIONAL.search(text):
        for region in NATIONAL_REGIONS:
            matches = PhoneNumberMatcher(text, region, Leniency.STRICT_GROUPING, _TRIES)
            found += (match for match in matches if not match.raw_string.isdecimal())
    for match in found:
        country_code, national_number = match.number.country_code, match.number.national_number
        if number_type(match.number) not in _NOBODYS:
            masked = f"+{country_code} … {national_number % 100:02}"
            yield _Span(PHONE, masked, f"{country_code} {national_number}", match.start, match.end)


def _keys(text: str) -> Iterator[_Span]:
    for form, pattern in _KEYS:
        if any(prefix in text for prefix in form.prefixes):
            for match in pattern.finditer(text):
                end = (_KEY_BLOCK_END if form.kind == "private key" else _KEY_END).search(text, match.end())
                yield _Span(form.kind, f"{match[1]}…", match.group(), match.start(), end.end() if end else len(text))


# A pattern above may match no more than the beginning of a key.
_KEY_END = re.compile(r"[\w.+/=-]*")
_KEY_BLOCK_END = re.compile(r"-----END [^\n]*")


def _first(part: str) -> str:
    """The first character, unless it says too much of so short a part."""
    return part[0] if len(part) > 2 else ""
