"""File locks: one process at a time labels into a folder, trains a predictor, measures or opens a study."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)

# Seconds after which a process that waits for a lock says so.
QUIET_SECONDS = 1.0


@contextmanager
def wait_for_lock(path: Path, work: str, refusal: str | None = None, timeout: float = 0) -> Iterator[None]:
    """Hold the lock file `path`, whose name begins with a dot; when the holder dies, the system frees it.

    `work` says what the holder does, as "trains mlp in FOLDER". Waits for as long as it takes, and the log
    says for whom; with a `refusal`, raises ValueError instead where the lock is not free within `timeout`
    seconds, naming the holder and ending in `refusal`.
    """
    lock = FileLock(path)
    # Beside the lock file, which another process may not be able to read while it is held.
    owner = path.with_name(path.name.replace(".lock", ".owner", 1))
    try:
        lock.acquire(timeout=QUIET_SECONDS if refusal is None else timeout)
    except Timeout as error:
        holder = _read_owner(owner)
        if refusal is not None:
            raise ValueError(f"{holder} {work} now: {refusal}") from error
        log.info("waiting: %s %s", holder, work)
        lock.acquire()
    try:
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def _read_owner(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") or "another process"
    except OSError:
        return "another process"


@contextmanager
def hold(folder: Path, part: str = "", timeout: float | None = 0) -> Iterator[None]:
    """Hold a label folder, or one part of the work on it.

    Raises ValueError, naming the holder, where the lock is not free within `timeout` seconds; None waits for
    as long as it takes, and the log says for whom.
    """
    folder.mkdir(parents=True, exist_ok=True)
    refusal = (
        None
        if timeout is None
        else ("wait until it is done, or label into another folder with paths.labels=FOLDER")
    )
    with wait_for_lock(folder / f".lock{part}", f"is labelling into {folder}", refusal, timeout or 0):
        yield


def refuse_parts(folder: Path, but: str | None = None) -> None:
    """Raise ValueError if a run on a part of the work, except `but`, holds its lock.

    Call it while holding the whole.
    """
    parts = [path.name.removeprefix(".lock") for path in sorted(folder.glob(".lock?*"))]
    for part in parts:
        if part != but:
            with hold(folder, part):
                pass
