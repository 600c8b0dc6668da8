"""The conformance suite is green for the backbones of the package, and each check fails when it should."""

import importlib
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import m3_backbone
from m3_backbone.backbone import Backbone
from m3_backbone.conformance import CHECKS, Check, Failed, NotApplicable, Result, Subject, run_checks
from m3_backbone.conformance.subject import draw_image, select_checks
from m3_backbone.llava.backbone import LlavaBackbone
from m3_backbone.llava.downsampled import DownsampledLlavaBackbone
from m3_backbone.llava.pruned import PrunedLlavaBackbone
from m3_backbone.native.random_backbone import open_random_backbone
from m3_backbone.views import Panel
from tests.pages import write_blocks
from tests.paths import FIXTURES, ROOT
from tests.query_checkpoint import write_query_checkpoint

CHECK_OF = {check.__name__: check for check in CHECKS}
NAMES = list(CHECK_OF)
IMAGES = {"wide": draw_image((448, 320)), "tall": draw_image((160, 360)), "small": draw_image((48, 32))}
SHORT: dict[str, Any] = {"device": "cpu", "max_new_tokens": 4}


def open_random(model_type: str, *scales: int) -> Backbone:
    return open_random_backbone(model_type=model_type, name=model_type, scales=scales or None, **SHORT)


# The folder is removed when the process ends.
_FOLDER = tempfile.TemporaryDirectory()


@cache
def query_checkpoint() -> Path:
    return write_query_checkpoint(Path(_FOLDER.name) / "queries")


OPENERS: dict[str, Callable[[], Backbone]] = {
    "tiny_m3": lambda: LlavaBackbone("tiny_m3", dtype="float32", **SHORT),
    "tiled": lambda: LlavaBackbone(FIXTURES / "official_m3/llavanext/checkpoint", scales=[1, 9, 36], **SHORT),
    "queries": lambda: LlavaBackbone(query_checkpoint(), scales=[2, 16, 64], dtype="float32", **SHORT),
    "shrunk": lambda: DownsampledLlavaBackbone("tiny_m3", dtype="float32", **SHORT),
    "qwen3_vl": lambda: open_random("qwen3_vl", 16, 64, 256),
    "qwen2_5_vl": lambda: open_random("qwen2_5_vl", 16, 64, 256),
    # At its finer scales the tower sees up to 10,080 patches: minutes on a CPU.
    "gemma4": lambda: open_random("gemma4", 70, 140),
    "smolvlm": lambda: open_random("smolvlm"),
    "internvl": lambda: open_random("internvl"),
    "enlarged": lambda: DownsampledLlavaBackbone(
        "tiny_m3", downsampling="enlarged", dtype="float32", **SHORT
    ),
    "diversity": lambda: PrunedLlavaBackbone("tiny_m3", pruning="diversity", dtype="float32", **SHORT),
    "visionzip": lambda: PrunedLlavaBackbone("tiny_m3", pruning="visionzip", dtype="float32", **SHORT),
    "tiled_visionzip": lambda: PrunedLlavaBackbone(
        FIXTURES / "official_m3/llavanext/checkpoint", pruning="visionzip", scales=[1, 9, 36], **SHORT
    ),
}
# Ladders of the same weights and code as tiny_m3 or the tiled checkpoint.
SLOW = ("shrunk", "enlarged", "diversity", "visionzip", "tiled_visionzip")
# `make test` checks one backbone of each kind: pooled, with learned queries, and native.
LONG = ("tiled", "qwen2_5_vl", "gemma4", "smolvlm", "internvl")
MARKS = dict.fromkeys(SLOW, pytest.mark.slow) | dict.fromkeys(LONG, pytest.mark.long)


@pytest.fixture(scope="module")
def subjects() -> dict[str, Subject]:
    return {name: Subject(opener, IMAGES) for name, opener in OPENERS.items()}


@pytest.mark.long
@pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS.get(name, ())) for name in OPENERS])
@pytest.mark.parametrize("check", CHECKS)
def test_backbones_of_the_package_conform(name, check, subjects):
    check(subjects[name])


@pytest.mark.parametrize("name", [name for name in OPENERS if name not in SLOW])
def test_backbones_of_the_package_refuse_an_unknown_scale_with_one_message(name, subjects):
    backbone = subjects[name].backbone
    with pytest.raises(ValueError, match="scale 5 is not on the ladder of this backbone: choose one of"):
        backbone.answer([], [], 5)


def test_little_does_not_apply_to_native_backbones(subjects):
    words = ["sampled", "vision_runs", "coinciding", "control", "counter"]
    results = list(run_checks(subjects["qwen3_vl"], select_checks(CHECKS, words)))
    assert [result.outcome for result in results] == ["ok"] * 5


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The class of docs/new_backbone.md."""
    folder = tmp_path_factory.mktemp("page")
    write_blocks(ROOT / "docs" / "new_backbone.md", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(m3_backbone, "__path__", [*m3_backbone.__path__, str(folder / "m3_backbone")])
        yield importlib.import_module("m3_backbone.color_namer").ColorNamer
    sys.modules.pop("m3_backbone.color_namer", None)
    vars(m3_backbone).pop("color_namer", None)


def run_one(opener: Callable[[], Backbone], check: str) -> Result:
    (result,) = run_checks(Subject(opener), [CHECK_OF[check]])
    return result


Break = Callable[[Any], dict[str, Any]]
BREAKS: list[tuple[str, str, Break]] = []


def breaks(check: str) -> Callable[[Break], Break]:
    """Register a function from the toy's class to members that break what `check` holds."""

    def register(function: Break) -> Break:
        BREAKS.append((function.__name__, check, function))
        return function

    return register


def change_answers(change: Callable[..., Any]) -> Break:
    """Members of a class whose answers are `change(self, answers, encoded, questions, scale, options)`."""

    def make(toy):
        def answer(self, encoded, questions, scale, **options):
            answers = toy.answer(self, encoded, questions, scale, **options)
            return change(self, answers, encoded, questions, scale, options)

        return {"answer": answer}

    return make


def other(answer, **fields):
    """An answer with another token."""
    return replace(answer, token_ids=[(answer.token_ids[0] + 1) % 9], text="other", **fields)


def register_answers(check: str, name: str, change: Callable[..., Any]) -> None:
    BREAKS.append((name, check, change_answers(change)))


@breaks("token_counts_are_those_used")
def wrong_token_count(toy):
    def num_visual_tokens(self, size, scale):
        return toy.num_visual_tokens(self, size, scale) + (scale == 256)

    return {"num_visual_tokens": num_visual_tokens}


# By check, the name of each break and the members that make it.
MEMBERS: dict[str, dict[str, Break]] = {
    "scales_ascend": {
        "descending_scales": lambda toy: {"__init__": lambda self: toy.__init__(self, scales=(16, 1))},
        "unknown_feature_scale": lambda toy: {"feature_scales": (2,)},
        "unknown_family": lambda toy: {"family": "grid"},
    },
    "token_counts_ascend": {
        "fewer_tokens_at_finer_scales": lambda toy: {
            "num_visual_tokens": lambda self, size, scale: 300 - scale
        },
        "no_tokens": lambda toy: {"num_visual_tokens": lambda self, size, scale: 0},
        "more_tokens_than_the_cap": lambda toy: {"num_visual_tokens": lambda self, size, scale: scale + 1},
    },
    "flops_ascend": {
        "prefill_without_the_question": lambda toy: {
            "prefill_flops": lambda self, size, question, scale: toy.prefill_flops(self, size, "", scale)
        },
        "fractions_of_operations": lambda toy: {
            "vision_flops": lambda self, size, scale: toy.vision_flops(self, size, scale) / 2
        },
        "other_costs_at_coinciding_scales": lambda toy: {
            "vision_flops": lambda self, size, scale: toy.vision_flops(self, size, scale) + scale
        },
        "free_decoding": lambda toy: {"decode_flops_per_token": lambda self: 0},
    },
    "vision_flops_fit_the_family": {
        "pooled_with_a_pass_per_scale": lambda toy: {"family": "pooled"},
        "native_with_one_pass": lambda toy: {"vision_flops": lambda self, size, scale: 1000},
    },
    "views_have_at_most_the_tokens": {
        "gray_views": lambda toy: {"view_image": lambda self, image, scale: (Panel(image.convert("L")),)},
    },
    "image_modes_are_converted": {
        "transparency_is_dropped": lambda toy: {
            "encode": lambda self, images: toy.encode(self, [image.convert("RGB") for image in images])
        },
    },
    "unknown_scales_are_refused": {
        "any_scale_has_a_count": lambda toy: {"num_visual_tokens": lambda self, size, scale: scale},
        "unknown_scale_raises_key_error": lambda toy: {
            "vision_flops": lambda self, size, scale: dict.fromkeys(self.scales, 1)[scale]
        },
    },
    "fingerprints_are_stable": {
        "fingerprints_of_the_object": lambda toy: {
            "fingerprints": property(lambda self: {**toy.fingerprints.fget(self), "weights": str(id(self))})
        },
        "no_fingerprint_of_decoding": lambda toy: {"fingerprints": {"weights": "0", "prompt": "0"}},
    },
    "features_are_well_formed": {
        "nan_in_features": lambda toy: {
            "run_vision": lambda self, images, scale: [
                tokens * np.nan for tokens in toy.run_vision(self, images, scale)
            ]
        },
    },
    "token_embeddings_fit_question_ids": {
        "ids_beyond_the_embeddings": lambda toy: {"question_ids": lambda self, question: [10**6]},
        "embeddings_are_trainable": lambda toy: {
            "token_embeddings": lambda self: torch.ones(1000, 8, requires_grad=True)
        },
        "no_question_ids": lambda toy: {"question_ids": lambda self, question: []},
    },
}
BREAKS += [(name, check, make) for check, breaks_of in MEMBERS.items() for name, make in breaks_of.items()]


def _always(**fields):
    return lambda self, answers, *_: [replace(answer, **fields) for answer in answers]


register_answers("answers_are_well_formed", "confidence_above_1", _always(confidence=1.5))
register_answers("answers_are_well_formed", "negative_margin", _always(margin=-0.1))
register_answers("answers_are_well_formed", "no_text", _always(text=None))
register_answers("answers_are_well_formed", "no_tokens_in_answer", _always(token_ids=[]))
register_answers("answers_are_well_formed", "nll_without_references", _always(nll=0.0))


register_answers(
    "answers_depend_on_the_image",
    "the_same_answer_to_all",
    lambda self, answers, *_: [replace(answer, token_ids=[8], confidence=0.5) for answer in answers],
)


@breaks("answers_are_deterministic")
def state_of_calls(toy):
    numbers = itertools.count()
    return change_answers(
        lambda self, answers, *_: [other(a) for a in answers] if next(numbers) % 2 else answers
    )(toy)


def _in_batches(change):
    return lambda self, answers, encoded, *_: answers if len(encoded) < 2 else list(map(change, answers))


register_answers("batches_change_nothing", "other_answer_in_a_batch", _in_batches(other))
register_answers(
    "batches_change_nothing",
    "other_confidence_in_a_batch",
    _in_batches(lambda answer: replace(answer, confidence=answer.confidence * 0.999)),
)
register_answers("batches_change_nothing", "reversed_batch", lambda self, answers, *_: answers[::-1])
register_answers(
    "mixed_shapes_change_nothing",
    "padding_changes_answers",
    lambda self, answers, encoded, *_: [
        a if item.size == max(i.size for i in encoded) else other(a)
        for a, item in zip(answers, encoded, strict=True)
    ],
)
register_answers(
    "questions_about_an_image_change_nothing",
    "first_question_of_an_image_for_all",
    lambda self, answers, encoded, *_: [
        answers[[id(i) for i in encoded].index(id(item))]
        if [id(i) for i in encoded].index(id(item)) == row
        else other(answers[row])
        for row, item in enumerate(encoded)
    ],
)


@breaks("other_scales_change_nothing")
def finest_tokens_stick(toy):
    def visual_tokens(self, encoded, scale):
        toy.visual_tokens(self, encoded, scale)
        return [item.tokens[max(item.tokens)] for item in encoded]

    return {"visual_tokens": visual_tokens}


register_answers(
    "drafts_change_nothing",
    "drafts_are_answers",
    lambda self, answers, encoded, questions, scale, options: options.get("drafts") or answers,
)
register_answers(
    "drafts_change_nothing",
    "drafts_change_confidence",
    lambda self, answers, encoded, questions, scale, options: (
        [replace(a, confidence=a.confidence * 0.99) for a in answers] if options.get("drafts") else answers
    ),
)


def _with_references(**fields):
    return lambda self, answers, encoded, questions, scale, options: (
        [replace(answer, **fields) for answer in answers] if options.get("references") else answers
    )


register_answers("references_change_nothing", "infinite_nll", _with_references(nll=float("inf")))
register_answers("references_change_nothing", "references_change_tokens", _with_references(token_ids=[8]))
register_answers("references_change_nothing", "no_reference_tokens", _with_references(reference_tokens=None))
register_answers(
    "references_change_nothing",
    "nll_of_the_number_of_references",
    lambda self, answers, encoded, questions, scale, options: [
        replace(a, nll=a.nll and a.nll + len(options["references"][0])) for a in answers
    ],
)


@breaks("sampled_answers_follow_their_keys")
def draws_are_ignored(toy):
    def answer(self, encoded, questions, scale, *, draws=None, **options):
        return toy.answer(self, encoded, questions, scale, **options)

    return {"answer": answer}


@breaks("sampled_answers_follow_their_keys")
def draws_depend_on_the_place(toy):
    def answer(self, encoded, questions, scale, *, draws=None, **options):
        placed = draws and [replace(draw, key=(row, *draw.key)) for row, draw in enumerate(draws)]
        return toy.answer(self, encoded, questions, scale, draws=placed, **options)

    return {"answer": answer}


@breaks("views_have_at_most_the_tokens")
def views_with_more_cells(toy):
    def view_image(self, image, scale):
        return (Panel(image, (self.num_visual_tokens(image.size, scale), 2)),)

    return {"view_image": view_image}


@breaks("vision_runs_for_the_scale_alone")
def all_scales_are_encoded_at_once(toy):
    def encode(self, images):
        encoded = toy.encode(self, images)
        for scale in self.scales:
            self.visual_tokens(encoded, scale)
        return encoded

    return {"encode": encode}


@breaks("vision_runs_for_the_scale_alone")
def a_finer_pass_at_a_coarse_scale(toy):
    def visual_tokens(self, encoded, scale):
        self.run_vision([item.image for item in encoded], self.scales[-1])
        return toy.visual_tokens(self, encoded, scale)

    return {"visual_tokens": visual_tokens}


@breaks("vision_runs_for_the_scale_alone")
def a_pass_per_question(toy):
    def visual_tokens(self, encoded, scale):
        return self.run_vision([item.image for item in encoded], scale)

    return {"visual_tokens": visual_tokens}


register_answers(
    "coinciding_scales_are_one",
    "coinciding_scales_differ",
    lambda self, answers, encoded, questions, scale, options: [
        replace(answer, confidence=answer.confidence / (1 + scale)) for answer in answers
    ],
)


@breaks("coinciding_scales_are_one")
def coinciding_scales_have_other_tokens(toy):
    def visual_tokens(self, encoded, scale):
        return [tokens + scale / 1000 for tokens in toy.visual_tokens(self, encoded, scale)]

    return {"visual_tokens": visual_tokens, "answer": change_answers(_always(confidence=0.5))(toy)["answer"]}


@breaks("coinciding_scales_are_one")
def a_pass_per_coinciding_scale(toy):
    def encode(self, images):
        encoded = toy.encode(self, images)
        for item in encoded:
            item.coarsest = {scale: scale for scale in self.scales}
        return encoded

    return {"encode": encode}


def _raise_for(condition, error):
    """Members of a class that raises an error in `check_image` for some sizes."""

    def make(toy):
        def check_image(self, size):
            if condition(size):
                raise error
            toy.check_image(self, size)

        return {"check_image": check_image}

    return make


BREAKS += [
    (name, "sizes_are_answered_or_refused", _raise_for(lambda size: 1 in size, error))
    for name, error in {
        "sizes_raise_key_error": KeyError("1x1"),
        "sizes_raise_zero_division": ZeroDivisionError("division by zero"),
        "refused_without_a_sentence": ValueError(""),
    }.items()
]


@breaks("sizes_are_answered_or_refused")
def encode_refuses_what_check_image_takes(toy):
    def encode(self, images):
        if any(image.size == (1, 1) for image in images):
            raise ValueError("an image of one pixel cannot be encoded")
        return toy.encode(self, images)

    return {"encode": encode}


@breaks("sizes_are_answered_or_refused")
def ribbons_break_the_answer(toy):
    def answer(self, encoded, *arguments, **options):
        if any(max(item.size) > 100 * min(item.size) for item in encoded):
            raise RuntimeError("shape mismatch")
        return toy.answer(self, encoded, *arguments, **options)

    return {"answer": answer}


@breaks("image_modes_are_converted")
def only_rgb_is_read(toy):
    def encode(self, images):
        assert all(image.mode == "RGB" for image in images)
        return toy.encode(self, images)

    return {"encode": encode}


@breaks("image_modes_are_converted")
def the_image_of_the_caller_is_changed(toy):
    def encode(self, images):
        encoded = toy.encode(self, images)
        for image in images:
            image.putpixel((0, 0), (image.getpixel((0, 0)) == 0) * 255 if image.mode in "L1P" else 0)
        return encoded

    return {"encode": encode}


@breaks("questions_are_checked")
def empty_questions_are_accepted(toy):
    def check_question(self, question, references=(), scale=None):
        toy.check_question(self, question or "?", references, scale)

    return {"check_question": check_question}


@breaks("questions_are_checked")
def long_questions_are_accepted(toy):
    def check_question(self, question, references=(), scale=None):
        toy.check_question(self, question[:100], references, scale)

    return {"check_question": check_question}


@breaks("questions_are_checked")
def answer_does_not_check(toy):
    unchecked = type("Unchecked", (toy,), {"check_question": lambda *arguments, **options: None})
    return {"answer": lambda self, *arguments, **options: unchecked().answer(*arguments, **options)}


@breaks("questions_are_checked")
def short_questions_are_refused(toy):
    def check_question(self, question, references=(), scale=None):
        toy.check_question(self, question * 100, references, scale)

    return {"check_question": check_question}


@breaks("unknown_scales_are_refused")
def message_does_not_list_the_scales(toy):
    def grid(self, size, scale):
        if scale not in self.scales:
            raise ValueError("this scale is unknown")
        return toy.grid(self, size, scale)

    return {"grid": grid}


@breaks("pickled_backbone_answers_the_same")
def cannot_be_pickled(toy):
    def __init__(self):
        toy.__init__(self)
        self.hook = lambda: None

    return {"__init__": __init__}


def _change_features(change: Callable[..., Any]) -> Break:
    def make(toy):
        def compute_features(self, encoded, scales, *groups):
            return change(toy.compute_features(self, encoded, scales, *groups), groups)

        return {"compute_features": compute_features}

    return make


def _map_tokens(change):
    return _change_features(
        lambda features, groups: [
            replace(f, visual={s: change(tokens, s, len(features)) for s, tokens in f.visual.items()})
            for f in features
        ]
    )


BREAKS += [
    (name, "features_are_well_formed", change)
    for name, change in {
        "features_in_32_bits": _map_tokens(lambda tokens, *_: tokens.astype(np.float32)),
        "widths_differ": _map_tokens(lambda tokens, scale, _: np.tile(tokens, 1 + (scale == 16))),
        "features_depend_on_the_batch": _map_tokens(lambda tokens, _, size: tokens * np.float16(size)),
        "statistics_depend_on_the_batch": _change_features(
            lambda features, _: [
                replace(f, statistics={k: v * len(features) for k, v in f.statistics.items()})
                for f in features
            ]
        ),
        "all_groups_are_computed": _change_features(
            lambda features, _: [replace(f, statistics={"image/a": 1.0, "tower/a": 1.0}) for f in features]
        ),
        "features_of_some_images": _change_features(lambda features, _: features[:1]),
    }.items()
]


@pytest.mark.parametrize(("check", "make"), [pytest.param(c, m, id=name) for name, c, m in BREAKS])
def test_check_fails_when_it_should(check, make, toy):
    assert run_one(toy, check).outcome == "ok"
    broken = type("Broken", (toy,), make(toy))
    result = run_one(broken, check)
    assert result.outcome == "failed" and len(result.reason.split()) > 4, result
    assert "\n" not in result.reason


def test_a_pickled_copy_that_answers_otherwise_fails(toy, monkeypatch):
    def answer(self, encoded, questions, scale, **options):
        answers = toy.answer(self, encoded, questions, scale, **options)
        return [other(answer) for answer in answers] if "is_copy" in vars(self) else answers

    def __setstate__(self, state):
        self.__dict__ = {**state, "is_copy": True}

    members = {"answer": answer, "__setstate__": __setstate__, "__module__": __name__}
    broken = type("Broken", (toy,), members)
    monkeypatch.setattr(sys.modules[__name__], "Broken", broken, raising=False)
    result = run_one(broken, "pickled_backbone_answers_the_same")
    assert result.outcome == "failed" and "unpickled: the answer is" in result.reason


def _uncounted_flops(backbone):
    vision = backbone.vision_flops
    backbone.vision_flops = lambda size, scale: vision(size, scale) + 1


def _uncounted_prefill(backbone):
    prefill = backbone.prefill_flops
    backbone.prefill_flops = lambda size, question, scale: prefill(size, question, scale) - 1


def _unchecked_text(backbone):
    backbone.processor.check_text = lambda subject, text: None


def _wrong_prefix(backbone):
    backbone.num_prefix_tokens = lambda size, scale: backbone.num_visual_tokens(size, scale)
    backbone.max_prefix_tokens = lambda scale: 1


MODEL_BREAKS = [
    (_uncounted_flops, "flops_are_those_of_the_counter"),
    (_uncounted_prefill, "flops_are_those_of_the_counter"),
    (_unchecked_text, "control_tokens_are_refused"),
    (_wrong_prefix, "token_counts_are_those_used"),
]


@pytest.mark.parametrize(("damage", "check"), MODEL_BREAKS)
def test_check_of_a_model_fails_when_it_should(damage, check):
    def open_damaged():
        backbone = open_random("qwen3_vl", 16, 64, 256)
        damage(backbone)
        return backbone

    assert run_one(open_damaged, check).outcome == "failed"


def test_every_check_was_seen_to_fail():
    seen = {check for _, check, _ in BREAKS} | {check for _, check in MODEL_BREAKS}
    assert seen == set(NAMES)


def test_one_failing_check_does_not_stop_the_others(toy):
    def answer(self, *arguments, **options):
        raise TypeError("no\nanswers")

    results = list(run_checks(Subject(type("Broken", (toy,), {"answer": answer})), CHECKS))
    assert [result.check for result in results] == NAMES
    outcomes = {result.check: result.outcome for result in results}
    assert outcomes["scales_ascend"] == "ok" and outcomes["drafts_change_nothing"] == "failed"
    reasons = {result.reason for result in results if result.check == "drafts_change_nothing"}
    assert reasons == {"it raised TypeError: no answers"}


def test_what_does_not_apply_is_said(toy):
    def answer(self, *arguments, draws=None, **options):
        if draws:
            raise NotImplementedError("greedy answers only")
        return toy.answer(self, *arguments, **options)

    result = run_one(type("Greedy", (toy,), {"answer": answer}), "sampled_answers_follow_their_keys")
    expected = "the backbone refuses sampled answers: greedy answers only"
    assert (result.outcome, result.reason) == ("not applicable", expected)
    uncounted = type("Uncounted", (toy,), {"run_vision": None, "visual_tokens": None})
    assert run_one(uncounted, "vision_runs_for_the_scale_alone").outcome == "not applicable"
    with pytest.raises(NotApplicable, match="ModelBackbone"):
        CHECK_OF["flops_are_those_of_the_counter"](Subject(toy))


def test_near_ties_are_allowed_in_16_bits_alone(toy):
    subject = Subject(toy)
    image = Image.new("RGB", (32, 32), "red")
    answer = replace(subject.ask(image, "What color?", 1), margin=0.05)
    with pytest.raises(Failed, match="the answer is"):
        subject.expect_same(other(answer), answer, "here")
    subject.backbone.torch_dtype = torch.bfloat16  # type: ignore[attr-defined]
    half = Subject(lambda: subject.backbone)
    half.expect_same(other(answer), answer, "here")
    with pytest.raises(Failed, match="the answer is"):
        half.expect_same(other(answer, margin=2.0), replace(answer, margin=2.0), "here")


def test_checks_are_chosen_by_words():
    chosen: list[Check] = select_checks(CHECKS, ["draft", "scales_ascend"])
    assert [check.__name__ for check in chosen] == ["scales_ascend", "drafts_change_nothing"]
    with pytest.raises(ValueError, match=r"checks=\[nosuch\]: no check has this in its name"):
        select_checks(CHECKS, ["nosuch"])


def test_every_check_says_what_must_hold():
    assert len(set(NAMES)) == len(CHECKS)
    assert all(check.__doc__ and check.__doc__.split("\n")[0].endswith(".") for check in CHECKS)
