"""Protocol of a frozen model that answers questions about an image at any scale."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image

from m3_backbone.features import GROUPS, ImageFeatures
from m3_backbone.images import to_rgb
from m3_backbone.ladder import Family
from m3_backbone.views import Panel

if TYPE_CHECKING:
    from torch import Tensor

    from m3_backbone.decoding.decoding import DecoderState
    from m3_backbone.decoding.sampling import Draw

NO_STATES = "{name} gives no states of its decoder: set decoder_state=false, also in features of predictors"
NOT_FINITE = "the backbone returned numbers that are not finite: does its dtype overflow?"


class EncodedImage(Protocol):
    """An image that a backbone has encoded. Only its size is public."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the image in pixels."""
        ...


@dataclass(frozen=True)
class Answer:
    """A generated answer and its likelihood.

    `token_ids` include the end token if it was generated. `confidence`, in [0, 1], is the product of the
    probabilities of these tokens. `margin`, in nats, is the smallest difference in log-probability between a
    generated token and the best other token; it is negative if a sampled token was not the best one. `nll` is
    the smallest mean negative log-likelihood per token (nats, end token included) over the distinct
    references as written, and `reference_tokens` is the number of tokens of that reference; both are None
    without references. Other spellings that a metric accepts, such as "Yes." for "yes", are not considered.
    `state` is the state of the decoder before the answer, if it was asked for. `entropy`, in nats, is the
    mean over the tokens of the entropy of the distribution from which each was chosen (mean token entropy,
    Fomicheva et al., TACL 2020); None for backbones that do not give it.
    """

    text: str
    token_ids: list[int]
    confidence: float
    margin: float
    nll: float | None
    reference_tokens: int | None
    state: "DecoderState | None" = field(default=None, repr=False, compare=False)
    entropy: float | None = None

    def check_finite(self) -> None:
        """Raise ValueError if `confidence`, `nll`, `entropy` or `state` is not finite."""
        if not all(math.isfinite(number or 0.0) for number in (self.confidence, self.nll, self.entropy)):
            raise ValueError(NOT_FINITE)
        if self.state is not None and not self.state.is_finite():
            raise ValueError(NOT_FINITE)


class PrefilledQuestions(Protocol):
    """Questions about images after the prefill at one scale, before their answers."""

    @property
    def states(self) -> "list[DecoderState]":
        """State of the decoder after each question."""
        ...

    def answer(
        self,
        numbers: Sequence[int],
        num_tokens: int | None = None,
        watch: Callable[[int, list[int]], None] | None = None,
    ) -> list[Answer]:
        """Answers to the questions of these numbers, decoded from their prefill.

        With `num_tokens`, each answer has that many tokens, whatever they are: for timings of long answers.
        `watch` is called with a number and the tokens of its answer so far, whenever the answer grows.
        """
        ...


def check_scale(scale: int, scales: Sequence[int]) -> int:
    """Return `scale`. Raises ValueError that lists `scales` if it is not one of them."""
    if scale not in scales:
        possible = ", ".join(map(str, scales))
        raise ValueError(f"scale {scale} is not on the ladder of this backbone: choose one of {possible}")
    return scale


class Backbone(Protocol):
    """A frozen model that answers questions about images, and describes images, at any of its scales.

    `scales` are in ascending order. Each is a nominal number of visual tokens. The actual number depends on
    the size of the image, and two scales may give an image the same tokens. The scale is an argument of every
    method that depends on it; for an unknown scale the method raises ValueError that lists `scales`.

    What one vision pass serves is the `family` of the backbone:

        pooled       all scales: the tokens of every scale come from one encoding of the image (M3, nested
                     queries)
        thumbnail    the coarsest scale is one tile of every finer one, and is encoded once for both
        native       one scale: every scale encodes the image at another resolution

    The vision pass of a scale runs when `answer` or `compute_features` first needs that scale, for all images
    of the call together, and its result is kept in the encoded image.

    Two scales that give an image the same number of visual tokens coincide: ladders are monotone, so the
    tokens themselves are equal. They have equal answers; `m3_backbone.ladder` finds them.

    Attributes:
        name: name of the backbone in the labels that it makes.
        family: what one vision pass serves, as above.
    """

    name: str
    family: Family

    @property
    def scales(self) -> tuple[int, ...]: ...

    @property
    def feature_scales(self) -> tuple[int, ...]:
        """Scales whose visual tokens predictors read by default, coarsest first.

        They cost no vision pass but that of the coarsest scale.
        """
        ...

    @property
    def fingerprints(self) -> dict[str, str]:
        """Hex digests of `weights`, `prompt` and `decoding`. Outcomes with equal digests may be mixed."""
        ...

    def num_visual_tokens(self, image_size: tuple[int, int], scale: int) -> int:
        """Number of visual tokens that enter the decoder for an image of (width, height) pixels."""
        ...

    @property
    def has_equal_passes(self) -> bool:
        """Whether the vision passes of all scales cost the same; by default, that of a pooled backbone."""
        return self.family == "pooled"

    def vision_flops(self, image_size: tuple[int, int], scale: int) -> int:
        """Floating-point operations of the vision pass that an answer at `scale` needs by itself.

        The number is the same at every scale of a pooled backbone. That of a thumbnail backbone includes the
        vision pass of the coarsest scale.
        """
        ...

    def prefill_flops(self, image_size: tuple[int, int], question: str, scale: int) -> int:
        """Floating-point operations of the decoder on the prompt, until the first token of the answer."""
        ...

    def decode_flops_per_token(self) -> int:
        """Floating-point operations of each further token of an answer, without attention."""
        ...

    def check_image(self, image_size: tuple[int, int]) -> None:
        """Raise ValueError if an image of (width, height) pixels cannot be encoded at some scale."""
        ...

    def encode(self, images: Sequence[Image.Image]) -> Sequence[EncodedImage]:
        """Encoded images for the other methods, in order.

        Raises UnreadableImage if `to_rgb` fails on one, ValueError as in `check_image`.
        """
        ...

    def view_image(self, image: Image.Image, scale: int) -> tuple[Panel, ...]:
        """Pictures that the vision pass of a scale reads, with their grids of visual tokens, for people.

        By default the image itself, without a grid. Raises ValueError as in `check_image`.
        """
        check_scale(scale, self.scales)
        self.check_image(image.size)
        return (Panel(to_rgb(image)),)

    def compute_features(
        self, encoded: Sequence[EncodedImage], scales: Collection[int], groups: Collection[str] = GROUPS
    ) -> list[ImageFeatures]:
        """Features of each image for predictors: visual tokens at `scales` and statistics of `groups`."""
        ...

    def make_thumbnails(self, encoded: Sequence[EncodedImage], side: int) -> list[np.ndarray]:
        """Each image resized to a square, uint8 `[side, side, 3]` (`m3_backbone.features.make_thumbnail`).

        Only predictors that read thumbnails need it.
        """
        raise ValueError(f"{self.name} has no make_thumbnails, which a predictor that reads thumbnails needs")

    def answer(
        self,
        encoded: Sequence[EncodedImage],
        questions: Sequence[str],
        scale: int,
        *,
        references: Sequence[Sequence[str]] | None = None,
        drafts: Sequence[Answer] | None = None,
        draws: "Sequence[Draw] | None" = None,
    ) -> list[Answer]:
        """Answers to questions[i] about encoded[i]: greedy, or sampled with draws[i].

        Questions about the same EncodedImage share its prefix. `references` are the reference answers of
        each question, for `Answer.nll`. `drafts` are answers to the same questions at another scale; a draft
        that matches the answer makes decoding faster. Neither references nor drafts change an answer.
        """
        ...

    @property
    def has_states(self) -> bool:
        """Whether the backbone gives the states of its decoder, by `prefill` and `answer_with_states`."""
        return False

    def answer_with_states(
        self,
        encoded: Sequence[EncodedImage],
        questions: Sequence[str],
        scale: int,
        *,
        references: Sequence[Sequence[str]] | None = None,
        drafts: Sequence[Answer] | None = None,
    ) -> list[Answer]:
        """Greedy answers as of `answer`, in the same passes, with `Answer.state`.

        Raises ValueError for a backbone that gives no states.
        """
        raise ValueError(NO_STATES.format(name=self.name))

    def prefill(
        self, encoded: Sequence[EncodedImage], questions: Sequence[str], scale: int
    ) -> PrefilledQuestions:
        """Run questions[i] about encoded[i] through the decoder, for its states, without answering.

        The keys and values of all questions stay on the device as long as the result does. Raises ValueError
        for a backbone that gives no states.
        """
        raise ValueError(NO_STATES.format(name=self.name))

    def check_question(self, question: str, references: Sequence[str] = (), scale: int | None = None) -> None:
        """Raise ValueError for a question that cannot be answered at `scale`; by default, at every scale.

        The question must not be empty or contain control tokens. Together with the visual tokens and an
        answer or a reference, it must fit into the context. The references must be possible to score.
        """
        ...

    def question_ids(self, question: str) -> list[int]:
        """Token ids of the question alone, without special tokens."""
        ...

    def token_embeddings(self) -> "Tensor":
        """Frozen input embeddings of the decoder, `[vocabulary, hidden]`, on the CPU."""
        ...
