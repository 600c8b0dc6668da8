"""Selection of the features of a sample that a predictor reads, and their cost."""

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Self

import numpy as np

from m3_backbone.arguments import NonNegativeInt, PositiveInt, check_argument, read_hints
from m3_backbone.features import (
    GROUPS,
    OPERATIONS_PER_PIXEL,
    THUMBNAIL_OPERATIONS_PER_PIXEL,
    count_tower_operations,
)
from m3_backbone.ladder import find_coarsest
from m3_backbone.outcomes.labels import Inputs, Labels, VisualTokens
from m3_backbone.outcomes.table import OutcomeTable
from predictor.encoders import SentenceEncoder, load_sentence_encoder
from predictor.folder import Buildable

# Probabilities of tokens are kept this far from 0 and 1, so that their log-odds are finite.
_LEAST = 1e-6
# Largest number of tokens to which an image is resampled; more would make rows of predictors very long.
MOST_SEGMENTS = 16


@dataclass(frozen=True)
class Features(Buildable):
    """Features of a sample that a predictor reads.

    Args:
        visual: one or several scales whose visual tokens are read; empty for none, and None for those at
            `position`.
        position: one or several positions among the scales whose visual tokens the labels hold: 0 for the
            coarsest, 1 for the next one, and so on; a higher position than there are means the finest. `fit`
            replaces positions by scales (`resolve`). Positions are dropped if `visual` is given.
        question: whether the question is read, as token ids of the decoder's frozen embeddings.
        statistics: groups of image statistics (`tower`, `image`) or single ones (`image/entropy`); see
            `m3_backbone.features`.
        sentences: sentence encoders whose concatenated vectors of the question are read: `hashed_words`,
            `wordllama`, or folders or hub ids of other encoders; "" for none. See `predictor.encoders`.
        decoder_state: whether the decoder's hidden state after image and question at the coarsest scale is
            read, with the probability of the answer's first token. It costs the vision pass and the prefill
            of that scale.
        self_asking: whether the log-odds with which the model says that it can answer from the coarsest scale
            are read. `fit` replaces True by the prompt of the labels, so that a fitted predictor asks in the
            same words. It costs the vision pass of that scale and a prefill of its own.
        thumbnail: pixels a side of the square thumbnail that is read, for networks with an image encoder of
            their own; None for none.

    Raises ValueError for values of another type and for unknown statistics.
    """

    visual: PositiveInt | Sequence[PositiveInt] | None = None
    question: bool = False
    statistics: str | Sequence[str] = ()
    sentences: str | Sequence[str] = ""
    position: NonNegativeInt | Sequence[NonNegativeInt] | None = None
    decoder_state: bool | None = None
    self_asking: bool | str | None = None
    thumbnail: PositiveInt | None = None

    def __post_init__(self) -> None:
        for name, annotation in read_hints(Features).items():
            check_argument(name, getattr(self, name), annotation)
        if self.visual is None and self.position is not None:
            object.__setattr__(self, "position", _sort(self.position))
        else:
            object.__setattr__(self, "visual", _sort(self.visual))
            object.__setattr__(self, "position", None)
        # None, not False, which would change the identity of predictors that were trained earlier.
        object.__setattr__(self, "decoder_state", self.decoder_state or None)
        object.__setattr__(self, "self_asking", self.self_asking or None)
        object.__setattr__(self, "statistics", _to_tuple(self.statistics))
        # A single encoder stays a string, as in the records of predictors that were trained earlier.
        encoders = tuple(dict.fromkeys(_to_tuple(self.sentences)))
        object.__setattr__(self, "sentences", encoders if len(encoders) > 1 else "".join(encoders))
        for name in self.statistics:
            if name.split("/")[0] not in GROUPS:
                raise ValueError(f"no statistics {name!r}: choose among {', '.join(GROUPS)}, or none")

    @classmethod
    def union(cls, *features: "Features") -> "Features":
        """Return the features that any of `features` reads: the union of the values of each field.

        Positions are dropped if some of the features read scales and others positions. Raises ValueError for
        thumbnails of different sizes, and for self-asking with different prompts.
        """
        sides = {part.thumbnail for part in features} - {None}
        if len(sides) > 1:
            raise ValueError(
                f"parts of a predictor read thumbnails of {sorted(filter(None, sides))} pixels a side, and "
                "labels hold one size: give all of them the same"
            )
        prompts = {part.self_asking for part in features} - {None}
        if len(prompts) > 1:
            raise ValueError(
                "parts of a predictor read self-asking with different prompts, and labels hold one: give "
                "all of them self_asking=true"
            )
        merged: dict[str, Any] = {
            "thumbnail": next(iter(sides), None),
            "self_asking": next(iter(prompts), None),
        }
        for field in fields(cls):
            if field.name in merged:
                continue
            values = [value for part in features if (value := getattr(part, field.name)) is not None]
            if values and all(isinstance(value, bool) for value in values):
                merged[field.name] = any(values)
            else:
                items = [item for value in values for item in _to_tuple(value)]
                merged[field.name] = tuple(dict.fromkeys(items))
        merged["decoder_state"] = any(part.decoder_state for part in features)
        # None and empty differ in these two fields only.
        merged |= {name: merged[name] or None for name in ("visual", "position")}
        return cls(**merged)

    def resolve(self, stored: Iterable[int], asking_prompt: str | None = None) -> Self:
        """Return these features with scales in place of positions among the `stored` scales.

        `self_asking` becomes `asking_prompt`, if it is True and there is one. Raises ValueError if a position
        is read and no scale is stored.
        """
        if self.self_asking is True and asking_prompt is not None:
            return replace(self, self_asking=asking_prompt).resolve(stored)
        if self.visual is not None:
            return self
        assert isinstance(self.position, tuple)
        ladder = sorted(stored)
        if not ladder:
            raise ValueError(
                f"visual tokens at position {', '.join(map(str, self.position))} are read, but none were "
                "kept in labelling: label again with other feature_scales"
            )
        last = len(ladder) - 1
        return replace(self, visual=[ladder[min(position, last)] for position in self.position])

    @property
    def scales(self) -> tuple[int, ...]:
        """Scales whose visual tokens are read, coarsest first.

        Raises ValueError for positions that are not resolved.
        """
        if self.visual is None:
            raise ValueError("these features name positions of scales: fit the predictor first")
        assert isinstance(self.visual, tuple)
        return self.visual

    @property
    def reads_vision(self) -> bool:
        """Whether a vision pass is needed: for visual tokens, statistics `tower`, or the decoder."""
        return bool(self.scales) or "tower" in self.groups or self.reads_decoder

    @property
    def reads_decoder(self) -> bool:
        """Whether the decoder's state or self-asking is read (`read_states`)."""
        return bool(self.decoder_state or self.self_asking)

    @property
    def reads_pixels(self) -> bool:
        """Whether an image has to be decoded for statistics of its pixels or a thumbnail.

        Width and height are known without.
        """
        return self.reads_statistics or self.thumbnail is not None

    @property
    def reads_statistics(self) -> bool:
        """Whether statistics of the pixels are read, besides width and height."""
        of_pixels = {name for name in self.statistics if name.split("/")[0] == "image"}
        return bool(of_pixels - {"image/width", "image/height"})

    def vision_scales(self, ladder: Sequence[int]) -> tuple[int, ...]:
        """Scales whose vision pass is needed on a backbone that has one for each scale of `ladder`."""
        reads_coarsest = "tower" in self.groups or self.reads_decoder
        return tuple(sorted({*self.scales, *(ladder[:1] if reads_coarsest else ())}))

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

    def read_states(self, inputs: Inputs) -> np.ndarray:
        """What is read of the decoder, float16 `[num_samples, num_columns]`; no columns if nothing is.

        The decoder's state has hidden + 1 columns, the last of which is the log-odds of the probability of
        the answer's first token. A column of self-asking follows. Raises ValueError if the labels do not hold
        what is read.
        """
        return np.column_stack([self._read_decoder_state(inputs), self._read_self_asking(inputs)])

    def _read_self_asking(self, inputs: Inputs) -> np.ndarray:
        if not self.self_asking:
            return np.zeros((len(inputs), 0), dtype=np.float16)
        if inputs.yes_log_odds is None:
            raise ValueError(
                "features.self_asking=true reads whether the model says that it can answer, but it was not "
                "asked for these labels: run `tokenscale label self_asking=true paths.labels=FOLDER` for "
                "labels in another folder, or with overwrite=true for labels in place of these"
            )
        if self.self_asking not in (True, inputs.asking_prompt):
            raise ValueError(
                f"the predictor reads self-asking with the prompt {self.self_asking!r}, and these labels "
                f"were made with {inputs.asking_prompt!r}: label or train again with the same prompt"
            )
        return inputs.yes_log_odds.astype(np.float16)[:, None]

    def _read_decoder_state(self, inputs: Inputs) -> np.ndarray:
        if not self.decoder_state:
            return np.zeros((len(inputs), 0), dtype=np.float16)
        if inputs.decoder_state is None or inputs.first_probability is None:
            raise ValueError(
                "features.decoder_state=true reads states of the decoder, but these labels hold none: run "
                "`tokenscale label decoder_state=true paths.labels=FOLDER` for labels in another folder, or "
                "with overwrite=true for labels in place of these"
            )
        probability = inputs.first_probability.astype(np.float64).clip(_LEAST, 1 - _LEAST)
        log_odds = np.log(probability / (1 - probability))
        return np.column_stack([inputs.decoder_state, log_odds.astype(np.float16)])

    def read_thumbnails(self, inputs: Inputs) -> np.ndarray | None:
        """Thumbnails of the images, uint8 `[num_images, side, side, 3]`; None if they are not read.

        Raises ValueError if the labels do not hold them, or of another size.
        """
        if self.thumbnail is None:
            return None
        present = 0 if inputs.thumbnails is None else inputs.thumbnails.shape[1]
        if present != self.thumbnail:
            raise ValueError(
                f"features.thumbnail={self.thumbnail} reads thumbnails, but these labels hold "
                f"{f'those of {present} pixels a side' if present else 'none'}: run `tokenscale label "
                f"thumbnail_size={self.thumbnail} paths.labels=FOLDER` for labels in another folder, or with "
                "overwrite=true for labels in place of these"
            )
        return inputs.thumbnails

    def fit_standard(self, inputs: Inputs) -> "Standard":
        """Fit a `Standard` to the statistics of the images, followed by the columns of `read_states`."""
        parts = [Standard.fit(self.read_statistics(inputs))]
        if self.reads_decoder:
            parts.append(Standard.fit(self.read_states(inputs).astype(np.float32)))
        return Standard(
            np.concatenate([part.mean for part in parts]), np.concatenate([part.deviation for part in parts])
        )

    def count_paid_tokens(self, inputs: Inputs) -> np.ndarray:
        """Visual tokens that an answer costs with these features, `[num_samples, num_scales]`."""
        return self.add_paid_tokens(inputs.visual_tokens)

    def add_paid_tokens(self, tokens: np.ndarray) -> np.ndarray:
        """Add to the visual tokens of answers those that the features cost, `[num_samples, num_scales]`.

        If the decoder's state is read, the tokens of the coarsest scale are added at all scales that do not
        coincide with it, since that scale was prefilled for the state. If self-asking is read, they are added
        at all scales, since it has a prompt of its own.
        """
        paid = tokens
        if self.decoder_state:
            paid = paid + np.where(find_coarsest(tokens) > 0, tokens[:, :1], 0)
        return paid + tokens[:, :1] if self.self_asking else paid

    def charge(self, labels: Labels) -> OutcomeTable:
        """Return the outcomes with the visual tokens of `count_paid_tokens` in place of the answers' own."""
        if not self.reads_decoder:
            return labels.outcomes
        return replace(labels.outcomes, visual_tokens=self.count_paid_tokens(labels.inputs))

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

        Looking up token embeddings counts as 0. If the backbone is of the pooled family, pooling takes one
        addition per scale and value of the finest tokens, and the tower statistics are those of the finest
        tokens. Backbones of other families encode a scale without pooling, and their tower statistics are
        those of the coarsest tokens. Statistics are counted as in `m3_backbone.features`; they are computed
        once per image, but counted for each of its questions. Self-asking counts in full.
        """
        is_pooled = inputs.family == "pooled"
        num_tokens = float(inputs.visual_tokens[:, -1 if is_pooled else 0].mean())
        flops = len(self.scales) * num_tokens * inputs.hidden_size if is_pooled else 0.0
        if "tower" in self.groups:
            num_scales = len(inputs.scales) if is_pooled else 0
            flops += count_tower_operations(num_tokens, inputs.hidden_size, num_scales)
        per_pixel = OPERATIONS_PER_PIXEL if self.reads_statistics else 0
        per_pixel += THUMBNAIL_OPERATIONS_PER_PIXEL if self.thumbnail else 0
        if per_pixel:
            size = [inputs.statistic_names.index(f"image/{side}") for side in ("width", "height")]
            pixels = inputs.statistics[inputs.image_row][:, size].astype(np.float64).prod(axis=1)
            flops += per_pixel * float(pixels.mean())
        if self.self_asking and inputs.asking_flops is not None:
            flops += float(inputs.asking_flops.mean())
        return flops + sum(encoder.count_flops(inputs.question) for encoder in self.encoders)


def resolve_positions(argument: Any, stored: Sequence[int], asking_prompt: str | None = None) -> Any:
    """Return an argument of a predictor with all `Features` in it resolved (`Features.resolve`).

    These are the argument itself, and the arguments and default values of a class, or a partial of a class,
    which makes an inner predictor. Other arguments are returned unchanged.
    """
    if isinstance(argument, Features):
        return argument.resolve(stored, asking_prompt)
    target = argument.func if isinstance(argument, partial) else argument
    if not (isinstance(target, type) and issubclass(target, Buildable)):
        return argument
    given = argument.keywords if isinstance(argument, partial) else {}
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(target).parameters.items()
        if parameter.default is not parameter.empty
    }
    arguments = {**defaults, **given}
    resolved = {name: resolve_positions(value, stored, asking_prompt) for name, value in arguments.items()}
    changed = {name: value for name, value in resolved.items() if value is not arguments[name]}
    return partial(target, **{**given, **changed}) if changed else argument


def fit_visual(inputs: Inputs, scales: Sequence[int], widths: Sequence[int]) -> list[VisualTokens]:
    """Return the visual tokens at each scale, with as many tokens per image as `widths` says.

    Weights of some predictors belong to positions of visual tokens. In the pooled family, tokens of all
    images correspond by position: shorter images are padded with zeros, and longer ones are cut. In the other
    families, where a larger image has more tokens in each row, each image is resampled: a token is the
    average over an equal segment of the image's tokens in reading order, as in adaptive average pooling. An
    image with the right number of tokens is unchanged.
    """
    tokens = [inputs.visual_at(scale) for scale in scales]
    if inputs.family == "pooled":
        return [visual.fit(width) for visual, width in zip(tokens, widths, strict=True)]
    return [resample(visual, width) for visual, width in zip(tokens, widths, strict=True)]


def choose_widths(inputs: Inputs, scales: Sequence[int]) -> list[int]:
    """Return the numbers of visual tokens for `fit_visual`, one per scale.

    This is the largest number of tokens of an image, and at most `MOST_SEGMENTS` if images are resampled.
    """
    longest = [inputs.visual_at(scale).mask.shape[1] for scale in scales]
    return longest if inputs.family == "pooled" else [min(length, MOST_SEGMENTS) for length in longest]


def resample(visual: VisualTokens, num_tokens: int) -> VisualTokens:
    """Return the visual tokens with `num_tokens` averages per image, as in `fit_visual`."""
    counts = visual.mask.sum(axis=1)
    if (counts == num_tokens).all() and visual.mask.shape[1] == num_tokens:
        return visual
    # Most predictors average no tokens, and torch takes seconds to import.
    from torch import from_numpy
    from torch.nn.functional import adaptive_avg_pool1d

    tokens = np.zeros((len(counts), num_tokens, visual.tokens.shape[2]), dtype=visual.tokens.dtype)
    for count in np.unique(counts[counts > 0]):
        rows = np.flatnonzero(counts == count)
        # At most a few hundred images at a time are kept in single precision.
        for part in np.array_split(rows, -(-len(rows) // 256)):
            columns = from_numpy(visual.tokens[part, :count]).float().transpose(1, 2)
            averages = adaptive_avg_pool1d(columns, num_tokens)
            tokens[part] = averages.transpose(1, 2).numpy()
    return VisualTokens(tokens, np.repeat(counts[:, None] > 0, num_tokens, axis=1))


def _sort(values: Any) -> tuple[int, ...]:
    return tuple(sorted({values} if isinstance(values, int) else set(values or ())))


def _to_tuple(value: Any) -> tuple[Any, ...]:
    """Return a value or a sequence of values as a tuple; empty for an empty or missing value."""
    if not value:
        return ()
    return (value,) if isinstance(value, str | int) else tuple(value)


@dataclass(frozen=True, eq=False)
class Standard:
    """Mean and standard deviation of numbers over the training images or samples, `[num_columns]` each."""

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

    def split(self, num_columns: int) -> tuple["Standard", "Standard"]:
        """Return those of the first `num_columns` columns and of the others."""
        first, rest = slice(num_columns), slice(num_columns, None)
        return Standard(self.mean[first], self.deviation[first]), Standard(
            self.mean[rest], self.deviation[rest]
        )

    def apply(self, statistics: np.ndarray) -> np.ndarray:
        """Return standardised statistics, float32, clipped at `LIMIT` standard deviations."""
        units = (statistics - self.mean) / self.deviation
        return np.clip(units, -self.LIMIT, self.LIMIT).astype(np.float32)
