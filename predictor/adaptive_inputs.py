"""What predictors see in use, made by the backbone from images and questions."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from m3_backbone.backbone import Backbone, EncodedImage
from m3_backbone.features import compute_features, stack_statistics
from m3_backbone.labels import Inputs, stack_visual
from predictor.features import Features


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
