"""Summary of a labelling, as the command prints it."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from experiments.labels.division import NEAR_TIE
from experiments.labels.folder import LabelFolder
from m3_backbone.outcomes.table import HELD_OUT


@dataclass(frozen=True)
class LabelSummary:
    """Samples per split, mean scores of every split except test, and number of skipped samples per reason.

    `num_missing` files are still to be made by runs on other parts. `replaced` is the folder of the former
    labels after `overwrite`. `num_near_ties` counts answers with a margin below `NEAR_TIE`.
    """

    folder: Path
    scales: tuple[int, ...]
    counts: dict[str, int] = field(default_factory=dict)
    accuracy: dict[str, list[float]] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    num_near_ties: int = 0
    num_missing: int = 0
    replaced: Path | None = None
    skipped_file: Path | None = None

    def describe(self) -> str:
        """Return the numbers of answered and skipped samples as text."""
        return f"{sum(self.counts.values()):,} samples, {sum(self.skipped.values()):,} skipped"

    def __str__(self) -> str:
        if self.num_missing:
            return f"this part is done; {self.num_missing:,} files of other parts are still missing"
        lines = [
            f"{'split':<12}{'samples':>9}   score in % at" + "".join(f" {scale:>6}" for scale in self.scales)
        ]
        for split, count in self.counts.items():
            shares = "".join(
                f" {100 * share:>{max(6, len(str(scale)))}.1f}"
                for scale, share in zip(self.scales, self.accuracy.get(split, ()), strict=False)
            )
            if count and split == HELD_OUT:
                shares = "held out: shown by recorded evaluations only"
            lines.append(f"{split:<12}{count:>9,}{'':>16}{shares}")
        num_skipped = sum(self.skipped.values())
        reasons = f", with reasons in {self.skipped_file}" if num_skipped else ""
        lines.append(f"skipped: {num_skipped:,} samples{reasons}")
        if self.skipped:
            lines += [f"{count:>8,} x {reason}" for reason, count in Counter(self.skipped).most_common(10)]
        if self.num_near_ties:
            num_answers = len(self.scales) * sum(self.counts.values())
            lines.append(
                f"near ties: {self.num_near_ties:,} of {num_answers:,} answers lead by less than "
                f"{NEAR_TIE:g} nats; rounding on another machine may change them"
            )
        if self.replaced is not None:
            lines.append(f"the former labels are kept in {self.replaced}")
        return "\n".join(lines)


def summarize(target: LabelFolder) -> LabelSummary:
    """Return the summary of a finished folder."""
    manifest = target.manifest
    reasons = dict(Counter(row["reason"] for row in target.read_skipped()))
    return LabelSummary(
        target.path,
        target.scales,
        manifest["counts"],
        manifest["accuracy"],
        reasons,
        manifest["near_ties"]["num_answers"],
        skipped_file=target.skipped_file,
    )
