"""Figure of samples that a backbone answers wrongly, one row per question type."""

import textwrap
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from experiments.evaluation.needs import list_types, pick_frequent, split_by_type
from experiments.reporting.page import LONGEST_TITLE, cut_name
from m3_backbone.images import to_rgb
from m3_backbone.outcomes.table import OutcomeTable

_WIDTH = 30  # characters of a caption line
_LONGEST = 90  # characters of a text from data


def pick_failures(table: OutcomeTable, column: int, *, per_kind: int, seed: int) -> dict[str, np.ndarray]:
    """Return indices of random samples with a score below 1 at a scale, `per_kind` of each question type.

    Types are sorted by descending number of failures and limited to `needs.MOST_SHOWN`; types without
    failures are left out.
    """
    rng = np.random.default_rng(seed)
    wrong = table.score[:, column] < 1
    rows = {
        name: rng.permutation(np.flatnonzero(wrong & is_of_type))
        for name, is_of_type in split_by_type(table).items()
    }
    ordered = sorted(rows.items(), key=lambda item: -len(item[1]))
    failing = {name: wrong_rows for name, wrong_rows in ordered if len(wrong_rows)}
    shown = pick_frequent({name: len(wrong_rows) for name, wrong_rows in failing.items()})
    return {name: failing[name][:per_kind] for name in shown}


def draw_failures(
    table: OutcomeTable,
    picked: Mapping[str, Sequence[int] | np.ndarray],
    column: int,
    read_image: Callable[[str], Image.Image],
    title: str,
) -> Figure:
    """Draw each image with its question, the reference, and the answer at every scale.

    `read_image` returns the image of an id; if it raises OSError, the message is shown instead.
    """
    num_columns = max(map(len, picked.values()))
    size = (2.1 * num_columns, 3.0 * len(picked) + 0.4)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    panels = figure.subplots(len(picked), num_columns, squeeze=False)
    for ax in panels.flat:
        ax.set_axis_off()
    for row, (question_type, samples) in enumerate(picked.items()):
        for ax, sample in zip(panels[row], samples, strict=False):
            try:
                ax.imshow(to_rgb(read_image(str(table.image_id[sample]))))
            except OSError as error:
                ax.text(
                    0.5, 0.5, _shorten(str(error)), ha="center", va="center", wrap=True, fontsize=6,
                    parse_math=False,
                )  # fmt: skip
            ax.set_title(_caption(table, int(sample)), fontsize=6, loc="left", parse_math=False)
        share = 1 - table.score[list_types(table) == question_type, column].mean()
        label = f"{cut_name(question_type)}, {100 * share:.0f}% wrong"
        panels[row, 0].text(
            -0.06, 0.5, label, rotation=90, ha="right", va="center", fontsize=7,
            transform=panels[row, 0].transAxes, parse_math=False,
        )  # fmt: skip
    figure.suptitle(cut_name(title, LONGEST_TITLE), fontsize=9, parse_math=False)
    return figure


def _caption(table: OutcomeTable, row: int) -> str:
    answers = ", ".join(
        f"{scale}: {_shorten(text)}" for scale, text in zip(table.scales, table.answer[row], strict=True)
    )
    lines = [_shorten(table.question[row]), f"correct: {_shorten(table.references[row][0])}", answers]
    return "\n".join(line for text in lines for line in textwrap.wrap(text, _WIDTH) or [""])


def _shorten(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= _LONGEST else f"{words[: _LONGEST - 4]} ..."
