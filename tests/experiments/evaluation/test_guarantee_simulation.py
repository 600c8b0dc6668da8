"""The guarantee and its re-split check on populations of known mean drop, over 2,000 calibration sets."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.evaluation.betting import certify
from experiments.evaluation.guarantee import PRICES, ResplitCheck, check_guarantee, find_guarantee
from m3_backbone.outcomes.table import OutcomeTable
from tests.experiments.evaluation.synthetic import make_outcomes

ALPHA, DELTA, NUM_DRAWS = 0.03, 0.1, 2000
# What 2,000 draws may show of a chance of 0.1: two standard errors.
MOST_FAILED = DELTA + 2 * np.sqrt(DELTA * (1 - DELTA) / NUM_DRAWS)
NUM_CALIBRATION = 300


def run_check(*arguments, **settings) -> ResplitCheck:
    check = check_guarantee(*arguments, **settings)
    assert check is not None
    return check


def draw_population(seed, num_images, mean, *, fractional):
    """Drops `[num_samples]` of mean `mean` and the image of each; one image's questions share their luck.

    Of each image 1 to 5 questions are asked; all change alike in a third of the images. Drops are 1 and -1,
    or, `fractional`, multiples of 0.3 as the soft scores of VQA are.
    """
    rng = np.random.default_rng(seed)
    image = np.repeat(np.arange(num_images), rng.integers(1, 6, num_images))
    luck = np.where(
        rng.random(num_images)[image] < 1 / 3, rng.random(num_images)[image], rng.random(len(image))
    )
    size = rng.choice([0.3, 0.6, 0.9], len(image)) if fractional else np.ones(len(image))
    drop = size * ((luck < 0.03).astype(float) - (luck > 0.97))
    # The mean is met by taking losses away or adding them, one question at a time.
    for row in rng.permutation(np.flatnonzero(drop > 0)):
        drop[row] *= drop.mean() < mean
    for row in rng.permutation(np.flatnonzero(drop == 0)):
        drop[row] = size[row] * (drop.mean() < mean)
    return drop, image


def make_table(drops, image) -> tuple[np.ndarray, OutcomeTable]:
    """Estimates and outcomes of scales 1, 36 and 144, of drops `[num_samples, 2]` at the first two.

    Estimates are constant: the finest scale is chosen up to one price, then 36, then 1.
    """
    table = make_outcomes("test", len(image), 1)
    right = np.maximum(0, drops.max(axis=1))
    score = np.column_stack([right[:, None] - drops, right]).astype(np.float32)
    names = ("nll", "reference_tokens", "confidence", "margin", "visual_tokens", "prefill_flops")
    columns = {name: getattr(table, name)[:, [0, 2, 3]] for name in names}
    answer = [["a", "b", "c"]] * len(image)
    image_id = np.array([f"image-{number}" for number in image], dtype=object)
    table = replace(table, scales=(1, 36, 144), score=score, answer=answer, image_id=image_id, **columns)
    return np.tile([0.80, 0.85, 0.90], (len(image), 1)), table


@pytest.fixture(scope="module", params=[False, True], ids=["right or wrong", "fractional"])
def population(request):
    """A safe scale at a third of alpha, and one a little above alpha, so that certifying it is a failure."""
    safe, image = draw_population(0, 500, ALPHA / 3, fractional=request.param)
    risky = draw_population(0, 500, 1.001 * ALPHA, fractional=request.param)[0]
    assert safe.mean() < ALPHA / 2 and ALPHA < risky.mean() < 1.05 * ALPHA
    return np.column_stack([risky, safe]), image


def simulate(drops, image, replacement=True, num_images=NUM_CALIBRATION):
    """Share of 2,000 calibration sets that certify the risky scale, worked out by hand."""
    rng, num_population = np.random.default_rng(1), image.max() + 1
    counts = np.bincount(image)
    sums = [np.zeros(num_population), *(np.bincount(image, column) for column in drops.T[::-1])]
    values = (ALPHA * counts - np.array(sums)) / counts.max()
    if replacement:
        drawn = rng.integers(num_population, size=(NUM_DRAWS, num_images))
    else:
        drawn = np.array([rng.permutation(num_population)[:num_images] for _ in range(NUM_DRAWS)])
    finest, safe, risky = (certify(row[drawn], ALPHA, DELTA) for row in values)
    assert (finest & safe).mean() > 0.4
    return float((finest & safe & risky).mean())


@pytest.mark.long
def test_guarantee_fails_as_often_as_the_re_split_check_says_and_no_more_than_stated(population):
    drops, image = population
    true_share = simulate(drops, image)
    assert 0.01 < true_share <= MOST_FAILED
    estimates, table = make_table(drops, image)
    guarantee = find_guarantee(estimates, table, alpha=ALPHA, delta=DELTA)
    guarantee = replace(guarantee, num_images=NUM_CALIBRATION)
    check = run_check(guarantee, estimates, table, num_resplits=NUM_DRAWS, confidence=0.99)
    low, high = check.interval
    assert low < true_share < high and check.failed <= MOST_FAILED


def test_halves_without_replacement_would_fail_too_seldom(population):
    """The check that is *not* made: halves of 500 images, judged against all 500 of them."""
    drops, image = population
    half = simulate(drops, image, replacement=False, num_images=250)
    whole = simulate(drops, image, num_images=250)
    assert half < 0.5 * whole


def test_joint_guarantees_over_five_correlated_predictors_hold_jointly():
    """All five lose exactly alpha: any certificate is a failure, of one or of several of them together."""
    rng, counts = np.random.default_rng(2), np.array([1, 2, 4])
    count = rng.choice(counts, (NUM_DRAWS, 1, NUM_CALIBRATION))
    # Half of the images draw one luck for all five predictors.
    shared = rng.random((NUM_DRAWS, 1, NUM_CALIBRATION)) < 0.5
    luck = np.where(
        shared, rng.random((NUM_DRAWS, 1, NUM_CALIBRATION)), rng.random((NUM_DRAWS, 5, NUM_CALIBRATION))
    )
    drop = 0.6 * ((luck < 0.02 + ALPHA / 0.6).astype(float) - (luck > 0.98))
    values = count * (ALPHA - drop) / counts.max()
    alone = certify(values, ALPHA, DELTA)
    level = find_guarantee(
        *make_table(np.zeros((200, 2)), np.arange(200)), alpha=ALPHA, delta=DELTA, num_joint=5
    ).level
    together = certify(values, ALPHA, level)
    assert (alone.mean(axis=0) <= MOST_FAILED).all()
    # Each on its own they do not hold together with 1 - delta; at delta / 5 each they do.
    assert MOST_FAILED < alone.any(axis=1).mean() <= 5 * DELTA
    assert 0 < together.any(axis=1).mean() <= MOST_FAILED


@pytest.mark.parametrize("large_chance", [0.102, 0.12])
def test_images_with_more_questions_than_any_of_calibration_count_as_the_most(large_chance):
    """Numbers of questions have a heavy tail, so that their bound differs from draw to draw.

    The bound is the most questions of any calibration image, and the true mean counts larger images as so
    many. Images lose all of their answers or none, large ones with a chance of their own.
    """
    rng, alpha, num_images = np.random.default_rng(3), 0.1, 20_000
    counts = np.minimum(rng.zipf(3.2, num_images), 40)
    lost = rng.random(num_images) < np.where(counts > 5, large_chance, 0.102)
    drawn = rng.integers(num_images, size=(NUM_DRAWS, 400))
    most = counts[drawn].max(axis=1)
    true_drop = np.empty(NUM_DRAWS)
    for bound in np.unique(most):
        capped = np.minimum(counts, bound)
        true_drop[most == bound] = (capped * lost).sum() / capped.sum()
    values = counts[drawn] * (alpha - lost[drawn]) / most[:, None]
    failed = certify(values, alpha, DELTA) & (true_drop > alpha)
    assert (true_drop > alpha).mean() > 0.9 and len(np.unique(most)) > 10
    assert 0.005 < failed.mean() <= MOST_FAILED


def test_the_price_grid_reaches_every_scale_of_the_simulated_population(population):
    drops, image = population
    estimates, table = make_table(drops, image)
    # Scale 36 from 0.05 of 108 / 144 tokens on, scale 1 from 0.05 of 35 / 144 on.
    assert PRICES[1] < 0.05 / (108 / 144) < 0.05 / (35 / 144) < PRICES[-1]
    assert find_guarantee(estimates, table, alpha=0.5, delta=DELTA).cost == pytest.approx(1)
