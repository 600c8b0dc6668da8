"""Test questions answered several times at random: `python -m experiments.resample`, on finished labels.

An oracle that takes the best of noisy outcomes flatters. From several runs one can choose by the others and
score on one (`experiments.evaluation.oracles`), also where the likelihood of a reference tells nothing. The
scores go beside the labels, and evaluation shows the oracle from then on.
"""

from pathlib import Path

import numpy as np
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from experiments.config import entry_point
from experiments.evaluation.resampled import Resampled, write_resampled
from experiments.held_out import read_test
from experiments.label import format_command
from experiments.scorers import score
from experiments.tasks.base import Task, check_data
from m3_backbone.llava import LlavaBackbone
from m3_backbone.outcomes import OutcomeTable, check_fingerprints
from m3_backbone.sampling import draw_answers


@entry_point("resample")
def main(config: DictConfig) -> None:
    labels, hydra = Path(config.paths.labels), HydraConfig.get()
    command = format_command(str(hydra.job.config_name), list(hydra.overrides.task))
    configuration = OmegaConf.to_yaml(config, resolve=True)
    test = read_test(labels, command=command, configuration=configuration)[0].outcomes
    task = instantiate(config.task, _convert_="all")
    check_data(task, test.fingerprints["data"], labels)
    backbone = instantiate(config.backbone, _convert_="all")
    resampled = resample_answers(
        backbone,
        task,
        test,
        num_images=config.num_images,
        num_runs=config.num_runs,
        temperature=config.temperature,
        batch_size=config.batch_size,
        seed=config.seed,
    )
    path = write_resampled(labels, test, resampled)
    means = ", ".join(
        f"{scale}: {100 * value:.1f}%"
        for scale, value in zip(test.scales, resampled.score.mean((0, 1)), strict=True)
    )
    print(f"{len(resampled.rows):,} questions, {config.num_runs} answers each; scores {means}\n{path}")


def resample_answers(
    backbone: LlavaBackbone,
    task: Task,
    test: OutcomeTable,
    *,
    num_images: int,
    num_runs: int,
    temperature: float = 1.0,
    batch_size: int = 32,
    seed: int = 0,
) -> Resampled:
    """Scores of drawn answers to all questions on the first `num_images` images of the table.

    Raises ValueError for fewer than two runs, and where the backbone is not the one that labelled.
    """
    if num_runs < 2:
        raise ValueError(f"num_runs={num_runs} leaves no other run to choose by: take 2 or more")
    own = {key: test.fingerprints[key] for key in backbone.fingerprints}
    check_fingerprints(own, backbone.fingerprints, "the labels", f"backbone {backbone.name}")
    wanted = set(list(dict.fromkeys(test.image_id))[:num_images])
    rows = np.array([row for row, image in enumerate(test.image_id) if image in wanted])
    images = {image: task.image(str(image)) for image in wanted}
    questions = [(images[test.image_id[row]], str(test.question[row])) for row in rows]
    scores = np.zeros((num_runs, len(rows), len(test.scales)))
    with tqdm(total=scores[0].size, desc="drawn answers", unit=" questions") as progress:
        for column, scale in enumerate(test.scales):
            drawn = draw_answers(
                backbone,
                questions,
                scale,
                num_runs=num_runs,
                temperature=temperature,
                batch_size=batch_size,
                seed=seed,
            )
            for place, (row, answers) in enumerate(zip(rows, drawn, strict=True)):
                references, metric = test.references[row], str(test.metric[row])
                scores[:, place, column] = [score(metric, answer, references) for answer in answers]
                progress.update()
    return Resampled(rows, scores)


if __name__ == "__main__":
    main()
