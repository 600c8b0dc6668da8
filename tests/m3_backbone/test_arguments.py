"""Types of arguments: what they accept, and how what they accept is said."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
import pytest
from annotated_types import Len

from m3_backbone.arguments import (
    ClosedFraction,
    HalfOpenFraction,
    NonNegativeInt,
    OpenFraction,
    PositiveFloat,
    PositiveInt,
    accepts,
    checked,
    describe_type,
)


@pytest.mark.parametrize(
    ("annotation", "right", "wrong", "words"),
    [
        (PositiveInt, [1, np.int64(3)], [0, -1, True, 1.0, "1", None], "a whole number from 1 up"),
        (NonNegativeInt | None, [0, None], [-1, False], "a whole number from 0 up, or null"),
        (PositiveFloat, [1e-9, 2], [0, float("nan"), float("inf"), True, "1"], "a number above 0"),
        (OpenFraction, [0.5], [0, 1], "a number above 0 and below 1"),
        (HalfOpenFraction, [0, 0.99], [1, -0.1], "a number from 0 to below 1"),
        (ClosedFraction, [0, 1], [1.01], "a number from 0 to 1"),
        (bool, [True], [1, "yes", None], "true or false"),
        (str, ["", "a"], [1, None], "text"),
        (Literal["a", "b"], ["a"], ["c", 1], "one of a, b"),
        (Annotated[Sequence[int], Len(1)], [[1], (2, 3)], [[], 1, "1", ["a"]], None),
        (tuple[PositiveInt, PositiveInt], [[1, 6], (1, 6)], [[1], [0, 6], 3], None),
        (Mapping[str, PositiveInt], [{"a": 1}, {}], [{"a": 0}, [1], 3], None),
        (Callable[[int], int], [abs], [3, "abs", None], "an object {_target_: CLASS, _partial_: true, ...}"),
        (object, [1, "a", None], [], None),
    ],
    ids=str,
)
def test_values_of_a_type(annotation, right, wrong, words):
    assert [value for value in right if not accepts(annotation, value)] == []
    assert [value for value in wrong if accepts(annotation, value)] == []
    assert words is None or describe_type(annotation) == words


class Brush:
    @checked
    def __init__(self, canvas, *, width: PositiveInt = 3, **others: object) -> None:
        self.width = width


def test_a_wrong_argument_is_named_with_what_is_allowed():
    assert Brush("any", width=2, height="unchecked").width == 2
    with pytest.raises(ValueError, match=r"^width=0: give a whole number from 1 up$"):
        Brush("any", width=0)
