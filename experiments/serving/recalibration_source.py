"""What `tokenscale recalibrate` starts from, the samples it reads, and the folder it writes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from experiments.serving.adaptive import find_configured
from experiments.serving.configured import load_model
from experiments.serving.drift import identify_model
from experiments.serving.recalibration import Samples, read_label_samples, read_record
from experiments.tasks.imported import BACKBONE as IMPORTED
from m3_backbone.backbone import Backbone
from m3_backbone.outcomes.labels import read_labels
from predictor.adaptive import folder as folders
from predictor.adaptive.model import AdaptiveVLM
from predictor.base import ScalePredictor
from predictor.calibration import Calibrator
from predictor.cascades.hybrid import Hybrid
from predictor.policy.pricing import PriceList


@dataclass(frozen=True, eq=False)
class Source:
    """A trained predictor with its prices; `save` writes it with others.

    `backbone` is None for a predictor of imported outcomes.
    """

    backbone: Backbone | None
    predictor: ScalePredictor
    prices: PriceList
    hybrid: Hybrid | None
    save: Callable[[PriceList, Hybrid | None], None]


def open_source(config: DictConfig) -> Source:
    """Return the published model in `folder`, or the trained predictor of the configuration.

    A predictor of imported outcomes is saved alone, with prices and hybrid; all others with their backbone.
    Raises ValueError for an output that is the folder itself, or a model that could not be saved.
    """
    output = Path(config.output)
    if config.folder is not None and Path(config.folder).resolve() == output.resolve():
        raise ValueError(f"output={output} is the folder that is read: give another one")
    if config.folder is None and config.backbone.name == IMPORTED:
        trained = find_configured(config)

        def save_alone(prices: PriceList, hybrid: Hybrid | None) -> None:
            trained.predictor.save(output)
            prices.save(output)
            if hybrid is not None:
                hybrid.save(output)
            print(f"predictor, prices and hybrid: {output}")

        return Source(None, trained.predictor, trained.prices, trained.hybrid, save_alone)
    model = load_model(config)
    folders.check_savable(model.backbone, model.predictor)

    def save(prices: PriceList, hybrid: Hybrid | None) -> None:
        AdaptiveVLM(model.backbone, model.predictor, prices, hybrid).save_pretrained(output)
        print(f"model: {output}\nuse:   tokenscale serve folder={output}")

    return Source(model.backbone, model.predictor, model.prices, model.hybrid, save)


def read_samples(source: Source, config: DictConfig, *, calibrator: Calibrator | None) -> Samples:
    """Return the samples of the configuration: the record of a server, or calibration labels.

    A `calibrator` is fitted on half of the labelled images, and replaces that of the predictor. Raises
    ValueError as `read_record` and `read_label_samples`.
    """
    if config.record is not None:
        if calibrator is not None or source.backbone is None:
            raise ValueError(
                "record: it holds estimates and answers of a published model, so that only prices and "
                "guarantee are fitted: leave out calibrator, and give folder"
            )
        backbone = source.backbone
        identity = identify_model(backbone, source.predictor)
        features = source.predictor.features
        samples = read_record(Path(config.record), identity, features, backbone.scales, backbone.family)
        return samples.take_images(config.num_images)
    labels = read_labels(config.paths.labels, "calibration")
    return read_label_samples(source.predictor, labels, config.num_images, calibrator)
