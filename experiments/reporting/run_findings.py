"""Findings of a comparison of finished runs, and warnings about few trainings."""

from collections.abc import Sequence

from experiments.evaluation.metrics import mean_to_mix
from experiments.reporting.findings import describe_difference, write_too_few
from experiments.reporting.numbers import count_noun, find_floor, format_p_value
from experiments.results.entries import Entry, Pair, find_p_values, list_pairs
from experiments.tasks.sizes import Banner, is_too_few

# With fewer seeds the spread over trainings is estimated poorly (docs/evaluation.md, "Several seeds").
ENOUGH_SEEDS = 5


def write_finding(entries: Sequence[Entry], num_images: int) -> str:
    """Return the finding of a comparison in one sentence: the first policy, the mix, and its best rival.

    The rival is the policy with the largest mean difference to the mix among those that are tested against
    the first one.
    """
    first = entries[0]
    if is_too_few(num_images):
        return write_too_few(num_images, first.label, "other policies")
    to_mix = first.find(mean_to_mix)
    if to_mix is None:
        return f"No finding: {first.label} has no cost at which it can be compared with mixing fixed scales."
    difference = describe_difference(to_mix.estimate, "mixing fixed scales", first.confidence)
    noun = first.runs[0].measure.noun
    sentence = f"At the same mean number of {noun}, {first.label} scores {difference}"
    pairs = list_pairs(entries)
    rivals = [
        (float(rival.estimate.value), pair, p_value)
        for pair, (_, p_value) in zip(pairs, find_p_values(pairs), strict=True)
        if pair.first is first and (rival := pair.second.find(mean_to_mix)) is not None
    ]
    if rivals:
        _, pair, p_value = max(rivals, key=lambda rival: rival[0])
        sentence += f" and {_describe_rival(pair, p_value, len(pairs))}"
    return f"{sentence}."


def _describe_rival(pair: Pair, p_value: float, num_tests: int) -> str:
    difference = pair.estimate(mean_to_mix)
    assert difference is not None
    words = describe_difference(difference, pair.second.label, pair.first.confidence)
    num_resamples = pair.first.runs[0].metrics["bootstrap"]["num_resamples"]
    written = format_p_value(p_value, find_floor(num_resamples, num_tests))
    sign = "" if written.startswith("<") else "= "
    tests = count_noun(num_tests, "test")
    return f"{words}, the best of the others (p {sign}{written}, corrected for {tests})"


def find_seed_banners(entries: Sequence[Entry]) -> list[Banner]:
    """Return warnings about trained policies with fewer than `ENOUGH_SEEDS` seeds."""
    by_number: dict[int, list[str]] = {}
    for entry in entries:
        if entry.seeds:
            by_number.setdefault(len(entry.seeds), []).append(entry.label)
    return [
        banner for number, labels in sorted(by_number.items()) for banner in warn_of_few_seeds(number, labels)
    ]


def warn_of_few_seeds(num_seeds: int, labels: Sequence[str]) -> list[Banner]:
    """Return the warning about policies trained with this number of seeds; empty if there are enough."""
    is_enough = num_seeds >= ENOUGH_SEEDS
    return [] if is_enough else [Banner(write_seed_warning(num_seeds, labels), is_loud=False)]


def write_seed_warning(num_seeds: int, labels: Sequence[str]) -> str:
    """Return a sentence on what intervals of policies with this number of seeds do not cover."""
    named = ", ".join(labels[:3]) + (f" and {len(labels) - 3} more" if len(labels) > 3 else "")
    if num_seeds == 1:
        return (
            f"One training (seed) of {named}: intervals and p-values cover other test images, not other "
            f"trainings. Train {ENOUGH_SEEDS} seeds before a statement about the method."
        )
    return (
        f"{num_seeds} trainings (seeds) of {named}: they tell little about the spread over trainings, and "
        f"intervals may be too narrow. Train {ENOUGH_SEEDS} seeds."
    )
