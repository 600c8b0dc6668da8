"""Fit prices, guarantee and calibrator on samples of your own, without training.

The samples are labels of a task of your own (`tokenscale label`, `tokenscale import_outcomes`), or the
answers that a server has recorded (`tokenscale serve drift.record=FILE`). Writes a new published folder, and
prints what the operating points state and lose before and after.

Examples:
    tokenscale recalibrate folder=my_model output=mine task=scenes_shifted  # labels of another task
    tokenscale recalibrate folder=my_model output=mine record=answers.jsonl  # what a server has recorded
    tokenscale recalibrate task=scenes_shifted trained=FOLDER output=mine num_images=200  # not yet published
"""

from omegaconf import DictConfig

from experiments.command_line.entry_point import entry_point


@entry_point("recalibrate")
def main(config: DictConfig) -> None:
    from hydra.utils import instantiate

    from experiments.serving.recalibration import describe_change, fit_prices
    from experiments.serving.recalibration_source import open_source, read_samples

    source = open_source(config)
    before = read_samples(source, config, calibrator=None)
    calibrator = instantiate(config.get("calibrator"))
    after = before if calibrator is None else read_samples(source, config, calibrator=calibrator)
    prices, hybrid = fit_prices(
        after, source.hybrid, **config.guarantee, budget=config.budget, tolerance=config.tolerance
    )
    print(describe_change((source.prices, before), (prices, after)))
    source.save(prices, hybrid)


if __name__ == "__main__":
    main()
