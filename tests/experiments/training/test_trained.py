"""One folder for each way that a predictor was trained, and nothing else is loaded for it."""

import json
import shutil

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from experiments.command_line.script import find_config_dir
from experiments.labels.files import to_file_name
from experiments.training.configured import read_trainer
from experiments.training.trained import (
    TrainingSettings,
    find_trained,
    identify,
    load_trained,
    locate,
    open_trained,
)
from experiments.training.trainer import train_predictors
from m3_backbone.outcomes.manifest import read_manifest, unseal
from predictor.base import ScalePredictor
from predictor.classical.baselines import Mix
from predictor.classical.question_only import QuestionOnly
from tests.predictor.synthetic import make_labels, write_labels

SETTINGS = TrainingSettings(seed=0, validation_fraction=0.2)


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store") / "labels"
    parts = {"train": make_labels(40, seed=0), "calibration": make_labels(20, seed=1, split="calibration")}
    write_labels(folder, parts)
    return folder


def train(labels, folder, predictor, settings=SETTINGS):
    train_predictors([predictor], labels=labels, folder=folder, settings=settings)
    return identify(predictor, read_manifest(labels), settings)


def test_trainings_with_other_settings_do_not_replace_each_other(labels, tmp_path):
    variants = [
        (QuestionOnly(max_words=1), SETTINGS),
        (QuestionOnly(max_words=2), SETTINGS),
        (QuestionOnly(max_words=2), TrainingSettings(seed=7, validation_fraction=0.2)),
        (QuestionOnly(max_words=2), TrainingSettings(seed=0, validation_fraction=0.2, budget=20)),
    ]
    identities = [train(labels, tmp_path, *variant) for variant in variants]
    opened = [open_trained(tmp_path, "question_only", identity) for identity in identities]
    assert [each.record.identity["arguments"]["max_words"] for each in opened] == [1, 2, 2, 2]
    assert [each.seed for each in opened] == [0, 0, 7, 0]
    assert len({each.folder for each in opened}) == len({each.digest for each in opened}) == 4


def test_what_was_not_trained_is_refused_with_what_differs(labels, tmp_path):
    train(labels, tmp_path, QuestionOnly(max_words=1))
    wanted = identify(
        QuestionOnly(max_words=3), read_manifest(labels), TrainingSettings(seed=7, validation_fraction=0.2)
    )
    with pytest.raises(FileNotFoundError, match=r"max_words \(1 there, 3 here\), seed \(0 there, 7 here\)"):
        open_trained(tmp_path, "question_only", wanted)


def test_a_folder_whose_record_does_not_agree_is_refused(labels, tmp_path):
    one, other = (train(labels, tmp_path, QuestionOnly(max_words=number)) for number in (1, 2))
    places = [locate(tmp_path, "question_only", identity) for identity in (one, other)]
    shutil.rmtree(places[1])
    shutil.copytree(places[0], places[1])
    with pytest.raises(ValueError, match=r"trained with other max_words \(1 there, 2 here\)"):
        open_trained(tmp_path, "question_only", other)


@pytest.mark.parametrize("name", ["config.json", "weights.safetensors", "prices.json", "hybrid.safetensors"])
def test_files_of_another_training_are_refused_by_name_and_made_again(labels, tmp_path, name):
    one, other = (train(labels, tmp_path, QuestionOnly(max_words=number)) for number in (1, 2))
    first, second = (locate(tmp_path, "question_only", identity) for identity in (one, other))
    before = (second / name).read_bytes()
    (second / name).write_bytes((first / name).read_bytes() + b" ")
    with pytest.raises(ValueError, match=rf"{name} is not the file that its training wrote"):
        open_trained(tmp_path, "question_only", other)
    train(labels, tmp_path, QuestionOnly(max_words=2))
    assert (second / name).read_bytes() == before
    (second / name).unlink()
    train(labels, tmp_path, QuestionOnly(max_words=2))
    assert load_trained(second, other).record.identity == other


def test_whoever_uses_a_predictor_need_not_say_how_its_prices_were_chosen(labels, tmp_path):
    train(labels, tmp_path, QuestionOnly(), TrainingSettings(seed=0, validation_fraction=0.2, tolerance=0.03))
    found = find_trained(tmp_path, QuestionOnly(), labels, seed=0)
    assert found.record.identity["tolerance"] == 0.03
    with pytest.raises(FileNotFoundError, match=r"seed \(0 there, 1 here\)"):
        find_trained(tmp_path, QuestionOnly(), labels, seed=1)
    train(labels, tmp_path, QuestionOnly())
    with pytest.raises(ValueError, match=r"tolerance \(.*choose one with trained=FOLDER"):
        find_trained(tmp_path, QuestionOnly(), labels, seed=0)
    assert find_trained(tmp_path, QuestionOnly(), labels, seed=0, folder=str(found.folder)).digest == (
        found.digest
    )


@pytest.mark.parametrize(
    "name", ["mix", "points of mix", "a/b", "..", ".hidden", "", "né 漢", "x" * 300, "at_budgets"]
)
def test_a_predictor_may_have_any_name(labels, tmp_path, name):
    identity = train(labels, tmp_path / "predictors", Mix(name=name))
    assert open_trained(tmp_path / "predictors", name, identity).name == name
    assert [path.name for path in tmp_path.iterdir()] == ["predictors"]
    assert [path.name for path in (tmp_path / "predictors").iterdir()] == [to_file_name(name)]


def test_file_names_are_plain_where_names_are_and_stay_distinct():
    assert to_file_name("cross_attention-2.b") == "cross_attention-2.b"
    names = ["", "%", ".", "..", "a/b", "a%2Fb", "x" * 300, "x" * 301, "A", "a"]
    encoded = [to_file_name(name) for name in names]
    assert len(set(encoded)) == len(names)
    assert all(0 < len(each) <= 120 and "/" not in each and not each.startswith(".") for each in encoded)


def test_what_the_first_version_trained_is_taken_over(tmp_path):
    """It kept one predictor of a name, in the folder of that name, and no digests of files."""
    labels = tmp_path / "labels"
    parts = {"train": make_labels(220, seed=0), "calibration": make_labels(20, seed=1, split="calibration")}
    write_labels(labels, parts)
    identity = train(labels, tmp_path / "new", QuestionOnly())
    place = locate(tmp_path / "new", "question_only", identity)
    old = tmp_path / "old" / "question_only"
    shutil.copytree(place, old)
    record = unseal(json.loads((old / "manifest.json").read_text()))
    del record["files"]
    record["seconds"] = 4321.0
    (old / "manifest.json").write_text(json.dumps(record))
    assert find_trained(tmp_path / "old", QuestionOnly(), labels, seed=0).folder == old
    train(labels, tmp_path / "old", QuestionOnly())
    taken = open_trained(tmp_path / "old", "question_only", identity)
    assert taken.record.seconds == 4321.0
    assert find_trained(tmp_path / "old", QuestionOnly(), labels, seed=0).folder == taken.folder
    assert (taken.folder / "weights.safetensors").read_bytes() == (old / "weights.safetensors").read_bytes()


def test_a_folder_that_is_named_has_to_be_of_these_arguments(labels, tmp_path):
    train(labels, tmp_path, QuestionOnly(max_words=2))
    found = find_trained(tmp_path, QuestionOnly(max_words=2), labels, seed=0)
    with pytest.raises(ValueError, match=r"was trained with other max_words \(2 there, 1 here\)"):
        find_trained(tmp_path, QuestionOnly(max_words=1), labels, seed=0, folder=str(found.folder))


def test_a_trainer_that_changes_weights_is_part_of_the_identity():
    """Precision is; what is printed, and the default trainer, are not."""

    def read(**settings):
        default = {"_target_": "lightning.Trainer", "accelerator": "cpu", "precision": "32-true"}
        return read_trainer(OmegaConf.create(default | settings))

    assert read() == read(enable_progress_bar=False) == {}
    assert read(accelerator="gpu", precision="bf16-mixed") == {
        "accelerator": "gpu",
        "precision": "bf16-mixed",
    }
    plugin = {"_target_": "lightning.pytorch.plugins.precision.DoublePrecision"}
    assert read(plugins=[plugin]) == {"plugins": [plugin]}
    # The trainers of the package, as predictors of tokenscale 0.1 were trained with them.
    with initialize_config_dir(str(find_config_dir()), version_base="1.3"):
        cpu, gpu = (compose("train", [f"trainer={name}"]).trainer for name in ("cpu", "gpu"))
    assert read_trainer(cpu) == {}
    expected = {"accelerator": "gpu", "precision": "bf16-mixed", "deterministic": "warn"}
    assert read_trainer(gpu) == expected
    manifest = {"fingerprints": {}, "scales": [1], "feature_scales": [], "shards": {}}
    identities = [
        identify(Mix(), manifest, TrainingSettings(seed=0, validation_fraction=0.2, trainer=trainer))
        for trainer in ({}, {"precision": "bf16-mixed"})
    ]
    assert "trainer" not in identities[0] and identities[0] != identities[1]


def test_a_file_that_cannot_be_read_does_not_cost_a_finished_training(labels, tmp_path, monkeypatch):
    identity = train(labels, tmp_path, QuestionOnly())
    place = locate(tmp_path, "question_only", identity)

    def fail(*arguments):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(ScalePredictor, "load", fail)
        with pytest.raises(OSError, match="Input/output error"):
            train(labels, tmp_path, QuestionOnly())
    assert load_trained(place, identity).name == "question_only"
