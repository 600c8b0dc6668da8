"""Compare what two checkouts compute: `python tests/slow/compare_checkouts.py OLD NEW [TOLERANCE]`.

For rebuilding without changing a value. Each checkout labels (in process, in two parts), trains, evaluates,
sweeps, compares, publishes and answers on small data of its own making; then every number and every text of
what it left is compared, numbers to 1e-9 unless a tolerance is given: likelihoods are float32, and other
passes of the decoder round them differently. Prints the differences and exits with 1 if there are any. What
is not a result is left out: times, paths, digests and versions.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DATA = ("task.num_images={train:48,calibration:16,test:16}", "task.questions_per_image=3")
SMALL = ("allow_small=true", "latency.num_images=0")
SHORT = ("experiment=embedded_short", *DATA, *SMALL)
IGNORED = {"seconds", "time", "command", "folder", "versions", "digest", "commit", "fingerprints", "files"}

# What each checkout says of itself, in its own words.
READ_LABELS = """
import json, sys
from pathlib import Path
from tests.held_out import read_split
out = {}
for split in ("train", "calibration", "test"):
    labels = read_split(Path(sys.argv[1]), split)
    table = labels.outcomes
    names = ("sample_id", "image_id", "question", "answer", "score", "nll", "confidence", "visual_tokens")
    out[split] = {name: getattr(table, name) for name in names}
    out[split] = {k: v.tolist() if hasattr(v, "tolist") else v for k, v in out[split].items()}
    out[split]["visual"] = labels.inputs.visual_at(9).tokens.astype(float).sum(axis=(1, 2)).tolist()
    out[split]["statistics"] = labels.inputs.statistics.tolist()
print(json.dumps(out))
"""
ANSWER = """
import json
try:
    from predictor.adaptive.model import AdaptiveM3
except ImportError:  # where it was before
    from predictor.adaptive import AdaptiveM3
from experiments.tasks.scenes import Scenes
task = Scenes(num_images={"test": 8})
model = AdaptiveM3.from_pretrained("model")
rows = []
for sample in task.samples("test"):
    answer = model.answer(task.image(sample.image_id), sample.question)
    answer = answer[0] if isinstance(answer, list) else answer
    rows.append([sample.question, answer.answer.text, answer.choice.scale, list(answer.choice.estimates)])
print(json.dumps(rows))
"""


def run(checkout: Path, folder: Path, *arguments: str) -> str:
    """The output of Python in `folder` with the packages of a checkout."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if process.returncode:
        raise SystemExit(
            f"{checkout}: {' '.join(arguments)[:300]}\n{process.stdout}\n{process.stderr[-3000:]}"
        )
    return process.stdout


def collect(checkout: Path, folder: Path) -> dict[str, Any]:
    """All results of a checkout, made in `folder`."""
    found: dict[str, Any] = {}

    def command(name: str, *arguments: str) -> None:
        run(checkout, folder, "-m", f"experiments.{name}", *arguments, "paths.outputs=out")

    command("run", *SHORT, "paths.store=store", "hydra.run.dir=run")
    found["run"] = json.loads((folder / "run" / "metrics.json").read_text())
    for part in ("0/2", "1/2"):
        command("label", *DATA, "allow_small=true", "paths.store=parts", "shard_size=20", f"shard={part}")
    for store in ("store", "parts"):
        labels = f"{store}/labels/tiny_m3/scenes"
        found[f"labels in {store}"] = json.loads(run(checkout, folder, "-c", READ_LABELS, labels))
    command("run", "-m", "seed=0,1", *SHORT, "paths.store=store", "hydra.sweep.dir=sweep")
    command("compare", "runs=[sweep]", "hydra.run.dir=compared")
    for path in sorted((folder / "compared").rglob("*.csv")):
        found[f"compare {path.name}"] = path.read_text()
    for path in sorted((folder / "run").rglob("*.csv")):
        found[f"table {path.name}"] = path.read_text()
    mlp = ("predictor=mlp", "predictor.max_epochs=5")
    command("train", *DATA, *SMALL[:1], *mlp, "~baselines", "paths.store=store")
    command("publish", *DATA, *mlp, "folder=model", "paths.store=store")
    found["answers"] = json.loads(run(checkout, folder, "-c", ANSWER).splitlines()[-1])
    fixtures = checkout / "tests" / "fixtures" / "official_m3"
    found["parity"] = [
        line
        for name in ("llava15", "llavanext")
        for line in run(
            checkout, folder, "-m", "experiments.parity", f"fixture={fixtures / name}"
        ).splitlines()
    ]
    return found


def find_differences(old: Any, new: Any, tolerance: float, path: str = "") -> Iterator[str]:
    """Yield each place where two results differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            if key in IGNORED:
                continue
            if key not in old or key not in new:
                yield f"{path}.{key}: only in the {'new' if key in new else 'old'}"
            else:
                yield from find_differences(old[key], new[key], tolerance, f"{path}.{key}")
    elif isinstance(old, list) and isinstance(new, list):
        if len(old) != len(new):
            yield f"{path}: {len(old)} items, {len(new)}"
        for number, (first, second) in enumerate(zip(old, new, strict=False)):
            yield from find_differences(first, second, tolerance, f"{path}[{number}]")
    elif isinstance(old, float | int) and isinstance(new, float | int) and not isinstance(old, bool):
        if not math.isclose(old, new, rel_tol=tolerance, abs_tol=tolerance):
            yield f"{path}: {old!r}, {new!r}"
    elif old != new:
        yield f"{path}: {str(old)[:100]!r}, {str(new)[:100]!r}"


def main() -> None:
    results = []
    for checkout in map(Path, sys.argv[1:3]):
        with tempfile.TemporaryDirectory() as folder:
            results.append(collect(checkout.resolve(), Path(folder)))
    old, new = results
    tolerance = float(sys.argv[3]) if len(sys.argv) > 3 else 1e-9
    differences = list(find_differences(old, new, tolerance))
    print("\n".join(differences[:200]) or "no differences")
    sys.exit(bool(differences))


if __name__ == "__main__":
    main()
