import contextlib
import json
import random

import pytest

from rlhf.data.formats import FIELDS, MEANINGS, Reason, Shape, Unfit, convert, may_be_chat, recognise

USER = {"role": "user", "content": "Hi?"}
POST = {"subreddit": "r/cats", "title": "A cat", "post": "It sleeps."}
POST_TEXT = "SUBREDDIT: r/cats\n\nTITLE: A cat\n\nPOST: It sleeps.\n\nTL;DR:"
HH = "\n\nHuman: Hi?\n\nAssistant:"


def said(role: str, content: str) -> dict:
    return {"role": role, "content": content}


def authored(author: str, content: str, **more) -> dict:
    return {"author": author, "content": content, **more}


VERTEX = {"input_text": "P", "candidate_0": "zero", "candidate_1": "one", "choice": 1}
VERTEX_CHAT = {
    "context": "Be kind.",
    "messages": [authored("user", "Hi?")],
    "candidate_0": "zero",
    "candidate_1": "one",
    "choice": 1,
}
PREFERENCES = [
    (VERTEX, Shape.VERTEX_TEXT, "P"),
    (VERTEX | {"choice": 1.0}, Shape.VERTEX_TEXT, "P"),
    (VERTEX | {"candidate_0": "one", "candidate_1": "zero", "choice": 0}, Shape.VERTEX_TEXT, "P"),
    (VERTEX_CHAT, Shape.VERTEX_CHAT, "system: Be kind.\nuser: Hi?\nassistant:"),
    (
        {"messages": [authored("user", "Hi?", candidate_0="zero", candidate_1="one", choice=1)]},
        Shape.VERTEX_CHAT,
        "user: Hi?\nassistant:",
    ),
    (
        {
            "messages": [
                authored("user", "Hi?"),
                {"author": "assistant", "candidate_0": "zero", "candidate_1": "one", "choice": 1},
            ]
        },
        Shape.VERTEX_CHAT,
        "user: Hi?\nassistant:",
    ),
    ({"prompt": "P", "chosen": "one", "rejected": "zero"}, Shape.TRL, "P"),
    (
        {"prompt": [USER], "chosen": [said("assistant", "one")], "rejected": [said("assistant", "zero")]},
        Shape.TRL_CHAT,
        "user: Hi?\nassistant:",
    ),
    (
        {"chosen": [USER, said("assistant", "one")], "rejected": [USER, said("assistant", "zero")]},
        Shape.TRL_CHAT,
        "user: Hi?\nassistant:",
    ),
    (
        {
            "prompt": "Hi?",
            "chosen": [said("system", "Be kind."), USER, said("assistant", "one")],
            "rejected": [said("system", "Be kind."), USER, said("assistant", "zero")],
            "messages": [USER, said("assistant", "one")],
        },
        Shape.TRL_CHAT,
        "system: Be kind.\nuser: Hi?\nassistant:",
    ),
    (
        {
            "prompt": None,
            "chosen": [USER, said("assistant", "one")],
            "rejected": [USER, said("assistant", "zero")],
            "messages": [USER, said("assistant", "one")],
        },
        Shape.TRL_CHAT,
        "user: Hi?\nassistant:",
    ),
    (
        {"info": POST, "summaries": [{"text": "zero", "note": None}, {"text": "one"}], "choice": 1},
        Shape.OPENAI_COMPARISONS,
        POST_TEXT,
    ),
    (
        {
            "info": {"article": "News.", "title": None, "subreddit": None},
            "summaries": [{"text": "zero"}, {"text": "one"}],
            "choice": 1,
        },
        Shape.OPENAI_COMPARISONS,
        "ARTICLE: News.\n\nTL;DR:",
    ),
    ({"chosen": HH + "one", "rejected": HH + "zero"}, Shape.HH_RLHF, HH),
    (
        {
            "chosen": HH + " Hello.\n\nHuman: And?\n\nAssistant:one",
            "rejected": HH + " Hello.\n\nHuman: And?\n\nAssistant:zero",
        },
        Shape.HH_RLHF,
        HH + " Hello.\n\nHuman: And?\n\nAssistant:",
    ),
]


@pytest.mark.parametrize(("row", "shape", "prompt"), PREFERENCES)
def test_preferences_of_every_shape(row, shape, prompt):
    assert recognise(row) is shape
    canonical = convert(row, shape, "preferences")
    assert {name: canonical[name] for name in ("prompt", "chosen", "rejected")} == {
        "prompt": prompt,
        "chosen": "one",
        "rejected": "zero",
    }


@pytest.mark.parametrize(("row", "shape", "prompt"), PREFERENCES)
def test_the_position_is_the_choice_and_unknown_where_the_layout_names_the_chosen_one(row, shape, prompt):
    position = convert(row, shape, "preferences")["position"]
    if "chosen" in row:
        assert position is None
        assert convert(row | {"choice": 1}, shape, "preferences")["position"] is None
    else:
        assert position == (row if "choice" in row else row["messages"][-1])["choice"]
        assert type(position) is int


@pytest.mark.parametrize(("row", "shape", "prompt"), PREFERENCES)
def test_a_preference_of_every_shape_may_have_a_margin(row, shape, prompt):
    assert recognise(row | {"margin": 1}) is shape
    given = {None: None, 0: 0, 0.5: 0.5, 3: 3, 16_777_217: 16_777_217}
    assert {given: convert(row | {"margin": given}, shape, "preferences")["margin"] for given in given} == given
    assert convert(row, shape, "preferences")["margin"] is None
    for bad in (-0.5, -1, float("nan"), float("inf"), 10**400, 3.5e38, "1", True, [1], {}):
        with pytest.raises(Unfit) as unfit:
            convert(row | {"margin": bad}, shape, "preferences")
        assert (unfit.value.reason, unfit.value.field) == (Reason.BAD_MARGIN, "margin")
        assert "margin" not in convert(row | {"margin": bad}, shape, "prompts")


ANSWERED = [
    ({"input_text": "P", "output_text": "R"}, Shape.VERTEX_TEXT, "P"),
    ({"messages": [authored("user", "Hi?"), authored("assistant", "R")]}, Shape.VERTEX_CHAT, "user: Hi?\nassistant:"),
    ({"messages": [authored("user", "Hi?")], "output_text": "R"}, Shape.VERTEX_CHAT, "user: Hi?\nassistant:"),
    ({"messages": [USER, said("assistant", "R")]}, Shape.TRL_CHAT, "user: Hi?\nassistant:"),
    ({"prompt": "P", "label": "R"}, Shape.TRL, "P"),
    ({"prompt": "P", "completion": "R"}, Shape.TRL, "P"),
    ({"prompt": [USER], "completion": [said("assistant", "R")]}, Shape.TRL_CHAT, "user: Hi?\nassistant:"),
    ({"id": "t3_1", **POST, "summary": "R"}, Shape.OPENAI_TLDR, POST_TEXT),
]


@pytest.mark.parametrize(("row", "shape", "prompt"), ANSWERED)
def test_prompts_with_references_and_demonstrations_of_every_shape(row, shape, prompt):
    assert recognise(row) is shape
    assert convert(row, shape, "prompts") == {"prompt": prompt, "reference": "R"}
    assert convert(row, shape, "demonstrations") == {"prompt": prompt, "completion": "R"}


@pytest.mark.parametrize(
    "row",
    [
        {"input_text": "P"},
        {"input_text": "P", "output_text": None},
        {"input_text": "P", "output_text": " "},
        {"prompt": "P"},
        {"prompt": [USER]},
        {"messages": [USER]},
        POST,
    ]
    + [row for row, *_ in PREFERENCES if recognise(row) not in (Shape.TRL, Shape.TRL_CHAT)],
)
def test_prompts_need_no_reference_and_preferences_serve_as_prompts(row):
    assert convert(row, recognise(row), "prompts")["reference"] is None
    with pytest.raises(Unfit) as unfit:
        convert(row, recognise(row), "demonstrations")
    assert unfit.value.reason in (Reason.MISSING_FIELD, Reason.BLANK_CANDIDATE)


TRL = {"prompt": "P", "chosen": "one", "rejected": "zero"}


def test_of_a_pair_the_chosen_one_demonstrates_unless_the_row_has_a_completion():
    assert convert(TRL, Shape.TRL, "demonstrations") == {"prompt": "P", "completion": "one"}
    assert convert(TRL | {"completion": "best"}, Shape.TRL, "demonstrations")["completion"] == "best"
    assert convert(TRL, Shape.TRL, "prompts")["reference"] is None
    one, zero = ([said("assistant", text)] for text in ("one", "zero"))
    for row in (
        {"prompt": [USER], "chosen": one, "rejected": zero},
        {"prompt": "Hi?", "chosen": one, "rejected": zero},
        {"prompt": [USER], "chosen": [USER, *one], "rejected": [USER, *zero]},
        {"chosen": [USER, *one], "rejected": [USER, *zero]},
    ):
        prompt = {"prompt": "user: Hi?\nassistant:"}
        assert convert(row, recognise(row), "demonstrations") == prompt | {"completion": "one"}
        assert convert(row | {"completion": zero}, recognise(row), "demonstrations")["completion"] == "zero"
        assert convert(row, recognise(row), "prompts") == prompt | {"reference": None}


@pytest.mark.parametrize("shape", [Shape.TRL, Shape.TRL_CHAT])
def test_messages_beside_a_prompt_demonstrate_where_nothing_else_answers(shape):
    row = {
        "prompt": "Hi?",
        "prompt_id": "x",
        "messages": [USER, said("assistant", "one"), USER, said("assistant", "R")],
    }
    assert may_be_chat(row, recognise(row)) is Shape.TRL_CHAT
    found = convert(row, shape, "demonstrations", keep_messages=True)
    assert (found["prompt"], found["completion"]) == ("user: Hi?\nassistant: one\nuser: Hi?\nassistant:", "R")
    assert json.loads(found["messages"]) == row["messages"][:-1]
    assert convert(row | {"completion": "own"}, shape, "demonstrations")["completion"] == "own"
    assert convert(row, Shape.TRL, "prompts") == {"prompt": "Hi?", "reference": None}
    for messages in ([], None, "R", [USER]):
        with pytest.raises(Unfit) as unfit:
            convert(row | {"messages": messages}, shape, "demonstrations")
        assert unfit.value.reason is Reason.MISSING_FIELD


BE_KIND = said("system", "Be kind.")


@pytest.mark.parametrize(
    ("prompt", "shared"),
    [
        ([BE_KIND, USER], [USER]),
        ([BE_KIND], [USER]),
        ([BE_KIND, USER], []),
        ([USER], [BE_KIND, USER]),
        ([BE_KIND, said("user", "Hi?\n")], [BE_KIND, USER]),
        ("Hi? ", [BE_KIND, USER]),
    ],
)
def test_messages_that_prompt_and_candidates_both_hold_are_there_once(prompt, shared):
    row = {"prompt": prompt} | {
        name: [*shared, said("assistant", text)] for name, text in (("chosen", "one"), ("rejected", "zero"))
    }
    expected = {"prompt": "system: Be kind.\nuser: Hi?\nassistant:"}
    found = convert(row, Shape.TRL_CHAT, "preferences")
    assert {name: found[name] for name in ("prompt", "chosen")} == expected | {"chosen": "one"}
    assert convert(row, Shape.TRL_CHAT, "demonstrations") == expected | {"completion": "one"}
    assert convert(row, Shape.TRL_CHAT, "prompts") == expected | {"reference": None}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "P", "completion": "A good answer."},
        {"prompt": [USER], "completion": [said("assistant", "A good answer.")]},
    ],
)
def test_a_completion_that_is_labelled_undesired_is_neither_demonstrated_nor_a_reference(row):
    shape = recognise(row)
    for label in (True, None):
        assert convert(row | {"label": label}, shape, "demonstrations")["completion"] == "A good answer."
        assert convert(row | {"label": label}, shape, "prompts")["reference"] == "A good answer."
    assert convert(row | {"label": False}, shape, "prompts")["reference"] is None
    with pytest.raises(Unfit) as unfit:
        convert(row | {"label": False}, shape, "demonstrations")
    assert (unfit.value.reason, unfit.value.field) == (Reason.UNDESIRED, "label")


@pytest.mark.parametrize(
    ("row", "reason", "field"),
    [
        ({"input_text": "P", "candidate_0": "a", "choice": 0}, Reason.MISSING_FIELD, "candidate_1"),
        ({"candidate_0": "a", "candidate_1": "b", "choice": 0}, Reason.MISSING_FIELD, "input_text"),
        ({"input_text": "P", "candidate_0": "a", "candidate_1": "b"}, Reason.MISSING_FIELD, "choice"),
        (VERTEX | {"candidate_0": None}, Reason.MISSING_FIELD, "candidate_0"),
        (VERTEX | {"candidate_0": 5}, Reason.NOT_TEXT, "candidate_0"),
        (VERTEX | {"candidate_0": "\ud83d"}, Reason.NOT_TEXT, "candidate_0"),
        (VERTEX | {"input_text": ["P"]}, Reason.NOT_TEXT, "input_text"),
        (VERTEX | {"input_text": " \n\u00a0"}, Reason.BLANK_PROMPT, "prompt"),
        (VERTEX | {"input_text": "TL;DR:"}, Reason.BARE_SUFFIX, "prompt"),
        (VERTEX | {"input_text": " [summary]: "}, Reason.BARE_SUFFIX, "prompt"),
        (VERTEX | {"input_text": "=> go"}, Reason.BARE_SUFFIX, "prompt"),
        (VERTEX | {"candidate_0": ""}, Reason.BLANK_CANDIDATE, "rejected"),
        (VERTEX | {"candidate_1": " "}, Reason.BLANK_CANDIDATE, "chosen"),
        (VERTEX | {"candidate_0": "TL;DR:  "}, Reason.BARE_SUFFIX, "rejected"),
        (VERTEX | {"candidate_0": " one\n"}, Reason.EQUAL_CANDIDATES, ""),
        *[
            (VERTEX | {"choice": choice}, Reason.BAD_CHOICE, "choice")
            for choice in ("1", 2, -1, 0.5, None, True, False, [1], float("nan"))
        ],
        (VERTEX_CHAT | {"messages": "Hi?"}, Reason.NOT_TEXT, "messages"),
        (VERTEX_CHAT | {"messages": [authored("user", " ")]}, Reason.BLANK_PROMPT, "content"),
        (VERTEX_CHAT | {"messages": [authored("user", ["Hi?"])]}, Reason.NOT_TEXT, "content"),
        ({"prompt": "P", "chosen": "one"}, Reason.MISSING_FIELD, "rejected"),
        (TRL | {"chosen": "zero "}, Reason.EQUAL_CANDIDATES, ""),
        (
            {"prompt": [USER], "chosen": [said("assistant", "a"), USER, said("assistant", "b")], "rejected": "c"},
            Reason.SEVERAL_TURNS,
            "chosen",
        ),
        ({"info": POST, "summaries": [{"text": "a"}], "choice": 0}, Reason.MISSING_FIELD, "summaries"),
        (
            {"info": POST | {"post": ""}, "summaries": [{"text": "a"}, {"text": "b"}], "choice": 0},
            Reason.BLANK_PROMPT,
            "post",
        ),
        ({"chosen": HH + "a", "rejected": HH + "b\n\nHuman: c\n\nAssistant: d"}, Reason.SEVERAL_TURNS, "rejected"),
        ({"chosen": HH + "a", "rejected": "\n\nHuman: Else?\n\nAssistant: b"}, Reason.BLANK_PROMPT, "prompt"),
        ({"chosen": HH + "a", "rejected": ""}, Reason.BLANK_CANDIDATE, "rejected"),
        ({"chosen": HH + "a", "rejected": HH + "a"}, Reason.EQUAL_CANDIDATES, ""),
    ],
)
def test_a_preference_that_cannot_be_used_gets_a_reason(row, reason, field):
    shape = recognise(row) or Shape.VERTEX_CHAT
    with pytest.raises(Unfit) as unfit:
        convert(row, shape, "preferences", suffix="=> go")
    assert (unfit.value.reason, unfit.value.field) == (reason, field)


def test_one_word_answers_are_answers():
    assert convert(VERTEX | {"candidate_0": "Yes", "candidate_1": "[removed]"}, Shape.VERTEX_TEXT, "preferences")


def test_every_reason_and_shape_is_explained():
    assert list(MEANINGS) == list(Reason)
    assert list(FIELDS) == list(Shape)


def test_random_rows_are_converted_to_text_or_put_aside():
    rng = random.Random(0)
    values = [
        None,
        True,
        0,
        1,
        1.0,
        "",
        " ",
        "a",
        "b",
        "TL;DR:",
        HH + "a",
        HH,
        "\ud800",
        [],
        {},
        [1],
        [USER],
        {"text": "t"},
    ]
    values += [
        [USER, said("assistant", "x")],
        [{"role": 1}],
        [authored("user", "x")],
        POST,
        [{"text": "a"}, {"text": "b"}],
    ]
    rows = [row for row, *_ in PREFERENCES + ANSWERED]
    for _ in range(20_000):
        row = dict(rng.choice(rows))
        for name in rng.sample(sorted(row), rng.randint(0, min(3, len(row)))):
            if rng.random() < 0.3:
                del row[name]
            else:
                row[name] = rng.choice(values)
        shape = recognise(row) or rng.choice(list(Shape))
        for kind in ("preferences", "prompts", "demonstrations"):
            with contextlib.suppress(Unfit):
                texts = convert(row, shape, kind)
                reference = texts.pop("reference", None)
                assert reference is None or reference.strip()
                assert texts.pop("position", None) in (None, 0, 1)
                assert texts.pop("margin", None) is None
                assert all(text.strip() and text.encode() for text in texts.values())


def test_a_prompt_is_kept_whatever_is_wrong_with_the_answer_beside_it():
    row = {"prompt": [said("user", "Hi?")], "chosen": [{"role": "assistant", "content": None, "tool_calls": []}]}
    assert convert(row, Shape.TRL_CHAT, "prompts")["prompt"] == "user: Hi?\nassistant:"
    with pytest.raises(Unfit):
        convert(row, Shape.TRL_CHAT, "demonstrations")
