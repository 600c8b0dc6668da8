"""Idefics3 and SmolVLM: counts, costs and answers are those of transformers' own classes from pixels."""

import copy
import math
import pickle
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.smolvlm.processing_smolvlm import SmolVLMProcessor

from m3_backbone.ladder import coinciding_scales
from m3_backbone.native.checkpoint import NativeCheckpoint
from m3_backbone.native.random_checkpoints import write_random_checkpoint
from m3_backbone.native.tiles import TiledBackbone
from tests.m3_backbone.native.reference import check_flops, draw_noise, generate_greedily
from tests.paths import ROOT

MODEL_TYPES = ("idefics3", "smolvlm")
SIZES = ((64, 48), (40, 120), (90, 80), (30, 1), (7, 7))
QUESTIONS = ("What color is the square?", "How many circles are there?")
MAX_NEW_TOKENS = 6
_PROCESSORS: dict[str, Any] = {"idefics3": Idefics3Processor, "smolvlm": SmolVLMProcessor}


def open_backbone(folder: Path, **arguments: Any) -> TiledBackbone:
    arguments = {"device": "cpu", "dtype": "float32", "max_new_tokens": MAX_NEW_TOKENS, **arguments}
    return TiledBackbone(folder, **arguments)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tiles")
    return {name: write_random_checkpoint(root / name, name, num_layers=2) for name in MODEL_TYPES}


@pytest.fixture(scope="module", params=MODEL_TYPES)
def backbone(request: pytest.FixtureRequest, folders: dict[str, Path]) -> TiledBackbone:
    return open_backbone(folders[request.param])


@pytest.fixture(scope="module")
def smolvlm(folders: dict[str, Path]) -> TiledBackbone:
    return open_backbone(folders["smolvlm"])


class Official:
    """Inputs, answers and likelihoods of the model from pixels, as transformers computes them.

    No processor of transformers can be built without torchvision: its parts are called one by one.
    """

    def __init__(self, backbone: TiledBackbone) -> None:
        self.model = backbone.model
        self.tokenizer = backbone.processor.tokenizer
        self.image_processor = backbone.checkpoint.image_processor
        self.model_type = backbone.checkpoint.config.model_type
        self.image_token_id = backbone.checkpoint.config.image_token_id

    def make_inputs(self, image: Image.Image, question: str, splits: int, answer: str | None = None) -> Any:
        pixels = self.image_processor(
            images=[[image]],
            size={"longest_edge": 32 * splits},
            do_image_splitting=splits > 1,
            return_row_col_info=True,
            return_tensors="pt",
        )
        content: list[dict[str, str]] = [{"type": "image"}, {"type": "text", "text": question}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if answer is not None:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=answer is None
        )
        settings = SimpleNamespace(
            fake_image_token="<fake_token_around_image>",
            image_token="<image>",
            global_image_tag="<global-img>",
            global_image_token="<global-img>",
            image_seq_len=4,
        )
        expanded = _PROCESSORS[self.model_type].replace_image_token(settings, pixels, 0)
        ids = self.tokenizer(text.replace("<image>", expanded), return_tensors="pt").input_ids
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": pixels["pixel_values"],
            "pixel_attention_mask": pixels["pixel_attention_mask"],
        }

    def answer(self, image: Image.Image, question: str, splits: int) -> tuple[list[int], float]:
        """Token ids of the greedy answer and their log-probability."""
        inputs = self.make_inputs(image, question, splits)
        ids, log_prob, _ = generate_greedily(self.model, inputs, MAX_NEW_TOKENS)
        return ids, log_prob

    @torch.no_grad()
    def nll(self, image: Image.Image, question: str, splits: int, answer: str) -> float:
        """Mean negative log-likelihood of an answer and the end token, from the whole conversation."""
        start = self.make_inputs(image, question, splits)["input_ids"].shape[1]
        inputs = self.make_inputs(image, question, splits, answer)
        ids = inputs["input_ids"][0]
        end = start + ids[start:].tolist().index(self.tokenizer.eos_token_id) + 1
        log_probs = self.model(**inputs).logits[0].log_softmax(-1)
        return -float(log_probs[torch.arange(start - 1, end - 1), ids[start:end]].mean())


@pytest.mark.long
def test_answers_equal_generate_from_pixels(backbone: TiledBackbone) -> None:
    official = Official(backbone)
    black = Image.new("RGB", (30, 60))
    images = [*draw_noise(SIZES), black]
    encoded = backbone.encode(images)
    pairs = [(number, question) for number in range(len(images)) for question in QUESTIONS]
    column = [encoded[number] for number, _ in pairs]
    questions = [question for _, question in pairs]
    previous = None
    texts = set()
    for scale, splits in zip(backbone.scales, (1, 2, 4), strict=True):
        references = [["red", "a small circle"]] * len(pairs)
        answers = backbone.answer(column, questions, scale, references=references)
        for (number, question), answer in zip(pairs, answers, strict=True):
            ids, log_prob = official.answer(images[number], question, splits)
            assert answer.token_ids == ids
            assert np.log(answer.confidence) == pytest.approx(log_prob, abs=1e-4)
            nlls = [official.nll(images[number], question, splits, text) for text in references[0]]
            assert answer.nll == pytest.approx(min(nlls), abs=1e-4)
        if previous is not None:
            drafted = backbone.answer(column, questions, scale, drafts=previous)
            assert [answer.token_ids for answer in drafted] == [answer.token_ids for answer in answers]
        previous = answers
        texts |= {answer.text for answer in answers}
    # Random answers depend on image, question and scale.
    assert len(texts) > 2 * len(pairs)


def test_small_batches_give_equal_answers(folders: dict[str, Path], smolvlm: TiledBackbone) -> None:
    small = open_backbone(folders["smolvlm"], image_batch_size=1, batch_tokens=50)
    images = draw_noise(SIZES)
    questions = [QUESTIONS[0]] * len(images)
    for scale in small.scales:
        answers = small.answer(small.encode(images), questions, scale)
        expected = smolvlm.answer(smolvlm.encode(images), questions, scale)
        assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in expected]


def test_prompt_and_counts_equal_those_of_the_processor(backbone: TiledBackbone) -> None:
    official = Official(backbone)
    for image in draw_noise((*SIZES, (300, 100), (33, 32), (65, 64), (1, 30), (90, 3), (1, 1))):
        for scale, splits in zip(backbone.scales, (1, 2, 4), strict=True):
            inputs = official.make_inputs(image, QUESTIONS[0], splits)
            ids = inputs["input_ids"][0].tolist()
            num_prefix = backbone.num_prefix_tokens(image.size, scale)
            suffix = backbone.processor.suffix_ids(QUESTIONS[0])
            start = len(backbone.system_ids)
            assert ids[:start] == backbone.system_ids
            assert ids[start + num_prefix :] == suffix
            assert ids.count(official.image_token_id) == backbone.num_visual_tokens(image.size, scale)
            assert inputs["pixel_values"].shape[1] * 4 == backbone.num_visual_tokens(image.size, scale)
            assert inputs["pixel_attention_mask"].all()
            prefix = backbone.visual_prefixes(backbone.encode([image]), scale)[0]
            is_visual = torch.tensor(ids[start : start + num_prefix]) == official.image_token_id
            markers = torch.tensor(ids[start : start + num_prefix])[~is_visual]
            assert torch.equal(prefix.embeds[~is_visual], official.model.get_input_embeddings()(markers))
            with torch.no_grad():
                features = official.model.get_image_features(inputs["pixel_values"], return_dict=True)
            expected = torch.cat(list(features.pooler_output))
            torch.testing.assert_close(prefix.embeds[is_visual], expected)


def test_scales_are_the_caps_that_square_images_reach(backbone: TiledBackbone) -> None:
    assert backbone.scales == (4, 20, 68)
    assert backbone.family == "native"
    for scale in backbone.scales:
        assert backbone.num_visual_tokens((10, 10), scale) == scale
        # <fake><row_r_col_c> and 4 tokens a tile, one line break a row, one more, 4 tokens and 3 markers.
        splits = {4: 0, 20: 2, 68: 4}[scale]
        expected = 7 + splits**2 * 6 + (splits + 1 if splits else 0)
        assert backbone.max_prefix_tokens(scale) == expected
    with pytest.raises(ValueError, match=r"scales=\[4, 30\]: .* choose from 4, 20, 40, 68, "):
        open_backbone(Path(backbone.checkpoint.source), scales=[4, 30])
    with pytest.raises(ValueError, match="scale 40 is not on the ladder"):
        backbone.num_visual_tokens((10, 10), 40)


def with_tiles(folder: Path, tile: int, patch_size: int, scale_factor: int) -> NativeCheckpoint:
    """The checkpoint with tiles of another size; its model cannot run."""
    checkpoint = NativeCheckpoint.open(folder, TiledBackbone.families)
    config = copy.deepcopy(checkpoint.config)
    config.vision_config.patch_size = patch_size
    config.scale_factor = scale_factor
    image_processor = transformers.SmolVLMImageProcessorPil(max_image_size={"longest_edge": tile})
    return replace(checkpoint, config=config, image_processor=image_processor)


PUBLISHED = {
    "SmolVLM-256M and 500M": ((512, 16, 4), 64),
    "SmolVLM-2.2B": ((384, 14, 3), 81),
    "Idefics3-8B": ((364, 14, 2), 169),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_grow_with_the_scale_at_published_sizes(name: str, folders: dict[str, Path]) -> None:
    sizes, tokens = PUBLISHED[name]
    checkpoint = with_tiles(folders["smolvlm"], *sizes)
    assert TiledBackbone(checkpoint).scales == (tokens, 5 * tokens, 17 * tokens)
    ladder = [tokens * (splits**2 + (splits > 1)) for splits in range(1, 7)]
    backbone = TiledBackbone(checkpoint, scales=ladder)

    @settings(max_examples=150, deadline=None)
    @given(longest=st.integers(1, 9000), aspect=st.floats(1, sizes[0]), is_wide=st.booleans())
    def check(longest: int, aspect: float, is_wide: bool) -> None:
        shortest = math.ceil(longest / aspect)
        size = (longest, shortest) if is_wide else (shortest, longest)
        backbone.check_image(size)
        counts = [backbone.num_visual_tokens(size, scale) for scale in ladder]
        assert all(coarse < fine for coarse, fine in pairwise(counts))
        assert all(count <= scale for count, scale in zip(counts, ladder, strict=True))
        prefixes = [backbone.num_prefix_tokens(size, scale) for scale in ladder]
        assert all(a <= backbone.max_prefix_tokens(s) for a, s in zip(prefixes, ladder, strict=True))
        assert coinciding_scales(backbone, size) == {scale: scale for scale in ladder}

    check()


def test_configurations_have_the_default_scales(folders: dict[str, Path]) -> None:
    for size, name in (("256m", "256M and 500M"), ("500m", "256M and 500M"), ("2b", "2.2B")):
        settings = OmegaConf.load(ROOT / "conf" / "backbone" / f"smolvlm_{size}.yaml")
        checkpoint = with_tiles(folders["smolvlm"], *PUBLISHED[f"SmolVLM-{name}"][0])
        assert tuple(settings.scales) == TiledBackbone(checkpoint).scales


def test_counts_equal_the_processor_at_a_published_size(folders: dict[str, Path]) -> None:
    backbone = TiledBackbone(with_tiles(folders["smolvlm"], 364, 14, 2))
    sizes = ((1700, 2200), (640, 480), (1, 500), (900, 4), (364, 365))
    for size in sizes:
        for scale, splits in zip(backbone.scales, (1, 2, 4), strict=True):
            pixels = backbone.checkpoint.image_processor(
                images=Image.new("RGB", size),
                size={"longest_edge": 364 * splits},
                do_image_splitting=splits > 1,
                do_rescale=False,
                do_normalize=False,
            )["pixel_values"]
            assert backbone.num_visual_tokens(size, scale) == len(pixels[0]) * 169
    page = [backbone.num_visual_tokens((1700, 2200), scale) // 169 for scale in backbone.scales]
    assert page == [1, 5, 17]


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 400), height=st.integers(1, 400), splits=st.integers(1, 6))
def test_tiles_are_split_as_the_size_says(
    width: int, height: int, splits: int, smolvlm: TiledBackbone
) -> None:
    assume(max(width, height) <= 32 * min(width, height))
    scale = 4 * (splits**2 + (splits > 1))
    backbone = TiledBackbone(smolvlm.checkpoint, scales=[scale])
    inputs = smolvlm.checkpoint.image_processor(
        images=Image.new("RGB", (width, height)),
        size={"longest_edge": 32 * splits},
        do_image_splitting=splits > 1,
        return_row_col_info=True,
    )
    assert backbone.grid((width, height), scale) == (inputs["rows"][0][0], inputs["cols"][0][0])


def test_thumbnails_differ_between_scales(smolvlm: TiledBackbone) -> None:
    # The reason why the family is native: the thumbnail of a finer scale is made from the resized image.
    image_processor = smolvlm.checkpoint.image_processor
    image = draw_noise(((90, 80),))[0]
    thumbnails = [
        image_processor(images=image, size={"longest_edge": 32 * k}, do_image_splitting=k > 1)["pixel_values"]
        for k in (1, 4)
    ]
    assert not np.array_equal(thumbnails[0][0][-1], thumbnails[1][0][-1])


def test_flops_equal_those_counted(folders: dict[str, Path]) -> None:
    for name in MODEL_TYPES:
        backbone = open_backbone(folders[name], attn_implementation="eager")
        official = Official(backbone)
        for image in draw_noise(((64, 48), (30, 1))):
            for scale, splits in zip(backbone.scales, (1, 2, 4), strict=True):
                inputs = official.make_inputs(image, QUESTIONS[0], splits)
                check_flops(backbone, inputs, image.size, QUESTIONS[0], scale)


def test_vision_pass_runs_once_and_only_for_what_is_asked(smolvlm: TiledBackbone) -> None:
    num_tiles: list[int] = []
    hook = smolvlm.model.model.vision_model.register_forward_pre_hook(
        lambda module, arguments, kwargs: num_tiles.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    try:
        encoded = smolvlm.encode(draw_noise(((64, 48), (40, 120))))
        assert sum(num_tiles) == 0
        column = [image for image in encoded for _ in QUESTIONS]
        questions = [*QUESTIONS, *QUESTIONS]
        prefix_tokens = smolvlm.work.prefix_tokens
        smolvlm.answer(column, questions, 4)
        assert sum(num_tiles) == 2
        assert smolvlm.work.prefix_tokens - prefix_tokens == 2 * 7
        smolvlm.compute_features(encoded, smolvlm.feature_scales)
        smolvlm.answer(column, questions[::-1], 4)
        assert sum(num_tiles) == 2
        smolvlm.answer(column, questions, 68)
        # 4 x 3 tiles and 2 x 4 tiles, each with a thumbnail.
        assert sum(num_tiles) == 2 + 13 + 9
        smolvlm.answer(column, questions, 68)
        assert sum(num_tiles) == 2 + 13 + 9
    finally:
        hook.remove()


def test_images_that_would_vanish_are_refused(smolvlm: TiledBackbone) -> None:
    images = draw_noise(((32, 1), (1, 32), (3, 96), (2000, 63)))
    answers = smolvlm.answer(smolvlm.encode(images), [QUESTIONS[0]] * len(images), 68)
    assert all(answer.token_ids for answer in answers)
    for size in ((33, 1), (1, 33), (2, 3000)):
        with pytest.raises(ValueError, match=f"{size[0]}x{size[1]} pixels is too long: .* factor of 32"):
            smolvlm.encode([Image.new("RGB", size)])


def test_tiles_that_do_not_fit_are_refused(folders: dict[str, Path]) -> None:
    for tile, scale_factor in ((33, 2), (32, 3)):
        with pytest.raises(ValueError, match=f"a tile of {tile} pixels has 4 patches a side"):
            TiledBackbone(with_tiles(folders["smolvlm"], tile, 8, scale_factor))


def test_changed_image_processor_is_noticed(folders: dict[str, Path]) -> None:
    backbone = open_backbone(folders["smolvlm"])
    backbone.checkpoint.image_processor.do_resize = False
    with pytest.raises(ValueError, match="was the checkpoint's image processor changed"):
        backbone.answer(backbone.encode(draw_noise(((90, 80),))), QUESTIONS[:1], 20)


def test_long_questions_are_refused_with_the_markers_counted(smolvlm: TiledBackbone) -> None:
    longest = smolvlm.max_prefix_tokens(68)
    with pytest.raises(ValueError, match=f"with {longest} visual tokens"):
        smolvlm.check_question("one " * 4000, scale=68)
    with pytest.raises(ValueError, match="control token"):
        smolvlm.check_question("What is <row_1_col_1> here?")


def test_copies_give_equal_answers(smolvlm: TiledBackbone, tmp_path: Path) -> None:
    smolvlm.checkpoint.copy_to(tmp_path / "copy")
    opened = TiledBackbone(tmp_path / "copy", device="cpu", **smolvlm.saved_arguments())
    pickled = pickle.loads(pickle.dumps(smolvlm))
    images = draw_noise(SIZES)
    questions = [QUESTIONS[1]] * len(images)
    expected = smolvlm.answer(smolvlm.encode(images), questions, 20)
    for other in (opened, pickled):
        assert other.fingerprints == smolvlm.fingerprints
        assert other.scales == smolvlm.scales
        answers = other.answer(other.encode(images), questions, 20)
        assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in expected]
