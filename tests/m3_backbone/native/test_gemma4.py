"""Gemma 4 with random weights: equal to `generate` from pixels, one question at a time."""

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.gemma4.image_processing_pil_gemma4 import _SUPPORTED_SOFT_TOKENS

from m3_backbone.decoding.sampling import Draw
from m3_backbone.native.gemma4 import BUDGETS, Gemma4Backbone
from m3_backbone.native.random_checkpoints import write_random_checkpoint
from tests.m3_backbone.native.reference import draw_noise, generate_greedily, make_prompt, score_reference

# The dense 31b differs from the mixture of experts in less than the small ones do.
LIKES = ("e2b", pytest.param("31b", marks=pytest.mark.slow), "26b_a4b")
SIZES = ((640, 480), (100, 300), (90, 80))
QUESTIONS = ("What color is the large square?", "How many?")
SCALES = (70, 140)
MAX_NEW_TOKENS = 6


@dataclasses.dataclass
class Case:
    """A random model with pictures of several shapes."""

    backbone: Gemma4Backbone
    images: list[Image.Image]
    encoded: list

    @property
    def pairs(self):
        """Each picture with each question."""
        return [(number, question) for number in range(len(self.images)) for question in QUESTIONS]

    def answer(self, scale, **arguments):
        encoded = [self.encoded[number] for number, _ in self.pairs]
        return self.backbone.answer(encoded, [question for _, question in self.pairs], scale, **arguments)


@pytest.fixture(scope="module", params=LIKES)
def case(request, tmp_path_factory):
    folder = write_random_checkpoint(tmp_path_factory.mktemp(request.param), "gemma4", like=request.param)
    backbone = Gemma4Backbone(folder, device="cpu", dtype="float32", max_new_tokens=MAX_NEW_TOKENS)
    images = draw_noise(SIZES)
    return Case(backbone, images, backbone.encode(images))


def inputs_of(backbone, image, question, scale):
    """Inputs of the model from pixels, as its own processor makes them."""
    checkpoint = backbone.checkpoint
    pixels = dict(checkpoint.image_processor(images=[image], max_soft_tokens=scale, return_tensors="pt"))
    num_tokens = int(pixels.pop("num_soft_tokens_per_image")[0])
    # `Gemma4Processor.replace_image_token` adds the markers.
    expanded = f"<|image>{'<|image|>' * num_tokens}<image|>"
    return {**make_prompt(backbone, question, "<|image|>", expanded), **pixels}


def generate(backbone, image, question, scale):
    """Token ids, log-probability and margin of the greedy answer of `generate`."""
    inputs = inputs_of(backbone, image, question, scale)
    return generate_greedily(backbone.model, inputs, MAX_NEW_TOKENS)


@pytest.fixture(scope="module")
def generated(case):
    """What `generate` answers, by scale, in the order of `case.pairs`."""
    return {
        scale: [generate(case.backbone, case.images[n], question, scale) for n, question in case.pairs]
        for scale in SCALES
    }


# Each prompt with its own image, and images that run once for their questions.
@pytest.mark.long
@pytest.mark.parametrize("pass_tokens", [10**9, 0])
@pytest.mark.parametrize("scale", SCALES)
def test_a_batch_of_questions_gives_the_answers_of_generate(case, generated, scale, pass_tokens, monkeypatch):
    monkeypatch.setattr(type(case.backbone._decoder), "pass_tokens", pass_tokens)
    before = dataclasses.replace(case.backbone.work)
    answers = case.answer(scale)
    for answer, (ids, log_prob, margin) in zip(answers, generated[scale], strict=True):
        assert answer.token_ids == ids
        assert np.log(answer.confidence) == pytest.approx(log_prob, abs=1e-4)
        assert answer.margin == pytest.approx(margin, abs=1e-4)
    num_tokens = sum(case.backbone.num_visual_tokens(size, scale) for size in SIZES)
    num_runs = 1 if pass_tokens == 0 else len(QUESTIONS)
    assert case.backbone.work.since(before).prefix_tokens == num_runs * num_tokens


@pytest.mark.long
def test_references_have_the_likelihood_that_the_model_gives_them(case):
    backbone, texts = case.backbone, ("a red one", "blue", "3")
    references = [backbone.processor.answer_ids(text) for text in texts]
    assert references[0][-1] == backbone.processor.tokenizer.convert_tokens_to_ids("<turn|>")
    expected = []
    for number, question in case.pairs:
        nlls = []
        for reference in references:
            inputs = inputs_of(backbone, case.images[number], question, 70)
            nlls.append((score_reference(backbone, inputs, reference), len(reference)))
        expected.append(min(nlls))
    answers = case.answer(70, references=[texts] * len(case.pairs))
    for answer, (nll, num_tokens) in zip(answers, expected, strict=True):
        assert answer.nll == pytest.approx(nll, abs=1e-4)
        assert answer.reference_tokens == num_tokens


@pytest.mark.long
def test_drafts_change_no_answer_and_save_its_decoding(case, generated):
    coarse, fine = (case.answer(scale) for scale in SCALES)
    before = dataclasses.replace(case.backbone.work)
    assert [answer.token_ids for answer in case.answer(140, drafts=fine)] == [
        answer.token_ids for answer in fine
    ]
    work = case.backbone.work.since(before)
    assert work.decoded_tokens == 0 and work.num_drafted == len(case.pairs)
    # Drafts that are wrong from the start, and drafts of which different lengths are right.
    partly = [
        dataclasses.replace(answer, token_ids=[*answer.token_ids[: number % 4], 7, 8])
        for number, answer in enumerate(fine)
    ]
    for drafts in (coarse, partly):
        answers = case.answer(140, drafts=drafts)
        assert [answer.token_ids for answer in answers] == [ids for ids, _, _ in generated[140]]
        for answer, (_, log_prob, _) in zip(answers, generated[140], strict=True):
            assert np.log(answer.confidence) == pytest.approx(log_prob, abs=1e-4)


@pytest.mark.long
def test_sampled_answers_depend_on_their_keys_only(case):
    backbone, question = case.backbone, QUESTIONS[0]
    draws = [Draw(2.0, (number,)) for number in range(4)]
    before = dataclasses.replace(backbone.work)
    together = backbone.answer([case.encoded[0]] * 4, [question] * 4, 70, draws=draws)
    # The prompt runs once for all of them.
    assert backbone.work.since(before).prefix_tokens == backbone.num_visual_tokens(SIZES[0], 70)
    alone = [backbone.answer([case.encoded[0]], [question], 70, draws=[draw])[0] for draw in draws]
    assert [a.token_ids for a in together] == [a.token_ids for a in alone]
    assert len({tuple(answer.token_ids) for answer in together}) > 1


def test_batches_filled_by_tokens_give_the_same_answers(case, generated):
    backbone = Gemma4Backbone(
        case.backbone.checkpoint,
        device="cpu",
        dtype="float32",
        max_new_tokens=MAX_NEW_TOKENS,
        batch_tokens=300,
    )
    backbone.model = case.backbone.model
    encoded = backbone.encode(case.images)
    answers = backbone.answer([encoded[n] for n, _ in case.pairs], [q for _, q in case.pairs], 140)
    assert [answer.token_ids for answer in answers] == [ids for ids, _, _ in generated[140]]


def test_the_ladder_is_that_of_the_image_processor(case):
    assert BUDGETS == _SUPPORTED_SOFT_TOKENS == case.backbone.scales
    with pytest.raises(ValueError, match="no budget of 100, 2240 visual tokens, choose from 70, 140, 280"):
        Gemma4Backbone(case.backbone.checkpoint, scales=(70, 100, 2240))
    with pytest.raises(ValueError, match="choose one of 70, 140"):
        Gemma4Backbone(case.backbone.checkpoint, scales=SCALES).num_visual_tokens((64, 64), 280)


@pytest.mark.long
@pytest.mark.parametrize(
    ("image_size", "counts"),
    [
        ((640, 480), [63, 130, 266, 540, 1064]),
        ((1700, 2200), [63, 130, 266, 520, 1102]),
        # One row: its height rounds to 0 up to 280, where a width of 300 is cut to the budget.
        ((3000, 10), [70, 140, 280, 409, 579]),
        ((1, 1), [64, 121, 256, 529, 1089]),
    ],
)
def test_visual_tokens_are_known_from_the_size_of_the_image(tmp_path, image_size, counts):
    backbone = Gemma4Backbone(write_random_checkpoint(tmp_path, "gemma4"))
    assert [backbone.num_visual_tokens(image_size, scale) for scale in backbone.scales] == counts
    backbone.check_image(image_size)
    assert "model" not in vars(backbone)
    image = Image.new("RGB", image_size)
    for scale, count in zip(backbone.scales, counts, strict=True):
        inputs = inputs_of(backbone, image, "What?", scale)
        assert int(inputs["mm_token_type_ids"].sum()) == count
    (encoded,) = backbone.encode([image])
    assert [len(tokens) for tokens in backbone.visual_tokens([encoded], 70)] == counts[:1]


def test_flops_equal_those_that_pytorch_counts(case):
    backbone = Gemma4Backbone(
        case.backbone.checkpoint, device="cpu", dtype="float32", attn_implementation="eager"
    )
    # The counter does not see the grouped matrix products of experts.
    backbone.model.set_experts_implementation("eager")
    text = backbone.checkpoint.config.get_text_config()
    for image, scale in ((case.images[0], 70), (case.images[1], 140)):
        with torch.no_grad(), FlopCounterMode(display=False) as vision:
            backbone.run_vision([image], scale)
        assert backbone.vision_flops(image.size, scale) == vision.get_total_flops()
        inputs = inputs_of(backbone, image, QUESTIONS[0], scale)
        with torch.no_grad(), FlopCounterMode(display=False) as whole:
            output = backbone.model(**inputs, logits_to_keep=1, use_cache=True)
        prefill = whole.get_total_flops() - vision.get_total_flops()
        assert backbone.prefill_flops(image.size, QUESTIONS[0], scale) == prefill
    with torch.no_grad(), FlopCounterMode(display=False) as step:
        backbone.model(input_ids=torch.tensor([[5]]), past_key_values=output.past_key_values)
    num_seen = inputs["input_ids"].shape[1] + 1
    attention = sum(
        4
        * text.num_attention_heads
        * text.per_layer_config[layer].head_dim
        * (num_seen if kind == "full_attention" else min(num_seen, text.sliding_window))
        for layer, kind in enumerate(text.layer_types)
    )
    output_layer = 2 * text.hidden_size * text.vocab_size
    assert backbone.decode_flops_per_token() == step.get_total_flops() - attention - output_layer


def test_an_image_without_positions_for_its_patches_is_refused(tmp_path):
    backbone = Gemma4Backbone(write_random_checkpoint(tmp_path, "gemma4"))
    backbone.checkpoint.config.vision_config.position_embedding_size = 300
    backbone.check_image((640, 480))
    with pytest.raises(ValueError, match="too long: it has 1120 tokens a side at scale 1120"):
        backbone.encode([Image.new("RGB", (3000, 2))])


@pytest.mark.long
def test_a_copied_checkpoint_and_a_pickled_backbone_answer_alike(case, generated, tmp_path):
    case.backbone.checkpoint.copy_to(tmp_path / "copy")
    arguments = case.backbone.saved_arguments()
    copied = Gemma4Backbone(tmp_path / "copy", device="cpu", **arguments)
    assert copied.fingerprints == case.backbone.fingerprints
    for backbone in (copied, pickle.loads(pickle.dumps(case.backbone))):
        (answer,) = backbone.answer(backbone.encode(case.images[:1]), QUESTIONS[:1], 70)
        assert answer.token_ids == generated[70][0][0]


def test_token_embeddings_are_those_that_enter_the_decoder(case):
    model = case.backbone.model
    ids = torch.tensor([3, 50, 200])
    assert torch.equal(case.backbone.token_embeddings()[ids], model.get_input_embeddings()(ids))
