"""Check of a backbone inside an adaptive model, beside those of `m3_backbone.conformance`."""

from tempfile import TemporaryDirectory

from m3_backbone.conformance.subject import NotApplicable, Subject, expect
from predictor.adaptive.model import AdaptiveM3
from predictor.base import PredictorState
from predictor.classical.baselines import FixedScale
from predictor.policy.pricing import OperatingPoint, PriceList


def adaptive_model_is_saved_and_loaded(subject: Subject) -> None:
    """An adaptive model with this backbone gives the same answer after `save_pretrained` and loading.

    The weights of a checkpoint from a local folder are copied to a temporary folder.
    """
    backbone, question = subject.backbone, subject.questions[0]
    scale = backbone.scales[0]
    predictor = FixedScale(scale=scale)
    fingerprints = {**backbone.fingerprints, "data": "0"}
    predictor.load_state_dict(
        PredictorState(scales=list(backbone.scales), fingerprints=fingerprints, state={}, arrays={})
    )
    point = OperatingPoint(price=0.0, unit=1.0, cost=1.0, score=1.0)
    model = AdaptiveM3(backbone, predictor, PriceList(point, (point,)))
    name, image = next(iter(subject.images.items()))
    with TemporaryDirectory() as folder:
        try:
            model.save_pretrained(folder)
        except ValueError as error:
            raise NotApplicable(str(error)) from error
        device = getattr(backbone, "torch_device", None)
        loaded = AdaptiveM3.from_pretrained(folder, device=None if device is None else str(device))
        expected, found = (each.answer(image, question) for each in (model, loaded))
    expect(found.scale == scale, f"the loaded model answers at scale {scale}", found.scale)
    subject.expect_same(found.answer, expected.answer, f"image {name} at scale {scale}, saved and loaded")
