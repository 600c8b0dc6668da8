"""Check model, scorers, router and learned queries against the official code.

Prints the largest deviation of each recorded quantity. The exit status is 1 if tokens, counts or texts
differ, or a number differs by more than allowed, and 2 if the recording itself cannot be used.

Examples:
    tokenscale parity fixture=tests/fixtures/official_m3/llava15            # the model
    tokenscale parity scoring=tests/fixtures/scoring.json router=tests/fixtures/avg_router.safetensors
    tokenscale parity abstractor=tests/fixtures/mqt_abstractor.safetensors  # MQT-LLaVA's learned queries
"""

from pathlib import Path

from omegaconf import DictConfig

from experiments.command_line.entry_point import entry_point


@entry_point("parity")
def main(config: DictConfig) -> None:
    from experiments.parity.abstractor import compare_abstractor
    from experiments.parity.deviations import Deviation, summarize
    from experiments.parity.recording import compare_model, compare_router, compare_scorers

    if all(config[name] is None for name in ("fixture", "scoring", "router", "abstractor")):
        raise ValueError(
            "nothing to compare: give fixture=DIR, scoring=FILE, router=FILE, abstractor=FILE or several"
        )
    deviations: list[Deviation] = []
    if config.fixture is not None:
        deviations += compare_model(Path(config.fixture))
    if config.scoring is not None:
        deviations += compare_scorers(Path(config.scoring))
    if config.router is not None:
        deviations += compare_router(Path(config.router))
    if config.abstractor is not None:
        deviations += compare_abstractor(Path(config.abstractor), config.abstractor_heads)
    print(summarize(deviations))
    if any(deviation.size > deviation.allowed for deviation in deviations):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
