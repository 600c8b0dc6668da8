"""Model card of an embedded backbone: accuracy per scale, compared with a blind answerer."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from experiments.evaluation.fronts import Convention, choose_as_oracle
from experiments.evaluation.known_facts import ScaleClassifiers, digest_model
from experiments.evaluation.needs import (
    describe_left_out,
    find_needed_column,
    name_total,
    pick_frequent,
    split_by_type,
)
from experiments.labels.held_out import EvaluationRecorder
from experiments.reporting.findings import describe_record
from experiments.reporting.page import render_markdown
from experiments.tasks.scoring import score
from m3_backbone.outcomes.labels import Labels, read_labels
from m3_backbone.outcomes.table import OutcomeTable
from predictor.classical.tabular import has_terms

SEEN = ("train", "calibration")
BLIND = "blind answerer"
# Settings of its logistic regression on words and pairs of words.
BLIND_SETTINGS = {"C": 10, "max_iter": 300}


def judge(name: str, labels: Path, recorder: EvaluationRecorder) -> dict[str, object]:
    """Return the content of the card for a task; the test evaluation is recorded first."""
    seen = [read_labels(labels, split) for split in SEEN]
    classifiers = ScaleClassifiers.fit(seen[0])
    test, record = recorder.open_test(labels, {**classifiers.digests, BLIND: digest_blind(seen)})
    print(f"{name}: {describe_record(record)}")
    return tabulate(name, seen, test, classifiers)


def render_card(tables: Sequence[Mapping[str, object]], facts: Mapping[str, str]) -> str:
    """Return the card as Markdown."""
    return render_markdown("model_card.md", tables=tables, **facts)


def tabulate(
    name: str, seen: Sequence[Labels], labels: Labels, classifiers: ScaleClassifiers
) -> dict[str, object]:
    """Return the content of the card for a task, scores in percent.

    `labels` is the test split, `seen` are the other splits.
    """
    test = labels.outcomes
    blind = score_blind([split.outcomes for split in seen], test)
    by_type = split_by_type(test)
    frequent = pick_frequent({question_type: int(rows.sum()) for question_type, rows in by_type.items()})
    groups = {name_total("all", frequent): np.ones(len(test), bool)}
    groups |= {question_type: by_type[question_type] for question_type in frequent}
    all_rows = np.arange(len(test))
    oracles = []
    for convention in get_args(Convention):
        chosen = choose_as_oracle(test.score, test.visual_tokens, convention)
        cost = test.visual_tokens[all_rows, chosen].mean()
        oracles.append((f"the {convention} scale", 100 * test.score[all_rows, chosen].mean(), cost))
    rows = []
    for group, members in groups.items():
        means = test.score[members].mean(axis=0, dtype=np.float64)
        needed = test.scales[find_needed_column(means)]
        rows.append((group, int(members.sum()), 100 * blind[members].mean(), (100 * means).tolist(), needed))
    return {
        "name": name,
        "scales": test.scales,
        "num_samples": len(all_rows),
        "num_images": len(np.unique(test.cluster_id)),
        "rows": rows,
        "left_out": describe_left_out(len(by_type)),
        "oracles": oracles,
        "accuracy": {name: 100 * share for name, share in classifiers.measure(labels).items()},
    }


def score_blind(seen: Sequence[OutcomeTable], test: OutcomeTable) -> np.ndarray:
    """Return the scores `[num_samples]` of a blind answerer, which reads the question only.

    It is a logistic regression on words and pairs of words, fitted on questions and first references of the
    other splits, and shows how much the questions reveal about their answers. If the questions have no words,
    or only one answer, it gives the most frequent answer.
    """
    questions = [question for table in seen for question in table.question]
    answers = [references[0] for table in seen for references in table.references]
    words = TfidfVectorizer(ngram_range=(1, 2))
    if len(set(answers)) > 1 and has_terms(words, questions):
        answerer = make_pipeline(words, LogisticRegression(**BLIND_SETTINGS))
        guesses = answerer.fit(questions, answers).predict(list(test.question))
    else:
        guesses = np.full(len(test), Counter(answers).most_common(1)[0][0], dtype=object)
    rows = zip(test.metric, guesses, test.references, strict=True)
    return np.array([score(str(metric), str(guess), references) for metric, guess, references in rows])


def digest_blind(seen: Sequence[Labels]) -> str:
    """Return a digest of the settings of the blind answerer and the labels that it is fitted on."""
    parts = [digest_model(labels, BLIND, "question", BLIND_SETTINGS, 0) for labels in seen]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]
