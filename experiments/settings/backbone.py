"""Settings of `train_backbone` and `figure2`."""

from typing import Annotated, Literal, Self

from annotated_types import Len
from pydantic import AfterValidator, Field, model_validator

from experiments.settings.base import Built, NumWorkers, Paths, PathText, Refusal, Settings, accept
from experiments.settings.pipeline import Intervals
from m3_backbone.arguments import (
    ClosedFraction,
    HalfOpenFraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    Seed,
)


def _check_attention(name: str) -> str:
    from m3_backbone.model_backbone import check_attention

    return accept(name, check_attention)


class ImageShape(Settings):
    """Pictures of the backbone."""

    image_size: PositiveInt
    """side length in pixels"""
    patch_size: PositiveInt
    """side length of a patch in pixels"""

    @model_validator(mode="after")
    def _check_grid(self) -> Self:
        if self.image_size % self.patch_size:
            raise Refusal(
                f"image.patch_size={self.patch_size}: give a divisor of image.image_size={self.image_size}"
            )
        return self


class Shape(Settings):
    """Shape of a transformer."""

    hidden_size: PositiveInt
    """width"""
    num_layers: PositiveInt
    """layers"""
    num_heads: PositiveInt
    """attention heads"""

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.hidden_size % self.num_heads:
            raise Refusal(f"num_heads={self.num_heads}: give a divisor of hidden_size={self.hidden_size}")
        return self


class DecoderShape(Shape):
    """Shape of the decoder."""

    intermediate_size: PositiveInt
    """width of the MLPs"""


class Reshape(Settings):
    """Change of the shape of the model in start_from; all null: no change."""

    tower_layers: list[NonNegativeInt] | None
    """layers of the vision tower to keep, counted from 0; null: all"""
    num_decoder_layers: PositiveInt | None
    """layers of the decoder; null: unchanged"""
    intermediate_size: PositiveInt | None
    """width of the decoder's MLPs; null: unchanged"""


class Epochs(Settings):
    """Pictures and learning rates of a training."""

    num_pictures: PositiveInt
    """pictures in all"""
    pictures_per_epoch: PositiveInt
    """pictures of an epoch"""
    learning_rate: NonNegativeFloat
    """learning rate of vectors; 0: vectors are not trained"""
    matrix_learning_rate: NonNegativeFloat | None
    """learning rate of matrices; null: learning_rate"""

    @model_validator(mode="after")
    def _check_epochs(self) -> Self:
        if self.num_pictures < self.pictures_per_epoch:
            raise Refusal(
                f"num_pictures={self.num_pictures}: give at least pictures_per_epoch="
                f"{self.pictures_per_epoch}, one epoch"
            )
        return self


class Training(Epochs):
    """Training on pictures."""

    batch_size: PositiveInt
    """pictures of a step in one process"""
    num_workers: NumWorkers
    """processes that render pictures; 0: none"""
    weight_decay: NonNegativeFloat
    """weight decay of matrices"""
    num_warmup_steps: NonNegativeInt
    """steps with a rising learning rate"""


class Tower(Settings):
    """The vision tower."""

    shape: Shape
    training: Training


class ModelTraining(Training):
    """Training of the whole model."""

    share_of_others: ClosedFraction
    """share of the pictures from other tasks"""
    questions_per_image: PositiveInt
    """questions about each picture"""
    first_picture: NonNegativeInt
    """number of the first picture"""
    share_of_start: HalfOpenFraction
    """weight of the initial weights in the final mean"""
    scale_groups: Annotated[list[Annotated[list[PositiveInt], Len(1)]], Len(1)]
    """groups of scales; at every step one scale of each group is chosen at random"""
    resize_images: bool
    """shrink images to the grid of a scale instead of pooling their tokens"""
    dense_weight: NonNegativeFloat
    """weight of the dense labels in the loss"""


class TrainBackboneSettings(Settings):
    """`experiments.train_backbone`."""

    paths: Paths
    scenes: Built
    """task that the backbone is trained on"""
    others: dict[str, Built] = Field(default={})
    """further tasks that the backbone is trained on"""
    trainer: Built
    """settings of Lightning's trainer"""
    seed: Seed
    """seed of weights and pictures"""
    folder: PathText
    """folder of the training"""
    attention: Annotated[str, AfterValidator(_check_attention)]
    """attention kernel, as eager or sdpa"""
    start_from: PathText | None
    """checkpoint to start from; null: random weights"""
    reshape: Reshape
    pooling: Literal["average", "spatial", "sequential"]
    """how the grid of visual tokens is reduced"""
    max_minutes: NonNegativeFloat | None
    """minutes after which the command stops at the end of an epoch; null: never"""
    vocab_size: PositiveInt
    """tokens of the tokenizer"""
    image: ImageShape
    tower: Tower
    decoder: DecoderShape
    model: ModelTraining


class Figure2Settings(TrainBackboneSettings, Intervals):
    """`experiments.figure2`."""

    test: Built
    """task that the models are compared on"""
    seeds: Annotated[list[Seed], Len(1)]
    """seeds; each is one training of every variant"""
    num_images: PositiveInt | None
    """test pictures; null: all"""
    start: Epochs
