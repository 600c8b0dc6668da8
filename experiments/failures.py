"""Show images of what a backbone answers wrong, by question type.

Writes `failures.html`, with every shown image, question and answer, and one figure of the images with one row
per question type; the types with the most failures come first. Reports of later evaluations link to the page.

Examples:
    tokenscale failures                                                # the finest scale, calibration split
    tokenscale failures scale=9 per_kind=12                            # another scale, more images
    tokenscale failures task=textvqa backbone=m3_llava_7b split=train  # another task and model
"""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from experiments.command_line.entry_point import entry_point
from experiments.command_line.running import Provenance


@entry_point("failures")
def main(config: DictConfig) -> None:
    from experiments.reporting.failures import PAGE, write_failures
    from experiments.reporting.failures_display import draw_failures, pick_failures
    from experiments.reporting.page import save_figure
    from experiments.reporting.views import find_configured_viewer, make_view
    from experiments.tasks.base import check_data
    from m3_backbone.outcomes.manifest import read_manifest
    from m3_backbone.outcomes.table import OutcomeTable

    table = OutcomeTable.read(config.paths.labels, config.split)
    scale = table.scales[-1] if config.scale is None else config.scale
    if scale not in table.scales:
        raise ValueError(f"these labels have no scale {scale}: give one of {list(table.scales)}")
    column = table.scales.index(scale)
    picked = pick_failures(table, column, per_kind=config.per_kind, seed=config.seed)
    if not picked:
        print(f"no answer of {config.split} is wrong at scale {scale}: there is nothing to show")
        return
    task = instantiate(config.task, _convert_="all")
    check_data(task, read_manifest(Path(config.paths.labels)), config.paths.labels)
    title = f"{config.backbone.name} on {config.task.name}, {config.split}: wrong at scale {scale}"
    figure = draw_failures(table, picked, column, task.image, title)
    output = Path(HydraConfig.get().runtime.output_dir)
    save_figure(figure, output / "failures", ("png", "pdf"))
    write_failures(
        output,
        table,
        picked,
        column,
        title=title,
        split=config.split,
        read_image=task.image,
        provenance=Provenance.of(config),
        view=make_view(table, find_configured_viewer(config.backbone)),
    )
    print(f"failures by question type: {output / 'failures.*'}\nreport: {output.resolve() / PAGE}")


if __name__ == "__main__":
    main()
