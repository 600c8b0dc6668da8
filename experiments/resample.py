"""Test questions answered several times: `python -m experiments.resample`, on finished labels.

An oracle that takes the best of noisy outcomes flatters. From several runs one can choose by the others and
score on one (`experiments.evaluation.oracles`), also where the likelihood of a reference tells nothing. The
scores go beside the labels, and evaluation shows the oracle from then on. The same command again, with more
images too, does only what is missing.
"""

import logging
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from experiments.config import entry_point, format_command
from experiments.labels.engines import Engine, LocalEngine
from experiments.labels.held_out import open_test
from experiments.labels.labelling import run
from experiments.labels.resampled import Resampled, ResampledFolder, read_resampled
from experiments.labels.resampling import ResampleJob, Variation
from experiments.reporting.summary import describe_record
from experiments.tasks.base import Sample, Task, check_data
from m3_backbone.backbone import Backbone
from m3_backbone.outcomes.manifest import read_manifest
from m3_backbone.outcomes.table import OutcomeTable, check_fingerprints

log = logging.getLogger(__name__)


@entry_point("resample")
def main(config: DictConfig) -> None:
    labels, hydra = Path(config.paths.labels), HydraConfig.get()
    command = format_command(str(hydra.job.config_name), list(hydra.overrides.task))
    test_labels, record = open_test(
        labels,
        records=Path(config.paths.evaluations),
        command=command,
        configuration=OmegaConf.to_yaml(config, resolve=True),
        allow_unrecorded=config.allow_unrecorded,
    )
    test = test_labels.outcomes
    variation: Variation = instantiate(config.variation)
    folder = ResampledFolder(labels, test.fingerprints, variation.identity)
    resampled = resample_answers(
        instantiate(config.backbone, _convert_="all"),
        instantiate(config.task, _convert_="all"),
        test,
        folder,
        variation,
        num_images=config.num_images,
        num_runs=config.num_runs,
        images_per_batch=config.images_per_batch,
        num_workers=config.num_workers,
        overwrite=config.overwrite,
        engine=instantiate(config.engine, _convert_="all"),
    )
    num_runs, num_questions, _ = resampled.score.shape
    means = ", ".join(
        f"{scale}: {100 * value:.1f}%"
        for scale, value in zip(test.scales, resampled.score.mean((0, 1)), strict=True)
    )
    print(f"{num_questions:,} questions, {num_runs} answers each; scores {means}")
    print(f"{describe_record(record)}\n{folder.path}")


def resample_answers(
    backbone: Backbone,
    task: Task,
    test: OutcomeTable,
    folder: ResampledFolder,
    variation: Variation,
    *,
    num_images: int | None = None,
    num_runs: int = 4,
    images_per_batch: int = 32,
    num_workers: int = 0,
    overwrite: bool = False,
    engine: Engine | None = None,
) -> Resampled:
    """Fill `folder` with scores of several answers to the questions on the first images of `test`.

    Returns all that is there then. Raises ValueError for fewer than two runs, where no question can be asked
    in so many ways, where task or backbone are not those that labelled, and where the folder holds another
    variation, unless that is to be replaced (`overwrite`), or more than is asked for.
    """
    if num_runs < 2:
        raise ValueError(f"num_runs={num_runs} leaves no other run to choose by: take 2 or more")
    labels = folder.path.parent
    check_data(task, read_manifest(labels), labels)
    own = {key: test.fingerprints[key] for key in backbone.fingerprints}
    check_fingerprints(own, backbone.fingerprints, "the labels", f"backbone {backbone.name}")
    folder.begin(test.sample_id, overwrite=overwrite)
    every = list_samples(test)
    samples = [sample for sample in every if variation.suits(sample, num_runs)]
    if not samples:
        raise ValueError(
            f"no test question of {labels} can be asked in {num_runs} different ways: take a smaller "
            "num_runs or another variation"
        )
    if len(samples) < len(every):
        left_out = len(every) - len(samples)
        log.info("left out: %d of %d questions, with no %d ways to ask", left_out, len(every), num_runs)
    # What was answered is, beside what is right, the likeliest answer.
    guesses = {sample.sample_id: tuple(answers) for sample, answers in zip(every, test.answer, strict=True)}
    job = ResampleJob(
        task,
        backbone,
        folder,
        variation,
        samples,
        guesses,
        num_images,
        num_runs,
        images_per_batch,
        num_workers,
    )
    blocks = {block.name: [sample.sample_id for sample in block.samples] for block in job.blocks()}
    folder.refuse_less(blocks, num_runs)
    done = {name for name, samples in blocks.items() if folder.holds(name, samples, num_runs)}
    run(engine or LocalEngine(), job, {name: len(samples) for name, samples in blocks.items()}, done)
    resampled = read_resampled(labels, test)
    if resampled is None:
        raise ValueError(f"num_images={num_images} of {labels} have no question: nothing was drawn")
    return resampled


def list_samples(table: OutcomeTable) -> list[Sample]:
    """The samples of an outcome table of the test split."""
    return [
        Sample(
            sample_id=table.sample_id[row],
            image_id=table.image_id[row],
            task=table.task[row],
            split="test",
            question=table.question[row],
            references=tuple(table.references[row]),
            metric=table.metric[row],
            attributes=table.attributes[row],
        )
        for row in range(len(table))
    ]


if __name__ == "__main__":
    main()
