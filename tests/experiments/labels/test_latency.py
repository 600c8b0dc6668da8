"""Timing of backbone and predictors: what is called, what is kept, and which file an evaluation takes."""

import functools
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from PIL import Image

from experiments.evaluation.costs import count_milliseconds
from experiments.evaluation.policies import Paths, ScoredSamples
from experiments.labels import latency as module
from experiments.labels.latency import Latency, measure_latency, pick_questions
from experiments.labels.machine import describe_machine
from experiments.reporting.latency import format_latency
from experiments.results.timings import find_timings, to_timings
from experiments.tasks.base import Sample, Task
from experiments.tasks.images import UnreadableImage
from m3_backbone.llava.random_llava import RandomLlavaBackbone
from predictor.adaptive.inputs import make_inputs
from predictor.base import ScalePredictor
from predictor.classical.baselines import Mix
from predictor.classical.nearest import NearestNeighbours
from predictor.encoders import TransformerEncoder
from predictor.features import Features
from tests.experiments.bench.test_labelling import TINY
from tests.predictor.small_encoder import write_encoder
from tests.predictor.synthetic import label, make_labels

NUM_IMAGES = 5


@dataclass(frozen=True)
class Loaded:
    """A trained predictor, as far as timing looks at it."""

    name: str
    digest: str
    predictor: ScalePredictor


@dataclass
class Pictures(Task):
    """Two questions on each of a few pictures of calibration; one cannot be read, one asked too long."""

    name: str = "pictures"
    fingerprint: str = "f" * 16
    skipped: list[dict[str, Any]] = field(default_factory=list)

    def samples(self, split):
        assert split == "calibration", "only calibration is timed"
        for number in range(NUM_IMAGES + 1):
            for turn in range(2):
                text = f"What is {turn} of {number}?"
                if (number, turn) == (2, 0):
                    text = "why " * 5000
                yield Sample(f"{number}/{turn}", str(number), "pictures", split, text, ("yes",), "exact")

    def image(self, image_id):
        if image_id == "1":
            raise UnreadableImage(image_id, "damaged")
        return Image.new("RGB", (40, 30), (int(image_id), 0, 0))


@pytest.fixture(scope="module")
def backbone():
    return RandomLlavaBackbone(answer_lengths=(1, 2), **TINY)


@pytest.fixture
def predictors(backbone, tmp_path):
    """A predictor that reads nothing, and one that reads tokens and the sentence of a question."""
    features = Features(visual=9, sentences=str(write_encoder(tmp_path / "encoder")))
    questions = pick_questions(Pictures(), backbone, NUM_IMAGES)
    inputs = make_inputs(
        backbone,
        backbone.encode([image for image, _ in questions]),
        [question for _, question in questions],
        features,
        token_embeddings=backbone.token_embeddings(),
    )
    prints = {**backbone.fingerprints, "data": Pictures().fingerprint}
    score = np.random.default_rng(0).integers(0, 2, inputs.visual_tokens.shape).astype(np.float32)
    train, validation = (
        label(inputs, score, image_prefix=prefix, fingerprints=prints) for prefix in ("train", "validation")
    )
    fitted = (Mix(), NearestNeighbours(features=features, num_components=2, name="reading"))
    return [Loaded(each.name, f"digest of {each.name}", each.fit(train, validation)) for each in fitted]


@pytest.fixture
def measure(backbone, predictors, tmp_path):
    settings: dict[str, Any] = {"num_images": 4, "num_rounds": 3}
    return functools.partial(
        measure_latency,
        task=Pictures(),
        backbone=backbone,
        predictors=predictors,
        folder=tmp_path / "latency",
        **settings,
    )


def find(folder, backbone, predictors, *, long_answers=False, **changed):
    prints = {**backbone.fingerprints, "data": Pictures().fingerprint, **changed}
    digests = {each.name: each.digest for each in predictors}
    return find_timings(folder, prints, digests, long_answers=long_answers)


def test_pictures_that_cannot_be_asked_about_are_passed_over(backbone):
    questions = pick_questions(Pictures(), backbone, 4)
    assert [question for _, question in questions] == [
        "What is 0 of 0?",
        "What is 1 of 2?",
        "What is 0 of 3?",
        "What is 0 of 4?",
    ]
    assert len(pick_questions(Pictures(), backbone, 99)) == NUM_IMAGES


def test_the_prefill_for_a_predictor_is_timed_by_itself(backbone, tmp_path):
    features = Features(visual=[], decoder_state=True)
    questions = pick_questions(Pictures(), backbone, NUM_IMAGES)
    encoded = backbone.encode([image for image, _ in questions])
    texts = [question for _, question in questions]
    inputs = make_inputs(backbone, encoded, texts, features, token_embeddings=backbone.token_embeddings())
    prints = {**backbone.fingerprints, "data": Pictures().fingerprint}
    score = np.random.default_rng(0).integers(0, 2, inputs.visual_tokens.shape).astype(np.float32)
    train, validation = (
        label(inputs, score, image_prefix=prefix, fingerprints=prints) for prefix in ("train", "validation")
    )
    gate = Loaded("gate", "digest", NearestNeighbours(features=features).fit(train, validation))
    settings: dict[str, Any] = {"num_images": 4, "num_rounds": 2, "folder": tmp_path / "latency"}
    path, latency = measure_latency(task=Pictures(), backbone=backbone, predictors=[gate], **settings)
    assert latency.prefill is not None and latency.prefill.shape == (4, 2) and latency.prefill.min() > 0
    again = Latency.read(path)
    assert again.prefill is not None
    np.testing.assert_allclose(again.prefill, latency.prefill, atol=1e-4)
    timings = find(tmp_path / "latency", backbone, [gate])
    np.testing.assert_allclose(timings.prefill, again.prefill.mean(axis=1))


@pytest.mark.long
def test_long_answers_are_timed_at_every_scale(measure, backbone, predictors, tmp_path):
    path, latency = measure(output_tokens=4)
    shape = (4, 3, len(backbone.scales))
    assert latency.first_token.shape == latency.per_token.shape == shape
    assert min(latency.first_token.min(), latency.per_token.min()) > 0
    again = Latency.read(path)
    assert again.first_token is not None and again.per_token is not None
    np.testing.assert_allclose(again.per_token, latency.per_token, atol=1e-4)
    # More images without long answers: an evaluation takes these unless it needs long answers.
    measure(num_images=5)
    assert find(tmp_path / "latency", backbone, predictors).per_token is None
    timings = find(tmp_path / "latency", backbone, predictors, long_answers=True)
    np.testing.assert_allclose(timings.first_token, again.first_token.mean(axis=1))
    np.testing.assert_allclose(timings.with_length(11).answer, timings.first_token + 10 * timings.per_token)


def test_long_answers_that_are_refused(measure, backbone, monkeypatch):
    with pytest.raises(ValueError, match=r"latency\.output_tokens=1: give 2 or more, or null"):
        measure(output_tokens=1)
    monkeypatch.setattr(type(backbone), "has_states", False)
    with pytest.raises(ValueError, match="does not divide an answer into prefill and decoding: leave it out"):
        measure(output_tokens=4)


def test_all_samples_are_kept_and_read_back(measure, backbone):
    path, latency = measure()
    num_scales = len(backbone.scales)
    assert latency.vision.shape == (4, 3) and latency.answer.shape == (4, 3, num_scales)
    assert {name: taken.shape for name, taken in latency.overhead.items()} == {
        "mix": (4, 3),
        "reading": (4, 3),
    }
    assert min(latency.vision.min(), latency.answer.min(), latency.overhead["reading"].min()) > 0
    again = Latency.read(path)
    np.testing.assert_allclose(again.answer, latency.answer, atol=1e-4)
    np.testing.assert_allclose(again.overhead["mix"], latency.overhead["mix"], atol=1e-4)
    job = json.loads(path.read_text())["job"]
    assert job["machine"] == describe_machine() and job["num_threads"] >= 1 and job["batch_size"] == 1
    assert job["predictors"] == {"mix": "digest of mix", "reading": "digest of reading"}
    assert job["fingerprints"] == {**backbone.fingerprints, "data": "f" * 16}
    assert "at batch size 1: 4 images in 3 rounds" in format_latency(latency)
    assert format_latency(latency).count("scale ") == num_scales
    assert format_latency(latency).count(" to ") == num_scales + 2  # an interval each, of predictors too


def test_every_round_asks_everything_anew(measure, backbone, predictors, monkeypatch):
    """One vision pass, every scale and every predictor per picture, and each sentence encoded each time."""
    encoded: list[str] = []
    calls: list[Any] = []
    run, answer, encode = TransformerEncoder._run, backbone.answer, backbone.encode

    def record_sentences(self, texts):
        encoded.extend(texts)
        return run(self, texts)

    def record_answer(images, asked, scale, **helps):
        calls.append((asked[0], scale, helps))
        return answer(images, asked, scale)

    def record_vision(images):
        calls.append("vision")
        return encode(images)

    monkeypatch.setattr(TransformerEncoder, "_run", record_sentences)
    monkeypatch.setattr(backbone, "answer", record_answer)
    monkeypatch.setattr(backbone, "encode", record_vision)
    monkeypatch.setattr(module, "NUM_WARMUPS", 0)
    measure()
    questions = [question for _, question in pick_questions(Pictures(), backbone, 4)]
    assert encoded == questions * 3
    assert calls.count("vision") == 4 * 3
    scales = list(backbone.scales)
    orders: list[list[int]] = []
    start = [row for row, call in enumerate(calls) if call == "vision"]
    for begin, end in zip(start, [*start[1:], len(calls)], strict=True):
        (asked,) = {call[0] for call in calls[begin + 1 : end]}
        assert asked == questions[len(orders) % 4]
        assert all(not call[2] for call in calls[begin + 1 : end])  # neither references nor drafts
        orders.append([call[1] for call in calls[begin + 1 : end]])
        assert sorted(orders[-1]) == scales
    # The order is rotated from picture to picture, and for one picture from round to round.
    assert orders[0] != orders[1] and orders[0] != orders[4]


def test_batches_are_whole_and_times_are_per_picture(measure, monkeypatch):
    monkeypatch.setattr(module, "time_call", lambda work: (work(), 0.012))
    _, latency = measure(num_images=5, batch_size=2)
    assert latency.vision.shape == (2, 3)  # of five pictures the last does not fill a batch
    assert (latency.vision == 6).all() and (latency.answer == 6).all()
    timings = to_timings(latency)
    assert timings.batch_size == 2 and timings.means().cost.tolist() == [[12] * len(latency.scales)]
    with pytest.raises(ValueError, match=r"has 5 pictures .* a batch needs 6: lower latency\.batch_size"):
        measure(num_images=6, batch_size=6)
    with pytest.raises(ValueError, match=r"num_images=1 pictures do not fill a batch of 2"):
        measure(num_images=1, batch_size=2)
    with pytest.raises(ValueError, match=r"latency\.num_rounds=0: give 1 or more"):
        measure(num_rounds=0)


@pytest.mark.long
def test_what_has_been_timed_is_not_timed_again(measure, predictors, monkeypatch):
    first, _ = measure()
    before = first.read_bytes()
    monkeypatch.setattr(module, "time_answers", None)
    monkeypatch.setattr(module, "wait_for_lock", None)  # the folder may be read-only
    assert measure()[0] == first and measure(predictors=predictors[::-1])[0] == first
    monkeypatch.undo()
    # Anything else that is timed has a file of its own, beside the first.
    other = [Loaded("mix", "another digest", predictors[0].predictor)]
    paths = [measure(predictors=other)[0], measure(num_rounds=1)[0], measure(batch_size=2)[0]]
    assert len({first, *paths}) == 4 and first.read_bytes() == before
    assert measure(overwrite=True)[0] == first and first.read_bytes() != before
    assert sorted(first.parent.glob("*.*json")) == sorted([first, *paths])


def test_an_evaluation_takes_timings_that_match_alone(
    measure, backbone, predictors, tmp_path, monkeypatch, caplog
):
    folder = tmp_path / "latency"
    assert find(folder, backbone, predictors) is None
    assert "run `tokenscale latency` with the same settings" in caplog.text
    measure(batch_size=2)
    assert find(folder, backbone, predictors) is None
    prints, digests = {**backbone.fingerprints, "data": "f" * 16}, {e.name: e.digest for e in predictors}
    in_batches = find_timings(folder, prints, digests, batch_size=2)
    assert in_batches is not None and in_batches.batch_size == 2
    measure(num_rounds=1)
    _, latency = measure()
    timings = find(folder, backbone, predictors)
    # Of files with the batch size that is asked for, the one with the most samples.
    assert (timings.batch_size, timings.num_rounds) == (1, latency.vision.shape[1])
    assert describe_machine() in timings.machine and "threads" in timings.machine
    with monkeypatch.context() as patch:
        patch.setattr("torch.get_num_threads", lambda: 99)
        assert find(folder, backbone, predictors) is None
    np.testing.assert_allclose(timings.vision, latency.vision.mean(axis=1), atol=1e-4)
    np.testing.assert_allclose(timings.answer, latency.answer.mean(axis=1), atol=1e-4)
    assert find(folder, backbone, predictors[:1]) is not None
    assert find(folder, backbone, predictors, weights="other") is None
    assert find(folder, backbone, predictors, data="other") is None
    other = Loaded("mix", "another digest", predictors[0].predictor)
    assert find(folder, backbone, [other, predictors[1]]) is None
    monkeypatch.setattr("experiments.results.timings.describe_machine", lambda: "another machine")
    assert find(folder, backbone, predictors) is None


def test_a_damaged_file_is_named(measure, backbone, predictors, tmp_path):
    path, _ = measure()
    content = json.loads(path.read_text())
    del content["milliseconds"]["overhead"]["mix"]
    times = {name: json.loads(path.read_text()) for name in ("nan", "negative")}
    for wrong, value in (("nan", float("nan")), ("negative", -1.0)):
        del times[wrong]["digest"]
        times[wrong]["milliseconds"]["vision"][0][0] = value
    wrong_times = [json.dumps(each) for each in times.values()]
    for text in ("{", json.dumps(content), json.dumps({**content, "format": 99}), *wrong_times):
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"{path.name} is not a complete file of timings .*delete it"):
            find(tmp_path / "latency", backbone, predictors)


def test_a_damaged_file_is_measured_again_by_the_same_command(
    measure, backbone, predictors, tmp_path, caplog
):
    path, _ = measure()
    for text in ("", "{", path.read_text()[:-20]):
        path.write_text(text)
        again, latency = measure()
        assert again == path and len(latency.vision)
        assert f"measured again: {path} is not a complete file of timings" in caplog.text
        assert find(tmp_path / "latency", backbone, predictors) is not None


def test_the_account_of_a_measured_file(measure, backbone, predictors):
    """From the file to what cascades pay: all scales tried, and one vision pass."""
    _, latency = measure()
    table = make_labels(3, 0).outcomes
    timings = to_timings(latency)
    kept = type(timings)(timings.vision, timings.answer[:, :3], timings.overhead)
    samples = ScoredSamples.of(table, count_milliseconds(kept))
    vision, answer = latency.vision.mean(), latency.answer.mean(axis=(0, 1))[:3]
    costs = Paths.escalating(3).cost(samples)[0]
    assert costs == pytest.approx(
        [
            vision + answer[0],
            vision + answer[:2].sum(),
            vision + answer.sum(),
            vision + answer[1],
            vision + answer[1:].sum(),
            vision + answer[2],
        ]
    )
