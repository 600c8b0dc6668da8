"""Built-in metrics: the score in [0, 1] of an answer, as computed by the official scorers.

VQA soft accuracy is agreement with ten human answers after the evaluation server's normalisation: Antol et
al., VQA (ICCV 2015), and the EvalAI answer processor that TextVQA, VizWiz and lmms-eval share. Its tables
and its errors are kept, because published numbers contain them.
"""

import re
from collections.abc import Callable, Sequence

from rapidfuzz.distance import Levenshtein

CHARTQA_TOLERANCE = 0.05
ANLS_THRESHOLD = 0.5
# An answer scores 1 for an annotator if three *others* gave it, so a score of 1 needs four annotators.
MIN_VQA_REFERENCES = 4

ARTICLES = {"a", "an", "the"}
NUMBER_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBER_WORDS = {"none": "0"} | {name: str(number) for number, name in enumerate(NUMBER_NAMES)}
PUNCTUATION = ';/[]"{}()=+\\_-><@`!'
FULL_STOP = re.compile(r"\.(?!\d)")
# The official code passes re.UNICODE as the count of `re.sub`, so it removes only the first 32 full stops.
MAX_FULL_STOPS = int(re.UNICODE)

_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't
needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've
we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's
who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've
you'll you're you've
""".split()  # noqa: SIM905 (a list literal would be a hundred lines)


def _misspellings(word: str) -> list[str]:
    """Return the contraction with each one of its apostrophes left out."""
    return [word[:index] + word[index + 1 :] for index, character in enumerate(word) if character == "'"]


CONTRACTIONS = {wrong: word for word in _CONTRACTED for wrong in _misspellings(word)}
CONTRACTIONS["somebody'd"] = "somebodyd"  # the official table has this one the wrong way round


def vqa_soft_accuracy(prediction: str, references: Sequence[str]) -> float:
    """Mean over annotators of min(1, number of *other* annotators who gave this answer / 3).

    With the usual ten annotators, agreement with 1, 2, 3 and 4 of them scores 0.3, 0.6, 0.9 and 1.
    """
    answer = normalize(prediction)
    num_annotators = len(references)
    num_agreeing = sum(normalize(reference) == answer for reference in references)
    thirds = num_agreeing * min(3, num_agreeing - 1) + (num_annotators - num_agreeing) * min(3, num_agreeing)
    return thirds / (3 * num_annotators)


def normalize(answer: str) -> str:
    """Return the answer in lower case, without punctuation and articles, with digits and apostrophes."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ")
    # A mark next to a space anywhere in the answer is removed everywhere; any other mark becomes a space.
    touching = {mark for mark in PUNCTUATION if f"{mark} " in text or f" {mark}" in text}
    text = text.translate({ord(mark): "" if mark in touching else " " for mark in PUNCTUATION})
    text = FULL_STOP.sub("", text, count=MAX_FULL_STOPS)
    words = (NUMBER_WORDS.get(word, word) for word in text.split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def exact(prediction: str, references: Sequence[str]) -> float:
    """1 if the texts are equal up to case, surrounding white space and final full stops (GQA in LLaVA)."""

    def normalize(text: str) -> str:
        return text.strip().rstrip(".").lower()

    return float(normalize(prediction) in map(normalize, references))


def relaxed_accuracy(prediction: str, references: Sequence[str]) -> float:
    """1 if a number is within 5% of the reference, or a text is equal up to case (ChartQA).

    As in the official scorer, a reference of zero is compared as text, "nan" equals nothing, and white space
    matters in text but not around numbers.
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

    The distance is that of lower-case texts with single spaces, the length that of the original texts, as in
    the scorer of lmms-eval and Qwen-VL. (The PyPI packages `anls` and `anls-star` take the length of the
    collapsed texts, and the former rejects a similarity of exactly one half.)
    """
    similarity = max(_similarity(prediction, reference) for reference in references)
    return similarity if similarity >= ANLS_THRESHOLD else 0.0


def _similarity(prediction: str, reference: str) -> float:
    distance = Levenshtein.distance(_collapse(prediction), _collapse(reference))
    # Of the upper-case text, as in the official scorer: upper case can be longer ("ß" becomes "SS").
    length = max(len(prediction.upper()), len(reference.upper()))
    return 1.0 - distance / length if length else 1.0


def _collapse(text: str) -> str:
    return " ".join(text.lower().split())


def multiple_choice_letter(prediction: str, references: Sequence[str]) -> float:
    """1 if the answer is the reference letter, in either case, or starts with it as in "B. text" (ScienceQA).

    Nothing else is accepted: "(B)", "B:" and "The answer is B" are wrong, as in the official scorer.
    """
    answer = prediction.strip()
    letters = [reference.strip().lower() for reference in references]
    is_option = len(answer) >= 2 and answer[0].isupper() and answer[1] == "."
    return float(answer.lower() in letters or (is_option and answer[0].lower() in letters))


def multiple_choice_letter_llava(prediction: str, references: Sequence[str]) -> float:
    """1 if the option extracted from the answer is the reference letter (ScienceQA as in LLaVA).

    An option is a capital letter A to E, alone, at the start as in "B. text", or after "The answer is ". "b",
    "B.", "(B)" and "B)" are wrong, as in LLaVA's eval_science_qa.py.
    """
    text = prediction.replace("\n", ". ")
    match = re.fullmatch(r"\s*([A-E])\s*", text) or re.match(r"([A-E])\. ", text)
    if match is None:
        # A match with the full stop takes precedence, wherever it is in the text.
        match = re.search(r"The answer is ([A-E])\.", text) or re.search(r"The answer is ([A-E])", text)
    letters = [reference.strip().upper() for reference in references]
    return float(match is not None and match[1] in letters)


def yes_no(prediction: str, references: Sequence[str]) -> float:
    """1 if the answer equals the reference up to case and surrounding white space (POPE as in lmms-eval).

    Nothing is extracted from a sentence: "Yes." and "yes, it is" are wrong.
    """
    return float(prediction.strip().lower() in [reference.strip().lower() for reference in references])


def yes_no_llava(prediction: str, references: Sequence[str]) -> float:
    """1 if the answer, interpreted as yes or no, is the reference (POPE as in LLaVA's eval_pope.py).

    An answer is "no" if its first sentence has the word No, no or not; any other answer is "yes", also an
    empty one and "NO".
    """
    words = prediction.partition(".")[0].replace(",", "").split(" ")
    answer = "no" if {"No", "no", "not"} & set(words) else "yes"
    return float(answer in [reference.strip().lower() for reference in references])


METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {
    "exact": exact,
    "vqa_soft_accuracy": vqa_soft_accuracy,
    "relaxed_accuracy": relaxed_accuracy,
    "anls": anls,
    "multiple_choice_letter": multiple_choice_letter,
    "multiple_choice_letter_llava": multiple_choice_letter_llava,
    "yes_no": yes_no,
    "yes_no_llava": yes_no_llava,
    "pope_exact": yes_no,  # name of this metric in the recordings of the official scorer
}
LETTER_METRICS = frozenset({"multiple_choice_letter", "multiple_choice_letter_llava"})
_YES_NO_METRICS = frozenset({"yes_no", "yes_no_llava", "pope_exact"})
# Options that LLaVA's scorer recognises.
_LLAVA_LETTERS = "ABCDE"


def score(metric: str, prediction: str, references: Sequence[str]) -> float:
    """Return the score in [0, 1] of an answer. Raises ValueError for an unknown metric or no references."""
    check_metric(metric)
    if isinstance(references, str) or not references:
        raise ValueError(f"references must be a list of at least one string, not {references!r}")
    return METRICS[metric](prediction, references)


def check_metric(metric: str) -> None:
    """Raise ValueError, naming the known metrics, for an unknown metric."""
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}: give one of {', '.join(METRICS)}")


def check_references(metric: str, references: Sequence[str]) -> None:
    """Raise ValueError for references with which no answer could score 1."""
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
