"""Drawn answers: their distribution is the model's, and a draw is the same whatever surrounds it."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from m3_backbone.decoding.sampling import Draw, sample_tokens
from m3_backbone.llava.backbone import LlavaBackbone

QUESTIONS = ["What is it?", "How many are there, and of which color?", "Why"]


def make_backbone(recording, **arguments):
    settings: dict[str, Any] = {"dtype": "float32", "device": "cpu", "max_new_tokens": 5} | arguments
    return LlavaBackbone(recording.folder / "checkpoint", **settings)


@torch.no_grad()
def next_logits(backbone, image, question, scale, answer=()):
    """Logits `[vocabulary]` of what follows the first tokens of an answer, all run alone."""
    inputs = backbone.processor(image, backbone.processor.template.format(question), scale)
    ids = torch.cat([inputs.pop("input_ids"), torch.tensor([answer], dtype=torch.long)], dim=1)
    inputs["attention_mask"] = torch.ones_like(ids)
    return backbone.model(input_ids=ids, token_scale=scale, **inputs).logits[0, -1]


def draw_slowly(backbone, image, question, scale, draw):
    """The definition: one token after the other, each from a pass over all that precedes it."""
    answer: list[int] = []
    while len(answer) < backbone.max_new_tokens and backbone.processor.tokenizer.eos_token_id not in answer:
        logits = next_logits(backbone, image, question, scale, answer)
        chances = (logits.double() / draw.temperature).softmax(-1).numpy()
        answer.append(int(np.argmax(np.cumsum(chances) > draw.uniform(len(answer)))))
    return answer


def test_tokens_are_sampled_in_proportion_to_their_probabilities():
    """Of 1000 evenly spaced random numbers, a token gets its probability times 1000."""
    logits = torch.tensor([2.0, -1.0, 0.5, -torch.inf, 1.0])
    uniform = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    for temperature in (0.3, 1.0, 4.0):
        drawn = sample_tokens(
            logits.log_softmax(-1).expand(1000, -1), torch.full((1000,), temperature), uniform
        ).bincount(minlength=5)
        expected = 1000 * (logits.double() / temperature).softmax(-1)
        assert (drawn - expected).abs().max() <= 1 and drawn[3] == 0
    edge = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert sample_tokens(logits.expand(2, -1), torch.ones(2), edge).tolist() == [0, 4]
    # So cold that all but the best fall out of the range of floats.
    cold = torch.full((2,), 1e-320, dtype=torch.float64)
    assert sample_tokens(logits.expand(2, -1), cold, edge).tolist() == [0, 0]


def test_random_numbers_are_uniform_and_independent_over_keys_and_steps():
    uniform = np.array(
        [[Draw(1.0, (0, f"s{i}", 9, 0)).uniform(step) for step in range(4)] for i in range(5000)]
    )
    assert (uniform >= 0).all() and (uniform < 1).all() and len(np.unique(uniform)) == uniform.size
    for column in uniform.T:
        assert chisquare(np.histogram(column, 20, (0, 1))[0]).pvalue > 1e-3
    assert np.abs(np.corrcoef(uniform.T) - np.eye(4)).max() < 4 / np.sqrt(len(uniform))
    one = Draw(1.0, (0, "a", 9, 1))
    assert one.uniform(3) == Draw(2.0, (0, "a", 9, 1)).uniform(3)
    others = [(1, "a", 9, 1), (0, "b", 9, 1), (0, "a", 36, 1), (0, "a", 9, 2), (0, "a9", 1), (0, "a", 91)]
    assert one.uniform(3) not in [Draw(1.0, key).uniform(3) for key in others]
    for temperature in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="temperature above 0, not"):
            Draw(temperature, ())


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_first_tokens_are_as_frequent_as_the_model_has_them(plain, temperature):
    """4,000 draws of one answer against the softmax of the logits of a plain pass."""
    backbone = make_backbone(plain, max_new_tokens=1)
    draws = [Draw(temperature, ("frequencies", number)) for number in range(4000)]
    images, questions = [plain.encoded[0]] * len(draws), QUESTIONS[:1] * len(draws)
    answers = backbone.answer(images, questions, 36, draws=draws)
    logits = next_logits(backbone, plain.images[0], QUESTIONS[0], 36).double()
    expected = len(draws) * (logits / temperature).softmax(-1).numpy()
    counts = np.bincount([answer.token_ids[0] for answer in answers], minlength=len(expected))
    often = expected >= 5
    assert often.sum() > 5
    counts, expected = (np.append(each[often], each[~often].sum()) for each in (counts, expected))
    assert chisquare(counts, expected).pvalue > 1e-3
    # The chances of what was drawn, and its lead, are those at temperature 1.
    log_probs = logits.log_softmax(-1)
    for answer in answers[:50]:
        (token,) = answer.token_ids
        others = torch.cat([log_probs[:token], log_probs[token + 1 :]])
        assert answer.confidence == pytest.approx(log_probs[token].exp().item(), rel=1e-4)
        assert answer.margin == pytest.approx((log_probs[token] - others.max()).item(), abs=1e-4)
    assert backbone.work.prefix_tokens == 36 and backbone.work.num_answers == len(draws)


@pytest.mark.parametrize("scale", [1, 36])
def test_cold_answers_are_the_greedy_ones(recording, scale):
    backbone = make_backbone(recording)
    images, references = recording.encoded[:3], [["a cat"], ["3", "three"], ["because"]]
    greedy = backbone.answer(images, QUESTIONS, scale, references=references)
    rows = [row for row in range(3) for _ in range(2)]
    cold = backbone.answer(
        [images[row] for row in rows],
        [QUESTIONS[row] for row in rows],
        scale,
        references=[references[row] for row in rows],
        draws=[Draw(1e-9, ("cold", number)) for number in range(6)],
    )
    for row, answer in zip(rows, cold, strict=True):
        assert answer.token_ids == greedy[row].token_ids and answer.text == greedy[row].text
        assert answer.nll == pytest.approx(greedy[row].nll, abs=1e-5)
        assert answer.margin == pytest.approx(greedy[row].margin, abs=1e-4)


def test_draws_are_those_of_the_definition_in_any_batch_and_order_and_with_any_drafts(recording):
    """Two runs of three questions on two pictures; nothing, right and wrong drafts beside them."""
    scale, draw_of = 9, lambda i, j, run: Draw(1.5, (7, i, j, scale, run))
    asked = [(i, j, run) for i in range(2) for j in range(3) for run in range(2)]
    backbone = make_backbone(recording, max_new_tokens=3)
    slow = {
        key: draw_slowly(backbone, recording.images[key[0]], QUESTIONS[key[1]], scale, draw_of(*key))
        for key in asked
    }
    assert len(set(map(tuple, slow.values()))) > 6

    def answer(keys, batch_size, **arguments):
        answers = make_backbone(recording, max_new_tokens=3, batch_size=batch_size).answer(
            [recording.encoded[i] for i, _, _ in keys],
            [QUESTIONS[j] for _, j, _ in keys],
            scale,
            draws=[draw_of(*key) for key in keys],
            **arguments,
        )
        return dict(zip(keys, answers, strict=True))

    def ids(answers):
        return {key: each.token_ids for key, each in answers.items()}

    shuffled = [asked[row] for row in np.random.default_rng(0).permutation(len(asked))]
    whole = answer(asked, 64)
    assert (
        ids(whole) == slow == ids(answer(shuffled, 64)) == ids(answer(shuffled, 2)) == ids(answer(asked, 1))
    )
    assert ids(answer(shuffled[:5], 3)) == {key: slow[key] for key in shuffled[:5]}
    next_one = [whole[key] for key in [*asked[1:], asked[0]]]
    half = [dataclasses.replace(each, token_ids=[*each.token_ids[:2], 7]) for each in whole.values()]
    for drafts in (list(whole.values()), next_one, half):
        assert ids(answer(asked, 64, drafts=drafts)) == slow
    assert ids(answer(asked, 64, references=[["a cat", "3"]] * len(asked))) == slow


def test_a_question_runs_once_for_all_of_its_draws(plain):
    one, many = make_backbone(plain), make_backbone(plain)
    answer = one.answer(plain.encoded[:1], QUESTIONS[:1], 144, references=[["a cat"]])[0]
    draws = [Draw(1.0, (number,)) for number in range(8)]
    many.answer(
        plain.encoded[:1] * 8, QUESTIONS[:1] * 8, 144, references=[["a cat", answer.text]] * 8, draws=draws
    )
    assert many.work.prefix_tokens == one.work.prefix_tokens == 144
    assert many.work.question_tokens == one.work.question_tokens
    with pytest.raises(ValueError, match="1 images, 1 questions, 1 references, 1 drafts, 8 draws"):
        many.answer(plain.encoded[:1], QUESTIONS[:1], 144, draws=draws)
