"""Table of our scores and the published ones."""

from experiments.evaluation.comparison import Comparison
from experiments.evaluation.published import Published
from experiments.evaluation.statistics import Estimate
from experiments.reporting.numbers import (
    MISSING,
    format_difference,
    format_percent,
    format_score,
    format_tokens,
    has_interval,
)
from experiments.reporting.tables import Table


def tabulate_published(comparison: Comparison, published: Published) -> Table:
    """Tabulate our score, the published score and their difference at each common scale.

    The intervals are those of our scores. Agreement is judged only if the test splits are the same.
    """
    split = _describe_split(published, comparison.num_samples)
    judged, rows = published.relation == "same", []
    for column, scale in enumerate(comparison.scales):
        if scale in published.scores:
            ours = comparison.fixed_score[column]
            rows.append(
                (
                    f"scale {scale}",
                    format_tokens(comparison.fixed_cost.value[column]),
                    "-",
                    *_compare(ours, published.scores[scale], judged),
                )
            )
    if published.oracle_score is not None:
        oracle_cost, oracle_score = comparison.rule("coarsest")
        rows.append(
            (
                "oracle, authors' convention",
                format_tokens(oracle_cost.value),
                "-" if published.oracle_scale is None else f"{published.oracle_scale:g}",
                *_compare(oracle_score, published.oracle_score, judged),
            )
        )
    caption = (
        f"Our scores and the published ones ({published.source}: {published.table}) in percent, "
        f"difference in points with the interval of ours; {split}; tokens of the published oracle are per "
        "tile if there are tiles"
    )
    header = ["", "tokens, ours", "tokens, published", "ours", "published", "difference"]
    header += ["agrees"] if judged else []
    return Table(caption, tuple(header), tuple(rows), name="published")


def _describe_split(published: Published, num_samples: int) -> str:
    """Return a clause on the relation of our test split to the split of the published values."""
    ours, theirs = f"our test split is {num_samples:,} questions", published.split
    unjudged = "so agreement is not judged"
    return {
        "same": f"{ours}, the official split ({theirs})",
        "part": f"{ours}, a part of the official split ({theirs}), {unjudged}",
        "other": f"{ours} of another official split ({published.own_split}, theirs: {theirs}), {unjudged}",
        "unknown": f"{ours} of an official split unnamed by the task (theirs: {theirs}), {unjudged}",
    }[published.relation]


def _compare(ours: Estimate, theirs: float, judged: bool) -> tuple[str, ...]:
    difference = Estimate(ours.value - theirs, ours.low - theirs, ours.high - theirs)
    agrees = "yes" if ours.low <= theirs <= ours.high else "no"
    if not has_interval(ours):
        agrees = MISSING
    cells = (format_score(ours), format_percent(theirs), format_difference(difference))
    return (*cells, agrees) if judged else cells
