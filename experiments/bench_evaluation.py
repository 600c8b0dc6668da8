"""Time an evaluation on synthetic outcomes of many questions.

Times, for two predictors of different skill, (a) the metrics of one of them: operating points, front and
oracles; (b) the paired bootstrap of the metrics of both, with bands of the fronts and differences. The last
line is the table as one JSON object.

Examples:
    tokenscale bench_evaluation                                   # a million questions
    tokenscale bench_evaluation num_images=2000                   # a short one
    tokenscale bench_evaluation num_resamples=10000 num_scales=8  # more resamples, a longer ladder
"""

from omegaconf import DictConfig

from experiments.command_line.entry_point import entry_point


@entry_point("bench_evaluation")
def main(config: DictConfig) -> None:
    from experiments.bench.evaluation import measure, report

    report(
        measure(
            num_images=config.num_images,
            questions_per_image=config.questions_per_image,
            num_scales=config.num_scales,
            num_prices=config.num_prices,
            num_resamples=config.num_resamples,
            num_budgets=config.num_budgets,
            seed=config.seed,
        )
    )


if __name__ == "__main__":
    main()
