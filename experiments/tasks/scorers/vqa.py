"""VQA soft accuracy: agreement with ten human answers after the evaluation server's normalisation.

Source of the rule: Antol et al., VQA (ICCV 2015), and the EvalAI answer processor that TextVQA, VizWiz and
lmms-eval share. Its tables and its slips are kept, because published numbers contain them.
"""

import re
from collections.abc import Sequence

ARTICLES = {"a", "an", "the"}
NUMBER_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBER_WORDS = {"none": "0"} | {name: str(number) for number, name in enumerate(NUMBER_NAMES)}
PUNCTUATION = ';/[]"{}()=+\\_-><@`!'
FULL_STOP = re.compile(r"\.(?!\d)")
# The official code passes the flag re.UNICODE where `re.sub` takes a count, so only the first 32 stops go.
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
    """A contraction with any one of its apostrophes forgotten."""
    return [word[:place] + word[place + 1 :] for place, character in enumerate(word) if character == "'"]


CONTRACTIONS = {wrong: word for word in _CONTRACTED for wrong in _misspellings(word)}
CONTRACTIONS["somebody'd"] = "somebodyd"  # the official table has this one the wrong way round


def vqa_soft_accuracy(prediction: str, references: Sequence[str]) -> float:
    """Mean over annotators of min(1, number of *other* annotators who gave this answer / 3).

    With the usual ten annotators 1, 2, 3 and 4 of them agreeing give 0.3, 0.6, 0.9 and 1.
    """
    answer = normalize(prediction)
    num_annotators = len(references)
    num_agreeing = sum(normalize(reference) == answer for reference in references)
    thirds = num_agreeing * min(3, num_agreeing - 1) + (num_annotators - num_agreeing) * min(3, num_agreeing)
    return thirds / (3 * num_annotators)


def normalize(answer: str) -> str:
    """An answer without case, punctuation, articles and number words, its contractions spelt out."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ")
    # A mark that touches a space anywhere in the answer is dropped everywhere; any other one becomes a space.
    touching = {mark for mark in PUNCTUATION if f"{mark} " in text or f" {mark}" in text}
    text = text.translate({ord(mark): "" if mark in touching else " " for mark in PUNCTUATION})
    text = FULL_STOP.sub("", text, count=MAX_FULL_STOPS)
    words = (NUMBER_WORDS.get(word, word) for word in text.split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)
