"""The report of data validation and its JSON twin: the same findings, for people and for programs."""

import json
import re
from html.parser import HTMLParser

import pytest

from rlhf.data.template import Template
from rlhf.data_validation.checks import Checks
from rlhf.errors import DataError
from rlhf.words import percent
from tests.intake import write_rows
from tests.validation import OUTPUTS, pair, said, validate, verdict, written

ATTACK = "<script>alert(1)</script>"


class Parsed(HTMLParser):
    """A page's tags, and what a reader sees: the text, and the cells of its tables' rows."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self._cell = False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._cell = True

    def handle_endtag(self, tag):
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data):
        self.text += data
        if self._cell:
            self.rows[-1][-1] += data


def page(tmp_path) -> Parsed:
    return Parsed((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))


@pytest.fixture
def odd(options, tmp_path) -> dict:
    """Options of a run in which every finding has something to show."""
    long = " ".join(f"word{i}" for i in range(80))
    rows = [pair(f"Post {i}", "a long one") | {"worker": f"w{i % 3}"} for i in range(96)]
    rows[1:4] = [rows[0] | {"worker": "w5"}, pair("Post 0", "bad", "a long one") | {"worker": "w1"}, pair(long)]
    rows += [pair("P", chosen=" "), "no json", pair("P") | {"choice": 2}]
    write_rows(tmp_path / "pairs.jsonl", rows)
    write_rows(tmp_path / "prompts.jsonl", [{"input_text": f"Post {i} [summary]: "} for i in range(9)])
    write_rows(tmp_path / "eval.jsonl", [{"input_text": f"{p} [summary]: "} for p in ("Post 7", "Post 8", long + " x")])
    return options


# The page


def test_the_verdict_comes_first(options, odd, tmp_path):
    metrics = validate(odd, tmp_path)
    text = page(tmp_path).text
    of = len(said(tmp_path)["verdicts"])
    headline = f"The data can be trained on; {metrics['warnings']} of {of} checks found something."
    assert 0 < text.index("In short") < text.index(headline) < text.index("Checks") < text.index("Sources")
    assert text.count(headline) == 1


def test_good_data_is_called_good_and_bad_data_is_not(options, tmp_path):
    for check in Checks.model_fields:
        options.setdefault("checks", {})[check] = {"action": "ignore"}
    validate(options, tmp_path)
    assert re.search(r"Good\s+All \d+ checks passed\.", page(tmp_path).text)
    options["checks"]["pairs"] = {"action": "fail"}
    with pytest.raises(DataError, match=r"checks\.pairs is 100"):
        validate(options, tmp_path)
    seen = page(tmp_path)
    assert re.search(r"Fail\s+This data is not fit to train on as it is\.", seen.text)
    assert re.search(r"preferences: \d+ pairs to train on\. The limit of checks\.pairs is 100\.", seen.text)


def test_every_verdict_is_a_row_of_the_page_the_worst_first(odd, tmp_path):
    validate(odd, tmp_path)
    seen = page(tmp_path)
    start = next(i for i, cells in enumerate(seen.rows) if cells[:3] == ["check", "of", "verdict"])
    verdicts = said(tmp_path)["verdicts"]
    rows = [tuple(cells[:4]) for cells in seen.rows[start + 1 : start + 1 + len(verdicts)]]
    words = {"warning": "look at this", "passed": "passed", "ignored": "ignored"}
    assert sorted(rows) == sorted((v["check"], v["subject"], words[v["outcome"]], v["text"]) for v in verdicts)
    outcomes = [row[2] for row in rows]
    assert outcomes == sorted(outcomes)  # "look at this" before "passed"
    for v in verdicts:
        limit = v["threshold"]["limit"]
        in_words = percent(limit) if limit < 1 else f"{limit:g}"
        assert [v["check"], v["subject"], in_words, v["threshold"]["action"]] in [
            [*cells[:2], *cells[4:]] for cells in seen.rows if len(cells) == 6
        ]


@pytest.mark.parametrize(
    ("check", "subject"),
    [
        ("quarantined", "preference_dataset"),
        ("duplicates", "preferences"),
        ("contradictions", "preferences"),
        ("length_bias", "preferences"),
        ("shared_prompts", "prompts"),
        ("shared_prompts", "preferences"),
        ("near_duplicates", "all prompts"),
    ],
)
def test_a_finding_has_one_or_two_rows_to_look_at(odd, tmp_path, check, subject):
    validate(odd, tmp_path)
    examples = verdict(tmp_path, check, subject)["examples"]
    assert 1 <= len(examples) <= 2
    text = page(tmp_path).text
    for example in examples:
        assert re.fullmatch(rf"{re.escape(str(tmp_path))}/\w+\.jsonl:\d+", example["place"])
        assert f"{check} of {subject}: {example['place']}" in text
        assert example["text"] in text


def test_a_near_duplicate_of_a_pair_that_is_held_out_is_not_called_trained_on(options, tmp_path):
    posts = [" ".join(f"word{i}x{j}" for j in range(80)) for i in range(40)]
    write_rows(tmp_path / "pairs.jsonl", [pair(post) for post in posts])
    validate(options, tmp_path)
    sides = {row["prompt"].split(" [")[0]: row["split"] for row in written(tmp_path, "preferences")}
    for side, leaks in (("train", True), ("eval", False)):
        near = next(post for post in posts if sides[post] == side)
        write_rows(tmp_path / "eval.jsonl", [{"input_text": f"{p} [summary]: "} for p in (near + " x", "Another")])
        validate(options, tmp_path)
        found = verdict(tmp_path, "near_duplicates", "all prompts")
        assert found["value"] > 0
        assert ("1 or more are evaluation prompts with one that is trained on" in found["text"]) is leaks
    # The same post is a prompt of PPO's as well.
    write_rows(tmp_path / "prompts.jsonl", [{"input_text": f"{near} [summary]: "}] + [
        {"input_text": f"Something else {i} [summary]: "} for i in range(20)
    ])  # fmt: skip
    validate(options, tmp_path)
    found = verdict(tmp_path, "near_duplicates", "all prompts")
    assert "1 or more are evaluation prompts with one that is trained on" in found["text"]


def test_the_page_says_what_was_read_kept_and_put_aside(odd, tmp_path):
    metrics = validate(odd, tmp_path)
    seen = page(tmp_path)
    for source in said(tmp_path)["sources"]:
        row = [source["parameter"], source["file"], "Vertex text"]
        assert [*row, *(str(source[name]) for name in ("read", "kept", "quarantined"))] in seen.rows
    assert [cells for cells in seen.rows if cells[0] in ("bad_choice", "not_json", "blank_candidate")]
    assert f"{tmp_path / 'pairs.jsonl'}, line 98" in seen.text
    assert "no json" in seen.text
    assert "svg" in {tag for tag, _ in seen.tags}
    assert f"{metrics['pairs_train']:,} pairs to train on, {metrics['pairs_eval']:,} held out" in seen.text
    assert Template.load(tmp_path / "out" / "prompts").digest in seen.text
    for name, dataset in said(tmp_path)["datasets"].items():
        assert [name, str(dataset["rows"]), dataset["digest"]] in seen.rows


def test_a_page_of_many_files_names_those_with_most_in_quarantine(options, tmp_path):
    for n in range(60):
        rows = [pair(f"Post {n} {i}") for i in range(40)] + ["no json"] * (n % 3)
        write_rows(tmp_path / f"shard-{n}.jsonl", rows)
    validate(options | {"preference_dataset": f"{tmp_path}/shard-*.jsonl"}, tmp_path)
    seen = page(tmp_path)
    rows = [cells for cells in seen.rows if cells[0].endswith("_dataset")]
    assert len(rows) == 50
    assert [cells[-1] for cells in rows] == ["2"] * 20 + ["1"] * 20 + ["0"] * 10
    assert "The 50 of 63 files with most rows in quarantine." in seen.text
    assert len(said(tmp_path)["sources"]) == 63


# What stands in the data


def hostile(options: dict, tmp_path) -> dict:
    """Every text, id, annotator and file name is an attack."""
    row = pair(ATTACK, f"good {ATTACK}", f"bad {ATTACK} {ATTACK}")
    row |= {"id": ATTACK, "worker": ATTACK, ATTACK: ATTACK}
    rows = [
        row,
        row | {"worker": "other"},
        row | {"candidate_0": row["candidate_1"], "candidate_1": row["candidate_0"]},
    ]
    rows += [pair(f"{ATTACK} {i}") for i in range(90)]
    rows += [row | {"candidate_0": ""}, row | {"choice": ATTACK}, ATTACK]
    folder = tmp_path / "<script>alert(1)<"
    folder.mkdir()
    name = "script>.jsonl"
    texts = [{"input_text": f"{ATTACK} {i} [summary]: ", "output_text": f"{ATTACK}"} for i in range(3)]
    words = " ".join(f"{ATTACK} {i}" for i in range(60))
    texts += [{"input_text": f"{words} {end} [summary]: ", "output_text": ATTACK} for end in ("", "x")]
    return options | {
        "preference_dataset": write_rows(folder / f"pairs-{name}", rows),
        "prompt_dataset": write_rows(folder / f"prompts-{name}", texts),
        "eval_dataset": write_rows(folder / f"eval-{name}", texts[:2]),
        "demonstration_dataset": write_rows(folder / f"demos-{name}", texts),
        "instruction": f"Do {ATTACK}",
    }


def test_what_stands_in_the_data_is_shown_as_text_and_never_run(options, tmp_path):
    validate(hostile(options, tmp_path), tmp_path)
    html = (tmp_path / "out" / "report.html").read_text()
    assert "<script" not in html.lower()
    assert "alert(1)</script" not in html.lower()
    seen = page(tmp_path)
    assert {tag for tag, _ in seen.tags} <= {
        *("html", "head", "meta", "title", "style", "body", "header", "main", "footer", "section", "h1", "h2", "p"),
        *("div", "ul", "li", "span", "dl", "dt", "dd", "table", "caption", "thead", "tbody", "tr", "th", "td"),
        *("details", "summary", "figure", "figcaption", "svg", "g", "path", "line", "rect", "text", "polyline"),
        *("polygon", "circle", "title", "desc", "defs", "clippath", "use"),
    }
    for shown in (
        f"chosen: good {ATTACK}",
        f"rejected: bad {ATTACK} {ATTACK}",
        f"prompt: {ATTACK} 0 [summary]: ",
        f"Do {ATTACK}",
        f"/{tmp_path.name}/<script>alert(1)</script>.jsonl".replace("</script", "</pairs-script"),
        f'"id": "{ATTACK}"',
    ):
        assert shown in seen.text, shown
    assert any(cells[0] == ATTACK and len(cells) == 4 for cells in seen.rows)  # the annotator


def test_the_page_opens_without_a_network_and_runs_no_script(odd, tmp_path):
    validate(odd, tmp_path)
    seen = page(tmp_path)
    (policy,) = [a["content"] for tag, a in seen.tags if tag == "meta" and a.get("http-equiv")]
    assert policy.startswith("default-src 'none';")
    tags = {tag for tag, _ in seen.tags}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form", "audio", "video", "a"}
    for tag, attributes in seen.tags:
        assert not {name for name in attributes if name.startswith("on") or name in ("src", "srcset", "srcdoc")}, tag
        assert attributes.get("href", "#").startswith("#"), tag
        assert "xlink:href" not in attributes or attributes["xlink:href"].startswith("#")
    html = (tmp_path / "out" / "report.html").read_text()
    assert "@import" not in html
    assert not re.search(r"url\((?!['\"]?#)", html)


def test_rows_in_quarantine_are_shown_without_what_is_private(options, tmp_path):
    token = "ghp_" + "a1" * 18
    rows = [pair(f"Post {i}") for i in range(40)] + [pair(f"P\n{token}\n+1 212-555-0123") | {"choice": 7}]
    path = write_rows(tmp_path / "pairs.jsonl", rows)
    validate(options | {"preference_dataset": path}, tmp_path)
    for file in ("report.html", "findings.json"):
        text = (tmp_path / "out" / file).read_text(encoding="utf-8")
        assert "ghp_…" in text
        assert token not in text
        assert "555-0123" not in text
    with pytest.raises(DataError, match="ghp_…") as error:
        validate(options | {"preference_dataset": path, "checks": {"quarantined": {"limit": 0.01}}}, tmp_path)
    assert token not in str(error.value)


# The JSON twin


def strict_json(path) -> dict:
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_the_twin_is_json_with_every_verdict_and_the_runs_own_numbers(odd, tmp_path):
    metrics = validate(odd, tmp_path)
    content = strict_json(tmp_path / "out" / "findings.json")
    assert content["metrics"] == metrics
    for v in content["verdicts"]:
        assert set(v) == {"check", "subject", "outcome", "text", "threshold", "value", "examples"}
        assert v["check"] in Checks.model_fields
        assert v["outcome"] in ("passed", "warning", "failed", "ignored")
        assert v["value"] is None or isinstance(v["value"], int | float)
        assert v["threshold"] == getattr(Checks(), v["check"]).model_dump()
        assert all(set(example) == {"place", "text"} for example in v["examples"])
    assert metrics["warnings"] == sum(v["outcome"] == "warning" for v in content["verdicts"])
    assert len({(v["check"], v["subject"]) for v in content["verdicts"]}) == len(content["verdicts"])


def test_its_numbers_are_those_of_the_datasets(odd, tmp_path):
    metrics = validate(odd, tmp_path)
    content = said(tmp_path)
    for name in OUTPUTS[:-1]:
        assert metrics[f"rows_{name}"] == content["datasets"][name]["rows"] == len(written(tmp_path, name))
    aside = written(tmp_path, "quarantine")
    assert metrics["quarantined"] == len(aside) == sum(q["rows"] for q in content["quarantine"]) == 3
    assert metrics["rows_read"] == sum(s["read"] for s in content["sources"])
    assert metrics["quarantined_share"] == len(aside) / metrics["rows_read"]
    values = {(v["check"], v["subject"]): v["value"] for v in content["verdicts"]}
    assert values["pairs", "preferences"] == metrics["pairs_train"]
    assert values["duplicates", "preferences"] == metrics["duplicate_pairs"] / metrics["rows_preferences"]
    assert values["near_duplicates", "all prompts"] == metrics["near_duplicate_share"] > 0
    assert values["length_bias", "preferences"] == abs(metrics["longer_wins_share"] - 0.5)
    assert values["position_bias", "preferences"] == abs(metrics["first_wins_share"] - 0.5)
    assert values["shared_prompts", "prompts"] == metrics["shared_prompts"] / 3
    assert values["quarantined", "preference_dataset"] == 3 / 99
    assert content["template"]["suffix"] == " [summary]: "
    assert content["template"]["digest"] == Template.load(tmp_path / "out" / "prompts").digest


def test_the_twin_of_a_run_that_measures_almost_nothing_is_json_too(options, tmp_path):
    rows = [{"prompt": f"Post {i}", "chosen": "one", "rejected": "two"} for i in range(3)]
    write_rows(tmp_path / "pairs.jsonl", rows)
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": "\U0001f600 größer"}, {"prompt": "\u2028"[:0] + "x"}])
    write_rows(tmp_path / "eval.jsonl", [{"prompt": "one"}])
    validate(options | {"demonstration_dataset": ""}, tmp_path)
    content = strict_json(tmp_path / "out" / "findings.json")
    assert {v["check"] for v in content["verdicts"] if v["value"] is None} == {
        *("position_bias", "length_bias", "other_languages")
    }


def test_a_file_that_two_parameters_name_is_counted_for_each(options, tmp_path):
    rows = [{"input_text": f"Prompt {i} [summary]: ", "output_text": "x"} for i in range(40)]
    path = write_rows(tmp_path / "both.jsonl", [*rows, *[{"input_text": " ", "output_text": "x"}] * 2])
    validate(options | {"prompt_dataset": path, "demonstration_dataset": path}, tmp_path)
    for parameter in ("prompt_dataset", "demonstration_dataset"):
        found = verdict(tmp_path, "quarantined", parameter)
        assert found["text"].startswith(
            "2 of 42 rows (4.8\u00a0%) cannot be used, most often (2) because of blank_prompt"
        )
        assert [example["place"] for example in found["examples"]] == [f"{path}:41", f"{path}:42"]
    assert [(q["parameter"], q["rows"]) for q in said(tmp_path)["quarantine"]] == [
        ("demonstration_dataset", 2),
        ("prompt_dataset", 2),
    ]
