"""Drawn answers to test questions: the same scores whatever happens on the way, and the oracle they make."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from experiments.evaluation.comparing import compare_policies
from experiments.evaluation.policies import PredictorPolicy
from experiments.evaluation.statistics import Bootstrap
from experiments.labels import resampling as resample_job
from experiments.labels.engines import LocalEngine
from experiments.labels.labelling import label
from experiments.labels.resampled import RESAMPLED, Part, Resampled, ResampledFolder, read_resampled
from experiments.labels.resampling import DrawnAnswers, resample_answers
from experiments.tasks.images import UnreadableImage
from experiments.tasks.scenes import Scenes
from experiments.tasks.scoring import score
from m3_backbone.decoding.sampling import Draw
from m3_backbone.llava.backbone import LlavaBackbone
from tests.experiments.evaluation.synthetic import estimate_outcomes, make_outcomes
from tests.held_out import read_outcomes


def draw(table, num_runs=4, seed=0):
    """Runs of the first 40 samples in which each answer is right with the chance that a predictor knows."""
    chance = estimate_outcomes(table)[:40]
    right = np.random.default_rng(seed).random((num_runs, *chance.shape)) < chance
    return Resampled(np.arange(40), right.astype(np.float64))


def make_folder(labels, table, temperature=1.0, seed=0):
    return ResampledFolder(labels, table.fingerprints, DrawnAnswers(temperature, seed).identity)


def test_scores_come_back_for_the_samples_they_belong_to(tmp_path):
    table = make_outcomes("test", 30)
    assert read_resampled(tmp_path, table) is None
    drawn, folder = draw(table), make_folder(tmp_path, table)
    folder.begin(table.sample_id)
    assert read_resampled(tmp_path, table) is None
    folder.write("test-00000", table.sample_id[:25], drawn.score[:, :25])
    folder.write("test-00001", table.sample_id[25:40], drawn.score[:3, 25:])
    # Samples are known by name: the order of the table does not matter; runs that all samples have count.
    order = np.random.default_rng(1).permutation(len(table))
    found = read_resampled(tmp_path, table.select(order))
    assert found is not None and np.array_equal(order[found.rows], drawn.rows)
    assert np.array_equal(found.score, drawn.score[:3])

    assert folder.holds("test-00000", table.sample_id[:20], 4)
    assert not folder.holds("test-00000", table.sample_id[:20], 5)
    assert not folder.holds("test-00000", table.sample_id[:30], 4)
    assert not folder.holds("test-00002", table.sample_id[:1], 1)
    other = replace(table, fingerprints={**table.fingerprints, "weights": "other"})
    assert not make_folder(tmp_path, other).holds("test-00000", table.sample_id[:20], 4)
    with pytest.raises(ValueError, match=r"different weights.*resample again"):
        read_resampled(tmp_path, other)
    # Of samples that another division has moved out of the test split none count.
    assert read_resampled(tmp_path, table.select(np.arange(40, len(table)))) is None
    part = read_resampled(tmp_path, table.select(np.arange(20, len(table))))
    assert part is not None and part.rows.tolist() == list(range(20))
    assert np.array_equal(part.score, drawn.score[:3, 20:])
    folder.begin(table.sample_id[20:])
    assert [path.name for path in (tmp_path / RESAMPLED).iterdir()] == ["test-00001.safetensors"]


@pytest.mark.parametrize(
    ("score", "samples", "reason"),
    [
        (np.zeros((2, 1, 3)), ["a", "b"], r"scores of shape \[2, 1, 3\] for 2 samples"),
        (np.zeros(3), ["a"], r"scores of shape \[3\] for 1 samples"),
        (np.full((2, 1, 3), np.nan), ["a"], r"a score is outside \[0, 1\]"),
        (np.full((2, 1, 3), 1.5), ["a"], r"a score is outside \[0, 1\]"),
        (np.zeros((2, 1, 3)), "a", "fingerprints, variation or samples are of another type"),
    ],
)
def test_scores_that_are_none_are_refused_by_name(tmp_path, score, samples, reason):
    path = tmp_path / "test-00000.safetensors"
    Part({"weights": "aa"}, {}, samples, score).write(path)
    with pytest.raises(ValueError, match=rf"test-00000.safetensors is damaged \({reason}"):
        Part.read(path)


def test_scores_at_other_scales_are_refused_by_name(tmp_path):
    table = make_outcomes("test", 30)
    folder = make_folder(tmp_path, table)
    folder.begin(table.sample_id)
    folder.write("test-00000", table.sample_id[:5], draw(table).score[:, :5, :2])
    with pytest.raises(ValueError, match=r"test-00000.safetensors has scores at 2 scales, the labels have "):
        read_resampled(tmp_path, table)


def test_what_cannot_be_used_is_moved_aside_and_other_draws_are_not(tmp_path):
    table = make_outcomes("test", 30)
    drawn, folder = draw(table), make_folder(tmp_path, table)
    folder.begin(table.sample_id)
    for number in (0, 1):
        folder.write(f"test-0000{number}", table.sample_id[:40], drawn.score)
    first, second = sorted((tmp_path / RESAMPLED).iterdir())
    first.write_bytes(first.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"test-00000.safetensors is damaged"):
        read_resampled(tmp_path, table)
    (tmp_path / RESAMPLED / ".test-00002.safetensors.1.tmp").touch()
    folder.begin(table.sample_id)
    assert list((tmp_path / RESAMPLED).iterdir()) == [second]
    warmer = make_folder(tmp_path, table, temperature=2, seed=3)
    with pytest.raises(
        ValueError, match=r"temperature=1.0, seed=0, not temperature=2.0, seed=3.*overwrite=true"
    ):
        warmer.begin(table.sample_id)
    assert second.exists()
    content = second.read_bytes()
    warmer.begin(table.sample_id, overwrite=True)
    assert not second.exists()
    # Answers are moved beside the folder and never deleted, damaged ones included.
    kept = sorted(tmp_path.glob("resampled.replaced-*/*"))
    assert [path.name for path in kept] == [first.name, second.name]
    assert kept[1].read_bytes() == content
    folder.write("test-00000", table.sample_id[:40], drawn.score)
    other = replace(table, fingerprints={**table.fingerprints, "weights": "other"})
    make_folder(tmp_path, other, temperature=2).begin(table.sample_id)
    assert not first.exists()
    assert len(list(tmp_path.glob("resampled.replaced-*/test-00000.safetensors"))) == 2
    with pytest.raises(ValueError, match="temperature=0: give a number above 0"):
        make_folder(tmp_path, table, temperature=0)


def test_answers_that_are_there_are_not_lost_to_fewer(tmp_path):
    table = make_outcomes("test", 30)
    drawn, folder = draw(table), make_folder(tmp_path, table)
    folder.begin(table.sample_id)
    folder.write("test-00000", table.sample_id[:40], drawn.score)
    folder.refuse_less({"test-00000": table.sample_id[:50], "test-00001": table.sample_id[50:]}, 4)
    folder.refuse_less({"test-00000": table.sample_id[:20]}, 3)  # more than these are there: nothing to do
    with pytest.raises(ValueError, match=r"num_runs=3: .* holds 4 answers to every question: give at least"):
        folder.refuse_less({"test-00000": table.sample_id[:50]}, 3)
    with pytest.raises(ValueError, match=r"num_images: .* give at least as many images"):
        folder.refuse_less({"test-00000": table.sample_id[:20]}, 5)


def test_the_oracle_of_drawn_answers_has_less_to_gain_than_that_of_one_run():
    calibration, test = make_outcomes("calibration", 40), make_outcomes("test", 30)
    contender = PredictorPolicy("known", estimate_outcomes(calibration), estimate_outcomes(test))
    drawn = draw(test, num_runs=8)
    one = replace(test.select(drawn.rows), score=drawn.score[0].astype(np.float32))
    found = compare_policies(
        calibration,
        one,
        [replace(contender, test=contender.test[:40])],
        resampled=drawn,
        bootstrap=Bootstrap(20),
    )
    resampled = found.noise_free["resampled"]
    assert (resampled.num_runs, resampled.num_samples) == (8, 40)
    assert 0 < resampled.gap.value < found.oracle_gap.value
    assert np.allclose(resampled.fixed_score.value, drawn.score.mean((0, 1)))


class Bench:
    """Labels of the packaged model on a few pictures, in a folder of their own for every test."""

    def __init__(self, finished: Path, labels: Path) -> None:
        shutil.copytree(finished, labels)
        self.labels, self.task = labels, Scenes(seed=5)
        self.test = read_outcomes(labels, "test")

    def resample(self, *, temperature=1.0, seed=0, batch_size=64, num_images=4, **arguments):
        return resample_answers(
            make_backbone(batch_size=batch_size),
            self.task,
            self.test,
            make_folder(self.labels, self.test, temperature, seed),
            DrawnAnswers(temperature, seed),
            num_images=num_images,
            **{"num_runs": 3} | arguments,
        )


def make_backbone(**arguments):
    return LlavaBackbone("tiny_m3", dtype="float32", device="cpu", **arguments)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "labels"
    limit = {"train": 0, "calibration": 0, "test": 4}
    label(task=Scenes(seed=5), backbone=make_backbone(), folder=folder, limit=limit, num_workers=0)
    return folder


@pytest.fixture
def bench(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(resample_job, "SHARD_SIZE", 5)  # one picture to a file
    return Bench(finished, tmp_path / "labels")


@pytest.fixture(scope="module")
def undisturbed(finished, tmp_path_factory):
    """Three runs on all pictures, in one file."""
    return Bench(finished, tmp_path_factory.mktemp("undisturbed") / "labels").resample()


def assert_same(found, expected):
    assert np.array_equal(found.rows, expected.rows) and np.array_equal(found.score, expected.score)


@pytest.mark.long
def test_scores_are_those_of_answers_drawn_one_by_one(undisturbed, bench):
    """A few of them, each drawn alone, without a draft, on an image encoded alone."""
    backbone, test = make_backbone(), bench.test
    assert len(undisturbed.rows) == len(test) and 0 < undisturbed.score.mean() < 1
    assert not (undisturbed.score == undisturbed.score[0]).all()
    for row in range(0, len(test), 5):
        encoded = backbone.encode([bench.task.image(test.image_id[row])])
        for column, scale in enumerate(test.scales):
            for run in range(3):
                one = Draw(1.0, (0, test.sample_id[row], scale, run))
                (answer,) = backbone.answer(encoded, [test.question[row]], scale, draws=[one])
                expected = score(test.metric[row], answer.text, test.references[row])
                assert undisturbed.score[run, row, column] == expected


@pytest.mark.long
def test_cold_draws_have_the_scores_of_the_labels(bench):
    found = bench.resample(temperature=1e-9)
    assert np.array_equal(found.score, np.broadcast_to(bench.test.score[found.rows], found.score.shape))


@pytest.mark.long
def test_batches_workers_and_files_do_not_change_the_scores(undisturbed, bench):
    assert_same(bench.resample(batch_size=3, images_per_batch=1, num_workers=1), undisturbed)
    files = [path for path in (bench.labels / RESAMPLED).iterdir() if path.is_file()]
    assert len(files) == 4
    other = bench.resample(seed=1, overwrite=True)
    assert not np.array_equal(other.score, undisturbed.score)


class Stopped(Exception):
    pass


class StoppingEngine(LocalEngine):
    """Dies while it works on the third block."""

    def run(self, job, sizes):
        for number, _ in enumerate(super().run(job, sizes)):
            if number == 2:
                raise Stopped
            yield 1


class CountingEngine(LocalEngine):
    def run(self, job, sizes):
        self.names = list(sizes)
        yield from super().run(job, sizes)


def test_a_stopped_run_goes_on_with_what_is_missing(undisturbed, bench):
    with pytest.raises(Stopped):
        bench.resample(engine=StoppingEngine(), images_per_batch=1)
    part = read_resampled(bench.labels, bench.test)
    assert part is not None and 0 < len(part.rows) < len(bench.test)
    assert np.array_equal(part.score, undisturbed.score[:, part.rows])
    engine = CountingEngine()
    assert_same(bench.resample(engine=engine), undisturbed)
    assert engine.names == ["test-00002", "test-00003"]
    # All of it is there: nothing is done, whether as much is asked for or less.
    assert_same(bench.resample(engine=engine, num_images=1, num_runs=2), undisturbed)
    assert engine.names == []


def test_two_runs_on_one_folder_wait_for_each_other_unless_all_is_there(undisturbed, bench):
    other = FileLock(bench.labels / ".lock-resample", thread_local=False)
    with ThreadPoolExecutor(1) as pool:
        with other:
            waiting = pool.submit(bench.resample)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=2)
            assert read_resampled(bench.labels, bench.test) is None
        assert_same(waiting.result(), undisturbed)
    with other:  # a finished folder may be read-only
        assert_same(bench.resample(), undisturbed)


@pytest.mark.long
def test_more_images_and_more_runs_keep_the_draws_that_there_are(undisturbed, bench):
    two = bench.resample(num_images=2, num_runs=2)
    assert 0 < len(two.rows) < len(bench.test)
    assert np.array_equal(two.score, undisturbed.score[:2, two.rows])
    assert_same(bench.resample(), undisturbed)


def test_mistakes_are_named(bench):
    with pytest.raises(ValueError, match="num_runs=1 leaves no second run to choose the scale by"):
        bench.resample(num_runs=1)
    with pytest.raises(ValueError, match="have no question"):
        bench.resample(num_images=0)

    def fail(image_id):
        raise UnreadableImage(image_id, "it is gone")

    bench.task.image = fail
    with pytest.raises(
        OSError, match=r"cannot read image 'test.*: it is gone; it was readable when it was labelled"
    ):
        bench.resample()
    bench.task = Scenes(seed=6)
    with pytest.raises(ValueError, match="made from other data"):
        bench.resample()
