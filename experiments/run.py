"""Label, train, time and evaluate: everything up to the report.

Each step is the command of that name with this one's configuration, and leaves alone what is up to date: an
unchanged run is an evaluation. `main` returns the validation metric `optimized_metric`, for sweeps.

Examples:
    tokenscale run                                                # the embedded backbone on `scenes`
    tokenscale run task=textvqa backbone=m3_llava_7b trainer=gpu  # published weights, on a GPU
    tokenscale run -m predictor=cross_attention,mlp seed=0,1  # a sweep of four jobs, compared at the end
"""

import errno
import logging
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from experiments import evaluate, label, latency, train
from experiments.config import entry_point

log = logging.getLogger(__name__)


@entry_point("run")
def main(config: DictConfig) -> float:
    from experiments.results.run_folders import check_link, point_link
    from experiments.training.configured import make_predictors

    # What cannot be built is refused before hours of labelling.
    make_predictors(config)
    instantiate(config.trainer)
    latest, folder = Path(config.latest), Path(HydraConfig.get().runtime.output_dir)
    check_link(latest, folder)
    label.main(config)
    train.main(config)
    if config.latency.num_images:
        measure(config)
    value: float = evaluate.main(config)
    try:
        point_link(latest, folder)
    except OSError as error:
        log.warning("%s still points at an earlier run: %s", latest, error)
        latest = folder
    print(f"report: {latest / 'report.html'}, beside metrics.json and front.png")
    return value


def measure(config: DictConfig) -> None:
    """Time backbone and predictors; where the store cannot be written to, the run goes on without."""
    try:
        latency.measure_configured(config)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        log.warning(
            "no cost is counted in milliseconds, as timings cannot be written: %s; paths.latency=FOLDER "
            "names another folder for them",
            error,
        )


if __name__ == "__main__":
    main()
