"""Selection of the features of a sample that a predictor reads, and their cost."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np

from m3_backbone.arguments import PositiveInt, check_argument, read_hints
from m3_backbone.features import GROUPS, OPERATIONS_PER_PIXEL, count_tower_operations
from m3_backbone.outcomes.labels import Inputs
from predictor.encoders import SentenceEncoder, load_sentence_encoder
from predictor.folder import Buildable


@dataclass(frozen=True)
class Features(Buildable):
    """Features of a sample that a predictor reads.

    Args:
        visual: one or several scales whose visual tokens are read; empty for none.
        question: whether the question is read, as token ids of the decoder's frozen embeddings.
        statistics: groups of image statistics (`tower`, `image`) or single ones (`image/entropy`); see
            `m3_backbone.features`.
        sentences: sentence encoders whose concatenated vectors of the question are read: `wordllama`, or
            folders or hub ids of other encoders; "" for none. See `predictor.encoders`.

    Raises ValueError for values of another type and for unknown statistics.
    """

    visual: PositiveInt | Sequence[PositiveInt] = ()
    question: bool = False
    statistics: str | Sequence[str] = ()
    sentences: str | Sequence[str] = ""

    def __post_init__(self) -> None:
        for name, annotation in read_hints(Features).items():
            check_argument(name, getattr(self, name), annotation)
        object.__setattr__(self, "visual", tuple(sorted(set(_to_tuple(self.visual)))))
        object.__setattr__(self, "statistics", _to_tuple(self.statistics))
        # A single encoder stays a string, as in the records of predictors that were trained earlier.
        encoders = tuple(dict.fromkeys(_to_tuple(self.sentences)))
        object.__setattr__(self, "sentences", encoders if len(encoders) > 1 else "".join(encoders))
        for name in self.statistics:
            if name.split("/")[0] not in GROUPS:
                raise ValueError(f"no statistics {name!r}: choose among {', '.join(GROUPS)}, or none")

    @classmethod
    def union(cls, *features: "Features") -> "Features":
        """Return the features that any of `features` reads: the union of the values of each field."""
        merged: dict[str, Any] = {}
        for field in fields(cls):
            values = [getattr(part, field.name) for part in features]
            if all(isinstance(value, bool) for value in values):
                merged[field.name] = any(values)
            else:
                items = [item for value in values for item in _to_tuple(value)]
                merged[field.name] = tuple(dict.fromkeys(items))
        return cls(**merged)

    @property
    def scales(self) -> tuple[int, ...]:
        """Scales whose visual tokens are read, coarsest first."""
        assert isinstance(self.visual, tuple)
        return self.visual

    @property
    def groups(self) -> tuple[str, ...]:
        """Groups of statistics of which at least one is read."""
        return tuple(
            group for group in GROUPS if any(name.split("/")[0] == group for name in self.statistics)
        )

    def statistic_columns(self, inputs: Inputs) -> list[int]:
        """Columns of `inputs.statistics` that are read. Raises ValueError if a statistic is missing."""
        columns = []
        for selected in self.statistics:
            matching = [
                column
                for column, name in enumerate(inputs.statistic_names)
                if selected in (name, name.split("/")[0])
            ]
            if not matching:
                available = ", ".join(inputs.statistic_names) or "none"
                raise ValueError(f"no statistics {selected!r} in these labels, only {available}")
            columns += matching
        return columns

    def read_statistics(self, inputs: Inputs) -> np.ndarray:
        """Selected statistics of the images, float32 `[num_images, num_statistics]`."""
        return inputs.statistics[:, self.statistic_columns(inputs)]

    @property
    def encoders(self) -> tuple[SentenceEncoder, ...]:
        """Sentence encoders whose vectors are read, loaded on first use."""
        return tuple(load_sentence_encoder(source) for source in _to_tuple(self.sentences))

    @property
    def num_sentence_columns(self) -> int:
        """Total width of the sentence encoders' vectors; 0 without an encoder."""
        return sum(encoder.width for encoder in self.encoders)

    @property
    def sentence_fingerprint(self) -> str:
        """Fingerprint of the sentence encoder, or of several joined by `+`; "" without one."""
        return "+".join(encoder.fingerprint for encoder in self.encoders)

    def check_sentences(self, fingerprint: str) -> None:
        """Raise ValueError if the fingerprint of the sentence encoders is not `fingerprint`."""
        if (present := self.sentence_fingerprint) != fingerprint:
            names = " + ".join(_to_tuple(self.sentences))
            raise ValueError(
                f"the sentence encoder {names} has changed since training ({present} instead of "
                f"{fingerprint}): restore the old one, or train again"
            )

    def read_sentences(self, inputs: Inputs) -> np.ndarray:
        """Sentence vectors of the questions, `[num_samples, num_sentence_columns]`, with mean square 1."""
        columns = [np.zeros((len(inputs), 0), dtype=np.float32)]
        for encoder in self.encoders:
            vectors = inputs.encode_questions(encoder.fingerprint, encoder.encode, encoder.width)
            columns.append(vectors * np.float32(np.sqrt(encoder.width)))
        return np.concatenate(columns, axis=1)

    def count_flops(self, inputs: Inputs) -> float:
        """Floating-point operations per sample of these features, besides those of the backbone.

        Looking up token embeddings counts as 0. Pooling takes one addition per scale and value of the finest
        tokens. Statistics are counted as in `m3_backbone.features`; they are computed once per image, but
        counted for each of its questions.
        """
        num_tokens = float(inputs.visual_tokens[:, -1].mean())
        flops = len(self.scales) * num_tokens * inputs.hidden_size
        if "tower" in self.groups:
            flops += count_tower_operations(num_tokens, inputs.hidden_size, len(inputs.scales))
        if "image" in self.groups:
            size = [inputs.statistic_names.index(f"image/{side}") for side in ("width", "height")]
            pixels = inputs.statistics[inputs.image_row][:, size].astype(np.float64).prod(axis=1)
            flops += OPERATIONS_PER_PIXEL * float(pixels.mean())
        return flops + sum(encoder.count_flops(inputs.question) for encoder in self.encoders)


def _to_tuple(value: Any) -> tuple[Any, ...]:
    """Return a value or a sequence of values as a tuple; empty for an empty or missing value."""
    if not value:
        return ()
    return (value,) if isinstance(value, str | int) else tuple(value)


@dataclass(frozen=True, eq=False)
class Standard:
    """Mean and standard deviation of statistics over the training images, `[num_statistics]` each."""

    mean: np.ndarray
    deviation: np.ndarray

    # Standardised values are clipped at this number of deviations.
    LIMIT = 5.0

    @classmethod
    def fit(cls, statistics: np.ndarray) -> Self:
        """Fit to statistics `[num_images, num_statistics]`. A constant statistic is not rescaled."""
        deviation = statistics.std(axis=0, dtype=np.float64)
        mean = statistics.mean(axis=0, dtype=np.float64)
        return cls(
            mean.astype(np.float32),
            np.where(deviation > 1e-6 * (1 + np.abs(mean)), deviation, 1).astype(np.float32),
        )

    def apply(self, statistics: np.ndarray) -> np.ndarray:
        """Return standardised statistics, float32, clipped at `LIMIT` standard deviations."""
        units = (statistics - self.mean) / self.deviation
        return np.clip(units, -self.LIMIT, self.LIMIT).astype(np.float32)
