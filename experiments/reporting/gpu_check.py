"""Page and text of a check of the device."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.bench.gpu_check.parts import PartResult
from experiments.command_line.running import Provenance
from experiments.reporting.page import write_page
from experiments.reporting.tables import Table, format_table

_TITLES = {
    "device": "Device: memory, best of ten matrix products (TFLOP/s) and copies (GB/s)",
    "parity": "Parity: greedy answers and logits against float32 on the CPU, with the same weights",
    "recordings": "Recordings: values that the M3 authors' code computed on a CPU, in float32",
    "conformance": "Conformance: checks of the contract of backbones, in float32",
    "labelling": "Labelling at all scales, against one call of generate per question and scale",
    "adaptive": "Adaptive answers against every fixed scale; times of a batch from images to answers",
    "attention": "Attention kernels against SDPA as the engine uses it, which stays the default",
}


def write_gpu_page(
    path: Path, results: Sequence[PartResult], identity: Mapping[str, Any], provenance: Provenance
) -> None:
    """Write the self-contained page of all results."""
    steps = [step for step in _TITLES if any(result.step == step for result in results)]
    write_page(
        path,
        "gpu_check.html.j2",
        title="GPU check",
        summary=summarize(results),
        steps=[(step, tabulate(step, [r for r in results if r.step == step])) for step in steps],
        identity=identity,
        provenance=provenance,
        charts=[],
    )


def summarize(results: Sequence[PartResult]) -> str:
    """Return one sentence with the number of parts by outcome."""
    counts = {status: sum(result.status == status for result in results) for status in _STATUSES}
    return ", ".join(f"{count} {status}" for status, count in counts.items() if count)


_STATUSES = ("agrees", "measured", "differs", "failed", "unavailable")


def format_results(results: Sequence[PartResult]) -> str:
    """Return a line for each part as an aligned table, and the summary."""
    rows = [(r.step, r.name, r.status, f"{r.seconds:.1f}", r.reason) for r in results]
    table = format_table([("step", "part", "outcome", "seconds", "reason"), *rows])
    return f"{table}\n\n{summarize(results)}"


def tabulate(step: str, results: Sequence[PartResult]) -> Table:
    """Return the table of one step: a row per part, or per method of a part."""
    lines = [line for result in results for line in _list_lines(result)]
    columns = list(dict.fromkeys(name for _, values, _ in lines for name in values))
    rows = []
    for name, values, result in lines:
        missing = result.reason and f"unavailable, because {result.reason}"
        cells = [format_value(values.get(column, missing or "-")) for column in columns]
        rows.append((name, result.status, *cells, result.reason))
    header = ("part", "outcome", *(column.replace("_", " ") for column in columns), "reason")
    return Table(_TITLES[step], header, tuple(rows), step)


def _list_lines(result: PartResult) -> Iterator[tuple[str, Mapping[str, Any], PartResult]]:
    methods = result.values.get("methods")
    if not methods:
        yield result.name, result.values, result
        return
    shared = {name: value for name, value in result.values.items() if name != "methods"}
    for name, values in methods.items():
        yield f"{result.name}, {name}", {**values, **shared}, result


def format_value(value: Any) -> str:
    """Return a number with three digits, text as it is, and a dash for none."""
    if value is None:
        return "-"
    if isinstance(value, list):
        return "; ".join(map(str, value)) or "none"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
