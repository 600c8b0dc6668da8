"""Settings of `train_backbone` and `figure2`."""

from typing import Annotated, Literal

from annotated_types import Len
from pydantic import Field

from experiments.settings.base import Built, NumResamples, Paths, PathText, Settings
from m3_backbone.arguments import (
    ClosedFraction,
    HalfOpenFraction,
    NonNegativeFloat,
    NonNegativeInt,
    OpenFraction,
    PositiveFloat,
    PositiveInt,
    Seed,
)


class ImageShape(Settings):
    """Pictures of the backbone."""

    image_size: PositiveInt
    """pixels a side"""
    patch_size: PositiveInt
    """pixels a side of a patch"""


class Shape(Settings):
    """Shape of a transformer."""

    hidden_size: PositiveInt
    """width"""
    num_layers: PositiveInt
    """layers"""
    num_heads: PositiveInt
    """attention heads"""


class DecoderShape(Shape):
    """Shape of the decoder."""

    intermediate_size: PositiveInt
    """width of the MLPs"""


class Reshape(Settings):
    """Another shape for the model in start_from; all null: as it is."""

    tower_layers: list[NonNegativeInt] | None
    """layers of the vision tower that stay, counted from 0; null: all"""
    num_decoder_layers: PositiveInt | None
    """layers of the decoder; null: as many as there are"""
    intermediate_size: PositiveInt | None
    """width of the decoder's MLPs; null: as it is"""


class Training(Settings):
    """Training on pictures."""

    num_pictures: PositiveInt
    """pictures in all"""
    pictures_per_epoch: PositiveInt
    """pictures of an epoch"""
    batch_size: PositiveInt
    """pictures of a step in one process"""
    num_workers: NonNegativeInt
    """processes that draw pictures; 0: none"""
    learning_rate: PositiveFloat
    """of vectors"""
    matrix_learning_rate: PositiveFloat | None
    """of matrices; null: as that of vectors"""
    weight_decay: NonNegativeFloat
    """of matrices"""
    num_warmup_steps: NonNegativeInt
    """steps with a rising learning rate"""


class Tower(Settings):
    """The vision tower."""

    shape: Shape
    training: Training


class ModelTraining(Training):
    """Training of the whole model."""

    share_of_others: ClosedFraction
    """share of the pictures that other tasks give"""
    questions_per_image: PositiveInt
    """questions about each picture"""
    first_picture: NonNegativeInt
    """number of the first picture"""
    share_of_start: HalfOpenFraction
    """share of the weights that training starts from in the final mean"""
    scale_groups: Annotated[list[Annotated[list[PositiveInt], Len(1)]], Len(1)]
    """groups of scales, of each of which one is drawn at every step"""
    dense_weight: NonNegativeFloat
    """weight of the dense labels in the loss"""


class StartTraining(Settings):
    """What differs from the whole model's training before the variants."""

    num_pictures: PositiveInt
    """pictures in all"""
    pictures_per_epoch: PositiveInt
    """pictures of an epoch"""
    learning_rate: PositiveFloat
    """of vectors"""
    matrix_learning_rate: PositiveFloat | None
    """of matrices; null: as that of vectors"""


class TrainBackboneSettings(Settings):
    """`experiments.train_backbone`."""

    paths: Paths
    scenes: Built
    others: dict[str, Built] = Field(default={})
    trainer: Built
    seed: Seed
    """of weights and pictures"""
    folder: PathText
    """folder of the training"""
    attention: str
    """attention kernel, as eager or sdpa"""
    start_from: PathText | None
    """checkpoint that training goes on from; null: from nothing"""
    reshape: Reshape
    pooling: Literal["average", "spatial", "sequential"]
    """how the grid of visual tokens is reduced"""
    max_minutes: PositiveFloat | None
    """minutes after which the command stops at the end of an epoch; null: never"""
    vocab_size: PositiveInt
    """tokens of the tokenizer"""
    image: ImageShape
    tower: Tower
    decoder: DecoderShape
    model: ModelTraining


class Figure2Settings(TrainBackboneSettings):
    """`experiments.figure2`."""

    test: Built
    seeds: Annotated[list[Seed], Len(1)]
    """one training of every variant each"""
    num_images: PositiveInt | None
    """test pictures; null: all"""
    start: StartTraining
    confidence: OpenFraction
    """coverage of the intervals; 0.95: 95%"""
    num_resamples: NumResamples
    """bootstrap resamples of the images"""
    allow_unrecorded: bool
    """whether to go on where the evaluation cannot be recorded"""
