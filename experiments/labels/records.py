"""Records of work in progress: one JSON file per process or block, with a heartbeat, read by `status`.

A record says what is done by which process, and the command that does it again. While the work goes on, a
thread touches the file every few seconds. A record that says `running` and was not touched for long is that
of a killed process.
"""

import logging
import os
import shlex
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from threading import Event, Thread
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from experiments.labels.devices import VISIBLE
from m3_backbone.outcomes.shards import write_text

log = logging.getLogger(__name__)

# Subfolder of a folder of shards with the records of the work on it.
WORK = ".work"
# File in the folder `.hydra` of a run with the record of its command.
JOB_RECORD = "job.json"
SECONDS_BETWEEN_BEATS = 5.0
# Seconds without a heartbeat after which a process counts as killed: clocks of machines may differ.
GRACE = 90.0
_MAX_BYTES = 2**24
_MAX_REASON = 500

State = Literal["running", "done", "failed", "killed"]


class WorkRecord(BaseModel):
    """Record of the work of a process.

    `command` is the command line that does this work again, started in `directory`; `launcher` are the
    options of the launcher of its sweep. `part` is i/n, and `blocks` maps the names of all blocks, also of
    other parts, to a digest and a number of samples.
    """

    model_config = ConfigDict(strict=True, extra="ignore")

    state: State = "running"
    reason: str = ""
    command: str = ""
    launcher: list[str] = []
    directory: str = ""
    host: str = ""
    process: int = 0
    gpus: str | None = None
    started: str = ""
    part: str | None = None
    blocks: dict[str, tuple[str, int]] = {}

    @classmethod
    def begin(
        cls,
        *,
        command: str = "",
        launcher: list[str] | None = None,
        part: str | None = None,
        blocks: Mapping[str, tuple[str, int]] | None = None,
    ) -> Self:
        """Return the record of work that this process begins now."""
        return cls(
            command=command,
            launcher=launcher or [],
            directory=str(Path.cwd()),
            host=socket.gethostname(),
            process=os.getpid(),
            gpus=os.environ.get(VISIBLE),
            started=datetime.now().isoformat(timespec="seconds"),
            part=part,
            blocks=dict(blocks or {}),
        )

    @property
    def description(self) -> str:
        """The process with its machine and its GPUs, as text."""
        gpus = f", GPU {clean(self.gpus)}" if self.gpus else ""
        return f"process {self.process} on {clean(self.host)}{gpus}"

    @property
    def outcome(self) -> str:
        """The process that is running, with the reason if it has failed or was killed; "" if it is done."""
        if self.state == "done":
            return ""
        return f"{self.description}: {clean(self.reason)}" if self.reason else self.description


def clean(text: str, most: int = _MAX_REASON) -> str:
    """Return text from a file in one line without control characters, of at most `most` characters."""
    printable = "".join(char if char.isprintable() else " " for char in text)
    return printable if len(printable) <= most else f"{printable[: most - 3]}..."


def clean_command(command: str) -> str:
    """Return a command line from a file without control characters, except for line breaks in quotes."""
    return "".join(char for char in command if char.isprintable() or char in "\n\t")


@contextmanager
def recording(path: Path, record: WorkRecord, *, is_kept: bool = True) -> Iterator[None]:
    """Keep a record of the work of the `with` block, with a heartbeat, and of how it ends.

    If not `is_kept`, the record is removed when the work is done. A record that cannot be written does not
    stop the work.
    """
    _write(path, record)
    ended = Event()

    def beat() -> None:
        while not ended.wait(SECONDS_BETWEEN_BEATS):
            with suppress(OSError):
                os.utime(path)

    thread = Thread(target=beat, daemon=True)
    thread.start()
    end: dict[str, str] = {"state": "done"}
    try:
        yield
    except BaseException as error:
        is_interrupted = isinstance(error, KeyboardInterrupt | GeneratorExit)
        reason = "interrupted" if is_interrupted else str(error) or type(error).__name__
        end = {"state": "failed", "reason": clean(reason)}
        raise
    finally:
        ended.set()
        thread.join()
        if end["state"] == "done" and not is_kept:
            with suppress(OSError):
                path.unlink(missing_ok=True)
        else:
            _write(path, record.model_copy(update=end))


def _write(path: Path, record: WorkRecord) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, record.model_dump_json() + "\n")
    except OSError as error:
        log.debug("the record %s cannot be written: %s", path, error)


def read_record(path: Path) -> WorkRecord | None:
    """Read a record; None if it is missing or damaged. One without heartbeats has the state `killed`."""
    try:
        status = path.stat()
        if status.st_size > _MAX_BYTES:
            return None
        record = WorkRecord.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    if record.state != "running":
        return record
    silence = time.time() - status.st_mtime
    if silence <= GRACE and not _is_gone(record):
        return record
    reason = f"no sign of life for {_describe_seconds(silence)}"
    return record.model_copy(update={"state": "killed", "reason": reason})


def read_records(folder: Path, pattern: str) -> dict[str, WorkRecord]:
    """Return the readable records of a folder whose file names match, by name without suffix, in order."""
    records = {path.stem: read_record(path) for path in sorted(folder.glob(pattern))}
    return {name: record for name, record in records.items() if record is not None}


def _is_gone(record: WorkRecord) -> bool:
    """Whether the process of a record ran on this machine and is no longer there."""
    if record.host != socket.gethostname() or record.process <= 0:
        return False
    try:
        os.kill(record.process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _describe_seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.0f} hours"


def replace_part(command: str, part: str) -> str:
    """Return a command line with its option `shard` replaced by another part, i/n or a list of them."""
    words = [word for word in shlex.split(command) if not word.startswith("shard=")]
    return shlex.join([*words, f"shard={part}"])
