"""Time adaptive answers, backbone and predictor together, against every fixed scale.

Times backbone and predictor together against the same backbone at every fixed scale, on the same machine and
weights, one question at a time and in batches, and reports the share of the predictor and the computed FLOPs.
Every batch is answered by all methods in turn, in a rotated order, and ratios are taken within a batch, so
that other load on the machine affects all methods equally. The last line has all results as one JSON object.

Examples:
    tokenscale bench_adaptive  # the embedded backbone, as `tokenscale run` trained its predictor
    tokenscale bench_adaptive num_questions=16 batch_sizes=[1,8]  # a short one
    tokenscale bench_adaptive backbone=random_llava_small         # random weights, drawn choices
"""

from hydra.utils import instantiate
from omegaconf import DictConfig

from experiments.command_line.entry_point import entry_point


@entry_point("bench_adaptive")
def main(config: DictConfig) -> None:
    from experiments.bench.adaptive import measure, read_questions, report
    from experiments.bench.drawn_choices import draw_choices
    from experiments.serving.adaptive import load_adaptive
    from m3_backbone.llava.random_llava import RandomLlavaBackbone
    from m3_backbone.model_backbone import ModelBackbone

    backbone: ModelBackbone = instantiate(config.backbone, _convert_="all")
    task = instantiate(config.task, _convert_="all")
    questions = read_questions(task, config.split, config.num_questions)
    if isinstance(backbone, RandomLlavaBackbone):
        shares = {int(scale): float(share) for scale, share in config.drawn.items()}
        predictor = instantiate(config.predictor, _convert_="all")
        adaptive = draw_choices(backbone, predictor, questions, shares, seed=config.seed)
    else:
        adaptive = load_adaptive(backbone, config)
    point = adaptive.prices.find(price=config.price, budget=config.budget, name=config.point)
    # No batch is larger than the number of questions.
    sizes = sorted({min(size, len(questions)) for size in config.batch_sizes})
    report(measure(adaptive, point, questions, batch_sizes=sizes, repeats=config.repeats))


if __name__ == "__main__":
    main()
