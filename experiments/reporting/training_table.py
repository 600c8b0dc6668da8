"""The table that training prints."""

from experiments.reporting.text_table import format_table
from experiments.training.record import TrainingRecord


def format_records(records: list[TrainingRecord]) -> str:
    """A table of trainings on the same labels, the references below them."""
    first = records[0]
    has_gap = first.oracle_value > first.mix_value + 1e-9
    rows = [["predictor", "value", "of the gap", "tokens", "score", "parameters", "MFLOPs", "seconds"]]
    for record in records:
        rows.append(
            [
                record.name,
                f"{record.value:.4f}",
                f"{record.recovered:.1%}" if has_gap else "-",
                f"{record.default_cost:.1f}",
                f"{record.default_score:.4f}",
                f"{record.num_parameters:,}",
                f"{record.flops / 1e6:.2f}",
                f"{record.seconds:.1f}",
            ]
        )
    rows.append(["budgeted oracle", f"{first.oracle_value:.4f}", "100.0%" if has_gap else "-", *[""] * 5])
    fixed = ", ".join(
        f"{scale}: {score:.4f}" for scale, score in zip(first.scales, first.fixed_score, strict=True)
    )
    return "\n".join(
        [
            format_table(rows),
            f"fixed scales on validation: {fixed}",
            f"value: mean score over log-spaced budgets on {first.num_validation} validation samples, on "
            "which epochs, shares, trees and neighbours were chosen too: values and ranking are optimistic",
            "tokens and score: calibration split, default price",
        ]
    )
