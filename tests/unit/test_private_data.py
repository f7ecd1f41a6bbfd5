import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.data_validation.private_data import (
    EMAIL,
    KEY_FORMATS,
    PHONE,
    Finding,
    find_private,
    mask_private,
    mask_private_json,
)

# Made up, and put together here so that no scanner takes this file for a leak.
BASE64 = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7"
KEYS = {
    "AKIA" + "IOSFODNN7EXAMPLE": ("AWS access key id", "AKIA…"),
    "ASIA" + "Q3EGRZ2ABCDEFGHI": ("AWS access key id", "ASIA…"),
    "ghp_" + "aB3d" * 9: ("GitHub token", "ghp_…"),
    "ghs_" + "12345_" + "eyJhbGciOiJSUzI1NiJ9." + "eyJpc3MiOiJnaXRodWIifQ." + "c2ln" * 9: ("GitHub token", "ghs_…"),
    "github_pat_" + "11ABCDEFG0" + "aB3d" * 18: ("GitHub token", "github_pat_…"),
    "AIza" + "SyD-9tSrke72I6e1H5HkXeGiSO_nFGJ9Xdy": ("Google API key", "AIza…"),
    "xoxb-" + "123456789012-123456789012-aB3daB3daB3d": ("Slack token", "xoxb-…"),
    "xoxe.xoxp-" + "1-Mi0yLTEyMzQ1Njc4OTAxMi0": ("Slack token", "xoxe.xoxp-…"),
    "sk-" + "aB3d" * 5 + "T3BlbkFJ" + "aB3d" * 5: ("OpenAI API key", "sk-…"),
    "sk-proj-" + "a_3-" * 18 + "T3BlbkFJ" + "a_3-" * 18: ("OpenAI API key", "sk-proj-…"),
    "sk-ant-" + "api03-" + "a_3d" * 23 + "bAA": ("Anthropic API key", "sk-ant-…"),
    "hf_" + "aBcD" * 8 + "eF": ("Hugging Face token", "hf_…"),
    "-----BEGIN " + f"RSA PRIVATE KEY-----\n{BASE64}\n": ("private key", "-----BEGIN …"),
    "-----BEGIN " + f"PGP PRIVATE KEY BLOCK-----\nVersion: GnuPG v1\n\n{BASE64}\n": ("private key", "-----BEGIN …"),
    "-----BEGIN " + f"PRIVATE KEY-----\\n{BASE64}\\n": ("private key", "-----BEGIN …"),
    "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0NTYifQ." + "SflKxwRJSMeKKF2QT4fw": ("JSON web token", "eyJ…"),
}
EMAILS = {
    "jane.doe@example.com": "j…@e…com",
    "Jane_Doe+reddit@mail.example.co.uk": "J…@m…uk",
    "al@x.io": "…@…io",
}
PHONES = {
    "+1 202 555 0142": "+1 … 42",
    "(202) 555-0142": "+1 … 42",
    "1-202-555-0142": "+1 … 42",
    "202.555.0142": "+1 … 42",
    "+12025550142": "+1 … 42",
    "020 7946 0958": "+44 … 58",
    "07911 123456": "+44 … 56",
    "+44 (0)20 7946 0958": "+44 … 58",
    "+49 30 901820": "+49 … 20",
    "+61 412 345 607": "+61 … 07",
}


def only(text: str) -> Finding:
    (finding,) = find_private([text]).findings
    return finding


@pytest.mark.parametrize(("key", "kind", "masked"), [(key, *found) for key, found in KEYS.items()])
@pytest.mark.parametrize("around", ["{}", "My key is {}, do not tell.", "key='{}'", "Token={}\n", "键{}键"])
def test_keys_of_published_formats_are_found(around, key, kind, masked):
    assert only(around.format(key)) == Finding(kind, 0, masked)


def test_every_format_is_tried_here():
    assert {found[0] for found in KEYS.values()} == {form.kind for form in KEY_FORMATS}


@pytest.mark.parametrize(("address", "masked"), EMAILS.items())
@pytest.mark.parametrize("around", ["{}", "Write to {}.", "<{}>", "mailto:{}?subject=x", "请联系{}谢谢", "({})"])
def test_email_addresses_are_found(around, address, masked):
    assert only(around.format(address)) == Finding(EMAIL, 0, masked)


@pytest.mark.parametrize(("number", "masked"), PHONES.items())
@pytest.mark.parametrize("around", ["{}", "Call me at {}.", "tel: {}, or not", "[27 F] in 2014, {}\nand 12 others"])
def test_phone_numbers_are_found(around, number, masked):
    assert only(around.format(number)) == Finding(PHONE, 0, masked)


@pytest.mark.parametrize(
    "text",
    [
        "in 2014, 2015 and 2016",
        "2012 2013 2014 2015",
        "1990-2010-2020",
        "I am here 24/7 and 365 days",
        "I [27 F] and my boyfriend [28 M] of 10 years",
        "Me (27/F), him (28/M), 6 years",
        "it cost $1,234,567.89, or 10,000,000",
        "between 200-300-4000 dollars",
        "r/relationships and r/AskReddit, u/throwaway12345678",
        "12345678910",
        "my password is 12345678910 123",
        "23 45 67 89 01",
        "2345678910",
        "order 2025550142",
        "1990-2010-2020, order 2025550142",
        "2025 550 142",
        "+1 555 867 5309",
        "1-2-3-4-5-6-7-8-9-10",
        "1 2 3 4 5 6 7 8 9 10 11 12",
        "12 + 34 + 56 = 102, 7 * 8 - 9 + 10",
        "2015-03-04 12:30:55",
        "10.15.2014 11:30",
        "192.168.100.200",
        "ISBN 978-3-16-148410-0",
        "4111 1111 1111 1111",
        "lifted 225 315 405 135",
        "5'11\" and 180 lbs",
        "555-867-5309",
        "the helpline 1-800-273-8255 and 0800 111 1111",
        "@name and me@ home, at 3@5.50, a@b, #@!.com",
        "user@localhost",
        "a" * 65 + "@example.com",
        "name (at) example.com",
        "xoxo-hugs-and-kisses-to-everybody, xoxp-hugs-and-kisses-to-everybody",
        "AKIAIOSFODNN7",
        "BAKIAIOSFODNN7EXAMPLE",
        "AKIAIOSFODNN7EXAMPLEEXAMPLE",
        "sk-proj-name-of-a-branch-of-ours-that-is-quite-long-and-goes-on",
        "sk-ip this, hf_transfer, ghp_short, AIza, task-proj-management",
        "hf_" + "abcd" * 10,
        "-----BEGIN RSA PRIVATE KEY----- is how such a file begins, as everybody knows who has opened one before",
        "-----BEGIN CERTIFICATE-----\n" + BASE64,
        "eyJ is base 64. eyJ too.",
    ],
)
def test_what_only_looks_like_it_does_not_count(text):
    assert find_private([text]).findings == ()


def test_texts_are_counted_once_by_kind_and_named_by_position():
    texts = ["nothing", "a.b@example.com and c.d@example.org", "call 202-555-0142", "a.b@example.com", ""]
    result = find_private(texts)
    assert result.texts == {EMAIL: 2, PHONE: 1}
    assert [finding.index for finding in result.findings] == [1, 1, 2, 3]


def test_what_stands_in_a_text_twice_is_one_finding():
    key = next(iter(KEYS))
    text = f"(202) 555-0142, +1 202 555 0142, jane@example.com, jane@example.com, {key}, {key}"
    assert sorted(finding.kind for finding in find_private([text]).findings) == ["AWS access key id", EMAIL, PHONE]


@pytest.mark.parametrize("secret", [*KEYS, *EMAILS, *PHONES])
def test_nothing_shown_holds_more_than_a_prefix_or_two_digits(secret):
    result = find_private([f"It is {secret} ok"])
    (finding,) = result.findings
    shown = f"{result!r} {result.texts}".replace(finding.kind, "")
    rest = secret.removeprefix(finding.masked.removesuffix("…"))
    parts = re.findall(r"(?=(\d{3}|\w{4}))", rest)
    assert not [part for part in parts if part in shown]
    assert parts or secret == "al@x.io"


@settings(max_examples=200, deadline=None)
@given(
    st.from_regex(r"[a-z0-9][a-z0-9._]{0,20}", fullmatch=True),
    st.from_regex(r"[a-z][a-z0-9]{0,20}", fullmatch=True),
)
def test_of_an_email_address_at_most_two_characters_and_its_ending_are_shown(local, domain):
    masked = only(f"{local}@{domain}.org").masked
    assert masked in {f"{a}…@{b}…org" for a in ("", local[0]) for b in ("", domain[0])}
    assert (len(local) > 2) == masked.startswith(local[0])


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="+0123456789 ()-./@abcAIza_xoeyJ\n", max_size=200))
def test_no_text_makes_it_fail(text):
    assert all(finding.index == 0 for finding in find_private([text]).findings)


def test_masking_leaves_nothing_private_and_everything_else():
    key = "hf_" + "aB3" * 11 + "x"
    text = f"Write to jane.doe@example.org, or call +1 212-555-0123 now; key {key}, thanks. 24/7 in 2019."
    masked = mask_private(text)
    assert masked == "Write to j…@e…org, or call +1 … 23 now; key hf_…, thanks. 24/7 in 2019."
    assert not find_private([masked]).findings
    assert mask_private("nothing private") == "nothing private"


def test_a_key_is_masked_to_its_end_though_its_beginning_tells_what_it_is():
    block = "-----BEGIN RSA PRIVATE " + "KEY-----\n" + ("A" * 64 + "\n") * 5 + "-----END RSA PRIVATE " + "KEY-----"
    assert mask_private(f"look: {block}\nbye") == "look: -----BEGIN …\nbye"
    token = "github_" + "pat_" + "a1" * 60
    assert mask_private(f"{token} bye") == "github_pat_… bye"


@pytest.mark.parametrize("before", ["", "See\n", "See\r\n", "See\t", 'He said "', "\u00e9 \\ "])
@pytest.mark.parametrize("cut", [0, 1])
def test_what_begins_a_line_of_a_row_is_masked_whole_or_cut_off(before, cut):
    token = "ghp_" + "a1" * 18
    for private, masked in (
        (token, "ghp_…"),
        ("+1 212-555-0123", "+1 … 23"),
        ("jane.doe@example.org", "j…@e…org"),
        ("-----BEGIN " + "PRIVATE KEY-----\n" + "A" * 64 + "\n-----END " + "PRIVATE KEY-----", "-----BEGIN …"),
    ):
        for ascii_only in (True, False):
            row = json.dumps({"prompt": f"{before}{private}\nbye", "choice": 1}, ensure_ascii=ascii_only)
            start, end = row.split(json.dumps(private)[1:-1])
            row = row[: len(row) - cut]
            assert mask_private_json(row) == f"{start}{masked}{end}"[: -cut or None]
    assert mask_private_json(r'{"call": "\u002B1 212-555-0123 \u00e9 \ud83d"}') == r'{"call": "+1 … 23 \u00e9 \ud83d"}'
