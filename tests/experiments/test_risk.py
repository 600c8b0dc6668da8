from dataclasses import replace
from math import ceil, log

import numpy as np
import pytest

from experiments.evaluation.betting import certify, find_num_needed
from experiments.evaluation.risk import (
    PRICES,
    Guarantee,
    Promise,
    Realised,
    apply_guarantee,
    find_guarantee,
    find_nominal_unit,
    find_unseen,
    resplit,
)
from experiments.evaluation.statistics import Estimate
from experiments.reporting.risk_table import write_promise
from experiments.train import train_predictors
from predictor.calibration import Isotonic
from predictor.policy import choose
from predictor.question_only import QuestionOnly
from tests.experiments.synthetic import estimate_outcomes, make_outcomes
from tests.predictor.synthetic import make_labels, write_labels

DELTA, NUM_DRAWS = 0.1, 1000
# What 1,000 draws may show of a chance of 0.1: two standard errors.
MOST_BROKEN = DELTA + 2 * np.sqrt(DELTA * (1 - DELTA) / NUM_DRAWS)


def draw_drops(rng, shape, mean, flips, loyalty, num_questions):
    """Summed drops of images `shape`: each question gains or loses, all alike with chance `loyalty`."""
    ups, downs = flips / 2 + max(mean, 0.0), flips / 2 - min(mean, 0.0)

    def draw(size):
        u = rng.random(size)
        return (u < ups).astype(float) - (u > 1 - downs)

    alone = draw((*shape, num_questions)).sum(axis=-1)
    return np.where(rng.random(shape) < loyalty, num_questions * draw(shape), alone)


@pytest.mark.parametrize(
    ("alpha", "flips", "loyalty", "num_questions", "num_images"),
    [
        (0.02, 0.1, 0.0, 1, 200),
        (0.05, 0.02, 0.0, 1, 400),
        (0.02, 0.2, 0.5, 7, 300),
        (0.05, 0.0, 1.0, 4, 300),
        (0.01, 0.3, 0.1, 10, 500),
    ],
)
def test_promise_at_the_edge_is_broken_no_more_often_than_it_says(
    alpha, flips, loyalty, num_questions, num_images
):
    """The mean drop is alpha itself, so that every certificate breaks the promise."""
    rng = np.random.default_rng(0)
    drops = draw_drops(rng, (NUM_DRAWS, num_images), alpha, flips, loyalty, num_questions)
    broken = certify(alpha - drops / num_questions, alpha, DELTA).mean()
    assert broken <= MOST_BROKEN
    # And it is no empty promise: half the drop is certified far more often.
    half = draw_drops(rng, (NUM_DRAWS, num_images), alpha / 2, flips, loyalty, num_questions)
    assert certify(alpha - half / num_questions, alpha, DELTA).mean() > broken


def test_fixed_sequence_breaks_the_promise_no_more_often_than_it_says():
    """Ten prices, of which the fifth is the first with a mean drop above alpha, by next to nothing."""
    rng, alpha, risky = np.random.default_rng(1), 0.03, 4
    means = alpha * np.linspace(0, 2.25, 10) + 1e-9
    u = rng.random((NUM_DRAWS, 1, 400))  # one draw an image, so that prices depend on each other
    drops = (u < 0.02 + means[:, None]).astype(float) - (u > 0.98)
    passed = certify(alpha - drops, alpha, DELTA)
    num_certified = np.where(passed.all(axis=1), 10, passed.argmin(axis=1))
    assert (num_certified > risky).mean() <= MOST_BROKEN
    assert (num_certified > 0).mean() > 0.7


def test_images_with_many_questions_count_by_their_questions():
    """Images of one question keep their answer and images of nine lose it: weighed by image it would pass."""
    rng, alpha = np.random.default_rng(2), 0.1
    counts = np.where(rng.random((NUM_DRAWS, 300)) < 0.2, 9, 1)
    lost = (counts == 9) & (rng.random(counts.shape) < alpha * 2.6 / 1.8)
    drops = np.where(lost, counts, 0)  # mean per question: 0.2 * 9 * 0.1444 / 2.6 = alpha
    assert drops.sum() / counts.sum() == pytest.approx(alpha, rel=0.02)
    assert certify((alpha * counts - drops) / 9, alpha, DELTA).mean() <= MOST_BROKEN
    assert (drops / counts).mean() < 0.3 * alpha


def test_capital_is_what_betting_by_hand_gives():
    """Equal values, all for the better: every bet is the boldest, each image multiplies the capital alike."""
    alpha, values = 0.2, np.full(40, 0.2)
    # 0.999 / 0.8 * 0.2 = 0.24975 is won an image, and 1.24975^n >= 10 from n = 11 on.
    assert ceil(log(10) / log(1.24975)) == 11
    assert certify(values[:11], alpha, 0.1)
    assert not certify(values[:10], alpha, 0.1)


def test_too_few_images_are_infeasible_and_it_says_how_many_are_needed():
    calibration = make_outcomes("calibration", 20)
    calibration = replace(calibration, score=np.ones_like(calibration.score))
    found = find_guarantee(estimate_outcomes(calibration), calibration, alpha=0.01, delta=0.1)
    assert not found.is_feasible and found.price_per(1.0) is None
    # No answer changes, so (1 - alpha)^n <= delta is all that is needed: n = 230, found to a twentieth.
    assert found.num_needed is not None and 230 <= found.num_needed <= 1.1 * 230
    enough = make_outcomes("calibration", found.num_needed)
    enough = replace(enough, score=np.ones_like(enough.score))
    assert find_guarantee(estimate_outcomes(enough), enough, alpha=0.01, delta=0.1).price == PRICES[-1]


def test_no_number_of_images_certifies_a_loss_above_alpha():
    assert find_num_needed(np.full(50, -0.01), 0.05, 0.1) is None


def test_price_is_the_cheapest_certified_and_order_of_rows_is_nothing_to_it():
    calibration, test = make_outcomes("calibration", 300), make_outcomes("test", 200)
    estimates = estimate_outcomes(calibration)
    found = find_guarantee(estimates, calibration, alpha=0.05, delta=0.1)
    unit = find_nominal_unit(calibration.scales)
    assert found.price is not None
    choice = choose(estimates, calibration.visual_tokens, found.price, unit=unit)
    rows = np.arange(len(calibration))
    assert found.cost == pytest.approx(calibration.visual_tokens[rows, choice].mean())
    drop = (calibration.score[:, -1] - calibration.score[rows, choice]).mean()
    assert found.drop == pytest.approx(drop) and drop < 0.05
    assert found.cost < 0.5 * unit and found.price in PRICES

    order = np.random.default_rng(3).permutation(len(calibration))
    assert find_guarantee(estimates[order], calibration.select(order), alpha=0.05, delta=0.1) == found

    kept = apply_guarantee(found, estimate_outcomes(test), test, num_resamples=200, confidence=0.95, seed=0)
    assert kept.drop.low < kept.drop.value < kept.drop.high and kept.drop.value < 0.05
    assert kept.cost.low < kept.cost.value < unit


def test_stricter_promises_cost_more():
    calibration = make_outcomes("calibration", 300)
    estimates = estimate_outcomes(calibration)
    prices = [
        find_guarantee(estimates, calibration, alpha=alpha, delta=0.1).price for alpha in (0.03, 0.06, 0.12)
    ]
    strict, middle, loose = prices
    assert strict is not None and middle is not None and loose is not None
    assert strict <= middle <= loose and strict < loose


def test_without_a_certificate_the_finest_scale_is_used():
    few, test = make_outcomes("calibration", 5), make_outcomes("test", 50)
    found = find_guarantee(estimate_outcomes(few), few, alpha=0.01, delta=0.1)
    kept = apply_guarantee(found, estimate_outcomes(test), test, num_resamples=50, confidence=0.95, seed=0)
    assert [kept.drop.value, kept.drop.high, kept.cost.value] == pytest.approx([0, 0, test.scales[-1]])


def test_resplits_of_one_run_keep_the_promise():
    table = make_outcomes("calibration", 500)
    found = resplit(estimate_outcomes(table), table, alpha=0.05, delta=DELTA, num_splits=200)
    assert found.feasible > 0.9
    assert found.broken <= DELTA + 2 * np.sqrt(DELTA * (1 - DELTA) / 200)
    assert found.num_images == 500 and found.cost < 144
    assert resplit(estimate_outcomes(table), table, alpha=0.05, delta=DELTA, num_splits=200) == found


def test_resplits_agree_with_one_guarantee_a_half():
    """Price and mean drop of every half as `find_guarantee` gives them, with its own order of the images."""
    table = make_outcomes("calibration", 120)
    estimates, alpha = estimate_outcomes(table), 0.12
    images = np.unique(table.image_id)
    rng = np.random.default_rng(0)
    drops = []
    for _ in range(20):
        half = images[rng.permutation(len(images))[: len(images) // 2]]
        rows = np.flatnonzero(np.isin(table.image_id, half))
        found = find_guarantee(
            estimates[rows], table.select(rows), alpha=alpha, delta=0.3, most=most_questions(table)
        )
        if found.is_feasible:
            kept = apply_guarantee(found, estimates, table, num_resamples=1, confidence=0.95, seed=0)
            drops.append(float(kept.drop.value))
    resplits = resplit(estimates, table, alpha=alpha, delta=0.3, num_splits=20)
    assert drops
    # The order of the images decides on single cases only.
    assert resplits.feasible == pytest.approx(len(drops) / 20, abs=0.1)
    assert resplits.broken == pytest.approx(np.mean(np.array(drops) > alpha) * len(drops) / 20, abs=0.1)


def most_questions(table):
    return int(np.unique(table.image_id, return_counts=True)[1].max())


@pytest.mark.parametrize(("alpha", "delta"), [(0.0, 0.1), (0.1, 1.0), (-0.1, 0.1)])
def test_levels_outside_their_range_are_refused(alpha, delta):
    table = make_outcomes("calibration", 5)
    with pytest.raises(ValueError, match=r"risk\.(alpha|delta) lies between 0 and 1"):
        find_guarantee(estimate_outcomes(table), table, alpha=alpha, delta=delta)


@pytest.mark.parametrize(
    ("drop", "num_needed", "words"),
    [
        (0.005, 400, "would need about 400 calibration images, and has 50."),
        (0.005, None, "would need more than 64 times its 50 calibration images."),
        (0.02, None, "loses 2.0 points on the 50 calibration images even at its safest price"),
    ],
)
def test_infeasible_is_said_with_its_reason(drop, num_needed, words):
    guarantee = Guarantee(0.01, 0.1, None, 144.0, 50, num_needed, cost=100.0, drop=drop)
    nothing = Estimate(*(np.zeros(()) for _ in range(3)))
    said = write_promise(Promise("mine", guarantee, Realised(nothing, nothing, np.zeros(1))))
    assert said.startswith(
        "A promise to score at most 1 point below the finest scale with probability 0.9 is"
    )
    assert words in said


def test_a_guarantee_rests_on_images_that_the_calibrator_has_not_seen(tmp_path):
    labels = {
        split: make_labels(60, seed, split=split) for seed, split in enumerate(("train", "calibration"))
    }
    write_labels(tmp_path / "labels", labels)
    settings = {"labels": tmp_path / "labels", "validation_fraction": 0.3, "seed": 0}
    loaded = []
    for calibrator in (None, Isotonic()):
        folder = tmp_path / str(calibrator is None)
        train_predictors([QuestionOnly()], folder=folder, calibrator=calibrator, **settings)
        loaded.append(QuestionOnly.load(folder / "question_only"))
    plain, calibrated = loaded
    calibration = labels["calibration"]
    assert find_unseen(plain, calibration.outcomes).all()
    unseen = calibration.select(find_unseen(calibrated, calibration.outcomes))
    images = set(unseen.outcomes.image_id)
    assert 15 < len(images) < 45
    # What the calibrator has learned is all there is in the images that are left.
    seen = calibration.select(~np.isin(calibration.outcomes.image_id, list(images)))
    by_hand = Isotonic().fit(plain.predict(seen.inputs), seen.outcomes.score)
    expected = by_hand.apply(plain.predict(calibration.inputs))
    assert calibrated.predict(calibration.inputs) == pytest.approx(expected)
