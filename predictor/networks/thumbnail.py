"""Network with an image encoder of its own, on a thumbnail of the image."""

import itertools

import torch
from torch import Tensor, nn

from m3_backbone.arguments import HalfOpenFraction, PositiveInt, checked
from predictor.batches import Batch
from predictor.networks.base import InputShape, Network


class ThumbnailCNN(Network):
    """Small convolutional network on the thumbnail, conditioned on the statistics and the question's vector.

    Each block halves the sides: convolution 3x3 with stride 2, group normalisation, GELU. The last two are
    scaled and shifted by the question (FiLM, Perez et al., AAAI 2018). Outputs are computed from the mean and
    the maximum over the last feature map, the question's vector and the statistics. It reads no features of
    the backbone, so that it can choose scales in front of an engine.
    """

    reads_thumbnails = True

    @checked
    def __init__(
        self,
        shape: InputShape,
        num_outputs: int,
        *,
        width: PositiveInt = 64,
        num_blocks: PositiveInt = 4,
        dropout: HalfOpenFraction = 0.1,
    ) -> None:
        super().__init__(shape, num_outputs)
        # Channels double up to `width`: 8, 16, 32, 64 for four blocks.
        widths = [3, *(max(8, width >> (num_blocks - 1 - block)) for block in range(num_blocks))]
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(4, after))
            for before, after in itertools.pairwise(widths)
        )
        self.read_question = nn.Sequential(
            nn.Linear(shape.num_statistics, width), nn.GELU(), nn.Dropout(dropout)
        )
        self.conditions = nn.ModuleList(nn.Linear(width, 2 * after) for after in widths[-2:])
        self.head = nn.Sequential(
            nn.Linear(2 * widths[-1] + width + shape.num_statistics, 2 * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(2 * width, num_outputs),
        )

    def encode(self, batch: Batch, token_embeddings: Tensor) -> Tensor:
        if batch.thumbnails is None:
            raise ValueError("this network reads thumbnails: set predictor.features.thumbnail, such as 64")
        question = self.read_question(batch.statistics)
        states = batch.thumbnails.movedim(-1, 1).to(batch.statistics) / 127.5 - 1
        num_unconditioned = len(self.blocks) - len(self.conditions)
        for number, block in enumerate(self.blocks):
            states = block(states)
            if number >= num_unconditioned:
                scale, shift = self.conditions[number - num_unconditioned](question)[..., None, None].chunk(
                    2, 1
                )
                states = states * (1 + scale) + shift
            states = nn.functional.gelu(states)
        return torch.cat([states.mean(dim=(2, 3)), states.amax(dim=(2, 3)), question], dim=-1)

    def read_off(self, codes: Tensor, statistics: Tensor) -> Tensor:
        return self.head(torch.cat([codes, statistics], dim=-1))
