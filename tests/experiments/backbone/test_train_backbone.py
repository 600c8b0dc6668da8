"""Training an embedded backbone, at a size that says nothing but that it runs, resumes and can be used."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from safetensors.torch import load_file

from experiments.backbone.data import PictureStream, ScenePictures, TaskPictures
from experiments.backbone.training import PATCH_HEADS, UNFINISHED
from experiments.command_line.script import find_config_dir
from experiments.tasks.easy_vqa import EasyVqa
from experiments.tasks.scenes import Scenes
from experiments.train_backbone import main
from m3_backbone.llava.backbone import LlavaBackbone
from m3_backbone.loading.checkpoint import load_m3
from m3_backbone.training.pretraining import PatchHeads
from m3_backbone.training.scratch import build_processor, train_tokenizer

TINY = [
    "tower.shape={hidden_size: 32, num_layers: 1, num_heads: 2}",
    "decoder={hidden_size: 32, intermediate_size: 32, num_layers: 1, num_heads: 2}",
    "tower.training={num_pictures: 16, pictures_per_epoch: 16, batch_size: 8, num_workers: 0}",
    "model={num_pictures: 16, pictures_per_epoch: 8, batch_size: 4, num_workers: 0}",
    "trainer.enable_progress_bar=false",
]


def train(folder, *overrides):
    with initialize_config_dir(str(find_config_dir()), version_base="1.3"):
        main(compose("train_backbone", [*TINY, f"folder={folder}", *overrides]))
    return folder / "checkpoint"


@pytest.mark.slow
def test_trains_a_backbone_that_answers_goes_on_and_serves_as_a_start(tmp_path, capsys):
    checkpoint = train(tmp_path / "first")
    assert f"backbone.checkpoint={checkpoint}" in capsys.readouterr().out
    backbone = LlavaBackbone(checkpoint, dtype="float32", max_new_tokens=2)
    assert backbone.scales == (1, 9, 36, 144)
    encoded = backbone.encode([Image.new("RGB", (192, 192), "red")])
    assert backbone.answer(encoded, ["What color is the background?"], 9)[0].token_ids

    # More pictures than before: only the rest of them is trained on, from where the weights were.
    last = tmp_path / "first" / "model" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 4
    train(tmp_path / "first", "model.num_pictures=24")
    assert torch.load(last, weights_only=True)["global_step"] == 6

    frozen = ("model.learning_rate=0", "model.matrix_learning_rate=0")
    other = train(tmp_path / "second", f"start_from={checkpoint}", *frozen)
    started, ended = (load_m3(path, dtype=torch.float32)[0].model for path in (checkpoint, other))
    decoder = ended.language_model.state_dict()
    for name, value in started.language_model.state_dict().items():
        assert torch.equal(decoder[name], value), name
    # So do the heads of the dense labels: anew, their gradients would drown the answers' at first.
    first, second = (load_file(path / PATCH_HEADS) for path in (checkpoint, other))
    assert all(torch.equal(second[name], head) for name, head in first.items() if "weight" in name)

    # A model of another shape, with its old decoder in it.
    larger = train(tmp_path / "third", f"start_from={checkpoint}", "reshape.num_decoder_layers=2", *frozen)
    first, _ = load_m3(larger, dtype=torch.float32)[0].model.language_model.layers
    assert torch.equal(first.mlp.up_proj.weight, started.language_model.layers[0].mlp.up_proj.weight)

    # Halfway between the weights that it started from and those that it would have ended with.
    folders = [tmp_path / "trained", tmp_path / "halfway"]
    shares = ("model.share_of_start=0", "model.share_of_start=0.5")
    ways = [
        train(folder, f"start_from={checkpoint}", share)
        for folder, share in zip(folders, shares, strict=True)
    ]
    trained, halfway = (load_m3(way, dtype=torch.float32)[0].state_dict() for way in ways)
    start = load_m3(checkpoint, dtype=torch.float32)[0].state_dict()
    moved = 0
    for name, weight in start.items():
        torch.testing.assert_close(halfway[name], (weight + trained[name]) / 2, rtol=2**-7, atol=1e-5)
        moved += not torch.equal(weight, trained[name])
    assert moved > 10


@pytest.mark.parametrize("override", ["reshape.intermediate_size=64", "model.share_of_start=0.5"])
def test_what_is_about_a_trained_model_wants_one(override, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train(tmp_path, override)
    assert "give one with start_from=CHECKPOINT" in capsys.readouterr().err


def test_heads_of_other_labels_start_anew(caplog):
    caplog.set_level("INFO")
    stored = PatchHeads(8, {"color": 3, "row": 5}).state_dict()
    heads = PatchHeads(8, {"color": 3, "row": 9, "shape": 2})
    heads.take_over(stored)
    assert torch.equal(heads.state_dict()["heads.color.weight"], stored["heads.color.weight"])
    assert heads.state_dict()["heads.row.weight"].shape == (9, 8)
    assert "keep their initial weights: row, shape" in caplog.text


@pytest.fixture(scope="module")
def processor():
    return build_processor(
        train_tokenizer(["What color is it? red", "7 12 ABC"], 300), image_size=192, patch_size=16
    )


def test_tokenizer_reads_figures_one_by_one_and_gives_texts_back(processor):
    tokenizer = processor.tokenizer
    assert tokenizer.tokenize("row 12")[-2:] == ["Ġ1", "2"]
    for text in ("What color is it?", "ÄÖ \n{x} 407", "<b>&amp;"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text


@pytest.mark.long
def test_stream_depends_on_the_number_of_the_picture_alone(processor):
    def stream(start, length):
        scenes = ScenePictures(Scenes(seed=0), 12)
        others = [TaskPictures(EasyVqa())]
        return PictureStream(
            scenes,
            others,
            share_of_others=0.3,
            questions_per_image=4,
            processor=processor,
            start=start,
            length=length,
        )

    whole, part = stream(0, 30), stream(10, 20)
    for index in (0, 7, 19):
        first, second = whole[10 + index], part[index]
        assert torch.equal(first["pixel_values"], second["pixel_values"])
        assert torch.equal(first["conversation"].input_ids, second["conversation"].input_ids)
    labelled = [bool(whole[index]["patches"][0, 0] >= 0) for index in range(30)]
    assert 12 <= sum(labelled) < 30
    assert all(len(whole[index]["conversation"].turns.unique()) > 1 for index in range(30))


@pytest.mark.slow
def test_a_time_limit_ends_the_piece_and_not_the_training(tmp_path, capsys):
    pieces = 0
    while not (tmp_path / "checkpoint").is_dir():
        assert pieces < 3, "the training does not get on"
        try:
            train(tmp_path, "max_minutes=0")
        except SystemExit as stop:
            assert stop.code == UNFINISHED
            assert "run the same command again to resume" in capsys.readouterr().out
        pieces += 1
    # One epoch of the tower, two of the model; what ends with the last epoch is whole.
    assert pieces == 2
    assert torch.load(tmp_path / "model" / "last.ckpt", weights_only=True)["global_step"] == 4


@pytest.mark.slow
def test_the_recipe_for_a_gpu_runs_at_a_small_size(tmp_path):
    one_epoch = "num_pictures: 4, pictures_per_epoch: 4, batch_size: 2, num_workers: 0"
    checkpoint = train(
        tmp_path,
        "experiment=backbone_gpu",
        f"tower.training={{{one_epoch}}}",
        f"model={{{one_epoch}}}",
        "trainer.accelerator=cpu",
    )
    assert load_m3(checkpoint)[0].scales == (1, 9, 36, 144, 576)
