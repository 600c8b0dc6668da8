"""The page of failures: which samples come on it, and that a picture that cannot be read does not end it."""

import json

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

from experiments.command_line.running import Provenance
from experiments.command_line.script import find_config_dir
from experiments.failures import main
from experiments.reporting.failures import tabulate_failures, write_failures
from experiments.reporting.failures_display import draw_failures, pick_failures
from experiments.reporting.views import make_view
from experiments.tasks.base import check_data
from experiments.tasks.images import UnreadableImage
from experiments.tasks.scenes import Scenes
from tests.experiments.evaluation.synthetic import make_outcomes
from tests.experiments.reporting.test_report import HOSTILE
from tests.pages import Elements, check_downloads, check_structure, read_downloads


def test_only_wrong_answers_are_shown_the_worst_kind_first():
    table = make_outcomes("test", 60)
    picked = pick_failures(table, 3, per_kind=3, seed=0)
    wrong = {kind: int(((table.kind == kind) & (table.score[:, 3] < 1)).sum()) for kind in picked}
    assert list(wrong.values()) == sorted(wrong.values(), reverse=True)
    for kind, rows in picked.items():
        assert len(rows) == min(3, wrong[kind])
        assert set(table.kind[rows]) == {kind} and (table.score[rows, 3] == 0).all()
    assert sum(wrong.values()) == (table.score[:, 3] < 1).sum()  # no kind with failures is missing


def test_text_is_shown_as_it_is_and_an_unreadable_picture_leaves_its_reason():
    table = make_outcomes("test", 20)
    table.question[:] = "what costs $5 and $6? <script>" + "x" * 500
    picked = pick_failures(table, 0, per_kind=2, seed=0)

    def read_image(image_id):
        if image_id == table.image_id[next(iter(picked.values()))[0]]:
            raise UnreadableImage("cost_$5_a^^b_$6.png", "no such file")
        return Image.fromarray(np.zeros((8, 8, 3), np.uint8))

    figure = draw_failures(table, picked, 0, read_image, "title")
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert "what costs $5 and $6? <script>" in titles[0].replace("\n", " ") and max(map(len, titles)) < 400
    assert any("no such file" in text.get_text() for text in figure.axes[0].texts)
    figure.canvas.draw()


def test_labels_of_other_pictures_are_refused():
    task = Scenes(seed=3)
    manifest = {
        "fingerprints": {"data": task.fingerprint},
        "data": json.loads(json.dumps(task.content)),
        "division": task.division,
    }
    check_data(task, manifest, "folder")
    with pytest.raises(ValueError, match=r"made from other data .* \(seed: 3 there, 4 here\): .*task\.name"):
        check_data(Scenes(seed=4), manifest, "folder")
    fewer = Scenes(seed=3, num_images={"train": 5})
    with pytest.raises(ValueError, match=r"divided into splits in another way .*which answers nothing again"):
        check_data(fewer, manifest, "folder")


def test_failures_on_the_test_split_are_not_browsed(capsys):
    with initialize_config_dir(str(find_config_dir()), version_base="1.3"):
        config = compose("failures", ["split=test"])
    with pytest.raises(SystemExit, match="2"):
        main(config)
    printed = capsys.readouterr().err
    assert "split=test: give one of train, calibration (split that the samples are from; not test" in printed


def test_the_page_of_failures_shows_text_as_text_and_every_sample(tmp_path):
    table = make_outcomes("calibration", 30)
    table.question[:] = HOSTILE
    picked = pick_failures(table, 3, per_kind=2, seed=0)
    rows = [row for rows in picked.values() for row in rows]

    def read_image(image_id):
        if image_id == table.image_id[rows[0]]:
            raise UnreadableImage(HOSTILE, "no such file")
        return Image.new("RGB", (48, 32))

    write_failures(
        tmp_path,
        table,
        picked,
        3,
        title=HOSTILE,
        split="calibration",
        read_image=read_image,
        provenance=Provenance(HOSTILE, f"key: {HOSTILE}", "now"),
        view=make_view(table, None, ("tower/norm_mean",)),
    )
    text = (tmp_path / "failures.html").read_text(encoding="utf-8")
    check_structure(text)
    check_downloads(read_downloads(text))
    page = Elements(text)
    assert len(page.select("script")) == 1 and page.select("h1")[0].text.startswith(
        f"{wrong_share(table)}% of "
    )
    cards = page.select("article")
    assert len(cards) == len(rows) and all(HOSTILE in card.text for card in cards)
    assert [card.attributes["data-type"] for card in cards] == [str(table.kind[row]) for row in rows]
    assert "The image cannot be read" in cards[0].text and "The image cannot be read" not in cards[-1].text
    # A scale whose answer is shown as wrong is that of the page.
    shown = [row for row in page.select("tr") if "data-scale" in row.attributes]
    marked = [row.attributes["data-scale"] for row in shown if row.attributes.get("class") == "chosen"]
    assert marked == [str(table.scales[3])] * len(rows)


def wrong_share(table):
    return f"{100 * (table.score[:, 3] < 1).mean():.1f}"


def test_wrong_answers_are_counted_by_question_type():
    table = make_outcomes("calibration", 30)
    wrong, rescued = table.score[:, 0] < 1, table.score.max(axis=1) >= 1
    rows = tabulate_failures(table, 0).rows
    assert rows[0][1:] == (
        str(len(table)),
        str(wrong.sum()),
        f"{100 * wrong.mean():.1f}",
        str((wrong & rescued).sum()),
    )
    assert sum(int(row[2]) for row in rows[1:]) == wrong.sum()
    assert [int(row[2]) for row in rows[1:]] == sorted((int(row[2]) for row in rows[1:]), reverse=True)
