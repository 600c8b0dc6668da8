"""What a frozen model has to offer that answers questions about images at every scale of its ladder."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image
from torch import Tensor

from m3_backbone.decoding.sampling import Draw
from m3_backbone.ladder import ScaleLadder

NOT_FINITE = "the backbone gave numbers that are not finite: does its dtype overflow?"


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """One image after the only vision pass it needs.

    `tokens` are `[num_tiles, grid * grid, hidden]`, projected, not yet pooled; `image` is the picture, of
    which statistics are taken, and `size` its (width, height) in pixels.
    """

    tokens: Tensor
    image: Image.Image

    @property
    def size(self) -> tuple[int, int]:
        return self.image.size


@dataclass(frozen=True)
class Answer:
    """An answer: its text; its token ids, with the end token if that came; `confidence` in [0, 1].

    `confidence` is the product of the probabilities of these tokens; `margin`, in nats, is the least lead of
    one of them over the best other one, below 0 where a draw took another than the best. `nll` is the least
    mean negative log-likelihood per token, end token included, of the distinct references as they are
    written, where there are any, and `reference_tokens` the number of that one's tokens. Other forms that a
    metric accepts, as "Yes." for "yes", are not looked at.
    """

    text: str
    token_ids: list[int]
    confidence: float
    margin: float
    nll: float | None
    reference_tokens: int | None

    def check_finite(self) -> None:
        """Raise ValueError for an answer of a decoder whose numbers overflowed."""
        if not (math.isfinite(self.confidence) and (self.nll is None or math.isfinite(self.nll))):
            raise ValueError(NOT_FINITE)


class Backbone(Protocol):
    """Encode an image once; answer and score any number of questions on it at any scale.

    Scale is an argument of every call that depends on it; a ValueError names the scales that the grid gives.
    """

    name: str

    @property
    def ladder(self) -> ScaleLadder: ...

    @property
    def fingerprints(self) -> dict[str, str]:
        """Hex digests of `weights`, `prompt` and `decoding`: outcomes with the same ones may be mixed."""
        ...

    @property
    def hidden_size(self) -> int: ...

    def encode(self, images: Sequence[Image.Image]) -> list[EncodedImage]:
        """One vision pass for all scales. Raises UnreadableImage for an image that `to_rgb` refuses."""
        ...

    def visual_tokens(self, encoded: EncodedImage, token_scale: int) -> Tensor:
        """`[num_tokens, hidden]`: what enters the decoder. Its length is the cost."""
        ...

    def num_visual_tokens(self, image_size: tuple[int, int], token_scale: int) -> int:
        """The same cost from (width, height) alone, without running anything."""
        ...

    def prefill_flops(self, question: str, num_visual_tokens: int) -> int:
        """Floating-point operations of the decoder on a question, until the first token of its answer."""
        ...

    def vision_flops(self, image_size: tuple[int, int], token_scale: int) -> int:
        """Floating-point operations of the vision pass that answers at a scale need, from (width, height).

        Equal at all scales where one pass serves all of them; else every scale has a pass of its own.
        """
        ...

    def answer(
        self,
        encoded: Sequence[EncodedImage],
        questions: Sequence[str],
        token_scale: int,
        *,
        references: Sequence[Sequence[str]] | None = None,
        drafts: Sequence[Answer] | None = None,
        draws: Sequence[Draw] | None = None,
    ) -> list[Answer]:
        """Answers to (encoded[i], questions[i]), greedy or as draws[i] has it.

        Rows with the same EncodedImage share its prefix, and those with the same question that too.
        `drafts`, answers to the same questions at another scale, make this faster where they are right; like
        the references, they change no answer.
        """
        ...

    def score(
        self,
        encoded: Sequence[EncodedImage],
        questions: Sequence[str],
        references: Sequence[Sequence[str]],
        token_scale: int,
    ) -> list[float]:
        """The `Answer.nll` that `answer` would give, without answering."""
        ...

    def check_question(
        self, question: str, references: Sequence[str] = (), token_scale: int | None = None
    ) -> None:
        """ValueError, with the reason, for a question that cannot be asked at `token_scale`, or at any scale.

        Such as one that is empty, holds control tokens or, with its visual tokens and an answer or one of the
        references, is longer than the context; likewise for references that cannot be scored.
        """
        ...

    def question_ids(self, question: str) -> list[int]:
        """Token ids of the question alone, without special tokens."""
        ...

    def token_embeddings(self) -> Tensor:
        """`[vocabulary, hidden]`, on the CPU: the frozen input embeddings of the decoder."""
        ...
