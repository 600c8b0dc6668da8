"""A fit that was interrupted ends with the same weights, whatever has happened to its checkpoints."""

import json
import logging
import shutil

import pytest
import torch

from predictor.base import FitContext
from predictor.learned import LearnedPredictor
from predictor.training import AtomicCheckpointIO, find_whole
from tests.predictor.test_learned import (
    FEW,
    FEW_VALIDATION,
    SMALL,
    Killed,
    assert_same_weights,
    fit,
    make_trainer,
)


def make_killed(callbacks, **arguments):
    return make_trainer(callbacks=[*callbacks, Killed()], **arguments)


@pytest.fixture(scope="module")
def undisturbed():
    return fit(max_epochs=4)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A folder in which a fit of four epochs was interrupted in its third one."""
    folder = tmp_path_factory.mktemp("template") / "fit"
    with pytest.raises(KeyboardInterrupt) as interrupted:
        LearnedPredictor(network=SMALL, max_epochs=4, batch_size=64).fit(
            FEW, FEW_VALIDATION, FitContext(folder, make_killed)
        )
    assert interrupted.value.__notes__ == [
        "The unfinished epoch is lost; training resumes from the previous epoch."
    ]
    return folder


@pytest.fixture
def folder(template):
    """That folder, in its place: a checkpoint is of no use elsewhere."""
    kept = template.with_name("kept")
    if not kept.exists():
        shutil.copytree(template, kept)
    shutil.rmtree(template)
    shutil.copytree(kept, template)
    return template


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    """One bit in the middle of the largest tensor, which `torch.load` does not notice."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.long
@pytest.mark.parametrize("damage", [cut, flip])
@pytest.mark.parametrize("names", [("last",), ("best",), ("best", "last")])
def test_a_damaged_checkpoint_is_thrown_away(folder, undisturbed, caplog, damage, names):
    for name in names:
        damage(folder / "checkpoints" / f"{name}.ckpt")
    with caplog.at_level(logging.WARNING):
        resumed = fit(folder, max_epochs=4)
    for name in names:
        assert f"{name}.ckpt is damaged and is deleted" in caplog.text
    assert_same_weights(resumed, undisturbed)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"class": 1}'])
def test_a_damaged_identity_begins_anew(folder, undisturbed, text):
    (folder / "identity.json").write_text(text)
    assert_same_weights(fit(folder, max_epochs=4), undisturbed)


def test_a_folder_that_was_moved_begins_anew(folder, undisturbed, tmp_path):
    """Lightning notes where the best checkpoint lies: elsewhere that is another file, or none."""
    moved = shutil.copytree(folder, tmp_path / "moved")
    flip(folder / "checkpoints" / "best.ckpt")
    assert_same_weights(fit(moved, max_epochs=4), undisturbed)
    assert json.loads((moved / "identity.json").read_text())["folder"] == str(moved)


def test_a_checkpoint_is_whole_or_the_one_before(tmp_path, monkeypatch):
    path, checkpoints = tmp_path / "last.ckpt", AtomicCheckpointIO()
    checkpoints.save_checkpoint({"state_dict": {"weight": torch.ones(3)}}, path)
    first = path.read_bytes()

    def write_half(self, content):
        with self.open("wb") as file:
            file.write(bytes(content[: len(content) // 2]))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", write_half)
    with pytest.raises(OSError, match=r"No space left on device: '.*last\.ckpt'"):
        checkpoints.save_checkpoint({"state_dict": {"weight": torch.zeros(3)}}, path)
    assert path.read_bytes() == first
    assert [each.name for each in tmp_path.iterdir()] == ["last.ckpt"]
    assert find_whole([path, tmp_path / "none.ckpt"]) == [path]
