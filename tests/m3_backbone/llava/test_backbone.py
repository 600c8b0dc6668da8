import dataclasses
import math

import numpy as np
import pytest
import torch
from torch.distributions import Categorical

from m3_backbone.backbone import check_scale
from m3_backbone.llava.backbone import LlavaBackbone

QUESTIONS = ["What color is the circle?", "How many?", "Which of these is shown?\nA. a cat\nB. a dog", "Why"]
REFERENCES = [["red", "a red one", "red"], ["three"], ["B", "A"], [""]]


@pytest.mark.parametrize("scale", [1, 9, 36, 144, 576])
def test_the_official_answers_and_likelihoods(recording, scale):
    cases = recording.cases_at(scale)
    answers = recording.backbone.answer(
        recording.encoded,
        [case["question"] for case in cases],
        scale,
        references=[[case["reference_answer"]] for case in cases],
    )
    for case, answer in zip(cases, answers, strict=True):
        assert answer.token_ids == case["generated_ids"][1:]
        assert answer.text == case["generated_text"]
        assert answer.nll == pytest.approx(case["answer_nll"], abs=1e-4)
        assert answer.reference_tokens == case["answer_len"]


@pytest.mark.long
@pytest.mark.parametrize("scale", [1, 36])
def test_shared_prefixes_give_what_generate_gives_alone(recording, scale):
    """Four questions on each of four images, of different lengths if tiled; batches cut across images."""
    backbone = recording.backbone
    rows = [(image, question) for question in QUESTIONS for image in range(4)]
    batched = LlavaBackbone(recording.folder / "checkpoint", device="cpu", max_new_tokens=5, batch_size=6)
    answers = batched.answer([recording.encoded[i] for i, _ in rows], [q for _, q in rows], scale)
    for (image, question), answer in zip(rows, answers, strict=True):
        prompt = backbone.processor.template.format(question)
        inputs = backbone.processor(recording.images[image], prompt, scale)
        outputs = backbone.model.generate(
            **inputs,
            token_scale=scale,
            max_new_tokens=5,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
        )
        ids = outputs.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        assert answer.token_ids == ids
        probabilities = [s[0].softmax(-1)[i].item() for s, i in zip(outputs.scores, ids, strict=True)]
        assert answer.confidence == pytest.approx(math.prod(probabilities), rel=1e-4)
        entropies = [Categorical(logits=scores[0]).entropy().item() for scores in outputs.scores]
        assert answer.entropy == pytest.approx(np.mean(entropies), rel=1e-4)


def test_an_answer_ends_with_its_end_token(tiled):
    case = next(case for case in tiled.cases if case["generated_ids"][-1] == 2)
    (answer,) = tiled.backbone.answer(
        [tiled.encoded[int(case["image"][5])]], [case["question"]], case["scale"]
    )
    assert answer.token_ids[-1] == 2
    assert 2 not in answer.token_ids[:-1]


@torch.no_grad()
def test_references_are_scored_as_the_training_loss_scores_them(recording):
    backbone, encoded = recording.backbone, recording.encoded
    answers = backbone.answer(encoded, QUESTIONS, 9, references=REFERENCES)
    for image, question, references, answer in zip(
        recording.images, QUESTIONS, REFERENCES, answers, strict=True
    ):
        losses = []
        for reference in references:
            inputs = backbone.processor(image, backbone.processor.template.format(question), 9)
            end = torch.tensor([backbone.processor.answer_ids(reference)])
            ids = torch.cat([inputs.pop("input_ids"), end], dim=1)
            labels = torch.full_like(ids, -100)
            labels[:, -end.shape[1] :] = end
            inputs["attention_mask"] = torch.ones_like(ids)
            losses.append(backbone.model(input_ids=ids, labels=labels, token_scale=9, **inputs).loss.item())
        assert answer.nll == pytest.approx(min(losses), abs=1e-5)
        likeliest = backbone.processor.answer_ids(references[int(np.argmin(losses))])
        assert answer.reference_tokens == len(likeliest)


def test_without_references_there_is_no_likelihood(plain):
    answers = plain.backbone.answer(plain.encoded[:2], QUESTIONS[:2], 1)
    assert [(answer.nll, answer.reference_tokens) for answer in answers] == [(None, None)] * 2
    mixed = plain.backbone.answer(plain.encoded[:2], QUESTIONS[:2], 1, references=[[], ["x"]])
    assert mixed[0].nll is None and mixed[1].nll is not None


@pytest.mark.long
@pytest.mark.parametrize("scale", [1, 144])
def test_drafts_change_no_answer(recording, scale):
    """Right, partly right, too long, cut off and wrong ones; with and without references, in any batch."""
    backbone = LlavaBackbone(recording.folder / "checkpoint", device="cpu", max_new_tokens=6, batch_size=5)
    rows = [(image, question) for image in range(4) for question in QUESTIONS]
    images, questions = [recording.encoded[i] for i, _ in rows], [question for _, question in rows]
    plain = [backbone.answer([i], [q], scale)[0] for i, q in zip(images, questions, strict=True)]
    assert len({tuple(answer.token_ids) for answer in plain}) > 1

    def guess(kind, answer):
        ids = answer.token_ids
        other = [(ids[0] + 1) % 500 + 3]
        guesses = {
            "right": ids,
            "half": ids[:3] + other,
            "short": ids[:2],
            "long": [*ids, *other],
            "wrong": other * 3,
        }
        return dataclasses.replace(answer, token_ids=guesses[kind])

    references = [REFERENCES[QUESTIONS.index(question)] for question in questions]
    alone = [
        backbone.answer([i], [q], scale, references=[r])[0].nll
        for i, q, r in zip(images, questions, references, strict=True)
    ]
    for kind in ("right", "half", "short", "long", "wrong"):
        drafts = [guess(kind, answer) for answer in plain]
        for given in (None, references):
            answers = backbone.answer(images, questions, scale, references=given, drafts=drafts)
            assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in plain]
            for answer, expected in zip(answers, plain, strict=True):
                assert answer.confidence == pytest.approx(expected.confidence, rel=1e-4)
                assert answer.margin == pytest.approx(expected.margin, abs=1e-4)
                assert answer.entropy == pytest.approx(expected.entropy, rel=1e-4)
            assert [a.nll for a in answers] == (pytest.approx(alone, abs=1e-5) if given else [None] * 16)


def test_the_prompt_of_an_image_runs_once_and_right_drafts_are_not_decoded(plain):
    folder = plain.folder / "checkpoint"
    backbone = LlavaBackbone(folder, device="cpu", max_new_tokens=6)
    images = [plain.encoded[0]] * 3 + [plain.encoded[1]]
    answers = backbone.answer(images, QUESTIONS, 144)
    first = backbone.work
    assert (first.num_answers, first.prefix_tokens, first.draft_tokens) == (4, 2 * 144, 0)
    assert first.decoded_tokens == sum(len(answer.token_ids) - 1 for answer in answers)

    again = LlavaBackbone(folder, device="cpu", max_new_tokens=6)
    drafted = again.answer(images, QUESTIONS, 144, drafts=answers)
    assert [answer.token_ids for answer in drafted] == [answer.token_ids for answer in answers]
    assert again.work.num_drafted == 4 and again.work.decoded_tokens == again.work.padding_tokens == 0
    assert again.work.draft_tokens == first.decoded_tokens


def test_a_batch_that_does_not_fit_is_halved(plain, monkeypatch, caplog):
    backbone = LlavaBackbone(plain.folder / "checkpoint", device="cpu", max_new_tokens=3)
    whole = backbone.answer(plain.encoded, QUESTIONS, 9)
    decode, sizes = backbone._decoder.decode, []

    def fits_one(images, owners, *args, **kwargs):
        sizes.append(len(owners))
        if len(owners) > 1:
            raise torch.OutOfMemoryError
        return decode(images, owners, *args, **kwargs)

    monkeypatch.setattr(backbone._decoder, "decode", fits_one)
    halved = backbone.answer(plain.encoded, QUESTIONS, 9)
    assert [answer.token_ids for answer in halved] == [answer.token_ids for answer in whole]
    assert sizes == [4, 2, 1, 1, 1, 1]

    # What fitted is remembered at that scale, and at no other.
    sizes.clear()
    backbone.answer(plain.encoded, QUESTIONS, 9)
    assert sizes == [1, 1, 1, 1]
    sizes.clear()
    backbone.answer(plain.encoded, QUESTIONS, 1)
    assert sizes == [4, 2, 1, 1, 1, 1]

    def fits_none(*args, **kwargs):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(backbone._decoder, "decode", fits_none)
    with pytest.raises(torch.OutOfMemoryError):
        backbone.answer(plain.encoded, QUESTIONS, 9)


def test_costs_are_known_beforehand(recording):
    backbone = recording.backbone
    hidden_size = backbone.token_embeddings().shape[1]
    for scale in backbone.scales:
        all_tokens = backbone.visual_tokens(recording.encoded, scale)
        for image, tokens in zip(recording.images, all_tokens, strict=True):
            assert tokens.shape == (backbone.num_visual_tokens(image.size, scale), hidden_size)
    # Pooling to 4 tokens is possible, and the model is not asked at this scale.
    with pytest.raises(ValueError, match="choose one of 1, 9, 36"):
        backbone.visual_tokens(recording.encoded[:1], 4)
    with pytest.raises(ValueError, match="choose one of 1, 9, 36"):
        backbone.num_visual_tokens((5, 5), 4)


def test_a_scale_beside_the_ladder_names_the_possible_ones():
    assert check_scale(9, (1, 9, 144)) == 9
    with pytest.raises(ValueError, match=r"scale 4 .* 1, 9, 144"):
        check_scale(4, (1, 9, 144))


def test_making_a_backbone_loads_no_weights(plain):
    backbone = LlavaBackbone(plain.folder / "checkpoint")
    assert backbone.fingerprints.keys() == {"weights", "prompt", "decoding"}
    assert backbone.name == "checkpoint" and backbone.scales[-1] == 576
    assert backbone.question_ids("How many?") == backbone.processor.tokenizer("How many?").input_ids[1:]
    assert "model" not in vars(backbone)
    assert backbone.token_embeddings().shape == (512, 64)
    assert "model" in vars(backbone)


def test_fingerprints_tell_what_changes_outcomes(plain, tiled):
    folder = plain.folder / "checkpoint"
    base = LlavaBackbone(folder).fingerprints

    def changed(**arguments):
        found = LlavaBackbone(folder, **arguments).fingerprints
        return {name for name in base if found[name] != base[name]}

    assert changed(name="other", batch_size=1, image_batch_size=1, device="cpu") == set()
    assert changed(max_new_tokens=3) == changed(dtype="bfloat16") == {"decoding"}
    assert changed(attn_implementation="eager") == {"decoding"}
    assert changed(prompt="short") == {"prompt"}
    assert changed(dtype="float32") == set()  # the checkpoint's own
    assert LlavaBackbone(tiled.folder / "checkpoint").fingerprints["weights"] != base["weights"]


def test_other_mistakes_are_named(plain):
    with pytest.raises(ValueError, match="2 images, 1 questions"):
        plain.backbone.answer(plain.encoded[:2], ["What?"], 9)
    with pytest.raises(ValueError, match="device or device_map"):
        LlavaBackbone(plain.folder / "checkpoint", device="cpu", device_map="auto")
    assert plain.backbone.answer([], [], 9) == []


def test_the_vision_tower_may_have_a_dtype_of_its_own(plain):
    folder, images = plain.folder / "checkpoint", plain.images[:2]
    usual = LlavaBackbone(folder, dtype="float32", device="cpu")
    mixed = LlavaBackbone(folder, dtype="float32", device="cpu", vision_dtype="bfloat16")
    half = LlavaBackbone(folder, dtype="bfloat16", device="cpu")
    assert (
        mixed.model.model.vision_tower.dtype == torch.bfloat16
        and mixed.model.lm_head.weight.dtype == torch.float32
    )
    with torch.no_grad():
        pixels = mixed.processor.preprocess(images)["pixel_values"]
        patches = half.model.model._encode_patches(pixels).float()
        expected = usual.model.model.multi_modal_projector(patches)
    tokens = torch.stack([image.tokens[0] for image in mixed.encode(images)])
    assert tokens.dtype == torch.float32 and torch.equal(tokens, expected)
    assert not torch.equal(tokens[0], usual.encode(images)[0].tokens[0])
    differing = {key for key in usual.fingerprints if usual.fingerprints[key] != mixed.fingerprints[key]}
    assert differing == {"decoding"} and mixed.fingerprints != half.fingerprints
    assert mixed.saved_arguments() == {**usual.saved_arguments(), "vision_dtype": "bfloat16"}


def test_the_dtype_of_the_model_is_no_other_dtype_of_the_tower(plain):
    folder = plain.folder / "checkpoint"
    usual = LlavaBackbone(folder, dtype="float32")
    assert LlavaBackbone(folder, dtype="float32", vision_dtype="float32").fingerprints == usual.fingerprints


@pytest.mark.parametrize("dtype", ["int8", "auto", "half a float", "Tensor"])
def test_other_dtypes_of_the_tower_are_refused(plain, dtype):
    with pytest.raises(ValueError, match=f"vision_dtype={dtype}: give one of float32, bfloat16, float16"):
        LlavaBackbone(plain.folder / "checkpoint", vision_dtype=dtype)
