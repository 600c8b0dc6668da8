"""Settings of the commands that use a trained predictor with its backbone."""

from typing import Annotated, Self
from urllib.parse import urlsplit

from annotated_types import Ge, Le, Len
from pydantic import AfterValidator, model_validator

from experiments.settings.base import Built, Labelled, PathText, Refusal, Settings
from experiments.settings.pipeline import Guarantee
from m3_backbone.arguments import (
    ClosedFraction,
    NonNegativeFloat,
    OpenFraction,
    PositiveFloat,
    PositiveInt,
    Seed,
)


def _check_repo(name: str) -> str:
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except ValueError as error:
        raise Refusal("give USER/NAME of letters, digits and ._-, as on the Hugging Face hub") from error
    return name


RepoName = Annotated[str, AfterValidator(_check_repo)]


class TrainedChoice(Labelled):
    """Selection of a trained predictor."""

    backbone: Built
    """frozen model that answers"""
    predictor: Built
    """predictor that estimates which scale a question needs"""
    seed: Seed
    """seed that the predictor was trained with"""
    trained: PathText | None
    """folder of the trained predictor if several match; null: the only match"""
    trust: list[str]
    """packages, modules or classes that the folder may be built from, besides tokenscale and predictor"""


class OperatingPoint(Settings):
    """Operating point of the policy; all null: the default price."""

    price: NonNegativeFloat | None
    """price of one answer at the finest scale, in estimated chance; 0.1: ten points"""
    budget: PositiveFloat | None
    """mean visual tokens to stay within"""
    point: str | None
    """name of an operating point saved with the prices"""


class AnswerSettings(TrainedChoice, OperatingPoint):
    """`experiments.answer`."""

    image: PathText
    """path of the image"""
    question: str
    """question about the image"""
    scale: PositiveInt | None
    """scale to force; null: the predictor chooses"""
    escalate: bool
    """whether to retry at finer scales, given the answer, while that is worth it"""


def _check_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise Refusal("give the URL of an engine without credentials, as http://127.0.0.1:8001, or null")
    return url


class DemoLimits(Settings):
    """Limits of a question in the demo."""

    body_seconds: PositiveFloat
    """time in which a request has to arrive"""
    image_bytes: PositiveInt
    """largest size of an image file"""
    pixels: PositiveInt
    """largest number of pixels of an image"""
    question_chars: PositiveInt
    """largest number of characters of a question"""


class LimitSettings(DemoLimits):
    """Limits of a request."""

    body_bytes: PositiveInt
    """largest size of a request"""


class DriftSettings(Settings):
    """Comparison of answers with the finest scale's."""

    share: ClosedFraction
    """share of the answers that are compared in the background; 0: none"""
    delta: OpenFraction
    """largest probability of a warning while the stated disagreement holds"""
    max_queue: PositiveInt
    """comparisons that may wait; more are dropped"""
    record: PathText | None
    """file that compared answers, at all scales, are appended to; null: none"""
    record_bytes: PositiveInt
    """largest size of this file"""

    @model_validator(mode="after")
    def _check_record(self) -> Self:
        if self.record is not None and not self.share:
            raise Refusal(f"drift.record={self.record}, drift.share=0: give a share above 0, as 0.02")
        return self


class ServeSettings(TrainedChoice, OperatingPoint):
    """`experiments.serve`."""

    folder: PathText | None
    """folder of a published model; null: backbone and predictor"""
    host: Annotated[str, Len(1)]
    """address that the server listens at"""
    port: Annotated[int, Ge(0), Le(65535)]
    """port that the server listens at; 0: any free one"""
    upstream: Annotated[str, AfterValidator(_check_url)] | None
    """URL of an engine that answers; null: this process answers"""
    upstream_seconds: PositiveFloat
    """time that the engine may take between two pieces of a response"""
    adapter: Built
    """form in which the engine takes a scale"""
    scale: PositiveInt | None
    """scale of requests that do not choose one; null: the predictor chooses"""
    escalate: bool
    """whether answers are retried at finer scales while that is worth it"""
    window_ms: NonNegativeFloat
    """milliseconds for which an idle server waits for more requests"""
    max_batch: PositiveInt
    """most requests that are answered together"""
    max_requests: PositiveInt
    """most requests in progress, waiting ones included; more are answered with 429"""
    shutdown_seconds: PositiveInt
    """seconds in which a server that stops finishes its requests"""
    drift: DriftSettings
    limits: LimitSettings
    allow_remote_images: bool
    """whether images by URL are fetched from remote_hosts"""
    remote_hosts: list[Annotated[str, Len(1)]]
    """hosts that images are fetched from"""

    @model_validator(mode="after")
    def _check_remote_hosts(self) -> Self:
        if self.allow_remote_images != bool(self.remote_hosts):
            raise Refusal(
                f"allow_remote_images={str(self.allow_remote_images).lower()}, "
                f"remote_hosts=[{','.join(self.remote_hosts)}]: give both or neither"
            )
        return self


class DemoSettings(TrainedChoice):
    """`experiments.demo`."""

    task: Built
    """task whose training pictures are offered"""
    folder: PathText | None
    """folder of a published model; null: backbone and predictor"""
    host: Annotated[str, Len(1)]
    """address that the page is served at"""
    port: Annotated[int, Ge(0), Le(65535)]
    """port that the page is served at; 0: any free one"""
    num_examples: Annotated[int, Ge(0), Le(20)]
    """pictures that are offered"""
    max_waiting: PositiveInt
    """most questions that wait for an answer; more are refused"""
    limits: DemoLimits


class PublishSettings(TrainedChoice):
    """`experiments.publish`."""

    folder: PathText
    """folder that the model is written to"""
    repo: RepoName | None
    """USER/NAME on the Hugging Face hub; null: the model is not uploaded"""
    private: bool
    """whether a new repository is private"""
    guarantee: Guarantee


class RecalibrateSettings(TrainedChoice):
    """`experiments.recalibrate`."""

    folder: PathText | None
    """folder of a published model; null: backbone and predictor"""
    output: PathText
    """folder that is written"""
    calibrator: Built | None = None
    """recalibration of the estimates on half of the images; null: that of the predictor stays"""
    record: PathText | None
    """answers that a server has recorded; null: the labels of backbone and task"""
    num_images: PositiveInt | None
    """images whose samples are used; null: all"""
    budget: PositiveFloat | None
    """mean visual tokens that the default price may spend; null: chosen by tolerance"""
    tolerance: NonNegativeFloat
    """score that the default price may lose to the best fixed scale; 0.01: one point"""
    guarantee: Guarantee
