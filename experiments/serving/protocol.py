"""Requests and responses of chat completions: those of the OpenAI API, with the choice of a scale.

Source of the fields: the API reference of OpenAI, "Create chat completion" (platform.openai.com/docs).
"""

import json
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Len
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from experiments.serving.errors import RequestError, describe_invalid, refuse
from m3_backbone.arguments import NonNegativeFloat, PositiveFloat, PositiveInt, show

# Values with which a parameter that is not known asks for nothing.
_NEUTRAL: tuple[Any, ...] = (None, False, 0, "", [], {})
Parsed = TypeVar("Parsed", bound=BaseModel)


class Terms(BaseModel):
    """How the scale of a request is chosen: fields of its body beside those of OpenAI, or settings."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    price: NonNegativeFloat | None = None
    budget: PositiveFloat | None = None
    point: str | None = None
    scale: PositiveInt | None = None
    escalate: bool | None = None

    def given(self) -> dict[str, Any]:
        """Return the fields that are not None."""
        return {name: value for name in Terms.model_fields if (value := getattr(self, name)) is not None}

    def or_default(self, default: "Terms") -> "Terms":
        """Return these terms, or the default if no field is given."""
        return Terms(**self.given()) if self.given() else default


class ImageUrl(BaseModel):
    """Source of an image: a data URL, or an address."""

    url: str
    detail: Literal["auto"] | None = None


class ImagePart(BaseModel):
    """Part of a message that is an image."""

    type: Literal["image_url"]
    image_url: ImageUrl


class TextPart(BaseModel):
    """Part of a message that is text."""

    type: Literal["text"]
    text: str


def _make_parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _make_list(texts: Any) -> Any:
    return [texts] if isinstance(texts, str) else texts


class UserMessage(BaseModel):
    """A message of the user: text, or text and images."""

    role: Literal["user"]
    content: Annotated[
        list[Annotated[TextPart | ImagePart, Field(discriminator="type")]], BeforeValidator(_make_parts)
    ]


class StreamOptions(BaseModel):
    """Options of a streamed response."""

    include_usage: bool = False


class TextFormat(BaseModel):
    """Format of an answer."""

    type: Literal["text"]


class ChatRequest(Terms):
    """Body of a chat completion that is answered in this process.

    Parameters without a field, such as `tools`, are refused unless they ask for nothing.
    """

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    model: str
    messages: Annotated[list[dict[str, Any]], Len(1)]
    max_tokens: PositiveInt | None = None
    max_completion_tokens: PositiveInt | None = None
    temperature: NonNegativeFloat | None = None
    n: PositiveInt | None = None
    stop: Annotated[list[str] | None, BeforeValidator(_make_list)] = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: TextFormat | None = None
    # Without effect on a greedy answer, or not read at all.
    top_p: float | None = None
    seed: int | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    parallel_tool_calls: bool | None = None

    @property
    def limit(self) -> int | None:
        """Largest number of tokens of the answer."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def includes_usage(self) -> bool:
        """Whether a streamed response ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def check_options(self) -> None:
        """Raise RequestError for an option that cannot be honoured."""
        if self.temperature:
            raise refuse(
                "answers are greedy, like those that the predictor was trained on: give temperature=0, or "
                "leave it out",
                param="temperature",
            )
        if self.n not in (None, 1):
            raise refuse("a greedy answer is the only one: give n=1, or leave it out", param="n")
        if self.stream_options is not None and not self.stream:
            raise refuse("only a streamed response has stream_options", param="stream_options")
        for name, value in (self.model_extra or {}).items():
            if value not in _NEUTRAL:
                raise refuse(
                    f"this server does not have the parameter {show(name[:64])}: leave it out", param=name
                )

    def read_message(self) -> tuple[str, str]:
        """Return the question and the URL of the image. Raises RequestError unless there is one of each."""
        if len(self.messages) != 1 or self.messages[0].get("role") != "user":
            raise refuse(
                "this model answers one question about one image: give a single message, of the role user",
                param="messages",
            )
        try:
            message = UserMessage.model_validate(self.messages[0])
        except ValidationError as error:
            raise describe_invalid(error) from error
        images = [part.image_url.url for part in message.content if isinstance(part, ImagePart)]
        if len(images) != 1:
            raise refuse(
                f"this model answers questions about one image, and the message has {len(images)}: give one "
                "part of the type image_url",
                param="messages",
            )
        return "\n".join(part.text for part in message.content if isinstance(part, TextPart)), images[0]


class ChosenScale(BaseModel):
    """The choice of a scale, in the field `tokenscale` of a response.

    `estimates` has the estimated probability of a correct answer for each scale; it is None if the request
    gave the scale. `tried` are the scales of all answers, in order.
    """

    scale: int
    tried: list[int]
    visual_tokens: int
    finest_visual_tokens: int
    estimates: dict[int, float] | None
    price: float | None


def parse(model: type[Parsed], body: bytes | dict[str, Any]) -> Parsed:
    """Return the validated body of a request. Raises RequestError."""
    try:
        return model.model_validate(parse_object(body) if isinstance(body, bytes) else body)
    except ValidationError as error:
        raise describe_invalid(error) from error


def parse_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in the body of a request. Raises RequestError."""
    try:
        content = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise RequestError(400, "the body is not a JSON object")
    return content


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number in JSON")
