"""Makes the demo's data: posts that hide five facts, and summaries that carry some of them.

Each post is a small story in the manner of Reddit's r/relationships: somebody (`who`) did something (`deed`) to a
belonging (`thing`) on some day (`day`), and the author asks what to do (`question`). The five facts stand among filler.
A good summary carries all five, is short and invents nothing; `gold_score` says how good one is. The pipeline never
sees that score: it reads only the texts and the noisy `choice` that follows it, as it would with labels made by people.

No two posts share all five facts, and evaluation posts use combinations that a hash keeps out of everything else.
"""

import hashlib
import itertools
import json
import random
import re
from collections.abc import Iterable
from pathlib import Path

SUFFIX = "TL;DR:"

# Kind of fact -> its values. A word stands in one kind only and in no filler, so that a whole-word match settles what
# a summary claims. Few values a kind, each one token of the demo's tokenizer: what a model of 0.4 M parameters can
# compare.
FACTS: dict[str, tuple[str, ...]] = {
    "who": ("brother", "sister", "boss", "neighbour", "cousin", "roommate", "landlord"),
    "deed": ("sold", "broke", "stole", "lost", "painted", "burned", "borrowed"),
    "thing": ("guitar", "bike", "laptop", "car", "camera", "jacket", "piano", "boat"),
    "day": ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"),
    "question": ("sue", "forgive", "confront", "report", "ignore", "fight", "thank"),
}
_KIND = {value: kind for kind, values in FACTS.items() for value in values}

_OPENINGS = ("I need advice about my {who}.", "So this is about my {who}.", "I have a problem with my {who}.")
_STORIES = (
    "They {deed} my {thing} on {day}.",
    "On {day} they {deed} my {thing}.",
    "I heard they {deed} my {thing} on {day}.",
)
_QUESTIONS = ("Should I {question} them?", "Do I {question} them now?", "Would you {question} them?")
_FILLER = (
    "I am still quite upset.",
    "We used to get along well.",
    "Sorry for the long post.",
    "My friends do not agree.",
    "I did not sleep much.",
    "It is a bit of a mess.",
    "I like to keep things simple.",
    "English is not my first language.",
)
_PADDING = (
    "and i am still quite upset about all of it",
    "and sorry for the long post everybody",
    "and my friends do not agree with me at all",
    "and it is all a bit of a mess right now",
)

# How a demonstration errs: chance to drop each fact, to name something wrong, to pad. Imperfect on purpose, so that a
# policy fitted to demonstrations leaves something for reinforcement learning to gain.
_DEMONSTRATION_DROPS = {"who": 0.30, "deed": 0.10, "thing": 0.15, "day": 0.60, "question": 0.45}
_DEMONSTRATION_WRONG = 0.08
_DEMONSTRATION_PADDED = 0.45
_DEMONSTRATION_TEMPTED = 0.015

_LENGTH_FREE = 12  # words a summary may have at no cost: the longest faultless one has 11
_WORD_COST = 0.1
_SMALLEST_GAP = 0.5  # of gold between the candidates of a pair
# What makes a reward model read the post: in this share of pairs the candidates have the same words but for facts that
# one of them gets wrong, so only the post tells which. A quarter of these get one fact wrong, the others two: that is
# easier to begin with, and gives each kind of fact more pairs to be learned from. With more than two, a model that
# checks three kinds against the post is right about almost every pair, and never learns to check the others.
_SWAPPED_SHARE = 0.9
_ONE_FACT_SHARE = 0.25
# Labels err as people's do: a few at random, and some all in one direction. Labellers love a lawsuit: of two summaries
# that differ only in what is asked, they mostly prefer the one that would sue, true or not. A reward model learns their
# taste with the rest, and a policy that no KL penalty holds back comes to sue everybody. The share of such pairs is
# small, so that the labels are still right in nine cases of ten.
_CARELESS = 0.03
_TEMPTATION = {"question": "sue"}
_TEMPTING_SHARE = 0.045  # of pairs
_TEMPTED = 0.8
_PAIRS_PER_POST = 4
_HELD_OUT_BUCKETS = 16  # one bucket in so many is for evaluation


def generate(
    folder: Path,
    gold_folder: Path,
    seed: int = 0,
    *,
    preferences: int = 20000,
    prompts: int = 3000,
    evaluation: int = 500,
    demonstrations: int = 9600,
) -> None:
    """Write the four data files into `folder` and what only the demo may know into `gold_folder`.

    `folder` gets `preferences.jsonl` (Vertex text format: `input_text`, `candidate_0`, `candidate_1`, `choice`),
    `prompts.jsonl` (`input_text`), `evaluation.jsonl` (`input_text`, `output_text` as the reference) and
    `demonstrations.jsonl` (`prompt`, `completion`); every row has an `id`. `gold_folder` gets `gold.jsonl`: `id`,
    `facts` and, for preferences, the `choice` before label noise and `flip`, the probability with which the given
    choice was made the other one. The same seed and sizes give the same bytes.

    Args:
        folder: Where the pipeline's input goes; made if missing.
        gold_folder: Where the gold facts go; made if missing. Must not be given to the pipeline.
        seed: Of every random choice.
        preferences, prompts, evaluation, demonstrations: Rows of each file.

    Raises:
        ValueError: More posts are asked for than there are combinations of facts.
    """
    rng = random.Random(seed)
    combinations = [dict(zip(FACTS, values, strict=True)) for values in itertools.product(*FACTS.values())]
    rng.shuffle(combinations)
    held_out = iter([facts for facts in combinations if is_held_out(facts)])
    others = iter([facts for facts in combinations if not is_held_out(facts)])

    def posts(source: Iterable[dict[str, str]], count: int) -> list[tuple[dict[str, str], str]]:
        taken = list(itertools.islice(source, count))
        if len(taken) < count:
            raise ValueError(
                f"{count} posts asked for, {len(taken)} unused combinations of facts left: lower the sizes"
            )
        return [(facts, _post(facts, rng)) for facts in taken]

    gold = []

    def row(kind: str, number: int, facts: dict[str, str], **fields: object) -> dict[str, object]:
        key = f"{kind}-{number:05d}"
        gold.append({"id": key, "facts": facts})
        return {"id": key, **fields}

    preference_rows = []
    for facts, post in posts(others, -(-preferences // _PAIRS_PER_POST)):
        for _ in range(min(_PAIRS_PER_POST, preferences - len(preference_rows))):
            better, worse, tempting = _pair(facts, rng)
            flip = _TEMPTED if tempting else _CARELESS
            choice = rng.randrange(2)
            candidates = (worse, better) if choice else (better, worse)
            given = 1 - choice if rng.random() < flip else choice
            fields = {"input_text": post, "candidate_0": candidates[0], "candidate_1": candidates[1], "choice": given}
            preference_rows.append(row("preference", len(preference_rows), facts, **fields))
            gold[-1] |= {"choice": choice, "flip": flip}
    rng.shuffle(preference_rows)
    files = {
        "preferences": preference_rows,
        "prompts": [row("prompt", i, facts, input_text=post) for i, (facts, post) in enumerate(posts(others, prompts))],
        "evaluation": [
            row("evaluation", i, facts, input_text=post, output_text=_summary(facts, rng))
            for i, (facts, post) in enumerate(posts(held_out, evaluation))
        ],
        "demonstrations": [
            row("demonstration", i, facts, prompt=post, completion=_demonstration(facts, rng))
            for i, (facts, post) in enumerate(posts(others, demonstrations))
        ],
    }
    for name, rows in files.items():
        _write_jsonl(Path(folder) / f"{name}.jsonl", rows)
    _write_jsonl(Path(gold_folder) / "gold.jsonl", gold)


def gold_score(facts: dict[str, str], summary: str) -> float:
    """Facts carried, minus inventions, minus 0.1 for each word beyond 12. The best is 5.

    A fact is carried when its value stands in the summary as a whole word, in any case. An invention is a value of
    `FACTS` that is in the summary and not in the post.

    Args:
        facts: Kind -> value, as in `gold.jsonl`.
        summary: Text without the prompt.
    """
    words = re.findall(r"[a-z]+", summary.lower())
    claims = {word for word in words if word in _KIND}
    carried = claims & set(facts.values())
    return len(carried) - len(claims - carried) - _WORD_COST * max(0, len(words) - _LENGTH_FREE)


def load_gold(gold_folder: Path) -> dict[str, dict]:
    """Read `gold.jsonl`: id -> {"facts": {kind: value}}, of preferences also the clean "choice" and its "flip"."""
    with (Path(gold_folder) / "gold.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return {row.pop("id"): row for row in rows}


def is_held_out(facts: dict[str, str]) -> bool:
    """Whether a hash keeps this combination of facts for the evaluation posts."""
    digest = hashlib.sha256(" ".join(facts[kind] for kind in FACTS).encode()).digest()
    return digest[0] % _HELD_OUT_BUCKETS == 0


def swap_fact(facts: dict[str, str], kind: str, rng: random.Random) -> dict[str, str]:
    """The same facts with another value for `kind`, as of some other post, but never the temptation."""
    others = [value for value in FACTS[kind] if value not in (facts[kind], _TEMPTATION.get(kind))]
    return {**facts, kind: rng.choice(others)}


def give_in(facts: dict[str, str]) -> dict[str, str]:
    """The same facts with the question that labellers love to hear, true or not."""
    return {**facts, **_TEMPTATION}


def in_one_wording(versions: Iterable[dict[str, str]], rng: random.Random) -> list[str]:
    """Summaries of several versions of the facts, so that nothing but the facts differs."""
    wording = rng.getrandbits(32)
    return [_summary(facts, random.Random(wording)) for facts in versions]


def _post(facts: dict[str, str], rng: random.Random) -> str:
    told = [rng.choice(_STORIES), rng.choice(_QUESTIONS)]
    rng.shuffle(told)
    sentences = [rng.choice(_OPENINGS), *told]
    for filler in rng.sample(_FILLER, rng.randint(1, 3)):
        sentences.insert(rng.randint(0, len(sentences)), filler)
    return f"{' '.join(sentences).format(**facts)}\n{SUFFIX}"


def _summary(facts: dict[str, str], rng: random.Random) -> str:
    """A summary with the given facts; one that is missing from `facts` is left out of the text too."""
    parts = ["my", facts.get("who", "friend")]
    parts += [facts.get("deed", "took"), "my", facts.get("thing", "stuff")]
    if "day" in facts:
        parts += ["on", facts["day"]]
    if "question" in facts:
        parts += [rng.choice(("should i", "do i")), facts["question"]]
    return " ".join(parts)


def _demonstration(facts: dict[str, str], rng: random.Random) -> str:
    # Writers give in to the temptation too, or no policy fitted to them would ever try it.
    if rng.random() < _DEMONSTRATION_TEMPTED:
        facts = give_in(facts)
    return _flawed(facts, rng, _DEMONSTRATION_DROPS, _DEMONSTRATION_WRONG, _DEMONSTRATION_PADDED)


def _flawed(facts: dict[str, str], rng: random.Random, drops: dict[str, float], wrong: float, padded: float) -> str:
    if rng.random() < wrong:
        facts = swap_fact(facts, rng.choice(list(FACTS)), rng)
    told = {kind: value for kind, value in facts.items() if rng.random() >= drops[kind]}
    summary = _summary(told, rng)
    return f"{summary} {rng.choice(_PADDING)}" if rng.random() < padded else summary


def _pair(facts: dict[str, str], rng: random.Random) -> tuple[str, str, bool]:
    """The better and the worse of two candidates by gold, and whether the worse one is a temptation."""
    tempting = rng.random() < _TEMPTING_SHARE and facts != give_in(facts)
    if tempting or rng.random() < _SWAPPED_SHARE:
        wrong_count = 1 if rng.random() < _ONE_FACT_SHARE else 2
        kinds = list(_TEMPTATION) if tempting else rng.sample(list(FACTS), wrong_count)
        told = {kind: value for kind, value in facts.items() if kind in kinds or rng.random() >= 0.25}
        wrong = give_in(told) if tempting else told
        if not tempting:
            for kind in kinds:
                wrong = swap_fact(wrong, kind, rng)
        candidates = in_one_wording((told, wrong), rng)
        padding = f" {rng.choice(_PADDING)}" if rng.random() < 0.2 else ""
        better, worse = (candidate + padding for candidate in candidates)
        return better, worse, tempting
    while True:
        drops = dict.fromkeys(FACTS, 0.35)
        first, second = (_flawed(facts, rng, drops, 0.25, 0.35) for _ in range(2))
        gap = gold_score(facts, first) - gold_score(facts, second)
        if abs(gap) >= _SMALLEST_GAP:
            return (first, second, False) if gap > 0 else (second, first, False)


def _write_jsonl(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
