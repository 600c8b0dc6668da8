"""Scores of one answer against its references, as the benchmarks' official scorers give them.

Every scorer is a pure function of its strings, corners and all: none draws at random, none asks a model.
`tests/fixtures/scoring.json` holds rows that the official scorers computed. A metric takes the best of
several references, except `vqa_soft_accuracy`, which averages over its annotators.

POPE and ScienceQA have two official scorers each, that of lmms-eval (`yes_no`, `multiple_choice_letter`) and
that of LLaVA's evaluation scripts (`yes_no_llava`, `multiple_choice_letter_llava`).
"""

import re
from collections.abc import Callable, Sequence

from rapidfuzz.distance import Levenshtein

from experiments.tasks.scorers.vqa import vqa_soft_accuracy

__all__ = ["LETTER_METRICS", "METRICS", "check_references", "score"]

CHARTQA_TOLERANCE = 0.05
ANLS_THRESHOLD = 0.5
# An annotator's answer counts fully when three *others* gave it, so four are the fewest that can reach 1.
MIN_VQA_REFERENCES = 4


def exact(prediction: str, references: Sequence[str]) -> float:
    """1 if the texts are equal but for case, surrounding white space and final full stops (GQA in LLaVA)."""

    def normalize(text: str) -> str:
        return text.strip().rstrip(".").lower()

    return float(normalize(prediction) in map(normalize, references))


def relaxed_accuracy(prediction: str, references: Sequence[str]) -> float:
    """1 if a number is within 5% of the reference, or a text is equal but for case (ChartQA).

    As in the official scorer a reference of zero is compared as text, "nan" equals nothing, and white space
    counts in texts but not around numbers.
    """
    return float(any(_is_relaxed_match(prediction, reference) for reference in references))


def _is_relaxed_match(prediction: str, reference: str) -> bool:
    value, target = _parse_number(prediction), _parse_number(reference)
    if value is not None and target:
        return abs(value - target) / abs(target) <= CHARTQA_TOLERANCE
    return prediction.lower() == reference.lower()


def _parse_number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def anls(prediction: str, references: Sequence[str]) -> float:
    """Levenshtein similarity to the nearest reference, 0 below one half (DocVQA; Biten et al. 2019).

    The distance is taken on lower-cased texts with single spaces, the length on the texts as given, as in the
    scorer of lmms-eval and Qwen-VL. (The PyPI packages `anls` and `anls-star` measure the collapsed texts,
    and the former refuses a similarity of exactly one half; so only the distance comes from a library.)
    """
    similarity = max(_similarity(prediction, reference) for reference in references)
    return similarity if similarity >= ANLS_THRESHOLD else 0.0


def _similarity(prediction: str, reference: str) -> float:
    distance = Levenshtein.distance(_collapse(prediction), _collapse(reference))
    # Upper case because it can lengthen a text ("ß" becomes "SS") and the official scorer measures that.
    length = max(len(prediction.upper()), len(reference.upper()))
    return 1.0 - distance / length if length else 1.0


def _collapse(text: str) -> str:
    return " ".join(text.lower().split())


def multiple_choice_letter(prediction: str, references: Sequence[str]) -> float:
    """1 if the answer is the reference letter, alone in either case, or the capital of "B. text" (ScienceQA).

    Nothing else is parsed: "(B)", "B:" and "The answer is B" are wrong, as in the official scorer.
    """
    answer = prediction.strip()
    letters = [reference.strip().lower() for reference in references]
    is_option = len(answer) >= 2 and answer[0].isupper() and answer[1] == "."
    return float(answer.lower() in letters or (is_option and answer[0].lower() in letters))


def multiple_choice_letter_llava(prediction: str, references: Sequence[str]) -> float:
    """1 if the option read out of the answer is the reference letter (ScienceQA as in LLaVA).

    Read are the capital letters A to E, alone, at the start as "B. text", or after "The answer is ". "b",
    "B.", "(B)" and "B)" are wrong, as in LLaVA's eval_science_qa.py.
    """
    text = prediction.replace("\n", ". ")
    match = re.fullmatch(r"\s*([A-E])\s*", text) or re.match(r"([A-E])\. ", text)
    if match is None:
        # With the full stop goes before without it, wherever they are.
        match = re.search(r"The answer is ([A-E])\.", text) or re.search(r"The answer is ([A-E])", text)
    letters = [reference.strip().upper() for reference in references]
    return float(match is not None and match[1] in letters)


def yes_no(prediction: str, references: Sequence[str]) -> float:
    """1 if the whole answer is the reference but for case and white space around it (POPE as in lmms-eval).

    Nothing is read out of a sentence: "Yes." and "yes, it is" are wrong.
    """
    return float(prediction.strip().lower() in [reference.strip().lower() for reference in references])


def yes_no_llava(prediction: str, references: Sequence[str]) -> float:
    """1 if the answer read as yes or no is the reference (POPE as in LLaVA's eval_pope.py).

    "no" is what has the word No, no or not in its first sentence, everything else is "yes", an empty answer
    and "NO" as well.
    """
    words = prediction.partition(".")[0].replace(",", "").split(" ")
    read = "no" if {"No", "no", "not"} & set(words) else "yes"
    return float(read in [reference.strip().lower() for reference in references])


METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {
    "exact": exact,
    "vqa_soft_accuracy": vqa_soft_accuracy,
    "relaxed_accuracy": relaxed_accuracy,
    "anls": anls,
    "multiple_choice_letter": multiple_choice_letter,
    "multiple_choice_letter_llava": multiple_choice_letter_llava,
    "yes_no": yes_no,
    "yes_no_llava": yes_no_llava,
    "pope_exact": yes_no,  # the name that recorded rows of the official scorer carry
}
LETTER_METRICS = frozenset({"multiple_choice_letter", "multiple_choice_letter_llava"})
_YES_NO_METRICS = frozenset({"yes_no", "yes_no_llava", "pope_exact"})
# LLaVA's scorer knows no further options.
_LLAVA_LETTERS = "ABCDE"


def score(metric: str, prediction: str, references: Sequence[str]) -> float:
    """The score in [0, 1] of an answer. Raises ValueError for an unknown metric and for no references."""
    check_metric(metric)
    if isinstance(references, str) or not references:
        raise ValueError(f"references must be a list of at least one string, not {references!r}")
    return METRICS[metric](prediction, references)


def check_metric(metric: str) -> None:
    """Raise ValueError, naming the known metrics, for one that is not among them."""
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}: choose one of {', '.join(METRICS)}")


def check_references(metric: str, references: Sequence[str]) -> None:
    """Raise ValueError for references with which not even the best answer could score 1."""
    check_metric(metric)
    if not references:
        raise ValueError("no reference answer")
    if metric == "vqa_soft_accuracy" and len(references) < MIN_VQA_REFERENCES:
        raise ValueError(
            f"{len(references)} reference answers: {metric} needs {MIN_VQA_REFERENCES} annotators or more"
        )
    if metric in _YES_NO_METRICS and not all(text.strip().lower() in ("yes", "no") for text in references):
        raise ValueError(f"references of {metric} must be yes or no, not {list(references)}")
    if metric in LETTER_METRICS and not all(_is_letter(text.strip()) for text in references):
        raise ValueError(f"references of {metric} must be option letters, not {list(references)}")
    if metric == "multiple_choice_letter_llava" and not all(
        text.strip().upper() in _LLAVA_LETTERS for text in references
    ):
        raise ValueError(f"references of {metric} must be letters from A to E, not {list(references)}")


def _is_letter(text: str) -> bool:
    return len(text) == 1 and text.isascii() and text.isalpha()
