"""Asks a judge about every pair, in both orders.

Language models favour a place, so either completion stands first once, and a win is one in both orders (Zheng et al.
2023, "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena", sec. 3.3 and 3.4).
"""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from rlhf.errors import DataError
from rlhf.evaluator.judge.cache import Answers
from rlhf.evaluator.judge.client import Client, NoAnswer
from rlhf.evaluator.judge.config import JudgeConfig
from rlhf.evaluator.judge.words import ANSWERS, TIE, messages
from rlhf.words import percent

GIVEN_UP_AFTER = 16  # rows, if none of them could be judged
BEFORE, AFTER = "before", "after"


@dataclass(frozen=True)
class Judged:
    """What the judge said, and what it did not."""

    outcomes: list[float | None]
    """By row: 1 where `after` is better, 0 where `before` is, 0.5 for a tie; None where the judge was not asked or did
    not answer."""
    failures: dict[str, int]
    """{why: rows that were asked about and not judged}, the most frequent first: timeout, nonsense, refused, cut off,
    no connection, HTTP <status>."""
    disagreed: int
    """Rows where the two orders named different completions. They are ties: what decided was the place."""
    asked: int
    """Questions put to the judge, tries again apart."""
    cached: int
    """Questions answered from the cache."""


@dataclass
class _Row:
    outcome: float | None = None
    failure: NoAnswer | None = None
    disagreed: bool = False
    asked: int = 0
    cached: int = 0


@dataclass
class _Judge:
    config: JudgeConfig
    client: Client
    answers: Answers
    stopped: bool = False

    def row(self, prompt: str, before: str, after: str) -> _Row:
        """The judgement of one pair; nothing is asked about texts that are the same."""
        if before == after:
            return _Row(outcome=0.5)
        row, winners = _Row(), []
        for places in ((BEFORE, AFTER), (AFTER, BEFORE)):
            texts = {BEFORE: before, AFTER: after}
            asked = messages(self.config.question, prompt, *(texts[place] for place in places))
            key = hashlib.sha256(json.dumps([self.config.model, asked]).encode()).hexdigest()
            better = self.answers.get(key)
            if better is not None:
                row.cached += 1
            elif self.stopped:
                return row
            else:
                row.asked += 1
                try:
                    better = self.client.ask(asked)
                except NoAnswer as failure:
                    row.failure = failure
                    return row
                self.answers.add(key, better)
            winners.append(TIE if better == TIE else places["AB".index(better)])
        row.disagreed = set(winners) == {BEFORE, AFTER}
        won = winners[0] if winners[0] == winners[1] else TIE
        row.outcome = {BEFORE: 0.0, TIE: 0.5, AFTER: 1.0}[won]
        return row


def judge(
    config: JudgeConfig,
    prompts: Sequence[str],
    before: Sequence[str],
    after: Sequence[str],
    progress: Callable[[int], object] = lambda done: None,
) -> Judged:
    """Ask the judge about each pair of completions, in both orders.

    At temperature 0 and with a seed, where the endpoint takes them. Answers are kept in `config.cache` as they come.

    Args:
        prompts, before, after: Texts that belong together by position.
        progress: Called with the rows done so far, of `min(len(prompts), config.max_rows)`.

    Raises:
        ConfigError: The key is not there or is refused, the model is not known, or the cache cannot be used.
        DataError: More rows than `config.max_failed` of them could not be judged, or the cache cannot be written.
        ValueError: The texts are not of one length.
    """
    rows = list(zip(prompts, before, after, strict=True))
    chosen = range(len(rows))
    if len(rows) > config.max_rows:
        chosen = sorted(random.Random(0).sample(chosen, config.max_rows))
    outcomes: list[float | None] = [None] * len(rows)
    failed: list[NoAnswer] = []
    disagreed = asked = cached = 0

    answers, client = Answers(config.cache, ANSWERS), Client(config)
    the_judge = _Judge(config, client, answers)
    pool = ThreadPoolExecutor(config.parallel, thread_name_prefix="judge")
    try:
        places = {pool.submit(the_judge.row, *rows[place]): place for place in chosen}
        for done, future in enumerate(as_completed(places), 1):
            row = future.result()
            outcomes[places[future]] = row.outcome
            disagreed, asked, cached = disagreed + row.disagreed, asked + row.asked, cached + row.cached
            if row.failure is not None:
                failed.append(row.failure)
                hopeless = len(failed) == done >= GIVEN_UP_AFTER and config.max_failed < 1
                if len(failed) > config.max_failed * len(chosen) or hopeless:
                    raise _too_many(config, failed, done, len(chosen))
            progress(done)
    finally:
        the_judge.stopped = True
        client.close()  # first, so that a call under way is not tried again
        pool.shutdown(cancel_futures=True)
        answers.close()
    return Judged(outcomes, dict(Counter(f.cause for f in failed).most_common()), disagreed, asked, cached)


def _too_many(config: JudgeConfig, failed: Sequence[NoAnswer], done: int, rows: int) -> DataError:
    causes = ", ".join(f"{cause} {count:,}" for cause, count in Counter(f.cause for f in failed).most_common())
    example = next((str(f) for f in failed if str(f)), "nothing more is known")
    kept = "the answers that came are kept in judge.cache" if config.cache else "set judge.cache to keep its answers"
    return DataError(
        f"judge {config.model}: {len(failed):,} of the first {done:,} of {rows:,} rows could not be judged ({causes}), "
        f"expected at most {percent(config.max_failed)} of all (judge.max_failed); {kept}, and run again; the first "
        f"failure: {example}"
    )
