"""The network learns what question and image tell together; a seed gives the same weights, killed or not."""

import dataclasses
import functools
import time

import lightning
import numpy as np
import pytest
import torch

from m3_backbone.outcomes.labels import TokenEmbeddings
from predictor.base import FitContext, ScalePredictor
from predictor.classical.question_only import QuestionOnly
from predictor.learned import LearnedPredictor
from predictor.networks.base import InputShape
from predictor.networks.cross_attention import CrossAttention
from predictor.policy.front import policy_value
from predictor.training import Ensemble
from tests.predictor.synthetic import SCALES, blind_estimates, make_labels, true_estimates

TRAIN, VALIDATION, TEST = make_labels(400, seed=0), make_labels(100, seed=1), make_labels(400, seed=2)
FEW, FEW_VALIDATION = make_labels(40, seed=3), make_labels(20, seed=4)
make_trainer = functools.partial(
    lightning.Trainer,
    accelerator="cpu",
    logger=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    deterministic=True,
)
SMALL = functools.partial(CrossAttention, width=32)


def value(estimates):
    return policy_value(estimates, TEST.inputs.visual_tokens, TEST.outcomes.score)


def fit(folder=None, train=FEW, validation=FEW_VALIDATION, **arguments):
    predictor = LearnedPredictor(network=SMALL, **{"max_epochs": 3, "batch_size": 64, **arguments})
    return predictor.fit(train, validation, FitContext(folder, make_trainer))


def weights(predictor):
    return predictor.state_dict()["arrays"]


def assert_same_weights(first, second):
    assert weights(first).keys() == weights(second).keys()
    for name, array in weights(first).items():
        np.testing.assert_array_equal(array, weights(second)[name], err_msg=name)


@pytest.fixture(scope="module")
def trained():
    return fit(train=TRAIN, validation=VALIDATION, max_epochs=14)


@pytest.mark.slow
def test_it_learns_what_the_question_alone_cannot_tell(trained):
    """Bounds are known: the value of the true chances, and of the best estimates without the picture.

    On this draw they differ by 4 points; the network must get half of the way from the blind one up, and so
    lie above the question-only baseline, which the blind bound holds down.
    """
    blind, true = value(blind_estimates(TEST)), value(true_estimates(TEST))
    assert true - blind > 0.03
    learned = value(trained.predict(TEST.inputs))
    question_only = value(QuestionOnly().fit(TRAIN, VALIDATION).predict(TEST.inputs))
    assert learned > (blind + true) / 2
    assert learned > question_only + (true - blind) / 2 - 0.01


@pytest.mark.long
def test_saved_and_loaded_it_estimates_the_same(trained, tmp_path):
    trained.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "weights.safetensors"}
    loaded = ScalePredictor.load(tmp_path)
    assert isinstance(loaded, LearnedPredictor)
    np.testing.assert_array_equal(loaded.predict(TEST.inputs), trained.predict(TEST.inputs))
    assert loaded.validation_value == trained.validation_value
    assert_same_weights(loaded, trained)


def test_estimates_do_not_depend_on_company(trained):
    """Padding to a longer question, or other samples in the batch, change an estimate by rounding at most."""
    alone = np.concatenate([trained.predict(TEST.inputs.select([row])) for row in range(5)])
    np.testing.assert_allclose(trained.predict(TEST.inputs)[:5], alone, atol=1e-6)


def test_costs_are_counted(trained):
    network = SMALL(InputShape(24, 9, 0), len(SCALES))
    assert trained.num_parameters == sum(parameter.numel() for parameter in network.parameters())
    # Projections alone: 3 question tokens and 9 visual ones, 24 wide, to 32; two operations a multiply-add.
    assert trained.count_flops(TEST.inputs) > 2 * 12 * 24 * 32


def test_value_on_validation_is_that_of_the_weights_kept(trained):
    estimates = trained.predict(VALIDATION.inputs)
    kept = policy_value(estimates, VALIDATION.inputs.visual_tokens, VALIDATION.outcomes.score)
    assert kept == pytest.approx(trained.validation_value, abs=1e-6)


def test_same_seed_same_weights_whatever_was_drawn_before():
    first = fit()
    torch.manual_seed(time.time_ns() % 2**31)
    state = torch.get_rng_state()
    second = fit()
    assert torch.equal(torch.get_rng_state(), state)
    assert_same_weights(first, second)
    other = fit(seed=1)
    assert any((weights(first)[name] != array).any() for name, array in weights(other).items())


def test_members_of_an_ensemble_differ_and_are_averaged():
    both = fit(num_members=2)
    members = both._members
    assert (members[0].network.summary != members[1].network.summary).any()
    single = []
    for member in members:
        both._members = Ensemble([member])
        single.append(both.predict(TEST.inputs))
    both._members = members
    np.testing.assert_allclose(both.predict(TEST.inputs), np.mean(single, axis=0), atol=1e-6)


class Killed(lightning.Callback):
    """Ends the fit as a kill would: in the middle of an epoch, nothing tidied."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.current_epoch == 2 and batch_idx == 1:
            raise KeyboardInterrupt


@pytest.mark.long
def test_a_killed_fit_goes_on_to_the_same_weights(tmp_path):
    def make_killed(callbacks, **arguments):
        return make_trainer(callbacks=[*callbacks, Killed()], **arguments)

    undisturbed = fit(max_epochs=4)
    killed = LearnedPredictor(network=SMALL, max_epochs=4, batch_size=64)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        killed.fit(FEW, FEW_VALIDATION, FitContext(tmp_path, make_killed))
    assert (tmp_path / "checkpoints" / "last.ckpt").is_file()
    assert killed.scales is None

    epochs = []

    class Note(lightning.Callback):
        def on_train_epoch_start(self, trainer, module):
            epochs.append(trainer.current_epoch)

    def make_noting(callbacks, **arguments):
        return make_trainer(callbacks=[*callbacks, Note()], **arguments)

    resumed = LearnedPredictor(network=SMALL, max_epochs=4, batch_size=64)
    resumed.fit(FEW, FEW_VALIDATION, FitContext(tmp_path, make_noting))
    assert epochs == [2, 3]
    assert_same_weights(resumed, undisturbed)


def test_a_checkpoint_of_another_fit_is_not_taken_up(tmp_path):
    fit(tmp_path, max_epochs=2)
    assert_same_weights(fit(tmp_path, seed=1), fit(seed=1))


def test_another_hidden_size_is_refused(trained):
    narrow = TokenEmbeddings.hold(TEST.inputs.token_embeddings.tensor[:, :12])
    inputs = dataclasses.replace(TEST.inputs, token_embeddings=narrow)
    with pytest.raises(ValueError, match="tokens of hidden size 24, not 12"):
        trained.predict(inputs)


def test_an_empty_question_still_gets_estimates(trained):
    ids = [np.empty(0, dtype=np.int32), *TEST.inputs.question_ids[1:]]
    inputs = dataclasses.replace(TEST.inputs, question_ids=ids).select([0])
    assert np.isfinite(trained.predict(inputs)).all()
