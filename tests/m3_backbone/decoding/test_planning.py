"""The work that is planned for questions is the work that answering them takes."""

from dataclasses import replace

import pytest
from PIL import Image

from m3_backbone.decoding.planning import FlopsPerToken, PlannedQuestion, _plan_decoding, plan_work
from m3_backbone.llava.backbone import LlavaBackbone
from m3_backbone.native.random_backbone import open_random_backbone
from tests.paths import FIXTURES

QUESTIONS = ["What is it?", "What is this?", "How many are there in it?"]
REFERENCES = [["a cat"], ["a cat", "a red cat"], ["3"]]


def open_llava(name):
    return LlavaBackbone(
        FIXTURES / "official_m3" / name / "checkpoint", device="cpu", dtype="float32", max_new_tokens=1
    )


def open_native(model_type):
    return open_random_backbone(model_type=model_type, name="random", device="cpu", max_new_tokens=1)


def plan(backbone, images, owners, scale):
    questions = [
        PlannedQuestion.of(backbone, owner, question, references)
        for owner, question, references in zip(owners, QUESTIONS, REFERENCES, strict=True)
    ]
    sizes = [image.size for image in images]
    return plan_work(backbone, sizes, questions, scale, acceptance=1.0, is_finest=True)


def run(backbone, images, owners, scale):
    """Counters of the decoder for the questions of `plan`, each answered with one token."""
    encoded = backbone.encode(images)
    before = replace(backbone.work)
    backbone.answer([encoded[owner] for owner in owners], QUESTIONS, scale, references=REFERENCES)
    return backbone.work.since(before)


@pytest.mark.parametrize(
    "opened",
    [lambda: open_llava("llava15"), lambda: open_llava("llavanext"), lambda: open_native("qwen3_vl")],
)
def test_packed_tokens_are_those_that_run(opened):
    backbone = opened()
    images = [Image.new("RGB", (160, 96), "orange"), Image.new("RGB", (90, 200), "navy")]
    for scale in (backbone.scales[0], backbone.scales[-1]):
        work = run(backbone, images, [0, 0, 1], scale)
        planned = plan(backbone, images, [0, 0, 1], scale)
        assert planned.tokens == work.prefix_tokens + work.question_tokens + work.draft_tokens
        assert planned.passes == 1 and planned.decoded_tokens == planned.steps == 0


@pytest.mark.long
def test_plain_tokens_are_those_that_run():
    backbone, owners = open_native("gemma4"), [0, 1, 1]
    images = [Image.new("RGB", (160, 96), "orange"), Image.new("RGB", (90, 200), "navy")]
    for scale in (70, 1120):
        work = run(backbone, images, owners, scale)
        planned = plan(backbone, images, owners, scale)
        # The counters leave out the prompt before the image, which every row has.
        num_rows = 3 if scale == 70 else 2
        assert planned.tokens - num_rows * len(backbone.system_ids) == (
            work.prefix_tokens + work.question_tokens + work.draft_tokens + work.padding_tokens
        )


@pytest.mark.parametrize(
    "opened",
    [lambda: open_llava("llava15"), lambda: open_native("qwen2_5_vl"), lambda: open_native("gemma4")],
)
def test_operations_per_token_add_up_to_the_cost_model(opened):
    backbone = opened()
    per_token = FlopsPerToken.of(backbone)
    for number in (1, 7, 500):
        expected = number * per_token.layers + number**2 * per_token.pair + per_token.output
        assert expected == backbone._decoder_flops(number)
    assert backbone.checkpoint.count_weights() == sum(w.numel() for w in backbone.model.parameters())


def test_operations_of_a_llama_by_hand():
    """2 operations for each of 4 h^2 + 3 h m weights, 4 h for an attended pair, 2 h V for the logits."""
    backbone = open_llava("llava15")
    text = backbone.checkpoint.config.get_text_config()
    per_token = FlopsPerToken.of(backbone)
    hidden, inner, layers = text.hidden_size, text.intermediate_size, text.num_hidden_layers
    assert per_token.layers == layers * (8 * hidden**2 + 6 * hidden * inner)
    assert per_token.pair == layers * 4 * hidden
    assert per_token.output == 2 * hidden * text.vocab_size


def test_expected_steps_by_hand():
    """An answer of 3 tokens takes 2 further steps if it is open; one of 2 tokens 1, beside it."""
    long, short = (PlannedQuestion(0, [5], [list(range(length))]) for length in (3, 2))
    alone = _plan_decoding([10], [long], 4, acceptance=0.5)
    assert (alone.steps, alone.decoded_tokens) == (1.0, 1.0)
    # Half of the time 2 tokens, each of which attends to 4 + 10 + 1 + 3 tokens at most.
    assert alone.decoded_pairs == 0.5 * 2 * 18
    both = _plan_decoding([10], [short, long], 4, acceptance=0.5)
    assert both.steps == 0.5 * 2 + 0.5 * 0.5 * 1
    assert both.decoded_tokens == 0.5 * 2 + 0.5 * 1
    assert _plan_decoding([10], [short, long], 4, acceptance=1.0).steps == 0


def test_batches_are_those_of_the_backbone():
    """Two questions a batch: the third one runs its image again."""
    backbone = open_llava("llava15")
    backbone.batch_size = 2
    image = Image.new("RGB", (96, 96))
    one = plan(backbone, [image], [0, 0, 0], backbone.scales[-1])
    work = run(backbone, [image], [0, 0, 0], backbone.scales[-1])
    assert one.passes == 2
    assert work.prefix_tokens == 2 * backbone.num_visual_tokens(image.size, backbone.scales[-1])
    assert one.tokens == work.prefix_tokens + work.question_tokens + work.draft_tokens
