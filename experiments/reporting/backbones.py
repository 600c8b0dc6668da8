"""Comparison of backbones on one task: reading, tables, figures and a page."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.command_line.running import Provenance
from experiments.evaluation.backbones import (
    BackboneComparison,
    BackboneSamples,
    MatchedCosts,
    compare_backbones,
    describe_other_samples,
    label_of,
)
from experiments.evaluation.costs import CostMeasure, list_cost_measures
from experiments.evaluation.fronts import Grid
from experiments.evaluation.metric_table import Bound, Predictor
from experiments.evaluation.statistics import Bootstrap
from experiments.labels.held_out import EvaluationRecord, EvaluationRecorder
from experiments.labels.resampled import check_resampled, read_resampled
from experiments.reporting.draw import draw_page, draw_paper
from experiments.reporting.evaluation import list_policies, read_unseen
from experiments.reporting.findings import describe_difference, describe_record, write_too_few
from experiments.reporting.front_plot import plot_backbones
from experiments.reporting.numbers import (
    describe_floor,
    format_difference,
    format_p_values,
    format_percent,
    format_score,
    format_share,
    format_tokens,
    to_plain,
)
from experiments.reporting.page import attach_files, encode_picture, save_figure, write_page
from experiments.reporting.run_findings import warn_of_few_seeds
from experiments.reporting.tables import Table, write_tables
from experiments.results.timings import find_timings
from experiments.tasks.sizes import Banner, is_too_few
from experiments.tasks.video import CHOICE_KEYS
from experiments.training.trained import TrainedPredictor
from m3_backbone.outcomes.manifest import read_manifest
from m3_backbone.outcomes.table import HELD_OUT, OutcomeTable
from predictor.files import write_json

PAGE, RESULTS = "backbones.html", "backbones.json"


@dataclass(frozen=True)
class BackboneFolders:
    """Where the labels, trained predictors and timings of one backbone on the task are."""

    name: str
    labels: Path
    trained: Sequence[TrainedPredictor]
    latency: Path


def read_backbones(
    folders: Sequence[BackboneFolders], recorder: EvaluationRecorder, batch_size: int = 1
) -> tuple[list[BackboneSamples], dict[str, EvaluationRecord]]:
    """Return the samples of every backbone, and the records of the evaluations, written before.

    Raises ValueError, before any test split is opened, if the backbones were labelled on different data or
    have different numbers of test samples.
    """
    manifests = [read_manifest(entry.labels) for entry in folders]
    first, *others = [
        (entry.name, manifest["fingerprints"]) for entry, manifest in zip(folders, manifests, strict=True)
    ]
    for (name, fingerprints), manifest in zip(others, manifests[1:], strict=True):
        if fingerprints["data"] != first[1]["data"] and not _differ_in_frames(manifests[0], manifest):
            raise ValueError(
                f"{first[0]} and {name} were labelled on different data: label the task with the same "
                "settings for both"
            )
        # Equal numbers are a first check; `compare_backbones` compares the samples one by one.
        if manifest["counts"].get(HELD_OUT) != manifests[0]["counts"].get(HELD_OUT):
            raise ValueError(describe_other_samples(first[0], name))
    for entry, (_, fingerprints) in zip(folders, (first, *others), strict=True):
        check_resampled(entry.labels, fingerprints)
    prepared = [(entry, *_prepare(entry, batch_size)) for entry in folders]
    backbones, evaluations = [], {}
    for entry, calibration, estimates, measures in prepared:
        digests = {trained.name: trained.digest for trained in entry.trained}
        test, evaluations[entry.name] = recorder.open_test(entry.labels, digests)
        policies = list_policies(entry.trained, estimates, test)
        resampled = read_resampled(entry.labels, test.outcomes)
        backbones.append(
            BackboneSamples(entry.name, calibration, test.outcomes, policies, measures, resampled)
        )
    return backbones, evaluations


def _differ_in_frames(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two manifests are of the same questions about the same videos, with other frames."""
    contents = [dict(manifest.get("data", {})) for manifest in (one, other)]
    has_frames = all("num_frames" in content for content in contents)
    first, second = ({key: c[key] for key in c.keys() - set(CHOICE_KEYS)} for c in contents)
    return has_frames and first == second and one["division"] == other["division"]


def tabulate_frames(backbones: Sequence[BackboneSamples]) -> Table | None:
    """Tabulate cost per question and per frame, and score, of the fixed scales; None without videos."""
    rows = []
    for backbone in backbones:
        table = backbone.test
        frames = [attributes.get("num_frames") for attributes in table.attributes]
        if None in frames:
            return None
        num_frames = np.array(frames, dtype=np.float64)
        for column, scale in enumerate(table.scales):
            tokens = table.visual_tokens[:, column]
            rows.append(
                (
                    f"{backbone.name}, scale {scale}",
                    format_tokens(num_frames.mean()),
                    format_tokens(tokens.mean()),
                    format_tokens((tokens / num_frames).mean()),
                    format_percent(table.score[:, column].mean()),
                )
            )
    caption = "Fixed scales by number of frames: mean visual tokens per question and per frame"
    return Table(caption, ("", "frames", "tokens", "tokens per frame", "score"), tuple(rows), name="frames")


def _prepare(
    entry: BackboneFolders, batch_size: int
) -> tuple[OutcomeTable, dict[str, np.ndarray], list[CostMeasure]]:
    """Return calibration outcomes, estimates on them by predictor, and cost measures."""
    calibration = read_unseen(entry.labels, entry.trained)
    predictors = {trained.name: trained.predictor for trained in entry.trained}
    timings = find_timings(
        entry.latency,
        calibration.outcomes.fingerprints,
        {trained.name: trained.digest for trained in entry.trained},
        batch_size,
    )
    measures = list_cost_measures(calibration.outcomes, predictors, calibration.inputs, timings=timings)
    estimates = {name: predictor.predict(calibration.inputs) for name, predictor in predictors.items()}
    return calibration.outcomes, estimates, measures


def report_backbones(
    folders: Sequence[BackboneFolders],
    *,
    task: str,
    output: Path,
    recorder: EvaluationRecorder,
    provenance: Provenance,
    batch_size: int = 1,
    grid: Grid,
    bootstrap: Bootstrap,
    banners: Sequence[Banner] = (),
) -> tuple[BackboneComparison, list[Table], list[str]]:
    """Compare backbones on the test split of a task; return the comparison, its tables and its findings.

    Writes `backbones.json`, `tables/`, a front per cost measure as PDF and SVG, and `backbones.html` into
    `output`.
    """
    backbones, evaluations = read_backbones(folders, recorder, batch_size)
    comparison = compare_backbones(backbones, grid, bootstrap)
    tables, sentences = list(list_tables(comparison)), write_sentences(comparison)
    if (frames := tabulate_frames(backbones)) is not None:
        tables.append(frames)
    output.mkdir(parents=True, exist_ok=True)
    write_tables(output / "tables", tables)
    write_json(output / RESULTS, collect_results(comparison))
    title = f"{' and '.join(comparison.names)} on {task}"
    plots = {matched.unit: plot_backbones(matched) for matched in comparison.measures}
    pictures, files = {}, {}
    for matched, plot in zip(comparison.measures, plots.values(), strict=True):
        figure = draw_paper(plot, f"{title}, test split")
        files[matched.unit] = attach_files(save_figure(figure, output / f"front_{matched.key}"))
        pictures[matched.unit] = encode_picture(figure)
    write_page(
        output / PAGE,
        "backbones.html.j2",
        title=title,
        comparison=comparison,
        has_predictors=bool(folders[0].trained),
        tables=tables,
        sentences=sentences,
        records=[f"{name}: {describe_record(record)}" for name, record in evaluations.items()],
        pictures=pictures,
        files=files,
        charts=[draw_page(plot) for plot in plots.values()],
        fingerprints={backbone.name: backbone.test.fingerprints for backbone in backbones},
        provenance=provenance,
        banners=[*banners, *_warn_of_trainings(folders)],
    )
    return comparison, tables, sentences


def _warn_of_trainings(folders: Sequence[BackboneFolders]) -> list[Banner]:
    """Return a warning that each predictor was trained once, if any was trained with a seed."""
    names = dict.fromkeys(
        entry.name for folder in folders for entry in folder.trained if entry.seed is not None
    )
    return warn_of_few_seeds(1, list(names)) if names else []


def write_sentences(comparison: BackboneComparison) -> list[str]:
    """Return the findings per cost measure: first predictors at equal cost, and what a joint choice adds.

    Without predictors the first findings are about the mix of fixed scales. Too few test images allow none.
    """
    if is_too_few(comparison.num_images):
        first, *others = comparison.names
        return [write_too_few(comparison.num_images, first, " and ".join(others))]
    sentences, confidence = [], comparison.bootstrap.confidence
    for matched in comparison.measures:
        policies = [entry for entry in matched.backbones[0].means if isinstance(entry, Predictor)]
        policy = policies[0] if policies else Bound.MIX
        choice = f"{policies[0].name} as the predictor" if policies else f"a {label_of(policy)}"
        for difference in matched.differences:
            if difference.chooser == policy:
                words = describe_difference(difference.mean, difference.first, confidence)
                sentences.append(
                    f"At equal {matched.unit} ({_format_range(matched)}), with {choice}, "
                    f"{difference.second} scores {words}."
                )
        joint = matched.joint[-1]
        words = describe_difference(joint.gain, "the best one over a single backbone", confidence)
        oracle = label_of(joint.chooser)
        sentences.append(f"An oracle over the scales of all backbones ({oracle}) scores {words}.")
    return sentences


def _format_range(matched: MatchedCosts) -> str:
    return f"{format_tokens(matched.budgets[0])} to {format_tokens(matched.budgets[-1])}"


def list_tables(comparison: BackboneComparison) -> Iterator[Table]:
    """Yield the tables of a comparison, in the order in which the page shows them."""
    for matched in comparison.measures:
        yield _tabulate_means(matched, comparison.bootstrap.num_resamples)
    for matched in comparison.measures:
        yield _tabulate_fixed(matched)
    for matched in comparison.measures:
        if matched.fixed:
            yield _tabulate_equal(matched, comparison.bootstrap.num_resamples)
    yield _tabulate_joint(comparison)
    yield _tabulate_answered(comparison)


def _tabulate_means(matched: MatchedCosts, num_resamples: int) -> Table:
    first, *others = matched.backbones
    tests = {(test.chooser, test.second): test for test in matched.differences}
    num_tests = len(matched.differences)
    rows = []
    for chooser in first.means:
        cells = [format_score(fronts.means.get(chooser)) for fronts in matched.backbones]
        for other in others:
            test = tests.get((chooser, other.name))
            cells += (
                ["-", "-", "-"]
                if test is None
                else [
                    format_difference(test.mean),
                    *format_p_values(test.p_value, test.adjusted, num_resamples, num_tests),
                ]
            )
        rows.append((label_of(chooser), *cells))
    differences = [name for other in others for name in (f"{other.name} - {first.name}", "p", "p (Holm)")]
    caption = (
        f"Scores at equal mean {matched.unit}, averaged over log-spaced budgets that all backbones can meet "
        f"({_format_range(matched)}). {describe_floor(num_resamples, num_tests)}"
    )
    header = ("scale chosen by", *(fronts.name for fronts in matched.backbones), *differences)
    return Table(caption, header, tuple(rows), name=f"means_{matched.key}")


def _tabulate_fixed(matched: MatchedCosts) -> Table:
    rows = [
        (f"{fronts.name}, scale {scale}", f"{cost:.3g}", format_score(fronts.fixed_score[column]))
        for fronts in matched.backbones
        for column, (scale, cost) in enumerate(zip(fronts.scales, fronts.fixed_cost, strict=True))
    ]
    return Table(
        f"Fixed scales over {matched.unit}",
        ("backbone", f"mean {matched.unit}", "score"),
        tuple(rows),
        name=f"fixed_{matched.key}",
    )


def _tabulate_equal(matched: MatchedCosts, num_resamples: int) -> Table:
    num_tests = len(matched.fixed)
    rows = [
        (
            f"{test.cost:.3g}",
            test.second,
            format_score(test.score),
            format_difference(test.difference),
            *format_p_values(test.p_value, test.adjusted, num_resamples, num_tests),
        )
        for test in matched.fixed
    ]
    name = matched.backbones[0].name
    caption = (
        f"Fixed scales that cost as many {matched.unit} on average as one of {name}, and their scores minus "
        f"those of {name}. {describe_floor(num_resamples, num_tests)}"
    )
    header = (f"mean {matched.unit}", "backbone", "score", f"minus {name}", "p", "p (Holm)")
    return Table(caption, header, tuple(rows), name=f"equal_{matched.key}")


def _tabulate_joint(comparison: BackboneComparison) -> Table:
    rows = [
        (matched.unit, label_of(joint.chooser), format_score(joint.mean), format_difference(joint.gain))
        for matched in comparison.measures
        for joint in matched.joint
    ]
    caption = (
        "Oracles that may choose among the scales of all backbones: score averaged over the budgets, and "
        "gain over the best oracle of a single backbone. An oracle of greedy outcomes also gains from "
        "further chances at a lucky answer; the noise-free oracles do not"
    )
    header = ("equal", "oracle", "score", "above the best single backbone")
    return Table(caption, header, tuple(rows), name="joint")


def _tabulate_answered(comparison: BackboneComparison) -> Table:
    rows = [(name, format_share(share)) for name, share in comparison.answered.items()]
    caption = "Questions that backbones answer at some scale, in greedy answers"
    return Table(caption, ("answered by", "share"), tuple(rows), name="answered")


def collect_results(comparison: BackboneComparison) -> dict[str, Any]:
    """Return the content of `backbones.json`: every number of the tables, with intervals."""
    content = {
        "backbones": list(comparison.names),
        "num_samples": comparison.num_samples,
        "num_images": comparison.num_images,
        "bootstrap": asdict(comparison.bootstrap),
        "answered": {name: asdict(share) for name, share in comparison.answered.items()},
        "skipped": list(comparison.skipped),
        "measures": {
            matched.key: {
                "unit": matched.unit,
                "budgets": matched.budgets.tolist(),
                "backbones": {
                    fronts.name: {
                        "scales": list(fronts.scales),
                        "fixed": {"cost": fronts.fixed_cost.tolist(), "score": asdict(fronts.fixed_score)},
                        "choosers": {
                            label_of(chooser): {
                                "cost": fronts.lines[chooser][0].tolist(),
                                "score": fronts.lines[chooser][1].tolist(),
                                "at_budgets": asdict(fronts.at_budgets[chooser]),
                                "mean": asdict(mean),
                            }
                            for chooser, mean in fronts.means.items()
                        },
                    }
                    for fronts in matched.backbones
                },
                "differences": [
                    {
                        "chooser": label_of(test.chooser),
                        "first": test.first,
                        "second": test.second,
                        "mean": asdict(test.mean),
                        "p_value": test.p_value,
                        "adjusted": test.adjusted,
                    }
                    for test in matched.differences
                ],
                "fixed_differences": [asdict(test) for test in matched.fixed],
                "joint": [
                    {
                        "oracle": label_of(joint.chooser),
                        "mean": asdict(joint.mean),
                        "gain": asdict(joint.gain),
                    }
                    for joint in matched.joint
                ],
            }
            for matched in comparison.measures
        },
    }
    plain: dict[str, Any] = to_plain(content)
    return plain
