"""Compare backbones on one task, at equal visual tokens, FLOPs and milliseconds.

Reads labels and trained predictors of each backbone, as `tokenscale run backbone=NAME` leaves them, and
writes `backbones.html`, `backbones.json`, `tables/` and the fronts as PDF and SVG. The first backbone is the
reference. `BACKBONE/TASK` names labels of a video task with another number of frames.

Examples:
    tokenscale compare_backbones backbones=[tiny_m3,tiny_native]  # pooled tokens against shrunk images
    tokenscale compare_backbones backbones=[qwen3_vl_4b,gemma4_e2b] task=textvqa  # published models
    tokenscale compare_backbones backbones=[tiny_m3,tiny_m3_diversity] fixed_only=true  # needs labels alone
"""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from experiments.command_line.entry_point import entry_point
from experiments.command_line.running import Provenance, make_recorder


@entry_point("compare_backbones")
def main(config: DictConfig) -> None:
    from experiments.evaluation.fronts import Grid
    from experiments.evaluation.statistics import Bootstrap
    from experiments.labels.division import check_labels, find_label_banners
    from experiments.reporting.backbones import PAGE, BackboneFolders, report_backbones
    from experiments.tasks.base import SPLITS
    from experiments.tasks.sizes import frame_banners
    from experiments.training.configured import open_configured

    paths, folders = config.paths, []
    # NAME/TASK names labels of a task that differs only in the choice of video frames.
    places = {name: name if "/" in name else f"{name}/{config.task.name}" for name in config.backbones}
    task = ", ".join(dict.fromkeys(place.partition("/")[2] for place in places.values()))
    for name, place in places.items():
        labels = Path(paths.all_labels) / place
        check_labels(labels, ("calibration", "test"), allow_small=config.allow_small)
        predictors = Path(paths.all_predictors) / place
        trained = [] if config.fixed_only else open_configured(config, labels, predictors)
        folders.append(BackboneFolders(name, labels, trained, Path(paths.all_latencies) / place))
    banners = find_label_banners(folders[0].labels, SPLITS)
    output = Path(HydraConfig.get().runtime.output_dir)
    comparison, tables, sentences = report_backbones(
        folders,
        task=task,
        output=output,
        recorder=make_recorder(config),
        provenance=Provenance.of(config),
        batch_size=config.latency.batch_size,
        grid=Grid(config.num_budgets, config.num_prices),
        bootstrap=Bootstrap(config.num_resamples, config.confidence, config.bootstrap_seed),
        banners=banners,
    )
    printed = map(str, tables if config.print_tables else tables[: len(comparison.measures)])
    left_out = [f"left out: {line}" for line in comparison.skipped]
    notes = ["\n".join([*sentences, *left_out]), frame_banners(banners) if banners else ""]
    print("\n\n".join(filter(None, [*printed, *notes])))
    print(f"\nreport: {output.resolve() / PAGE}")


if __name__ == "__main__":
    main()
