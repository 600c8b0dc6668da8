"""Muon beside AdamW: who trains what, as one optimizer to Lightning; and a patch embedding that whitens."""

import copy

import lightning
import pytest
import torch
from torch import nn
from torch.optim import AdamW, Muon
from torch.utils.data import DataLoader, TensorDataset
from transformers import CLIPVisionModel

from m3_backbone.training.pretraining import PatchClassification
from m3_backbone.training.scratch import build_tower_config, set_whitening_patches
from m3_backbone.training.training import CosineTraining, SideBySide


def make_tower():
    torch.manual_seed(0)
    config = build_tower_config(image_size=16, patch_size=4, hidden_size=32, num_layers=1, num_heads=2)
    return CLIPVisionModel(config)


def test_muon_trains_the_matrices_of_hidden_layers_alone():
    training = PatchClassification(make_tower(), {"color": 3}, matrix_learning_rate=1e-3)
    optimizer = training.make_optimizer()
    muon, decayed, vectors = ([id(p) for p in group["params"]] for group in optimizer.param_groups)
    names = {id(p): name for name, p in training.named_parameters()}
    assert sorted(muon + decayed + vectors) == sorted(names)
    assert {names[p].rpartition(".")[0].rpartition(".")[2] for p in muon} == {
        *("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
    }
    assert any("patch_heads" in names[p] for p in decayed)
    assert any("position_embedding" in names[p] for p in decayed)
    assert all("bias" in names[p] or "norm" in names[p] or "class_embedding" in names[p] for p in vectors)
    training.tower.requires_grad_(False)
    training.matrix_learning_rate = None
    (matrix, vector) = training.make_optimizer().param_groups
    assert {names[id(p)] for p in matrix["params"] + vector["params"]} == {
        "patch_heads.heads.color.weight",
        "patch_heads.heads.color.bias",
    }


def test_optimizers_side_by_side_do_what_each_does_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False))
    twin = copy.deepcopy(model)

    def parts(net):
        return Muon([net[0].weight], lr=0.1), AdamW([net[1].weight], lr=0.1)

    joint, alone = SideBySide(*parts(model)), parts(twin)
    schedule = torch.optim.lr_scheduler.LambdaLR(joint, lambda step: 1 / (step + 1))
    apart = [torch.optim.lr_scheduler.LambdaLR(part, lambda step: 1 / (step + 1)) for part in alone]
    inputs = torch.randn(8, 4)

    def loss_of(net):
        return net(inputs).square().sum()

    for step in range(4):
        if step == 2:  # as after a kill
            state = copy.deepcopy(joint.state_dict())
            joint = SideBySide(*parts(model))
            joint.load_state_dict(state)
            schedule.optimizer = joint
        joint.zero_grad()
        loss_of(model).backward()
        joint.step()
        schedule.step()
        for part in alone:
            part.zero_grad()
        loss_of(twin).backward()
        for part, its_schedule in zip(alone, apart, strict=True):
            part.step()
            its_schedule.step()
    assert [group["lr"] for group in joint.param_groups] == pytest.approx([0.02, 0.02])
    for here, there in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(here, there)


def test_a_whitened_patch_embedding_gives_patches_that_are_uncorrelated_and_of_unit_variance():
    tower = make_tower()
    # Strongly correlated pixels, as those of pictures are.
    pictures = torch.randn(400, 3, 16, 16).cumsum(2).cumsum(3) / 16
    set_whitening_patches(tower, pictures, floor=0.0)
    with torch.no_grad():
        patches = tower.embeddings.patch_embedding(pictures).flatten(2).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(patches.T.cov(), torch.eye(32), atol=1e-2, rtol=0)


def test_learning_rates_follow_the_schedule_for_both():
    class Fit(CosineTraining):
        def __init__(self):
            super().__init__(0.4, 0.0, 2, matrix_learning_rate=0.2)
            self.hidden, self.head = nn.Linear(4, 4), nn.Linear(4, 1)
            self.seen = []

        def training_step(self, batch, index):
            self.seen.append([group["lr"] for group in self.trainer.optimizers[0].param_groups])
            return self.head(self.hidden(batch[0])).square().mean()

    training = Fit()
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(training, DataLoader(TensorDataset(torch.randn(10, 4)), batch_size=1))
    assert trainer.global_step == 10
    muon, adamw, _ = zip(*training.seen, strict=True)
    # Warm-up over two steps, then half a cosine over eight.
    assert muon[:3] == pytest.approx((0, 0.1, 0.2))
    assert muon[6] == pytest.approx(0.1)
    assert adamw == pytest.approx([2 * rate for rate in muon])
