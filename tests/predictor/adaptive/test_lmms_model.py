"""The adaptive model as a model of lmms-eval, with the part of lmms-eval's interface that it uses.

`make lmms-test` runs it in lmms-eval itself.
"""

import importlib.metadata
import sys
from typing import Any

import pytest
from PIL import Image

from m3_backbone.llava.backbone import LlavaBackbone
from predictor.adaptive.model import AdaptiveVLM
from tests.paths import FIXTURES
from tests.predictor.adaptive.test_folder import COLOR, COUNT, FIXTURE, make_model

GREEDY = {"max_new_tokens": 4, "temperature": 0, "do_sample": False, "until": ["\n\n"]}


@pytest.fixture(scope="module", autouse=True)
def lmms_eval():
    """lmms-eval's interface, for the imports of this module alone."""
    known = set(sys.modules)
    sys.path.insert(0, str(FIXTURES / "fake_lmms_eval"))
    yield
    sys.path.remove(str(FIXTURES / "fake_lmms_eval"))
    for name in set(sys.modules) - known:
        if name.partition(".")[0] == "lmms_eval" or name == "predictor.adaptive.lmms_model":
            del sys.modules[name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    image = Image.open(FIXTURE / "image0.png").convert("RGB")
    path = tmp_path_factory.mktemp("model")
    backbone = LlavaBackbone(FIXTURE / "checkpoint", dtype="float32", device="cpu", max_new_tokens=4)
    make_model(backbone, image).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def documents():
    images = [Image.open(FIXTURE / f"image{number}.png").convert("RGB") for number in range(2)]
    return [
        {"image": [images[0]], "text": COUNT},
        {"image": [images[1]], "text": COLOR},
        {"image": [images[0].copy()], "text": COLOR},
    ]


def open_model(folder: Any, **arguments: Any) -> Any:
    from predictor.adaptive.lmms_model import AdaptiveLmms

    # As lmms-eval calls it: with its defaults for the device and the sizes of batches.
    defaults: dict[str, Any] = {
        "pretrained": str(folder),
        "batch_size": 2,
        "max_batch_size": None,
        "device": "cuda",
    }
    return AdaptiveLmms(**defaults | arguments)


def ask(model: Any, documents: list[dict[str, Any]], generation: dict[str, Any] = GREEDY) -> list[Any]:
    from lmms_eval.api.instance import Instance

    def doc_to_messages(document: dict[str, Any]) -> list[dict[str, Any]]:
        parts = [{"type": "image", "url": image} for image in document["image"]]
        return [{"role": "user", "content": [*parts, {"type": "text", "text": document["text"]}]}]

    model.task_dict = {"mine": {"test": documents}}
    requests = [
        Instance("generate_until", (document["text"], doc_to_messages, generation, number, "mine", "test"), 0)
        for number, document in enumerate(documents)
    ]
    return model.generate_until(requests)


def test_the_entry_point_names_the_model():
    points = importlib.metadata.entry_points(group="lmms_eval.models", name="tokenscale")
    for point in points:  # none in an environment that was installed before the entry point was there
        assert point.value == "predictor.adaptive:make_manifest"
    from predictor.adaptive import make_manifest
    from predictor.adaptive.lmms_model import AdaptiveLmms

    manifest = make_manifest()
    assert manifest.model_id == "tokenscale"
    assert manifest.chat_class_path == f"{AdaptiveLmms.__module__}.{AdaptiveLmms.__name__}"
    assert not AdaptiveLmms.is_simple


@pytest.mark.long
@pytest.mark.parametrize("arguments", [{}, {"price": 4.0}, {"price": 0.0}, {"point": "guarantee"}])
def test_answers_choices_and_costs_are_those_of_the_adaptive_model(arguments, folder, documents):
    model = AdaptiveVLM.from_pretrained(folder, device="cpu")
    images, questions = [row["image"][0] for row in documents], [row["text"] for row in documents]
    expected = model.answer(images, questions, **arguments)
    for answer, result in zip(expected, ask(open_model(folder, **arguments), documents), strict=True):
        assert result.text == answer.text
        counts = result.token_counts.to_dict()
        assert counts["output_tokens"] == len(answer.answer.token_ids)
        assert (counts["visual_tokens"], counts["scale"]) == (answer.cost, answer.scale)
        assert counts["tried"] == list(answer.tried)
        assert list(counts["estimates"].values()) == pytest.approx(answer.choice.estimates, abs=1e-6)
        assert counts["input_tokens"] > answer.cost


def test_a_fixed_scale_needs_no_predictor(folder, documents):
    backbone = LlavaBackbone(FIXTURE / "checkpoint", dtype="float32", device="cpu", max_new_tokens=4)
    encoded = backbone.encode([row["image"][0] for row in documents])
    expected = backbone.answer(encoded, [row["text"] for row in documents], 9)
    results = ask(open_model(folder, scale=9), documents)
    assert [result.text for result in results] == [answer.text for answer in expected]
    assert [result.token_counts.to_dict()["visual_tokens"] for result in results] == [9] * 3
    assert "estimates" not in results[0].token_counts.to_dict()


def test_answers_have_at_most_the_tokens_that_the_task_allows(folder, documents):
    model = open_model(folder, scale=9)
    lengths = {}
    texts = {}
    for limit in (1, 3, 7, None):
        results = ask(model, documents, GREEDY | {"max_new_tokens": limit})
        lengths[limit] = [result.token_counts.output_tokens for result in results]
        texts[limit] = [result.text for result in results]
    assert lengths == {1: [1] * 3, 3: [3] * 3, 7: [7] * 3, None: [4] * 3}
    assert all(long.startswith(short) for short, long in zip(texts[1], texts[7], strict=True))
    # What fits into the context is a limit, too.
    (result,) = ask(model, documents[:1], GREEDY | {"max_new_tokens": 100_000})
    room = model.backbone.count_room(COUNT)
    assert result.token_counts.output_tokens <= room == model.backbone.max_new_tokens


def test_texts_that_end_an_answer(folder, documents):
    model = open_model(folder, scale=9)
    (whole, *_) = ask(model, documents)
    end = whole.text[2:4]
    (cut, *_) = ask(model, documents, GREEDY | {"until": [end]})
    assert cut.text == whole.text.split(end)[0] != whole.text


def test_questions_that_cannot_be_answered_are_listed_and_the_others_answered(folder, documents, caplog):
    image = documents[0]["image"][0]
    others = [
        {"image": [image, image], "text": COLOR},
        {"image": [], "text": COLOR},
        {"image": [image], "text": " "},
    ]
    model = open_model(folder)
    with caplog.at_level("WARNING", logger="lmms_eval"):
        results = ask(model, [*documents, *others])
    assert [result.text for result in results[:3]] == [result.text for result in ask(model, documents)]
    assert [(result.text, result.token_counts.to_dict()) for result in results[3:]] == [
        ("", {"error": "2 images, and the model takes one a question"}),
        ("", {"error": "no images, and the model takes one a question"}),
        ("", {"error": "the question is empty: ask something"}),
    ]
    assert "3 of 6 questions have no answer and count as answered wrong: 1 x 2 images" in caplog.text
    with pytest.raises(ValueError, match="no question can be answered: 2 x 2 images, and the model"):
        ask(model, others[:1] * 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pretrained": ""}, "needs pretrained=FOLDER"),
        ({"pretrained": "/nowhere"}, "no folder /nowhere"),
        ({"bugdet": 30}, "has no argument bugdet: give pretrained, one of price, budget, point and scale"),
        ({"price": 1.0, "budget": 30}, "give one of price, budget, point and scale"),
        ({"scale": 9, "escalate": True}, "escalate goes with price or budget"),
        ({"scale": 7}, "scale 7 is not on the ladder of this backbone: choose one of 1, 9"),
        ({"point": "nice"}, "no operating point 'nice' was saved"),
        ({"budget": "much"}, "budget"),
        ({"escalate": "maybe"}, "escalate=maybe: give true or false"),
        ({"escalate": True}, "no hybrid was saved"),
        ({"batch_size": "auto"}, "batch_size=auto: give a whole number from 1 up"),
    ],
)
def test_wrong_arguments_are_one_sentence(arguments, message, folder):
    with pytest.raises((ValueError, OSError), match=message) as caught:
        open_model(folder, **arguments)
    assert "\n" not in str(caught.value)


WRONG = [{"temperature": 0.7, "do_sample": True}, {"num_beams": 3}, {"do_sample": True, "temperature": None}]


@pytest.mark.parametrize("wrong", WRONG)
def test_only_greedy_answers(wrong, folder, documents):
    with pytest.raises(ValueError, match="answers greedily"):
        ask(open_model(folder), documents, GREEDY | wrong)
