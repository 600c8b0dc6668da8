"""The answer command on a small random checkpoint with a predictor trained for it."""

import re

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

from experiments.answer import main
from experiments.command_line.overrides import quote_free_text
from experiments.command_line.script import find_config_dir
from experiments.publish import main as publish
from experiments.training.trained import TrainingSettings
from experiments.training.trainer import train_predictors
from m3_backbone.llava.backbone import LlavaBackbone
from predictor.adaptive.inputs import make_inputs
from predictor.adaptive.model import AdaptiveM3
from predictor.classical.question_only import QuestionOnly
from predictor.features import Features
from tests.fake_hub import open_hub
from tests.paths import FIXTURES
from tests.predictor.synthetic import label, write_labels

FIXTURE = FIXTURES / "official_m3" / "llava15"
COLOR, COUNT = "What color is it?", "How many are there?"
PREDICTOR = ("predictor=question_only", "predictor.inverse_penalties=[1000.0]")
SETTINGS = {"dtype": "float32", "device": "cpu", "max_new_tokens": 4}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A predictor for which questions on color need the coarsest scale and questions on counts the finest."""
    backbone = LlavaBackbone(
        FIXTURE / "checkpoint", dtype="float32", device="cpu", attn_implementation="sdpa", max_new_tokens=4
    )
    encoded = backbone.encode([Image.open(FIXTURE / "image0.png").convert("RGB")] * 12)
    inputs = make_inputs(
        backbone,
        encoded,
        [COLOR, COUNT] * 6,
        Features(visual=9),
        token_embeddings=backbone.token_embeddings().detach(),
    )
    fine = np.arange(len(backbone.scales)) == len(backbone.scales) - 1
    score = np.array([fine | (question == COLOR) for question in inputs.question], dtype=np.float32)
    folder = tmp_path_factory.mktemp("store")
    parts = {
        split: label(
            inputs,
            score,
            image_prefix=split,
            fingerprints={**backbone.fingerprints, "data": "dd"},
        )
        for split in ("train", "calibration")
    }
    write_labels(folder / "labels", parts)
    train_predictors(
        [QuestionOnly(inverse_penalties=(1000.0,))],
        labels=folder / "labels",
        folder=folder / "predictors",
        settings=TrainingSettings(seed=0, validation_fraction=0.5),
    )
    return folder


@pytest.fixture
def answer(store, capsys):
    """Run the command's main in this process: what it printed, and its exit status."""

    def run(question, *overrides):
        settings = [f"backbone.{name}={value}" for name, value in SETTINGS.items()]
        with initialize_config_dir(str(find_config_dir()), version_base="1.3"):
            config = compose(
                "answer",
                [
                    *(f"paths.predictors={store / 'predictors'}", f"paths.labels={store / 'labels'}"),
                    *([] if "predictor=cross_attention" in overrides else PREDICTOR),
                    *("backbone=local", f"backbone.checkpoint={FIXTURE / 'checkpoint'}", *settings),
                    *(f"image={FIXTURE / 'image0.png'}", f"question='{question}'", *overrides),
                ],
            )
        capsys.readouterr()
        try:
            main(config)
        except SystemExit as end:
            return capsys.readouterr().err, end.code
        return capsys.readouterr().out, 0

    return run


TEXTS = [
    "What color is it?",
    "What character is in row 1, column 3?",
    'it\'s 1=1, {a}: [b] (c) "x"',
    "back\\slash, \\' and at the end \\",
    "${not.an.interpolation}, \\${nor.this}",
    "null",
    "two\nlines, ünïcode",
    " ' ",
    "",
]


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_can_be_asked(text):
    """What the shell hands on reaches the configuration as it was."""
    arguments = quote_free_text([f"question={text}", "image=a, b.png", "scale=1"])
    with initialize_config_dir(str(find_config_dir()), version_base="1.3"):
        config = compose("answer", arguments)
    assert (config.question, config.image, config.scale) == (text, "a, b.png", 1)


def test_text_in_quotes_is_left_as_it_is():
    assert quote_free_text(["question='a, b'", 'image="c"']) == ["question='a, b'", 'image="c"']


def find_chosen(output):
    """The scale in the row that is marked."""
    return [int(scale) for scale in re.findall(r"^->\s+(\d+)", output, re.M)]


@pytest.mark.parametrize(("question", "scale"), [(COLOR, 1), (COUNT, 576)])
def test_it_answers_at_the_chosen_scale_and_shows_the_others(answer, question, scale):
    output, status = answer(question)
    assert status == 0, output
    assert find_chosen(output) == [scale]
    assert [int(row) for row in re.findall(r"^(?:->)?\s+(\d+)", output, re.M)] == [1, 9, 36, 144, 576]
    assert f"scale {scale}: chosen at price" in output


def test_a_scale_can_be_forced(answer):
    output, _ = answer(COUNT, "scale=36")
    assert find_chosen(output) == [36]


def test_a_budget_sets_the_price(answer):
    output, _ = answer(COUNT, "budget=1")
    assert find_chosen(output) == [1]


def test_the_hybrid_says_what_it_tried(answer):
    output, status = answer(COUNT, "escalate=true")
    assert status == 0, output
    (tried,) = re.findall(r"^scale \d+: tried ([\d, then]+), (\d+) visual tokens in all", output, re.M)
    scales = [int(scale) for scale in tried[0].split(", then ")]
    assert find_chosen(output) == scales[-1:] and int(tried[1]) == sum(scales)
    assert [int(scale) for scale in re.findall(r"^\+\s+(\d+)", output, re.M)] == scales[:-1]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["escalate=true", "point=guarantee"], "'guarantee' is a point of the predictor only"),
        (["escalate=true", "scale=36"], "scale forces a scale"),
        (["budget=20", "scale=36"], "scale forces a scale"),
        (["escalate=maybe"], "escalate=maybe: give true or false (whether to retry at finer scales"),
        (["price=abc"], "price=abc: give a number from 0 up, or null (price of one answer"),
        (
            ["budget=abc", "escalate=true"],
            "budget=abc: give a number above 0, or null (mean visual tokens to stay within)",
        ),
        (["image=nowhere.png"], "nowhere.png"),
        (["scale=7"], "1, 9, 36, 144"),
        (["predictor=cross_attention"], "tokenscale train"),
        (["price=1", "budget=1"], "give a price or a budget or the name of an operating point, not several"),
        (["budget=0.5"], "no price keeps the mean cost within 0.5"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(answer, overrides, message):
    error, status = answer(COUNT, *overrides)
    assert status == 2
    assert message in error


def publish_model(store, folder, *overrides):
    settings = {"checkpoint": FIXTURE / "checkpoint", "attn_implementation": "sdpa", **SETTINGS}
    asked = ["backbone=local", *(f"backbone.{key}={value}" for key, value in settings.items())]
    asked += [f"paths.labels={store}/labels", f"paths.predictors={store}/predictors"]
    with initialize_config_dir(str(find_config_dir()), version_base="1.3"):
        publish(
            compose(
                "publish",
                [
                    *asked,
                    "predictor=question_only",
                    "predictor.inverse_penalties=[1000.0]",
                    f"folder={folder}",
                    *overrides,
                ],
            )
        )
    return AdaptiveM3.from_pretrained(folder, device="cpu")


def test_a_published_model_answers_at_a_certified_point(store, tmp_path, capsys, caplog, monkeypatch):
    # Twelve images allow a guarantee of 0.9, for which the coarsest scale is enough for every question ...
    model = publish_model(store, tmp_path / "bold", "guarantee.alpha=0.9")
    assert f"model: {tmp_path / 'bold'}" in capsys.readouterr().out
    point = model.prices.named["guarantee"]
    assert point.cost < model.prices.default.cost and 0 <= point.score <= 1
    (found,) = model.answer([Image.open(FIXTURE / "image0.png").convert("RGB")], [COUNT], point="guarantee")
    assert found.choice.scale < model.backbone.scales[-1]
    assert model.hybrid is not None and model.answer(
        [Image.open(FIXTURE / "image0.png").convert("RGB")], [COUNT], escalate=True
    )
    # ... and none of 0.02: the model has its other points all the same.
    with open_hub(monkeypatch) as hub:
        model = publish_model(store, tmp_path / "careful", "repo=someone/model")
    assert hub.are_private == [True] and "README.md" in hub.committed
    assert model.prices.named == {} and "no price is certified for 0.02 on 12 images" in caplog.text
