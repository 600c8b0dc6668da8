"""Answer one question about an image, at the scale that a trained predictor chooses.

The predictor chooses the scale; its estimates, the choice and the answers at the other scales are printed.
With `escalate=true` the hybrid looks at its answer and may go on to finer scales. `scale=36` forces one, and
needs no predictor.

Examples:
    tokenscale answer image=photo.png question='What is this?'            # predictor of `tokenscale run`
    tokenscale answer image=photo.png question='What is this?' budget=20  # a mean of at most 20 tokens
    tokenscale answer image=photo.png question='What is this?' scale=36   # no predictor: this scale
"""

import re
import sys
from collections.abc import Sequence

from hydra.utils import instantiate
from omegaconf import DictConfig

from experiments.config import entry_point


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
    chosen = None
    if config.scale is None:
        adaptive = load_adaptive(backbone, config)
        terms = {"price": config.price, "budget": config.budget}
        if config.escalate:
            hybrid = adaptive.find_hybrid(**terms, point=config.point)
            (chosen,) = adaptive.escalate(encoded, [question], hybrid)
            reason = describe_escalation(hybrid, chosen)
        else:
            point = adaptive.prices.find(**terms, name=config.point)
            (chosen,) = adaptive.answer_at(encoded, [question], point)
            reason = describe_point(point, chosen.choice)
        scale = chosen.scale
    elif config.escalate or any(config[name] is not None for name in ("price", "budget", "point")):
        raise ValueError(
            "scale forces a scale, and price, budget, point and escalate choose one: give either"
        )
    else:
        scale, reason = check_scale(config.scale, backbone.scales), "as asked for"
    answers = {
        offered_scale: chosen.answer
        if chosen and offered_scale == scale
        else backbone.answer(encoded, [question], offered_scale)[0]
        for offered_scale in backbone.scales
    }
    for answer in answers.values():
        answer.check_finite()
    costs = {
        offered_scale: backbone.num_visual_tokens(image.size, offered_scale)
        for offered_scale in backbone.scales
    }
    print(format_answers(answers, costs, scale, chosen))
    print(f"scale {scale}: {reason}\n{answers[scale].text}")
    return answers[scale].text


def quote_free_text(arguments: Sequence[str]) -> list[str]:
    """Command-line arguments with the values of `image` and `question` in quotes, as Hydra wants them.

    So a question may hold commas, brackets, quotes and equals signs and still be given as `question='...'` to
    the shell, which takes those quotes away. A value that is in quotes already is left as it is.
    """
    quoted = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key in ("image", "question") and not re.fullmatch(r"(['\"]).*\1", value, re.DOTALL):
            # A backslash counts only before what it would hide: an interpolation or a quote.
            value = re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", value)
            value = re.sub(r"(\\*)'", lambda match: match[1] * 2 + r"\'", value)
            value = re.sub(r"(\\*)\Z", lambda match: match[1] * 2, value, count=1)
            argument = f"{key}='{value}'"
        quoted.append(argument)
    return quoted


if __name__ == "__main__":
    sys.argv[1:] = quote_free_text(sys.argv[1:])
    main()
