"""`draws.safetensors`: metrics on every resample, for paired comparisons of runs.

The file is next to `metrics.json` and holds the resamples of the metrics that `experiments.compare` shows. A
tensor is float32 `[num_resamples]`, and its name is the path to its metric in `metrics.json`, for example
`predictors/NAME/mean_to_mix` (`name_tensor`). `predictors/NAME/at_budgets/score` and `.../to_mix` hold all
budgets, `[num_kept, num_budgets]`, on the first `MOST_BAND_RESAMPLES` resamples only, which is enough for the
bands of a plot; p-values and intervals of single metrics use all resamples. nan means that the metric does
not exist on that resample. The metadata contain a digest of all tensors.

Row i of runs on the same test split with the same bootstrap seed is on the same resampled images, so that
common noise cancels in a difference. The file takes about 1.3 MB per predictor with 10,000 resamples and 49
budgets.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from experiments.evaluation.comparison import Comparison
from experiments.evaluation.guarantee import CheckedGuarantee
from experiments.evaluation.metric_table import MOST_BAND_RESAMPLES, Family, Predictor
from experiments.evaluation.metrics import mean_to_mix
from m3_backbone.outcomes.manifest import DIGEST
from m3_backbone.outcomes.shards import write_bytes

RESAMPLES = "draws.safetensors"  # the name of the file in runs of all versions

Float32s = NDArray[np.float32]


def name_tensor(*path: str) -> str:
    """Return the name of the tensor with the metric at a path in `metrics.json`.

    Each step is percent-encoded, so that distinct paths have distinct names.
    """
    return "/".join(quote(step, safe="", errors="surrogatepass") for step in path)


def collect_resamples(
    comparison: Comparison,
    others: Sequence[Comparison] = (),
    guarantees: Sequence[CheckedGuarantee] = (),
) -> dict[str, Float32s]:
    """Return the content of `draws.safetensors` for the cost measures and guarantees in `metrics.json`.

    For other cost measures than visual tokens only the mean difference to the mix is kept.
    """
    by_path: dict[tuple[str, ...], NDArray[np.floating]] = {
        ("predictors", key.policy.name, *key.metric.path.split("/")): resamples
        for key, resamples in comparison.metrics.resamples.items()
        if isinstance(key.policy, Predictor)
    }
    by_path |= {
        (other.measure.key, "predictors", key.policy.name, key.metric.path): resamples
        for other in others
        for key, resamples in other.metrics.resamples.items()
        if isinstance(key.policy, Predictor) and key.metric is mean_to_mix
    }
    by_path |= {
        ("guarantee", "predictors", checked.name, "drop"): checked.realized.resampled_drop
        for checked in guarantees
    }
    return {
        name_tensor(*path): np.ascontiguousarray(resamples, dtype=np.float32)
        for path, resamples in by_path.items()
    }


def write_resamples(folder: Path, resamples: Mapping[str, Float32s]) -> None:
    """Write the resamples atomically; a run that has the file is complete."""
    write_bytes(
        folder / RESAMPLES, save(dict(resamples), metadata={DIGEST: _digest(sorted(resamples.items()))})
    )


class StoredResamples(Mapping[str, Float32s]):
    """Tensors of a file, read on access, so that many runs need not fit into memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
            # Name of a tensor -> its name in the file, which may be that of an earlier version.
            self._stored = {re.sub("^risk/", "guarantee/", name): name for name in names}
            self.num_rows = {
                name: file.get_slice(stored).get_shape()[0] for name, stored in self._stored.items()
            }
            self._digest = (file.metadata() or {}).get(DIGEST)

    def check(self) -> None:
        """Raise ValueError if the tensors do not match the digest in the file."""
        by_stored_name = sorted((stored, name) for name, stored in self._stored.items())
        tensors = ((stored, self[name]) for stored, name in by_stored_name)
        if self._digest is not None and self._digest != _digest(tensors):
            raise ValueError("its content does not have the digest that it names")

    def __getitem__(self, name: str) -> Float32s:
        if name not in self.num_rows:
            raise KeyError(name)
        with safe_open(self._path, framework="numpy") as file:
            tensor: Float32s = file.get_tensor(self._stored[name])
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.num_rows)

    def __len__(self) -> int:
        return len(self.num_rows)


def read_resamples(folder: Path, num_resamples: int) -> StoredResamples:
    """Return the resamples of a run; raise ValueError if they are missing, damaged or of another number."""
    try:
        resamples = StoredResamples(folder / RESAMPLES)
        expected = {name: _count_kept(name, num_resamples) for name in resamples}
        if not resamples or resamples.num_rows != expected:
            raise ValueError(f"not {num_resamples} resamples")
        resamples.check()
    except FileNotFoundError:
        raise ValueError(
            f"{folder} has no {RESAMPLES}, on which intervals over runs rest: evaluate that run again"
        ) from None
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder / RESAMPLES} is not whole ({error}): evaluate that run again") from error
    return resamples


def _digest(resamples: Iterable[tuple[str, Float32s]]) -> str:
    """Return the digest of (name, tensor) pairs, given in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in resamples:
        digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
        digest.update(np.ascontiguousarray(tensor).tobytes())
    return digest.hexdigest()[:16]


def _count_kept(tensor: str, num_resamples: int) -> int:
    """Return the number of resamples that a tensor must hold, given its name (`name_tensor`)."""
    match tensor.split("/"):
        case ["predictors", _, step, _] if step == Family.AT_BUDGETS.value:
            return min(num_resamples, MOST_BAND_RESAMPLES)
    return num_resamples
