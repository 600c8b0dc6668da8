"""Training pictures and conversations of an embedded backbone."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import lightning
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from experiments.tasks.base import Task
from experiments.tasks.scenes import Scenes
from experiments.tasks.scenes.dense import HEADS, label_patches
from experiments.tasks.scenes.questions import Question
from experiments.tasks.scenes.render import draw
from m3_backbone.llava.processing import M3Processor
from m3_backbone.training.conversations import tokenize_conversation

Turns = list[tuple[str, str]]


class TaskPictures:
    """Training pictures of a task with a fixed number of them, repeated without end."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.turns: dict[str, Turns] = {}
        for sample in task.samples("train"):
            self.turns.setdefault(sample.image_id, []).append((sample.question, sample.references[0]))
        self.image_ids = list(self.turns)

    def __call__(self, index: int) -> tuple[Image.Image, Turns, None]:
        image_id = self.image_ids[index % len(self.image_ids)]
        return self.task.image(image_id), self.turns[image_id], None


class ScenePictures:
    """Unlimited training pictures of `scenes`, with the dense labels of their patches."""

    def __init__(self, scenes: Scenes, grid: int) -> None:
        self.scenes, self.grid = scenes, grid

    def __call__(self, index: int) -> tuple[Image.Image, Turns, np.ndarray]:
        scene, questions = self.scenes.scene("train", index)
        return draw(scene, "train"), _turns_of(questions), label_patches(scene, self.grid)

    def pixel_values(self, processor: M3Processor, count: int) -> Tensor:
        """Return the first `count` pictures as model input, `[count, 3, size, size]`."""
        return torch.cat([processor.images(self(index)[0]) for index in range(count)])

    def turns(self, index: int) -> Turns:
        """Return the questions and answers of a picture, without rendering it."""
        return _turns_of(self.scenes.scene("train", index)[1])


def _turns_of(questions: Sequence[Question]) -> Turns:
    return [(question.text, question.answer) for question in questions]


class PatchStream(Dataset[tuple[Tensor, Tensor]]):
    """Pictures `start` to `start + length` with dense labels, as input of `PatchClassification`."""

    def __init__(self, scenes: ScenePictures, processor: M3Processor, *, start: int, length: int) -> None:
        self.scenes, self.processor, self.start, self.length = scenes, processor, start, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, _, patches = self.scenes(self.start + index)
        return self.processor.images(image)[0], torch.from_numpy(patches)


class PictureStream(Dataset[dict[str, Any]]):
    """Pictures `start` to `start + length` of a mixture; each depends on its number and the seed only.

    Rows have `pixel_values [3, size, size]`, `conversation` and `patches [num_patches, num_heads]` (-1
    throughout on pictures without dense labels).
    """

    def __init__(
        self,
        scenes: ScenePictures,
        others: Sequence[TaskPictures],
        *,
        share_of_others: float,
        questions_per_image: int,
        processor: M3Processor,
        start: int,
        length: int,
    ) -> None:
        self.scenes, self.others, self.share_of_others = scenes, others, share_of_others
        self.questions_per_image, self.processor = questions_per_image, processor
        self.start, self.length = start, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = self.start + index
        rng = random.Random(f"{self.scenes.scenes.seed}/{number}")
        source = rng.choice(self.others) if rng.random() < self.share_of_others else self.scenes
        # A random number, so that a task with a fixed number of pictures is shuffled.
        image, turns, patches = source(number if source is self.scenes else rng.getrandbits(31))
        turns = rng.sample(turns, min(len(turns), self.questions_per_image))
        if patches is None:
            patches = np.full((self.scenes.grid**2, len(HEADS)), -1)
        return {
            "pixel_values": self.processor.images(image)[0],
            "conversation": tokenize_conversation(self.processor, turns, isolate_turns=True),
            "patches": torch.from_numpy(patches),
        }


def collate_conversations(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return a batch as input of `SeeingM3Training`."""
    return {
        "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
        "conversation": [row["conversation"] for row in rows],
        "patches": torch.stack([row["patches"] for row in rows]),
    }


class PictureModule(lightning.LightningDataModule):
    """Unlimited stream divided into epochs, so that an interrupted training resumes at its last epoch.

    Args:
        stream: called with `start` and `length` for the pictures of one epoch.
        first_picture: number of the picture that the first epoch starts with.
        loader: arguments of the DataLoader.
    """

    def __init__(
        self,
        stream: Callable[..., Dataset[Any]],
        pictures_per_epoch: int,
        first_picture: int = 0,
        **loader: Any,
    ) -> None:
        super().__init__()
        self.stream, self.pictures_per_epoch, self.loader = stream, pictures_per_epoch, loader
        self.first_picture = first_picture

    def train_dataloader(self) -> DataLoader[Any]:
        epoch = self.trainer.current_epoch if self.trainer else 0
        start = self.first_picture + epoch * self.pictures_per_epoch
        stream = self.stream(start=start, length=self.pictures_per_epoch)
        return DataLoader(stream, drop_last=True, **self.loader)
