"""What predictors see in use, made by the backbone from images and questions."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from m3_backbone.backbone import Backbone, EncodedImage
from m3_backbone.features import compute_features, stack_statistics
from m3_backbone.labels import Inputs, stack_visual
from predictor.features import Features

Picture = Image.Image | str | Path | bytes | np.ndarray
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # rasters: no plugin that starts a program


def pair_up(
    pictures: Picture | Sequence[Picture], questions: str | Sequence[str]
) -> tuple[list[Image.Image], list[str]]:
    """An image and a question for each answer: a single picture belongs to all questions.

    ValueError for other numbers of pictures than of questions, a question that is empty or no text, and what
    is no picture.
    """
    texts = [questions] if isinstance(questions, str) else list(questions)
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"question {number} of {len(texts)} is {text!r}: ask something")
    if isinstance(pictures, Picture):
        return [open_picture(pictures)] * len(texts), texts
    if len(pictures) != len(texts):
        raise ValueError(
            f"{len(pictures)} images and {len(texts)} questions: give an image to every question, or one "
            "image that is no list for all of them"
        )
    opened = {id(each): open_picture(each) for each in pictures}
    return [opened[id(each)] for each in pictures], texts


def open_picture(picture: Picture) -> Image.Image:
    """A PIL image as it is, or what a path, the bytes of a file or an array of pixels hold.

    ValueError or OSError, naming the file, for what is no picture.
    """
    match picture:
        case Image.Image():
            return picture
        case str() | Path():
            path = Path(picture).expanduser()
            if not path.is_file():
                raise FileNotFoundError(f"no image {path}")
            return _decode(path, str(path))
        case bytes():
            return _decode(io.BytesIO(picture), "the bytes that were given")
        case np.ndarray():
            shape = picture.shape
            is_color = len(shape) == 3 and shape[2] in (3, 4)
            if picture.dtype != np.uint8 or not (is_color or len(shape) == 2) or not picture.size:
                raise ValueError(
                    f"an array of {picture.dtype} {list(shape)} is no picture: give uint8 pixels, [height, "
                    "width], [height, width, 3] or [height, width, 4]"
                )
            return Image.fromarray(picture)
    raise ValueError(
        f"a {type(picture).__name__} is no picture: give a PIL image, a path, the bytes of a file or an array"
    )


def _decode(source: Path | io.BytesIO, name: str) -> Image.Image:
    try:
        image = Image.open(source, formats=_FORMATS)
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # decoders raise SyntaxError, struct.error, IndexError, ... on damaged files
        raise ValueError(f"{name}: no picture of a known format, or a damaged one ({error})") from error
    return image


def make_inputs(
    backbone: Backbone,
    encoded: Sequence[EncodedImage],
    questions: Sequence[str],
    features: Features,
    *,
    task: str = "",
    token_embeddings: Tensor,
) -> Inputs:
    """What a predictor sees of each (encoded image, question), just as labelling stores it.

    Of an image only what `features` name is computed.
    """
    distinct = list({id(image): image for image in encoded}.values())
    row_of = {id(image): row for row, image in enumerate(distinct)}
    image_row = np.array([row_of[id(image)] for image in encoded], dtype=np.int64)
    images = [compute_features(backbone, image, features.scales, features.groups) for image in distinct]
    names, statistics = stack_statistics(images)
    scales = tuple(backbone.ladder)
    cost = [[backbone.num_visual_tokens(image.size, scale) for scale in scales] for image in distinct]
    return Inputs(
        scales=scales,
        question=list(questions),
        task=np.full(len(questions), task, dtype=object),
        question_ids=[np.array(backbone.question_ids(question), dtype=np.int32) for question in questions],
        image_row=image_row,
        visual=stack_visual(images),
        statistics=statistics,
        statistic_names=names,
        token_embeddings=token_embeddings,
        visual_tokens=np.array(cost, dtype=np.int32)[image_row],
    )
