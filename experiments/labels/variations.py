"""What may differ when a question is asked again, where a right answer should not hang on it.

An oracle over several runs needs runs that are equally good and differ in their luck alone: answers drawn at
random, or, with options to choose from, the same options in another order.
"""

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from experiments.tasks.base import Sample
from experiments.tasks.scorers import LETTER_METRICS
from m3_backbone.arguments import PositiveFloat, checked
from m3_backbone.sampling import Draw

_OPTIONS = re.compile(r"^A\. .*(?:\n[B-Z]\. .*)+", re.MULTILINE)


@dataclass(frozen=True)
class Asked:
    """How a sample is asked in one run: the answer is drawn as `draw` says, or greedy."""

    question: str
    references: tuple[str, ...]
    draw: Draw | None = None


class Variation(Protocol):
    """`identity` is what may not differ between runs that are looked at together."""

    @property
    def identity(self) -> Mapping[str, float | str]: ...

    def suits(self, sample: Sample, num_runs: int) -> bool:
        """Whether the sample can be asked in so many different ways."""
        ...

    def ask(self, sample: Sample, scale: int, run: int) -> Asked: ...


class DrawnAnswers:
    """Answers drawn from the model's own distribution at `temperature`. ValueError where it is not above 0.

    With the same `seed` a sample has the same answers, whatever else is asked.
    """

    @checked
    def __init__(self, temperature: PositiveFloat = 1.0, seed: int = 0) -> None:
        self._draw = Draw(temperature, (seed,))
        self.identity: Mapping[str, float | str] = {"temperature": float(temperature), "seed": seed}

    def suits(self, sample: Sample, num_runs: int) -> bool:
        return True

    def ask(self, sample: Sample, scale: int, run: int) -> Asked:
        key = (*self._draw.key, sample.sample_id, scale, run)
        return Asked(sample.question, sample.references, replace(self._draw, key=key))


class RotatedOptions:
    """Greedy answers with the options of a multiple-choice question moved on by one place a run.

    Options are lines "A. text", "B. text", ... one after the other, and the reference is a letter. Run 0 is
    the question as it was labelled. Questions with fewer options than runs do not suit: two runs would be the
    same.
    """

    identity: Mapping[str, float | str] = {"options": "rotated"}

    def suits(self, sample: Sample, num_runs: int) -> bool:
        return sample.metric in LETTER_METRICS and len(_find_options(sample.question)[0]) >= num_runs

    def ask(self, sample: Sample, scale: int, run: int) -> Asked:
        options, (start, stop) = _find_options(sample.question)
        shift = run % len(options)
        moved = options[shift:] + options[:shift]
        lines = [f"{letter}. {text}" for letter, text in zip(string.ascii_uppercase, moved, strict=False)]
        question = sample.question[:start] + "\n".join(lines) + sample.question[stop:]
        places = [string.ascii_uppercase.index(letter.strip().upper()) for letter in sample.references]
        references = tuple(string.ascii_uppercase[(place - shift) % len(options)] for place in places)
        return Asked(question, references)


def _find_options(question: str) -> tuple[list[str], tuple[int, int]]:
    """Texts of the options, in order, and where they stand; none where letters are missing or out of order.

    The last such lines count: a context before the question may have lines of its own.
    """
    blocks = list(_OPTIONS.finditer(question))
    lines = blocks[-1].group().split("\n") if blocks else []
    if [line[0] for line in lines] != list(string.ascii_uppercase[: len(lines)]) or not lines:
        return [], (0, 0)
    return [line[3:] for line in lines], blocks[-1].span()
