"""What a task needs: `python -m experiments.granularity task=NAME backbone=NAME`, on finished labels.

Per kind of question, and per size and number of what is shown, the smallest scale within a point of the best;
and how far question and image tell a sample's smallest sufficient scale.
"""

import logging
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from experiments.config import entry_point
from experiments.evaluation.needs import Need, map_attributes, tabulate_needs
from experiments.evaluation.scale_classifier import classify_smallest_scale, recover_gap
from experiments.label import format_command
from experiments.labels.held_out import open_test
from experiments.reporting.needs_display import draw_needs
from experiments.reporting.numbers import format_percent
from experiments.reporting.tables import Table
from m3_backbone.labels import Labels, read_labels
from m3_backbone.shards import read_manifest

log = logging.getLogger(__name__)


@entry_point("granularity")
def main(config: DictConfig) -> None:
    labels, output = Path(config.paths.labels), Path(HydraConfig.get().runtime.output_dir)
    manifest = read_manifest(labels)
    title = f"{manifest['backbone']} on {manifest['task']}"
    test, _ = open_test(
        labels,
        records=Path(config.paths.evaluations),
        allow_unrecorded=config.allow_unrecorded,
        command=format_command("granularity", list(HydraConfig.get().overrides.task)),
        configuration=OmegaConf.to_yaml(config, resolve=True),
    )
    needs = tabulate_needs(test.outcomes, config.margin)
    maps = map_attributes(test.outcomes, config.margin)
    tables = [tabulate(needs, test.outcomes.scales, config.margin, title)]
    try:
        train = read_labels(labels, "train")
        accuracy = classify_smallest_scale(train, test, config.seed)
        tables.append(tabulate_classifiers(accuracy, find_shares(train, test, config.seed)))
    except (ValueError, FileNotFoundError) as error:
        # Labels of a test split alone show what is needed, and teach nobody to tell it.
        log.warning("who can tell the smallest scale is left out: %s", error)
    text = "\n\n".join(table.to_markdown() for table in tables)
    (output / "granularity.md").write_text(f"{text}\n", encoding="utf-8")
    figure = draw_needs(needs, maps, test.outcomes.scales, f"{title}, test split")
    for kind in ("png", "pdf", "svg"):
        figure.savefig(output / f"granularity.{kind}", dpi=150)
    print("\n\n".join(map(str, tables)))
    print(f"\ntables and heat map: {output / 'granularity.*'}")


def tabulate(needs: list[Need], scales: tuple[int, ...], margin: float, title: str) -> Table:
    """Mean score per scale and the smallest sufficient one."""
    rows = [
        (need.name, f"{need.num_samples:,}", *map(format_percent, need.scores), str(scales[need.column]))
        for need in needs
    ]
    caption = (
        f"{title}: score in percent at each scale, and the smallest scale within {100 * margin:g} of the best"
    )
    return Table(caption, ("kind", "questions", *map(str, scales), "needed"), tuple(rows))


def find_shares(train: Labels, test: Labels, seed: int) -> dict[str, float]:
    """Those of `recover_gap`; none, with a warning, where there is no gap."""
    try:
        return recover_gap(train, test, seed)
    except ValueError as error:
        log.warning("shares of the gap are left out: %s", error)
        return {}


def tabulate_classifiers(accuracy: dict[str, float], shares: dict[str, float]) -> Table:
    """Of `classify_smallest_scale` and `recover_gap`."""
    rows = tuple(
        (name, format_percent(value), format_percent(shares[name]) if name in shares else "-")
        for name, value in accuracy.items()
    )
    caption = (
        "Smallest sufficient scale, where there is one, told from what is known: accuracy in percent; and "
        "the share of the gap from mix to budgeted oracle, in percent, that a policy knowing it recovers"
    )
    return Table(caption, ("known", "accuracy", "of the gap"), rows)


if __name__ == "__main__":
    main()
