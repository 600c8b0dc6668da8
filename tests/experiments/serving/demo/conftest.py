"""A demo on the small adaptive model, with a hybrid, and its folder of uploads."""

import io

import numpy as np
import pytest

from experiments.serving.demo.handlers import Demo, Terms
from experiments.serving.limits import Limits
from predictor.adaptive.model import AdaptiveVLM
from predictor.cascades.hybrid import Hybrid


@pytest.fixture(scope="session")
def escalating(model):
    """The small model with a hybrid that was fitted to random outcomes."""
    random, scales = np.random.default_rng(0), model.backbone.scales
    score = (random.random((60, len(scales))) < np.linspace(0.3, 0.9, len(scales))).astype(float)
    cost = np.tile(np.array(scales, dtype=float), (60, 1))
    hybrid = Hybrid.fit(random.uniform(0.2, 1, score.shape), score, cost, random.random(score.shape))
    return AdaptiveVLM(model.backbone, model.predictor, model.prices, hybrid)


@pytest.fixture
def demo(escalating, tmp_path):
    return Demo(escalating, Limits(pixels=1_000_000, question_chars=200), tmp_path / "files")


@pytest.fixture
def upload(demo):
    """Store the bytes of a file, or an image, as an upload, and describe it as Gradio does."""

    def store(content, name="picture.png"):
        folder = demo.folder / "uploads" / "0123abcd"
        folder.mkdir(parents=True, exist_ok=True)
        if not isinstance(content, bytes):
            file = io.BytesIO()
            content.save(file, "PNG")
            content = file.getvalue()
        (folder / name).write_bytes(content)
        return {
            "path": str(folder / name),
            "url": f"http://127.0.0.1/gradio_api/file={folder / name}",
            "orig_name": name,
            "meta": {"_type": "gradio.FileData"},
        }

    return store


def make_terms(mode="default", budget=20.0, price=0.1, escalates=False):
    return Terms(mode=mode, budget=budget, price=price, escalates=escalates)
