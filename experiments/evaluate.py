"""Evaluate trained predictors: `python -m experiments.evaluate predictor=NAME`.

`evaluate_predictors` is the plain function behind the command: it reads labels and predictors, and writes
`metrics.json`, `draws.safetensors`, `milliseconds.json`, `report.html`, its tables in `tables/` and its
figures as PDF and SVG.
"""

import logging
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from experiments.config import entry_point
from experiments.evaluation.accounts import open_accounts
from experiments.evaluation.cascades import CascadeEntry
from experiments.evaluation.comparison import compare_policies
from experiments.evaluation.contenders import Estimating
from experiments.evaluation.figures import Comparison
from experiments.evaluation.metrics import collect_metrics
from experiments.evaluation.needs import map_attributes, tabulate_needs
from experiments.evaluation.published import find_published
from experiments.evaluation.resampled import join_parts, read_parts
from experiments.evaluation.risk import Promise, apply_guarantee, find_guarantee, find_unseen, resplit
from experiments.evaluation.run_files import METRICS, write_run
from experiments.evaluation.statistics import check_confidence
from experiments.held_out import read_test
from experiments.label import format_command
from experiments.latency import digest_predictor, find_timings
from experiments.reporting.calibration_display import draw_reliability
from experiments.reporting.displays import draw_front
from experiments.reporting.export import render_figure, save_figure
from experiments.reporting.findings import Findings, collect_extras
from experiments.reporting.needs_display import draw_needs
from experiments.reporting.page import Provenance
from experiments.reporting.report import write_report
from experiments.reporting.summary import list_tables, write_sentences
from experiments.reporting.tables import write_tables
from experiments.tasks.base import Task, check_data
from experiments.training_record import find_seed
from m3_backbone.labels import read_labels
from m3_backbone.outcomes import OutcomeTable
from m3_backbone.shards import read_manifest
from predictor.base import ScalePredictor
from predictor.pricing import PriceList

log = logging.getLogger(__name__)

PICTURE, REPORT = "front.png", "report.html"


@entry_point("evaluate")
def main(config: DictConfig) -> float:
    hydra = HydraConfig.get()
    comparison = evaluate_predictors(
        [part.name for part in (config.predictor, *config.get("baselines", {}).values())],
        labels=Path(config.paths.labels),
        predictors=Path(config.paths.predictors),
        latency=Path(config.paths.latency),
        task=instantiate(config.task, _convert_="all"),
        output=Path(hydra.runtime.output_dir),
        provenance=Provenance(
            command=format_command(str(hydra.job.config_name), list(hydra.overrides.task)),
            config=OmegaConf.to_yaml(config, resolve=True),
            made=f"{datetime.now():%Y-%m-%d %H:%M}",
        ),
        cascades=[instantiate(entry) for entry in config.get("cascades", {}).values()],
        reference=config.reference,
        num_budgets=config.num_budgets,
        num_prices=config.num_prices,
        num_resamples=config.num_resamples,
        confidence=config.confidence,
        bootstrap_seed=config.bootstrap_seed,
        alpha=config.risk.alpha,
        delta=config.risk.delta,
        num_resplits=config.risk.num_resplits,
        gallery=config.gallery,
        seed=config.seed,
    )
    return float(comparison.predictors[0].mean_gap_share.value)


def evaluate_predictors(
    names: Sequence[str],
    *,
    labels: Path,
    predictors: Path,
    latency: Path | None = None,
    task: Task,
    output: Path,
    provenance: Provenance,
    cascades: Sequence[CascadeEntry] = (),
    reference: str | None = "question_only",
    num_budgets: int = 49,
    num_prices: int = 128,
    num_resamples: int = 1000,
    confidence: float = 0.95,
    bootstrap_seed: int = 0,
    alpha: float = 0.02,
    delta: float = 0.1,
    num_resplits: int = 200,
    gallery: int = 6,
    seed: int = 0,
) -> Comparison:
    """Compare the predictors `names` in the folder `predictors`; the first is the one the report is about.

    Beside them stand `cascades`, which pay for every scale that they try.
    Operating points and promises (`evaluation.risk`) come from the calibration split of `labels`, default
    prices from training, figures from the test split, which is read last (`held_out`). Prints the tables and
    writes metrics, picture and report into `output`. Milliseconds are those in the folder `latency`, if it
    holds any of these predictors and this machine. `task` gives the images of the gallery. Images are drawn
    with `bootstrap_seed`, the same in every run that is to be compared with others; `seed` orders what is
    left to chance besides, and stands for the training's where a predictor has no record of its own. Raises
    ValueError where labels, predictors and task do not belong together.
    """
    check_confidence(confidence)
    manifest = read_manifest(labels)
    check_data(task, manifest["fingerprints"]["data"], labels)
    # What cannot be used is told before the test split is read.
    asked_again = read_parts(labels, manifest["fingerprints"])
    calibration = read_labels(labels, "calibration")
    loaded = {name: ScalePredictor.load(predictors / name) for name in names}
    learned, guarantees = {}, {}
    for name, predictor in loaded.items():
        predictor.check_backbone(calibration.outcomes.fingerprints)
        learned[name] = predictor.predict(calibration.inputs)
        unseen = find_unseen(predictor, calibration.outcomes)
        guarantees[name] = find_guarantee(
            learned[name][unseen], calibration.outcomes.select(unseen), alpha=alpha, delta=delta, seed=seed
        )
    for entry in cascades:
        if entry.predictor not in (None, *loaded):
            raise ValueError(
                f"{entry.name} starts from {entry.predictor!r}, which is not among the predictors that are "
                f"compared: {', '.join(loaded)}"
            )
    digests = {name: digest_predictor(predictors / name) for name in names}
    accounts = open_accounts(
        calibration.outcomes,
        loaded,
        calibration.inputs,
        starts_from={entry.name: entry.predictor for entry in cascades if entry.predictor},
        timings=find_timings(latency, calibration.outcomes.fingerprints, digests) if latency else None,
    )
    defaults = {name: PriceList.load(predictors / name).default for name in names}

    test, test_read = read_test(
        labels,
        command=provenance.command,
        configuration=provenance.config,
        predictors=digests,
    )
    contenders = [
        Estimating(name, learned[name], predictor.predict(test.inputs), defaults[name])
        for name, predictor in loaded.items()
    ]
    estimates = {each.name: (each.calibration, each.test) for each in contenders}
    climbers = [entry.enter(estimates) for entry in cascades]
    resampled = join_parts(asked_again, test.outcomes)
    comparison, *others = (
        compare_policies(
            calibration.outcomes,
            test.outcomes,
            [*contenders, *climbers],
            account=account,
            resampled=resampled,
            reference=reference,
            num_budgets=num_budgets,
            num_prices=num_prices,
            num_resamples=num_resamples,
            confidence=confidence,
            seed=bootstrap_seed,
        )
        for account in accounts
    )
    promises = [
        Promise(
            each.name,
            guarantees[each.name],
            apply_guarantee(
                guarantees[each.name],
                each.test,
                test.outcomes,
                num_resamples=num_resamples,
                confidence=confidence,
                seed=bootstrap_seed,
            ),
            resplit(each.test, test.outcomes, alpha=alpha, delta=delta, num_splits=num_resplits, seed=seed)
            if num_resplits
            else None,
        )
        for each in contenders
    ]
    findings = Findings(
        comparison,
        others,
        promises=promises,
        units={name: point.unit for name, point in defaults.items()},
        published=find_published(manifest["backbone"], manifest["task"]),
        test_read=test_read,
        cost_parts={account.key: account.mean_parts(test.outcomes) for account in accounts},
    )

    output.mkdir(parents=True, exist_ok=True)
    backbone_name, task_name = manifest["backbone"], manifest["task"]
    seeds = {name: find_seed(predictors / name, otherwise=seed) for name in names}
    metrics = collect_metrics(
        comparison,
        test.outcomes,
        task=task_name,
        backbone=backbone_name,
        seeds=seeds | {entry.name: seeds.get(str(entry.predictor)) for entry in cascades},
        starts_from={entry.name: entry.predictor for entry in cascades},
    )
    write_run(output, metrics | collect_extras(findings), comparison, others, promises)
    title = f"{backbone_name} on {task_name}"
    tables = list_tables(findings)
    write_tables(output / "tables", tables)
    picture = write_figures(output, comparison, test.outcomes, title)
    write_report(
        output / REPORT,
        findings,
        test.outcomes,
        contenders[0].test,
        title=title,
        picture=picture,
        read_image=task.image,
        provenance=provenance,
        per_category=gallery,
        seed=seed,
    )
    print("\n\n".join([*map(str, tables), "\n".join(write_sentences(findings))]))
    print(f"\nreport: {output / REPORT}, beside {METRICS}, tables/ and figures as PDF and SVG")
    return comparison


def write_figures(output: Path, comparison: Comparison, test: OutcomeTable, title: str) -> bytes:
    """Write every figure as PDF and SVG, and the front as PNG, which is returned too."""
    front = draw_front(comparison, f"{title}, test split")
    save_figure(front, output / "front")
    maps = map_attributes(test)
    needs = draw_needs(tabulate_needs(test), maps, test.scales, f"{title}, test split")
    save_figure(needs, output / "granularity")
    first = comparison.predictors[0]
    if first.reliability is not None:
        diagrams = draw_reliability(first.reliability, comparison.scales, f"{first.name}, {title}")
        save_figure(diagrams, output / "calibration")
    picture = render_figure(front, "png")
    (output / PICTURE).write_bytes(picture)
    return picture


if __name__ == "__main__":
    main()
