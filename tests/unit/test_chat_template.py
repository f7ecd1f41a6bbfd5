"""The model's own chat template: rendered as transformers renders it, cut, and told from what users write."""

import json

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from rlhf.data.chat import MARK_END, MARK_START, after_completion, mark, marked_ranges, without_marks
from rlhf.data.template import Template
from rlhf.errors import DataError
from tests.chat import GEMMA, LLAMA_2, LLAMA_3, SPECIAL, TEMPLATES, chat, said


def words(text: str) -> int:
    return len(without_marks(text).split())


CONVERSATIONS = {
    "one message": [said("user", "  Hi, how are “you”?\n")],
    "html and code": [said("user", 'Why does <b class="x">x</b> & a[b] <|im_end|> print [INST] and {{ x }}?')],
    "turns": [said("user", "Hi?"), said("assistant", "<think>Hm.</think>\n\nHello."), said("user", "And now?")],
    "system": [said("system", " Be kind."), said("user", "Hi?")],
}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_a_conversation_is_rendered_as_transformers_renders_it(name, conversation, monkeypatch):
    from transformers import PreTrainedTokenizerFast
    from transformers.utils import chat_template_utils

    from rlhf.data.chat import TODAY

    class Clock:
        @staticmethod
        def now():
            return TODAY

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
    messages = CONVERSATIONS[conversation]
    if (name, conversation) == ("gemma", "system"):
        messages = [said("user", "Be kind.\n\nHi?")]
        rendered = chat(GEMMA).render("", json.dumps([said("system", "Be kind."), said("user", "Hi?")]))
    else:
        rendered = chat(TEMPLATES[name]).render("", json.dumps(messages))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({}, "")), chat_template=TEMPLATES[name], **SPECIAL
    )
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert without_marks(rendered) == expected


def test_the_day_does_not_change_the_text():
    assert "Today Date: 26 Jul 2024\n" in chat(LLAMA_3).render("Hi?")


def test_a_bare_prompt_is_a_user_message_and_the_instruction_a_system_message():
    template = chat(instruction="Sum up.", suffix="TL;DR:")
    assert template.render("A post.") == (
        "<|im_start|>system\nSum up.<|im_end|>\n<|im_start|>user\nA post. TL;DR:<|im_end|>\n<|im_start|>assistant\n"
    )
    assert template.render("A post.\nTL;DR:") == template.render("A post.\nTL;DR: ")


def test_where_the_template_takes_no_system_message_the_instruction_stands_before_the_prompt():
    turns = [said("system", "Be kind."), said("user", "Hi?"), said("assistant", "Hello."), said("user", "Bye.")]
    assert chat(GEMMA, instruction="Sum up.").render("", json.dumps(turns)) == (
        "<s><start_of_turn>user\nSum up.\n\nBe kind.\n\nHi?<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n"
        "<start_of_turn>user\nBye.<end_of_turn>\n<start_of_turn>model\n"
    )
    ignores = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    assert chat(ignores, instruction="Sum up.").render("A post.") == "Sum up.\n\nA post."


def test_the_instruction_and_a_conversations_own_system_message_are_one():
    turns = [said("system", "Be kind."), said("user", "Hi?")]
    assert "<|im_start|>system\nSum up.\n\nBe kind.<|im_end|>\n" in chat(instruction="Sum up.").render(
        "", json.dumps(turns)
    )


def test_what_a_template_refuses_is_an_error_that_names_the_roles():
    turns = json.dumps([said("user", "a"), said("user", "b")])
    with pytest.raises(DataError, match=r"chat_template: .*refuses a conversation of user, user \(.*must alternate"):
        chat(GEMMA).render("", turns)
    with pytest.raises(DataError, match="system messages only"):
        chat().render("", json.dumps([said("system", "a")]))


def test_a_template_cannot_leave_its_sandbox():
    for code in ("{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{% set ns = namespace(__init__=1) %}"):
        with pytest.raises(DataError, match="chat_template"):
            chat(code).render("Hi?")


# What fits


def test_an_over_long_prompt_is_cut_and_instruction_suffix_and_marks_stay():
    template = chat(instruction="Sum up.", suffix="TL;DR:", prompt_sequence_length=10)
    text, cut = template.fit("one two three\nfour five\nsix seven", words)
    assert (text, cut) == (template.render("one two three"), True)
    assert template.fit("one two three", words) == (text, False)


CONVERSATION = json.dumps(
    [
        said("system", "Be kind."),
        said("user", "one two three"),
        said("assistant", "four five"),
        said("user", "six seven eight"),
        said("assistant", "nine ten"),
        said("user", "a b c d\ne f"),
    ]
)
PLAIN_ROLES = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


@pytest.mark.parametrize(
    ("tokens", "kept", "last"),
    [
        (25, ["one two three", "four five", "six seven eight", "nine ten"], "a b c d\ne f"),
        (24, ["one two three", "four five", "six seven eight", "nine ten"], "a b c d"),
        (23, ["one two three", "four five", "six seven eight", "nine ten"], "a b c d"),
        (21, ["six seven eight", "nine ten"], "a b c d\ne f"),
        (15, ["six seven eight", "nine ten"], "a b c"),
        (11, [], "a b c d\ne f"),
        (10, [], "a b c d"),
        (6, [], "a"),
    ],
)
def test_of_an_over_long_conversation_the_last_message_is_cut_then_the_oldest_turns_go(tokens, kept, last):
    template = chat(PLAIN_ROLES, prompt_sequence_length=tokens)
    text, cut = template.fit("", words, CONVERSATION)
    assert words(text) <= tokens
    assert text.startswith("system: Be kind.\n")
    roles = ["user", "assistant"] * (len(kept) // 2)
    expected = [f"{role}: {content}\n" for role, content in zip(roles, kept, strict=True)]
    assert text == "".join(["system: Be kind.\n", *expected, f"user: {last}\n", "assistant:"])
    assert cut == (tokens < 25)


def test_what_leaves_no_room_is_an_error():
    with pytest.raises(DataError, match=r"prompt_sequence_length: 4 tokens leave no room .* chat template"):
        chat(PLAIN_ROLES, prompt_sequence_length=4).fit("", words, CONVERSATION)


def test_a_completion_follows_as_the_template_lays_it_out():
    blanks = {name: chat(text).completion(chat(text).render("Hi?"), " X ") for name, text in TEMPLATES.items()}
    assert blanks["chatml"] == blanks["llama-3"] == blanks["gemma"] == blanks["deepseek"] == "X"
    assert blanks["llama-2"] == " X"
    assert blanks["zephyr"] == "X"


# What comes from data


def test_what_is_spelled_like_a_control_token_is_marked_and_nothing_else_is():
    text = "a <|im_end|> b [INST] <｜User｜>"
    assert mark(text) == (
        f"a {MARK_START}<|im_end|>{MARK_END} b {MARK_START}[INST]{MARK_END} {MARK_START}<｜User｜>{MARK_END}"
    )
    assert marked_ranges(mark(text)) == (text, [(2, 12), (15, 21), (22, 30)])
    for ordinary in ("a < b and c > d", "[removed] I <3 you", "<think>Hm.</think>", "a[0] << 2"):
        assert mark(ordinary) == ordinary
    assert mark("x>>TITLE<<y", [">>TITLE<<"]) == f"x{MARK_START}>>TITLE<<{MARK_END}y"


def test_marks_that_the_data_brings_along_are_taken_out():
    forged = f"{MARK_END}<|im_{MARK_START}end|>"
    assert mark(forged) == f"{MARK_START}<|im_end|>{MARK_END}"


def test_a_model_that_does_not_know_the_chats_marks_reads_text_without_them():
    template = chat(LLAMA_2)
    text = template.render("Is <b> [INST] a tag?")
    assert template.without_control_tokens(text) == "Is <b> [INST] a tag?"
    assert chat().without_control_tokens(chat().render("Hi?")) == (
        "system\nYou are a helpful assistant.\nuser\nHi?\nassistant"
    )
    assert Template().without_control_tokens("<s> ") == "<s> "


@pytest.mark.parametrize(
    ("name", "behind"),
    [
        ("chatml", "<|im_end|>\n"),
        ("llama-2", " </s>"),
        ("llama-3", "<|eot_id|>"),
        ("gemma", "<end_of_turn>\n"),
    ],
)
def test_what_stands_behind_an_answer_is_found(name, behind):
    assert after_completion(TEMPLATES[name], SPECIAL) == behind


def test_of_a_template_that_refuses_an_exchange_nothing_is_known():
    assert after_completion("{{ raise_exception('never') }}", SPECIAL) == ""
