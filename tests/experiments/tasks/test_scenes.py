"""The procedural task: reproducible, split by picture, and every answer is in its picture."""

import hashlib
import json
import random
import re
from collections import Counter

import numpy as np
import PIL
import pytest
from PIL import Image

from experiments.tasks import scenes
from experiments.tasks.base import SPLITS, Task
from experiments.tasks.images import UnreadableImage
from experiments.tasks.scenes import Scenes
from experiments.tasks.scenes.corruption import CORRUPTIONS, corrupt
from experiments.tasks.scenes.dense import BODY, CENTER, HEADS, TYPES, label_patches
from experiments.tasks.scenes.layout import colors_on
from experiments.tasks.scenes.questions import (
    ask,
    ask_cell,
    ask_count,
    ask_count_half,
    ask_dominant,
    ask_existence,
    ask_existence_half,
    ask_neighbor,
    ask_position,
)
from experiments.tasks.scenes.render import draw, handwriting_of
from experiments.tasks.scenes.scene import CHARACTERS, COLORS, LOOKS, PLAIN, SHAPES, SHIFTED, Item, Scene
from experiments.tasks.scenes.wordings import WORDINGS
from experiments.tasks.scoring import score


@pytest.fixture(scope="module")
def task():
    return Scenes(seed=5, num_images={"train": 150, "calibration": 30, "test": 40})


@pytest.fixture(scope="module")
def samples(task):
    return [sample for split in SPLITS for sample in task.samples(split)]


def test_is_a_task_whose_samples_are_grouped_by_picture(task, samples):
    assert isinstance(task, Task)
    assert len({sample.sample_id for sample in samples}) == len(samples)
    groups = [
        sample.image_id
        for before, sample in zip([None, *samples], samples, strict=False)
        if before is None or before.image_id != sample.image_id
    ]
    assert len(groups) == len(set(groups))
    assert all(score(sample.metric, sample.references[0], sample.references) == 1 for sample in samples)


def test_no_picture_and_no_handwriting_is_in_two_splits(task, samples):
    splits_of: dict[str, set[str]] = {}
    for sample in samples:
        splits_of.setdefault(sample.image_id, set()).add(sample.split)
    assert all(len(splits) == 1 for splits in splits_of.values())
    pixels = {
        split: [task.image(f"{split}-{index:06d}").tobytes() for index in range(20)] for split in SPLITS
    }
    assert len({picture for pictures in pixels.values() for picture in pictures}) == 60
    strokes = [handwriting_of(split)[0].reshape(-1, 64) for split in SPLITS]
    assert sum(map(len, strokes)) == 1797
    train, calibration, test = ({row.tobytes() for row in part} for part in strokes)
    assert not (train & calibration or train & test or calibration & test)


def test_a_seed_gives_the_same_bytes_in_any_order():
    def digest(order):
        task = Scenes(seed=3, num_images={"test": 6})
        pictures = {index: task.image(f"test-{index:06d}").tobytes() for index in order}
        texts = [(s.question, s.references) for s in task.samples("test")]
        return hashlib.sha256(b"".join(pictures[i] for i in range(6)) + repr(texts).encode()).hexdigest()

    assert digest(range(6)) == digest(reversed(range(6)))
    assert Scenes(seed=3).fingerprint == Scenes(seed=3).fingerprint != Scenes(seed=4).fingerprint


def test_covers_what_it_promises(task):
    scenes = [task.scene("train", index) for index in range(600)]
    kinds = Counter(question.kind for _, questions in scenes for question in questions)
    assert all(questions for _, questions in scenes)
    assert len(kinds) == 17 and min(kinds.values()) > 20, kinds
    layouts = {
        layout: [s for s, _ in scenes if s.layout == layout] for layout in ("objects", "table", "digits")
    }
    assert {min(len(s.items) for s in part) for part in layouts.values()} <= {1, 2, 3, 4}
    assert max(len(s.items) for s in layouts["objects"]) >= 38
    assert max(len(s.items) for s in layouts["table"]) >= 90
    sizes = [
        question.detail_size for _, questions in scenes for question in questions if question.detail_size
    ]
    assert min(sizes) < 8 and max(sizes) > 150
    # Easy questions on crowded pictures, hard ones on sparse ones.
    backgrounds = [len(s.items) for s, questions in scenes if any(q.kind == "background" for q in questions)]
    cells = [len(s.items) for s, questions in scenes if any(q.kind == "cell" for q in questions)]
    assert max(backgrounds) > 60 and min(cells) < 8


def scene_of(*items, layout="objects"):
    return Scene(layout, 90, "white", "plain", 0, list(items), 3, 3)


def item(color, shape, row, column):
    left, top = 30 * column - 25, 30 * row - 25
    return Item("object", (left, top, left + 20, top + 20), color, shape=shape, row=row, column=column)


def answers(kind, scene):
    rng = random.Random(0)
    return {question.text: question.answer for _ in range(600) if (question := kind(scene, rng))}


def test_answers_are_those_of_the_picture():
    scene = scene_of(item("red", "star", 1, 1), item("blue", "ring", 1, 2), item("red", "ring", 3, 2))
    rng = random.Random(0)
    counts = answers(ask_count, scene)
    assert counts["How many red objects are there?"] == "2"
    assert counts["How many rings are there?"] == "2"
    assert counts["How many blue rings are there?"] == "1"
    existence = answers(ask_existence, scene)
    assert existence.items() >= {"Is there a red ring?": "yes", "Is there a blue star?": "no"}.items()
    places = answers(ask_position, scene)
    assert places == {
        "Where is the red star?": "top left",
        "Where is the blue ring?": "top",
        "Where is the red ring?": "bottom",
    }
    neighbors = answers(ask_neighbor, scene)
    assert neighbors == {
        "What color is the object right of the red star?": "blue",
        "What shape is the object right of the red star?": "ring",
        "What color is the object left of the blue ring?": "red",
        "What shape is the object left of the blue ring?": "star",
    }
    dominant = ask_dominant(scene, rng)
    assert dominant is not None and dominant.answer == "red"
    assert ask(scene, rng, 5) and len({q.text for q in ask(scene, rng, 5)}) == 5


def test_halves_hold_what_lies_in_them():
    scene = scene_of(
        item("red", "star", 1, 1),
        item("red", "ring", 1, 3),
        item("blue", "ring", 3, 3),
        item("red", "star", 3, 3),
    )
    counts = answers(ask_count_half, scene)
    assert counts["How many red objects are in the left half?"] == "1"
    assert counts["How many red objects are in the right half?"] == "2"
    assert counts["How many rings are in the bottom half?"] == "1"
    assert counts["How many blue rings are in the top half?"] == "0"
    existence = answers(ask_existence_half, scene)
    assert existence["Is there a red star in the left half?"] == "yes"
    assert existence["Is there a blue ring in the top half?"] == "no"
    assert existence["Is there a red ring in the bottom half?"] == "no"
    # A thing across the middle has no fair side: column 2 lies on the line between left and right.
    across = scene_of(item("red", "star", 1, 2), item("red", "ring", 3, 1))
    assert {text.split()[-2] for text in answers(ask_count_half, across)} == {"top", "bottom"}


def test_cells_are_counted_from_the_nearer_edge():
    cells = [
        Item("character", (0, 0, 9, 9), "red", text=CHARACTERS[5 * row + column - 6], row=row, column=column)
        for row in range(1, 5)
        for column in range(1, 6)
    ]
    scene = Scene("table", 90, "white", "plain", 0, cells, num_rows=4, num_columns=5)
    asked = answers(ask_cell, scene)
    assert asked["What character is in row 2, column 3?"] == CHARACTERS[7]
    assert asked["What character is in row 1 from the bottom, column 3?"] == CHARACTERS[17]
    assert asked["What character is in row 3, column 2 from the right?"] == CHARACTERS[13]
    assert asked["What character is in row 2 from the bottom, column 3 from the right?"] == CHARACTERS[12]
    labels = label_patches(scene, grid=9).reshape(9, 9, -1)[0, 0]
    heads = dict(zip(HEADS, labels, strict=True))
    # Every cell's box is the same here: the first one wins the patch.
    assert (heads["row"], heads["row from the bottom"], heads["column from the right"]) == (1, 4, 5)


def test_patches_are_labelled_with_what_covers_them():
    labels = label_patches(scene_of(item("red", "star", 1, 1), item("blue", "ring", 3, 2)), grid=3)
    names = list(HEADS)
    grid = labels.reshape(3, 3, len(names))
    assert grid[..., names.index("item")].tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]
    assert grid[0, 0, names.index("color")] == list(COLORS).index("red")
    assert grid[2, 1, names.index("shape")] == SHAPES.index("ring") + 1
    assert grid[1, 1, names.index("color")] == list(COLORS).index("white")
    assert grid[2, 1, [names.index("row"), names.index("column")]].tolist() == [3, 2]
    assert grid[..., names.index("place")].tolist() == [[1, 0, 0], [0, 0, 0], [0, 8, 0]]
    for head, classes in zip(labels.T, HEADS.values(), strict=True):
        assert head.min() >= 0 and head.max() < classes
    sign = Item("sign", (0, 0, 90, 90), "red", text="42", row=1, column=1)
    row = label_patches(scene_of(sign), grid=3).reshape(3, 3, -1)[1]
    assert set(row[:, names.index("item")]) == {TYPES.index("sign")}
    assert row[[0, 2], names.index("column")].tolist() == [1, 2]
    assert set(row[:, names.index("place")]) == {5}  # the sign's center, whichever glyph lies there


def test_every_item_leaves_its_ink(task):
    for index in range(40):
        scene, _ = task.scene("test", index)
        picture = np.asarray(draw(scene, "test")).astype(int)
        bare = np.asarray(
            draw(Scene(scene.layout, scene.size, scene.ground, scene.texture, scene.seed), "test")
        )
        for thing in scene.items:
            left, top, right, bottom = thing.box
            part = np.abs(picture[top:bottom, left:right] - bare[top:bottom, left:right]).max()
            assert part > 50, (index, thing)


def test_bad_arguments_and_ids_are_named():
    with pytest.raises(ValueError, match="validation"):
        Scenes(num_images={"validation": 3})
    with pytest.raises(ValueError, match="image_size=10"):
        Scenes(image_size=10)
    for bad in ("nowhere-000001", "test-../../etc", "test"):
        with pytest.raises(UnreadableImage, match="scene"):
            Scenes().image(bad)


def test_neighbours_pairs_and_centers_are_labelled():
    scene = scene_of(item("red", "star", 1, 1), item("blue", "ring", 1, 2), item("red", "ring", 3, 2))
    grid = label_patches(scene, grid=9).reshape(9, 9, -1)
    names = list(HEADS)

    def pair(color, shape):
        return list(COLORS).index(color) * len(SHAPES) + SHAPES.index(shape) + 1

    star = dict(zip(names, grid[1, 1], strict=True))  # the patch in the middle of the star's cell
    assert star["pair"] == pair("red", "star")
    assert star["pair right of"] == pair("blue", "ring")
    assert [star[f"pair {side}"] for side in ("left of", "above", "below")] == [0, 0, 0]
    assert grid[1, 4, names.index("pair left of")] == pair("red", "star")
    # Every item has one center among the patches that it covers.
    parts = grid[..., names.index("part")]
    assert (parts == CENTER).sum() == 3 and parts[1, 1] == CENTER
    assert set(parts[grid[..., names.index("item")] > 0]) == {BODY, CENTER}


def test_the_shifted_look_changes_pixels_and_words_and_nothing_that_is_asked_for():
    plain, shifted = Scenes(seed=3), Scenes(seed=3, look="shifted")
    assert plain.fingerprint != shifted.fingerprint
    changed = []
    for index in range(30):
        scene, questions = shifted.scene("test", index)
        assert {item.color for item in scene.items} <= set(COLORS)
        assert scene.texture in scene.look.textures and scene.texture not in PLAIN.textures
        texts = {question.text for question in questions}
        assert not texts & {question.text for question in plain.scene("test", index)[1]}
        assert all(0 <= item.box[0] < item.box[2] <= 192 for item in scene.items)
        picture = np.asarray(draw(scene, "test"))
        other = np.asarray(draw(plain.scene("test", index)[0], "test"))
        changed.append((picture != other).any(axis=-1).mean())
    # Not all: a bright pixel may be as bright as can be in both.
    assert np.mean(changed) > 0.95
    # Every form has its words, with the same blanks.
    blanks = [
        {form: set(re.findall(r"{(\w+)}", text)) for form, text in wording.items()}
        for wordings in WORDINGS.values()
        for wording in wordings
    ]
    assert all(each == blanks[0] for each in blanks)
    # No wording of one set is in another: `shifted` stays new to what is trained on the others.
    forms = [
        text.lower() for wordings in WORDINGS.values() for wording in wordings for text in wording.values()
    ]
    assert len(forms) == len(set(forms))
    assert set(SHIFTED.palette) == set(COLORS) and len(SHIFTED.fonts) == len(PLAIN.fonts)
    # Layouts strew up to seven colors over any ground.
    assert all(len(colors_on(ground, look)) >= 7 for look in LOOKS.values() for ground in look.palette)
    with pytest.raises(ValueError, match="unknown look 'new': looks are plain, shifted"):
        Scenes(look="new")


VARIATIONS = (
    {"wording": "shifted"},
    {"wording": "varied"},
    {"rendering": "shifted"},
    *({"corruption": kind} for kind in CORRUPTIONS),
)


@pytest.mark.parametrize("variation", VARIATIONS, ids=lambda variation: "-".join(*variation.items()))
def test_a_variation_keeps_samples_and_references_and_changes_words_or_pixels(variation):
    sizes = {"train": 4, "calibration": 4, "test": 24}
    plain, varied = Scenes(num_images=sizes), Scenes(num_images=sizes, **variation)
    assert plain.fingerprint != varied.fingerprint
    before, after = list(plain.samples("test")), list(varied.samples("test"))
    assert [(s.sample_id, s.references) for s in before] == [(s.sample_id, s.references) for s in after]
    same_words = [first.question == second.question for first, second in zip(before, after, strict=True)]
    ids = [f"test-{index:06d}" for index in range(12)]
    same_pixels = [plain.image(name).tobytes() == varied.image(name).tobytes() for name in ids]
    assert varied.image(ids[0]).size == (192, 192) and varied.image(ids[0]).mode == "RGB"
    assert varied.image(ids[0]).tobytes() == varied.image(ids[0]).tobytes()
    rewords = "wording" in variation
    assert (any(same_words), all(same_pixels)) == ((False, True) if rewords else (True, False))
    assert rewords or (all(same_words) and not any(same_pixels))


def test_noise_has_its_strength():
    gray = np.asarray(corrupt(Image.new("RGB", (96, 96), (128, 128, 128)), "noise", 20.0, seed=0), float)
    assert gray.mean() == pytest.approx(128, abs=1) and gray.std() == pytest.approx(20, abs=1)
    for settings, told in (
        ({"corruption": "rain"}, "unknown corruption 'rain': corruptions are noise, blur, jpeg"),
        ({"wording": "new"}, "unknown wording 'new'"),
        ({"strength": 2.0}, "give corruption, or no strength"),
        ({"corruption": "jpeg", "strength": 100.0}, "strength=100.0 is no quality of a JPEG: give 1 to 95"),
    ):
        with pytest.raises(ValueError, match=told):
            Scenes(**settings)


def test_layouts_are_drawn_as_often_as_asked():
    tables = Scenes(layouts={"table": 1, "signs": 3})
    drawn = Counter(tables.scene("train", index)[0].layout for index in range(300))
    assert set(drawn) == {"table", "signs"} and 190 < drawn["signs"] < 260
    assert tables.fingerprint != Scenes().fingerprint
    with pytest.raises(ValueError, match=r"unknown layouts \['maps'\]: layouts are objects, table"):
        Scenes(layouts={"maps": 1})


@pytest.mark.long
def test_larger_pictures_hold_more():
    large = Scenes(image_size=384)
    scenes = [large.scene("train", index)[0] for index in range(400)]
    assert max(len(s.items) for s in scenes if s.layout == "table") > 400
    assert 100 < max(len(s.items) for s in scenes if s.layout == "objects") <= 160
    for scene in scenes[:60]:
        labels = label_patches(scene, grid=24)
        assert all(head.max() < classes for head, classes in zip(labels.T, HEADS.values(), strict=True))


@pytest.mark.parametrize(
    ("look", "samples_digest", "pixels_digest"),
    [
        ("plain", "8796fbb216f28da0", "1d5a01bd9be74865"),
        ("shifted", "0004b31c647480b5", "edd337d657f328b9"),
    ],
)
def test_pictures_and_questions_are_those_of_version_1(look, samples_digest, pixels_digest):
    """The version stands for them in the fingerprint: where one of them changes, raise `scenes.VERSION`."""
    assert scenes.VERSION == 1
    task = Scenes(seed=5, num_images={"train": 12, "calibration": 4, "test": 8}, look=look)
    samples = [sample for split in SPLITS for sample in task.samples(split)]
    columns = ("sample_id", "image_id", "question", "references", "metric")
    texts = "".join(json.dumps([getattr(sample, name) for name in columns]) for sample in samples)
    assert hashlib.sha256(texts.encode()).hexdigest()[:16] == samples_digest
    if PIL.__version__ == "13.0.0":  # another version may draw other pixels, and is in the fingerprint
        pixels = hashlib.sha256()
        for image_id in dict.fromkeys(sample.image_id for sample in samples):
            pixels.update(task.image(image_id).tobytes())
        assert pixels.hexdigest()[:16] == pixels_digest
