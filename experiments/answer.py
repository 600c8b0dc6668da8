"""Answer one question about an image, at the scale that a trained predictor chooses.

Prints the estimates of the predictor, the chosen scale and the answers at all scales. With `escalate=true`,
the hybrid retries at finer scales while the expected gain is worth the cost. `scale=36` forces a scale and
needs no predictor.

Examples:
    tokenscale answer image=photo.png question='What is this?'            # predictor of `tokenscale run`
    tokenscale answer image=photo.png question='What is this?' budget=20  # a mean of at most 20 tokens
    tokenscale answer image=photo.png question='What is this?' scale=36   # no predictor: this scale
"""

import sys

from hydra.utils import instantiate
from omegaconf import DictConfig

from experiments.command_line.entry_point import entry_point
from experiments.command_line.overrides import quote_free_text


@entry_point("answer")
def main(config: DictConfig) -> str:
    from experiments.serving.adaptive import (
        describe_escalation,
        describe_point,
        format_answers,
        load_adaptive,
    )
    from m3_backbone.backbone import Backbone, check_scale
    from m3_backbone.images import open_picture

    image, question = open_picture(config.image), config.question
    backbone: Backbone = instantiate(config.backbone, _convert_="all")
    backbone.check_question(question)
    encoded = backbone.encode([image])
    adaptive_answer = None
    if config.scale is None:
        adaptive = load_adaptive(backbone, config)
        terms = {"price": config.price, "budget": config.budget}
        if config.escalate:
            hybrid = adaptive.find_hybrid(**terms, point=config.point)
            (adaptive_answer,) = adaptive.escalate(encoded, [question], hybrid)
            reason = describe_escalation(hybrid, adaptive_answer)
        else:
            point = adaptive.prices.find(**terms, name=config.point)
            (adaptive_answer,) = adaptive.answer_at(encoded, [question], point)
            reason = describe_point(point, adaptive_answer.choice)
        scale = adaptive_answer.scale
    elif config.escalate or any(config[name] is not None for name in ("price", "budget", "point")):
        raise ValueError(
            "scale forces a scale, and price, budget, point and escalate choose one: give scale or these"
        )
    else:
        scale, reason = check_scale(config.scale, backbone.scales), "as set with scale=..."
    answers = {
        other: adaptive_answer.answer
        if adaptive_answer and other == scale
        else backbone.answer(encoded, [question], other)[0]
        for other in backbone.scales
    }
    for answer in answers.values():
        answer.check_finite()
    costs = {other: backbone.num_visual_tokens(image.size, other) for other in backbone.scales}
    print(format_answers(answers, costs, scale, adaptive_answer))
    print(f"scale {scale}: {reason}\n{answers[scale].text}")
    return answers[scale].text


if __name__ == "__main__":
    sys.argv[1:] = quote_free_text(sys.argv[1:])
    main()
