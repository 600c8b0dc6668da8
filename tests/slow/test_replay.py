"""The test split of scenes through the server: the same front as in an evaluation, point by point.

It needs labels of `tiny_m3` on `scenes` and a predictor that was trained on them, in TOKENSCALE_STORE (after
`tokenscale run`). REPLAY_QUESTIONS (default 300) questions of the test split are sent at each of five prices,
with the price in the request. The table is printed (`-s`).
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from experiments.command_line.script import find_config_dir
from experiments.labels.held_out import EvaluationRecorder
from experiments.reporting.tables import format_table
from experiments.serving.configured import load_model
from experiments.tasks.scenes import Scenes
from predictor.policy.front import choose
from tests.experiments.serving.conftest import ask, make_local, serve, to_url

STORE = os.environ.get("TOKENSCALE_STORE", "")
LABELS = Path(STORE) / "labels" / "tiny_m3" / "scenes"
NUM_QUESTIONS = int(os.environ.get("REPLAY_QUESTIONS", "300"))
PRICES = tuple(map(float, os.environ.get("REPLAY_PRICES", "0,0.02,0.05,0.2,1").split(",")))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not (STORE and LABELS.is_dir()), reason="needs labels in TOKENSCALE_STORE"),
]


def test_the_server_reaches_the_points_of_the_evaluation(tmp_path):
    trained = os.environ.get("REPLAY_TRAINED")
    with initialize_config_dir(str(find_config_dir()), version_base="1.3"):
        config = compose("serve", [f"trained={trained}"] if trained else [])
    model = load_model(config)
    recorder = EvaluationRecorder(tmp_path / "evaluations", "tests/slow/test_replay.py")
    test, _ = recorder.open_test(LABELS, {"replay": model.predictor.name})
    test = test.select(slice(NUM_QUESTIONS))
    estimates, tokens, unit = (
        model.predictor.predict(test.inputs),
        test.inputs.visual_tokens,
        model.prices.default.unit,
    )
    task = Scenes(num_images={"train": 1500, "calibration": 250, "test": 500}, seed=1)
    sample_of = {sample.sample_id: sample for sample in task.samples("test")}
    samples = [sample_of[sample_id] for sample_id in test.outcomes.sample_id]
    urls = {image_id: to_url(task.image(image_id)) for image_id in {sample.image_id for sample in samples}}
    rows = [["price", "tokens, server", "tokens, evaluation", "score, server", "score, evaluation", "equal"]]
    with serve(make_local(model)) as (url, _), httpx.Client(timeout=600) as client:
        for price in PRICES:

            def send(sample, price=price):
                body = ask(sample.question, urls[sample.image_id], price=price)
                response = client.post(f"{url}/v1/chat/completions", json=body)
                assert response.status_code == 200, response.text
                content = response.json()
                answer = content["choices"][0]["message"]["content"]
                return content["tokenscale"]["scale"], content["usage"]["visual_tokens"], answer

            with ThreadPoolExecutor(8) as pool:
                replies = list(pool.map(send, samples))
            columns = choose(estimates, tokens, price, unit=unit)
            scales = np.array(test.outcomes.scales)[columns]
            expected_cost = np.take_along_axis(tokens, columns[:, None], axis=1)[:, 0]
            expected_score = np.take_along_axis(test.outcomes.score, columns[:, None], axis=1)[:, 0]
            score = [
                task.score(sample, answer) for sample, (*_, answer) in zip(samples, replies, strict=True)
            ]
            same = np.array([reply[0] for reply in replies]) == scales
            same &= np.array(score) == expected_score
            cost = np.array([reply[1] for reply in replies])
            rows.append(
                [
                    f"{price:g}",
                    f"{cost.mean():.3f}",
                    f"{expected_cost.mean():.3f}",
                    f"{np.mean(score):.4f}",
                    f"{expected_score.mean():.4f}",
                    f"{same.sum()} of {len(same)}",
                ]
            )
            # A near tie of two estimates or of two tokens may be decided by rounding (docs/labelling.md).
            assert same.mean() >= 0.995
    print("\n" + format_table(rows))
