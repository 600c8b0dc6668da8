"""The main job: `python -m experiments.run` labels, trains, times and evaluates.

Each step is the command of that name with this one's configuration, and leaves alone what is up to date: an
unchanged run is an evaluation. `main` returns the validation metric `optimized_metric`, for sweeps.
"""

import os
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from experiments import evaluate, label, latency, train
from experiments.config import entry_point
from experiments.training.configured import make_predictors


@entry_point("run")
def main(config: DictConfig) -> float:
    # What cannot be built is refused before hours of labelling.
    make_predictors(config)
    instantiate(config.trainer)
    label.main(config)
    train.main(config)
    if config.latency.num_images:
        latency.main(config)
    value: float = evaluate.main(config)
    latest = Path(config.latest)
    point_link(latest, Path(HydraConfig.get().runtime.output_dir))
    print(f"report: {latest / 'report.html'}, beside metrics.json and front.png")
    return value


def point_link(link: Path, folder: Path) -> None:
    """Make `link` a symbolic link to `folder`, in one step: whoever follows it finds the old one or the new.

    The link is relative, so that both can be moved together.
    """
    if link.exists() and not link.is_symlink():
        raise FileExistsError(f"{link} is no symbolic link: move it, or give latest=PATH for this one")
    link.parent.mkdir(parents=True, exist_ok=True)
    target = os.path.relpath(folder.resolve(), link.parent.resolve())
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.symlink_to(target, target_is_directory=True)
    temporary.replace(link)


if __name__ == "__main__":
    main()
