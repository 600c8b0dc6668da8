"""Idefics3 and SmolVLM: an image is split into square tiles, and a small copy of it is added."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from transformers.models.idefics3.image_processing_pil_idefics3 import MAX_IMAGE_SIZE
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from m3_backbone.backbone import check_scale
from m3_backbone.decoding.decoding import VisualPrefix
from m3_backbone.lazy_vision import LazyImage
from m3_backbone.model_backbone import ModelBackbone
from m3_backbone.native.base import NativeBackbone
from m3_backbone.native.checkpoint import ModelFamily
from m3_backbone.views import Panel

# Numbers of tiles along the longest side at the default scales; the settings of published models give 4.
_DEFAULT_SPLITS = (1, 2, 4)
# `Idefics3Processor` knows markers of so many rows and columns.
_MAX_SPLITS = 6


class SquareTilesBackbone(NativeBackbone):
    """Base class of backbones that split an image into square tiles and add a small copy, the thumbnail.

    All tiles have the same number of visual tokens. The thumbnail is the last tile, and the only one of an
    image that is not split.
    """

    @property
    @abstractmethod
    def _tile(self) -> int:
        """Side of a tile in pixels."""

    @property
    @abstractmethod
    def _tokens_per_side(self) -> int:
        """Number of visual tokens along a side of a tile."""

    @property
    @abstractmethod
    def _flops_per_tile(self) -> int:
        """Operations of the vision pass on a tile."""

    @abstractmethod
    def grid(self, image_size: tuple[int, int], scale: int) -> tuple[int, int]:
        """(rows, columns) of tiles besides the thumbnail; (0, 0) if the thumbnail is the only tile."""

    @abstractmethod
    def _tile_pixels(self, image: Image.Image, scale: int) -> Tensor:
        """Pixels of the tiles of an RGB image as the model sees them, `[num_tiles, 3, height, width]`."""

    @property
    def _tokens_per_tile(self) -> int:
        return self._tokens_per_side**2

    def _num_tiles(self, image_size: tuple[int, int], scale: int) -> int:
        rows, columns = self.grid(image_size, scale)
        return rows * columns + 1

    def num_visual_tokens(self, image_size: tuple[int, int], scale: int) -> int:
        return self._num_tiles(image_size, scale) * self._tokens_per_tile

    def vision_flops(self, image_size: tuple[int, int], scale: int) -> int:
        return self._num_tiles(image_size, scale) * self._flops_per_tile

    def view_image(self, image: Image.Image, scale: int) -> tuple[Panel, ...]:
        self.check_image(image.size)
        rows, columns = self.grid(image.size, scale)
        side = self._tokens_per_side
        *tiles, thumbnail = map(self._to_picture, self._tile_pixels(self.prepare_image(image, scale), scale))
        panels = [Panel(thumbnail, (side, side))]
        if tiles:
            joined = Image.new("RGB", (columns * self._tile, rows * self._tile))
            for number, tile in enumerate(tiles):
                joined.paste(tile, (number % columns * self._tile, number // columns * self._tile))
            panels.append(Panel(joined, (rows * side, columns * side)))
        return tuple(panels)

    def _to_picture(self, pixels: Tensor) -> Image.Image:
        """Return the picture of normalised pixels `[3, height, width]`."""
        images = self.checkpoint.image_processor
        mean, std = (torch.tensor(values)[:, None, None] for values in (images.image_mean, images.image_std))
        levels = ((pixels * std + mean) * 255).round().clamp(0, 255).byte()
        return Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())


class TiledBackbone(SquareTilesBackbone):
    """Backbone of an Idefics3 or SmolVLM checkpoint.

    At the coarsest scale an image is one square tile, the thumbnail. Finer scales resize the image so that
    its longest side is k tiles, enlarging it if it is smaller, split it into at most k x k tiles, and add a
    thumbnail. All tiles have the same number t of visual tokens, 64 in SmolVLM-256M. The scale with k tiles
    along the longest side is named t for k = 1 and t (k^2 + 1) for k > 1, the number of visual tokens of a
    square image and the largest one of any image. Every image has more tokens at a finer scale, so that no
    scales coincide.

    In the decoder, markers of the tiles' rows and columns are interleaved with the visual tokens;
    `num_prefix_tokens` counts both.

    The image processor of these models makes the thumbnail from the resized image, so that its pixels
    differ slightly between scales. To answer exactly as the model does, every scale encodes its own:
    `family` is native, not thumbnail.

    Arguments are those of `NativeBackbone`; `scales` are t or t (k^2 + 1), by default those of k = 1, 2, 4.

    Raises ValueError that lists the possible scales for another one, and for a checkpoint whose tiles cannot
    be encoded.
    """

    families: ClassVar[Mapping[str, ModelFamily]] = {
        "idefics3": ModelFamily("Idefics3ForConditionalGeneration", "Idefics3ImageProcessorPil", "<image>"),
        "smolvlm": ModelFamily("SmolVLMForConditionalGeneration", "SmolVLMImageProcessorPil", "<image>"),
    }
    _UNPICKLED: ClassVar[frozenset[str]] = ModelBackbone._UNPICKLED | {"_prefix_ids"}

    @cached_property
    def _tile(self) -> int:
        """Side of a tile in pixels."""
        return int(self.checkpoint.image_processor.max_image_size["longest_edge"])

    @cached_property
    def _patches_per_side(self) -> int:
        return self._tile // self.checkpoint.config.vision_config.patch_size

    @cached_property
    def _tokens_per_side(self) -> int:
        return int(self._patches_per_side // self.checkpoint.config.scale_factor)

    @cached_property
    def _flops_per_tile(self) -> int:
        return vision_flops_per_tile(self.checkpoint.config, self._patches_per_side**2)

    @cached_property
    def _splits(self) -> dict[int, int]:
        """Number of tiles along the longest side at each possible scale."""
        return {
            self._tokens_per_tile * (1 if splits == 1 else splits**2 + 1): splits
            for splits in range(1, min(_MAX_SPLITS, MAX_IMAGE_SIZE // self._tile) + 1)
        }

    def _default_scales(self) -> Sequence[int]:
        return [scale for scale, splits in self._splits.items() if splits in _DEFAULT_SPLITS]

    def _check_scales(self, scales: Sequence[int]) -> None:
        # Sides are rounded up to an even number of pixels, which may not exceed whole tiles.
        factor = self.checkpoint.config.scale_factor
        if self._tile % 2 or self._patches_per_side % factor:
            raise ValueError(
                f"{self.checkpoint.source}: a tile of {self._tile} pixels has {self._patches_per_side} "
                f"patches a side; its pixels must be a multiple of 2, and its patches of {factor}"
            )
        for scale in scales:
            if scale not in self._splits:
                raise ValueError(
                    f"scales={list(scales)}: with tiles of {self._tokens_per_tile} visual tokens, "
                    f"choose from {', '.join(map(str, self._splits))}"
                )

    def _make_caches(self) -> None:
        super()._make_caches()
        self._prefix_ids = lru_cache(2**10)(self._tokenize_prefix)

    def _tokenize_prefix(self, rows: int, columns: int) -> Tensor:
        """Token ids of an image in the prompt, `[num_prefix_tokens]`; without tiles, the thumbnail alone."""
        text = get_image_prompt_string(
            rows,
            columns,
            self._tokens_per_tile,
            fake_token_around_image="<fake_token_around_image>",
            image_token="<image>",
            global_image_token="<global-img>",
        )
        ids = self.processor.tokenizer(text, add_special_tokens=False).input_ids
        return torch.tensor(ids, dtype=torch.long)

    def _is_visual(self, ids: Tensor) -> Tensor:
        """Whether each of these token ids stands for a visual token, and not for a marker."""
        return ids == self.checkpoint.config.image_token_id

    def _image_settings(self, scale: int) -> dict[str, Any]:
        """Arguments of the image processor for a scale."""
        splits = self._splits[check_scale(scale, self.scales)]
        return {"size": {"longest_edge": splits * self._tile}, "do_image_splitting": splits > 1}

    def processor_arguments(self, image_size: tuple[int, int], scale: int) -> dict[str, Any]:
        return self._image_settings(scale)

    def grid(self, image_size: tuple[int, int], scale: int) -> tuple[int, int]:
        """(rows, columns) of tiles besides the thumbnail; (0, 0) at the coarsest scale."""
        width, height = image_size
        _, rows, columns = self.checkpoint.image_processor.get_number_of_image_patches(
            height, width, self._image_settings(scale)
        )
        return rows, columns

    def check_image(self, image_size: tuple[int, int]) -> None:
        # The image processor fails on some images whose short side it resizes to less than a pixel.
        if max(image_size) > self._tile * min(image_size):
            raise ValueError(
                f"an image of {image_size[0]}x{image_size[1]} pixels is too long: its sides may differ by a "
                f"factor of {self._tile}"
            )

    def num_prefix_tokens(self, image_size: tuple[int, int], scale: int) -> int:
        return len(self._prefix_ids(*self.grid(image_size, scale)))

    def max_prefix_tokens(self, scale: int) -> int:
        side = self._tile  # of a square image
        return self.num_prefix_tokens((side, side), scale)

    def preprocess(self, images: Sequence[Image.Image], scale: int) -> dict[str, Tensor]:
        batch = [[image] for image in images]
        return dict(
            self.checkpoint.image_processor(images=batch, return_tensors="pt", **self._image_settings(scale))
        )

    def _tile_pixels(self, image: Image.Image, scale: int) -> Tensor:
        return self.preprocess([image], scale)["pixel_values"][0]

    def placeholder_ids(self, image_size: tuple[int, int], scale: int) -> list[int]:
        return self._prefix_ids(*self.grid(image_size, scale)).tolist()

    def _mark_visual(self, ids: Tensor) -> dict[str, Tensor]:
        return {}

    def visual_tokens(self, encoded: Sequence[LazyImage], scale: int) -> list[Tensor]:
        prefixes = self.visual_prefixes(encoded, scale)
        ids = [self._prefix_ids(*self.grid(image.size, scale)) for image in encoded]
        return [
            prefix.embeds[self._is_visual(tokens).to(prefix.embeds.device)]
            for prefix, tokens in zip(prefixes, ids, strict=True)
        ]

    def run_vision(self, images: Sequence[Image.Image], scale: int) -> list[VisualPrefix]:
        tiles: list[Tensor] = []
        grids: list[tuple[int, int]] = []
        for image in images:
            inputs = self.checkpoint.image_processor(
                images=image, return_row_col_info=True, return_tensors="pt", **self._image_settings(scale)
            )
            tiles.append(inputs["pixel_values"][0])
            grids.append((int(inputs["rows"][0][0]), int(inputs["cols"][0][0])))
        # As many images of one tile: no tile is padding, which the model would drop.
        output = self.model.model.get_image_features(
            torch.cat(tiles)[:, None].to(self._decoder.device), return_dict=True
        )
        # One tensor per tile, or before transformers 5.20 one tensor for all of them.
        features = torch.cat(list(output.pooler_output))
        lengths = [len(image_tiles) * self._tokens_per_tile for image_tiles in tiles]
        prefixes = []
        for grid, visual in zip(grids, features.split(lengths), strict=True):
            ids = self._prefix_ids(*grid).to(self._decoder.device)
            embeds = self._decoder.embed(ids)
            embeds[self._is_visual(ids)] = visual.to(embeds)
            prefixes.append(VisualPrefix(embeds))
        return prefixes


def vision_flops_per_tile(config: Any, num_patches: int) -> int:
    """Operations of the vision transformer and the projection on one tile of `num_patches` patches.

    With p patches, L layers of width h and an MLP of width m, and a projection from s x s patches to one
    token of width d: `2 p h (channels) + L (8 p h^2 + 4 p^2 h + 4 p h m) + 2 p h d`.
    Source: the modelling code of transformers; equal to `torch.utils.flop_counter` under eager attention.
    """
    vision = config.vision_config
    hidden = vision.hidden_size
    channels = vision.num_channels * vision.patch_size**2
    layer = (
        8 * num_patches * hidden**2
        + 4 * num_patches**2 * hidden
        + 4 * num_patches * hidden * vision.intermediate_size
    )
    projection = 2 * num_patches * hidden * config.get_text_config().hidden_size
    return 2 * num_patches * channels * hidden + vision.num_hidden_layers * layer + projection
