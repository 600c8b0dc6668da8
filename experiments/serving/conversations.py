"""The image and the question of a conversation that an engine answers."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from experiments.serving.adapters import Adapted
from experiments.serving.errors import refuse
from experiments.serving.images import ReceivedImage
from experiments.serving.limits import encode_data_url


@dataclass(frozen=True)
class Picture:
    """Place of the image in a conversation: numbers of its message and part, and its URL."""

    message: int
    part: int
    url: str


def find_picture(content: dict[str, Any]) -> Picture | None:
    """Return the only image of a request; None if it has none.

    Raises RequestError for several images, and for an image beside other media, which would be resized with
    it.
    """
    pictures: list[Picture] = []
    others: set[str] = set()
    for number, message in enumerate(_list_messages(content)):
        parts = message.get("content")
        for place, part in enumerate(parts if isinstance(parts, list) else []):
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "image_url":
                source = part.get("image_url")
                url = source.get("url") if isinstance(source, dict) else source
                if not isinstance(url, str):
                    raise refuse("an image part has no url", param=f"messages.{number}.content.{place}")
                pictures.append(Picture(number, place, url))
            elif kind not in ("text", None):
                others.add(str(kind)[:40])
    if len(pictures) > 1:
        raise refuse(
            f"the predictor chooses the scale of one image, and there are {len(pictures)}", param="messages"
        )
    if pictures and others:
        raise refuse(
            f"a scale is chosen for an image alone, and there is {', '.join(sorted(others))} beside it",
            param="messages",
        )
    return pictures[0] if pictures else None


def read_question(content: dict[str, Any]) -> str:
    """Return the text of the last message of the user. Raises RequestError if there is none."""
    for message in reversed(_list_messages(content)):
        if message.get("role") != "user":
            continue
        parts = message.get("content")
        if isinstance(parts, str):
            return parts
        texts = [part.get("text") for part in parts or [] if isinstance(part, dict)]
        return "\n".join(text for text in texts if isinstance(text, str))
    raise refuse("there is no message of the user", param="messages")


def replace_picture(
    content: dict[str, Any], picture: Picture, adapted: Adapted, received: ReceivedImage, scale: int
) -> None:
    """Write an adapted image into a request; `received` is the image as it was read.

    The engine does not fetch anything: the URL of a remote image is replaced by the file. A `uuid` by which
    the engine would recognise the image gets the scale, as the same image has other tokens at another one.
    Raises RequestError for arguments of the image processor that the request sets itself.
    """
    part = content["messages"][picture.message]["content"][picture.part]
    if adapted.part is not None:
        kept = {key: value for key, value in part.items() if key not in ("type", "image_url")}
        part = {**kept, **adapted.part}
    elif not picture.url.startswith("data:"):
        part = {**part, "image_url": {"url": encode_data_url(received.content)}}
    if isinstance(part.get("uuid"), str):
        part = {**part, "uuid": f"{part['uuid']}-scale-{scale}"}
    content["messages"][picture.message]["content"][picture.part] = part
    if adapted.arguments:
        given = content.get("mm_processor_kwargs") or {}
        if not isinstance(given, dict) or given.keys() & adapted.arguments.keys():
            raise refuse(
                "the predictor sets the resolution of the image: leave it out, or give scale",
                param="mm_processor_kwargs",
            )
        content["mm_processor_kwargs"] = {**given, **adapted.arguments}


def copy_messages(content: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a request in which an image can be replaced; texts and images are shared."""
    messages = [
        {**message, "content": list(parts)} if isinstance(parts := message.get("content"), list) else message
        for message in _list_messages(content)
    ]
    return {**content, "messages": messages}


def encode_request(content: dict[str, Any], picture: Picture | None) -> bytes:
    """Return a request as JSON. `picture` is the place of its image, if that was read from it.

    The data URL of the image, which is most of a request, is copied: it has been checked, so that it has no
    character that JSON escapes.
    """
    part = _find_part(content, picture)
    source = part.get("image_url")
    url = source.get("url") if isinstance(source, dict) else source
    if picture is None or not isinstance(url, str) or not url.startswith("data:"):
        return json.dumps(content).encode()
    mark = uuid4().hex
    copy = copy_messages(content)
    marked = {**source, "url": mark} if isinstance(source, dict) else mark
    copy["messages"][picture.message]["content"][picture.part] = {**part, "image_url": marked}
    return json.dumps(copy).encode().replace(mark.encode(), url.encode(), 1)


def _find_part(content: dict[str, Any], picture: Picture | None) -> dict[str, Any]:
    """Return the part of a request at the place of its image; empty if it has none."""
    if picture is None:
        return {}
    part: dict[str, Any] = content["messages"][picture.message]["content"][picture.part]
    return part


def read_answer(chunks: Sequence[bytes]) -> str:
    """Return the text of the only answer in a completion, or in all chunks of a streamed one.

    Raises ValueError if there is none.
    """
    pieces: list[str] = []
    for chunk in chunks:
        content = json.loads(chunk)
        choices = content.get("choices") if isinstance(content, dict) else None
        for choice in choices if isinstance(choices, list) else []:
            message = choice.get("message", choice.get("delta")) if isinstance(choice, dict) else None
            text = message.get("content") if isinstance(message, dict) else None
            pieces += [text] if isinstance(text, str) else []
    if not pieces:
        raise ValueError("the response has no answer")
    return "".join(pieces)


def _list_messages(content: dict[str, Any]) -> list[dict[str, Any]]:
    messages = content.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise refuse("give a list of messages", param="messages")
    return messages
