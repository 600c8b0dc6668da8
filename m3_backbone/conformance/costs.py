"""Checks of the ladder and of costs, which a backbone states without running its model."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise, product
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from m3_backbone.backbone import Backbone
from m3_backbone.conformance.subject import Check, NotApplicable, Subject, expect, fail, format_size
from m3_backbone.llava.backbone import LlavaBackbone
from m3_backbone.llava.costs import vision_flops
from m3_backbone.model_backbone import ModelBackbone

_SIDES = (1, 16, 20, 30, 48, 64, 100, 150, 224, 336, 500, 640, 1000, 1500, 3000)
# A side is at least one token, so that a long image may exceed a small cap.
_MAX_CAPPED_ASPECT = 2


def scales_ascend(subject: Subject) -> None:
    """The scales are positive whole numbers in ascending order, and feature scales are among them.

    `name` is text, and `family` is pooled, thumbnail or native.
    """
    backbone = subject.backbone
    scales = backbone.scales
    is_ladder = bool(scales) and all(type(scale) is int and scale > 0 for scale in scales)
    expect(
        is_ladder and list(scales) == sorted(set(scales)), "scales are ascending positive integers", scales
    )
    features = backbone.feature_scales
    expect(
        set(features) <= set(scales) and list(features) == sorted(features),
        f"feature_scales are some of {scales} in ascending order",
        features,
    )
    expect(isinstance(backbone.name, str) and bool(backbone.name), "name is text", repr(backbone.name))
    families = ("pooled", "thumbnail", "native")
    expect(backbone.family in families, f"family is one of {', '.join(families)}", repr(backbone.family))


def token_counts_ascend(subject: Subject) -> None:
    """The number of visual tokens of an image of any size is positive and never falls along the ladder.

    At a scale of a backbone that is not pooled it is at most the scale, unless the sides differ by more than
    a factor of 2.
    """
    backbone = subject.backbone
    for size in _list_sizes(backbone):
        counts = [backbone.num_visual_tokens(size, scale) for scale in backbone.scales]
        place = f"the numbers of visual tokens of {format_size(size)} pixels at scales {backbone.scales}"
        is_positive = all(type(count) is int and count > 0 for count in counts)
        expect(is_positive, f"{place} are positive integers", counts)
        expect(counts == sorted(counts), f"{place} ascend", counts)
        if backbone.family != "pooled" and max(size) <= _MAX_CAPPED_ASPECT * min(size):
            fits = all(count <= scale for count, scale in zip(counts, backbone.scales, strict=True))
            expect(fits, f"{place} are at most the scales", counts)


def token_counts_are_those_used(subject: Subject) -> None:
    """`num_visual_tokens` is the number of tokens in the features and in the prompts of answers."""
    backbone = subject.backbone
    images = list(subject.images.values())
    encoded = backbone.encode(images)
    for image, item in zip(images, encoded, strict=True):
        expect(item.size == image.size, f"an encoded image has the size {image.size}", item.size)
    features = backbone.compute_features(encoded, backbone.scales, ())
    for scale, (row, (name, image)) in product(backbone.scales, enumerate(subject.images.items())):
        count = backbone.num_visual_tokens(image.size, scale)
        place = f"image {name} at scale {scale}"
        expect(
            len(features[row].visual[scale]) == count,
            f"{place} has the {count} visual tokens of num_visual_tokens in its features",
            len(features[row].visual[scale]),
        )
        if isinstance(backbone, ModelBackbone):
            (prefix,) = backbone.visual_prefixes(encoded[row : row + 1], scale)
            in_prompt = backbone.num_prefix_tokens(image.size, scale)
            expect(len(prefix) == in_prompt, f"{place} has num_prefix_tokens={in_prompt}", len(prefix))
            most = backbone.max_prefix_tokens(scale)
            expect(
                count <= in_prompt <= most,
                f"{place}: {count} <= num_prefix_tokens <= max_prefix_tokens={most}",
                in_prompt,
            )
            before = backbone.work.prefix_tokens
            backbone.answer(encoded[row : row + 1], subject.questions[:1], scale)
            used = backbone.work.prefix_tokens - before
            expect(used == in_prompt, f"{place} has {in_prompt} tokens in the prompt of an answer", used)


def flops_ascend(subject: Subject) -> None:
    """FLOPs are positive whole numbers that never fall along the ladder, equal where scales coincide.

    The prefill of a longer question takes more, and a further token of an answer takes some.
    """
    backbone = subject.backbone
    question, longer = subject.questions[0], " ".join(subject.questions)
    sizes = [image.size for image in subject.images.values()]
    for size in [*sizes, *_list_sizes(backbone)]:
        tokens = [backbone.num_visual_tokens(size, scale) for scale in backbone.scales]
        costs = {
            "vision_flops": [backbone.vision_flops(size, scale) for scale in backbone.scales],
            "prefill_flops": [backbone.prefill_flops(size, question, scale) for scale in backbone.scales],
        }
        for name, flops in costs.items():
            place = f"{name} of {format_size(size)} pixels at scales {backbone.scales}"
            expect(all(type(n) is int and n > 0 for n in flops), f"{place} are positive integers", flops)
            expect(flops == sorted(flops), f"{place} ascend", flops)
            for first, second in pairwise(range(len(flops))):
                if tokens[first] == tokens[second]:
                    expect(flops[first] == flops[second], f"{place} are equal at coinciding scales", flops)
    for scale in backbone.scales:
        short, long = (backbone.prefill_flops(sizes[0], text, scale) for text in (question, longer))
        expect(long > short, f"prefill_flops of a longer question at scale {scale} is above {short}", long)
    each = backbone.decode_flops_per_token()
    expect(type(each) is int and each > 0, "decode_flops_per_token is a positive integer", each)


def vision_flops_fit_the_family(subject: Subject) -> None:
    """The vision FLOPs of a pooled backbone, or another with equal passes, are the same at every scale.

    Those of others differ between scales that give an image different numbers of tokens.
    """
    backbone = subject.backbone
    for name, image in subject.images.items():
        flops = {scale: backbone.vision_flops(image.size, scale) for scale in backbone.scales}
        if backbone.has_equal_passes:
            is_one = len(set(flops.values())) == 1
            expect(is_one, f"image {name}: the vision passes of all scales cost the same", flops)
            continue
        counts = [backbone.num_visual_tokens(image.size, scale) for scale in backbone.scales]
        values = list(flops.values())
        for (count, value), (next_count, next_value) in pairwise(zip(counts, values, strict=True)):
            if count != next_count and backbone.family != "pooled":
                expect(
                    next_value > value,
                    f"image {name}: more tokens take a larger vision pass at scales {backbone.scales}",
                    values,
                )


def flops_are_those_of_the_counter(subject: Subject) -> None:
    """Vision and prefill FLOPs equal `torch.utils.flop_counter` under eager attention.

    Counted are the encoding of one image at one scale (for a thumbnail backbone, after its encoding at the
    coarsest scale), and the decoder on a text of as many tokens as the prompt has. Vision layers whose output
    is not used may run in addition.
    """
    backbone = subject.backbone
    if not isinstance(backbone, ModelBackbone):
        raise NotApplicable("the model is not in a ModelBackbone, so eager attention cannot be chosen")
    if getattr(backbone, "quantization", None) is not None:
        raise NotApplicable("the counter does not know the products of quantised weights")
    question = subject.questions[0]
    with _eager_kernels(backbone.model):
        for scale, name in product(subject.scales, ("wide", "tall")):
            image = subject.images.get(name, next(iter(subject.images.values())))
            place = f"image {name} at scale {scale}"
            before = backbone.scales[:1] if backbone.family == "thumbnail" else ()
            with FlopCounterMode(display=False) as counter:
                encoded = backbone.encode([image])
                for encoded_scale in (*before, scale):
                    backbone.visual_prefixes(encoded, encoded_scale)
            stated = backbone.vision_flops(image.size, scale)
            counted = counter.get_total_flops() - _count_unused(backbone, image.size)
            expect(stated == counted, f"{place}: vision_flops is the counted {counted}", stated)
            texts = [*backbone.system_ids, *backbone.processor.suffix_ids(question)]
            length = len(texts) + backbone.num_prefix_tokens(image.size, scale)
            counted = _count_prefill(backbone, question, length)
            stated = backbone.prefill_flops(image.size, question, scale)
            expect(stated == counted, f"{place}: prefill_flops is the counted {counted}", stated)


@contextmanager
def _eager_kernels(model: Any) -> Iterator[None]:
    """Use eager attention and experts in all parts of a model, which may have different kernels otherwise."""
    configs = {id(part.config): part.config for part in model.modules() if hasattr(part, "config")}
    names = ("_attn_implementation", "_experts_implementation")
    before = [
        (config, name, getattr(config, name))
        for config, name in product(configs.values(), names)
        if hasattr(config, name)
    ]
    for config, name, _ in before:
        setattr(config, name, "eager")
    try:
        yield
    finally:
        for config, name, kernel in before:  # a whole before its parts, as it sets those too
            setattr(config, name, kernel)


@torch.no_grad()
def _count_prefill(backbone: ModelBackbone, question: str, length: int) -> int:
    """Operations of the decoder on a text of `length` tokens, until the first token of an answer."""
    token = backbone.question_ids(question)[0]
    ids = torch.full((1, length), token, device=backbone.torch_device)
    with FlopCounterMode(display=False) as counter:
        backbone.model(input_ids=ids, logits_to_keep=1, use_cache=False)
    return int(counter.get_total_flops())


def _count_unused(backbone: Backbone, image_size: tuple[int, int]) -> int:
    """Operations of the layers of LLaVA's tower behind the one that gives the features."""
    if not isinstance(backbone, LlavaBackbone):
        return 0
    config: Any = type(backbone.checkpoint.config).from_dict(backbone.checkpoint.config.to_dict())
    config.vision_feature_layer = -1
    num_tiles = backbone.processor.images.num_tiles(image_size)
    return vision_flops(config, num_tiles) - vision_flops(backbone.checkpoint.config, num_tiles)


def _list_sizes(backbone: Backbone) -> Iterator[tuple[int, int]]:
    """Yield sizes of images that the backbone takes. Raises Failed if it refuses a size of 336x336."""
    for size in product(_SIDES, _SIDES):
        try:
            backbone.check_image(size)
        except ValueError as error:
            if size == (336, 336):
                fail("check_image accepts 336x336 pixels", f"refused: {error}")
            continue
        yield size


COST_CHECKS: tuple[Check, ...] = (
    scales_ascend,
    token_counts_ascend,
    token_counts_are_those_used,
    flops_ascend,
    vision_flops_fit_the_family,
    flops_are_those_of_the_counter,
)
