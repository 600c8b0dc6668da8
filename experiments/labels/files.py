"""Files and folders that several processes write: file names, locks, write errors and replaced files.

Replaced answers are moved or copied to a folder beside the labels, never deleted. File locks let one process
at a time label into a folder, train a predictor, measure latency or open a study.
"""

import hashlib
import itertools
import logging
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from filelock import FileLock, Timeout

from experiments.labels.records import WORK, WorkRecord, recording

log = logging.getLogger(__name__)

# Leaves room for a suffix within the 255 bytes that file systems allow.
_MAX_LENGTH = 120


def to_file_name(name: str) -> str:
    """Return `name` as one path component; distinct names give distinct components.

    Characters other than letters, digits, dots, hyphens and underscores are percent-encoded, as is a leading
    dot; a long name is truncated and ends in a digest of the whole name.
    """
    encoded = quote(name, safe="", errors="surrogatepass")
    if not encoded or encoded.startswith("."):
        encoded = f"%2E{encoded[1:]}" if encoded else "%"
    if len(encoded) > _MAX_LENGTH:
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        encoded = f"{encoded[: _MAX_LENGTH - 17]}%{digest}"
    return encoded


def make_exclusively(folder: Path) -> Path:
    """Make `folder`, or the first of `folder-2`, `folder-3`, ... that does not exist, and return its path."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        candidate = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        try:
            candidate.mkdir()
        except FileExistsError:
            continue
        return candidate
    raise AssertionError("endless")


# Subfolder of a label folder with the scores of sampled answers (`labels.resampled`).
RESAMPLED = "resampled"


def move_aside(folder: Path, files: Iterable[Path]) -> Path | None:
    """Move the existing `files` of `folder` into a new folder beside it, at the same relative paths.

    Returns the new folder, `FOLDER.replaced-YYYY-MM-DD_HH-MM-SS`; None if there is nothing to move.
    """
    return _transfer(folder, files, Path.rename)


def copy_aside(folder: Path, files: Iterable[Path]) -> Path | None:
    """Copy files as `move_aside` moves them, before they are rewritten."""
    return _transfer(folder, files, shutil.copy2)


def _transfer(folder: Path, files: Iterable[Path], transfer: Callable[[Path, Path], object]) -> Path | None:
    present = [path for path in files if path.exists()]
    if not present:
        return None
    target = _make_folder(folder)
    for path in present:
        destination = target / path.relative_to(folder)
        destination.parent.mkdir(parents=True, exist_ok=True)
        transfer(path, destination)
    return target


def _make_folder(folder: Path) -> Path:
    target = folder.resolve()  # a symbolic link may point to another disk, and files move on one disk only
    return make_exclusively(target.with_name(f"{target.name}.replaced-{datetime.now():%Y-%m-%d_%H-%M-%S}"))


# Seconds after which a process that waits for a lock logs a message.
QUIET_SECONDS = 1.0


@contextmanager
def wait_for_lock(path: Path, work: str, refusal: str | None = None, timeout: float = 0) -> Iterator[None]:
    """Hold the lock file `path`, whose name begins with a dot; the system releases it if the process dies.

    `work` describes what the holder does, as "trains mlp in FOLDER". Without a `refusal`, waits until the
    lock is free and logs the holder. With a `refusal`, raises ValueError if the lock is not free within
    `timeout` seconds; the message names the holder and ends with `refusal`.
    """
    lock = FileLock(path)
    # A file of its own: some systems let no other process read a lock file that is held.
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
    """Hold the lock of a label folder, or of one part of the work on it.

    Raises ValueError, naming the holder, if the lock is not free within `timeout` seconds. With None, waits
    until the lock is free and logs the holder.
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
    """Raise ValueError if a run on a part of the work, other than `but`, holds its lock.

    The caller holds the lock of the whole folder.
    """
    parts = [path.name.removeprefix(".lock") for path in sorted(folder.glob(".lock?*"))]
    for part in parts:
        if part != but:
            with hold(folder, part):
                pass


class ShardFolder:
    """A folder of shards; each shard is either complete or absent, also after a kill or concurrent runs.

    Args:
        command: the command that resumes after an error, for messages.
    """

    def __init__(self, path: Path, command: str) -> None:
        self.path = path
        self.command = command

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turn the OSError of a failed write into one that names the folder and what to do."""
        try:
            yield
        except (FileExistsError, NotADirectoryError) as error:
            raise OSError(
                f"cannot write to {self.path}, as a file is in place of a folder: give another folder "
                "with paths.labels=FOLDER"
            ) from error
        except OSError as error:
            raise OSError(
                f"cannot write to {self.path}: {error.strerror or error}. Finished files are kept; "
                f"once this is fixed, run {self.command} again to resume"
            ) from error

    @contextmanager
    def holding(self, lock: AbstractContextManager[None]) -> Iterator[None]:
        """Hold a lock; an OSError on acquiring it is reported as a failed write."""
        with ExitStack() as stack:
            with self.writing():
                stack.enter_context(lock)
            yield

    def recording(self, name: str, record: WorkRecord) -> AbstractContextManager[None]:
        """Keep the record of the work of one process on this folder (`records.recording`)."""
        return recording(self.path / WORK / f"part-{name}.json", record)

    def recording_block(self, name: str) -> AbstractContextManager[None]:
        """Keep a record of a block while this process works on it."""
        path = self.path / WORK / f"block-{name}.json"
        return recording(path, WorkRecord.begin(), is_kept=False)

    def remove_remains(self) -> None:
        """Remove temporary files of killed runs. The caller makes sure that no other run writes."""
        for temporary in self.path.rglob(".*.tmp"):
            temporary.unlink()

    def move_aside(self, files: Iterable[Path]) -> Path | None:
        """Move files of this folder beside it, as `move_aside` does."""
        with self.writing():
            return move_aside(self.path, files)
