"""Checks that every backbone has to pass: `tokenscale check-backbone`, or as tests.

As tests, with pytest:

    from m3_backbone.conformance import CHECKS, Subject

    SUBJECT = Subject(lambda: MyBackbone("folder"))

    @pytest.mark.parametrize("check", CHECKS)
    def test_backbone_conforms(check):
        check(SUBJECT)

A check raises `Failed`, an AssertionError, if the backbone breaks the contract, and `NotApplicable`, by which
pytest skips the test, if the contract says nothing about this backbone.
"""

from m3_backbone.conformance.answers import ANSWER_CHECKS
from m3_backbone.conformance.costs import COST_CHECKS
from m3_backbone.conformance.inputs import INPUT_CHECKS
from m3_backbone.conformance.state import STATE_CHECKS
from m3_backbone.conformance.subject import (
    Check,
    Failed,
    NotApplicable,
    Result,
    Subject,
    run_checks,
    select_checks,
)
from m3_backbone.conformance.vision import VISION_CHECKS

CHECKS: tuple[Check, ...] = (*COST_CHECKS, *ANSWER_CHECKS, *VISION_CHECKS, *INPUT_CHECKS, *STATE_CHECKS)

__all__ = ["CHECKS", "Check", "Failed", "NotApplicable", "Result", "Subject", "run_checks", "select_checks"]
