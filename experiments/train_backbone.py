"""Train an embedded backbone from nothing: `python -m experiments.train_backbone`.

First the vision tower alone on dense labels of `scenes`, then the whole model over all scales on `scenes`
and the train part of other tasks. Either goes on from its last checkpoint after a kill.
"""

import itertools
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig
from safetensors.torch import load_file, save_file

from experiments.backbone_data import (
    PatchStream,
    PictureModule,
    PictureStream,
    ScenePictures,
    TaskPictures,
    collate_conversations,
)
from experiments.config import entry_point
from experiments.tasks.scenes.dense import HEADS
from experiments.training_progress import ProgressLines
from m3_backbone.checkpoint import load_m3
from m3_backbone.modeling import M3Model
from m3_backbone.pretraining import PatchClassification, SeeingM3Training
from m3_backbone.processing import M3Processor
from m3_backbone.scratch import (
    Tower,
    build_model,
    build_processor,
    build_tower_config,
    set_whitening_patches,
    train_tokenizer,
)

log = logging.getLogger(__name__)


@entry_point("train_backbone")
def main(config: DictConfig) -> None:
    folder = Path(config.folder)
    lightning.seed_everything(config.seed, verbose=False)
    scenes = ScenePictures(instantiate(config.scenes), config.image.image_size // config.image.patch_size)
    others = [TaskPictures(instantiate(task)) for task in config.others.values()]
    make_trainer = partial(instantiate, config.trainer)

    if config.start_from is None:
        processor = load_or_build_processor(folder, scenes, others, config.vocab_size, **config.image)
        tower_config = build_tower_config(**config.image, **config.tower.shape)
        model: M3Model = build_model(tower_config, processor, **config.decoder)
        set_whitening_patches(model.model.vision_tower, scenes.pixel_values(processor, 300))
    else:
        model, processor = load_m3(config.start_from, dtype=torch.float32)
    model.set_attn_implementation(config.attention)
    tower = model.model.vision_tower
    pretrain_tower(tower, scenes, processor, folder / "tower", make_trainer, **config.tower.training)
    train_model(model, scenes, others, processor, folder / "model", make_trainer, **config.model)

    save_checkpoint(model, processor, folder / "checkpoint")


@rank_zero_only
def save_checkpoint(model: M3Model, processor: M3Processor, folder: Path) -> None:
    """Write what `backbone.checkpoint=FOLDER` loads, in bfloat16, and say so."""
    model.bfloat16().save_pretrained(folder)
    processor.save_pretrained(folder)
    print(f"the trained backbone is in {folder}")
    print(f"next: python -m experiments.run backbone=local backbone.checkpoint={folder}")


def load_or_build_processor(
    folder: Path,
    scenes: ScenePictures,
    others: Sequence[TaskPictures],
    vocab_size: int,
    *,
    image_size: int,
    patch_size: int,
    num_pictures: int = 4000,
) -> M3Processor:
    """The processor in `folder/processor`, or one with a tokenizer made for the training texts."""
    home = folder / "processor"
    if home.is_dir():
        return M3Processor.from_pretrained(home)
    turns = itertools.chain(
        (turn for index in range(num_pictures) for turn in scenes.turns(index)),
        (turn for other in others for picture in other.turns.values() for turn in picture),
    )
    texts: Iterable[str] = (f"USER: \n{question} ASSISTANT: {answer}" for question, answer in turns)
    processor = build_processor(
        train_tokenizer(texts, vocab_size), image_size=image_size, patch_size=patch_size
    )
    processor.save_pretrained(home)
    return processor


def pretrain_tower(
    tower: Tower,
    scenes: ScenePictures,
    processor: M3Processor,
    folder: Path,
    make_trainer: Callable[..., lightning.Trainer],
    *,
    num_pictures: int,
    pictures_per_epoch: int,
    batch_size: int,
    num_workers: int,
    **optimization: Any,
) -> None:
    """Train the tower in place on dense labels; weights that `folder` already holds are taken instead."""
    finished = folder / "tower.safetensors"
    if finished.is_file():
        tower.load_state_dict(load_file(finished))
        return
    module = PatchClassification(tower, HEADS, **optimization)
    stream = partial(PatchStream, scenes, processor)
    data = PictureModule(stream, pictures_per_epoch, batch_size=batch_size, num_workers=num_workers)
    fit(module, data, folder, make_trainer, num_pictures // pictures_per_epoch)
    rank_zero_only(save_file)(tower.state_dict(), finished)


def train_model(
    model: M3Model,
    scenes: ScenePictures,
    others: Sequence[TaskPictures],
    processor: M3Processor,
    folder: Path,
    make_trainer: Callable[..., lightning.Trainer],
    *,
    share_of_others: float,
    questions_per_image: int,
    num_pictures: int,
    pictures_per_epoch: int,
    batch_size: int,
    num_workers: int,
    **training: Any,
) -> None:
    """Train the whole model in place, on several isolated questions a picture."""
    module = SeeingM3Training(model, processor.pad_token_id, classes=HEADS, **training)
    stream = partial(
        PictureStream,
        scenes,
        others,
        share_of_others=share_of_others,
        questions_per_image=questions_per_image,
        processor=processor,
    )
    data = PictureModule(
        stream,
        pictures_per_epoch,
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=collate_conversations,
    )
    fit(module, data, folder, make_trainer, num_pictures // pictures_per_epoch)


def fit(
    module: lightning.LightningModule,
    data: PictureModule,
    folder: Path,
    make_trainer: Callable[..., lightning.Trainer],
    num_epochs: int,
) -> None:
    """Run a training of `num_epochs`, going on from `folder/last.ckpt` where there is one."""
    last = folder / "last.ckpt"
    trainer = make_trainer(
        max_epochs=num_epochs,
        gradient_clip_val=1.0,
        # Every epoch is another piece of an endless stream.
        reload_dataloaders_every_n_epochs=1,
        callbacks=[
            ModelCheckpoint(folder, filename="last", save_top_k=1, enable_version_counter=False),
            ProgressLines(),
        ],
    )
    if last.is_file():
        log.info("going on from %s", last)
    trainer.fit(module, data, ckpt_path=str(last) if last.is_file() else None, weights_only=True)


if __name__ == "__main__":
    main()
