"""Joint labels of several tasks or backbones, to train one predictor on all of them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import compress
from typing import Any

import numpy as np

from m3_backbone.outcomes.labels import Inputs, Labels, VisualTokens
from m3_backbone.outcomes.table import CLUSTER, OutcomeTable


def join_labels(parts: Mapping[str, Labels]) -> Labels:
    """Join the labels in `parts` (task name -> labels); images and samples are renamed `task/id`.

    All fingerprints except that of the data have to agree; the joint data fingerprint is a digest of those of
    the parts. Visual tokens are kept at the scales that every part has. Raises ValueError for no parts, and
    for parts of different backbones, scales or image statistics.
    """
    if not parts:
        raise ValueError("there are no labels to join: name at least one task")
    tables, names = [part.outcomes for part in parts.values()], list(parts)
    data = hashlib.sha256("\n".join(table.fingerprints["data"] for table in tables).encode())
    joint = {"data": tables[0].fingerprints["data"] if len(tables) == 1 else data.hexdigest()[:16]}
    outcomes = OutcomeTable.concat(
        replace(
            table,
            fingerprints={**table.fingerprints, **joint},
            sample_id=_rename(name, table.sample_id),
            image_id=_rename(name, table.image_id),
            attributes=[_rename_cluster(name, attributes) for attributes in table.attributes],
            origin=f"labels of {name}",
        )
        for name, table in zip(names, tables, strict=True)
    )
    return Labels(inputs=_join_inputs([part.inputs for part in parts.values()], names), outcomes=outcomes)


def as_backbone(labels: Labels, like: Labels) -> Labels:
    """Return labels as if the backbone of `like` had answered: the scale of each outcome is that of its rank.

    Only inputs that no backbone computes are kept: the text of the question, statistics of the pixels and
    thumbnails. Raises ValueError for ladders of different lengths.
    """
    outcomes, other = labels.outcomes, like.outcomes
    if len(outcomes.scales) != len(other.scales):
        raise ValueError(
            f"{outcomes.origin} has {len(outcomes.scales)} scales, {other.origin} {len(other.scales)}: "
            "scales are mapped by rank, which needs as many of both, so choose other source_backbones"
        )
    backbone = {key: value for key, value in other.fingerprints.items() if key != "data"}
    columns = [name.split("/")[0] == "image" for name in labels.inputs.statistic_names]
    inputs = replace(
        labels.inputs,
        scales=other.scales,
        family=other.family,
        question_ids=[np.zeros(0, dtype=np.int64)] * len(labels),
        visual={},
        statistics=labels.inputs.statistics[:, columns],
        statistic_names=tuple(compress(labels.inputs.statistic_names, columns)),
        token_embeddings=like.inputs.token_embeddings,
        decoder_state=None,
        first_probability=None,
    )
    outcomes = replace(
        outcomes,
        scales=other.scales,
        family=other.family,
        fingerprints={**outcomes.fingerprints, **backbone},
        decoder_state=None,
        first_probability=None,
    )
    return Labels(inputs=inputs, outcomes=outcomes)


def _rename_cluster(task: str, attributes: dict[str, Any]) -> dict[str, Any]:
    cluster = attributes.get(CLUSTER)
    return attributes if cluster is None else {**attributes, CLUSTER: f"{task}/{cluster}"}


def _rename(task: str, names: np.ndarray) -> np.ndarray:
    return np.array([f"{task}/{name}" for name in names], dtype=object)


def _join_inputs(parts: Sequence[Inputs], names: Sequence[str]) -> Inputs:
    first = parts[0]
    for name, part in zip(names, parts, strict=True):
        if part.statistic_names != first.statistic_names:
            raise ValueError(
                f"the labels of {name} have other image statistics than those of {names[0]}: label both again"
            )
    num_images = [len(part.statistics) for part in parts]
    before = np.cumsum([0, *num_images[:-1]])
    is_same_prompt = len({part.asking_prompt for part in parts}) == 1
    shared = [scale for scale in first.visual if all(scale in part.visual for part in parts)]
    return Inputs(
        scales=first.scales,
        question=[question for part in parts for question in part.question],
        task=np.concatenate([part.task for part in parts]),
        question_ids=[ids for part in parts for ids in part.question_ids],
        image_row=np.concatenate([part.image_row + start for part, start in zip(parts, before, strict=True)]),
        visual={scale: _join_visual([part.visual[scale] for part in parts]) for scale in shared},
        statistics=np.concatenate([part.statistics for part in parts]),
        statistic_names=first.statistic_names,
        token_embeddings=first.token_embeddings,
        visual_tokens=np.concatenate([part.visual_tokens for part in parts]),
        family=first.family,
        decoder_state=_join_optional([part.decoder_state for part in parts]),
        first_probability=_join_optional([part.first_probability for part in parts]),
        yes_log_odds=_join_optional([part.yes_log_odds for part in parts]) if is_same_prompt else None,
        asking_flops=_join_optional([part.asking_flops for part in parts]) if is_same_prompt else None,
        asking_prompt=first.asking_prompt if is_same_prompt else None,
        thumbnails=_join_optional([part.thumbnails for part in parts]),
    )


def _join_optional(parts: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """Join arrays; None if a part has none."""
    present = [part for part in parts if part is not None]
    return np.concatenate(present) if len(present) == len(parts) else None


def _join_visual(parts: Sequence[VisualTokens]) -> VisualTokens:
    longest = max(part.mask.shape[1] for part in parts)
    padded = [part.fit(longest) for part in parts]
    return VisualTokens(
        np.concatenate([part.tokens for part in padded]), np.concatenate([part.mask for part in padded])
    )
