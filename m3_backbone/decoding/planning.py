"""Work of a decoder on questions that have not been answered, calculated from their tokens.

Follows `Decoder` and `PlainDecoder`: an image runs once for its questions, questions and drafts share the
tokens at their beginning, and only answers that equal no draft are decoded further. What an answer will be is
unknown: an answer equals a draft with probability `acceptance`, and is otherwise as long as the reference.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from typing import Any, Self

from m3_backbone.decoding.batches import Capacity
from m3_backbone.decoding.drafting import TokenTree
from m3_backbone.decoding.plain import PlainDecoder


@dataclass(frozen=True)
class PlannedQuestion:
    """A question in tokens: prompt after the image, and the references with end tokens."""

    image: int  # number of its image
    suffix: Sequence[int]
    references: Sequence[Sequence[int]]

    @classmethod
    def of(cls, backbone: Any, image: int, question: str, references: Sequence[str]) -> Self:
        """Return a question about an image as the tokens of a `ModelBackbone`."""
        answers = [backbone._answer_ids(reference) for reference in dict.fromkeys(references)]
        return cls(image, backbone._suffix_ids(question), answers)

    @property
    def answer_length(self) -> int:
        """Number of tokens of the expected answer."""
        return len(self.references[0]) if self.references else 1


@dataclass
class PlannedWork:
    """Expected work of the decoder.

    `tokens` go through all layers in the passes over prompts and drafts, `pairs` are the (token, attended
    token) pairs there, and `outputs` the tokens whose logits are needed. `decoded_tokens` and `decoded_pairs`
    are those of the `steps` that decode answers token by token. `passes` counts the passes over prompts,
    `largest_batch` and `largest_outputs` are the maxima over these.
    """

    tokens: float = 0
    pairs: float = 0
    outputs: float = 0
    passes: int = 0
    decoded_tokens: float = 0
    decoded_pairs: float = 0
    steps: float = 0
    largest_batch: float = 0
    largest_outputs: float = 0

    def __add__(self, other: Self) -> Self:
        sums = {part.name: getattr(self, part.name) + getattr(other, part.name) for part in fields(self)}
        for name in ("largest_batch", "largest_outputs"):
            sums[name] = max(getattr(self, name), getattr(other, name))
        return type(self)(**sums)


@dataclass(frozen=True)
class FlopsPerToken:
    """Operations of a decoder: of a token in its layers, of one attended pair, and of one row of logits.

    Layers that run for the last token of a prompt only (Gemma 4) count as part of the row of logits.
    """

    layers: float
    pair: float
    output: float

    @classmethod
    def of(cls, backbone: Any) -> Self:
        """Return the parts of the cost model of a `ModelBackbone`, which is quadratic in the tokens."""
        one, two, three = (backbone._decoder_flops(number) for number in (1, 2, 3))
        pair = (three - 2 * two + one) / 2
        layers = two - one - 3 * pair
        return cls(layers, pair, one - layers - pair)

    def count(self, work: PlannedWork) -> tuple[float, float]:
        """Return the operations of the passes over prompts and drafts, and of the decoding steps."""
        prompts = work.tokens * self.layers + work.pairs * self.pair + work.outputs * self.output
        decoded = work.decoded_tokens * (self.layers + self.output) + work.decoded_pairs * self.pair
        return prompts, decoded


def plan_work(
    backbone: Any,
    image_sizes: Sequence[tuple[int, int]],
    questions: Sequence[PlannedQuestion],
    scale: int,
    *,
    acceptance: float,
    is_finest: bool,
) -> PlannedWork:
    """Return the expected work of one call of `ModelBackbone.answer` at a scale.

    `questions` are ordered by image. `is_finest` is True at the first scale that is answered: at the others,
    an answer at a finer scale is a draft too.
    """
    prefixes = [backbone.num_prefix_tokens(size, scale) for size in image_sizes]
    num_system = len(backbone.system_ids)
    is_plain = isinstance(backbone._decoder_class, type) and issubclass(backbone._decoder_class, PlainDecoder)
    capacity = Capacity(backbone.batch_tokens or backbone.batch_size)
    sizes = _measure(backbone, prefixes, questions, is_plain)
    owners = [question.image for question in questions]
    total = PlannedWork()
    start = 0
    while start < len(questions):
        end = start + capacity.fill(sizes[start:], owners[start:])
        plan = _plan_plain if is_plain else _plan_packed
        batch = questions[start:end]
        work = plan(prefixes, batch, num_system, 0.0 if is_finest else 1 - acceptance)
        total = total + work + _plan_decoding(prefixes, batch, num_system, acceptance)
        start = end
    return total


def _measure(
    backbone: Any, prefixes: Sequence[int], questions: Sequence[PlannedQuestion], is_plain: bool
) -> list[int]:
    """Return the size of each question in a batch, as `ModelBackbone.answer` counts it."""
    if backbone.batch_tokens is None:
        return [1] * len(questions)
    sizes = []
    seen: set[int] = set()
    for question in questions:
        is_new = is_plain or question.image not in seen
        seen.add(question.image)
        text = len(question.suffix) + backbone.max_new_tokens
        sizes.append(text + (prefixes[question.image] if is_new else 0))
    return sizes


def _plan_packed(
    prefixes: Sequence[int], questions: Sequence[PlannedQuestion], num_system: int, share_of_others: float
) -> PlannedWork:
    """Return the work of one packed pass.

    `share_of_others` is the share of the questions with a draft that is no reference, behind the last token
    of the question.
    """
    work = PlannedWork(passes=1)
    for image, group in groupby(questions, key=lambda question: question.image):
        tree = TokenTree()
        num_others = 0.0
        for question in group:
            end = tree.add(question.suffix)
            work.outputs += 1
            for reference in dict.fromkeys(map(tuple, question.references)):
                tree.add(reference[:-1], end[-1] if end else -1)
                work.outputs += len(reference) - 1
            num_others += share_of_others * (question.answer_length - 1)
        work.outputs += num_others
        prefix, text = prefixes[image], len(tree) + num_others
        work.tokens += prefix + text
        if tree.make_mask() is None:
            work.pairs += (prefix + text) * (num_system + prefix + text)
        else:
            work.pairs += prefix * (num_system + prefix) + text * (num_system + prefix + text)
    work.largest_batch, work.largest_outputs = work.tokens, work.outputs
    return work


def _plan_plain(
    prefixes: Sequence[int], questions: Sequence[PlannedQuestion], num_system: int, share_of_others: float
) -> PlannedWork:
    """Return the work of the padded passes over prompts and of those over drafts."""
    owners = list(dict.fromkeys(question.image for question in questions))
    lengths = {len(question.suffix) for question in questions}
    saved = sum(prefixes[question.image] for question in questions) - sum(prefixes[owner] for owner in owners)
    work = PlannedWork()
    if saved <= len(lengths) * PlainDecoder.pass_tokens:
        longest = num_system + max(prefixes[question.image] + len(question.suffix) for question in questions)
        _add_rows(work, len(questions), longest)
    else:
        longest = num_system + max(prefixes[owner] for owner in owners)
        _add_rows(work, len(owners), longest)
        for length in lengths:
            num_rows = sum(len(question.suffix) == length for question in questions)
            _add_rows(work, num_rows, length, longest)
    work.outputs += len(questions)
    drafts = sorted(
        len(reference) - 1
        for question in questions
        for reference in dict.fromkeys(map(tuple, question.references))
        if len(reference) > 1
    )
    others = sum(share_of_others * (question.answer_length - 1) for question in questions)
    for start in range(0, len(drafts), len(questions)):
        group = drafts[start : start + len(questions)]
        _add_rows(work, len(group), group[-1], longest)
        work.outputs += len(group) * group[-1]
    work.tokens += others
    work.pairs += others * longest
    work.outputs += others
    work.largest_batch = len(questions) * (longest + max(lengths))
    work.largest_outputs = max(len(questions), len(questions) * (drafts[-1] if drafts else 1))
    return work


def _add_rows(work: PlannedWork, num_rows: int, length: int, num_before: int = 0) -> None:
    """Add one pass over rows of equal length behind `num_before` cached tokens."""
    work.passes += 1
    work.tokens += num_rows * length
    work.pairs += num_rows * length * (num_before + length)


def _plan_decoding(
    prefixes: Sequence[int], questions: Sequence[PlannedQuestion], num_system: int, acceptance: float
) -> PlannedWork:
    """Return the work of the steps that decode the answers which equal no draft.

    The first token of an answer comes from the pass over the prompt. A batch takes as many steps as its
    longest open answer.
    """
    work = PlannedWork()
    still_open = 1.0  # probability that no answer of the batch is open
    for length in sorted({question.answer_length for question in questions}, reverse=True):
        rows = [question for question in questions if question.answer_length == length]
        num_open = (1 - acceptance) * len(rows)
        work.decoded_tokens += num_open * (length - 1)
        for question in rows:
            context = num_system + prefixes[question.image] + len(question.suffix) + length
            work.decoded_pairs += (1 - acceptance) * (length - 1) * context
        # Expected maximum: this length counts if one of its rows is open and no longer one is.
        none_open = acceptance ** len(rows)
        work.steps += still_open * (1 - none_open) * (length - 1)
        still_open *= none_open
    return work
