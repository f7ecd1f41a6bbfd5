import pytest

from rlhf.data_validation import characters
from rlhf.data_validation.characters import (
    MEANINGS,
    NO_LANGUAGE,
    UNDETERMINED,
    Occurrence,
    Oddity,
    languages,
    odd_characters,
)
from rlhf.report.page import visible

PROSE = {
    "en": "My brother sold my guitar without asking me. I found out on Monday and do not know what to do now.",
    "de": "Mein Bruder hat meine Gitarre verkauft, ohne mich zu fragen. Ich habe es am Montag erfahren.",
    "es": "Mi hermano vendió mi guitarra sin preguntarme. Me enteré el lunes y no sé qué hacer.",
    "ru": "Мой брат продал мою гитару, не спросив меня. Я узнал об этом в понедельник.",
    "ja": "弟が私に聞かずにギターを売ってしまいました。月曜日に知りましたが、どうすればいいかわかりません。",
    "zh": "我弟弟没有问我就把我的吉他卖了。我星期一才知道，现在不知道该怎么办。",
}
ODD = {
    "a\0b": Oddity.NUL,
    "a\x07b": Oddity.CONTROL,
    "a\x1b[31mb": Oddity.CONTROL,
    "a\x7fb": Oddity.CONTROL,
    "a\x85b": Oddity.CONTROL,
    "it\x92s": Oddity.CONTROL,
    "a\u2028b": Oddity.CONTROL,
    "a\rb": Oddity.LONE_CARRIAGE_RETURN,
    "a\r\nb\r\r\nc": Oddity.LONE_CARRIAGE_RETURN,
    "the end\r": Oddity.LONE_CARRIAGE_RETURN,
    "access\u202elevel": Oddity.BIDIRECTIONAL,
    "a\u2066b\u2069": Oddity.BIDIRECTIONAL,
    "a\u200fb": Oddity.BIDIRECTIONAL,
    "a\u061cb": Oddity.BIDIRECTIONAL,
    "zero\u200bwidth": Oddity.ZERO_WIDTH,
    "\ufeffa": Oddity.ZERO_WIDTH,
    "a\u2060b": Oddity.ZERO_WIDTH,
    "hidden\U000e0068\U000e0069": Oddity.ZERO_WIDTH,
    "a\ufffeb": Oddity.ZERO_WIDTH,
    "caf\ufffd": Oddity.REPLACEMENT,
    "itâ€™s": Oddity.MOJIBAKE,
    "cafÃ©": Oddity.MOJIBAKE,
    "GroÃŸ": Oddity.MOJIBAKE,
    "5Â°": Oddity.MOJIBAKE,
    "ðŸ™‚": Oddity.MOJIBAKE,
    "ÐŸÑ€Ð¸Ð²ÐµÑ‚": Oddity.MOJIBAKE,
    "an \uf8ff pie": Oddity.PRIVATE_USE,
    "\U000f1234": Oddity.PRIVATE_USE,
}


def found(text: str) -> set[Oddity]:
    return {oddity for oddity, occurrence in odd_characters([text])[1].items() if occurrence.texts}


@pytest.mark.parametrize(("language", "text"), PROSE.items())
def test_languages_are_told_from_a_sentence_or_two(language, text):
    assert languages([text]).found == {language: Occurrence(1, (0,))}


def test_the_most_frequent_language_comes_first_with_its_first_examples():
    result = languages([PROSE["de"], PROSE["en"], PROSE["en"], PROSE["en"], "Ja."])
    assert list(result.found.items()) == [("en", Occurrence(3, (1, 2))), ("de", Occurrence(1, (0,)))]
    assert result.too_short == Occurrence(1, (4,))
    assert result.read == 5


def test_texts_too_short_to_tell_are_counted_apart():
    result = languages(["", "ok", "Thanks, that helps!", "1234567890 " * 30, "!? " * 100])
    assert result.too_short.texts == result.read == 5
    assert result.found == {}


def test_what_is_no_language_is_not_given_one():
    code = "SELECT name, count(*) FROM users GROUP BY name ORDER BY 2 DESC"
    assert set(languages([code, "asdf qwer zxcv asdf qwer zxcv hjkl uiop bnm asdf ghjk"]).found) <= {
        UNDETERMINED,
        NO_LANGUAGE,
    }


def test_english_words_that_a_data_set_puts_around_every_text_do_not_make_it_english():
    before = "Below is a post by somebody who asks for advice. Write a summary of it in one sentence or two.\n\n" * 3
    assert list(languages([before + " ".join([PROSE["de"]] * 4) + "\n\nTL;DR:"]).found) == ["de"]


def test_only_so_many_texts_are_read_evenly_over_all(monkeypatch):
    monkeypatch.setattr(characters, "MOST_TEXTS", 10)
    texts = [PROSE["en"]] * 10 + [PROSE["de"]] * 9
    result = languages(texts)
    assert result.read == 10
    assert result.found == {"en": Occurrence(5, (0, 2)), "de": Occurrence(5, (10, 12))}


def test_only_so_much_of_a_text_is_read(monkeypatch):
    lengths = []

    class Identifier:
        def classify(self, text):
            lengths.append(len(text))
            return "en", 1.0

    monkeypatch.setattr(characters, "_identifier", Identifier)
    languages(["word " * 100_000, "word " * 30])
    assert lengths == [300, 150]


@pytest.mark.parametrize(("text", "oddity"), ODD.items())
def test_odd_characters_are_counted_by_kind(text, oddity):
    assert found(text) == {oddity}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "plain text,\twith a tab,\na line feed\r\nand Windows line breaks\r\n",
        "“Quotes” – dashes — it’s… 5 € • ©",
        "«CAFÉ», DÉJÀ VU, SÃO PAULO, IRMÃ, MÖ“, É»",
        "Â and Ã are letters, à côté, ñ, ß, Ÿ",
        "привет, ПРИВЕТ, שלום, سلام, 你好, สวัสดี",
        "family 👨\u200d👩\u200d👧 and Persian می\u200cخواهم",
        "England 🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f won",
        "non-breaking\u00a0space, soft\u00adhyphen",
    ],
)
def test_ordinary_text_of_any_language_has_none(text):
    assert found(text) == set()


def test_a_text_counts_once_for_each_of_its_kinds_and_two_examples_are_named():
    anyhow, result = odd_characters(["a\0b\0", "plain", "\0 and \ufffd", "\0"])
    assert anyhow == Occurrence(3, (0, 2))
    assert result[Oddity.NUL] == Occurrence(3, (0, 2))
    assert result[Oddity.REPLACEMENT] == Occurrence(1, (2,))
    assert {oddity for oddity in Oddity if not result[oddity].texts} == set(Oddity) - {Oddity.NUL, Oddity.REPLACEMENT}


def test_mojibake_of_latin_1_is_full_of_control_characters_too():
    assert found("itâ\x80\x99s") == {Oddity.MOJIBAKE, Oddity.CONTROL}


def test_every_kind_has_a_meaning():
    assert set(MEANINGS) == set(Oddity)


def test_whatever_a_report_has_to_make_visible_is_counted():
    points = [*range(0x20000), *range(0xE0000, 0xE1000)]
    hidden = {chr(point) for point in points if visible(chr(point)) != chr(point)}
    assert len(hidden) > 2000  # most of them half characters
    assert not [f"U+{ord(character):04X}" for character in hidden if not found(f"a{character}b")]
