"""Networks: what they look at, padding that changes nothing, and AVG-LLaVA's router in both readings."""

import subprocess
import sys

import pytest
import torch

from predictor.batches import BatchMaker
from predictor.features import Features, Standard
from predictor.networks.avg_router import AVGRouter, select_words
from predictor.networks.base import InputShape, draw_normal
from predictor.networks.cross_attention import CrossAttention, run_layer
from predictor.networks.pooled import MLP, Linear
from tests.paths import ROOT
from tests.predictor.synthetic import HIDDEN, NUM_COARSE, make_labels

LABELS = make_labels(12, seed=0)
FEATURES = Features(visual=NUM_COARSE, question=True, statistics=("tower", "image"))
STANDARD = Standard.fit(FEATURES.read_statistics(LABELS.inputs))
EMBEDDINGS = LABELS.inputs.token_embeddings.tensor
SHAPE = InputShape(HIDDEN, NUM_COARSE, 3)


def make_batch(rows=range(8)):
    return BatchMaker(LABELS.inputs, FEATURES, STANDARD).make(list(rows))


@pytest.mark.parametrize("network", [Linear, MLP, CrossAttention])
def test_question_visual_tokens_and_statistics_each_count(network):
    torch.manual_seed(0)
    network, batch = network(SHAPE, 4).eval(), make_batch()
    outputs = network(batch, EMBEDDINGS)
    assert outputs.shape == (8, 4)
    others = {
        "question_ids": (batch.question_ids + 1) % len(EMBEDDINGS),
        "visual": batch.visual.flip(0),
        "statistics": batch.statistics + 1,
    }
    for name, value in others.items():
        assert (network(batch._replace(**{name: value}), EMBEDDINGS) - outputs).abs().max() > 1e-4, name


@pytest.mark.parametrize("network", [Linear, MLP, CrossAttention])
def test_padding_changes_nothing(network):
    torch.manual_seed(0)
    network, batch = network(SHAPE, 4).eval(), make_batch()
    padded = batch._replace(
        question_ids=torch.nn.functional.pad(batch.question_ids, (0, 3), value=2),
        question_mask=torch.nn.functional.pad(batch.question_mask, (0, 3)),
    )
    torch.testing.assert_close(network(padded, EMBEDDINGS), network(batch, EMBEDDINGS))


@pytest.mark.parametrize("num_asked", [None, 1])
def test_a_layer_gives_what_pytorch_computes(num_asked):
    torch.manual_seed(0)
    layer = torch.nn.TransformerDecoderLayer(
        8, 2, 16, activation="gelu", batch_first=True, norm_first=True
    ).eval()
    for parameter in layer.parameters():  # biases begin at zero, and would count for nothing
        torch.nn.init.normal_(parameter)
    states, memory = torch.randn(3, 5, 8), torch.randn(3, 4, 8)
    mask = torch.arange(5) < torch.tensor([[5], [2], [1]])
    memory_mask = torch.arange(4) < torch.tensor([[1], [4], [3]])
    expected = layer(states, memory, tgt_key_padding_mask=~mask, memory_key_padding_mask=~memory_mask)
    found = run_layer(layer, states, mask, memory, memory_mask, num_asked)
    # Of padding nothing is asked: PyTorch's fast path gives zeros there.
    real = mask[:, :num_asked]
    torch.testing.assert_close(found[real], expected[:, :num_asked][real])


def test_linear_is_linear_in_the_statistics():
    network, batch = Linear(SHAPE, 2).eval(), make_batch()
    codes = network.encode(batch, EMBEDDINGS)
    at = [network.read_off(codes, batch.statistics + step) for step in (0, 1, 2)]
    torch.testing.assert_close(at[1] - at[0], at[2] - at[1])


def test_more_visual_tokens_than_in_training_are_refused():
    with pytest.raises(ValueError, match="9 visual tokens, more than the 4 of training"):
        MLP(InputShape(HIDDEN, 4, 3), 2)(make_batch(), EMBEDDINGS)


def test_the_router_reads_no_price():
    with pytest.raises(ValueError, match="neither statistics nor a price"):
        AVGRouter(SHAPE, 3)


def test_words_are_chosen_by_their_mean_cosine_padding_last():
    visual = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    words = torch.tensor([[[0.0, 2.0], [9.0, 0.0], [5.0, 0.1], [-1.0, 0.0]]])
    mask = torch.tensor([[True, False, True, True]])
    chosen = select_words(visual, words, mask, 5)[0]
    torch.testing.assert_close(chosen, torch.cat([words[0][[2, 0, 3, 1]], torch.zeros(1, 2)]))


def make_router(attention):
    torch.manual_seed(0)
    return AVGRouter(InputShape(HIDDEN, 3, 0), 4, attention=attention, num_words=2).eval()


def test_attention_across_crops_leaves_a_token_to_itself():
    """With one crop, a token's contribution is its own: votes of two halves add up to those of the whole."""
    tokens = torch.randn(1, 2, 5, HIDDEN)
    shares = {}
    for attention in ("crops", "tokens"):
        router = make_router(attention)
        whole = router.vote(tokens)
        changed = tokens.clone()
        changed[:, :, 0] += 1
        router.voter.data[0] = 0  # the changed token has no vote of its own
        shares[attention] = (router.vote(changed) - router.vote(tokens)).abs().max().item()
        assert whole.shape == (2, 4)
    assert shares["crops"] == pytest.approx(0, abs=1e-5)
    assert shares["tokens"] > 1e-3


def test_samples_of_a_batch_do_not_see_each_other():
    features = Features(visual=NUM_COARSE, question=True)
    standard = Standard.fit(features.read_statistics(LABELS.inputs))
    maker = BatchMaker(LABELS.inputs, features, standard)
    for attention in ("crops", "tokens"):
        torch.manual_seed(0)
        router = AVGRouter(InputShape(HIDDEN, NUM_COARSE, 0), 3, attention=attention).eval()
        together = router(maker.make([0, 5, 7]), EMBEDDINGS)
        torch.testing.assert_close(router(maker.make([5]), EMBEDDINGS), together[1:2], atol=1e-5, rtol=1e-4)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="num_heads=7: give a divisor of width=64"):
        CrossAttention(SHAPE, 4, num_heads=7)
    with pytest.raises(ValueError, match=f"num_heads=7: give a divisor of the hidden size {HIDDEN}"):
        AVGRouter(InputShape(HIDDEN, NUM_COARSE, 0), 4, num_heads=7)


@pytest.mark.long
def test_networks_without_values_are_made_without_the_compiler():
    """Loading a predictor makes its networks on the meta device, to check their sizes."""
    code = """
import sys
import torch
from predictor.networks.avg_router import AVGRouter
from predictor.networks.base import InputShape
from predictor.networks.cross_attention import CrossAttention
from predictor.objectives.minimum_scale import MinimumScaleOrdinal

with torch.device("meta"):
    CrossAttention(InputShape(64, 9, 3), 4), AVGRouter(InputShape(64, 9, 0), 4), MinimumScaleOrdinal(4)
print(sorted({"sympy", "torch._dynamo"} & sys.modules.keys()))
"""
    output = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    assert output.strip() == "[]"


def test_normal_values_are_those_of_randn():
    torch.manual_seed(0)
    expected = torch.randn(96, 3) / 7
    torch.manual_seed(0)
    assert torch.equal(draw_normal(96, 3, divisor=7), expected)
