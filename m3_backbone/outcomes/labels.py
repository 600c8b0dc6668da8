"""Labels: the inputs that a predictor may see of each sample, and the outcomes at every scale."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from safetensors import safe_open

from m3_backbone.features import ImageFeatures, stack_statistics
from m3_backbone.ladder import Family
from m3_backbone.outcomes.manifest import EMBEDDINGS, SPLITS, find_shard, read_images, read_manifest
from m3_backbone.outcomes.shards import check_content, naming, read_content, read_features
from m3_backbone.outcomes.table import HeldOutAccess, OutcomeTable, Rows, take, to_index

if TYPE_CHECKING:
    from torch import Tensor

_EMBEDDINGS_KEY = "token_embeddings"

__all__ = [
    "SPLITS",
    "Inputs",
    "Labels",
    "TokenEmbeddings",
    "VisualTokens",
    "read_labels",
    "stack_thumbnails",
    "stack_visual",
]


@dataclass(frozen=True, eq=False)
class VisualTokens:
    """Visual tokens of images at one scale.

    `tokens` float16 [num_images, num_tokens, hidden] are padded; `mask` [num_images, num_tokens] is False at
    padding.
    """

    tokens: np.ndarray
    mask: np.ndarray

    @classmethod
    def pad(cls, images: Sequence[np.ndarray]) -> Self:
        """Pad arrays [num_tokens, hidden], one per image, to the same number of tokens."""
        longest = max(len(tokens) for tokens in images)
        padded = np.zeros((len(images), longest, images[0].shape[1]), dtype=np.float16)
        mask = np.zeros((len(images), longest), dtype=bool)
        for number, tokens in enumerate(images):
            padded[number, : len(tokens)] = tokens
            mask[number, : len(tokens)] = True
        return cls(padded, mask)

    def fit(self, num_tokens: int, *, cut: bool = True) -> Self:
        """Return the tokens padded or cut to `num_tokens` per image; only padded if `cut` is False."""
        if self.mask.shape[1] == num_tokens:
            return self
        missing = max(0, num_tokens - self.mask.shape[1])
        tokens = np.pad(self.tokens, ((0, 0), (0, missing), (0, 0)))
        mask = np.pad(self.mask, ((0, 0), (0, missing)))
        return type(self)(tokens[:, :num_tokens], mask[:, :num_tokens]) if cut else type(self)(tokens, mask)


class TokenEmbeddings:
    """The decoder's frozen token embeddings `[vocab, hidden]`, loaded on first use.

    They take up to gigabytes for a large model, and few predictors read them, so `load` is called on the
    first access to `tensor`.
    """

    def __init__(self, hidden_size: int, load: "Callable[[], Tensor]") -> None:
        self.hidden_size = hidden_size
        self._load = load

    @classmethod
    def hold(cls, tensor: "Tensor") -> Self:
        """Return embeddings that are in memory already."""
        return cls(tensor.shape[1], partial(_return, tensor))

    @classmethod
    def open(cls, path: Path, digest: str) -> Self:
        """Return the embeddings in a file of a label folder.

        Raises ValueError that names the file if its SHA-256 is not `digest` or if it holds no embeddings.
        `tensor` checks the digest again, and raises ValueError for embeddings that are not finite too.
        """
        check_content(path, digest)
        with naming(path), safe_open(path, framework="np") as file:
            names = list(file.keys())
            shape = file.get_slice(_EMBEDDINGS_KEY).get_shape() if _EMBEDDINGS_KEY in names else []
        if len(shape) != 2:
            raise ValueError(_describe_missing_embeddings(path))
        return cls(shape[1], partial(_load_embeddings, path, digest))

    @cached_property
    def tensor(self) -> "Tensor":
        """The embeddings `[vocab, hidden]` in the data type of the decoder."""
        return self._load()


def _return(tensor: "Tensor") -> "Tensor":
    return tensor  # a named function, because `Inputs` may be pickled


def _load_embeddings(path: Path, digest: str) -> "Tensor":
    from safetensors.torch import load

    content = read_content(path, digest)
    with naming(path):
        embeddings = load(content)[_EMBEDDINGS_KEY]
    if not embeddings.isfinite().all():
        raise ValueError(_describe_missing_embeddings(path))
    return embeddings


def _describe_missing_embeddings(path: Path) -> str:
    return (
        f"{path} has no token embeddings [vocab, hidden] of finite numbers: delete it and run the label "
        "command again"
    )


@dataclass(frozen=True, eq=False)
class Inputs:
    """Inputs that a policy may see of n samples before they are answered.

    `visual` holds the visual tokens of the images at the scales that were kept. `statistics` float32
    [num_images, num_statistics] are named by `statistic_names` (see `m3_backbone.features`). `image_row` [n]
    is the row of each sample's image in both. `question_ids` are token ids of the question text, rows of
    `token_embeddings`. `visual_tokens` int32 [n, S] is the number of visual tokens at each
    scale, computed from the size of the image. `family` is that of the backbone (`m3_backbone.ladder`).
    `decoder_state` float16 [n, hidden] and `first_probability` float32 [n] are those of the outcome table, or
    None if labelling did not keep them: the decoder computes them from image and question, without an answer.
    `yes_log_odds` float32 [n] and `asking_flops` int64 [n] are likewise those of the outcome table, and
    `asking_prompt` is the prompt with which the model was asked (`m3_backbone.asking`).
    `thumbnails` uint8 [num_images, side, side, 3] are the images resized to squares, or None likewise.
    `sentences` caches question vectors by fingerprint of the sentence encoder and by text, so that predictors
    with the same samples encode each question once.
    """

    scales: tuple[int, ...]
    question: list[str]
    task: np.ndarray
    question_ids: list[np.ndarray]
    image_row: np.ndarray
    visual: Mapping[int, VisualTokens]
    statistics: np.ndarray
    statistic_names: tuple[str, ...]
    token_embeddings: TokenEmbeddings
    visual_tokens: np.ndarray
    family: Family = "pooled"
    decoder_state: np.ndarray | None = None
    first_probability: np.ndarray | None = None
    yes_log_odds: np.ndarray | None = None
    asking_flops: np.ndarray | None = None
    asking_prompt: str | None = None
    thumbnails: np.ndarray | None = None
    sentences: dict[str, dict[str, np.ndarray]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.question)

    @property
    def hidden_size(self) -> int:
        """Size of visual tokens and of token embeddings."""
        return self.token_embeddings.hidden_size

    def visual_at(self, scale: int) -> VisualTokens:
        """Return the visual tokens of a scale. Raises ValueError that lists the kept scales for others."""
        if scale not in self.visual:
            kept = ", ".join(map(str, self.visual)) or "none"
            raise ValueError(
                f"visual tokens of scale {scale} were not kept in labelling (scales kept: {kept}): "
                "choose one of them for the predictor, or label again with other feature_scales"
            )
        return self.visual[scale]

    def encode_questions(
        self, encoder: str, encode: Callable[[Sequence[str]], np.ndarray], width: int
    ) -> np.ndarray:
        """Return vectors float32 [n, width] of the questions.

        `encode` computes the vectors that `sentences` lacks; `encoder` is the fingerprint of the sentence
        encoder.
        """
        vector_of = self.sentences.setdefault(encoder, {})
        missing = [text for text in dict.fromkeys(self.question) if text not in vector_of]
        vector_of.update(zip(missing, encode(missing), strict=True))
        vectors = [vector_of[text] for text in self.question]
        return np.array(vectors, dtype=np.float32).reshape(len(self), width)

    def select(self, rows: Rows) -> Self:
        """Return the samples of a boolean mask [n], of indices or of a slice. Image data are shared."""
        index = to_index(rows, len(self))
        columns = {name: take(getattr(self, name), index) for name in _ROW_COLUMNS}
        optional = {name: getattr(self, name) for name in _OPTIONAL_COLUMNS}
        columns |= {name: values if values is None else values[index] for name, values in optional.items()}
        shared = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in columns}
        return type(self)(**shared, **columns)


_ROW_COLUMNS = ("question", "task", "question_ids", "image_row", "visual_tokens")
_OPTIONAL_COLUMNS = ("decoder_state", "first_probability", "yes_log_odds", "asking_flops")


@dataclass(frozen=True, eq=False)
class Labels:
    """Inputs and outcomes of the same samples, in the same order."""

    inputs: Inputs
    outcomes: OutcomeTable

    def __len__(self) -> int:
        return len(self.outcomes)

    def select(self, rows: Rows) -> Self:
        """Return the samples of a boolean mask [n], of distinct indices or of a slice."""
        return type(self)(inputs=self.inputs.select(rows), outcomes=self.outcomes.select(rows))


def read_labels(folder: str | Path, split: str, access: HeldOutAccess | None = None) -> Labels:
    """Read outcomes and image features of one split of a finished label folder.

    The test split requires `access`, as in `OutcomeTable.read`. Raises ValueError that names the file for
    missing or damaged content.
    """
    folder = Path(folder)
    outcomes = OutcomeTable.read(folder, split, access)
    manifest = read_manifest(folder)
    shard_of = read_images(folder, manifest, split)
    features: dict[str, ImageFeatures] = {}
    for name in dict.fromkeys(shard_of.values()):
        path, digest = find_shard(folder, "features", name), manifest["shards"][name]["features"]
        features |= read_features(path, digest, {image for image, shard in shard_of.items() if shard == name})
    row_of = {image_id: row for row, image_id in enumerate(dict.fromkeys(outcomes.image_id))}
    if missing := [image_id for image_id in row_of if image_id not in features]:
        path = find_shard(folder, "features", shard_of[missing[0]])
        raise ValueError(
            f"{path} lacks image {missing[0]!r} of {split}: delete it and run the label command again"
        )
    images = [features[image_id] for image_id in row_of]
    names, statistics = stack_statistics(images)
    inputs = Inputs(
        scales=outcomes.scales,
        question=outcomes.question.tolist(),
        task=outcomes.task,
        question_ids=outcomes.question_ids,
        image_row=np.array([row_of[image_id] for image_id in outcomes.image_id], dtype=np.int64),
        visual=stack_visual(images),
        statistics=statistics,
        statistic_names=names,
        token_embeddings=TokenEmbeddings.open(folder / EMBEDDINGS, manifest["files"][EMBEDDINGS]),
        visual_tokens=outcomes.visual_tokens,
        family=outcomes.family,
        decoder_state=outcomes.decoder_state,
        first_probability=outcomes.first_probability,
        yes_log_odds=outcomes.yes_log_odds,
        asking_flops=outcomes.asking_flops,
        asking_prompt=manifest.get("self_asking"),
        thumbnails=stack_thumbnails(images),
    )
    return Labels(inputs=inputs, outcomes=outcomes)


def stack_visual(images: Sequence[ImageFeatures]) -> dict[int, VisualTokens]:
    """Return scale -> visual tokens of all images. Raises ValueError if images have different scales."""
    scales = list(images[0].visual)
    if any(list(image.visual) != scales for image in images):
        raise ValueError("the images have visual tokens of different scales: label all of them again")
    return {scale: VisualTokens.pad([image.visual[scale] for image in images]) for scale in scales}


def stack_thumbnails(images: Sequence[ImageFeatures]) -> np.ndarray | None:
    """Return thumbnails uint8 [num_images, side, side, 3]; None if an image has none.

    Raises ValueError if they differ in size.
    """
    thumbnails = [image.thumbnail for image in images if image.thumbnail is not None]
    if len(thumbnails) < len(images):
        return None
    if len({thumbnail.shape for thumbnail in thumbnails}) > 1:
        raise ValueError("the images have thumbnails of different sizes: label all of them again")
    return np.stack(thumbnails)
