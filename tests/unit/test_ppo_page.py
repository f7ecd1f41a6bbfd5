"""What the PPO trainer's page says, and that it says it of the right numbers."""

import html
import math
import re

import pytest

from rlhf.ppo.alarms import ADVICE, Alarm
from rlhf.ppo_trainer.page import write_report
from rlhf.report import figures

UPDATES = 40
TAGS = (
    "reward", "reward_std", "score", "kl", "kl_coeff", "entropy", "length", "ended", "clip_fraction",
    "value_clip_fraction", "policy_loss", "value_loss", "update_kl", "explained_variance", "gradient_norm",
    "bad_rewards", "seconds/rollout", "seconds/optimise", "tokens_per_second/rollout",
)  # fmt: skip
KL = Alarm("kl", 22, "The reward rose while the policy went 11.9 nats a completion away, above 10.")
CRITIC = Alarm("critic", 30, "The critic's explained variance was −0.5 over 20 updates.")


def course(start: float, end: float, updates: int = UPDATES) -> list[tuple[int, float]]:
    """Straight from start to end, with the end held over the last quarter."""
    return [(u, start + (end - start) * min(1, (u - 1) / (0.75 * updates))) for u in range(1, updates + 1)]


def good_history() -> dict:
    return {f"ppo/{tag}": course(0.0, 1.0) for tag in TAGS} | {
        "ppo/reward": course(-0.5, 1.5), "ppo/reward_std": course(2.0, 2.0), "ppo/kl": course(0.0, 4.0),
        "ppo/length": course(30.0, 36.0), "ppo/ended": course(0.9, 0.98), "ppo/bad_rewards": course(0.0, 0.0),
        "eval/reward": [(0, -0.6), (20, 0.8), (40, 1.25)], "eval/rouge_l": [(0, 0.25), (20, 0.24), (40, 0.23)],
        "eval/kl": [(0, 0.0), (40, 4.0)],
    }  # fmt: skip


def example(update: int, id: str = "prompt-7", **facts) -> dict:
    return {"update": update, "id": id, "completion": f"said at {update}", "score": update / 10, "kl": 0.5} | facts


@pytest.fixture
def drawn_page(tmp_path):
    """Writes a page and returns it."""

    def written(history=None, alarms=(), examples=(), facts=None, **metrics) -> str:
        metrics = {"updates": UPDATES, "episodes": UPDATES * 512, "bad_rewards": 0, "skipped_steps": 0} | metrics
        path = tmp_path / "new" / "report.html"
        history = good_history() if history is None else history
        write_report(path, metrics, history, list(examples), list(alarms), facts or {})
        return path.read_text(encoding="utf-8")

    return written


@pytest.fixture
def page(drawn_page, monkeypatch):
    """The same without drawings, which take a second and a half a page."""
    for name in ("lines", "trail"):
        monkeypatch.setattr(figures, name, lambda *_, **__: "<svg></svg>")
    return drawn_page


def text(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", page))


def verdict(page: str) -> tuple[str, str]:
    """Word and colour."""
    found = re.search(r'<div class="verdict (\w+)">\s*<p class="word">([^<]+)<', page)
    return found[2], found[1]


@pytest.mark.parametrize(
    ("changes", "alarms", "word"),
    [
        ({}, [], ("Learned", "good")),
        ({}, [CRITIC], ("Doubtful", "neutral")),
        ({}, [CRITIC, KL], ("Over-optimised", "bad")),
        ({"ppo/reward": course(-0.5, -0.3)}, [], ("No gain", "bad")),
        ({"ppo/reward": course(-0.5, -1.5)}, [CRITIC], ("No gain", "bad")),
        ({"ppo/reward": []}, [], ("Not known", "neutral")),
    ],
)
def test_the_verdict_follows_from_reward_and_alarms(page, changes, alarms, word):
    assert verdict(page(good_history() | changes, alarms)) == word


def test_the_first_section_says_where_reward_kl_length_and_ends_went(page):
    said = text(page()).split("Reward and what it cost")[0]
    assert (
        "The mean reward went from −0.5 to 1.5, at a KL of 4 nats a completion from the policy that it started" in said
    )
    assert "On prompts that it was not trained on the reward went from −0.6 to 1.25." in said
    assert "The mean completion went from 30 to 36 tokens." in said
    assert "98.0\u00a0% of its completions end by themselves" in said
    assert "No alarm was raised" in said


def test_few_completions_that_end_are_held_against_it(page):
    few = page(good_history() | {"ppo/ended": course(0.9, 0.5)})
    assert re.search(r'class="mark bad"[^>]*>✗</span><span dir="auto">50\u00a0% of its completions end', few)


def test_each_alarm_is_told_with_its_update_and_what_to_do_before_anything_else(page):
    said = text(page(alarms=[KL, CRITIC]))
    told = [said.index(f"Update {alarm.update}: {alarm.words} {ADVICE[alarm.kind]}") for alarm in (KL, CRITIC)]
    assert told == sorted(told)
    assert told[-1] < said.index("On prompts that it was not trained on")
    assert "No alarm was raised" not in said


def test_alarms_are_marked_in_the_curves_they_belong_to(page):
    curves = dict(
        re.findall(r'aria-label="((?:KL to the reference|Reward|Entropy|Critic) by[^"]*)()"', page(alarms=[KL]))
    )
    marked = [label.split(" by")[0] for label in curves if "Alarm at update 22: KL." in label]
    assert marked == ["Reward", "KL to the reference"]


def test_marks_are_lines_with_their_words_in_curves_and_rings_in_trails():
    plain, marked = (
        figures.lines("Reward", {"a": course(0, 1)}, "update", "reward", marks=m) for m in (None, {22: "KL"})
    )
    assert "var(--bad" in marked
    assert ">KL</text>" in marked
    assert "var(--bad" not in plain
    assert ">KL</text>" in figures.trail("T", [(0, 0), (1, 1)], "x", "y", marks={(1, 1): "KL"})


def test_the_frontier_is_the_reward_against_the_root_of_kl(page):
    assert "Reward against distance: from −0.5 at √KL 0 to 1.5 at √KL 2." in page()


def test_a_negative_estimate_of_kl_has_a_place_in_the_frontier(page):
    assert "at √KL 0 to" in page(good_history() | {"ppo/kl": course(-0.01, 4.0)})


@pytest.mark.parametrize("tag", good_history())
@pytest.mark.parametrize("points", [None, [], [(1, math.nan)], [(1, 0.5)], [(1, 0.5), (2, math.inf), (3, 0.25)]])
def test_a_series_that_is_missing_or_not_finite_leaves_the_rest(page, tag, points):
    history = good_history()
    del history[tag]
    if points is not None:
        history[tag] = points
    written = page(history, [KL])
    assert "Gradient norm" in written or tag == "ppo/gradient_norm"
    assert not re.search(r"\b(nan|inf|None)\b", text(written))


@pytest.mark.parametrize(("points", "plots"), [([(1, 0.5)], 11), ([(1, 0.5), (2, math.inf), (3, 0.25)], 13)])
def test_short_and_broken_series_are_drawn(drawn_page, points, plots):
    written = drawn_page(dict.fromkeys(good_history(), points), [Alarm("kl", 1, "Far away.")])
    assert written.count("<svg") == plots


def test_a_history_of_nothing_is_still_a_page(page):
    assert verdict(page({}, [KL], [example(1)])) == ("Not known", "neutral")


def test_what_was_left_out_skipped_and_cut_is_said(page):
    said = text(page(bad_rewards=7, skipped_steps=2, prompts_cut=0.25, planned_updates=100))
    assert "7 episodes had no finite reward and were left out." in said
    assert "2 optimiser steps had a loss or gradient that is not finite, and were skipped." in said
    assert "25\u00a0% of the prompts are longer than prompt_sequence_length" in said
    assert "The alarm ended the run after 40 of 100 updates." in said
    assert "left out" not in text(page())
    assert "ended the run" not in text(page(planned_updates=40))


def test_without_a_reference_the_page_says_that_kl_was_not_measured(page):
    history = {tag: points for tag, points in good_history().items() if tag != "ppo/kl"}
    assert "How far it went from the policy that it started from was not measured." in text(page(history))


def test_the_parts_of_the_reward_are_drawn_where_there_are_several(page):
    parts = {f"ppo/reward/grader_{i}": course(0, i) for i in range(6)}
    assert "What the reward is made of" not in page()
    assert "reward model from 0 to 1; grader_0 from 0 to 0;" in page(good_history() | parts)
    assert "2 more are not drawn." in page(good_history() | parts)


def test_a_kl_coefficient_is_drawn_only_where_it_was_adapted(page):
    fixed = good_history() | {"ppo/kl_coeff": course(0.1, 0.1)}
    assert "KL coefficient" in page()
    assert "KL coefficient" not in page(fixed)


def test_completions_of_one_prompt_stand_side_by_side_first_and_last_among_them(page):
    examples = [example(update, id) for update in (1, 10, 20, 30, 40) for id in ("prompt-7", "prompt-8")]
    written = page(examples=examples)
    assert re.findall(r"<h4>([^<]*)</h4>", written) == ["Update 1", "Update 20", "Update 40"] * 2
    assert "reward 0.1 → 4" in text(written)
    assert "reward 4, KL 0.5 nats" in text(written)
    assert "Show the prompt" not in written
    assert "Show the prompt" in page(examples=[example(1, prompt="They broke"), example(2, prompt="They broke")])


def test_completions_of_different_prompts_are_a_table(page):
    written = page(examples=[example(update, f"prompt-{update}") for update in range(1, 101)])
    rows = re.findall(r"said at (\d+)", written)
    assert len(rows) <= 24
    assert (rows[0], rows[-1]) == ("1", "100")


def test_an_example_without_kl_or_with_a_reward_that_is_not_finite_is_shown(page):
    odd = [
        {"update": 1, "id": 3, "completion": "", "score": math.nan},
        {"update": 2, "id": 3, "completion": "b", "score": 1},
    ]
    assert "reward not known → 1" in text(page(examples=odd))
    assert "nan" not in text(page(examples=odd[:1])).split("Completions through training")[1].lower()


def test_text_of_data_models_and_rewards_stays_text(drawn_page):
    evil = "<script>alert(1)</script>\u202e"
    history = good_history() | {f"ppo/reward/{evil}": course(0, 1)}
    alarm = Alarm("kl", 3, evil)
    examples = [example(u, evil, completion=evil, prompt=evil) for u in (1, 2)]
    for written in (drawn_page(history, [alarm], examples, {evil: evil}), drawn_page({}, examples=examples[:1])):
        assert "<script" not in written
        assert "\u202e" not in written
        assert "&lt;script&gt;alert(1)" in written
