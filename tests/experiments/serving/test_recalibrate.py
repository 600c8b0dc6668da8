"""Recalibration: prices, guarantee and calibrator from samples of one's own, of labels and of a record."""

import copy
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from experiments.command_line.script import find_config_dir
from experiments.recalibrate import main
from experiments.serving.drift import Record, identify_model
from experiments.serving.recalibration import read_label_samples, read_record
from m3_backbone.outcomes.labels import read_labels
from predictor.adaptive.inputs import make_inputs
from predictor.adaptive.model import AdaptiveVLM
from predictor.calibration import Isotonic
from predictor.classical.question_only import QuestionOnly
from predictor.features import Features
from predictor.splitting import split_for_calibrator
from tests.experiments.serving.conftest import COLOR, COUNT, draw_picture
from tests.experiments.serving.test_drift import SCALES, compare
from tests.predictor.synthetic import label, write_labels

NUM_IMAGES = 60


@pytest.fixture(scope="module")
def published(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def inputs(model):
    """One question on color and one on a count about each image."""
    backbone = model.backbone
    made = make_inputs(
        backbone,
        backbone.encode([draw_picture()]) * 2,
        [COLOR, COUNT],
        QuestionOnly.features,
        token_embeddings=backbone.token_embeddings(),
    )
    rows = np.tile([0, 1], NUM_IMAGES)
    many = made.select(rows)
    return replace(
        many,
        image_row=np.repeat(np.arange(NUM_IMAGES), 2),
        statistics=np.repeat(made.statistics, NUM_IMAGES, axis=0),
    )


@pytest.fixture(scope="module")
def write(model, inputs, tmp_path_factory):
    """Write calibration labels with these scores of questions on color and on counts."""

    def write_scores(color, count):
        score = np.array([color if question == COLOR else count for question in inputs.question])
        fingerprints = {**model.backbone.fingerprints, "data": "own"}
        labels = label(inputs, score.astype(np.float32), image_prefix="own", fingerprints=fingerprints)
        folder = tmp_path_factory.mktemp("labels")
        write_labels(folder, {"calibration": labels})
        return folder

    return write_scores


def recalibrate(capsys, output, *overrides):
    """What the command printed, and the model that it wrote; else its error."""
    with initialize_config_dir(str(find_config_dir()), version_base="1.3"):
        config = compose("recalibrate", [f"output={output}", *overrides])
    capsys.readouterr()
    try:
        main(config)
    except SystemExit:
        return capsys.readouterr().err, None
    return capsys.readouterr().out, AdaptiveVLM.from_pretrained(output)


def choose(model):
    """Scales of a question on color and one on a count at the default price."""
    encoded = model.encode([draw_picture()] * 2)
    return [choice.scale for choice in model.choose(encoded, [COLOR, COUNT])]


FINE, ANY = [0, 0, 0, 1], [1, 1, 1, 1]


def test_prices_follow_the_samples(published, write, model, tmp_path, capsys):
    """The coarsest scale is enough for everything here: the price rises until all questions get it."""
    assert choose(model) == [1, 144]
    text, found = recalibrate(
        capsys,
        tmp_path / "new",
        f"folder={published}",
        f"paths.labels={write(ANY, ANY)}",
        "guarantee.alpha=0.1",
    )
    assert choose(found) == [1, 1]
    before, after = (re.search(rf"^{when} +default .*", text, re.M) for when in ("before", "after"))
    assert before and before[0].split()[5:7] == ["72.5", "0.0"]
    assert after and after[0].split()[5:7] == ["1", "0.0"]
    # No answer differs at any scale, and neither does the loss: all bounds are small.
    assert found.prices.named["guarantee"].cost == 1
    assert all(point.disagreement < 0.1 for point in found.prices.points)
    assert found.hybrid is not None and model.hybrid is None
    assert choose(AdaptiveVLM.from_pretrained(published)) == [1, 144]  # what was read is unchanged


def test_a_calibrator_mends_estimates_that_no_longer_hold(published, write, tmp_path, capsys):
    """Colors need the finest scale now, which only a calibrator can learn."""
    labels = f"paths.labels={write(FINE, FINE)}"
    _, priced = recalibrate(capsys, tmp_path / "a", f"folder={published}", labels)
    assert choose(priced)[0] == 1 and "guarantee" not in priced.prices.named
    text, calibrated = recalibrate(
        capsys, tmp_path / "b", f"folder={published}", labels, "calibrator=isotonic"
    )
    assert choose(calibrated) == [144, 144] and isinstance(calibrated.predictor.calibrator, Isotonic)
    assert calibrated.prices.default.score == 1
    assert re.search(r"^before +default .*\+50\.0", text, re.M), text


def test_fewer_images_state_less(published, write, tmp_path, capsys):
    labels = f"paths.labels={write(ANY, FINE)}"
    options = (f"folder={published}", labels, "guarantee.alpha=0.1")
    _, many = recalibrate(capsys, tmp_path / "many", *options)
    _, few = recalibrate(capsys, tmp_path / "few", *options, "num_images=20")
    assert few.prices.default.disagreement > many.prices.default.disagreement
    text, _ = recalibrate(capsys, tmp_path / "none", *options, "num_images=61")
    assert "num_images=61: the samples have 60 images: give fewer, or label more" in text
    assert not (tmp_path / "none").exists()


def write_record(path, model, agrees):
    """A record of 80 answers about 40 images; those on counts agree with the finest scale as in `agrees`."""
    record = Record(path, identify_model(model.backbone, model.predictor), 10**6)
    for number in range(80):
        compared = compare(differs=False)
        easy = dict.fromkeys(SCALES, 0.99)
        hard = {1: 0.01, 9: 0.01, 36: 0.02, 144: 0.99}
        chosen = compared.chosen.model_copy(update={"estimates": hard if number % 2 else easy})
        texts = agrees if number % 2 else ANY
        answers = {scale: "red" if same else "blue" for scale, same in zip(SCALES, texts, strict=True)}
        record.add(replace(compared, chosen=chosen, answers=answers, image=f"image{number // 2}"))


def test_the_record_of_a_server_is_enough_for_prices(published, model, tmp_path, capsys):
    path = tmp_path / "record.jsonl"
    write_record(path, model, FINE)
    with path.open("a") as file:
        file.write('not JSON\n{"model": 1}\n' + json.dumps({"model": "other"}) + "\n")
    options = (f"folder={published}", f"record={path}", "guarantee.alpha=0.1")
    _, found = recalibrate(capsys, tmp_path / "fine", *options)
    assert found.prices.default.cost == 72.5 and found.prices.default.score == 1
    assert found.prices.named["guarantee"].cost == 72.5
    path.unlink()
    write_record(path, model, ANY)
    _, found = recalibrate(capsys, tmp_path / "any", *options)
    assert found.prices.default.cost == 1 and found.prices.named["guarantee"].cost == 1


def test_tokens_that_the_predictor_needs_are_part_of_the_costs_of_a_record(model, tmp_path):
    """The server records those of the answers alone."""
    path = tmp_path / "record.jsonl"
    write_record(path, model, ANY)
    identity = identify_model(model.backbone, model.predictor)
    for features, expected in (
        (Features(), [1, 9, 36, 144]),
        (Features(decoder_state=True), [1, 10, 37, 145]),
        (Features(self_asking=True), [2, 10, 37, 145]),
    ):
        samples = read_record(path, identity, features, SCALES, "pooled")
        assert samples.outcomes.visual_tokens[0].tolist() == expected


def test_a_guarantee_is_not_certified_on_samples_of_the_calibrator(model, write, inputs):
    labels = read_labels(write(FINE, FINE), "calibration")
    predictor = copy.deepcopy(model.predictor)
    assert len(read_label_samples(predictor, labels, None, None).outcomes) == len(labels)
    half, rest = split_for_calibrator(labels)
    predictor.calibrate(half, Isotonic())
    samples = read_label_samples(predictor, labels, None, None)
    assert set(samples.outcomes.sample_id) == set(rest.outcomes.sample_id)


def test_records_and_folders_that_do_not_fit_are_refused(published, model, tmp_path, capsys):
    path = tmp_path / "record.jsonl"
    write_record(path, model, ANY)
    for options, message in (
        ([f"record={path}", "calibrator=isotonic"], "leave out calibrator, and give folder"),
        ([f"record={path}", f"output={published}"], "is the folder that is read: give another one"),
        ([f"record={tmp_path / 'none'}"], "No such file"),
    ):
        text, _ = recalibrate(capsys, tmp_path / "new", f"folder={published}", *options)
        assert message in text and text.startswith("error: "), text
    with pytest.raises(ValueError, match=r"has no answer of this model \(80 of others, 0 damaged lines\)"):
        read_record(path, "another", Features(), SCALES, "pooled")
    with pytest.raises(ValueError, match=r"\(0 of others, 80 damaged lines\)"):
        read_record(path, identify_model(model.backbone, model.predictor), Features(), SCALES[:3], "pooled")
    assert not (tmp_path / "new").exists()
