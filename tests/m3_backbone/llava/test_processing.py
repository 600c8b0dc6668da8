import numpy as np
import pytest
import torch
from PIL import Image

from m3_backbone.llava.preprocessing import ImagePreprocessor, fit, pad_to_square
from m3_backbone.llava.processing import M3Processor
from m3_backbone.loading.checkpoint import Checkpoint


def test_one_placeholder_for_every_visual_token(recording):
    processor = recording.backbone.processor
    for case in recording.cases:
        image = recording.images[int(case["image"][5])]
        ids = processor(image, case["prompt"], case["scale"])["input_ids"][0]
        assert (ids == processor.image_token_id).sum() == case["visual_tokens"]
        text = ids[ids != processor.image_token_id].tolist()
        assert text == [token for token in case["prompt_ids"] if token != -200]


def test_a_batch_is_padded_on_the_left(recording):
    processor, cases = recording.backbone.processor, recording.cases_at(9)
    prompts = [case["prompt"] for case in cases]
    batch = processor(recording.images, prompts, 9)
    for row, (image, prompt) in enumerate(zip(recording.images, prompts, strict=True)):
        alone = processor(image, prompt, 9)
        length = alone["input_ids"].shape[1]
        assert torch.equal(batch["input_ids"][row, -length:], alone["input_ids"][0])
        assert (
            batch["attention_mask"][row].tolist()
            == [0] * (batch["input_ids"].shape[1] - length) + [1] * length
        )
        pixels = alone["pixel_values"][0]
        assert torch.equal(batch["pixel_values"][row, : len(pixels)], pixels)
    if "image_sizes" in batch:
        assert batch["image_sizes"].tolist() == [[480, 640], [700, 300], [336, 336], [420, 1000]]


def test_questions_and_answers_of_a_conversation(plain):
    processor, case = plain.backbone.processor, plain.cases[0]
    ids = processor.prompt_ids(case["question"]) + processor.answer_ids(case["reference_answer"])
    assert ids == [processor.image_token_id if token == -200 else token for token in case["full_ids"]]
    later = processor.tokenizer("</s>USER: What? ASSISTANT:", add_special_tokens=False).input_ids
    assert processor.next_turn_ids("What?") == later[1:]
    assert processor.decode(processor.answer_ids("two boxes")) == "two boxes"


@pytest.mark.parametrize(
    ("prompt", "message"), [("no image", "contains it 0 times"), ("<image> <image>", "contains it 2 times")]
)
def test_a_prompt_needs_its_image_once(plain, prompt, message):
    with pytest.raises(ValueError, match=message):
        plain.backbone.processor(plain.images[0], prompt, 9)


def test_user_mistakes_are_named(plain):
    processor = plain.backbone.processor
    with pytest.raises(ValueError, match="2 images for 1 prompts"):
        processor(plain.images[:2], "<image>", 9)
    with pytest.raises(ValueError, match="the placeholder of the image"):
        processor.prompt_ids("what is <image>?")
    with pytest.raises(ValueError, match="1, 4, 9, 16, 36, 64, 144, 576"):
        processor(plain.images[0], "<image>", 10)
    with pytest.raises(ValueError, match="vicuna_v1, short, plain"):
        M3Processor(processor.tokenizer, processor.images, "vicuna")


def test_templates(plain):
    tokenizer, images = plain.backbone.processor.tokenizer, plain.backbone.processor.images
    short = M3Processor(tokenizer, images, "short")
    assert short.template.format("Why?") == "USER: <image>\nWhy? ASSISTANT:"
    bare = M3Processor(tokenizer, images, "plain")
    assert bare.template.format("Why?") == "<image>\nWhy?\n"
    assert bare.decode(bare.answer_ids("because")) == "because"


def test_padding_has_the_mean_colour():
    square = np.asarray(pad_to_square(Image.new("RGB", (4, 2), "white"), (0.5, 0.25, 1.0)))
    assert square.shape == (4, 4, 3)
    assert square[0, 0].tolist() == square[3, 3].tolist() == [127, 63, 255]
    assert (square[1:3] == 255).all()


def test_an_image_is_fitted_into_black():
    fitted = np.asarray(fit(Image.new("RGB", (100, 50), "white"), (20, 20)))
    assert (fitted[5:15] == 255).all()
    assert not fitted[:5].any() and not fitted[15:].any()


def test_cropping_keeps_the_middle():
    image = Image.new("RGB", (300, 100), "red")
    image.paste("blue", (100, 0, 200, 100))
    images = ImagePreprocessor(
        image_size=20, patch_size=10, aspect="crop", resize=20, mean=(0,) * 3, std=(1,) * 3
    )
    pixels = images(image)[0]
    assert pixels[2, :, 2:-2].min() == 1 and pixels[0, :, 2:-2].max() == 0


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "I;16"])
def test_other_pixel_formats_become_rgb(mode):
    images = ImagePreprocessor(image_size=32, patch_size=16)
    assert images(Image.new(mode, (40, 30))).shape == (1, 3, 32, 32)


CONTROLS = ("</s>", "<s>", "<unk>", "<pad>", "<0x0A>")


@pytest.fixture(params=["tiny_m3", "plain", "tiled"])
def processor(request) -> M3Processor:
    """Of a tokenizer of the `tokenizers` library, and of two of sentencepiece."""
    if request.param == "tiny_m3":
        return Checkpoint.open("tiny_m3").processor
    return request.getfixturevalue(request.param).backbone.processor


@pytest.mark.parametrize("control", CONTROLS)
def test_control_tokens_in_questions_and_answers_are_text(processor, control):
    tokenizer = processor.tokenizer
    text = f"say {control} and stop"
    special = {*tokenizer.all_special_ids, processor.image_token_id}
    plain_prompt = processor.prompt_ids("say and stop")
    for ids, num_special in (
        (processor.prompt_ids(text), sum(token in special for token in plain_prompt)),
        (processor.next_turn_ids(text), 0),
        (processor.text_ids(text), 0),
        (processor.answer_ids(text), 1),
    ):
        # <unk> also stands for signs that a vocabulary lacks, as < and > in the fixtures'.
        assert sum(token in special - {tokenizer.unk_token_id} for token in ids) == num_special
    assert processor.answer_ids(text)[-1] == tokenizer.eos_token_id
    assert len(processor.text_ids(control)) > 1


def test_text_without_control_tokens_has_the_ids_it_always_had(processor):
    tokenizer = processor.tokenizer
    for text in ("What color?", "12.5%", "\nAnswer with a word.", " lead", "日本 x", ""):
        assert processor.text_ids(text) == tokenizer(text, add_special_tokens=False).input_ids
        later = tokenizer(f"</s>USER: {text} ASSISTANT:", add_special_tokens=False).input_ids
        assert processor.next_turn_ids(text) == later[1:]


@pytest.mark.parametrize("padded", ["1 ", " 1", "1\n", "\t1 "])
def test_white_space_around_an_answer_does_not_count(processor, padded):
    assert processor.answer_ids(padded) == processor.answer_ids("1")
