import pytest

from rlhf.data.template import Template
from rlhf.errors import DataError


def words(text: str) -> int:
    return len(text.split())


class Counter:
    """Counts words, and how often it was asked."""

    def __init__(self):
        self.calls = 0

    def __call__(self, text: str) -> int:
        self.calls += 1
        return words(text)


@pytest.mark.parametrize(
    ("suffix", "prompt", "rendered"),
    [
        ("TL;DR:", "A post.", "A post. TL;DR:"),
        ("TL;DR:", "A post.\n", "A post.\nTL;DR:"),
        ("TL;DR:", "A post.\n\nTL;DR:", "A post.\n\nTL;DR:"),
        ("TL;DR:", "A post.\nTL;DR: ", "A post.\nTL;DR:"),
        ("\nTL;DR: ", "A post.", "A post.\nTL;DR: "),
        ("[summary]: ", "A post. [summary]:", "A post. [summary]: "),
        ("[summary]: ", "A post. [summary]: ", "A post. [summary]: "),
        ("", "A post. ", "A post. "),
    ],
)
def test_every_prompt_ends_in_the_suffix_once(suffix, prompt, rendered):
    template = Template(suffix=suffix)
    assert template.render(prompt) == rendered
    assert template.render(template.render(prompt)) == rendered


def test_the_instruction_stands_before_the_prompt_with_an_empty_line_between():
    assert Template(instruction="Summarise.").render("A post.") == "Summarise.\n\nA post."
    assert Template().render("A post.") == "A post."


def test_a_prompt_that_fits_is_not_touched():
    count = Counter()
    assert Template(suffix="TL;DR:", prompt_sequence_length=4).fit("One two three", count) == (
        "One two three TL;DR:",
        False,
    )
    assert count.calls == 1


def test_an_over_long_prompt_is_cut_at_its_last_line_break_that_fits():
    template = Template(instruction="Sum up.", suffix="TL;DR:", prompt_sequence_length=8)
    text, cut = template.fit("one two\nthree four. five\nsix seven eight nine", words)
    assert (text, cut) == ("Sum up.\n\none two\nthree four. five TL;DR:", True)


def test_the_whitespace_before_a_suffix_survives_the_cut():
    template = Template(suffix="TL;DR:", prompt_sequence_length=3)
    assert template.fit("one two\nthree four\n\nTL;DR:", words)[0] == "one two\n\nTL;DR:"


def test_without_a_line_break_the_cut_is_at_a_sentence():
    template = Template(suffix="TL;DR:", prompt_sequence_length=8)
    text, _ = template.fit("One two three. Four (five six!) Seven eight nine ten. Eleven.", words)
    assert text == "One two three. Four (five six!) TL;DR:"


def test_a_title_does_not_stand_for_a_post_of_one_long_paragraph():
    template = Template(suffix="TL;DR:", prompt_sequence_length=20)
    text, _ = template.fit("TITLE: a title\nPOST: " + "One two three. " * 20, words)
    assert text == "TITLE: a title\nPOST: " + "One two three. " * 5 + "TL;DR:"


def test_without_a_sentence_the_cut_is_between_characters():
    template = Template(suffix="TL;DR:", prompt_sequence_length=20)
    text, cut = template.fit("x" * 100, len)
    assert (text, cut) == ("x" * 13 + " TL;DR:", True)


@pytest.mark.parametrize("prompt", ["word " * 5000, "A sentence of words.\n" * 1000, "x" * 20_000 + " y"])
def test_fitting_asks_the_tokenizer_a_few_times_only(prompt):
    count = Counter()
    text, _ = Template(suffix="TL;DR:", prompt_sequence_length=40).fit(prompt, count)
    assert words(text) <= 40
    assert count.calls < 25


def test_a_shorter_text_that_needs_more_tokens_is_not_taken():
    def count(text):  # as a tokenizer may, this one takes an ending for two tokens more
        return words(text) + 2 * text.endswith("!")

    template = Template(prompt_sequence_length=4)
    assert count(template.fit("one two three!\nfour five six seven", count)[0]) <= 4


@pytest.mark.parametrize("limit", [1, 3, 4])
def test_no_room_beside_instruction_and_suffix_is_an_error(limit):
    template = Template(instruction="Please sum up", suffix="TL;DR:", prompt_sequence_length=limit)
    with pytest.raises(DataError, match=rf"prompt_sequence_length: {limit} tokens leave no room"):
        template.fit("one two three", words)


def test_a_completion_is_parted_from_its_prompt_by_one_blank():
    assert Template().completion("Post. TL;DR:", "  Done.\n") == " Done."
    assert Template().completion("Post. [summary]: ", " Done.") == "Done."


def test_the_body_is_the_same_with_and_without_the_suffix():
    template = Template(suffix=" [summary]: ")
    assert template.body("A post. [summary]: ") == template.body("A post.\n[summary]:") == template.body(" A post.")


@pytest.mark.parametrize(
    "change",
    [{"instruction": "x"}, {"suffix": "x"}, {"prompt_sequence_length": 511}, {"target_sequence_length": 65}],
)
def test_the_digest_changes_with_every_field(change):
    assert Template(**change).digest != Template().digest


def test_the_digest_stays_the_same_from_release_to_release():
    assert Template(instruction="Sum up.", suffix="TL;DR:").digest == "96bd06f3b7f0d5e5"


@pytest.mark.parametrize("change", [{"chat_template": "y"}, {"special_tokens": {"a": "b"}}, {"control_tokens": ("a",)}])
def test_the_digest_changes_with_the_chat_template_and_its_tokens(change):
    chat = {"chat_template": "x", "special_tokens": {"bos_token": "<s>"}}
    assert Template(**chat | change).digest != Template(**chat).digest != Template().digest


def test_tokens_that_no_chat_template_names_do_not_change_the_digest():
    assert Template(special_tokens={"bos_token": "<s>"}).digest == Template().digest


def test_a_saved_template_is_loaded_again(tmp_path):
    template = Template(
        instruction="“Sum up.”",
        suffix="\nTL;DR: ",
        chat_template="{{ messages }}",
        special_tokens={"bos_token": "<s>"},
        control_tokens=(">>A<<",),
    )
    template.save(tmp_path)
    assert Template.load(tmp_path) == template


@pytest.mark.parametrize("content", [None, "", "[]", '{"version": 2}', '{"suffix": 5}', '{"sufix": ""}'])
def test_what_is_no_template_is_refused_by_name(tmp_path, content):
    if content is not None:
        (tmp_path / "template.json").write_text(content)
    with pytest.raises(DataError, match=r"template\.json"):
        Template.load(tmp_path)
