"""Metrics of a server in the format of Prometheus."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_MILLISECONDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 30_000, 60_000, 300_000)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class ServerMetrics:
    """Counters and histograms of one server, in a registry of their own.

    requests               chat completions by HTTP status; 499: the client closed the connection
    chosen_scale           answers by scale
    visual_tokens          visual tokens of all answers, at all scales that were tried
    visual_tokens_saved    visual tokens at the finest scale minus those
    predictor_milliseconds    choices of scales, per batch
    answer_milliseconds    answers of this process, per batch
    upstream_milliseconds  responses of the engine behind a proxy, until the first byte
    batch_size             requests per batch
    queue_length           requests that wait for a batch
    requests_in_progress   requests that were accepted and are not finished
    drift_*                answers compared with the finest scale's (`experiments.serving.drift`)

    All names begin with `tokenscale_`.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._count("requests", "Chat completions by HTTP status", ["status"])
        self.chosen_scale = self._count("chosen_scale", "Answers by scale", ["scale"])
        self.visual_tokens = self._count("visual_tokens", "Visual tokens of all answers", [])
        # A gauge, since an escalation may take more tokens than the finest scale alone.
        self.saved = self._gauge("visual_tokens_saved", "Visual tokens at the finest scale minus those spent")
        self.predictor = self._time("predictor_milliseconds", "Choice of scales, per batch", _MILLISECONDS)
        self.answer = self._time("answer_milliseconds", "Answers, per batch", _MILLISECONDS)
        self.upstream = self._time(
            "upstream_milliseconds", "Response of the engine, until the first byte", _MILLISECONDS
        )
        self.batch_size = self._time("batch_size", "Requests per batch", _SIZES)
        self.queue_length = self._gauge("queue_length", "Requests that wait for a batch")
        self.in_progress = self._gauge("requests_in_progress", "Requests that are not finished")
        self.compared = self._count("drift_answers", "Answers compared with the finest scale's", ["scale"])
        self.disagreements = self._count("drift_disagreements", "Those with another text", ["scale"])
        self.disagreement = self._gauge(
            "drift_disagreement", "Their share, with a 95% interval (Clopper-Pearson)", ["scale", "value"]
        )
        self.promised = self._gauge("drift_promised", "Mean of the stated bounds of the disagreement")
        self.evidence = self._gauge("drift_evidence", "Evidence against the bounds; warning at 1 / delta")
        self.drifted = self._gauge("drift_warning", "1 if the stated bounds are no longer supported")
        self.not_compared = self._count("drift_skipped", "Answers that were to be compared", ["reason"])

    def _count(self, name: str, meaning: str, labels: list[str]) -> Counter:
        return Counter(f"tokenscale_{name}", meaning, labels, registry=self.registry)

    def _gauge(self, name: str, meaning: str, labels: Sequence[str] = ()) -> Gauge:
        return Gauge(f"tokenscale_{name}", meaning, labels, registry=self.registry)

    def _time(self, name: str, meaning: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"tokenscale_{name}", meaning, registry=self.registry, buckets=buckets)

    def count_choice(self, scale: int, visual_tokens: int, finest: int) -> None:
        """Count one answer with its scale and visual tokens, and those of the finest scale."""
        self.chosen_scale.labels(str(scale)).inc()
        self.visual_tokens.inc(visual_tokens)
        self.saved.inc(finest - visual_tokens)

    def format(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        return generate_latest(self.registry)
