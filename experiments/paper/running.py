"""Running the steps of a paper: each in a process, those that are done not again.

The folder of a paper holds

    store/              labels, predictors and timings of all steps
    steps/NAME/         outputs of a step: its runs, log.txt, and done.json once it is done

`done.json` has the command line of the step. A step whose command line changed is run again, and so is every
step that needs it.
"""

import functools
import json
import logging
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from experiments.paper.steps import Step
from m3_backbone.outcomes.shards import write_text

log = logging.getLogger(__name__)

DONE, LOG = "done.json", "log.txt"
# Last lines of the log of a failed step that are shown.
_SHOWN_LINES = 5


@dataclass(frozen=True)
class StepState:
    """Outcome of a step: `seconds` that its command took; `reason` why it failed or was skipped."""

    status: Literal["done", "failed", "skipped"]
    seconds: float = 0.0
    command: str = ""
    reason: str = ""
    was_done: bool = False


def run_steps(
    steps: Sequence[Step],
    folder: Path,
    *,
    all_steps: Sequence[Step],
    settings: Sequence[str],
    evaluations: Path,
) -> dict[str, StepState]:
    """Run the steps that are not done, and return the states of all, by name.

    `all_steps` are those of the paper: one that needs a step that runs is not done any more. `settings` are
    options that every command gets if it has them, such as `num_resamples=1000`. A failed step does not stop
    those that do not need it. `evaluations` is the folder of the records of test evaluations.
    """
    states: dict[str, StepState] = {}
    for number, step in enumerate(steps, start=1):
        missing = [name for name in step.needs if states[name].status != "done"]
        if missing:
            states[step.name] = StepState("skipped", reason=f"it needs {missing[0]}, which is not done")
            continue
        place = folder / "steps" / step.name
        words = write_command(step, folder, settings, evaluations)
        finished = read_done(place / DONE, words)
        if finished is not None:
            states[step.name] = finished
            continue
        log.info("step %d of %d, %s: %s", number, len(steps), step.name, shlex.join(words))
        # Before it runs, so that this holds if it is interrupted.
        for later in all_steps:
            if step.name in later.needs:
                (folder / "steps" / later.name / DONE).unlink(missing_ok=True)
        states[step.name] = _run(words, place)
        if states[step.name].status == "failed":
            log.warning("step %s failed: %s", step.name, states[step.name].reason)
    return states


def write_command(step: Step, folder: Path, settings: Sequence[str], evaluations: Path) -> list[str]:
    """Return the command line of a step, without the interpreter; the options of the step come last."""
    shared = [
        f"paths.outputs={folder / 'steps' / step.name}",
        f"paths.store={folder / 'store'}",
        f"paths.evaluations={evaluations}",
    ]
    accepted = [text for text in settings if _accepts(step.command, text)]
    flags = [text for text in step.arguments if text.startswith("-")]
    options = [text for text in step.arguments if not text.startswith("-")]
    return ["tokenscale", step.command, *flags, *shared, *accepted, *options]


@functools.cache
def _accepts(command: str, setting: str) -> bool:
    from experiments.command_line.overrides import find_wrong_argument
    from experiments.command_line.script import find_config_dir

    return find_wrong_argument(find_config_dir(), command, [setting]) is None


def read_done(path: Path, words: Sequence[str]) -> StepState | None:
    """Return the state of a step that is done with this command line, or None."""
    try:
        content: Any = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(content, Mapping) or content.get("command") != list(words):
        return None
    return StepState("done", float(content.get("seconds", 0)), shlex.join(words), was_done=True)


def _run(words: Sequence[str], place: Path) -> StepState:
    """Run a command in a process of its own, and record that it is done."""
    place.mkdir(parents=True, exist_ok=True)
    (place / DONE).unlink(missing_ok=True)
    _, command, *arguments = words
    # With `-m` the working directory is searched first, as in the process that started this one.
    line = [sys.executable, "-m", f"experiments.{command}", *arguments]
    start = time.monotonic()
    with (place / LOG).open("w", encoding="utf-8") as output:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        status = subprocess.run(
            line, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment
        ).returncode
    seconds = time.monotonic() - start
    if status == 0:
        write_text(place / DONE, json.dumps({"command": list(words), "seconds": round(seconds, 1)}) + "\n")
        return StepState("done", seconds, shlex.join(words))
    reason = f"{_find_reason(place / LOG) or f'exit status {status}'} ({place / LOG})"
    return StepState("failed", seconds, shlex.join(words), reason)


def _find_reason(path: Path) -> str:
    """Return the error message in a log, or its last lines."""
    lines = path.read_text("utf-8", errors="replace").strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    return errors[-1] if errors else " / ".join(lines[-_SHOWN_LINES:])
