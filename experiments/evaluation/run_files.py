"""What an evaluation leaves for programs: `metrics.json`, `draws.safetensors` and `milliseconds.json`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.evaluation.draws import DRAWS, collect_draws, write_draws
from experiments.evaluation.figures import Comparison
from experiments.evaluation.metrics import collect_account, write_metrics
from experiments.evaluation.risk import CheckedGuarantee

METRICS, MILLISECONDS = "metrics.json", "milliseconds.json"


def write_run(
    folder: Path,
    metrics: Mapping[str, Any],
    comparison: Comparison,
    others: Sequence[Comparison],
    guarantees: Sequence[CheckedGuarantee],
) -> None:
    """Write them, `metrics` together with what the accounts of `others` add to it.

    Milliseconds are another number every time: they stay out of what can be compared byte by byte.
    """
    counted = {other.account.key: other for other in others}
    timed = counted.pop("milliseconds", None)
    if timed is not None:
        write_metrics(folder / MILLISECONDS, collect_account(timed))
    # Draws go first and come last: where they are, they are those of the metrics.
    (folder / DRAWS).unlink(missing_ok=True)
    accounts = {key: collect_account(other) for key, other in counted.items()}
    write_metrics(folder / METRICS, {**metrics, **accounts})
    write_draws(folder, collect_draws(comparison, list(counted.values()), guarantees))
