"""The test split is opened in one place, after the evaluation has been written down."""

import ast
import json
from dataclasses import replace

import pytest

from experiments.labels import held_out
from experiments.labels.held_out import EvaluationLog, EvaluationRecorder
from experiments.reporting.findings import describe_record
from m3_backbone.outcomes.labels import read_labels
from m3_backbone.outcomes.manifest import read_manifest
from tests.predictor.synthetic import make_labels, write_labels
from tests.test_imports import MODULES, module_name


@pytest.fixture
def labels(tmp_path):
    return write(tmp_path / "labels")


def write(folder, data="bb", **splits):
    """A label folder of task `task`; the splits are labels, or numbers of images `SPLIT-0-0`, ..."""
    parts = {
        name: make_labels(part, 0, split=name) if isinstance(part, int) else part
        for name, part in (splits or {"test": 4}).items()
    }
    for name, part in parts.items():
        outcomes = replace(part.outcomes, fingerprints={**part.outcomes.fingerprints, "data": data})
        parts[name] = replace(part, outcomes=outcomes)
    write_labels(folder, parts)
    name_labels(folder, backbone="small", task="task")
    return folder


def name_labels(folder, **names):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | names))


def evaluate(labels, configuration="seed: 0", **predictors):
    recorder = EvaluationRecorder(labels.parent / "records", "evaluate", configuration)
    return recorder.open_test(labels, predictors)[1]


def read_log(labels):
    return EvaluationLog.of(labels.parent / "records", read_manifest(labels)).read()


def test_an_evaluation_is_new_if_one_of_its_predictors_is(labels):
    """{a}, {a} again, {b}, {a, b}, {b, c}, {c}: three evaluations of new predictors, of six."""
    sets = [{"x": "a"}, {"x": "a"}, {"x": "b"}, {"x": "a", "y": "b"}, {"x": "b", "y": "c"}, {"z": "c"}]
    records = [evaluate(labels, **predictors) for predictors in sets]
    assert [each.number for each in records] == [1, 2, 3, 4, 5, 6]
    assert [each.is_new for each in records] == [True, False, True, False, True, False]
    assert [each.evaluation for each in records] == [1, 1, 2, 2, 3, 3]
    assert all(each.is_recorded for each in records) and records[4].predictors == ("x", "y")


def test_a_description_of_the_data_is_no_evaluation(labels):
    assert evaluate(labels).evaluation == 0 and not evaluate(labels).is_new
    assert (evaluate(labels, one="a").number, evaluate(labels).evaluation) == (3, 1)


def test_the_record_is_written_before_the_split_is_read_and_names_its_images(labels, monkeypatch):
    def die(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(held_out, "read_labels", die)
    with pytest.raises(KeyboardInterrupt):
        evaluate(labels, one="a")
    (line,) = read_log(labels)
    assert line["predictors"] == {"one": "a"} and line["time"].startswith("20")
    log = EvaluationLog.of(labels.parent / "records", read_manifest(labels))
    assert log.read_images(line["images"]) == {f"test-0-{number}" for number in range(4)}


def test_records_outlive_labels_that_are_made_again(labels, tmp_path):
    evaluate(labels, one="a")
    labels.rename(tmp_path / "thrown away")
    assert evaluate(write(labels), one="b").evaluation == 2


def test_after_another_division_images_that_were_evaluated_are_counted(tmp_path):
    """Five images were evaluated; now three of them are test images again, and two train images."""
    evaluate(write(tmp_path / "first", "first", test=5), one="a")
    record = evaluate(write(tmp_path / "second", "second", test=3, train=9), one="a")
    assert (record.number, record.evaluation) == (1, 1)
    assert (record.num_evaluated_before, record.num_once_test) == (3, 0)
    # Train images that were test images, as a new division leaves them.
    train = make_labels(5, 0, split="train")
    train.outcomes.image_id[:] = [name.replace("train", "test") for name in train.outcomes.image_id]
    third = write(tmp_path / "third", "third", test=make_labels(2, 1, split="test"), train=train)
    assert (evaluate(third).num_evaluated_before, evaluate(third).num_once_test) == (0, 5)
    # Other pictures that happen to have the same ids are not these.
    name_labels(third, image_set="others")
    assert evaluate(third).num_once_test == 0


def test_images_evaluated_with_another_backbone_under_another_division_count(tmp_path):
    first = write(tmp_path / "first", "first", test=5)
    name_labels(first, backbone="other")
    path = evaluate(first, one="a").path
    second = write(tmp_path / "second", "second", test=3)
    assert evaluate(second, one="a").num_evaluated_before == 3
    # A list of images that is lost is said, and not taken for none.
    for damaged in path.with_suffix(".images").iterdir():
        damaged.write_text("[")
    record = evaluate(second, one="a")
    assert (record.num_evaluated_before, record.num_unread) == (0, 1)
    assert "Images of 1 earlier evaluations could not be read" in describe_record(record)


def test_a_changed_list_of_images_does_not_count_and_is_written_anew(tmp_path, caplog):
    path = evaluate(write(tmp_path / "first", "first", test=5), one="a").path
    (images,) = path.with_suffix(".images").iterdir()
    whole = images.read_bytes()
    images.write_bytes(whole.replace(b"test-0-1", b"test-0-9"))
    assert EvaluationLog(path).read_images(images.stem) is None
    assert f"not counted: {images} (its content does not have the digest in its name)" in caplog.text
    assert evaluate(write(tmp_path / "second", "second", test=3), one="a").num_unread == 1
    evaluate(tmp_path / "first", one="a")
    assert images.read_bytes() == whole


def test_an_image_in_two_splits_is_refused_before_the_record(tmp_path):
    train = make_labels(2, 0, split="train")
    train.outcomes.image_id[:] = [name.replace("train", "test") for name in train.outcomes.image_id]
    labels = write(tmp_path / "labels", test=3, train=train)
    with pytest.raises(ValueError, match=r"image 'test-0-0' is in train and in test: move the labels away"):
        evaluate(labels, one="a")
    assert not (tmp_path / "records").exists()


def test_a_record_that_cannot_be_written_ends_the_evaluation_before_reading(labels, monkeypatch):
    (labels.parent / "records").write_text("a file where the folder belongs")
    monkeypatch.setattr(held_out, "read_labels", lambda *arguments: pytest.fail("the split was read"))
    with pytest.raises(ValueError, match=r"cannot be recorded in .*paths\.evaluations=FOLDER.*allow_unrec"):
        evaluate(labels, one="a")


def test_going_on_unrecorded_is_allowed_on_demand(labels):
    (labels.parent / "records").write_text("a file where the folder belongs")
    recorder = EvaluationRecorder(labels.parent / "records", "evaluate", allow_unrecorded=True)
    split, record = recorder.open_test(labels, {"one": "a"})
    assert len(split) == 16 and not record.is_recorded
    assert (record.number, record.evaluation, record.is_new) == (1, 1, True)


def test_reads_recorded_beside_the_labels_by_the_first_version_count(labels):
    lines = [{"predictors": {"one": "a"}, "data": "bb"}, {"predictors": {}, "data": "other"}]
    (labels / "test_reads.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    former = {"labels": {"fingerprints": {"data": "bb"}}, "splits": read_manifest(labels)["splits"]}
    name_labels(labels, former=former)
    record = evaluate(labels, one="b")
    assert (record.number, record.evaluation) == (2, 2)


def test_line_that_a_kill_cut_short_does_not_count_nor_swallow_the_next(labels):
    path = evaluate(labels, one="a").path
    with path.open("a") as lines:
        lines.write("[" * 100_000 + "\n")
        lines.write('{"time": "2026-')
    assert evaluate(labels, one="b").evaluation == 2
    assert len(read_log(labels)) == 2


def test_names_with_separators_of_lines_count(labels):
    assert evaluate(labels, **{"one\u2028two": "a", "three\x85four": "b"}).evaluation == 1
    assert evaluate(labels, one="c").evaluation == 2


def test_configuration_is_told_apart_by_its_digest(labels):
    digests = [evaluate(labels, text).configuration for text in ("seed: 0", "seed: 0", "seed: 1")]
    assert digests[0] == digests[1] != digests[2]


def test_only_one_module_grants_access_to_the_test_split():
    """Whoever else makes a `HeldOutAccess` reads the test split unrecorded."""
    makers = {
        module_name(path)
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "HeldOutAccess"
    }
    assert makers == {"experiments.labels.held_out"}


def test_without_access_the_split_stays_shut(labels):
    with pytest.raises(ValueError, match="recorded evaluations only"):
        read_labels(labels, "test")
