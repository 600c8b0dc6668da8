"""Training of an embedded backbone: vision tower first, then the whole model."""

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
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from experiments.backbone.data import (
    PatchStream,
    PictureModule,
    PictureStream,
    ScenePictures,
    TaskPictures,
    collate_conversations,
)
from experiments.backbone.progress import Deadline, ProgressLines
from experiments.tasks.scenes.dense import HEADS
from m3_backbone.llava.modeling import M3Model
from m3_backbone.llava.processing import M3Processor
from m3_backbone.loading.checkpoint import load_m3
from m3_backbone.outcomes.shards import write_atomically
from m3_backbone.training.pretraining import PatchClassification, PatchHeads, SeeingM3Training
from m3_backbone.training.reshaping import reshape
from m3_backbone.training.scratch import (
    Tower,
    build_model,
    build_processor,
    build_tower_config,
    set_whitening_patches,
    train_tokenizer,
)
from predictor.training import AtomicCheckpointIO, find_whole, fit_module

log = logging.getLogger(__name__)

# Exit status if the time limit ends first: EX_TEMPFAIL of sysexits.h, "try again".
UNFINISHED = 75
PATCH_HEADS = "patch_heads.safetensors"
# `fit` with its trainer: module, data, folder, number of epochs.
Fit = Callable[[lightning.LightningModule, PictureModule, Path, int], None]


def train_checkpoint(config: DictConfig, folder: Path) -> Path:
    """Train the backbone of a configuration, resuming from the files in `folder`.

    Returns the folder of the checkpoint. Raises SystemExit with status UNFINISHED if the time limit ends
    first, and ValueError for settings that need `start_from` without it.
    """
    lightning.seed_everything(config.seed, verbose=False)
    scenes = ScenePictures(instantiate(config.scenes), config.image.image_size // config.image.patch_size)
    others = [TaskPictures(instantiate(task)) for task in config.get("others", {}).values()]
    run = partial(fit, partial(instantiate, config.trainer), Deadline(config.max_minutes))

    if config.start_from is None:
        if config.model.share_of_start or any(value is not None for value in config.reshape.values()):
            raise ValueError(
                "reshape and model.share_of_start need a trained model: give one with start_from=CHECKPOINT, "
                "or set the shape of a new one with tower.shape and decoder"
            )
        processor = load_or_build_processor(folder, scenes, others, config.vocab_size, **config.image)
        tower_config = build_tower_config(**config.image, **config.tower.shape)
        model: M3Model = build_model(tower_config, processor, **config.decoder)
        tower = model.model.vision_tower
        set_whitening_patches(tower, scenes.pixel_values(processor, 300))
        model.set_attn_implementation(config.attention)
        pretrain_tower(tower, scenes, processor, folder / "tower", run, **config.tower.training)
    else:
        model, processor = load_m3(config.start_from, dtype=torch.float32)
        reshape(model, **config.reshape)
        model.set_attn_implementation(config.attention)
    model.config.token_pooling = config.pooling
    heads = train_model(
        model, scenes, others, processor, folder / "model", run, start_from=config.start_from, **config.model
    )

    save_checkpoint(model, processor, folder / "checkpoint", heads)
    if torch.distributed.is_initialized():
        # Other processes may read the checkpoint next.
        torch.distributed.barrier()
    return folder / "checkpoint"


@rank_zero_only
def save_checkpoint(model: M3Model, processor: M3Processor, folder: Path, heads: PatchHeads) -> None:
    """Write the checkpoint in bfloat16, and the patch heads, which `start_from=FOLDER` loads."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: head.contiguous() for name, head in heads.state_dict().items()}
    write_atomically(folder / PATCH_HEADS, lambda temporary: save_file(weights, temporary))
    model.bfloat16().save_pretrained(folder)
    processor.save_pretrained(folder)


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
    """Return the processor in `folder/processor`, or a new one with a tokenizer for the training texts."""
    processor_dir = folder / "processor"
    if processor_dir.is_dir():
        return M3Processor.from_pretrained(processor_dir)
    turns = itertools.chain(
        (turn for index in range(num_pictures) for turn in scenes.turns(index)),
        (turn for other in others for picture in other.turns.values() for turn in picture),
    )
    texts: Iterable[str] = (f"USER: \n{question} ASSISTANT: {answer}" for question, answer in turns)
    processor = build_processor(
        train_tokenizer(texts, vocab_size), image_size=image_size, patch_size=patch_size
    )
    processor.save_pretrained(processor_dir)
    return processor


def pretrain_tower(
    tower: Tower,
    scenes: ScenePictures,
    processor: M3Processor,
    folder: Path,
    run: Fit,
    *,
    num_pictures: int,
    pictures_per_epoch: int,
    batch_size: int,
    num_workers: int,
    **optimization: Any,
) -> None:
    """Train the tower in place on dense labels, or load the finished weights in `folder`."""
    finished = folder / "tower.safetensors"
    if finished.is_file():
        try:
            tower.load_state_dict(load_file(finished))
            return
        except (SafetensorError, RuntimeError) as error:
            log.warning("the vision tower is trained again: %s is damaged (%s)", finished, error)
    module = PatchClassification(tower, HEADS, **optimization)
    stream = partial(PatchStream, scenes, processor)
    data = PictureModule(stream, pictures_per_epoch, batch_size=batch_size, num_workers=num_workers)
    run(module, data, folder, num_pictures // pictures_per_epoch)
    weights = tower.state_dict()
    rank_zero_only(write_atomically)(finished, lambda temporary: save_file(weights, temporary))


def train_model(
    model: M3Model,
    scenes: ScenePictures,
    others: Sequence[TaskPictures],
    processor: M3Processor,
    folder: Path,
    run: Fit,
    *,
    share_of_others: float,
    questions_per_image: int,
    first_picture: int,
    num_pictures: int,
    pictures_per_epoch: int,
    batch_size: int,
    num_workers: int,
    share_of_start: float = 0.0,
    start_from: str | None = None,
    **training: Any,
) -> PatchHeads:
    """Train the whole model in place, on several isolated questions per picture; returns the patch heads.

    Patch heads in the folder `start_from` are reused if they are for the same labels. The final weights are
    the mean of initial and trained weights, with weight `share_of_start` of the initial ones: WiSE-FT
    (Wortsman et al., CVPR 2022). Raises ValueError for a share outside [0, 1) and damaged patch heads.
    """
    if not 0 <= share_of_start < 1:
        raise ValueError(f"model.share_of_start={share_of_start}: give a share from 0 to below 1")
    module = SeeingM3Training(model, processor.pad_token_id, classes=HEADS, **training)
    if start_from and (head_file := Path(start_from) / PATCH_HEADS).is_file():
        try:
            module.patch_heads.take_over(load_file(head_file))
        except SafetensorError as error:
            raise ValueError(
                f"start_from: {head_file} is damaged ({error}): fetch or train it again"
            ) from error
    start = {name: weight.clone() for name, weight in module.state_dict().items()} if share_of_start else {}
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
        first_picture,
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=collate_conversations,
    )
    run(module, data, folder, num_pictures // pictures_per_epoch)
    trained = module.state_dict()
    for name, weight in start.items():
        trained[name].lerp_(weight.to(trained[name]), share_of_start)
    return module.patch_heads


def fit(
    make_trainer: Callable[..., lightning.Trainer],
    deadline: Deadline,
    module: lightning.LightningModule,
    data: PictureModule,
    folder: Path,
    num_epochs: int,
) -> None:
    """Run a training of `num_epochs`, resuming from `folder/last.ckpt` if there is one.

    Raises SystemExit with status UNFINISHED if the deadline passes before the last epoch.
    """
    last = folder / "last.ckpt"
    trainer = make_trainer(
        max_epochs=num_epochs,
        gradient_clip_val=1.0,
        # Every epoch is another part of an unlimited stream.
        reload_dataloaders_every_n_epochs=1,
        callbacks=[
            ModelCheckpoint(folder, filename="last", save_top_k=1, enable_version_counter=False),
            ProgressLines(),
            deadline,
        ],
    )
    trainer.strategy.checkpoint_io = AtomicCheckpointIO()
    resume_from = last if find_whole([last]) else None
    if resume_from is not None:
        log.info("resuming from %s", last)
    fit_module(trainer, module, data, resume_from)
    if trainer.current_epoch < num_epochs:
        rank_zero_only(print)(
            f"stopped after {trainer.current_epoch} of {num_epochs} epochs, at max_minutes="
            f"{deadline.max_minutes}; run the same command again to resume"
        )
        raise SystemExit(UNFINISHED)
