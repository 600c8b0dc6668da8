"""Scores of drawn answers, beside the labels they belong to: what an oracle without luck is made of."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from experiments.evaluation.fronts import Columns, Floats
from m3_backbone.outcomes import OutcomeTable, check_fingerprints
from m3_backbone.shards import write_atomically

RESAMPLED = "resampled.safetensors"


@dataclass(frozen=True, eq=False)
class Resampled:
    """`rows` of the test samples that were answered again, `score [num_runs, num_rows, num_scales]`."""

    rows: Columns
    score: Floats


def write_resampled(labels: Path, test: OutcomeTable, resampled: Resampled) -> Path:
    """Write the scores into the label folder: the path."""
    path = labels / RESAMPLED
    identity = {
        "fingerprints": json.dumps(dict(test.fingerprints)),
        "samples": json.dumps(test.sample_id[resampled.rows].tolist()),
    }
    scores = {"score": np.ascontiguousarray(resampled.score, dtype=np.float32)}
    write_atomically(path, lambda temporary: save_file(scores, temporary, metadata=identity))
    return path


def read_resampled(labels: Path, test: OutcomeTable) -> Resampled | None:
    """What `write_resampled` left there; None where nothing lies. ValueError where it is of other labels."""
    path = labels / RESAMPLED
    if not path.is_file():
        return None
    try:
        with safe_open(path, "np") as file:
            identity, score = file.metadata(), file.get_tensor("score")
        fingerprints, samples = json.loads(identity["fingerprints"]), json.loads(identity["samples"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, or resample again") from error
    check_fingerprints(test.fingerprints, fingerprints, "the labels", str(path))
    row_of = {sample: row for row, sample in enumerate(test.sample_id)}
    if unknown := [sample for sample in samples if sample not in row_of]:
        raise ValueError(f"{path} holds {unknown[0]!r}, which the labels lack: delete it, or resample again")
    return Resampled(np.array([row_of[sample] for sample in samples]), score.astype(np.float64))
