"""Write the model card of an embedded backbone from its labels.

Reads the labels of the backbone on its tasks and writes, per task, the accuracy at every scale, overall and
per question type, compared with a blind answerer and the oracle, and how well models predict the choice of
the oracle. The models are fitted on the other splits, and their comparison on the test split is recorded like
an evaluation, with a digest of each model.

Examples:
    tokenscale model_card output=card.md                       # from the labels of all three tasks
    tokenscale model_card output=card.md '~labels.easy_vqa'    # without one task
    tokenscale model_card output=card.md labels.scenes=FOLDER  # labels from another folder
"""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from experiments.command_line.entry_point import entry_point
from experiments.command_line.running import make_recorder


@entry_point("model_card")
def main(config: DictConfig) -> None:
    from experiments.backbone.model_card import judge, render_card
    from m3_backbone.outcomes.shards import write_text

    recorder = make_recorder(config, OmegaConf.to_yaml(config.labels, resolve=True))
    tables = [judge(name, Path(folder), recorder) for name, folder in config.labels.items()]
    facts = {key: str(value) for key, value in config.facts.items()}
    path = Path(config.output)
    write_text(path, render_card(tables, facts))
    print(f"model card: {path}")


if __name__ == "__main__":
    main()
