"""Serve a model over HTTP with the API of OpenAI; the predictor chooses the scales.

The backbone answers in this process, or, with `upstream`, an engine such as vLLM does. The server is reached
from this machine only, unless `host` is changed; with a key in the environment variable TOKENSCALE_API_KEY,
requests need it.

Examples:
    tokenscale serve                                    # the predictor of `tokenscale run`
    tokenscale serve folder=my_model port=9000          # a published model
    tokenscale serve folder=my_model upstream=http://127.0.0.1:8001 adapter=vllm  # an engine answers
"""

from omegaconf import DictConfig

from experiments.command_line.entry_point import entry_point


@entry_point("serve")
def main(config: DictConfig) -> None:
    from experiments.serving.configured import make_service, open_socket, read_key, run
    from experiments.serving.limits import Limits
    from experiments.serving.metrics import ServerMetrics
    from experiments.serving.server import make_app

    limits, metrics = Limits(**config.limits), ServerMetrics()
    with open_socket(config.host, config.port) as listener:
        app = make_app(
            make_service(config, limits, metrics),
            metrics,
            limits,
            max_requests=config.max_requests,
            host=config.host,
            api_key=read_key(config.host),
        )
        run(
            app,
            listener,
            client_seconds=config.limits.body_seconds,
            shutdown_seconds=config.shutdown_seconds,
        )


if __name__ == "__main__":
    main()
