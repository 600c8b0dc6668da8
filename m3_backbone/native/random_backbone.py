"""Backbones with small random checkpoints, to try commands on a model family without a download."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from m3_backbone.arguments import PositiveInt, Seed, checked
from m3_backbone.loading.checkpoint import without_progress_bars
from m3_backbone.native.base import NativeBackbone
from m3_backbone.native.gemma4 import Gemma4Backbone
from m3_backbone.native.internvl import InternVLBackbone
from m3_backbone.native.qwen_vl import QwenVLBackbone
from m3_backbone.native.random_checkpoints import write_random_checkpoint
from m3_backbone.native.tiles import TiledBackbone

_CLASSES: tuple[type[NativeBackbone], ...]
_CLASSES = (QwenVLBackbone, Gemma4Backbone, TiledBackbone, InternVLBackbone)


@checked
def open_random_backbone(
    *,
    model_type: str,
    name: str,
    scales: Sequence[PositiveInt] | None = None,
    seed: Seed = 0,
    **arguments: Any,
) -> NativeBackbone:
    """Return the backbone of a random checkpoint; equal arguments give equal weights and fingerprints.

    The checkpoint is in a temporary folder, which is removed when this process ends. Processes that it starts
    may unpickle the backbone until then.

    Args:
        model_type: type of the model, as in its `config.json`, such as `qwen3_vl`.
        name: name of the backbone in the labels that it makes.
        scales: ladder of the backbone; by default that of its class.
        seed: seed of the weights.
        arguments: further arguments of the backbone's class.

    Raises ValueError that lists the known types for an unknown one.
    """
    classes = {known: backbone for backbone in _CLASSES for known in backbone.families}
    if model_type not in classes:
        raise ValueError(f"model_type={model_type}: give one of {', '.join(classes)}")
    if scales is not None:
        arguments["scales"] = scales
    return classes[model_type](_write_once(model_type, seed), name=name, **arguments)


@lru_cache
def _write_once(model_type: str, seed: int) -> Path:
    folder = Path(tempfile.mkdtemp(prefix=f"random_{model_type}_"))
    atexit.register(partial(_remove, folder, os.getpid()))
    with without_progress_bars():
        return write_random_checkpoint(folder, model_type, seed=seed)


def _remove(folder: Path, process: int) -> None:
    """Remove a folder unless this process is a fork of the one that made it."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)
