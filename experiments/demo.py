"""Ask about pictures in a browser: answers at every scale, with costs and the token grid.

The predictor chooses the scale; sliders set its budget or its price. The page is reached from this machine
only, unless `host` is changed. It sends nothing elsewhere. It needs the extra `demo`.

Examples:
    tokenscale demo                                     # the predictor of `tokenscale run`
    tokenscale demo backbone=tiny_native port=9000      # images are resized instead of pooled
    tokenscale demo folder=my_model                     # a published model
"""

from omegaconf import DictConfig

from experiments.command_line.entry_point import entry_point


@entry_point("demo")
def main(config: DictConfig) -> None:
    from experiments.serving.configured import open_socket
    from experiments.serving.demo.configured import open_demo, run

    with open_socket(config.host, config.port) as listener, open_demo(config) as app:
        run(app, listener)


if __name__ == "__main__":
    main()
