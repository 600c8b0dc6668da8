"""Adaptive models: a predictor and a backbone in one object."""

from typing import Any


def make_manifest() -> Any:
    """Return the registration of the model `tokenscale` in lmms-eval (entry point `lmms_eval.models`)."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("tokenscale", chat_class_path="predictor.adaptive.lmms_model.AdaptiveLmms")
