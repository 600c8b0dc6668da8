import math

import pytest
import torch

from m3_backbone.llava import LlavaBackbone

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
    assert backbone.score(encoded, QUESTIONS, REFERENCES, 9) == pytest.approx(
        [a.nll for a in answers], abs=1e-5
    )
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


def test_without_references_there_is_no_likelihood(plain):
    answers = plain.backbone.answer(plain.encoded[:2], QUESTIONS[:2], 1)
    assert [answer.nll for answer in answers] == [None, None]
    mixed = plain.backbone.answer(plain.encoded[:2], QUESTIONS[:2], 1, references=[[], ["x"]])
    assert mixed[0].nll is None and mixed[1].nll is not None
    with pytest.raises(ValueError, match="needs a reference"):
        plain.backbone.score(plain.encoded[:1], ["What?"], [[]], 1)


def test_a_prefix_runs_once_for_all_questions_of_an_image(plain):
    backbone, lengths = plain.backbone, []
    hook = backbone.model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(tuple(kwargs["inputs_embeds"].shape[:2])),
        with_kwargs=True,
    )
    backbone.answer([plain.encoded[0]] * 3 + [plain.encoded[1]], QUESTIONS, 144)
    hook.remove()
    prefix = 144 + len(backbone.processor.prompt_parts(backbone.processor.template.text)[0])
    assert lengths[0] == (2, prefix)
    assert {rows for rows, _ in lengths[1:]} == {4}
    assert all(length < 144 for _, length in lengths[1:])


def test_costs_are_known_beforehand(recording):
    backbone = recording.backbone
    for image, encoded in zip(recording.images, recording.encoded, strict=True):
        for scale in backbone.ladder:
            tokens = backbone.visual_tokens(encoded, scale)
            assert tokens.shape == (backbone.num_visual_tokens(image.size, scale), backbone.hidden_size)
    with pytest.raises(ValueError, match="1, 4, 9"):
        backbone.visual_tokens(recording.encoded[0], 5)
    with pytest.raises(ValueError, match="1, 4, 9"):
        backbone.num_visual_tokens((5, 5), 5)


def test_making_a_backbone_loads_no_weights(plain):
    backbone = LlavaBackbone(plain.folder / "checkpoint")
    assert backbone.fingerprints.keys() == {"weights", "prompt", "decoding"}
    assert backbone.name == "checkpoint" and backbone.ladder.finest == 576 and backbone.hidden_size == 64
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


def test_questions_that_cannot_be_asked(plain):
    plain.backbone.check_question("How many boxes are there?")
    with pytest.raises(ValueError, match="the question is too long"):
        plain.backbone.check_question("many words " * 2000)
    with pytest.raises(ValueError, match="the mark of the image"):
        plain.backbone.check_question("<image>\nWhat?")


def test_other_mistakes_are_named(plain):
    with pytest.raises(ValueError, match="2 images, 1 questions"):
        plain.backbone.answer(plain.encoded[:2], ["What?"], 9)
    with pytest.raises(ValueError, match="device or device_map"):
        LlavaBackbone(plain.folder / "checkpoint", device="cpu", device_map="auto")
    assert plain.backbone.answer([], [], 9) == []
