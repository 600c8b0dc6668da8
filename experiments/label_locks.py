"""Who may label into a folder: one run, or several that each do a part of the work."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)


@contextmanager
def hold(folder: Path, part: str = "", timeout: float | None = 0) -> Iterator[None]:
    """Hold a folder, or one part of the work on it; when the holder dies, the system frees the lock.

    Raises ValueError, naming the holder, where the lock is not free within `timeout` seconds; None waits for
    as long as it takes, and the log says for whom.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock, owner = FileLock(folder / f".lock{part}"), folder / f".owner{part}"
    try:
        lock.acquire(timeout=timeout or 0)
    except Timeout as error:
        holder = owner.read_text() if owner.exists() else "another process"
        if timeout is not None:
            raise ValueError(
                f"{holder} is labelling into {folder} now: wait until it is done, or label into another "
                "folder with paths.labels=FOLDER"
            ) from error
        log.info("%s is labelling into %s: waiting for it", holder, folder)
        lock.acquire()
    try:
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        lock.release()


def refuse_parts(folder: Path) -> None:
    """ValueError where runs on parts of the work hold their locks; call it while holding the whole."""
    for path in sorted(folder.glob(".lock?*")):
        with hold(folder, path.name.removeprefix(".lock")):
            pass
