"""M3 training: the authors' loss, turns that do not see each other, conversations in LLaVA's format."""

import json

import lightning
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from experiments.tasks.scenes import Scenes
from m3_backbone.llava.downsampled import DownsampledLlavaBackbone
from m3_backbone.loading.checkpoint import load_m3
from m3_backbone.training.conversations import (
    IGNORED,
    expand_images,
    tokenize_conversation,
)
from m3_backbone.training.pretraining import PatchHeads
from m3_backbone.training.training import M3Training
from tests.paths import FIXTURES

FIXTURES = FIXTURES / "official_m3"
TURNS = [("What is it?", "a dog"), ("Where?", "top left corner"), ("How many?", "3")]


@pytest.fixture(scope="module", params=["llava15", "llavanext"])
def fixture(request):
    folder = FIXTURES / request.param
    model, processor = load_m3(folder / "checkpoint", dtype=torch.float32, attn_implementation="sdpa")
    return folder, model, processor


def make_batch(fixture, conversations, image="image0.png"):
    folder, _, processor = fixture
    picture = Image.open(folder / image)
    return {**processor.preprocess([picture] * len(conversations)), "conversation": conversations}


def test_loss_is_that_of_the_authors(fixture):
    folder, model, processor = fixture
    recorded = json.loads((folder / "expected.json").read_text())
    case = next(case for case in recorded["cases"] if case["image"] == "image0.png")
    conversation = tokenize_conversation(processor, [(case["question"], case["reference_answer"])])
    training = M3Training(model, processor.pad_token_id)
    with torch.no_grad():
        loss = training.loss(make_batch(fixture, [conversation]), list(model.scales))
    assert loss.item() == pytest.approx(recorded["training_loss_image0"], abs=1e-4)


def test_tokens_are_those_of_the_authors(fixture):
    folder, _, processor = fixture
    for case in json.loads((folder / "expected.json").read_text())["cases"]:
        conversation = tokenize_conversation(processor, [(case["question"], case["reference_answer"])])
        ids = [
            -200 if token == processor.image_token_id else token for token in conversation.input_ids.tolist()
        ]
        assert ids == case["full_ids"]
        assert (conversation.labels != IGNORED).sum() == case["answer_len"]


def test_isolated_turns_cost_what_each_costs_alone(fixture):
    _, model, processor = fixture
    training = M3Training(model, processor.pad_token_id)
    together = tokenize_conversation(processor, TURNS, isolate_turns=True)
    alone = [tokenize_conversation(processor, [turn]) for turn in TURNS]
    with torch.no_grad():
        joint = training.loss(make_batch(fixture, [together]), [9])
        single = [training.loss(make_batch(fixture, [one]), [9]) for one in alone]
    lengths = torch.tensor([(one.labels != IGNORED).sum() for one in alone], dtype=torch.float32)
    assert joint.item() == pytest.approx((torch.stack(single) @ lengths / lengths.sum()).item(), abs=1e-5)


def test_later_turns_see_earlier_ones_unless_isolated(fixture):
    _, model, processor = fixture
    training = M3Training(model, processor.pad_token_id)
    losses = []
    for first in ("a dog", "no"):
        turns = [("What is it?", first), ("Is it a dog?", "yes")]
        rows = [tokenize_conversation(processor, turns, isolate_turns=isolate) for isolate in (False, True)]
        for row in rows:  # only the last answer counts
            answers = (row.labels != IGNORED).nonzero().flatten()
            row.labels[answers[: len(processor.answer_ids(first))]] = IGNORED
        with torch.no_grad():
            losses.append([training.loss(make_batch(fixture, [row]), [1]).item() for row in rows])
    (seen, isolated), (other_seen, other_isolated) = losses
    assert isolated == pytest.approx(other_isolated, abs=1e-6)
    assert abs(seen - other_seen) > 1e-4


def test_padding_of_a_batch_changes_nothing(fixture):
    _, model, processor = fixture
    training = M3Training(model, processor.pad_token_id)
    rows = [tokenize_conversation(processor, TURNS[:count], isolate_turns=True) for count in (1, 3)]
    lengths = torch.tensor([(row.labels != IGNORED).sum() for row in rows], dtype=torch.float32)
    with torch.no_grad():
        single = torch.stack([training.loss(make_batch(fixture, [row]), [9]) for row in rows])
        joint = training.loss(make_batch(fixture, rows), [9])
    assert joint.item() == pytest.approx((single @ lengths / lengths.sum()).item(), abs=1e-5)


def test_positions_go_on_from_the_picture():
    from m3_backbone.training.conversations import Conversation

    row = Conversation(
        torch.tensor([5, 9, 6, 7, 8]), torch.full((5,), IGNORED), torch.tensor([0, 0, 1, 1, 2])
    )
    batch = expand_images([row], [3], image_token_id=9, pad_id=0)
    assert batch["input_ids"].tolist() == [[5, 9, 9, 9, 6, 7, 8]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 5, 4]]
    sees = batch["attention_mask"][0, 0] == 0
    assert sees[6].tolist() == [True, True, True, True, False, False, True]
    assert sees[5].tolist() == [True, True, True, True, True, True, False]


@pytest.mark.long
def test_fit_learns_and_leaves_frozen_weights_alone(fixture):
    folder, _, _ = fixture
    model, processor = load_m3(folder / "checkpoint", dtype=torch.float32)
    model.model.vision_tower.requires_grad_(False)
    turns = [("What is it?", "a dog"), ("Sure?", "yes")]
    images = [Image.open(folder / name).convert("RGB") for name in ("image0.png", "image1.png")]
    batch = {**processor.preprocess(images), "conversation": [tokenize_conversation(processor, turns)] * 2}
    training = M3Training(
        model,
        processor.pad_token_id,
        scale_groups=[[1, 9]],
        learning_rate=1e-2,
        num_warmup_steps=1,
        gradient_checkpointing=True,
    )
    tower = {name: value.clone() for name, value in model.model.vision_tower.state_dict().items()}
    with torch.no_grad():
        before = training.loss(batch, [1, 9]).item()
    trainer = lightning.Trainer(
        max_epochs=6,
        accelerator="cpu",
        precision="bf16-mixed",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(training, DataLoader([batch], batch_size=None))  # type: ignore[arg-type]
    with torch.no_grad():
        after = training.eval().loss(batch, [1, 9]).item()
    assert after < before - 1
    for name, value in model.model.vision_tower.state_dict().items():
        assert torch.equal(value, tower[name]), name


def test_a_batch_without_dense_labels_costs_nothing():
    heads = PatchHeads(4, {"color": 3})
    loss, _ = heads(torch.zeros(0, 9, 4), torch.zeros(0, 9, 1, dtype=torch.long))
    assert loss.item() == 0
    patches, labels = torch.randn(2, 9, 4), torch.randint(0, 3, (2, 9, 1))
    weight = torch.tensor([heads.zero_weight, 1.0, 1.0])
    logits = heads.heads["color"](patches).flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, labels.flatten(), weight)
    assert heads(patches, labels)[0].item() == pytest.approx(expected.item(), abs=1e-6)


def test_scales_of_a_step_come_from_their_groups(fixture):
    _, model, processor = fixture
    assert M3Training(model, processor.pad_token_id).draw_scales() == [1, 9, 36, 144, 576]
    drawn = M3Training(model, processor.pad_token_id, scale_groups=[[1, 9], [576]]).draw_scales()
    assert drawn[0] in (1, 9) and drawn[1] == 576
    with pytest.raises(ValueError, match="100"):
        M3Training(model, processor.pad_token_id, scale_groups=[[100]])


def test_shrunk_images_cost_what_their_backbone_answers_with():
    """The loss at a resolution is the likelihood that `DownsampledLlavaBackbone` gives the reference."""
    model, processor = load_m3("tiny_m3", dtype=torch.float32, attn_implementation="sdpa")
    training = M3Training(model, processor.pad_token_id, resize_images=True)
    backbone = DownsampledLlavaBackbone("tiny_m3", dtype="float32", device="cpu")
    task = Scenes(seed=3, num_images={"train": 1, "calibration": 1, "test": 1})
    sample = next(iter(task.samples("train")))
    image = task.image(sample.image_id)
    conversation = tokenize_conversation(processor, [(sample.question, sample.references[0])])
    batch = {**processor.preprocess([image]), "conversation": [conversation]}
    (encoded,) = backbone.encode([image])
    nlls = []
    for scale in backbone.scales:
        (answer,) = backbone.answer([encoded], [sample.question], scale, references=[sample.references[:1]])
        with torch.no_grad():
            loss = training.loss(batch, [scale]).item()
        # Shrunk before or after normalisation: pixels differ by rounding to whole numbers, unless unchanged.
        assert loss == pytest.approx(answer.nll, abs=1e-4 if scale == 144 else 0.05)
        nlls.append(loss)
    with torch.no_grad():
        assert training.loss(batch, backbone.scales).item() == pytest.approx(sum(nlls) / len(nlls), abs=1e-4)
