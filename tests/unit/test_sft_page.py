"""What the SFT report says, and that it says it of the right numbers."""

from dataclasses import replace

import pytest

from rlhf.sft_trainer.course import course
from rlhf.sft_trainer.page import Said, Training, skipped_page, training_page


def series(*values: float) -> list[tuple[int, float]]:
    return [(10 * step, value) for step, value in enumerate(values)]


def training(losses: list[float] = (3.0, 1.0, 0.9, 0.9, 0.9, 0.9), **changes) -> Training:
    held_out = {
        "sft/eval_loss": series(*losses),
        **{f"sft/{name}": series(0.1, 0.4, 0.5) for name in ("rouge_1", "rouge_2", "rouge_l", "rouge_lsum")},
        "sft/ended": series(0.0, 1.0),
    }
    metrics = {
        "demonstrations": 950, "held_out": 50, "steps": 50, "kept_step": 50, "skipped_steps": 0, "prompts_cut": 0.0,
        "completions_cut": 0.0, "loss": 0.2, "eval_loss": 0.9, "rouge_l": 0.5, "ended": 1.0,
    }  # fmt: skip
    said = Said(
        "row-7",
        "They broke my bike.",
        "my bike",
        {0: ("<script>alert(1)</script>", False), 20: ("my", True), 50: ("my bike", True)},
    )
    facts = {
        "base_model": "tiny", "tuning": "all weights", "why_none": "eval_fraction is 0", "target_length": 16,
        "metrics": metrics | changes.pop("metrics", {}),
        "history": {"sft/loss": series(3.0, 1.0, 0.8, 0.5, 0.3, 0.2), **held_out},
        "said": [said],
    }  # fmt: skip
    return Training(**facts | changes)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([3.0, 1.0, 0.9, 0.9, 0.9, 0.9], "level"),
        ([3.0, 2.5, 2.0, 1.5, 1.2, 1.0], "falling"),
        ([3.0, 1.0, 0.9, 1.1, 1.3, 1.4], "rising"),
        ([3.0, 3.0, 3.0, 2.99, 3.0, 3.0], "never fell"),
        ([3.0, 3.2, 3.5, 4.0, 5.0, 6.0], "never fell"),
        ([3.0, 1.0, 0.900, 0.904, 0.902, 0.905], "level"),
        ([3.0, 0.1, 1e-2, 4e-4, 2e-4, 1e-4], "level"),
        ([3.0, 0.1, 1e-4, 2e-4, 3e-4, 4e-4], "level"),
        ([3.0, 1.0], "falling"),
    ],
)
def test_the_course_of_a_loss(losses, expected):
    assert course(series(*losses)) == expected


@pytest.mark.parametrize(
    ("losses", "metrics", "says"),
    [
        ([3.0, 1.0, 0.9, 0.9, 0.9, 0.9], {}, "fell from 3.000 to 0.900 nats a token and levelled off"),
        ([3.0, 2.5, 2.0, 1.5, 1.2, 1.0], {}, "fell from 3.000 to 1.000 nats a token and was still falling at the end"),
        (
            [3.0, 1.0, 0.9, 1.1, 1.3, 1.4],
            {"kept_step": 20},
            "fell to 0.900 nats a token by step 20, then rose to 1.400, while on those trained on it came to 0.200: "
            "from there on the model memorises. The weights kept are those of step 20.",
        ),
        ([3.0, 1.0, 0.9, 1.1, 1.3, 1.4], {}, "The weights kept are the last ones nevertheless."),
        ([3.0, 3.2, 3.5, 4.0, 5.0, 6.0], {}, "was 3.000 nats a token before training, never much lower, and 6.000"),
    ],
)
def test_the_first_sentence_says_where_the_held_out_loss_went(losses, metrics, says):
    page = training_page(training(losses, metrics=metrics, said=[])).render()
    assert says in page


def test_memorising_is_held_against_the_weights_only_where_they_are_the_last():
    losses = [3.0, 1.0, 0.9, 1.1, 1.3, 1.4]
    kept_last, kept_best = (training_page(training(losses, metrics={"kept_step": s})).render() for s in (50, 20))
    assert '<div class="verdict bad">' in kept_last
    assert "Memorises" in kept_last
    assert '<div class="verdict neutral">' in kept_best
    assert "Learned, then memorised" in kept_best


def test_a_loss_that_rises_on_what_is_trained_on_too_is_no_memorising():
    losses, history = [3.0, 1.0, 0.9, 1.1, 1.3, 1.4], {"sft/loss": series(3.0, 1.0, 0.9, 1.2, 1.5, 1.5)}
    made = training(losses, metrics={"loss": 1.5}, said=[])
    last = training_page(replace(made, history=made.history | history)).render()
    assert '<div class="verdict bad">' in last
    assert "Diverged" in last
    assert "and that on those trained on rose as well, to 1.500: training diverged; lower the learning rate" in last
    assert "memorise" not in last.split("Where the two part")[0]
    best = replace(made, history=made.history | history, metrics=made.metrics | {"kept_step": 20})
    assert "Learned, then diverged" in training_page(best).render()


def test_a_model_that_does_not_stop_is_called_out():
    page = training_page(training(metrics={"ended": 0.6})).render()
    assert "Only 60\u00a0% of its completions end by themselves; the others were cut at 16 tokens" in page
    assert "It learned to end" not in page
    assert "It learned to end: 100" in training_page(training()).render()


def test_without_held_out_demonstrations_it_says_what_is_not_known():
    page = training_page(training(metrics={"held_out": 0}, history={"sft/loss": series(3.0, 0.2)}, said=[])).render()
    assert "was not measured" in page
    assert "No demonstration was held out: eval_fraction is 0." in page
    assert "Memorises" not in page


def test_what_was_cut_or_skipped_is_said():
    page = training_page(training(metrics={"completions_cut": 0.2, "prompts_cut": 0.01, "skipped_steps": 3})).render()
    assert "20\u00a0% of the completions are longer than target_sequence_length" in page
    assert "1.0\u00a0% of the prompts are longer than prompt_sequence_length" in page
    assert "3 of 50 steps had a loss or gradient that is not finite" in page
    assert "prompts are longer" not in training_page(training()).render()


def test_samples_show_the_way_with_what_a_model_said_as_text():
    page = training_page(training()).render()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "Before training" in page
    assert "Step 50, kept" in page
    assert "ROUGE-L 0.00 → 1.00" in page
    assert "cut, ROUGE-L 0.00" in page
    assert "ends, ROUGE-L 1.00" in page


def test_the_page_of_a_skipped_stage_names_the_base_model():
    assert "the policy is the base model org/tiny&lt;1&gt;" in skipped_page("org/tiny<1>").render()


def test_where_the_loss_on_what_is_trained_on_stayed_it_neither_memorises_nor_diverged():
    level = {"sft/loss": series(3.0, 1.0, 0.9, 0.9, 0.903, 0.902)}
    made = training([3.0, 1.0, 0.9, 1.1, 1.3, 1.4], metrics={"loss": 0.902}, said=[])
    page = training_page(replace(made, history=made.history | level)).render()
    assert "Got worse" in page
    assert "while that on those trained on stayed at 0.902: more steps make it worse" in page
