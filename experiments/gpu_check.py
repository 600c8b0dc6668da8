"""Check the engine on a GPU, and measure its speed: one page and one JSON file.

Runs parity with the CPU, conformance of every family, and the benchmarks of labelling, adaptive answers and
attention, with random or embedded weights only. Results are saved after each part; the same command resumes,
and runs failed parts again. The exit status is 1 if a part failed or differs.

Examples:
    tokenscale gpu-check                       # small shapes, also on a CPU
    tokenscale gpu-check size=7b recordings=tests/fixtures/official_m3  # shapes of LLaVA-1.5-7B, on a GPU
    tokenscale gpu-check 'steps=[attention]'   # parts whose names contain this word
"""

from functools import partial
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from experiments.command_line.entry_point import entry_point
from experiments.command_line.running import Provenance


@entry_point("gpu_check")
def main(config: DictConfig) -> None:
    from experiments.bench.gpu_check.parts import run_parts, select_parts
    from experiments.bench.gpu_check.steps import choose_device, describe, list_parts
    from experiments.reporting.gpu_check import format_results, write_gpu_page
    from experiments.training.trainer import quiet_lightning

    quiet_lightning()
    device = choose_device(config.device, config.size)
    task = instantiate(config.task, _convert_="all")
    recordings = None if config.recordings is None else Path(config.recordings)
    make_predictor = partial(instantiate, config.predictor, _convert_="all")
    parts = select_parts(list_parts(device, config.size, task, make_predictor, recordings), config.steps)
    folder = Path(config.folder)
    identity = describe(device, config.size)
    results = run_parts(parts, folder / "gpu_check.json", identity, overwrite=config.overwrite)
    page = folder / "gpu_check.html"
    write_gpu_page(page, results, identity, Provenance.of(config))
    print(f"{format_results(results)}\n\nreport: {page}, beside gpu_check.json")
    if any(result.status in ("failed", "differs") for result in results):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
