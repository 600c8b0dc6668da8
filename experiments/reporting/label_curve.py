"""Label curve as figure, tables, sentences, JSON, CSV and page."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.command_line.running import Provenance
from experiments.evaluation.label_curve import FittedCurve, LabelCurve, SeriesCurve
from experiments.reporting.front_plot import PALETTE
from experiments.reporting.numbers import MISSING, count_noun, format_difference, format_share, has_interval
from experiments.reporting.page import cut_name, encode_picture, save_figure, style_axes, write_page
from experiments.reporting.tables import Table, write_tables
from experiments.tasks.sizes import Banner
from experiments.training.label_curve import Measurement
from m3_backbone.outcomes.shards import write_text
from predictor.files import write_json

PAGE, FIGURES = "label_curve.html", "label_curve.json"
# A curve counts as nearly complete at this share of its value with all images.
_NEARLY = 0.9
# Smallest share in percent that the figure shows.
_LOWEST = -10.0


def tabulate_shares(curve: LabelCurve) -> Table:
    """Tabulate the share of the gap of every curve, by number of images."""
    sizes = sorted({size for line in curve.curves for size in line.sizes})
    rows = []
    for line in curve.curves:
        cells = [
            format_share(line.share[line.sizes.index(size)]) if size in line.sizes else MISSING
            for size in sizes
        ]
        rows.append((line.series.label, *cells))
    num_seeds = max(len(line.seeds) for line in curve.curves)
    caption = (
        f"Share of the gap from mix to budgeted oracle by number of labelled training images, on "
        f"{curve.num_validation_images:,} images that are not trained on: means over {num_seeds} seeds with "
        f"{curve.confidence:.0%} intervals over seeds"
    )
    return Table(caption, ("predictor", *(f"{size:,} images" for size in sizes)), tuple(rows), "shares")


def tabulate_fits(curve: LabelCurve) -> Table | None:
    """Tabulate the fitted power laws; None if there are none."""
    rows = []
    for line in curve.curves:
        if line.fit is None:
            continue
        law, largest = line.fit.law, line.sizes[-1]
        nearly = law.find_size(_NEARLY * float(law.at(largest)), largest)
        rows.append(
            (
                line.series.label,
                format_share(line.fit.limit),
                f"{law.loss:.3g}",
                f"{law.exponent:.2f}",
                f"{100 * line.fit.residual:+.1f} at {line.fit.residual_size:,}",
                f"{max(nearly, line.sizes[0]):,.0f}" if np.isfinite(nearly) else MISSING,
                "; ".join(line.fit.problems) or "good",
            )
        )
    caption = (
        "Fitted curve, share(n) = a - b * n^-c for n images, by least squares over all seeds; a is the mean "
        "of the fits of single seeds; the law holds between the smallest and the largest measured number of "
        "images"
    )
    header = (
        "predictor",
        "a",
        "b",
        "c",
        "largest residual, points",
        f"images for {_NEARLY:.0%} of the last share",
        "fit",
    )
    return Table(caption, header, tuple(rows), "fits") if rows else None


def tabulate_soft(curve: LabelCurve) -> Table | None:
    """Tabulate soft targets against greedy outcomes; None if they were not compared."""
    rows = [
        (
            f"{line.series.label}, {line.num_images:,} images",
            f"{line.num_answers:,.0f}",
            format_difference(line.equal_images),
            format_difference(line.equal_answers),
            format_difference(line.more_questions),
        )
        for line in curve.soft
    ]
    caption = (
        "Share of the gap with soft targets minus that with greedy outcomes, in points of the share, paired "
        "over seeds: about the same questions, for several times the answers; with the same number of greedy "
        "answers, about more images; with the same number of greedy answers, about all questions of each "
        "image. At equal answers the greedy curve of the seed is interpolated"
    )
    header = ("soft targets", "answers per scale", "same questions", "same answers, more images")
    return Table(caption, (*header, "same answers, all questions"), tuple(rows), "soft") if rows else None


def write_sentences(curve: LabelCurve) -> list[str]:
    """Return one sentence per curve of greedy outcomes with all questions."""
    sentences = []
    for line in curve.curves:
        if line.series.soft or line.series.questions_per_image is not None:
            continue
        first, last = (format_share(line.share[column]) for column in (0, -1))
        text = (
            f"{line.series.predictor} recovers {first} of the gap with {line.sizes[0]:,} labelled images and "
            f"{last} with {line.sizes[-1]:,}"
        )
        if line.fit is not None:
            target = _NEARLY * float(line.fit.law.at(line.sizes[-1]))
            size = line.fit.law.find_size(target, line.sizes[-1])
            if np.isfinite(size):
                text += (
                    f"; the fitted curve has {_NEARLY:.0%} of the latter at {max(size, line.sizes[0]):,.0f}"
                )
        sentences.append(f"{text}.")
    return sentences


def draw_label_curve(curve: LabelCurve) -> Figure:
    """Draw share of the gap over labelled images (log): means with intervals, and fitted curves."""
    numbers = sorted(
        {line.series.questions_per_image for line in curve.curves}, key=lambda number: number or 10**9
    )
    figure = Figure(figsize=(1.2 + 4.6 * len(numbers), 4.2), layout="constrained", facecolor="white")
    panels = figure.subplots(1, len(numbers), sharey=True, squeeze=False)[0]
    names = list(dict.fromkeys(line.series.predictor for line in curve.curves))
    for ax, number in zip(panels, numbers, strict=True):
        lines = [line for line in curve.curves if line.series.questions_per_image == number]
        for line in lines:
            color = PALETTE[names.index(line.series.predictor) % len(PALETTE)]
            _draw_curve(ax, line, color)
        ticks = sorted({size for line in lines for size in line.sizes})
        ax.set_xscale("log")
        ax.set_xticks(ticks, [f"{size:,}" for size in ticks])
        ax.minorticks_off()
        title = "all questions" if number is None else f"{count_noun(number, 'question')} an image"
        ax.set(xlabel="labelled training images")
        ax.set_title(title, fontsize="medium", parse_math=False)
        style_axes(ax)
    panels[0].set_ylabel("share of the gap (%)")
    # A predictor that is far worse than the mix would leave no room for the others.
    panels[0].set_ylim(bottom=max(panels[0].get_ylim()[0], _LOWEST))
    handles: dict[str, Any] = {}
    for ax in panels:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=4,
        fontsize="small",
        frameon=False,
    )
    return figure


def _draw_curve(ax: Axes, line: SeriesCurve, color: str) -> None:
    value, label = 100 * line.share.value, cut_name(line.series._replace(questions_per_image=None).label)
    style: dict[str, Any] = {"color": color, "mfc": "white" if line.series.soft else color, "ms": 5}
    marker = "s" if line.series.soft else "o"
    if has_interval(line.share):
        spread = np.abs(100 * np.array([line.share.low, line.share.high]) - value)
        ax.errorbar(line.sizes, value, yerr=spread, fmt=marker, capsize=2, lw=0.9, label=label, **style)
    else:
        ax.plot(line.sizes, value, marker, label=label, **style)
    dashes = "--" if line.series.soft else "-"
    if line.fit is None:
        ax.plot(line.sizes, value, dashes, color=color, lw=1.2)
    else:
        grid = np.geomspace(line.sizes[0], line.sizes[-1], 200)
        ax.plot(grid, 100 * line.fit.law.at(grid), dashes, color=color, lw=1.6)


def to_json(curve: LabelCurve) -> dict[str, Any]:
    """Return means, intervals and fits as JSON types; shares are fractions."""
    return {
        "task": curve.task,
        "backbone": curve.backbone,
        "confidence": curve.confidence,
        "num_validation_images": curve.num_validation_images,
        "curves": [
            {
                **line.series._asdict(),
                "seeds": line.seeds,
                "num_images": line.sizes,
                "num_samples": _round(line.num_samples.mean(axis=0)),
                "num_answers": _round(line.num_answers.mean(axis=0)),
                **{name: _round(getattr(line.share, name)) for name in ("value", "low", "high")},
                "fit": None if line.fit is None else _fit_to_json(line.fit),
            }
            for line in curve.curves
        ],
        "soft": [
            {
                **line.series._asdict(),
                "num_images": line.num_images,
                "num_answers": line.num_answers,
                **{
                    name: None if estimate is None else [_round(part) for part in asdict(estimate).values()]
                    for name in ("equal_images", "equal_answers", "more_questions")
                    for estimate in (getattr(line, name),)
                },
            }
            for line in curve.soft
        ],
    }


def _fit_to_json(fit: FittedCurve) -> dict[str, Any]:
    return {
        **asdict(fit.law),
        "limit_interval": [_round(fit.limit.low), _round(fit.limit.high)],
        "residual": _round(fit.residual),
        "residual_at": fit.residual_size,
        "problems": list(fit.problems),
    }


def _round(values: Any) -> Any:
    """Return numbers with six decimals, None for nan, as JSON types."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim:
        return [_round(value) for value in array]
    return round(float(array), 6) if np.isfinite(array) else None


def to_csv(measurements: Sequence[Measurement]) -> str:
    """Return one line per training, with full precision."""
    text = io.StringIO()
    names = [column.name for column in fields(Measurement)]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(asdict, measurements))
    return text.getvalue()


def write_label_curve(
    curve: LabelCurve,
    output: Path,
    failures: Sequence[str],
    *,
    provenance: Provenance,
    banners: Sequence[Banner] = (),
) -> str:
    """Write page, JSON, CSV, tables and figure into `output`; return tables and sentences as text."""
    output.mkdir(parents=True, exist_ok=True)
    tables = [
        table for table in (tabulate_shares(curve), tabulate_fits(curve), tabulate_soft(curve)) if table
    ]
    write_tables(output / "tables", tables)
    write_json(output / FIGURES, to_json(curve))
    write_text(output / "measurements.csv", to_csv(curve.measurements))
    figure = draw_label_curve(curve)
    save_figure(figure, output / "label_curve", ("png", "pdf", "svg"))
    sentences = write_sentences(curve)
    failed = [f"not trained: {line}" for line in failures]
    write_page(
        output / PAGE,
        "label_curve.html.j2",
        title=f"Label curve of {curve.backbone} on {curve.task}",
        curve=curve,
        sentences=sentences,
        failures=failed,
        tables=tables,
        picture=encode_picture(figure),
        provenance=provenance,
        banners=banners,
    )
    return "\n\n".join([*map(str, tables), "\n".join([*sentences, *failed])])
