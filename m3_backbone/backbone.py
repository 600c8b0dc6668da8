"""Protocol of a frozen model that answers questions about an image at any scale."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image
from torch import Tensor

from m3_backbone.decoding.sampling import Draw
from m3_backbone.features import GROUPS, ImageFeatures

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
    """

    text: str
    token_ids: list[int]
    confidence: float
    margin: float
    nll: float | None
    reference_tokens: int | None

    def check_finite(self) -> None:
        """Raise ValueError if `confidence` or `nll` is not finite."""
        if not (math.isfinite(self.confidence) and (self.nll is None or math.isfinite(self.nll))):
            raise ValueError(NOT_FINITE)


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

    A backbone encodes an image either once for all scales or at a different resolution for each scale. In the
    second case, the vision pass of a scale runs when `answer` or `compute_features` first needs that scale,
    for all images of the call together, and its result is kept in the encoded image.

    Attributes:
        name: name of the backbone in the labels that it makes.
    """

    name: str

    @property
    def scales(self) -> tuple[int, ...]: ...

    @property
    def fingerprints(self) -> dict[str, str]:
        """Hex digests of `weights`, `prompt` and `decoding`. Outcomes with equal digests may be mixed."""
        ...

    def num_visual_tokens(self, image_size: tuple[int, int], scale: int) -> int:
        """Number of visual tokens that enter the decoder for an image of (width, height) pixels."""
        ...

    def vision_flops(self, image_size: tuple[int, int], scale: int) -> int:
        """Floating-point operations of the vision pass that an answer at `scale` needs.

        The number is the same at every scale if one vision pass serves all scales.
        """
        ...

    def prefill_flops(self, image_size: tuple[int, int], question: str, scale: int) -> int:
        """Floating-point operations of the decoder on the prompt, until the first token of the answer."""
        ...

    def encode(self, images: Sequence[Image.Image]) -> Sequence[EncodedImage]:
        """Encoded images for the other methods, in order. Raises UnreadableImage if `to_rgb` fails on one."""
        ...

    def compute_features(
        self, encoded: Sequence[EncodedImage], scales: Collection[int], groups: Collection[str] = GROUPS
    ) -> list[ImageFeatures]:
        """Features of each image for predictors: visual tokens at `scales` and statistics of `groups`."""
        ...

    def answer(
        self,
        encoded: Sequence[EncodedImage],
        questions: Sequence[str],
        scale: int,
        *,
        references: Sequence[Sequence[str]] | None = None,
        drafts: Sequence[Answer] | None = None,
        draws: Sequence[Draw] | None = None,
    ) -> list[Answer]:
        """Answers to questions[i] about encoded[i]: greedy, or sampled with draws[i].

        Questions about the same EncodedImage share its prefix. `references` are the reference answers of
        each question, for `Answer.nll`. `drafts` are answers to the same questions at another scale; a draft
        that matches the answer makes decoding faster. Neither references nor drafts change an answer.
        """
        ...

    def check_question(self, question: str, references: Sequence[str] = (), scale: int | None = None) -> None:
        """Raise ValueError for a question that cannot be answered at `scale`; by default, at every scale.

        The question must not be empty or contain control tokens. Together with the visual tokens and an
        answer or a reference, it must fit into the context. The references must be possible to score.
        """
        ...

    def question_ids(self, question: str) -> list[int]:
        """Token ids of the question alone, without special tokens."""
        ...

    def token_embeddings(self) -> Tensor:
        """Frozen input embeddings of the decoder, `[vocabulary, hidden]`, on the CPU."""
        ...
