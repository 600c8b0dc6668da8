import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from m3_backbone.llava.backbone import LlavaBackbone
from m3_backbone.llava.modeling import M3LlavaForConditionalGeneration
from m3_backbone.llava.processing import M3Processor
from m3_backbone.loading.checkpoint import Checkpoint, load_m3
from m3_backbone.loading.weights import authors_name, find_folder

TOWER = "model.vision_tower.vision_tower.vision_model."


def assert_same_weights(model, other) -> None:
    weights, others = model.state_dict(), other.state_dict()
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_one_safetensors_file_and_bin_shards_are_the_same_as_safetensors_shards(plain, editable):
    assert_same_weights(load_m3(editable.save())[0], plain.backbone.model)
    (editable.folder / "model.safetensors").unlink()
    names = sorted(editable.weights)
    shards = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, held in shards.items():
        torch.save({name: editable.weights[name] for name in held}, editable.folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, held in shards.items() for name in held}}
    (editable.folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert_same_weights(load_m3(editable.folder)[0], plain.backbone.model)


def test_a_bin_file_that_would_run_code_is_refused(editable):
    class Evil:
        def __reduce__(self):
            return print, ("code from the file ran",)

    torch.save({"lm_head.weight": Evil()}, editable.folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin cannot be read"):
        load_m3(editable.folder)


def test_the_tower_in_the_checkpoint_wins(plain):
    stored = plain.backbone.model.model.vision_tower.state_dict()
    named = load_file(plain.folder / "clip" / "model.safetensors")
    shards = sorted((plain.folder / "checkpoint").glob("*.safetensors"))
    weights = {name: weight for file in shards for name, weight in load_file(file).items()}
    for name, weight in stored.items():
        assert torch.equal(weight, weights[TOWER + name])
    assert any(not torch.equal(weight, named["vision_model." + name]) for name, weight in stored.items())


def test_a_checkpoint_without_tower_takes_the_one_that_it_names(plain, editable):
    editable.weights = {k: v for k, v in editable.weights.items() if not k.startswith(TOWER)}
    model, _ = load_m3(editable.save())
    named = load_file(plain.folder / "clip" / "model.safetensors")
    for name, weight in model.model.vision_tower.state_dict().items():
        assert torch.equal(weight, named["vision_model." + name])
    assert torch.equal(model.lm_head.weight, plain.backbone.model.lm_head.weight)


@pytest.mark.parametrize(
    "name",
    [
        "lm_head.weight",
        "model.mm_projector.2.bias",
        "model.layers.1.mlp.up_proj.weight",
        TOWER + "encoder.layers.2.layer_norm1.weight",
        TOWER + "embeddings.position_embedding.weight",
    ],
)
def test_missing_and_wrongly_shaped_weights_are_named(editable, name):
    weight = editable.weights.pop(name)
    with pytest.raises(ValueError, match=f"missing: {name}$"):
        load_m3(editable.save())
    editable.weights[name] = weight[:-1].contiguous()
    with pytest.raises(ValueError, match=f"wrongly shaped: {name} has shape"):
        load_m3(editable.save())


def test_unexpected_weights_are_named_all_of_them(editable):
    editable.weights |= {
        "model.image_newline": torch.zeros(64),
        "model.layers.3.mlp.up_proj.weight": torch.zeros(1),
    }
    with pytest.raises(ValueError) as error:
        load_m3(editable.save())
    assert "unexpected: model.image_newline" in str(error.value)
    assert "unexpected: model.layers.3.mlp.up_proj.weight" in str(error.value)


def test_a_tiled_checkpoint_needs_its_newline(editable_tiled):
    del editable_tiled.weights["model.image_newline"]
    with pytest.raises(ValueError, match=r"missing: model\.image_newline"):
        load_m3(editable_tiled.save())


def test_constants_of_older_versions_are_ignored(plain, editable):
    editable.weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
    editable.weights[TOWER + "embeddings.position_ids"] = torch.arange(577)[None]
    assert_same_weights(load_m3(editable.save())[0], plain.backbone.model)


def test_files_that_are_cut_off_or_gone_are_named(editable):
    file = editable.save() / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    for opening in (load_m3, lambda folder: Checkpoint.open(folder).fingerprint):
        with pytest.raises(ValueError, match=r"model\.safetensors cannot be read"):
            opening(editable.folder)
    file.unlink()
    with pytest.raises(OSError, match="no weights in"):
        load_m3(editable.folder)
    with pytest.raises(OSError, match=r"no config\.json"):
        load_m3(editable.folder.parent)


def test_a_shard_that_is_gone_is_named(editable):
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00001.safetensors"}}
    (editable.folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(OSError, match="model-00001-of-00001"):
        load_m3(editable.folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.model", "tokenizer_config.json"])
def test_a_damaged_small_file_is_named(editable, name):
    file = editable.save_config() / name
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=f"{file.parent}.* damaged"):
        Checkpoint.open(editable.folder)


def test_what_is_nowhere_is_named(editable, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for source in (
        "/no/such",
        "nothing",
        "./nothing",
        "a/b/nothing",
        "tests/nothing",
        Path("nobody/nothing"),
    ):
        with pytest.raises(OSError, match=f"no such folder: {source}. Give the folder of a checkpoint"):
            load_m3(source)
    with pytest.raises(OSError, match="nobody/nothing is not a local folder"):
        load_m3("nobody/nothing")
    editable.config["mm_vision_tower"] = "nobody/nothing"
    with pytest.raises(OSError, match="the vision tower 'nobody/nothing' of"):
        load_m3(editable.save_config())
    (editable.folder / "tokenizer.model").unlink()
    editable.config["mm_vision_tower"] = "clip"
    with pytest.raises(OSError, match=r"no tokenizer\.model"):
        load_m3(editable.save_config())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model_type", "llama", "is not an M3"),
        ("mm_projector_type", "linear", "mlp2x_gelu"),
        ("mm_vision_select_feature", "cls_patch", "'patch'"),
        ("mm_patch_merge_type", "spatial_unpad", "image_aspect_ratio='pad'"),
        ("mm_vision_select_layer", None, "lacks mm_vision_select_layer"),
    ],
)
def test_a_configuration_that_is_no_m3_is_refused(editable, key, value, message):
    editable.config[key] = value
    if value is None:
        del editable.config[key]
    with pytest.raises(ValueError, match=message):
        load_m3(editable.save_config())


def test_the_published_tower_needs_no_network(editable, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    editable.config |= {"mm_vision_tower": "openai/clip-vit-large-patch14-336", "mm_hidden_size": 1024}
    opened = Checkpoint.open(editable.save_config())
    config: Any = opened.config
    assert config.vision_config.num_hidden_layers == 24
    image = opened.processor.images(Image.new("RGB", (640, 480)))
    assert image.shape == (1, 3, 336, 336)
    with torch.device("meta"):
        tower = M3LlavaForConditionalGeneration(config).model.vision_tower
    assert (
        sum(p.numel() for p in tower.parameters()) == 303_507_456
    )  # CLIP ViT-L/14 at 336 pixels, vision only


def test_dtype_and_device_map(plain):
    folder = plain.folder / "checkpoint"
    model, _ = load_m3(folder, dtype="bfloat16", device_map={"": "cpu"}, attn_implementation="eager")
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert {weight.device.type for weight in model.parameters()} == {"cpu"}
    assert model.config.get_text_config()._attn_implementation == "eager"


def test_a_model_survives_saving_under_transformers_names(recording, tmp_path: Path):
    backbone = recording.backbone
    backbone.model.save_pretrained(tmp_path)
    backbone.processor.save_pretrained(tmp_path)
    model, processor = load_m3(tmp_path)
    assert_same_weights(model, backbone.model)
    assert_same_weights(type(model).from_pretrained(tmp_path), backbone.model)
    assert processor.images == backbone.processor.images
    assert processor.template == backbone.processor.template
    assert processor.image_token_id == model.config.image_token_id
    question = recording.cases[0]["question"]
    assert processor.prompt_ids(question) == backbone.processor.prompt_ids(question)
    assert Checkpoint.open(tmp_path).config.to_dict().keys() == model.config.to_dict().keys()


def test_names_go_to_the_authors_layout(tiled):
    names = {authors_name(name) for name in tiled.backbone.model.state_dict()}
    index = json.loads((tiled.folder / "checkpoint" / "model.safetensors.index.json").read_text())
    assert names == set(index["weight_map"])


def test_other_grids_of_tiles(tiled, plain):
    checkpoint = Checkpoint.open(tiled.folder / "checkpoint", [[336, 336], [1344, 336]])
    images = checkpoint.processor.images
    assert images(Image.new("RGB", (1000, 200))).shape == (5, 3, 336, 336)
    assert images.num_visual_tokens((1344, 336), 9) == 9 + 3 * (12 + 1)
    assert checkpoint.config.image_grid_pinpoints == [[336, 336], [336, 1344]]
    with pytest.raises(ValueError, match="one grid per image"):
        Checkpoint.open(plain.folder / "checkpoint", [[336, 336]])
    with pytest.raises(ValueError, match="not a multiple of tile size 336"):
        Checkpoint.open(tiled.folder / "checkpoint", [[336, 300]]).processor.images.num_tiles((5, 5))


def test_the_fingerprint_is_of_the_weights_and_not_of_their_files(plain, editable):
    fingerprint = plain.backbone.checkpoint.fingerprint
    assert Checkpoint.open(editable.save()).fingerprint == fingerprint
    editable.weights["model.norm.weight"][-1] += 1e-3
    assert Checkpoint.open(editable.save()).fingerprint != fingerprint
    editable.weights["model.norm.weight"][-1] -= 1e-3
    editable.config["rope_theta"] = 5e5
    assert Checkpoint.open(editable.save()).fingerprint != fingerprint


@pytest.mark.parametrize("value", [None, "absent"])
def test_a_plain_llava_is_no_m3_unless_its_scales_are_given(plain, editable, value):
    editable.config["matryoshka_vis_token_scale"] = value
    if value == "absent":
        del editable.config["matryoshka_vis_token_scale"]
    folder = editable.save()
    reason = r"config\.json names no scales .*: backbone\.scales=\[1, 9, 36, 144, 576\]$"
    for opening in (Checkpoint.open, load_m3, LlavaBackbone):
        with pytest.raises(ValueError, match=reason):
            opening(folder)
    backbone = LlavaBackbone(folder, scales=[576, 1, 64])
    assert backbone.scales == (1, 64, 576) == backbone.model.scales
    assert load_m3(folder, scales=[1, 9])[0].scales == (1, 9)
    # The weights are the same with any scales; what was labelled at others is refused by its scales.
    other = LlavaBackbone(folder, scales=[1, 9])
    assert backbone.fingerprints == other.fingerprints
    assert other.fingerprints["weights"] == backbone.checkpoint.fingerprint
    with pytest.raises(
        ValueError, match=r"backbone\.scales=\[1, 10\]: scale 10 is not possible on a 24x24 grid"
    ):
        LlavaBackbone(folder, scales=[1, 10])
    with pytest.raises(ValueError, match="scales=144: give a list"):
        LlavaBackbone(folder, scales=144)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([], r"\[\] is not a list of scales"),
        (
            "random",
            "'random' is not a list of scales: give some of 1, 4, 9, 16, 36, 64, 144, 576 with "
            "backbone.scales",
        ),
        ("[1, 9]", r"'\[1, 9\]' is not a list of scales"),
        (144, "144 is not a list of scales"),
        ([1, 10, 576], "scale 10 is not possible on a 24x24 grid"),
        ([1, "9"], r"\[1, '9'\] is not a list of scales"),
        ([0, 9], r"\[0, 9\] is not a list of scales"),
    ],
)
def test_scales_that_are_none_are_not_replaced(editable, value, reason):
    editable.config["matryoshka_vis_token_scale"] = value
    with pytest.raises(ValueError, match=rf"config\.json: matryoshka_vis_token_scale=.*{reason}"):
        Checkpoint.open(editable.save_config())
    assert Checkpoint.open(editable.folder, scales=[1, 9]).scales == (1, 9)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", "64"),
        ("hidden_size", 0),
        ("num_attention_heads", 4.5),
        ("num_key_value_heads", "4"),
        ("vocab_size", None),
        ("rms_norm_eps", "tiny"),
        ("rope_theta", "x"),
        ("rope_scaling", "linear"),
        ("torch_dtype", "float99"),
        ("tie_word_embeddings", "no"),
        ("mm_vision_tower", 5),
        ("mm_vision_select_layer", "-2"),
        ("max_position_embeddings", [4096]),
        ("hidden_act", 7),
    ],
)
def test_settings_of_a_wrong_type_name_file_and_key(editable, key, value):
    editable.config[key] = value
    with pytest.raises(ValueError, match=rf"config\.json.*{key}") as caught:
        Checkpoint.open(editable.save_config())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["[(336, 672", "nonsense", "[336]", 336, [[336, "a"]], [], [[0, 336]]])
def test_grids_of_tiles_that_are_none_name_file_and_key(editable_tiled, value):
    editable_tiled.config["image_grid_pinpoints"] = value
    with pytest.raises(ValueError, match=r"image_grid_pinpoints"):
        Checkpoint.open(editable_tiled.save_config()).processor.images.num_tiles((5, 5))


@pytest.mark.parametrize(
    ("key", "value"),
    [("size", "336"), ("crop_size", {}), ("resample", 9), ("image_mean", [0.5]), ("image_std", 1)],
)
def test_settings_of_the_tower_name_file_and_key(editable, key, value):
    file = editable.folder.parent / "clip" / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(ValueError, match=rf"preprocessor_config\.json: {key} is "):
        Checkpoint.open(editable.save_config())


@pytest.mark.parametrize(
    ("key", "value"),
    [("image_size", "336"), ("aspect", "square"), ("mean", 0.5), ("prompt", 1), ("grid", 24)],
)
def test_settings_of_our_own_layout_name_file_and_key(plain, tmp_path, key, value):
    plain.backbone.processor.save_pretrained(tmp_path)
    file = tmp_path / "m3_processor.json"
    content = json.loads(file.read_text())
    (content if key == "prompt" else content["images"])[key] = value
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"m3_processor\.json.*{key}"):
        M3Processor.from_pretrained(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(editable, value):
    name = "model.layers.1.mlp.up_proj.weight"
    editable.weights[name][3, 2] = value
    with pytest.raises(
        ValueError, match=r"are not finite in float32: model\.language_model\.layers\.1\.mlp\.up"
    ):
        load_m3(editable.save())


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 13000000\n"


@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer.model", "tokenizer_config.json", "model.safetensors", "pytorch_model.bin"],
)
def test_git_lfs_pointers_are_called_that(editable, name):
    if name != "pytorch_model.bin":
        editable.save()
    (editable.save_config() / name).write_text(POINTER)
    with pytest.raises(
        ValueError, match=rf"{name} is a Git LFS pointer and not the file itself: .*git lfs pull"
    ):
        load_m3(editable.folder)
    with pytest.raises(ValueError, match=rf"{name} is a Git LFS pointer"):
        LlavaBackbone(editable.folder).fingerprints  # noqa: B018


@pytest.mark.parametrize("keys", [["_attn_implementation"], ["text_config", "attn_implementation"]])
def test_a_kernel_that_a_checkpoint_names_is_refused(editable, keys):
    """Transformers would fetch it from the hub and run it."""
    level = editable.config
    for key in keys[:-1]:
        level = level.setdefault(key, {})
    level[keys[-1]] = "owner/kernel"
    with pytest.raises(
        ValueError, match=rf"config\.json: {keys[-1]} is not one of eager, sdpa, .*no code is"
    ):
        Checkpoint.open(editable.save_config())


def test_a_kernel_that_a_tower_names_is_refused(editable):
    path = editable.folder.parent / "clip" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attn_implementation": "owner/kernel"}))
    with pytest.raises(
        ValueError, match=r"vision tower .*clip: attn_implementation is not one of eager, sdpa"
    ):
        Checkpoint.open(editable.save_config())


@pytest.fixture
def own_layout(tmp_path):
    return shutil.copytree(find_folder("tiny_m3"), tmp_path / "own")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": [1]}, "model_type"),
        ({"text_config": "x"}, "text_config"),
        ({"vision_config": [1]}, "vision_config"),
    ],
)
def test_a_configuration_that_transformers_does_not_read_is_named(own_layout, change, reason):
    path = own_layout / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError) as caught:
        Checkpoint.open(own_layout)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and reason in message and len(message.splitlines()) == 1


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
def test_more_layers_than_there_are_weights_are_refused_before_a_model_is_built(own_layout, part):
    path = own_layout / "config.json"
    content = json.loads(path.read_text())
    content[part]["num_hidden_layers"] = 10**9
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"config\.json: num_hidden_layers is 1,000,000,000, but there are "):
        load_m3(own_layout)


def test_an_index_without_files_is_named(editable):
    indices: list[Any] = [{}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": {"a": 1}}]
    for index in indices:
        (editable.folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json lists no files"):
            load_m3(editable.folder)


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04", b"\x80\x02}."])
def test_a_bin_file_that_is_damaged_is_named(editable, content):
    (editable.save_config() / "pytorch_model.bin").write_bytes(content)
    for opening in (load_m3, lambda folder: Checkpoint.open(folder).fingerprint):
        with pytest.raises(ValueError, match=r"pytorch_model\.bin cannot be read|missing: "):
            opening(editable.folder)
