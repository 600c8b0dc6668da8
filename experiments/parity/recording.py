"""Comparison of a checkpoint, the scorers and the router with recorded values of the authors' code."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from experiments.parity.deviations import (
    NUMBER,
    Deviation,
    compare_tensors,
    compare_values,
    read_tensors,
)
from experiments.tasks.scoring import score
from m3_backbone.llava.backbone import LlavaBackbone
from m3_backbone.llava.pooling import grid_scales, pool
from predictor.networks.avg_router import NUM_WORDS, AVGRouter
from predictor.networks.base import InputShape
from predictor.objectives.likelihood import rank_by_likelihood

HALF = 2e-3  # allowed deviation of pixel values, which are recorded as float16
RECORDED_IMAGE = -200  # placeholder of the image in the recorded token ids
EXPECTED = "expected.json"
CASE_KEYS = (
    "image",
    "question",
    "prompt",
    "reference_answer",
    "prompt_ids",
    "full_ids",
    "scale",
    "visual_tokens",
    "answer_nll",
    "answer_len",
    "generated_ids",
    "generated_text",
)


def compare_scorers(file: Path) -> Iterator[Deviation]:
    """Yield the deviation for each row of a JSON list of {metric, prediction, references, score}."""
    for number, row in enumerate(_read_json(file)):
        _require(row, ("metric", "prediction", "references", "score"), f"row {number} of {file}")
        computed = score(row["metric"], row["prediction"], row["references"])
        yield Deviation.of_number(f"score: {row['metric']}", f"row {number}", computed, row["score"])


def compare_model(folder: Path, *, device: str = "cpu", dtype: str = "float32") -> Iterator[Deviation]:
    """Yield the deviations of the checkpoint in a folder from everything recorded there."""
    recorded = _read_json(folder / EXPECTED)
    _require(recorded, ("cases", "training_loss_image0"), folder / EXPECTED)
    cases: list[dict[str, Any]] = recorded["cases"]
    for number, case in enumerate(cases):
        _require(case, CASE_KEYS, f"case {number} of {folder / 'expected.json'}")
    file = folder / "expected.safetensors"
    tensors = read_tensors(file)
    images = {name: _read_image(folder / name) for name in {case["image"]: None for case in cases}}
    backbone = LlavaBackbone(
        folder / "checkpoint",
        scales=sorted({case["scale"] for case in cases}),
        dtype=dtype,
        device=device,
        max_new_tokens=max(len(case["generated_ids"]) for case in cases),
    )
    encoded = dict(zip(images, backbone.encode(list(images.values())), strict=True))
    for name, image in images.items():
        if (pixels := tensors.get(f"{Path(name).stem}.pixel_values")) is not None:
            computed = backbone.processor.images(image)
            yield compare_tensors("pixel values", name, computed.reshape(pixels.shape), pixels, HALF)
    losses = []
    for case in cases:
        where = f"{Path(case['image']).stem}.scale{case['scale']}"
        image, scale = images[case["image"]], case["scale"]
        yield from _compare_text(backbone, case, where)
        (visual,) = backbone.visual_tokens([encoded[case["image"]]], scale)
        counts = (len(visual), backbone.num_visual_tokens(image.size, scale))
        yield compare_values("number of visual tokens", where, counts, (case["visual_tokens"],) * 2)
        yield compare_tensors(
            "visual tokens", where, visual, _take(tensors, f"{where}.visual_tokens", file), NUMBER
        )
        logits, loss = _run_model(backbone, image, case)
        yield compare_tensors("logits", where, logits, _take(tensors, f"{where}.last_logits", file), NUMBER)
        if Path(case["image"]).stem == "image0":
            losses.append(loss)
        yield from _compare_answer(backbone, encoded[case["image"]], case, where)
    mean = sum(losses) / max(len(losses), 1)
    yield Deviation.of_number("training loss", "image0", mean, recorded["training_loss_image0"])


def _compare_text(backbone: LlavaBackbone, case: Mapping[str, Any], where: str) -> Iterator[Deviation]:
    processor = backbone.processor
    ids = processor.prompt_ids(case["question"])
    answer_ids = processor.answer_ids(case["reference_answer"])
    recorded, full = (
        [processor.image_token_id if token == RECORDED_IMAGE else token for token in case[name]]
        for name in ("prompt_ids", "full_ids")
    )
    yield compare_values("prompt", where, processor.template.format(case["question"]), case["prompt"])
    yield compare_values("prompt ids", where, ids, recorded)
    yield compare_values("prompt and reference ids", where, ids + answer_ids, full)
    yield compare_values("length of the reference", where, len(answer_ids), case["answer_len"])


def _compare_answer(
    backbone: LlavaBackbone, encoded: Any, case: Mapping[str, Any], where: str
) -> Iterator[Deviation]:
    question, reference = case["question"], case["reference_answer"]
    (answer,) = backbone.answer([encoded], [question], case["scale"], references=[[reference]])
    # The recording begins with the start token, which is not part of the answer, and may be truncated.
    recorded = case["generated_ids"][1:]
    computed = answer.token_ids[: len(recorded)]
    yield compare_values("greedy ids", where, computed, recorded)
    yield compare_values("greedy text", where, backbone.processor.decode(computed), case["generated_text"])
    assert answer.nll is not None
    yield Deviation.of_number("reference NLL", where, answer.nll, case["answer_nll"])


@torch.no_grad()
def _run_model(backbone: LlavaBackbone, image: Image.Image, case: Mapping[str, Any]) -> tuple[Tensor, float]:
    """Return the logits `[vocabulary]` after the prompt, and the causal loss on the reference."""
    inputs = backbone.processor(image, case["prompt"], case["scale"])
    answer = torch.tensor([backbone.processor.answer_ids(case["reference_answer"])])
    prompt_length = inputs["input_ids"].shape[1]
    input_ids = torch.cat([inputs.pop("input_ids"), answer], dim=1)
    labels = input_ids.clone()
    labels[:, :prompt_length] = -100
    inputs |= {"input_ids": input_ids, "labels": labels, "attention_mask": torch.ones_like(input_ids)}
    on_device = {name: values.to(backbone.model.device) for name, values in inputs.items()}
    outputs = backbone.model(token_scale=case["scale"], **on_device)
    return outputs.logits[0, prompt_length - 1], float(outputs.loss)


def _take(tensors: Mapping[str, Tensor], name: str, file: Path) -> Tensor:
    if name not in tensors:
        raise ValueError(f"{file} lacks {name}: the recording is incomplete, record it again")
    return tensors[name]


def _require(row: Any, keys: Sequence[str], where: object) -> None:
    missing = [key for key in keys if not isinstance(row, dict) or key not in row]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}: the recording is incomplete, record it again")


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON ({error}): record it again") from error


def _read_image(file: Path) -> Image.Image:
    with Image.open(file) as image:
        return image.convert("RGB")


STATE = "router."


@torch.no_grad()
def compare_router(file: Path) -> Iterator[Deviation]:
    """Yield the deviations for everything recorded in a router file.

    `router.*` is a state dict; each `case*` has `tile_tokens` [num_tiles, grid * grid, hidden],
    `question_embeddings` [num_words, hidden], `question_mask` [num_words] and the resulting `logits`
    [num_scales]; and `rglf.logits`, `rglf.nll` [batch, num_scales] with `rglf.cross_entropy` and
    `rglf.rank_loss_margin1`. Raises ValueError if any of these is missing.
    """
    recorded = read_tensors(file)
    state = {name.removeprefix(STATE): x for name, x in recorded.items() if name.startswith(STATE)}
    cases = sorted({name.split(".")[0] for name in recorded if name.startswith("case")})
    if not state or not cases:
        raise ValueError(f"{file} has no router with cases: give a file with {STATE}* and case0.*")
    tokens = _take(recorded, f"{cases[0]}.tile_tokens", file)
    scales = grid_scales(round(tokens.shape[1] ** 0.5))
    router = AVGRouter(InputShape(tokens.shape[2], sum(scales), 0), len(scales), attention="crops").eval()
    try:
        router.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"the router in {file} is not one of AVG-LLaVA's over scales {', '.join(map(str, scales))} and "
            f"{NUM_WORDS} words: {error}"
        ) from error
    for case in cases:
        tokens, words, mask, logits = (
            _take(recorded, f"{case}.{name}", file)
            for name in ("tile_tokens", "question_embeddings", "question_mask", "logits")
        )
        computed = router.route([pool(tokens, scale) for scale in scales], words, mask)
        yield compare_tensors("router logits", case, computed, logits, NUMBER)
    logits, nll = _take(recorded, "rglf.logits", file), _take(recorded, "rglf.nll", file)
    entropy = nn.functional.cross_entropy(logits, nll.argmin(dim=1))
    for name, loss in (
        ("cross_entropy", entropy),
        ("rank_loss_margin1", rank_by_likelihood(logits, nll, 1.0)),
    ):
        expected = _take(recorded, f"rglf.{name}", file)
        yield Deviation.of_number(f"loss: {name}", "rglf", float(loss), float(expected))
