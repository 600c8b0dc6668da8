"""Comparison of answers with the finest scale's: what it counts and records, and that it disturbs nothing."""

import asyncio
import json
import logging
import re
import stat
import time
from dataclasses import replace

import httpx
import pytest
from starlette.responses import JSONResponse, StreamingResponse

from experiments.serving.adapters import ImageArguments
from experiments.serving.drift import ComparedAnswer, DriftMonitor, Record, identify_model
from experiments.serving.images import ImageReader
from experiments.serving.limits import Limits
from experiments.serving.local import LocalService
from experiments.serving.metrics import ServerMetrics
from experiments.serving.protocol import ChosenScale, Terms
from experiments.serving.server import make_app
from m3_backbone.native.random_backbone import open_random_backbone
from predictor.adaptive.model import AdaptiveVLM
from predictor.policy.pricing import PriceList
from tests.experiments.serving.conftest import COLOR, COUNT, ask, draw_picture, make_fixed, serve, to_url
from tests.experiments.serving.test_proxy import ANSWER, Engine, make_proxy
from tests.m3_backbone.native.reference import draw_noise

SCALES = (1, 9, 36, 144)


def read_metrics(url):
    """Drift metrics by name and labels."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    rows = [re.fullmatch(r"tokenscale_drift_(\w+)(\{.*\})? (\S+)", line) for line in lines]
    return {f"{row[1]}{row[2] or ''}": float(row[3]) for row in rows if row and "created" not in row[1]}


def wait_for(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def make_service(model, monitor, metrics):
    limits = Limits()
    service = LocalService(
        model,
        ImageReader(limits),
        metrics,
        default=Terms(),
        window_ms=1.0,
        max_batch=8,
        drift=monitor,
    )
    return service, make_app(service, metrics, limits, max_requests=64)


def bound(model, disagreement):
    """The model with this bound at every point."""
    prices = model.prices
    points = [replace(point, disagreement=disagreement) for point in prices.points]
    named = {name: replace(point, disagreement=disagreement) for name, point in prices.named.items()}
    return AdaptiveVLM(model.backbone, model.predictor, PriceList(points[0], tuple(points), named))


@pytest.mark.long
def test_answers_are_compared_and_recorded(model, tmp_path):
    metrics, path = ServerMetrics(), tmp_path / "record.jsonl"
    bounded = bound(model, 0.25)
    record = Record(path, identify_model(model.backbone, model.predictor), 10**6)
    monitor = DriftMonitor(metrics, share=1.0, record=record)
    pictures = [draw_picture("red"), draw_picture("green", (160, 96))]
    with serve(make_service(bounded, monitor, metrics)[1]) as (url, _):
        for picture in pictures:
            for question, fields in (
                (COLOR, {}),
                (COUNT, {}),
                (COUNT, {"scale": 9}),
                (COLOR, {"stream": True}),
            ):
                body = ask(question, to_url(picture), **fields)
                assert httpx.post(f"{url}/v1/chat/completions", json=body).status_code == 200
        wait_for(lambda: sum(v for k, v in read_metrics(url).items() if k.startswith("answers_total")) == 8)
        found = read_metrics(url)
    answer = {
        (number, question, scale): model.backbone.answer(model.encode([picture]), [question], scale)[0].text
        for number, picture in enumerate(pictures)
        for question in (COLOR, COUNT)
        for scale in SCALES
    }
    differs = {key: answer[key] != answer[(*key[:2], 144)] for key in answer}
    for scale, asked in ((1, [COLOR, COLOR]), (9, [COUNT]), (144, [COUNT])):
        number = sum(differs[n, question, scale] for n in (0, 1) for question in asked)
        assert found[f'answers_total{{scale="{scale}"}}'] == 2 * len(asked)
        assert found[f'disagreements_total{{scale="{scale}"}}'] == number
        assert found[f'disagreement{{scale="{scale}",value="estimate"}}'] == number / (2 * len(asked))
    # Clopper & Pearson: none of two has the upper limit 1 - 0.025^(1 / 2).
    assert found['disagreement{scale="144",value="high"}'] == pytest.approx(1 - 0.025**0.5)
    assert found["promised"] == pytest.approx(0.25) and found["warning"] == 0
    assert monitor.test.num_values == 6  # not the requests that set a scale

    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 6 and len({line["image"] for line in lines}) == 2
    assert lines[0].keys() == {
        "model", "image", "scales", "visual_tokens", "estimates", "scale", "answers", "agrees",
    }  # fmt: skip
    first = next(line for line in lines if line["scale"] == 144)
    assert first["answers"] == [answer[0, COUNT, scale] for scale in SCALES]
    assert first["agrees"] == [not differs[0, COUNT, scale] for scale in SCALES]
    assert COUNT not in path.read_text() and "base64" not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_failure_in_the_background_is_counted_and_nothing_else(model, caplog):
    metrics = ServerMetrics()
    service, app = make_service(model, DriftMonitor(metrics, share=1.0), metrics)

    def fail(asked, scale):
        raise RuntimeError("secret")

    service._answer_at = fail
    with serve(app) as (url, _), caplog.at_level(logging.WARNING):
        for _ in range(3):
            response = httpx.post(f"{url}/v1/chat/completions", json=ask(COLOR, to_url(draw_picture())))
            assert response.status_code == 200
        wait_for(lambda: read_metrics(url).get('skipped_total{reason="error"}') == 3)
    assert "RuntimeError" in caplog.text and "secret" not in caplog.text


def test_an_answer_whose_client_has_gone_is_not_compared(model):
    """Of a part of a stream nothing is known, and the next answers are compared."""
    metrics = ServerMetrics()
    service, _ = make_service(model, DriftMonitor(metrics, share=1.0), metrics)

    async def main():
        await service.drift.start()
        task = asyncio.create_task(asyncio.sleep(1000))
        task.cancel()
        await service.drift.submit(lambda: service._compare(None, task, "digest"))
        await service.drift.submit(lambda: asyncio.sleep(0, compare(differs=False)))
        while "tokenscale_drift_answers_total{" not in (text := metrics.format().decode()):
            await asyncio.sleep(0.01)
        assert 'tokenscale_drift_skipped_total{reason="error"} 1.0' in text
        await service.drift.stop()

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_full_queue_drops_and_a_stop_does_not_wait():
    metrics = ServerMetrics()
    monitor = DriftMonitor(metrics, share=1.0, max_queue=2)

    async def wait():
        await asyncio.sleep(1000)
        return compare(differs=False)

    async def main():
        await monitor.start()
        await monitor.submit(wait)
        await asyncio.sleep(0.01)  # it runs, and does not wait any more
        for _ in range(4):
            await monitor.submit(wait)
        await monitor.stop()

    asyncio.run(main())
    assert 'tokenscale_drift_skipped_total{reason="queue"} 2.0' in metrics.format().decode()


def test_the_share_is_that_of_the_answers():
    monitor = DriftMonitor(ServerMetrics(), share=0.02, seed=0)
    assert 150 < sum(monitor.selects() for _ in range(10_000)) < 250
    assert not any(DriftMonitor(ServerMetrics(), share=0.0).selects() for _ in range(100))


def compare(scale=1, *, differs, bound=0.05):
    chosen = ChosenScale(
        scale=scale,
        tried=[scale],
        visual_tokens=scale,
        finest_visual_tokens=144,
        estimates=dict.fromkeys(SCALES, 0.5),
        price=0.1,
    )
    answers = {**dict.fromkeys(SCALES, "red"), scale: "blue" if differs else " red"}
    return ComparedAnswer(chosen, SCALES, SCALES, answers, bound, "0" * 16)


def test_a_warning_is_given_once_when_the_bounds_are_no_longer_supported(caplog):
    metrics = ServerMetrics()
    monitor = DriftMonitor(metrics, share=1.0)
    with caplog.at_level(logging.WARNING):
        for _ in range(100):
            monitor.add(compare(differs=False))
        assert not caplog.records and "tokenscale_drift_warning 0.0" in metrics.format().decode()
        for _ in range(20):
            monitor.add(compare(differs=True))
    (warning,) = caplog.records
    assert "than the 0.05 that the operating points state (level 0.05)" in warning.getMessage()
    assert "tokenscale_drift_warning 1.0" in metrics.format().decode()
    unbounded = DriftMonitor(ServerMetrics(), share=1.0)
    for _ in range(100):
        unbounded.add(compare(differs=True, bound=None))
    assert unbounded.test.num_values == 0


def test_a_record_stays_below_its_size(tmp_path, caplog):
    path = tmp_path / "record.jsonl"
    record = Record(path, "m", 1000)
    for _ in range(20):
        record.add(compare(differs=True))
    assert 500 < path.stat().st_size <= 1000 and len(caplog.records) == 1
    with pytest.raises(ValueError, match=r"drift.record=.* cannot be written .*: give another file"):
        Record(tmp_path, "m", 1000)


def answer_by_size(body):
    """Engine whose answer depends on the scale of the image; streams come in pieces."""
    area = body["mm_processor_kwargs"]["max_pixels"]
    text = "coarse answer" if area <= 16 * 32**2 else "fine answer"
    if not body.get("stream"):
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        return JSONResponse({**ANSWER, "choices": [choice]})
    pieces = [
        {"choices": [{"index": 0, "delta": {"content": piece}}]} for piece in re.findall(r"\w+ ?", text)
    ]
    lines = [f"data: {json.dumps(piece)}\n\n" for piece in pieces]
    return StreamingResponse(iter([*lines, "data: [DONE]\n\n"]), media_type="text/event-stream")


def test_an_engine_is_asked_again_at_the_finest_scale():
    backbone = open_random_backbone(model_type="qwen3_vl", name="qwen", scales=[4, 16, 64], device="cpu")
    predictor, prices = make_fixed(backbone, 16)
    point = replace(prices.default, disagreement=0.5)
    engine, metrics = Engine(answer_by_size), ServerMetrics()
    monitor = DriftMonitor(metrics, share=1.0)
    picture = to_url(draw_noise([(640, 480)])[0])
    key = {"authorization": "Bearer sk-1"}
    with serve(engine.app) as (upstream, _):
        app = make_proxy(
            upstream,
            backbone,
            (predictor, PriceList(point, (point,))),
            ImageArguments(),
            drift=monitor,
            metrics=metrics,
        )
        with serve(app) as (url, _):
            for fields in ({"temperature": 0}, {"temperature": 0, "stream": True}, {}, {"temperature": 1}):
                body = ask(COUNT, picture, seed=5, **fields)
                response = httpx.post(f"{url}/v1/chat/completions", json=body, headers=key)
                assert response.status_code == 200 and "coarse" in response.text
            fine = ask(COUNT, picture, temperature=0, scale=64)
            assert "fine" in httpx.post(f"{url}/v1/chat/completions", json=fine, headers=key).text
            wait_for(lambda: len(engine.bodies) == 7)
            wait_for(lambda: read_metrics(url).get('answers_total{scale="64"}') == 1)
            found = read_metrics(url)
    assert found['answers_total{scale="16"}'] == found['disagreements_total{scale="16"}'] == 2
    assert found['disagreements_total{scale="64"}'] == 0  # known without asking again
    assert found["promised"] == 0.5
    again = [body for body in engine.bodies if body["mm_processor_kwargs"]["max_pixels"] > 16 * 32**2]
    assert len(again) == 3 and not any("stream" in body for body in again)
    assert all(headers["authorization"] == "Bearer sk-1" for headers in engine.headers)
    assert all(body["messages"][0]["content"][0]["image_url"]["url"] == picture for body in engine.bodies)
    assert [body.get("seed") for body in again].count(5) == 2
