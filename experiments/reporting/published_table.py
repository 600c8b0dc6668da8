"""Our scores beside the published ones."""

from experiments.evaluation.figures import Comparison
from experiments.evaluation.published import Published
from experiments.evaluation.statistics import Estimate
from experiments.reporting.numbers import format_difference, format_percent, format_score, format_tokens
from experiments.reporting.tables import Table


def tabulate_published(comparison: Comparison, published: Published) -> Table:
    """Per scale that both have: ours with its interval, theirs, and the difference with the same interval."""
    rows = []
    for column, scale in enumerate(comparison.scales):
        if scale in published.scores:
            ours = comparison.fixed.score[column]
            rows.append(
                (
                    f"scale {scale}",
                    format_tokens(comparison.fixed.cost.value[column]),
                    "-",
                    *_compare(ours, published.scores[scale]),
                )
            )
    if published.oracle_score is not None:
        oracle = comparison.oracles["coarsest"]
        rows.append(
            (
                "oracle, authors' convention",
                format_tokens(oracle.cost.value),
                "-" if published.oracle_scale is None else f"{published.oracle_scale:g}",
                *_compare(oracle.score, published.oracle_score),
            )
        )
    caption = (
        f"Ours beside the published values ({published.source}: {published.table}); scores in percent, "
        f"difference in points with the interval of ours, on {comparison.num_samples:,} questions; their "
        "oracle's tokens are per tile where there are tiles"
    )
    header = ("", "tokens, ours", "tokens, published", "ours", "published", "difference", "agrees")
    return Table(caption, header, tuple(rows), name="published")


def _compare(ours: Estimate, theirs: float) -> tuple[str, str, str, str]:
    difference = Estimate(ours.value - theirs, ours.low - theirs, ours.high - theirs)
    agrees = "yes" if ours.low <= theirs <= ours.high else "no"
    return format_score(ours), format_percent(theirs), format_difference(difference), agrees
