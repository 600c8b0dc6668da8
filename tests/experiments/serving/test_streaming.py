"""The pieces of a streamed answer add up to the whole answer, and no piece is withdrawn."""

import numpy as np
import pytest
from openai import OpenAI

from experiments.serving.streaming import Pieces
from m3_backbone.native.random_backbone import open_random_backbone
from predictor.adaptive.model import AdaptiveVLM
from tests.experiments.serving.conftest import ask, make_fixed, make_local, serve, to_url
from tests.m3_backbone.native.reference import draw_noise


def stream(tokens, *, limit=None, stops=()):
    """The pieces of an answer whose tokens are bytes."""

    def decode(token_ids):
        return b"".join(tokens[i] for i in token_ids).decode(errors="replace").strip()

    pieces = Pieces(decode, limit, stops)
    numbers = list(range(len(tokens)))
    sent = [pieces.advance(numbers[:end]) for end in range(1, len(tokens) + 1)]
    return sent, pieces


@pytest.mark.parametrize(
    ("tokens", "options", "sent", "last"),
    [
        # A piece comes with the token after it, and white space with the text behind it.
        ([b"a", b" red", b" ", b"square"], {}, ["", "a", " red", ""], " square"),
        # A character of three tokens.
        (["é€".encode()[:3], b"\x82", b"\xac", b"!"], {}, ["", "é", "", "€"], "!"),
        # Text after the limit, or that may begin a text that ends the answer, is not sent.
        ([b"one", b" two", b" three"], {"limit": 2}, ["", "one", " two"], ""),
        ([b"one", b" E", b"ND", b" two"], {"stops": ["END"]}, ["", "one", "", ""], ""),
    ],
)
def test_pieces_of_a_text(tokens, options, sent, last):
    made, pieces = stream(tokens, **options)
    assert made == sent
    assert pieces.finish("".join([*sent, last])) == last


def test_an_answer_that_changes_after_it_was_sent_is_an_error():
    _, pieces = stream([b"a", b" red", b" square"])
    with pytest.raises(ValueError, match="has changed while it was decoded"):
        pieces.finish("the red square")


@pytest.mark.long
@pytest.mark.parametrize("kind", ["qwen3_vl", "gemma4"])
def test_streamed_answers_equal_whole_ones(kind):
    backbone = open_random_backbone(model_type=kind, name="model", device="cpu", max_new_tokens=12)
    scale = backbone.scales[0]
    model = AdaptiveVLM(backbone, *make_fixed(backbone, scale))
    pictures = draw_noise([(96, 128), (128, 96)])
    with serve(make_local(model)) as (url, _):
        client = OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0)
        for number, picture in enumerate(pictures):
            body = ask(f"What is number {number}?", to_url(picture)) | {"model": "model"}
            whole = client.chat.completions.create(**body)
            *chunks, last = client.chat.completions.create(
                **body, stream=True, stream_options={"include_usage": True}
            )
            texts = [chunk.choices[0].delta.content or "" for chunk in chunks]
            assert "".join(texts) == whole.choices[0].message.content
            assert sum(map(bool, texts)) >= 3
            assert last.usage == whole.usage and all(chunk.usage is None for chunk in chunks)


def test_watch_is_called_for_every_decoded_token():
    backbone = open_random_backbone(model_type="qwen3_vl", name="model", device="cpu", max_new_tokens=5)
    encoded = backbone.encode(draw_noise([(96, 128), (128, 96), (64, 64)]))
    questions = ["a?", "b?", "c?"]
    watched: dict[int, list[list[int]]] = {number: [] for number in range(3)}
    answers = backbone.answer(
        encoded, questions, backbone.scales[0], watch=lambda i, ids: watched[i].append(list(ids))
    )
    for number, answer in enumerate(answers):
        assert watched[number] == [answer.token_ids[:end] for end in np.arange(1, len(answer.token_ids) + 1)]
    assert answers == backbone.answer(encoded, questions, backbone.scales[0])
