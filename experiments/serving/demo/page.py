"""The page in Gradio, and its application. The only module of the demo that needs Gradio."""

import importlib.util
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp

from experiments.serving.demo.examples import Offer
from experiments.serving.demo.gate import Call, Gate
from experiments.serving.demo.handlers import BUDGET, MAX_PRICE, PRICE, Demo, Terms
from experiments.serving.demo.rendering import render
from experiments.serving.demo.trial import Trial
from experiments.serving.server import LOOPBACK
from m3_backbone.loading.weights import PACKAGED
from m3_backbone.model_backbone import ModelBackbone

_KEPT_SECONDS = 3600  # of uploads and trials
_CLEANING_SECONDS = 600
# In a narrow window, the answer is below everything else.
_SHOW_ANSWER = "() => document.querySelector('.ts-result, .ts-error')?.scrollIntoView({block: 'nearest'})"
_CSS = Path(__file__).with_name("demo.css")


def check_gradio() -> None:
    """Raise ModuleNotFoundError, which names the module, without Gradio."""
    if importlib.util.find_spec("gradio") is None:
        raise ModuleNotFoundError("No module named 'gradio'", name="gradio")


def make_app(demo: Demo, offer: Offer, *, host: str, max_waiting: int) -> ASGIApp:
    """Return the application of a demo that is bound to `host`.

    More than `max_waiting` questions are refused until some are answered. Nothing is sent to Gradio's makers
    or anybody else, and no link to the page is made elsewhere. Raises ModuleNotFoundError without Gradio.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(demo.folder / "uploads")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    gr = importlib.import_module("gradio")
    blocks = _build(gr, demo, offer)
    blocks.queue(max_size=max_waiting, api_open=False, default_concurrency_limit=1)
    calls = {}
    for number, function in blocks.fns.items():
        files = tuple(i for i, block in enumerate(function.inputs) if isinstance(block, gr.Image))
        calls[number] = Call(len(function.inputs), files)
    app = importlib.import_module("fastapi").FastAPI(openapi_url=None)
    gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=demo.limits.image_bytes,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=_make_theme(gr),
        css=_CSS.read_text(encoding="utf-8"),
    )
    hosts = LOOPBACK if host in LOOPBACK else ()
    return Gate(app, limits=demo.limits, folder=demo.folder, hosts=hosts, calls=calls)


def _make_theme(gr: Any) -> Any:
    """Return Gradio's theme with fonts of the system, and colours of text with enough contrast."""
    theme = gr.themes.Default(
        primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    return theme.set(
        body_text_color_subdued="*neutral_500",
        input_placeholder_color="*neutral_500",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_hover_dark="*primary_700",
    )


def _build(gr: Any, demo: Demo, offer: Offer) -> Any:
    """Return the layout with its events. Values reach the handlers as they are sent."""
    backbone = demo.model.backbone
    with gr.Blocks(
        analytics_enabled=False,
        title="tokenscale demo",
        delete_cache=(_CLEANING_SECONDS, _KEPT_SECONDS),
    ) as blocks:
        is_embedded = isinstance(backbone, ModelBackbone) and backbone.checkpoint.source in PACKAGED
        gr.HTML(
            render(
                "intro",
                name=backbone.name,
                num_scales=len(backbone.scales),
                predictor=demo.model.predictor.name,
                is_embedded=is_embedded,
            )
        )
        trial = gr.State(time_to_live=_KEPT_SECONDS)
        call = {"preprocess": False, "api_visibility": "private"}
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                picture = gr.Image(
                    label="Picture (PNG, JPEG or WebP)",
                    type="filepath",
                    image_mode=None,
                    sources=["upload", "clipboard"],
                    height=300,
                    buttons=[],
                )
                question = gr.Textbox(
                    label="Question",
                    placeholder="what color is the sign?",
                    max_lines=3,
                    max_length=demo.limits.question_chars,
                )
                button = gr.Button("Ask at every scale", variant="primary")
                if offer.examples:
                    gr.HTML(render("heading", text="Pictures to ask about"))
                    gallery = gr.Gallery(
                        _save_examples(gr, demo, offer),
                        show_label=False,
                        label="Pictures to ask about",
                        columns=4,
                        height=None,
                        elem_classes="ts-gallery",
                        object_fit="contain",
                        allow_preview=False,
                        interactive=False,
                        buttons=[],
                    )
                    gallery.select(_make_picker(gr, demo, offer), None, [picture, question], **call)
                if offer.questions:
                    with gr.Accordion("Questions by type", open=False):
                        gr.HTML(render("questions", questions=offer.questions))
            with gr.Column(scale=3, min_width=300):
                terms = _build_terms(gr, demo)
                answers = gr.HTML()
                views = gr.HTML()

        def ask(picture: object, question: object, *values: object) -> tuple[Trial | None, str, str]:
            return demo.ask(picture, question, _read(values))

        def choose(trial: Trial | None, *values: object) -> str:
            return demo.choose(trial, _read(values))

        asked = gr.on(
            [button.click, question.submit], ask, [picture, question, *terms], [trial, answers, views], **call
        )
        asked.then(None, js=_SHOW_ANSWER, api_visibility="private")
        for term in terms:
            term.change(
                choose, [trial, *terms], [answers], trigger_mode="always_last", show_progress="hidden", **call
            )
    return blocks


def _build_terms(gr: Any, demo: Demo) -> list[Any]:
    """Return the inputs of `Terms`, in the order of its fields."""
    low, high = demo.budgets
    default = demo.model.prices.default
    mode = gr.Radio(demo.modes, value="default", label="The scale is chosen by")
    budget = gr.Slider(
        low,
        high,
        value=round(min(max(default.cost, low), high), 1),
        step=0.1,
        visible=False,
        label="Budget: visual tokens on average",
        buttons=[],
    )
    price = gr.Slider(
        0,
        MAX_PRICE,
        value=min(math.ceil(default.price * 1000) / 1000, MAX_PRICE),
        step=0.001,
        visible=False,
        label="Price: the score that an answer at the finest scale must be worth (1: the whole score)",
        buttons=[],
    )
    escalates = gr.Checkbox(
        value=False,
        visible=demo.model.hybrid is not None,
        label="Escalate: look at the answer, and try finer scales while that is worth it (hybrid)",
    )
    mode.change(
        lambda mode: [gr.update(visible=mode == BUDGET), gr.update(visible=mode == PRICE)],
        [mode],
        [budget, price],
        show_progress="hidden",
        queue=True,
        preprocess=False,
        api_visibility="private",
    )
    return [mode, budget, price, escalates]


def _read(values: Sequence[object]) -> Terms:
    mode, budget, price, escalates = values
    return Terms(mode=mode, budget=budget, price=price, escalates=escalates)


def _make_picker(gr: Any, demo: Demo, offer: Offer) -> Any:
    """Return the function that puts an offered picture and its question into the form."""

    def pick(event: Any) -> tuple[str | None, str]:
        number = event.index
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(offer.examples):
            return None, ""
        return str(_find_example(demo, number)), offer.examples[number].question

    pick.__annotations__["event"] = gr.SelectData  # by which Gradio passes the event
    return pick


def _find_example(demo: Demo, number: int) -> Path:
    return demo.folder / "offered" / f"picture_{number}.png"


def _save_examples(gr: Any, demo: Demo, offer: Offer) -> list[str]:
    """Write the offered pictures into the folder of uploads, and return their paths."""
    folder = demo.folder / "offered"
    folder.mkdir()
    gr.set_static_paths([folder])
    for number, example in enumerate(offer.examples):
        example.image.save(_find_example(demo, number))
    return [str(_find_example(demo, number)) for number in range(len(offer.examples))]
