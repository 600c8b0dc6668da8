"""Tables and lines that training and checks of a backbone print."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from experiments.reporting.numbers import format_tokens
from experiments.reporting.tables import format_table
from experiments.training.trained import TrainingRecord
from m3_backbone.outcomes.options import Options

if TYPE_CHECKING:
    from m3_backbone.conformance.subject import Result


def format_records(records: list[TrainingRecord], options: Options | None = None) -> str:
    """Return a table of trainings on the same labels, followed by reference values.

    `options` are those of the labels, if the outcomes were imported.
    """
    first, noun = records[0], "tokens" if options is None else options.cost
    scales = first.scales if options is None else options.names
    has_gap = first.oracle_value > first.mix_value + 1e-9
    rows = [["predictor", "value", "share of gap", noun, "score", "parameters", "MFLOPs", "seconds"]]
    for record in records:
        rows.append(
            [
                record.name,
                f"{record.value:.4f}",
                f"{record.recovered:.1%}" if has_gap else "-",
                _format_default(record, options),
                f"{record.default_score:.4f}",
                f"{record.num_parameters:,}",
                f"{record.flops / 1e6:.2f}",
                f"{record.seconds:.1f}",
            ]
        )
    rows.append(["budgeted oracle", f"{first.oracle_value:.4f}", "100.0%" if has_gap else "-", *[""] * 5])
    fixed = ", ".join(f"{scale}: {score:.4f}" for scale, score in zip(scales, first.fixed_score, strict=True))
    return "\n".join(
        [
            format_table(rows),
            f"fixed scales on validation: {fixed}",
            f"value: mean score over log-spaced budgets on {first.num_validation} validation samples, on "
            "which epochs, shares, trees and neighbours were selected too: values and ranking are optimistic",
            f"{noun} and score: on the calibration split at the default price",
        ]
    )


def _format_default(record: TrainingRecord, options: Options | None) -> str:
    """Return the mean cost at the default price, in visual tokens or in the unit of the imported costs."""
    cost = record.default_cost
    return f"{cost:.1f}" if options is None else format_tokens(cost * options.unit)


def format_record(record: TrainingRecord, options: Options | None = None) -> str:
    """Return a line on one training, for a sweep; `options` as in `format_records`."""
    noun = "visual tokens" if options is None else options.cost
    return (
        f"{record.name}: validation value {record.value:.4f}, {_format_default(record, options)} "
        f"{noun} and score {record.default_score:.4f} by default, {record.seconds:.1f} s"
    )


def format_checks(name: str, results: "Sequence[Result]") -> str:
    """Return a table of the checks of a backbone, what failed, and how many checks had which outcome."""
    rows = [["check", "outcome"], *([result.check, result.outcome] for result in results)]
    lines = [format_table(rows)]
    lines += [f"{result.check}: {result.reason}" for result in results if result.reason]
    counts = Counter(result.outcome for result in results)
    summary = ", ".join(f"{counts[outcome]} {outcome}" for outcome in ("ok", "failed", "not applicable"))
    return "\n".join([*lines, f"{name}: {summary}"])
