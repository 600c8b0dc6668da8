"""The worker process of a task of lmms-eval, from this side: start, calls, time limits, end."""

import json
import os
import queue
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

WORKER = Path(__file__).with_name("worker.py")
# Largest line of an answer, in bytes: an image of 89 million pixels in base64.
_MAX_LINE = 1 << 29
_MAX_ERROR_CHARS = 600


class LmmsEvalError(ValueError):
    """lmms-eval refused a task, or its process failed. The message is one sentence."""


class CallRefused(LmmsEvalError):
    """A call that the worker answered with an error; it goes on."""


class WorkerProcess:
    """A process in lmms-eval's environment that holds one task (`worker.py`).

    It starts with the first call, ends with this object or this process, and starts anew in a process that
    was forked from this one or that unpickled it.

    Args:
        python: interpreter of the environment.
        settings: what the worker opens, as JSON types.
        start_seconds: time limit of the start, in which lmms-eval may download the data.
        seconds: time limit of every other call.
    """

    def __init__(
        self, python: str | Path, settings: Mapping[str, Any], *, start_seconds: float, seconds: float
    ) -> None:
        self.python, self.settings = Path(python).expanduser(), dict(settings)
        self.start_seconds, self.seconds = start_seconds, seconds
        self._reset()

    def _reset(self) -> None:
        self._owner: int | None = None
        self._lock = threading.Lock()
        self._description: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._reset()

    def describe(self) -> dict[str, Any]:
        """Return what the worker says about its task."""
        with self._lock:
            self._ensure_started()
            return self._description

    def call(self, name: str, **arguments: Any) -> Any:
        """Return the result of a call of the worker. Raises LmmsEvalError."""
        with self._lock:
            self._ensure_started()
            return self._exchange({"call": name, **arguments}, self.seconds, "task.timeout")

    def close(self) -> None:
        """End the process."""
        with self._lock:
            if self._owner == os.getpid():
                self._end()
            self._owner = None

    def _ensure_started(self) -> None:
        if self._owner == os.getpid():
            return
        if not self.python.is_file():
            raise LmmsEvalError(
                f"task.python={self.python}: no such file: give the Python of an environment with lmms-eval, "
                "as `make lmms-env` makes one"
            )
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        try:
            process = subprocess.Popen(
                [self.python, str(WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env={
                    **os.environ,
                    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
                    "TOKENIZERS_PARALLELISM": "false",
                },
            )
        except OSError as error:
            raise LmmsEvalError(f"task.python={self.python} cannot be run: {error.strerror}") from error
        assert process.stdin is not None and process.stdout is not None
        self._process, self._input = process, process.stdin
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=_read_lines, args=(process.stdout, self._lines), daemon=True).start()
        self._owner, self._description = os.getpid(), {}
        self._end = weakref.finalize(self, _end_process, process)
        self._description = self._exchange(self.settings, self.start_seconds, "task.start_timeout")

    def _exchange(self, message: Mapping[str, Any], seconds: float, option: str) -> Any:
        try:
            self._input.write(json.dumps(message).encode() + b"\n")
            self._input.flush()
            line = self._lines.get(timeout=seconds)
        except (BrokenPipeError, queue.Empty) as error:
            if isinstance(error, queue.Empty):
                raise self._fail(
                    f"lmms-eval gave no answer within {seconds:g} seconds: raise {option}"
                ) from error
            line = b""
        except KeyboardInterrupt:
            self._stop()  # its answer would be taken for that of the next call
            raise
        if not line.endswith(b"\n"):
            raise self._fail("lmms-eval's process ended" if not line else "lmms-eval's answer is too long")
        response = json.loads(line)
        if "error" in response:
            if not self._description:
                self._stop()
            raise CallRefused(f"task {self.settings['name']}: {_make_line(response['error'])}")
        return response["result"]

    def _fail(self, problem: str) -> LmmsEvalError:
        """End the process, and return the error with the last lines that it wrote."""
        self._stop()
        code = self._process.returncode
        status = f" (signal {-code})" if code and code < 0 and "ended" in problem else ""
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - 4 * _MAX_ERROR_CHARS))
        lines = [line.strip() for line in self._errors.read().decode(errors="replace").splitlines()]
        written = " / ".join([line for line in lines if line][-4:])
        last = f"; its last lines: {_make_line(written[-_MAX_ERROR_CHARS:])}" if written else ""
        return LmmsEvalError(f"task {self.settings['name']}: {problem}{status}{last}")

    def _stop(self) -> None:
        self._end()
        self._owner = None


def _read_lines(stream: IO[bytes], lines: "queue.SimpleQueue[bytes]") -> None:
    """Put the lines of a stream into a queue, and an incomplete or empty one at its end."""
    while True:
        line = stream.readline(_MAX_LINE)
        lines.put(line)
        if not line.endswith(b"\n"):
            return


def _end_process(process: subprocess.Popen[bytes]) -> None:
    """End a worker: it ends with its input, and is killed if it does not."""
    assert process.stdin is not None
    try:
        process.stdin.close()
        process.wait(timeout=1)
    except (OSError, subprocess.TimeoutExpired):
        process.kill()
        process.wait()


def _make_line(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in " ".join(text.split()))
