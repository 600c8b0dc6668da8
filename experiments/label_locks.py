"""Who may label into a folder: one run, or several that each do a part of the work."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def hold(folder: Path, part: str = "", timeout: float = 0) -> Iterator[None]:
    """Hold a folder, or one part of the work on it; when the holder dies, the system frees the lock.

    Raises ValueError, naming the holder, where the lock is not free within `timeout` seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock, owner = FileLock(folder / f".lock{part}"), folder / f".owner{part}"
    try:
        lock.acquire(timeout=timeout)
    except Timeout as error:
        holder = owner.read_text() if owner.exists() else "another process"
        raise ValueError(
            f"{holder} is labelling into {folder} now: wait until it is done, or label into another folder "
            "with paths.labels=FOLDER"
        ) from error
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
