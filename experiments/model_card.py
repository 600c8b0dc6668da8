"""The model card of an embedded backbone: `python -m experiments.model_card`.

Reads the labels of the backbone on its tasks and writes, per task, the accuracy at every scale over all
questions and per kind, beside that of a blind answerer, and the oracle.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
from jinja2 import Environment, PackageLoader
from omegaconf import DictConfig
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from experiments.config import entry_point
from experiments.fronts import Convention, choose_as_oracle
from experiments.scorers import score
from experiments.tasks.base import SPLITS
from m3_backbone.outcomes import OutcomeTable


@entry_point("model_card")
def main(config: DictConfig) -> None:
    labels = {name: Path(folder) for name, folder in config.labels.items()}
    tables = [tabulate(name, folder) for name, folder in labels.items()]
    facts = {key: str(value) for key, value in config.facts.items()}
    path = Path(config.output)
    path.write_text(render_card(tables, facts), encoding="utf-8")
    print(f"model card: {path}")


def render_card(tables: Sequence[Mapping[str, object]], facts: Mapping[str, str]) -> str:
    """The card as Markdown."""
    environment = Environment(loader=PackageLoader("experiments"), trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("model_card.md").render(tables=tables, **facts)


def tabulate(name: str, folder: Path) -> dict[str, object]:
    """What the card says of one task, from the test split of its labels; scores in percent."""
    train, calibration, test = (OutcomeTable.read(folder, split) for split in SPLITS)
    blind = score_blind([train, calibration], test)
    rows = [("all", np.ones(len(test.kind), bool))]
    rows += [(str(kind), test.kind == kind) for kind in np.unique(test.kind)]
    every = np.arange(len(test.score))
    oracles = []
    for convention in get_args(Convention):
        chosen = choose_as_oracle(test.score, test.visual_tokens, convention)
        cost = test.visual_tokens[every, chosen].mean()
        oracles.append((f"the {convention} scale", 100 * test.score[every, chosen].mean(), cost))
    return {
        "name": name,
        "scales": test.scales,
        "num_samples": len(every),
        "num_images": len(np.unique(test.image_id)),
        "rows": [
            (kind, int(mine.sum()), 100 * blind[mine].mean(), (100 * test.score[mine].mean(axis=0)).tolist())
            for kind, mine in rows
        ],
        "oracles": oracles,
    }


def score_blind(seen: Sequence[OutcomeTable], test: OutcomeTable) -> np.ndarray:
    """Scores `[num_samples]` of an answerer that reads the question alone.

    Logistic regression on the question's words and pairs of words, from the questions and first references
    of the other splits: what the questions give away about their answers.
    """
    questions = [question for table in seen for question in table.question]
    answers = [references[0] for table in seen for references in table.references]
    answerer = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(C=10, max_iter=300))
    guesses = answerer.fit(questions, answers).predict(list(test.question))
    rows = zip(test.metric, guesses, test.references, strict=True)
    return np.array([score(str(metric), str(guess), references) for metric, guess, references in rows])


if __name__ == "__main__":
    main()
