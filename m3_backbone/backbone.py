"""Protocol of a frozen model that answers questions about an image at any scale."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image
from torch import Tensor

from m3_backbone.decoding.sampling import Draw
from m3_backbone.features import GROUPS, ImageFeatures

NOT_FINITE = "the backbone gave numbers that are not finite: does its dtype overflow?"


class EncodedImage(Protocol):
    """An image that a backbone has encoded; all but its size is private to that backbone."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the picture in pixels."""
        ...


@dataclass(frozen=True)
class Answer:
    """A generated answer and its likelihood.

    `token_ids` include the end token if it was generated. `confidence`, in [0, 1], is the product of the
    probabilities of these tokens. `margin`, in nats, is the smallest lead of one of them over the best other
    token; it is negative where a sampled answer took another token than the best. `nll` is the smallest mean
    negative log-likelihood per token, end token included, over the distinct references as they are written,
    and `reference_tokens` the number of tokens of that reference; both are None without references. Other
    forms that a metric accepts, such as "Yes." for "yes", are not considered.
    """

    text: str
    token_ids: list[int]
    confidence: float
    margin: float
    nll: float | None
    reference_tokens: int | None

    def check_finite(self) -> None:
        """Raise ValueError if numbers of the decoder overflowed."""
        if not (math.isfinite(self.confidence) and (self.nll is None or math.isfinite(self.nll))):
            raise ValueError(NOT_FINITE)


def check_scale(scale: int, scales: Sequence[int]) -> int:
    """Return the scale. Raises ValueError, naming `scales`, if it is not among them."""
    if scale not in scales:
        possible = ", ".join(map(str, scales))
        raise ValueError(f"scale {scale} is not on the ladder of this backbone: choose one of {possible}")
    return scale


class Backbone(Protocol):
    """A frozen model that answers and describes images at any of its scales.

    `scales` ascend. Each is a nominal number of visual tokens; how many tokens an image really takes follows
    from its size, and two scales may give an image the same tokens. Scale is an argument of every method that
    depends on it; a ValueError names the possible scales.

    A backbone encodes an image once for all scales, or at another resolution for each. One of the latter
    kind runs a vision pass when `answer` or `compute_features` first needs its scale, for all images of
    that call together, and keeps the result in the encoded image.

    Attributes:
        name: names the labels that this backbone makes.
    """

    name: str

    @property
    def scales(self) -> tuple[int, ...]: ...

    @property
    def fingerprints(self) -> dict[str, str]:
        """Hex digests of `weights`, `prompt` and `decoding`: outcomes with the same ones may be mixed."""
        ...

    def num_visual_tokens(self, image_size: tuple[int, int], scale: int) -> int:
        """Number of visual tokens that enter the decoder, from (width, height) alone."""
        ...

    def vision_flops(self, image_size: tuple[int, int], scale: int) -> int:
        """Floating-point operations of the vision pass that answers at a scale need.

        The same pass at all scales, and so the same number, where one pass serves them all.
        """
        ...

    def prefill_flops(self, image_size: tuple[int, int], question: str, scale: int) -> int:
        """Floating-point operations of the decoder on the prompt, until the first token of the answer."""
        ...

    def encode(self, images: Sequence[Image.Image]) -> Sequence[EncodedImage]:
        """Images as the other methods take them. Raises UnreadableImage if `to_rgb` refuses one."""
        ...

    def compute_features(
        self, encoded: Sequence[EncodedImage], scales: Collection[int], groups: Collection[str] = GROUPS
    ) -> list[ImageFeatures]:
        """Features of each image for predictors: visual tokens at `scales`, and `groups` of statistics."""
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
        """Answers to (encoded[i], questions[i]): greedy, or sampled as draws[i] says.

        Questions about the same EncodedImage share its prefix. `drafts`, answers to the same questions at
        another scale, make decoding faster where they are right; like the references, they change no answer.
        """
        ...

    def check_question(self, question: str, references: Sequence[str] = (), scale: int | None = None) -> None:
        """Raise ValueError for a question that cannot be asked at `scale`; by default, at every scale.

        That is one that is empty, holds control tokens or, with its visual tokens and an answer or one of the
        references, is longer than the context; or one with references that cannot be scored.
        """
        ...

    def question_ids(self, question: str) -> list[int]:
        """Token ids of the question alone, without special tokens."""
        ...

    def token_embeddings(self) -> Tensor:
        """`[vocabulary, hidden]`, on the CPU: the frozen input embeddings of the decoder."""
        ...
