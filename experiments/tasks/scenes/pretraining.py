"""The endless stream of pictures with dense labels that the vision tower is pre-trained on."""

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from experiments.tasks.scenes import Scenes
from experiments.tasks.scenes.dense import label_patches
from experiments.tasks.scenes.render import draw


class ScenePatches(Dataset[tuple[Tensor, Tensor]]):
    """Pictures `[3, size, size]` normalised as CLIP's with the labels of their patches `[num_patches, num_heads]`."""

    def __init__(
        self, scenes: Scenes, start: int, length: int, grid: int, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        self.scenes, self.start, self.length, self.grid = scenes, start, length, grid
        self.mean, self.std = np.array(mean, np.float32), np.array(std, np.float32)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        scene, _ = self.scenes.scene("train", self.start + index)
        pixels = (np.asarray(draw(scene, "train"), np.float32) / 255 - self.mean) / self.std
        return torch.from_numpy(pixels.transpose(2, 0, 1)), torch.from_numpy(label_patches(scene, self.grid))


class ScenePatchesModule(lightning.LightningDataModule):
    """One pass over `num_pictures`, cut into epochs: training goes on after a kill at the epoch it was in."""

    def __init__(
        self,
        scenes: Scenes,
        grid: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        batch_size: int = 32,
        pictures_per_epoch: int = 6400,
        num_workers: int = 1,
    ) -> None:
        super().__init__()
        self.scenes, self.grid, self.mean, self.std = scenes, grid, mean, std
        self.batch_size = batch_size
        self.pictures_per_epoch = pictures_per_epoch
        self.num_workers = num_workers

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        start = (self.trainer.current_epoch if self.trainer else 0) * self.pictures_per_epoch
        dataset = ScenePatches(self.scenes, start, self.pictures_per_epoch, self.grid, self.mean, self.std)
        return DataLoader(dataset, self.batch_size, num_workers=self.num_workers, drop_last=True)
