"""Findings of an evaluation, and the sentences about them in the terminal and in the report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from experiments.evaluation.comparison import Comparison
from experiments.evaluation.costs import TOKENS
from experiments.evaluation.guarantee import CheckedGuarantee
from experiments.evaluation.metrics import (
    default_cost,
    default_score,
    mean_gap_share,
    mean_to_mix,
    mean_to_reference,
    reachable_gap_share,
    to_best_fixed,
)
from experiments.evaluation.noise_free import NOISE_FREE
from experiments.evaluation.published import Published
from experiments.evaluation.sensitivity import SensitiveSplit
from experiments.evaluation.statistics import Estimate
from experiments.evaluation.tariff import Savings
from experiments.labels.held_out import EvaluationRecord
from experiments.reporting.guarantees import write_guarantee
from experiments.reporting.numbers import (
    MINUS,
    count_noun,
    format_percent,
    format_tokens,
    has_interval,
    is_known,
    write_number,
)
from experiments.reporting.sensitive import INSENSITIVE, SENSITIVE, describe_group
from experiments.tasks.sizes import Banner, is_too_few


@dataclass(frozen=True, eq=False)
class Findings:
    """A comparison with guarantees, cost parts, published values and the record of the evaluation.

    `others` are the same comparison in other cost measures. `starts_from` names, for each cascade, the
    predictor that it starts from, if any. Default prices of predictors are per `units`, by name: numbers of
    visual tokens, or of imported costs as labels store them, in multiples of `stored_unit`. `banners` warn of
    small numbers of images and samples. `cost_parts` holds, by cost measure and part, the mean cost of that
    part of an answer at each scale, `[num_scales]`. `sensitive` has the results on questions that need
    resolution; `subset` says which test questions were evaluated, if not all. `savings` has the costs by a
    tariff for answers of several lengths.
    """

    comparison: Comparison
    others: Sequence[Comparison] = ()
    guarantees: Sequence[CheckedGuarantee] = ()
    starts_from: Mapping[str, str | None] = field(default_factory=dict)
    units: Mapping[str, float] = field(default_factory=dict)
    stored_unit: float = 1.0
    published: Published | None = None
    record: EvaluationRecord | None = None
    banners: Sequence[Banner] = ()
    cost_parts: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    sensitive: SensitiveSplit | None = None
    subset: str = ""
    savings: Savings | None = None


def write_sentences(findings: Findings) -> list[str]:
    """Return the headline, its scope, the result at the default price, and further sentences if any."""
    comparison = findings.comparison
    sentences = [write_headline(comparison), *filter(None, [findings.subset]), *write_shares(comparison)]
    sentences += [write_scope(comparison), write_default(comparison)]
    if findings.sensitive is not None:
        sentences.append(write_sensitive(findings.sensitive, comparison))
    if comparison.coinciding.any():
        sentences.append(write_coinciding(comparison))
    if findings.guarantees:
        sentences.append(write_guarantee(findings.guarantees, comparison.measure.noun))
    if findings.record is not None:
        sentences.append(describe_record(findings.record))
    return sentences


def describe_record(record: EvaluationRecord) -> str:
    """Return sentences on the number of this evaluation on its test split and on images evaluated before."""
    if record.evaluation == 0:
        text = "No evaluation of predictors is recorded on this test split."
    elif not record.is_new:
        number = f"{count_noun(record.evaluation, 'evaluation')} of new predictors"
        verb = "is" if record.evaluation == 1 else "are"
        text = f"These predictors were evaluated on this test split before; {number} {verb} recorded."
    elif record.evaluation == 1:
        text = "This is the first recorded evaluation on this test split."
    else:
        text = f"This is evaluation number {record.evaluation:,} of new predictors on this test split."
    if record.num_evaluated_before:
        text += (
            f" {record.num_evaluated_before:,} of its images were evaluated before, under another division "
            "of the data."
        )
    if record.num_once_test:
        text += (
            f" {record.num_once_test:,} of the train and calibration images were test images of an earlier "
            "evaluation."
        )
    if record.num_unread:
        text += f" Images of {record.num_unread:,} earlier evaluations could not be read and are not counted."
    return text if record.is_recorded else f"{text} This evaluation could not be recorded."


def write_headline(comparison: Comparison) -> str:
    """Return the result of the first predictor in one sentence.

    It gives mean differences at matched mean visual tokens, or the reason why there is no finding: too few
    test images (`tasks.sizes`), or nothing to gain.
    """
    result = comparison.policies[0]
    if is_too_few(comparison.num_images):
        return write_too_few(comparison.num_images, result.name, "mixing fixed scales")
    if comparison.nothing_to_gain:
        return write_no_headroom(comparison)
    difference = describe_difference(result[mean_to_mix], "mixing fixed scales", comparison.confidence)
    sentence = f"At the same mean number of {comparison.measure.noun}, {result.name} scores {difference}"
    to_reference = result.find(mean_to_reference)
    if to_reference is not None:
        opponent = str(comparison.reference)
        sentence += f" and {describe_difference(to_reference, opponent, comparison.confidence)}"
    return f"{sentence}."


def write_too_few(num_images: int, name: str, others: str) -> str:
    """Return the sentence in place of a finding on too few test images (`tasks.sizes`)."""
    images = f"{count_noun(num_images, 'test image')} {'is' if num_images == 1 else 'are'}"
    return f"No finding: {images} too few to compare {name} with {others}."


def write_shares(comparison: Comparison) -> list[str]:
    """Return a sentence on the share of the gap of the first predictor, with and without outcome noise.

    Returns none without a noise-free oracle of all test samples, and where there is no finding.
    """
    result = comparison.policies[0]
    reachable = [
        f"{_describe_share(share, comparison.confidence)} of the gap to the {NOISE_FREE[name]}"
        for name in comparison.noise_free
        if is_known(share := result.find(reachable_gap_share, name)) and share is not None
    ]
    raw = result.find(mean_gap_share)
    if is_too_few(comparison.num_images) or comparison.nothing_to_gain or raw is None or not reachable:
        return []
    return [
        f"{result.name} recovers {_describe_share(raw, comparison.confidence)} of the gap from mix to "
        f"budgeted oracle, which includes outcome noise, and in expected scores {' and '.join(reachable)}."
    ]


def _describe_share(share: Estimate, confidence: float) -> str:
    value, low, high = (f"{100 * float(part):.0f}" for part in (share.value, share.low, share.high))
    return f"{value}% ({confidence:.0%} interval {low} to {high}%)"


def write_no_headroom(comparison: Comparison) -> str:
    """Return the sentence for outcomes on which no choice of scales exceeds the mix."""
    cost, score = comparison.fixed_cost.value, comparison.fixed_score.value
    if len(comparison.scales) == 1:
        return f"These labels have scale {comparison.scales[0]} only: there is nothing to choose."
    if cost.max() - cost.min() <= 1e-9 * cost.max():
        return "On this task all scales cost the same: there is nothing to save."
    if score[0] >= score.max() - 1e-12 and cost[0] <= cost.min() * (1 + 1e-9):
        return "On this task finer scales do not help: there is nothing to gain."
    return "On this task no choice of scales beats mixing fixed scales: there is nothing to gain."


def write_scope(comparison: Comparison) -> str:
    """Return the scope of the headline in one sentence: budgets, questions and images."""
    first, last = (format_tokens(budget) for budget in comparison.budgets[[0, -1]])
    questions = count_noun(comparison.num_samples, "test question")
    images = count_noun(comparison.num_images, "image")
    budgets = f"log-spaced budgets from {first} to {last} {comparison.measure.unit}"
    if first == last:
        budgets = f"a budget of {write_tokens(last, comparison)}"
    return f"Averaged over {budgets}, on {questions} about {images}."


def write_default(comparison: Comparison) -> str:
    """Return cost and score of the first predictor at its default price, in one sentence."""
    result, best = comparison.policies[0], comparison.best_fixed
    scale = comparison.scales[best]
    cost, score = result[default_cost].value, result[default_score].value
    fixed_cost, fixed_score = comparison.fixed_cost.value[best], comparison.fixed_score.value[best]
    spent, scored = format_tokens(cost), format_percent(score)
    if result.default.is_best_fixed and cost == fixed_cost:
        return (
            f"At its default price {result.name} always uses scale {scale}, the best on calibration, which "
            f"spends {write_tokens(spent, comparison)} per question and scores {scored}%."
        )
    spends = f"{write_tokens(spent, comparison)} per question"
    sentence = (
        f"At its default price {result.name} spends {spends} and scores {scored}%; always using scale "
        f"{scale}, the best on calibration, spends {format_tokens(fixed_cost)} and scores "
        f"{format_percent(fixed_score)}%"
    )
    difference = result[to_best_fixed]
    if is_too_few(comparison.num_images) or not np.isfinite([difference.low, difference.high]).all():
        return f"{sentence}."
    low, high = (
        write_number(100 * bound, "+.1f").replace("-", MINUS) for bound in (difference.low, difference.high)
    )
    return f"{sentence} ({comparison.confidence:.0%} interval of the difference: {low} to {high} points)."


def write_sensitive(split: SensitiveSplit, comparison: Comparison) -> str:
    """Return the share of the questions that need resolution, and what the first policy loses on them."""
    share, first = split.share[SENSITIVE], comparison.policies[0]
    interval = ""
    if has_interval(share):
        low, high = (format_percent(bound) for bound in (share.low, share.high))
        interval = f" ({comparison.confidence:.0%} interval {low} to {high})"
    text = (
        f"{format_percent(share.value)}% of the questions{interval} need resolution: they are "
        f"{describe_group('sensitive', split.membership)}."
    )
    to_finest, confidence = split.to_finest[first.name], comparison.confidence
    losses = [
        f"{place} it scores {describe_difference(to_finest[group], 'the finest scale', confidence)}"
        for group, place in ((SENSITIVE, "on them"), (INSENSITIVE, "on questions that do not need it"))
        if split.num_samples[group]
    ]
    return f"{text} At the default price of {first.name}, {', '.join(losses)}." if losses else text


def write_coinciding(comparison: Comparison) -> str:
    """Return how often scales coincide, in one sentence."""
    shares = ", ".join(
        f"{scale} on {share:.1%}"
        for scale, share in zip(comparison.scales, comparison.coinciding, strict=True)
        if share
    )
    return f"Scales that coincide with the next coarser one count as one scale: {shares} of the questions."


def write_tokens(number: str, comparison: Comparison) -> str:
    """Return a formatted number with its unit, such as visual tokens."""
    noun = comparison.measure.noun
    return f"{number} {noun.removesuffix('s') if number == '1' and noun == TOKENS.noun else noun}"


def describe_difference(estimate: Estimate, opponent: str, confidence: float) -> str:
    """Return a difference in words, such as "1.9 points more than the mix (95% interval 1.2 to 2.6)".

    A difference that rounds to 0.0 points is not a finding, whatever its interval.
    """
    points, more = f"{100 * abs(float(estimate.value)):.1f}", "more" if estimate.value >= 0 else "less"
    if is_known(estimate) and not has_interval(estimate):
        return f"{points} points {more} than {opponent} (no interval: too few images)"
    if not is_known(estimate):
        return f"at no cost that can be compared with {opponent}"
    low, high = (format_percent(bound).replace("-", MINUS) for bound in (estimate.low, estimate.high))
    interval = f"{confidence:.0%} interval {low} to {high}"
    if points == "0.0":
        return f"about as much as {opponent} ({interval}: no difference is shown)"
    doubt = "" if estimate.low > 0 or estimate.high < 0 else ": no difference is shown"
    return f"{points} points {more} than {opponent} ({interval}{doubt})"
