"""Measures of texts against references beside ROUGE (`rlhf.metrics.rouge`). None of them decides anything."""

from collections.abc import Sequence

from rlhf.errors import ConfigError


def bleu(predictions: Sequence[str], references: Sequence[str]) -> float | None:
    """Corpus BLEU (Papineni et al. 2002) in 0 to 100 with sacrebleu's defaults (Post 2018); None without rows.

    Raises:
        ValueError: The two are not of one length.
    """
    from sacrebleu import corpus_bleu

    found, expected = _paired(predictions, references)
    # force: sacrebleu's warning of texts that look tokenised is for machine translation's test sets.
    return corpus_bleu(found, [expected], force=True).score if found else None


def chrf(predictions: Sequence[str], references: Sequence[str]) -> float | None:
    """Corpus chrF2 (Popović 2015) in 0 to 100 with sacrebleu's defaults; None without rows.

    Raises:
        ValueError: The two are not of one length.
    """
    from sacrebleu import corpus_chrf

    found, expected = _paired(predictions, references)
    return corpus_chrf(found, [expected]).score if found else None


def check_bertscore(model: str) -> None:
    """See that BERTScore can be taken, before anything that takes long.

    Raises:
        ConfigError: bert-score is not installed or does not know the model.
    """
    try:
        from bert_score.utils import model2layers
    except ImportError as error:
        raise ConfigError(f"BERTScore: bert-score cannot be imported ({error}); pip install bert-score") from error
    if model not in model2layers:
        raise ConfigError(
            f"BERTScore: bert-score does not know {model!r}; expected one of {', '.join(sorted(model2layers))}"
        )


def bertscore(predictions: Sequence[str], references: Sequence[str], model: str) -> list[float]:
    """BERTScore's F1 (Zhang et al. 2020), one a row, by bert-score, if that is installed.

    Args:
        model: One of those for which bert-score knows which layer agrees best with people, such as
            `microsoft/deberta-large-mnli`.

    Raises:
        ConfigError: bert-score is not installed or does not know the model.
        ValueError: The two are not of one length.
    """
    check_bertscore(model)
    from bert_score import score

    found, expected = _paired(predictions, references)
    # What is blank has 0, as bert-score says itself; but it has no more a way to encode it with transformers 5.
    said = [row for row in range(len(found)) if found[row].strip() and expected[row].strip()]
    f1 = [0.0] * len(found)
    if said:
        scores = score([found[row] for row in said], [expected[row] for row in said], model_type=model)[2]
        for row, value in zip(said, scores.tolist(), strict=True):
            f1[row] = value
    return f1


def _paired(predictions: Sequence[str], references: Sequence[str]) -> tuple[list[str], list[str]]:
    # sacrebleu leaves out what has no partner.
    pairs = list(zip(predictions, references, strict=True))
    return [text for text, _ in pairs], [reference for _, reference in pairs]
