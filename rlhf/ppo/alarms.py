"""Alarms of a PPO run: the policy games its reward, or something is wrong with reward, KL or critic.

Every look is a function of what was logged so far, so a resumed run raises what an uninterrupted one would. Medians
over a few updates keep the noise of one from raising anything.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median

from rlhf.ppo.config import PPOTrainerConfig
from rlhf.training import alarms
from rlhf.training.alarms import FIRST, LATE, Course, History
from rlhf.words import percent

LATE_MEASURED = 3  # the same for held-out measures, of which a run has about ten, each on the same prompts
STANDARD_ERRORS = 3  # a difference of mean rewards below this is noise: 1 in 700 by chance, and runs look often

# The reward model's score keeps rising with KL while what people think of the completions falls (Stiennon et al. 2020,
# fig. 5; Gao et al. 2023, "Scaling laws for reward model overoptimization", fig. 1). Nothing logged shows the second,
# so what goes with it is watched.
ENTROPY_LEFT = 0.25
LENGTH_FACTOR = 2.0  # rewarded texts grow some (Stiennon et al. 2020 control for it), but twice is another kind of text
ROUGE_LEFT = 0.75  # PPO lowers ROUGE a little where people prefer it (trlx's TL;DR: 0.334 to 0.323), not by a quarter

ENDED = 0.05  # fewer completions end: nearly all rewards are missing_eos_score (Huang et al. 2024, detail 14)
SAME_REWARD = 1e-6  # standard deviation, relative to the mean: whitened advantages of such rewards are rounding errors
UPDATE_KL = 0.5  # nats a token in one update; the demo's stay below 0.03, and Spinning Up ends an update at 0.015
NEGATIVE_KL = -1.0  # nats a completion; KL is never negative, its estimate hardly (TRL 0.11 warns at the same)
CRITIC = 20  # updates: a critic started at random needs some before it beats a constant
BAD_REWARDS = 0.01  # of an update's episodes; max_bad_rewards, 0.05 unless set, ends the run

OVER_OPTIMISATION = frozenset({"kl", "entropy", "length", "held_out_reward"})
"""Kinds that `stop_on_alarm` ends a run at. ROUGE is none of them: it falls in good runs too."""

ADVICE = {
    "kl": "Raise kl_coeff, set kl_target, or take fewer updates; compare completions from before and after.",
    "entropy": "Raise kl_coeff, set kl_target, or take fewer updates; see whether completions still fit their prompts.",
    "length": "Read what was added or left out. Raise kl_coeff, or mend a reward that pays for length.",
    "held_out_reward": "The policy learned its prompts by heart: take more prompts or fewer updates.",
    "rouge": "Read the completions: they may be better in other words, or worse. ROUGE alone does not tell.",
    "constant_reward": "There is nothing to learn from: look at reward functions, reward_clip and the reward model.",
    "cut_off": "Raise target_sequence_length, or train the policy to end (supervised fine-tuning) before PPO.",
    "kl_blow_up": "Lower the learning rate, or set stop_at_update_kl; go on from an earlier policy.",
    "negative_kl": "Sampling and training disagree on probabilities: look at temperature, dropout and precision.",
    "critic": "Raise value_coeff or value_learning_rate, or take critic 'own'; advantages are noise until it learns.",
    "bad_rewards": "Look at the completions whose reward is not finite, in the reward functions first.",
}
"""{kind: what to do}."""


class Alarm(alarms.Alarm):
    """Of a PPO run."""

    @property
    def over_optimised(self) -> bool:
        return self.kind in OVER_OPTIMISATION


@dataclass
class Alarms:
    """Raises each kind of alarm once."""

    config: PPOTrainerConfig
    held_out: int
    """Prompts that the policy is measured on."""
    raised: list[Alarm] = field(default_factory=list)
    """In order; a run that goes on from a checkpoint gets them from there."""

    def look(self, history: History) -> list[Alarm]:
        """Look at what was logged up to now, which is the newest update.

        Returns:
            The alarms that are new.
        """
        update = max((points[-1][0] for points in history.values() if points), default=0)
        known = {alarm.kind for alarm in self.raised}
        seen = _Seen(history, self.config, self.held_out)
        new = {kind: words for check in _CHECKS for kind, words in check(seen) if kind not in known}
        raised = [Alarm(kind, update, words) for kind, words in new.items()]
        self.raised += raised
        return raised


def noise(history: History, episodes: float) -> float:
    """How far two mean rewards, each of so many episodes, may differ by chance, in the reward's unit.

    Rewards spread as they did of late, or through the run where that is more: once nearly all completions of an update
    earn the same, as with a grader of right and wrong, theirs says little of others.
    """
    deviations = [value for _, value in history.get("ppo/reward_std", ()) if math.isfinite(value)]
    deviation = max(median(deviations), median(deviations[-LATE:])) if deviations else 0.0
    return STANDARD_ERRORS * deviation * math.sqrt(2 / max(episodes, 1))


@dataclass(frozen=True)
class _Seen(Course):
    config: PPOTrainerConfig
    held_out: int

    def lost(self, tag: str) -> bool:
        """Whether the newest update has no finite value of it, though it has a reward."""
        updates = [update for update, value in self.history.get(tag, ()) if math.isfinite(value)]
        rewarded = self.history.get("ppo/reward")
        return bool(rewarded) and rewarded[-1][0] not in updates[-1:]

    def ends(self, tag: str) -> tuple[float, float] | None:
        """As `first_and_late`; held-out measures are taken more rarely."""
        return self.first_and_late(tag, 1, LATE_MEASURED) if tag.startswith("eval/") else self.first_and_late(tag)

    def risen(self, since: int | None = None) -> bool:
        """Whether the training reward is higher than it was at first, or than in the updates up to `since`."""
        if since is None:
            both = self.first_and_late("ppo/reward")
        else:
            before = [v for update, v in self.history.get("ppo/reward", ()) if update <= since and math.isfinite(v)]
            late = self.late("ppo/reward")
            both = (median(before[-LATE:]), late) if before and late is not None else None
        return both is not None and both[1] - both[0] > noise(self.history, FIRST * self.config.batch_size)


_Found = Iterator[tuple[str, str]]


def _kl(seen: _Seen) -> _Found:
    kl, limit = seen.late("ppo/kl"), seen.config.kl_limit
    if kl is not None and kl > limit and seen.first_and_late("ppo/reward"):
        if seen.risen():
            yield "kl", f"The reward rose while the policy went {kl:.3g} nats a completion away, above {limit:g}."
        else:
            text = f"The policy went {kl:.3g} nats a completion away, above {limit:g}, and the reward did not rise."
            yield "kl_blow_up", text
    if seen.lost("ppo/kl") and seen.config.reference != "none":
        yield "kl_blow_up", "KL to the reference is not a finite number."
    before, now = [*seen.values("ppo/kl")[-2:], 0.0, 0.0][:2]
    if before <= limit and now > 2 * limit:
        yield "kl_blow_up", f"KL to the reference jumped from {before:.3g} to {now:.3g} nats a completion at once."
    if (moved := seen.late("ppo/update_kl", 1) or 0.0) > UPDATE_KL:
        yield "kl_blow_up", f"One update moved the policy by {moved:.3g} nats a token, above {UPDATE_KL:g}."
    if kl is not None and kl < NEGATIVE_KL:
        yield "negative_kl", f"KL to the reference is {kl:.3g} nats a completion; it can only be 0 or more."


def _entropy(seen: _Seen) -> _Found:
    for tag, whose in (("ppo/entropy", ""), ("eval/entropy", " on held-out prompts")):
        both = seen.ends(tag)
        if both and both[1] < ENTROPY_LEFT * both[0] and seen.risen():
            fell = f"from {both[0]:.3g} to {both[1]:.3g} nats a token"
            yield (
                "entropy",
                f"The reward rose while entropy{whose} collapsed {fell}: what it says is becoming one text.",
            )


def _length(seen: _Seen) -> _Found:
    for tag, whose in (("ppo/length", ""), ("eval/length", " on held-out prompts")):
        both = seen.ends(tag)
        if both and not both[0] / LENGTH_FACTOR <= both[1] <= both[0] * LENGTH_FACTOR and seen.risen():
            went = f"{'grew' if both[1] > both[0] else 'shrank'} from {both[0]:.3g} to {both[1]:.3g} tokens"
            yield "length", f"The reward rose while completions{whose} {went}."


def _held_out(seen: _Seen) -> _Found:
    for tag, kind, what in (
        ("eval/reward", "held_out_reward", "the reward on held-out prompts"),
        ("eval/rouge_l", "rouge", "ROUGE-L against the references"),
    ):
        points = [point for point in seen.history.get(tag, ()) if math.isfinite(point[1])]
        ends = range(LATE_MEASURED, len(points) + 1)
        smooth = [(points[end - 1][0], median(v for _, v in points[end - LATE_MEASURED : end])) for end in ends]
        if not smooth:
            continue
        at, best = max(smooth, key=lambda point: point[1])
        now = smooth[-1][1]
        reward = kind == "held_out_reward"
        fell = now < (best - noise(seen.history, seen.held_out) if reward else ROUGE_LEFT * best)
        if fell and seen.risen(since=at):
            text = (
                f"The training reward rose while {what} fell from {best:.3g} (its best, at update {at}) to {now:.3g}."
            )
            yield kind, text


def _reward(seen: _Seen) -> _Found:
    deviations, reward = seen.values("ppo/reward_std")[-LATE:], seen.late("ppo/reward", 1) or 0.0
    if len(deviations) == LATE and max(deviations) <= SAME_REWARD * max(1.0, abs(reward)):
        yield "constant_reward", f"Every completion of the last {LATE} updates earned the same, {reward:.3g}."
    bad = seen.late("ppo/bad_rewards")
    if bad is not None and (part := bad / seen.config.batch_size) > BAD_REWARDS:
        yield "bad_rewards", f"{percent(part)} of the episodes of an update have no finite reward and are left out."


def _cut_off(seen: _Seen) -> _Found:
    ended = seen.late("ppo/ended")
    if ended is not None and ended < ENDED:
        which = "All completions" if ended == 0 else f"All but {percent(ended)} of the completions"
        yield "cut_off", f"{which} are cut off before they end by themselves."


def _critic(seen: _Seen) -> _Found:
    explained = seen.late("ppo/explained_variance", CRITIC)
    if explained is not None and explained < 0:
        text = f"The critic's explained variance was {explained:.3g} over {CRITIC} updates: a constant would do better."
        yield "critic", text


_CHECKS: Sequence[Callable[[_Seen], _Found]] = (_kl, _entropy, _length, _held_out, _reward, _cut_off, _critic)
