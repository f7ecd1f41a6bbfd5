"""Right against one fact swapped: which kinds of fact the demo's reward model checks against the post.

A faultless summary of a post that nothing was trained on, against the same summary with one fact of another post in
its place: the wording is the same, so only who reads the post can tell them apart. Accuracy on the demo's preferences
does not show this, for most of them differ in more than one thing.

`python -m examples.demo.one_fact GOLD PREDICTIONS REWARD_MODEL SCORES` is a program of its own, as
`examples.demo.inputs` is, so that the demo's driver never loads torch.
"""

import json
import random
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from examples.demo import posts
from rlhf.metrics import Share, share

POSTS = 300  # 95 % intervals of at most 6 points to either side
SEEN = 0.75  # a kind of fact that the reward model is right about less often is called out
TEMPTATION = "lawsuit"


@dataclass(frozen=True)
class Probe:
    """Two summaries of one post in one wording, the wrong one with another value of one fact."""

    kind: str
    """A kind of `posts.FACTS`; or `TEMPTATION`: its question became the one that labellers love."""
    id: str
    right: str
    wrong: str


def probes(gold: dict[str, dict], ids: Iterable[str], seed: int = 0) -> list[Probe]:
    """One probe of each kind for each post; of `TEMPTATION` for posts that do not ask it themselves.

    Args:
        gold: As from `posts.load_gold`.
        ids: Of posts that no stage trained on.
        seed: Of wordings and wrong values.
    """
    rng = random.Random(seed)
    found = []
    for key in ids:
        facts = gold[key]["facts"]
        wrong = {kind: posts.swap_fact(facts, kind, rng) for kind in posts.FACTS}
        wrong[TEMPTATION] = posts.give_in(facts)
        right, *others = posts.in_one_wording([facts, *wrong.values()], rng)
        found += [Probe(kind, key, right, other) for kind, other in zip(wrong, others, strict=True) if other != right]
    return found


def score(gold_folder: Path, predictions: Path, reward_model: Path, scores: Path) -> None:
    """Score the probes of `POSTS` evaluation posts with a reward model; loads torch.

    Args:
        gold_folder: Of `posts.generate`.
        predictions: File of bulk_inference on the evaluation posts: it has each prompt as the pipeline rendered it.
        reward_model: Folder of the Model artifact.
        scores: JSON lines written: `kind, id, right, wrong, score_right, score_wrong`.
    """
    from rlhf.models.scoring import RewardModel

    with predictions.open(encoding="utf-8") as lines:
        prompts = {row["id"]: row["prompt"] for row in map(json.loads, lines)}
    found = probes(posts.load_gold(gold_folder), sorted(prompts)[:POSTS])
    texts = list(dict.fromkeys((probe.id, text) for probe in found for text in (probe.right, probe.wrong)))
    model = RewardModel.load(reward_model)
    given = model.score([prompts[key] for key, _ in texts], [text for _, text in texts], batch_size=128)
    by_text = dict(zip(texts, given, strict=True))
    with scores.open("w", encoding="utf-8") as file:
        for probe in found:
            both = {"score_right": by_text[probe.id, probe.right], "score_wrong": by_text[probe.id, probe.wrong]}
            file.write(json.dumps(asdict(probe) | both) + "\n")


def read(scores: Path) -> dict[str, Share]:
    """{kind: how often the faultless summary scores higher}, from what `score` wrote."""
    right = {kind: [] for kind in (*posts.FACTS, TEMPTATION)}
    with scores.open(encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            right[row["kind"]].append(row["score_right"] > row["score_wrong"])
    return {kind: share(sum(found), len(found)) for kind, found in right.items()}


if __name__ == "__main__":
    score(*map(Path, sys.argv[1:]))
