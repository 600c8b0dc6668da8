"""Parts of a check of the device: run one by one, saved after each, resumed after an interruption."""

import gc
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import torch

from experiments.labels.progress import show_progress
from m3_backbone.conformance.subject import select_by_words
from m3_backbone.outcomes.manifest import seal, unseal
from m3_backbone.outcomes.shards import write_text

FORMAT = 2
MAX_REASON = 400
Status = Literal["agrees", "differs", "measured", "failed", "unavailable"]
# Parts with another status run again.
FINISHED: tuple[Status, ...] = ("agrees", "differs", "measured")
Values = dict[str, Any]


class Unavailable(Exception):
    """A part cannot run on this device: one clause with the reason."""


@dataclass(frozen=True)
class Part:
    """One part of a step. `run` returns its values; `agrees` among them says whether the part agreed."""

    step: str
    name: str
    run: Callable[[], Values]

    @property
    def key(self) -> str:
        return f"{self.step}/{self.name}"


@dataclass(frozen=True)
class PartResult:
    """Result of a part; `reason` says why a part failed, or why it is unavailable."""

    step: str
    name: str
    status: Status
    reason: str = ""
    seconds: float = 0.0
    values: Values = field(default_factory=dict)


def select_parts(parts: Sequence[Part], words: Sequence[str] | None) -> list[Part]:
    """Return the parts whose `step/name` contains one of the words, as `select_by_words`."""
    return select_by_words({part.key: part for part in parts}, words, "steps", "part")


def run_part(part: Part) -> PartResult:
    """Return the result of a part; an error of any type is its result."""
    start = perf_counter()
    status: Status
    reason, values = "", {}
    try:
        values = part.run()
        agrees = values.pop("agrees", None)
        status = "measured" if agrees is None else "agrees" if agrees else "differs"
    except Unavailable as missing:
        status, reason = "unavailable", str(missing)
    except Exception as error:  # a kernel may raise errors of any type
        message = " ".join(str(error).split())[:MAX_REASON]
        status, reason = "failed", f"it raised {type(error).__name__}: {message}"
    gc.collect()
    return PartResult(part.step, part.name, status, reason, perf_counter() - start, _to_plain(values))


def run_parts(
    parts: Sequence[Part], path: Path, identity: Mapping[str, Any], *, overwrite: bool
) -> list[PartResult]:
    """Run the parts that `path` does not have yet, and save all results to it after each part.

    Parts that failed or were unavailable run again. If the GPU stops working, the remaining parts fail.
    Raises ValueError for a damaged file, and for results of another `identity`, unless `overwrite`.
    """
    saved = {} if overwrite else _read(path, identity)
    path.parent.mkdir(parents=True, exist_ok=True)
    results = dict(saved)
    is_broken = False
    with show_progress("gpu-check", total=len(parts), unit="parts") as bar:
        for part in parts:
            is_finished = part.key in saved and saved[part.key].status in FINISHED
            if is_broken and not is_finished:
                reason = "the GPU stopped working in an earlier part: run the command again"
                results[part.key] = PartResult(part.step, part.name, "failed", reason)
            elif not is_finished:
                results[part.key] = run_part(part)
                is_broken = not _works()
            content = {"format": FORMAT, "identity": dict(identity)}
            rows = [asdict(result) for result in results.values()]
            write_text(path, json.dumps(seal({**content, "parts": rows}), indent=1) + "\n")
            bar.update()
    return list(results.values())


def _works() -> bool:
    """Release memory; return whether the GPU, if there is one, still works."""
    if not torch.cuda.is_available():
        return True
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True


def _read(path: Path, identity: Mapping[str, Any]) -> dict[str, PartResult]:
    if not path.is_file():
        return {}
    try:
        content = unseal(json.loads(path.read_text(encoding="utf-8")))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}")
        results = [PartResult(**row) for row in content["parts"]]
        saved_identity = content["identity"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, or give overwrite=true") from error
    if saved_identity != identity:
        raise ValueError(
            f"{path} has results of another device, size or version: give another folder=..., or "
            "overwrite=true"
        )
    return {f"{result.step}/{result.name}": result for result in results}


def _to_plain(value: Any) -> Any:
    """Return a value as JSON types; numbers that are not finite as text."""
    if isinstance(value, Mapping):
        return {str(key): _to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
