"""The scorers against rows computed by the official ones, and what must hold for any text at all."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.tasks.scoring import METRICS, check_references, normalize, score
from tests.paths import FIXTURES

FIXTURE = FIXTURES / "scoring.json"
ROWS = json.loads(FIXTURE.read_text(encoding="utf-8"))

texts = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        ["", " ", "yes", "No.", "A", "b.", "12%", "1e3", "nan", "-inf", "two", "u.s.a.", "ß", "İ"]
    ),
    st.text(alphabet="aAthe 0123.,%'s-/\n\t", max_size=20),
)
reference_lists = st.lists(texts, min_size=1, max_size=12)
metrics = st.sampled_from(sorted(METRICS))


@pytest.mark.parametrize("metric", sorted({row["metric"] for row in ROWS}))
def test_agrees_with_the_official_scorer(metric):
    rows = [row for row in ROWS if row["metric"] == metric]
    assert rows
    for row in rows:
        assert score(metric, row["prediction"], row["references"]) == pytest.approx(
            row["score"], abs=1e-12
        ), row


# Corners that the fixture does not reach, worked out by hand from the official code.
@pytest.mark.parametrize(
    ("metric", "prediction", "references", "expected"),
    [
        ("exact", " Red.\n", ["red"], 1),
        ("exact", "dark red", ["red", "dark red"], 1),
        ("exact", "reddish", ["red"], 0),
        ("vqa_soft_accuracy", "3", ["three"] * 3 + ["x"] * 7, 0.9),  # the three see two agreeing others each
        ("vqa_soft_accuracy", "yes", ["yes"], 0),  # nobody else said so
        ("vqa_soft_accuracy", "the cat's", ["cat 's"] * 10, 1),
        ("vqa_soft_accuracy", "t-shirt", ["t shirt"] * 10, 1),
        ("vqa_soft_accuracy", "t- shirt", ["t shirt"] * 10, 1),
        (
            "vqa_soft_accuracy",
            "a-b - c",
            ["ab c"] * 10,
            1,
        ),  # one mark beside a space: all of its kind are dropped
        ("vqa_soft_accuracy", "3.50", ["350"] * 10, 0),  # a point before a digit stays
        ("vqa_soft_accuracy", "." * 33 + "x", ["x"] * 10, 0),  # the 33rd full stop stays
        ("vqa_soft_accuracy", "." * 32 + "x", ["x"] * 10, 1),
        ("relaxed_accuracy", "5", ["5%"], 0),
        ("relaxed_accuracy", "0.05", ["5%"], 1),
        ("relaxed_accuracy", "104.9", ["100"], 1),
        ("relaxed_accuracy", "105.1", ["100"], 0),
        ("relaxed_accuracy", "0.0", ["0"], 0),  # zero is compared as text
        ("relaxed_accuracy", "1,000", ["1000"], 0),  # a comma makes it a text
        ("relaxed_accuracy", " yes", ["yes"], 0),
        ("relaxed_accuracy", "%", ["%"], 1),
        ("anls", "ab", ["abcd"], 0.5),  # the threshold itself counts
        ("anls", "ab", ["abcde"], 0),
        ("anls", "a  b", ["a b"], 1),
        ("anls", "x", ["ß"], 0.5),  # one edit over the length of "SS"
        ("anls", "", [""], 1),
        ("multiple_choice_letter", "b", ["B"], 1),
        ("multiple_choice_letter", "B.x", ["B"], 1),
        ("multiple_choice_letter", "b.", ["B"], 0),
        ("multiple_choice_letter", "B) x", ["B"], 0),
        ("yes_no", " YES\n", ["yes"], 1),
        ("yes_no", "yes.", ["yes"], 0),
    ],
)
def test_corners(metric, prediction, references, expected):
    assert score(metric, prediction, references) == pytest.approx(expected)


# Values of the official code, of lmms-eval where there are two scorers and of LLaVA for those named after it.
VALUES: dict[str, list[tuple[str, list[str], float]]] = {
    "exact": [
        ("yes.", ["yes"], 1),
        ("yes!", ["yes"], 0),
        ("red .", ["red"], 0),
        ("caf\u00e9", ["cafe\u0301"], 0),  # NFC and NFD
    ],
    "vqa_soft_accuracy": [
        ("black", ["Black."] * 10, 1),
        ("two", ["2"] * 10, 1),
        ("twenty", ["20"] * 10, 0),
        ("10,000", ["10000"] * 10, 1),
        ("$5.50", ["5.50"] * 10, 0),
        ("red", ["red"] * 3 + ["blue"] * 7, 0.9),
    ],
    "relaxed_accuracy": [
        ("2008", ["2010"], 1),
        ("1,000", ["1000"], 0),
        ("5%", ["0.05"], 1),
        ("5", ["5%"], 0),
        ("105", ["100"], 1),
        ("94.9", ["100"], 0),
    ],
    "anls": [("ab", ["a"], 0.5), ("total: 5", ["Total:  5"], 1)],
    "multiple_choice_letter": [
        ("B", ["B"], 1),
        ("B.", ["B"], 1),
        ("b", ["B"], 1),
        ("B. cat", ["B"], 1),
        ("(B)", ["B"], 0),
        ("B)", ["B"], 0),
        ("The answer is B.", ["B"], 0),
    ],
    "multiple_choice_letter_llava": [
        ("B", ["B"], 1),
        ("B.", ["B"], 0),
        ("b", ["B"], 0),
        ("B. cat", ["B"], 1),
        ("B\ncat", ["B"], 1),
        ("(B)", ["B"], 0),
        ("B)", ["B"], 0),
        ("The answer is B.", ["B"], 1),
        ("The answer is B", ["b"], 1),
        ("The answer is A because The answer is B.", ["B"], 1),  # with the full stop goes before without
        ("F", ["E"], 0),
    ],
    "yes_no": [
        ("Yes", ["yes"], 1),
        ("Yes.", ["yes"], 0),
        ("no, it is not", ["no"], 0),
        ("maybe", ["yes"], 0),
    ],
    "yes_no_llava": [
        ("Yes", ["yes"], 1),
        ("Yes.", ["yes"], 1),
        ("no, it is not", ["no"], 1),
        ("There is not any.", ["no"], 1),
        ("Yes. No.", ["yes"], 1),  # the first sentence counts
        ("maybe", ["yes"], 1),  # all that does not deny is yes
        ("", ["yes"], 1),
        ("NO", ["no"], 0),
        ("\nno", ["no"], 0),
    ],
}


@pytest.mark.parametrize(
    ("metric", "prediction", "references", "expected"),
    [(metric, *row) for metric, rows in VALUES.items() for row in rows],
)
def test_values_of_the_official_scorers(metric, prediction, references, expected):
    assert score(metric, prediction, references) == pytest.approx(expected)


def test_every_metric_has_such_values():
    assert set(METRICS) - set(VALUES) == {"pope_exact"}  # another name of yes_no


@pytest.mark.parametrize(
    ("num_agreeing", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (7, 1.0), (10, 1.0)]
)
def test_vqa_score_by_number_of_agreeing_annotators(num_agreeing, expected):
    references = ["blue"] * num_agreeing + ["red"] * (10 - num_agreeing)
    assert score("vqa_soft_accuracy", "blue", references) == pytest.approx(expected)


def test_vqa_normalization():
    assert normalize("The Zero, one; TEN a  dogs?") == "0 1 10 dogs"
    assert normalize("Couldnt've isnt oclock") == "couldn't've isn't o'clock"
    assert normalize("U.S.A. at 3.5") == "usa at 3.5"


@given(metric=metrics, prediction=texts, references=reference_lists)
@settings(max_examples=300, deadline=None)
def test_score_is_a_probability_and_the_order_of_references_is_nothing(metric, prediction, references):
    value = score(metric, prediction, references)
    assert isinstance(value, float)
    assert 0 <= value <= 1
    assert score(metric, prediction, references[::-1]) == value
    assert score(metric, prediction, sorted(references)) == value


@given(
    metric=metrics.filter(lambda name: name != "vqa_soft_accuracy"),
    prediction=texts,
    references=reference_lists,
)
@settings(max_examples=300, deadline=None)
def test_score_is_the_best_over_the_references(metric, prediction, references):
    alone = [score(metric, prediction, [reference]) for reference in references]
    assert score(metric, prediction, references) == max(alone)


# LLaVA's scorers read yes, no or a letter from A to E out of an answer, and any other reference is refused.
@given(metric=metrics.filter(lambda name: not name.endswith("_llava")), text=texts)
@settings(max_examples=300, deadline=None)
def test_the_reference_itself_is_right(metric, text):
    # "nan" is unequal to itself for the official relaxed accuracy, and infinity is nan away from itself.
    if metric != "relaxed_accuracy" or not any(word in text.lower() for word in ("nan", "inf")):
        assert score(metric, text, [text] * 10) == 1


@pytest.mark.parametrize("metric", sorted(METRICS))
@pytest.mark.parametrize(
    "prediction", ["", "\n", "\0", "\ud800", "🦙" * 3, "9" * 5000, "x " * 20_000, "'" * 1000]
)
def test_nasty_answers_are_merely_wrong(metric, prediction):
    assert score(metric, prediction, ["a llama"] * 10) == 0


def test_unknown_metric_names_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown metric 'bleu'.*vqa_soft_accuracy"):
        score("bleu", "a", ["a"])


@pytest.mark.parametrize("references", [[], (), "yes"])
def test_references_must_be_a_list(references):
    with pytest.raises(ValueError, match="references must be a list"):
        score("exact", "yes", references)


@pytest.mark.parametrize(
    ("metric", "references", "complaint"),
    [
        ("exact", [], "no reference"),
        ("vqa_soft_accuracy", ["a", "a", "a"], "4 annotators"),
        ("yes_no", ["maybe"], "yes or no"),
        ("multiple_choice_letter", ["2"], "option letters"),
        ("multiple_choice_letter", ["AB"], "option letters"),
        ("multiple_choice_letter_llava", ["2"], "option letters"),
        ("multiple_choice_letter_llava", ["F"], "letters from A to E"),
        ("yes_no_llava", ["maybe"], "yes or no"),
        ("rouge", ["a"], "unknown metric"),
    ],
)
def test_references_that_no_answer_can_satisfy_are_refused(metric, references, complaint):
    with pytest.raises(ValueError, match=complaint):
        check_references(metric, references)


@pytest.mark.parametrize(
    ("metric", "references"),
    [
        ("exact", [""]),
        ("vqa_soft_accuracy", ["a"] * 4),
        ("yes_no", ["Yes"]),
        ("multiple_choice_letter", ["c"]),
        ("anls", ["x"]),
    ],
)
def test_good_references_pass(metric, references):
    check_references(metric, references)
