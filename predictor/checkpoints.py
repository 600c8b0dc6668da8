"""Training checkpoints: atomic writes, and a check before training resumes."""

import io
import logging
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from m3_backbone.outcomes.shards import write_atomically

log = logging.getLogger(__name__)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoint writer that renames a temporary file in the same folder.

    Lightning itself writes to the folder of temporary files and moves the file from there: on another disk
    that is a copy, which a kill or a full disk cuts short.
    """

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_atomically(path, lambda temporary: temporary.write_bytes(content.getbuffer()))


def find_whole(checkpoints: Sequence[Path]) -> list[Path]:
    """Return the checkpoints that can be loaded; delete the others with a warning."""
    return [path for path in checkpoints if path.exists() and _is_whole(path)]


def _is_whole(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # checks every sum, as `torch.load` does not
        if damaged is not None:
            raise ValueError(f"{damaged} has another checksum")
        if "state_dict" not in torch.load(path, map_location="cpu", weights_only=True):
            raise ValueError("it holds no weights")
    except OSError:
        raise  # names the file; what cannot be read may be whole
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        log.warning("the checkpoint %s is damaged and is deleted: %s", path, reason)
        path.unlink(missing_ok=True)
        return False
    return True
