"""Tabulate which scale the questions of a labelled task need, by question type and size.

Tabulates, per question type and per size and number of items, the smallest scale within a point of the best;
how well question and image predict the smallest sufficient scale of a sample; and whether a policy that knows
the attributes of a sample gains more than one that has question and image, with intervals and an equivalence
margin.

The models are fitted on the train split and their prices chosen on calibration; their comparison on the test
split is recorded like an evaluation, with a digest of each model.

Examples:
    tokenscale granularity                                    # the embedded backbone on `scenes`
    tokenscale granularity task=textvqa backbone=m3_llava_7b  # another task and backbone
    tokenscale granularity margin=0.02  # a scale suffices within two points of the best
"""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from experiments.config import entry_point, format_command


@entry_point("granularity")
def main(config: DictConfig) -> None:
    from experiments.evaluation.comparison import check_settings
    from experiments.evaluation.known_facts import check_margin
    from experiments.evaluation.needs import map_attributes, tabulate_needs
    from experiments.labels.division import find_label_banners
    from experiments.labels.held_out import open_test
    from experiments.reporting import needs as needs_tables
    from experiments.reporting.findings import describe_record
    from experiments.reporting.needs import draw_needs, fit_models, judge_models
    from experiments.reporting.page import save_figure
    from experiments.tasks.base import SPLITS
    from experiments.tasks.sizes import frame_banners
    from m3_backbone.outcomes.labels import read_labels
    from m3_backbone.outcomes.manifest import read_manifest
    from m3_backbone.outcomes.shards import write_text

    check_settings(
        num_budgets=1, num_prices=1, num_resamples=config.num_resamples, confidence=config.confidence
    )
    check_margin(config.equivalence_margin)
    labels, output = Path(config.paths.labels), Path(HydraConfig.get().runtime.output_dir)
    manifest = read_manifest(labels)
    title = f"{manifest['backbone']} on {manifest['task']}"
    models = fit_models(labels, config.seed)
    test, record = open_test(
        labels,
        records=Path(config.paths.evaluations),
        allow_unrecorded=config.allow_unrecorded,
        command=format_command("granularity", list(HydraConfig.get().overrides.task)),
        configuration=OmegaConf.to_yaml(config, resolve=True),
        predictors={} if models is None else {**models[0].digests, **models[1].digests},
    )
    needs = tabulate_needs(test.outcomes, config.margin)
    maps = map_attributes(test.outcomes, config.margin)
    tables = [needs_tables.tabulate_needs(needs, test.outcomes.scales, config.margin, title)]
    if models is not None:
        tables += judge_models(
            *models,
            read_labels(labels, "calibration"),
            test,
            equivalence_margin=config.equivalence_margin,
            num_resamples=config.num_resamples,
            confidence=config.confidence,
            bootstrap_seed=config.bootstrap_seed,
        )
    notes = [describe_record(record), frame_banners(find_label_banners(labels, SPLITS))]
    text = "\n\n".join([*(table.to_markdown() for table in tables), *filter(None, notes)])
    write_text(output / "granularity.md", f"{text}\n")
    figure = draw_needs(needs, maps, test.outcomes.scales, f"{title}, test split")
    save_figure(figure, output / "granularity", ("png", "pdf", "svg"))
    print("\n\n".join([*map(str, tables), *filter(None, notes)]))
    print(f"\ntables and heat map: {output / 'granularity.*'}")


if __name__ == "__main__":
    main()
