"""AdaptiveM3 saved, loaded and pushed: its folder is all that there is to it."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from m3_backbone.llava.backbone import LlavaBackbone
from m3_backbone.outcomes.manifest import DIGEST, seal, unseal
from predictor.adaptive import folder as folders
from predictor.adaptive.inputs import make_inputs
from predictor.adaptive.model import AdaptiveM3
from predictor.cascades.hybrid import HYBRID, Hybrid
from predictor.classical.question_only import QuestionOnly
from predictor.files import FolderError
from predictor.policy.pricing import OperatingPoint, PriceList
from tests.fake_hub import open_hub
from tests.paths import FIXTURES
from tests.predictor.synthetic import label

FIXTURE = FIXTURES / "official_m3" / "llava15"
COLOR, COUNT = "What color is it?", "How many are there?"


def make_model(backbone, image):
    inputs = make_inputs(
        backbone,
        backbone.encode([image]) * 2,
        [COLOR, COUNT],
        QuestionOnly.features,
        token_embeddings=backbone.token_embeddings(),
    )
    fine = np.arange(len(backbone.scales)) == len(backbone.scales) - 1
    score = np.array([fine | (question == COLOR) for question in inputs.question], dtype=np.float32)
    train, validation = (
        label(
            inputs,
            score,
            image_prefix=side,
            fingerprints={**backbone.fingerprints, "data": "dd"},
        )
        for side in ("train", "validation")
    )
    predictor = QuestionOnly(inverse_penalties=(1000.0,)).fit(train, validation)
    point = OperatingPoint(price=0.2, unit=backbone.scales[-1], cost=288.5, score=0.875)
    return AdaptiveM3(backbone, predictor, PriceList(point, (point,), {"guarantee": point}))


@pytest.fixture(scope="module")
def image():
    return Image.open(FIXTURE / "image0.png").convert("RGB")


@pytest.fixture(scope="module")
def model(image):
    backbone = LlavaBackbone(
        FIXTURE / "checkpoint", name="small", dtype="float32", device="cpu", max_new_tokens=4, prompt="short"
    )
    return make_model(backbone, image)


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def list_files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_loaded_it_answers_as_it_did(model, folder, image, tmp_path):
    # Elsewhere, so that nothing beside it can help.
    moved = shutil.move(folder, tmp_path / "elsewhere" / "moved")
    loaded = AdaptiveM3.from_pretrained(moved, device="cpu")
    assert loaded.backbone.fingerprints == model.backbone.fingerprints
    assert loaded.prices == model.prices
    asked = [image] * 2, [COLOR, COUNT]
    assert loaded.answer(*asked) == model.answer(*asked)
    assert loaded.answer(*asked, point="guarantee") == model.answer(*asked, point="guarantee")


def test_a_hybrid_goes_along_and_one_of_before_does_not_stay(model, image, tmp_path):
    rng = np.random.default_rng(0)
    num_scales = len(model.backbone.scales)
    cost = np.tile(model.backbone.scales, (40, 1))
    score = (rng.random((40, num_scales)) < 0.5).astype(float)
    hybrid = Hybrid.fit(rng.uniform(0, 1e-3, score.shape), score, cost, rng.random(score.shape))
    escalating = AdaptiveM3(model.backbone, model.predictor, model.prices, hybrid)
    escalating.save_pretrained(tmp_path)
    loaded = AdaptiveM3.from_pretrained(tmp_path, device="cpu")
    asked = [image] * 2, [COLOR, COUNT]
    for budget in (None, float(hybrid.cost[0])):
        first, second = (each.answer(*asked, budget=budget, escalate=True) for each in (loaded, escalating))
        assert first == second
    assert "escalate=True" in (tmp_path / "README.md").read_text("utf-8")
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "predictor" / HYBRID).exists()
    assert "escalate=True" not in (tmp_path / "README.md").read_text("utf-8")
    assert AdaptiveM3.from_pretrained(tmp_path, device="cpu").hybrid is None


def test_scales_that_were_given_go_along(image, tmp_path):
    source = shutil.copytree(FIXTURE, tmp_path / "fixture") / "checkpoint"
    config = json.loads((source / "config.json").read_text())
    del config["matryoshka_vis_token_scale"]
    (source / "config.json").write_text(json.dumps(config))
    backbone = LlavaBackbone(
        source, name="small", scales=[1, 9, 36], dtype="float32", device="cpu", max_new_tokens=1
    )
    model = make_model(backbone, image)
    model.save_pretrained(tmp_path / "saved")
    loaded = AdaptiveM3.from_pretrained(tmp_path / "saved", device="cpu")
    assert loaded.backbone.scales == (1, 9, 36)
    assert loaded.answer(image, COUNT) == model.answer(image, COUNT)


def test_it_holds_safetensors_json_and_a_card(folder):
    names = list_files(folder)
    assert {"config.json", "README.md", "predictor/config.json", "predictor/weights.safetensors"} <= names
    assert {"backbone/model.safetensors.index.json", "backbone/tokenizer.model"} <= names
    kinds = {Path(name).suffix for name in names}
    assert kinds <= {".json", ".safetensors", ".model", ".md"}


def test_the_card_says_what_it_is_and_what_its_points_are(model, folder):
    card = (folder / "README.md").read_text("utf-8")
    assert card.startswith("---\nlibrary_name: tokenscale\n")
    for text in (
        "# small with question_only",
        "| default | 0.2000 | 288.5 | 87.5% |",
        "| guarantee | 0.2000 |",
    ):
        assert text in card
    for value in model.backbone.fingerprints.values():
        assert value in card


def test_a_packaged_backbone_is_named_and_not_copied(image, tmp_path):
    model = make_model(LlavaBackbone("tiny_m3", dtype="float32", device="cpu"), image)
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "backbone").exists()
    loaded = AdaptiveM3.from_pretrained(tmp_path, device="cpu")
    asked = [image] * 2, [COLOR, COUNT]
    assert loaded.answer(*asked) == model.answer(*asked)


def test_an_open_backbone_can_be_given_and_another_one_is_refused(model, folder):
    assert AdaptiveM3.from_pretrained(folder, backbone=model.backbone).backbone is model.backbone
    other = LlavaBackbone(
        FIXTURE / "checkpoint", dtype="float32", device="cpu", max_new_tokens=5, prompt="short"
    )
    with pytest.raises(ValueError, match="whose decoding fingerprint is"):
        AdaptiveM3.from_pretrained(folder, backbone=other)


def test_changed_weights_are_refused(folder):
    path = folder / "config.json"
    content = unseal(json.loads(path.read_text()))
    content["fingerprints"]["weights"] = "0" * 16
    path.write_text(json.dumps(seal(content)))
    with pytest.raises(ValueError, match="weights fingerprint is 0000000000000000"):
        AdaptiveM3.from_pretrained(folder, device="cpu")


def test_a_changed_argument_of_the_backbone_is_refused_by_name(folder):
    path = folder / "config.json"
    text = path.read_text()
    changed = text.replace('"max_new_tokens": 4', '"max_new_tokens": 5')
    assert changed != text
    path.write_text(changed)
    with pytest.raises(
        FolderError, match=r"saved/config.json is damaged \(its content does not have the dig"
    ):
        AdaptiveM3.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize("name", ["config.json", "weights.safetensors", "prices.json"])
def test_a_flipped_bit_in_the_predictor_is_refused_by_name(folder, name):
    path = folder / "predictor" / name
    content = bytearray(path.read_bytes())
    # A digit, which would be read as another one, or a byte of a weight.
    place = max(i for i, byte in enumerate(content) if byte in b"2468") if name.endswith("json") else -9
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(FolderError, match=rf"predictor/{name} is damaged \(not the file that was saved"):
        AdaptiveM3.from_pretrained(folder, device="cpu")


def test_a_model_without_digests_opens_as_an_earlier_version_saved_it(model, folder):
    config = json.loads((folder / "config.json").read_text())
    assert set(config["files"]) == {name for name in list_files(folder) if name.startswith("predictor/")}
    del config["files"], config[DIGEST]
    (folder / "config.json").write_text(json.dumps(config))
    assert AdaptiveM3.from_pretrained(folder, device="cpu").prices == model.prices


def test_nothing_is_imported_that_is_not_ours(folder):
    path = folder / "predictor" / "config.json"
    content = json.loads(path.read_text())
    content["arguments"]["network"] = {"partial": {"class": "os.system", "arguments": {"command": "true"}}}
    path.write_text(json.dumps(content))
    with pytest.raises(
        FolderError, match=r"config\.json is built from os\.system, which is not one of tokenscale"
    ):
        AdaptiveM3.from_pretrained(folder, device="cpu")


class DescribedBackbone(LlavaBackbone):
    """Another class of backbones, which describes its own arguments."""

    def saved_arguments(self):
        return {"dtype": self.dtype, "name": self.name, "max_new_tokens": self.max_new_tokens}


def test_a_folder_names_the_class_of_its_backbone(folder, image, tmp_path, monkeypatch):
    llava = "m3_backbone.llava.backbone.LlavaBackbone"
    assert json.loads((folder / "config.json").read_text())["backbone_class"] == llava
    backbone = DescribedBackbone("tiny_m3", dtype="float32", device="cpu", max_new_tokens=3)
    model = make_model(backbone, image)
    with pytest.raises(ValueError, match="a DescribedBackbone cannot be saved"):
        model.save_pretrained(tmp_path / "described")
    monkeypatch.setitem(folders.BACKBONES, "DescribedBackbone", __name__)
    model.save_pretrained(tmp_path / "described")
    path = tmp_path / "described" / "config.json"
    content = unseal(json.loads(path.read_text()))
    assert content["backbone_class"] == f"{__name__}.DescribedBackbone"
    assert content["backbone_arguments"] == {"dtype": "float32", "name": "tiny_m3", "max_new_tokens": 3}
    loaded = AdaptiveM3.from_pretrained(tmp_path / "described", device="cpu")
    assert type(loaded.backbone) is DescribedBackbone
    assert loaded.answer(image, COUNT) == model.answer(image, COUNT)
    damages: list[tuple[dict[str, Any], str]] = [
        ({"unknown": 1}, "the backbone has no argument unknown"),
        ({"device": "cuda"}, "the backbone has no argument device"),
        ({"attn_implementation": "someone/kernel"}, "attn_implementation of the backbone is not one of"),
        ({"quantization": {"attn_implementation": "a/b"}}, "attn_implementation is not one of eager"),
        ({"vision_dtype": "int8"}, "vision_dtype of the backbone is not one of float32"),
    ]
    for arguments, message in damages:
        changed = {**content, "backbone_arguments": {**content["backbone_arguments"], **arguments}}
        path.write_text(json.dumps(seal(changed)))
        with pytest.raises(FolderError, match=message):
            AdaptiveM3.from_pretrained(tmp_path / "described", device="cpu")


@pytest.mark.parametrize(
    "name", ["os.system", "m3_backbone.llava.random_llava.RandomLlavaBackbone", "", 1, []]
)
def test_no_other_class_of_backbones_is_imported(folder, name, monkeypatch):
    path = folder / "config.json"
    content = {**unseal(json.loads(path.read_text())), "backbone_class": name}
    path.write_text(json.dumps(seal(content)))
    monkeypatch.setattr("importlib.import_module", lambda *_: pytest.fail("imported"))
    with pytest.raises(FolderError, match=r"config\.json names the backbone .* not one of tokenscale's own"):
        AdaptiveM3.from_pretrained(folder, device="cpu")


def test_a_folder_without_a_class_opens_as_an_earlier_version_saved_it(folder):
    path = folder / "config.json"
    content = unseal(json.loads(path.read_text()))
    del content["backbone_class"]
    path.write_text(json.dumps(seal(content)))
    assert type(AdaptiveM3.from_pretrained(folder, device="cpu").backbone) is LlavaBackbone


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no .*config.json in"):
        AdaptiveM3.from_pretrained(tmp_path)


def test_pickled_weights_are_not_copied(model, tmp_path):
    copied = tmp_path / "checkpoint"
    shutil.copytree(FIXTURE / "checkpoint", copied)
    shutil.copytree(FIXTURE / "clip", tmp_path / "clip")
    index = json.loads((copied / "model.safetensors.index.json").read_text())
    for name in set(index["weight_map"].values()):
        (copied / name).unlink()
    (copied / "model.safetensors.index.json").unlink()
    (copied / "pytorch_model.bin").write_bytes(b"pickle")
    backbone = LlavaBackbone(copied, dtype="float32", device="cpu")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is pickled"):
        backbone.checkpoint.copy_to(tmp_path / "copy")


def test_a_copy_takes_the_place_of_another_and_keeps_inside_its_folder(model, tmp_path):
    """Stale files of another backbone would be taken for its own."""
    source, copy = tmp_path / "checkpoint", tmp_path / "copy"
    shutil.copytree(FIXTURE / "checkpoint", source)
    shutil.copytree(FIXTURE / "clip", source / "clip")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "mm_vision_tower": "clip"}))
    copy.mkdir()
    (copy / "pytorch_model.bin").write_bytes(b"stale")
    backbone = LlavaBackbone(source, dtype="float32", device="cpu")
    backbone.checkpoint.copy_to(copy)
    assert not (copy / "pytorch_model.bin").exists()
    assert LlavaBackbone(copy, dtype="float32", device="cpu").fingerprints == backbone.fingerprints

    shutil.move(source / "clip", tmp_path / "clip")
    (source / "config.json").write_text(json.dumps({**config, "mm_vision_tower": "../clip"}))
    outside = LlavaBackbone(source, dtype="float32", device="cpu")
    with pytest.raises(ValueError, match="lies outside of it"):
        outside.checkpoint.copy_to(tmp_path / "again")


def test_a_push_offers_the_hub_the_files_of_the_folder(model, folder, monkeypatch):
    with open_hub(monkeypatch) as hub:
        model.push_to_hub("someone/model", token="hf_none")
    path, repository = hub.asked[0]
    assert path == "/api/repos/create" and repository["name"] == "model"
    assert hub.committed == list_files(folder)


@pytest.mark.parametrize(
    "path",
    [
        "predictor.adaptive.folder.snapshot_download",  # imported there, from elsewhere
        "predictor.files.save_file",
        "predictor.folder.write",  # ours, and a function
        "predictor.learned.Path",
        "predictor.objectives.base.Objective",  # a class of ours, but no predictor
    ],
)
def test_a_folder_names_nothing_but_classes_where_they_are_defined(folder, path):
    file = folder / "predictor" / "config.json"
    config = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps({**config, "class": path, "arguments": {}}), "utf-8")
    with pytest.raises(FolderError, match=r"which is not one of tokenscale's own classes"):
        AdaptiveM3.from_pretrained(folder)
    # Trusted, it still has to be a class, in its own module, and a predictor.
    with pytest.raises(FolderError, match=r"is not a class of the module|not a ScalePredictor"):
        AdaptiveM3.from_pretrained(folder, trust=["predictor"])


def test_dtype_and_device_map_are_those_of_the_backbone(folder, image, caplog):
    for arguments in ({"torch_dtype": torch.float32}, {"dtype": "float32"}, {"torch_dtype": "auto"}):
        assert AdaptiveM3.from_pretrained(folder, device="cpu", **arguments).dtype == torch.float32
    assert not caplog.records
    for arguments in ({"torch_dtype": torch.bfloat16}, {"dtype": "torch.bfloat16"}):
        loaded = AdaptiveM3.from_pretrained(folder, device="cpu", **arguments)
        assert isinstance(loaded.backbone, LlavaBackbone)
        assert loaded.dtype == loaded.backbone.model.dtype == torch.bfloat16
        assert loaded.answer(image, COLOR).text is not None
    assert "its predictor was trained on answers in float32" in caplog.text
    # Its fingerprints are others now, and with them nobody could open it again.
    with pytest.raises(ValueError, match="comes from another labelling"):
        loaded.save_pretrained(folder)  # and what lies there stays
    spread = AdaptiveM3.from_pretrained(folder, device_map="cpu")
    assert isinstance(spread.backbone, LlavaBackbone) and spread.backbone.device_map == "cpu"
    assert spread.device == torch.device("cpu")
    with pytest.raises(ValueError, match="a model opened with device_map cannot be moved"):
        spread.to("cpu")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"load_in_8bit": True}, TypeError, "from_pretrained has no argument load_in_8bit"),
        ({"low_cpu": 1, "attn": 2}, TypeError, "has no argument attn, low_cpu"),
        ({"torch_dtype": "int8"}, ValueError, "dtype is 'int8': give float32"),
        ({"dtype": "float32", "torch_dtype": "float16"}, ValueError, "give one of them"),
        ({"device": "cpu", "device_map": "auto"}, ValueError, "give device or device_map, not both"),
    ],
)
def test_other_keywords_are_refused_by_name(folder, arguments, error, message):
    with pytest.raises(error, match=message):
        AdaptiveM3.from_pretrained(folder, **arguments)


def test_an_open_backbone_is_left_where_it_is(model, folder):
    refused: list[dict[str, Any]] = [{"device": "cpu"}, {"dtype": "float32"}]
    for arguments in refused:
        with pytest.raises(ValueError, match="the given backbone is already open"):
            AdaptiveM3.from_pretrained(folder, backbone=model.backbone, **arguments)


@pytest.mark.parametrize(
    "source", ["none", "./none", "../none", "/none", "~/none", "a/b/none", "here/none", "none/", Path("none")]
)
def test_a_missing_folder_is_said_in_a_line_and_no_hub_is_asked(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "none.txt").touch()
    monkeypatch.setattr("predictor.adaptive.folder.snapshot_download", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(FileNotFoundError, match=r"^no folder .*none.*: give one that .*$"):
        AdaptiveM3.from_pretrained(source)
    with pytest.raises(FolderError, match=r"none\.txt is a file: give the folder that contains it"):
        AdaptiveM3.from_pretrained("none.txt")


def test_what_the_hub_does_not_have_is_said_in_a_line(monkeypatch):
    def fail(*_, **__):
        raise OSError("401 Client Error.\n\nRepository Not Found\n  for url ...")

    monkeypatch.setattr("predictor.adaptive.folder.snapshot_download", fail)
    with pytest.raises(
        OSError, match=r"^someone/none is not a local folder and cannot be fetched .*for url \.\.\.$"
    ):
        AdaptiveM3.from_pretrained("someone/none")
