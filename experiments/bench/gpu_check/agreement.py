"""Agreement of answers and logits on a device with the CPU, and conformance of every family."""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from experiments.bench.gpu_check.parts import Unavailable, Values
from experiments.parity.deviations import EXACT
from experiments.parity.recording import EXPECTED, compare_model
from m3_backbone.backbone import Answer
from m3_backbone.conformance import CHECKS, Subject, run_checks
from m3_backbone.conformance.subject import QUESTIONS, SIZES, draw_image
from m3_backbone.llava.backbone import LlavaBackbone
from m3_backbone.llava.downsampled import DownsampledLlavaBackbone
from m3_backbone.model_backbone import ModelBackbone
from m3_backbone.native.random_backbone import open_random_backbone
from m3_backbone.outcomes.shards import digest_file

# Allowed largest difference of logits: a share of the largest logit of the reference, or, in bfloat16, a
# multiple of the rounding error of the same weights in bfloat16 on the CPU, if that is more. That error
# differs between families: norms behind the layers, as those of Gemma 4, enlarge it.
ALLOWED_SHARE = 1e-4
ALLOWED_ROUNDING = 2.0
MAX_NEW_TOKENS = 4
_NATIVE = ("qwen2_5_vl", "qwen3_vl", "gemma4", "smolvlm", "idefics3", "internvl")
# The larger budgets of Gemma 4 take minutes on a CPU.
_SCALES = {"gemma4": (70, 140)}

Opener = Callable[..., ModelBackbone]


def list_families() -> dict[str, Opener]:
    """Return functions that open a small backbone of each family, given `device` and `dtype`."""
    families: dict[str, Opener] = {
        "m3": partial(LlavaBackbone, "tiny_m3", max_new_tokens=MAX_NEW_TOKENS),
        "m3_shrunk": partial(DownsampledLlavaBackbone, "tiny_m3", max_new_tokens=MAX_NEW_TOKENS),
    }
    for name in _NATIVE:
        families[name] = partial(
            open_random_backbone,
            model_type=name,
            name=name,
            scales=_SCALES.get(name),
            max_new_tokens=MAX_NEW_TOKENS,
        )
    return families


def compare_with_cpu(open_backbone: Opener, device: str, dtype: str) -> Values:
    """Compare a backbone on `device` in `dtype` with the same weights on the CPU in float32.

    Compares the greedy answers of the engine, and the logits of the model after the prompt, at the coarsest
    and the finest scale. Answers may differ where the margin between two tokens is at most twice the allowed
    difference of logits. In bfloat16 that difference depends on the rounding error of the CPU, so that on a
    CPU the logits agree by definition if they are finite.
    """
    reference = open_backbone(device="cpu", dtype="float32")
    backbone = open_backbone(device=device, dtype=dtype)
    rounded = None if dtype == "float32" else open_backbone(device="cpu", dtype=dtype)
    images = [draw_image(size) for size in list(SIZES.values())[:2]]
    questions = list(QUESTIONS[: len(images)])
    largest = largest_logit = rounding = 0.0
    pairs: list[tuple[Answer, Answer]] = []
    for scale in (backbone.scales[0], backbone.scales[-1]):
        for image, question in zip(images, questions, strict=True):
            expected = _compute_logits(reference, image, question, scale)
            difference = (_compute_logits(backbone, image, question, scale) - expected).abs()
            largest = max(largest, difference.nan_to_num(nan=torch.inf).max().item())
            largest_logit = max(largest_logit, expected.abs().max().item())
            if rounded is not None:
                error = (_compute_logits(rounded, image, question, scale) - expected).abs().max().item()
                rounding = max(rounding, error)
        answers = [b.answer(b.encode(images), questions, scale) for b in (backbone, reference)]
        pairs += zip(*answers, strict=True)
    allowed = max(ALLOWED_SHARE * largest_logit, ALLOWED_ROUNDING * rounding)
    different = [(a, b) for a, b in pairs if a.token_ids != b.token_ids]
    num_ties = sum(expected.margin <= 2 * allowed for _, expected in different)
    return {
        "agrees": largest <= allowed and num_ties == len(different),
        "answers": len(pairs),
        "same_answers": len(pairs) - len(different),
        "near_ties": num_ties,
        "largest_difference": largest,
        "allowed_difference": allowed,
    }


def find_recordings(folder: Path) -> list[Path]:
    """Return the folders in `folder` with recordings of the authors' code.

    Raises ValueError if there are none.
    """
    recordings = sorted(path.parent for path in folder.glob(f"*/{EXPECTED}"))
    if not recordings:
        raise ValueError(
            f"recordings={folder}: no folder in it has {EXPECTED}: give tests/fixtures/official_m3 of a clone"
        )
    return recordings


def digest_recordings(folders: Sequence[Path]) -> str:
    """Return a digest of what was recorded in the folders, eight hexadecimal digits."""
    digests = [digest_file(folder / EXPECTED) for folder in folders]
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:8]


def compare_with_recordings(folders: Sequence[Path], device: str, dtype: str) -> Values:
    """Compare checkpoints on `device` in `dtype` with values of the authors' code, as `parity fixture=` does.

    All values have to agree in float32. In bfloat16 the differences are only measured: the recordings are in
    float32, so they imply no bound.
    """
    if not folders:
        raise Unavailable("no recordings=DIR was given: a clone has them in tests/fixtures/official_m3")
    by_folder: dict[str, Values] = {}
    for folder in folders:
        deviations = list(compare_model(folder, device=device, dtype=dtype))
        differing = {deviation.quantity for deviation in deviations if deviation.size > deviation.allowed}
        numbers = [deviation.size for deviation in deviations if deviation.allowed != EXACT]
        by_folder[folder.name] = {
            "values_compared": len(deviations),
            "differing_quantities": sorted(differing),
            "largest_difference": max(numbers, default=0.0),
        }
    agrees = not any(values["differing_quantities"] for values in by_folder.values())
    return {"methods": by_folder, **({"agrees": agrees} if dtype == "float32" else {})}


@torch.no_grad()
def _compute_logits(backbone: ModelBackbone, image: Any, question: str, scale: int) -> torch.Tensor:
    """Return the logits `[vocabulary]` after the prompt, float32 on the CPU, by the model's own forward."""
    inputs = backbone.generate_inputs([image], [question], scale)
    model: Any = backbone.model
    inputs = {name: x.to(model.device) if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}
    return model(**inputs).logits[0, -1].float().cpu()


def check_conformance(open_backbone: Opener, device: str) -> Values:
    """Run all conformance checks on a backbone on `device` in float32."""
    subject = Subject(partial(open_backbone, device=device, dtype="float32"))
    results = list(run_checks(subject, CHECKS))
    failures = [f"{result.check}: {result.reason}"[:400] for result in results if result.outcome == "failed"]
    return {
        "agrees": not failures,
        "passed": sum(result.outcome == "ok" for result in results),
        "not_applicable": sum(result.outcome == "not applicable" for result in results),
        "failures": failures,
    }
