"""The test split is read in one place, and who read it is written down."""

import ast

import pytest

from experiments.held_out import TEST_READS, digest_folder, list_reads, read_test
from tests.predictor.synthetic import make_labels, write_labels
from tests.test_imports import MODULES, module_name

# Beside the one place: a command that labels the test split itself, to compare backbones of its own making.
DESCRIBING = {"experiments.figure2"}


@pytest.fixture
def labels(tmp_path):
    write_labels(tmp_path / "labels", {"test": make_labels(4, 0, split="test")})
    return tmp_path / "labels"


def read(labels, **predictors):
    return read_test(labels, command="evaluate", configuration="seed: 0", predictors=predictors)[1]


def test_reads_are_counted_and_looks_are_of_new_predictors(labels):
    first = read(labels, one="aa")
    assert (first.number, first.look, first.is_recorded) == (1, 1, True)
    assert (read(labels, one="aa").number, read(labels, one="aa").look) == (2, 1)
    changed = read(labels, one="bb")
    assert (changed.number, changed.look) == (4, 2)
    both = read(labels, one="bb", two="cc")
    assert (both.number, both.look, both.predictors) == (5, 3, ("one", "two"))
    assert read(labels, one="aa").look == 1
    lines = list_reads(labels)
    assert [line["predictors"] for line in lines[-2:]] == [{"one": "bb", "two": "cc"}, {"one": "aa"}]
    assert lines[0]["command"] == "evaluate" and lines[0]["time"].startswith("20")


def test_a_read_that_judges_no_predictor_is_no_look(labels):
    assert read(labels).look == 0
    assert (read(labels, one="aa").number, read(labels, one="aa").look) == (2, 1)


def test_configuration_is_told_apart_by_its_digest(labels):
    settings = [
        read_test(labels, command="evaluate", configuration=text)[1].configuration
        for text in ("seed: 0", "seed: 0", "seed: 1")
    ]
    assert settings[0] == settings[1] != settings[2]


def test_reads_of_other_data_do_not_count(labels):
    read(labels)
    path = labels / TEST_READS
    path.write_text(path.read_text().replace('"data": "bb"', '"data": "other"'))
    assert read(labels).number == 1


def test_line_that_a_kill_cut_short_does_not_count(labels):
    read(labels)
    with (labels / TEST_READS).open("a") as lines:
        lines.write('{"time": "2026-\n')
    assert read(labels).number == 2


def test_folder_that_cannot_be_written_to_is_no_obstacle(labels):
    (labels / TEST_READS).mkdir()  # root may write to a read-only folder, but nobody into this
    split, found = read_test(labels, command="evaluate", configuration="")
    assert len(split) == 16 and not found.is_recorded and found.number == 1


def test_digest_of_a_folder_is_that_of_the_named_files(tmp_path):
    (tmp_path / "weights").write_bytes(b"1")
    first = digest_folder(tmp_path, "weights", "config")
    (tmp_path / "manifest").write_bytes(b"new every time")
    assert digest_folder(tmp_path, "weights", "config") == first
    (tmp_path / "config").write_bytes(b"")
    assert digest_folder(tmp_path, "weights", "config") != first


def test_no_other_module_reads_the_test_split():
    """A call with the literal "test" on something named read, in any module, is a second place."""
    found = set()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and "read" in ast.unparse(node.func).rpartition(".")[2]:
                values = [*node.args, *(keyword.value for keyword in node.keywords)]
                if any(isinstance(value, ast.Constant) and value.value == "test" for value in values):
                    found.add(module_name(path))
    assert found == {"experiments.held_out", *DESCRIBING}
