import hashlib
import json
from dataclasses import replace
from math import ceil, log

import numpy as np
import pytest

from experiments.evaluation.betting import certify, find_num_needed
from experiments.evaluation.guarantee import (
    PRICES,
    CheckedGuarantee,
    Guarantee,
    RealizedLoss,
    ResplitCheck,
    apply_guarantee,
    check_guarantee,
    find_guarantee,
    find_nominal_unit,
    find_unseen,
    join_checks,
    order_images,
)
from experiments.evaluation.statistics import Bootstrap, Estimate, number_images
from experiments.reporting.guarantees import tabulate_guarantees, write_guarantee
from experiments.results.metrics_json import collect_guarantee
from experiments.training.trained import TrainingSettings
from experiments.training.trainer import train_predictors
from m3_backbone.outcomes.table import OutcomeTable
from predictor.calibration import Isotonic
from predictor.classical.question_only import QuestionOnly
from predictor.policy.front import choose
from tests.experiments.evaluation.synthetic import estimate_outcomes, make_outcomes
from tests.predictor.synthetic import make_labels, write_labels

DELTA, NUM_DRAWS = 0.1, 1000
# What 1,000 draws may show of a chance of 0.1: two standard errors.
MOST_FAILED = DELTA + 2 * np.sqrt(DELTA * (1 - DELTA) / NUM_DRAWS)


def run_check(*arguments, **settings) -> ResplitCheck:
    check = check_guarantee(*arguments, **settings)
    assert check is not None
    return check


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
def test_guarantee_at_the_edge_fails_no_more_often_than_stated(
    alpha, flips, loyalty, num_questions, num_images
):
    """The mean drop is alpha itself, so that every certificate is a failure."""
    rng = np.random.default_rng(0)
    drops = draw_drops(rng, (NUM_DRAWS, num_images), alpha, flips, loyalty, num_questions)
    failed = certify(alpha - drops / num_questions, alpha, DELTA).mean()
    assert failed <= MOST_FAILED
    # The guarantee is not empty: half the drop is certified more often.
    half = draw_drops(rng, (NUM_DRAWS, num_images), alpha / 2, flips, loyalty, num_questions)
    assert certify(alpha - half / num_questions, alpha, DELTA).mean() > failed


def test_fixed_sequence_fails_no_more_often_than_stated():
    """Ten prices, of which the fifth is the first with a mean drop above alpha, by next to nothing."""
    rng, alpha, risky = np.random.default_rng(1), 0.03, 4
    means = alpha * np.linspace(0, 2.25, 10) + 1e-9
    u = rng.random((NUM_DRAWS, 1, 400))  # one draw an image, so that prices depend on each other
    drops = (u < 0.02 + means[:, None]).astype(float) - (u > 0.98)
    passed = certify(alpha - drops, alpha, DELTA)
    num_certified = np.where(passed.all(axis=1), 10, passed.argmin(axis=1))
    assert (num_certified > risky).mean() <= MOST_FAILED
    assert (num_certified > 0).mean() > 0.7


def test_images_with_many_questions_count_by_their_questions():
    """Images of one question keep their answer and images of nine lose it: weighed by image it would pass."""
    rng, alpha = np.random.default_rng(2), 0.1
    counts = np.where(rng.random((NUM_DRAWS, 300)) < 0.2, 9, 1)
    lost = (counts == 9) & (rng.random(counts.shape) < alpha * 2.6 / 1.8)
    drops = np.where(lost, counts, 0)  # mean per question: 0.2 * 9 * 0.1444 / 2.6 = alpha
    assert drops.sum() / counts.sum() == pytest.approx(alpha, rel=0.02)
    assert certify((alpha * counts - drops) / 9, alpha, DELTA).mean() <= MOST_FAILED
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
    assert found.price is not None and found.cost is not None
    choice = choose(estimates, calibration.visual_tokens, found.price, unit=unit)
    rows = np.arange(len(calibration))
    assert found.cost == pytest.approx(calibration.visual_tokens[rows, choice].mean())
    drop = (calibration.score[:, -1] - calibration.score[rows, choice]).mean()
    assert found.drop == pytest.approx(drop) and drop < 0.05
    assert found.cost < 0.5 * unit and found.price in PRICES

    order = np.random.default_rng(3).permutation(len(calibration))
    assert find_guarantee(estimates[order], calibration.select(order), alpha=0.05, delta=0.1) == found

    kept = apply_guarantee(found, estimate_outcomes(test), test, bootstrap=Bootstrap(200))
    assert kept.drop.low < kept.drop.value < kept.drop.high and kept.drop.value < 0.05
    assert kept.cost.low < kept.cost.value < unit


def test_stricter_guarantees_cost_more():
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
    kept = apply_guarantee(found, estimate_outcomes(test), test, bootstrap=Bootstrap(50))
    assert [kept.drop.value, kept.drop.high, kept.cost.value] == pytest.approx([0, 0, test.scales[-1]])


def copy_images(table, estimates, numbers):
    """The samples of drawn images, with repetition; named so that their hashes keep the drawn order."""
    image = number_images(table.image_id)
    rows = [np.flatnonzero(image == number) for number in numbers]
    copies = np.repeat(np.arange(len(numbers)), [len(part) for part in rows])
    index = np.concatenate(rows)
    names = np.array(sorted((f"copy-{copy:04d}" for copy in range(len(numbers))), key=digest), dtype=object)
    names = names[copies]
    sample_id = np.array([f"{name}/{row}" for name, row in zip(names, index, strict=True)], dtype=object)
    # `select` takes distinct rows only: one image at a time.
    table = OutcomeTable.concat(
        [
            replace(part, sample_id=sample_id[copies == copy], image_id=names[copies == copy])
            for copy, part in enumerate(table.select(part) for part in rows)
        ]
    )
    return table, estimates[index]


def test_resplit_check_draws_with_replacement_and_judges_against_the_known_mean():
    """Every replicate is what `find_guarantee` and `apply_guarantee` do with the images drawn in it."""
    test, calibration = make_outcomes("test", 60), make_outcomes("calibration", 90)
    estimates, alpha = estimate_outcomes(test), 0.12
    guarantee = find_guarantee(estimate_outcomes(calibration), calibration, alpha=alpha, delta=0.3)
    check = run_check(guarantee, estimates, test, num_resplits=20, seed=5)
    assert (check.num_images, check.num_population, check.num_resplits) == (90, 60, 20)

    drawn = np.random.default_rng(5).integers(60, size=(20, 90))
    assert all(len(set(numbers)) < 60 for numbers in drawn)
    certified, failures, costs = 0, [], []
    for numbers in drawn:
        table, copied = copy_images(test, estimates, numbers)
        found = find_guarantee(copied, table, alpha=alpha, delta=0.3, most_questions=4)
        loss = apply_guarantee(found, estimates, test, bootstrap=Bootstrap(1))
        certified += found.is_feasible
        failures.append(found.is_feasible and float(loss.drop.value) > alpha)
        costs += [float(loss.cost.value)] if found.is_feasible else []
    assert certified > 10 and check.num_certified == certified
    assert check.failures.tolist() == failures
    assert check.cost == pytest.approx(np.mean(costs))


def digest(name):
    return hashlib.sha256(name.encode()).digest()


def test_images_are_bet_on_in_the_order_of_a_hash_of_their_ids():
    # SHA-256 starts with ca97... for "a", 3e23... for "b", 2e7d... for "c".
    assert order_images(np.array(["b", "a", "b", "c"], dtype=object)).tolist() == [2, 1, 0]
    assert [digest(name).hex()[:4] for name in "abc"] == ["ca97", "3e23", "2e7d"]


def test_interval_of_the_failure_share_is_clopper_and_pearsons():
    """No failure in 10: 1 - 0.025^(1/10); all 10: 0.025^(1/10); 3 of 10 as tabulated, 6.7% to 65.2%."""
    guarantee = find_guarantee(*two_scales(np.zeros(200)), alpha=0.02, delta=0.1)
    check = run_check(guarantee, *two_scales(np.zeros(50)), num_resplits=10)
    assert check.num_failed == 0 and check.num_certified == 10
    assert check.interval == pytest.approx((0, 1 - 0.025**0.1))
    assert replace(check, failures=np.ones(10, bool)).interval == pytest.approx((0.025**0.1, 1))
    assert replace(check, failures=np.arange(10) < 3).interval == pytest.approx((0.0667, 0.6525), abs=1e-4)


def test_joint_check_fails_where_any_guarantee_fails():
    guarantee = find_guarantee(*two_scales(np.zeros(200)), alpha=0.02, delta=0.1)
    check = run_check(guarantee, *two_scales(np.zeros(50)), num_resplits=4)
    first, second = (replace(check, failures=np.array(fails)) for fails in ([1, 0, 0, 1], [0, 0, 1, 1]))
    joint = join_checks([first, second])
    assert joint is not None and joint.num_failed == 3
    assert join_checks([first, replace(second, num_images=7)]) is None


def two_scales(drops, questions=1):
    """Estimates and outcomes of images with equal drops at the coarser of two scales, price 0.5 apart."""
    drops = np.repeat(np.asarray(drops, dtype=float), questions)
    table = make_outcomes("calibration", len(drops) // questions, questions)
    score = np.stack([0.5 - drops / 2, 0.5 + drops / 2], axis=1).astype(np.float32)
    columns = {
        name: getattr(table, name)[:, [0, 3]]
        for name in ("nll", "reference_tokens", "confidence", "margin", "visual_tokens", "prefill_flops")
    }
    answer = [[row[0], row[3]] for row in table.answer]
    table = replace(table, scales=(1, 144), score=score, answer=answer, **columns)
    return np.tile([0.4, 0.9], (len(drops), 1)), table


def test_joint_level_is_delta_over_the_number_of_guarantees():
    estimates, table = two_scales(np.zeros(400))
    one, five = (
        find_guarantee(estimates, table, alpha=0.02, delta=delta, num_joint=k)
        for delta, k in ((0.02, 1), (0.1, 5))
    )
    assert five.level == pytest.approx(0.02) and five.price == one.price == PRICES[-1]
    # ln(1 / delta) over ln(1 + 0.02 * 0.999 / 0.98): 115 images without a drop at 0.1, 195 at 0.02.
    estimates, table = two_scales(np.zeros(150))
    assert find_guarantee(estimates, table, alpha=0.02, delta=0.1).is_feasible
    assert not find_guarantee(estimates, table, alpha=0.02, delta=0.1, num_joint=5).is_feasible


def test_images_with_more_questions_than_bounded_count_as_so_many():
    """One image of 9 questions, all lost, beside 3 of 1 that keep their answer; at most 3 count: 3 of 6."""
    estimates, table = two_scales([1.0] * 9 + [0.0] * 3)
    image_id = np.array(["large"] * 9 + ["a", "b", "c"], dtype=object)
    table = replace(table, image_id=image_id)
    guarantee = Guarantee(0.1, 0.1, 1, 3, PRICES[-1], 144.0, 50, None, 1.0, 0.0)
    loss = apply_guarantee(guarantee, estimates, table, bootstrap=Bootstrap(1))
    assert loss.drop.value == pytest.approx(0.5) and loss.num_large == 1
    plain = replace(guarantee, most_questions=9)
    loss = apply_guarantee(plain, estimates, table, bootstrap=Bootstrap(1))
    assert loss.drop.value == pytest.approx(0.75) and loss.num_large == 0
    found = find_guarantee(estimates, table, alpha=0.1, delta=0.1, most_questions=3)
    assert found.most_questions == 3 and found.drop == pytest.approx(0)  # at the safest price, the finest
    assert find_guarantee(estimates, table, alpha=0.1, delta=0.1).most_questions == 9


@pytest.mark.parametrize(("alpha", "delta"), [(0.0, 0.1), (0.1, 1.0), (-0.1, 0.1)])
def test_levels_outside_their_range_are_refused(alpha, delta):
    table = make_outcomes("calibration", 5)
    with pytest.raises(ValueError, match=r"guarantee\.(alpha|delta) must lie between 0 and 1"):
        find_guarantee(estimate_outcomes(table), table, alpha=alpha, delta=delta)


@pytest.mark.parametrize(
    ("drop", "num_needed", "words"),
    [
        (0.005, 400, "this would need about 400 calibration images, and there are 50."),
        (0.005, 50, "the 50 calibration images narrowly fail; the same number of similar"),
        (0.005, None, "this would need more than 64 times the 50 calibration images."),
        (0.02, None, "on the 50 calibration images it loses 2.0 points even at its safest price"),
    ],
)
def test_infeasible_is_said_with_its_reason(drop, num_needed, words):
    guarantee = Guarantee(0.01, 0.1, 1, 4, None, 144.0, 50, num_needed, cost=100.0, drop=drop)
    said = write_guarantee([CheckedGuarantee("mine", guarantee, make_loss(0, 0, 0))])
    assert said.startswith(
        "No guarantee: with probability 0.9, a score of at most 1 point below the finest scale is infeasible "
        "for mine: "
    )
    assert words in said


def make_loss(value, low, high, num_large=0):
    drop = Estimate(*(np.array(bound) for bound in (value, low, high)))
    cost = Estimate(*(np.array(bound) for bound in (30.0, 28.0, 32.0)))
    return RealizedLoss(cost, drop, np.zeros(1), 0.95, num_large)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ((0.006, 0.001, 0.012), "loses 0.6 points (95% interval 0.1 to 1.2), which is within the bound"),
        ((0.03, 0.025, 0.04), "loses 3.0 points (95% interval 2.5 to 4.0), which is above the bound"),
        ((0.015, 0.005, 0.03), "the test split does not settle whether the guarantee holds"),
        (
            (-0.006, -0.012, 0.001),
            "gains 0.6 points (95% interval \N{MINUS SIGN}0.1 to 1.2), which is within",
        ),
        (
            (0.0, 0.0, 0.0),
            "mine uses 30 visual tokens and scores like the finest scale, which is within the bound",
        ),
    ],
)
def test_what_the_test_split_says_of_a_guarantee(loss, words):
    """A point estimate alone neither confirms nor refutes it: the interval decides."""
    guarantee = Guarantee(0.02, 0.1, 1, 4, 0.1, 144.0, 250, None, 31.0, 0.006)
    assert words in write_guarantee([CheckedGuarantee("mine", guarantee, make_loss(*loss))])


def test_several_guarantees_say_what_holds_of_all():
    def write(number, num_joint, num_large=0):
        guarantee = Guarantee(0.02, 0.1, num_joint, 4, 0.1, 144.0, 250, None, 31.0, 0.006)
        checked = [
            CheckedGuarantee(f"p{k}", guarantee, make_loss(0.006, 0.001, 0.012, num_large))
            for k in range(number)
        ]
        caption = tabulate_guarantees(checked, {each.name: 144.0 for each in checked}).caption
        return write_guarantee(checked), caption

    assert all("together" not in text for text in write(1, 1))
    alone = "Each of 3 guarantees holds with that probability on its own; all together with at least 0.7"
    assert all(alone in text for text in write(3, 1))
    assert all("all together with no stated probability" in text for text in write(10, 1))
    joint = "All 3 guarantees hold together with that probability, as each is certified at level 0.1 / 3"
    assert all(joint in text for text in write(3, 3))
    large = "2 test images have more than 4 questions and count as that many here"
    assert all(large in text for text in write(1, 1, num_large=2))


def change(table, **columns):
    return replace(
        table, **{name: values.astype(getattr(table, name).dtype) for name, values in columns.items()}
    )


def degenerate_tables():
    table = make_outcomes("test", 150)
    score, tokens = table.score, table.visual_tokens
    yield "all right", change(table, score=np.ones_like(score))
    yield "all wrong", change(table, score=np.zeros_like(score))
    yield "one image", table.select(slice(0, 4))
    yield "one question", table.select(slice(0, 1))
    yield "equal costs", change(table, visual_tokens=np.full_like(tokens, 144))
    yield "finer is cheaper", change(table, visual_tokens=tokens[:, ::-1].copy())
    yield "coarser is better", change(table, score=score[:, ::-1].copy())
    yield "no drop at any scale", change(table, score=np.repeat(score[:, :1], 4, axis=1))
    yield "finest always fails", change(table, score=score * np.array([1, 1, 1, 0]))
    yield "only the finest is right", change(table, score=score * 0 + np.array([0, 0, 0, 1]))
    columns = ("score", "nll", "reference_tokens", "confidence", "margin", "visual_tokens", "prefill_flops")
    one = {name: getattr(table, name)[:, 3:] for name in columns}
    yield "one scale", replace(table, scales=(144,), answer=[row[3:] for row in table.answer], **one)
    yield "fractional scores", change(table, score=score * 0.3)


@pytest.mark.parametrize(("name", "table"), list(degenerate_tables()), ids=lambda value: str(value)[:24])
@pytest.mark.parametrize("constant", [False, True])
def test_degenerate_tables_end_in_numbers_and_true_sentences(name, table, constant):
    estimates = estimate_outcomes(table)[:, -len(table.scales) :]
    if constant:
        estimates = np.full_like(estimates, 0.5)
    guarantee = find_guarantee(estimates, table, alpha=0.02, delta=0.1)
    loss = apply_guarantee(guarantee, estimates, table, bootstrap=Bootstrap(20))
    check = run_check(guarantee, estimates, table, num_resplits=20)
    checked = [CheckedGuarantee("mine", guarantee, loss, check)] * 2
    text = f"{write_guarantee(checked)} {tabulate_guarantees(checked, {'mine': 144.0})}"
    text += json.dumps(collect_guarantee(checked[0], 144.0), allow_nan=False)
    assert "nan" not in text and "None" not in text
    assert (check.cost is None) == (check.num_certified == 0)
    if name in ("one image", "one question"):
        # At least the 115 images that it takes without any drop.
        assert not guarantee.is_feasible
        assert guarantee.num_needed is None or guarantee.num_needed >= 115
    if name in ("all right", "all wrong", "no drop at any scale", "coarser is better", "one scale"):
        assert guarantee.price == PRICES[-1] and check.num_failed == 0
    if name == "only the finest is right" and constant:
        # The cheapest scale at every price, and wrong: a drop of 1.
        assert not guarantee.is_feasible and guarantee.drop == 1 and guarantee.num_needed is None


def test_no_calibration_image_is_left():
    table = make_outcomes("calibration", 5).select(np.zeros(20, dtype=bool))
    guarantee = find_guarantee(np.zeros((0, 4)), table, alpha=0.02, delta=0.1)
    assert (guarantee.num_images, guarantee.price, guarantee.cost, guarantee.drop) == (0, None, None, None)
    test = make_outcomes("test", 20)
    loss = apply_guarantee(guarantee, estimate_outcomes(test), test, bootstrap=Bootstrap(5, 0.9))
    assert check_guarantee(guarantee, estimate_outcomes(test), test) is None
    checked = [CheckedGuarantee("mine", guarantee, loss)]
    assert "its calibrator was fitted on every calibration image" in write_guarantee(checked)
    assert "nan" not in str(tabulate_guarantees(checked, {"mine": 144.0}))


def test_a_guarantee_rests_on_images_that_the_calibrator_has_not_seen(tmp_path):
    labels = {
        split: make_labels(60, seed, split=split) for seed, split in enumerate(("train", "calibration"))
    }
    write_labels(tmp_path / "labels", labels)
    loaded = []
    for calibrator in (None, Isotonic()):
        folder = tmp_path / str(calibrator is None)
        settings = TrainingSettings(seed=0, validation_fraction=0.3, calibrator=calibrator)
        train_predictors([QuestionOnly()], labels=tmp_path / "labels", folder=folder, settings=settings)
        (trained,) = (folder / "question_only").glob("*/config.json")
        loaded.append(QuestionOnly.load(trained.parent))
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
