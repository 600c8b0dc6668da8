"""A page of pictures that a backbone answers wrongly, one row per kind of question."""

import textwrap
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from experiments.evaluation.needs import pick_frequent
from experiments.reporting.page import LONGEST_TITLE, cut_name
from m3_backbone.images import to_rgb
from m3_backbone.outcomes.table import OutcomeTable

_WIDTH = 30  # characters of a caption line
_LONGEST = 90  # of a text from data


def pick_failures(table: OutcomeTable, column: int, *, per_kind: int, seed: int) -> dict[str, np.ndarray]:
    """Rows with a score below 1 at a scale, at most `per_kind` of each question type, drawn at random.

    Types are ordered by their number of failures, the most frequent first, at most as many as can be drawn
    (`question_types.pick_frequent`); types without failures are left out.
    """
    rng = np.random.default_rng(seed)
    wrong = table.score[:, column] < 1
    kinds = np.array([kind or task for kind, task in zip(table.kind, table.task, strict=True)], dtype=str)
    rows = {str(kind): rng.permutation(np.flatnonzero(wrong & (kinds == kind))) for kind in np.unique(kinds)}
    ordered = sorted(rows.items(), key=lambda item: -len(item[1]))
    failing = {kind: wrong_rows for kind, wrong_rows in ordered if len(wrong_rows)}
    shown = pick_frequent({kind: len(wrong_rows) for kind, wrong_rows in failing.items()})
    return {kind: failing[kind][:per_kind] for kind in shown}


def draw_failures(
    table: OutcomeTable,
    picked: Mapping[str, Sequence[int] | np.ndarray],
    column: int,
    read_image: Callable[[str], Image.Image],
    title: str,
) -> Figure:
    """Each picture with its question, the reference, and the answer at every scale.

    `read_image` gives the image of an id; where it raises OSError the reason stands in its place.
    """
    num_columns = max(map(len, picked.values()))
    size = (2.1 * num_columns, 3.0 * len(picked) + 0.4)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    panels = figure.subplots(len(picked), num_columns, squeeze=False)
    for ax in panels.flat:
        ax.set_axis_off()
    for row, (kind, samples) in enumerate(picked.items()):
        for ax, sample in zip(panels[row], samples, strict=False):
            try:
                ax.imshow(to_rgb(read_image(str(table.image_id[sample]))))
            except OSError as error:
                ax.text(
                    0.5, 0.5, _shorten(str(error)), ha="center", va="center", wrap=True, fontsize=6,
                    parse_math=False,
                )  # fmt: skip
            ax.set_title(_caption(table, int(sample)), fontsize=6, loc="left", parse_math=False)
        share = 1 - table.score[_rows_of(table, kind), column].mean()
        label = f"{cut_name(kind)}, {100 * share:.0f}% wrong"
        panels[row, 0].text(
            -0.06, 0.5, label, rotation=90, ha="right", va="center", fontsize=7,
            transform=panels[row, 0].transAxes, parse_math=False,
        )  # fmt: skip
    figure.suptitle(cut_name(title, LONGEST_TITLE), fontsize=9, parse_math=False)
    return figure


def _rows_of(table: OutcomeTable, kind: str) -> np.ndarray:
    return np.array([(own or task) == kind for own, task in zip(table.kind, table.task, strict=True)])


def _caption(table: OutcomeTable, row: int) -> str:
    answers = ", ".join(
        f"{scale}: {_shorten(text)}" for scale, text in zip(table.scales, table.answer[row], strict=True)
    )
    lines = [_shorten(table.question[row]), f"is {_shorten(table.references[row][0])}", answers]
    return "\n".join(line for text in lines for line in textwrap.wrap(text, _WIDTH) or [""])


def _shorten(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= _LONGEST else f"{words[: _LONGEST - 4]} ..."
