"""Errors of requests in the form of the OpenAI API."""

from typing import Any

from pydantic import ValidationError
from starlette.responses import JSONResponse, Response

_MAX_MESSAGE = 500
_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class RequestError(ValueError):
    """A request that is answered with an error: HTTP status, message, and the parameter at fault."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def to_body(self) -> dict[str, Any]:
        """Return the body of the response: `{"error": {"message", "type", "param", "code"}}`."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        message = " ".join(self.message.split())
        if len(message) > _MAX_MESSAGE:
            message = f"{message[: _MAX_MESSAGE - 3]}..."
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}

    def to_response(self) -> Response:
        """Return the response; clients of a full server are told when to try again."""
        headers = {"retry-after": "1"} if self.status == 429 else None
        return JSONResponse(self.to_body(), status_code=self.status, headers=headers)


def refuse(message: str, *, param: str | None = None) -> RequestError:
    """Return the error of a request that cannot be answered as it is (status 400)."""
    return RequestError(400, message, param=param)


def describe_invalid(error: ValidationError) -> RequestError:
    """Return the error for the first invalid field of a request; its value is not repeated."""
    first = error.errors(include_url=False, include_input=False, include_context=True)[0]
    # The kind of a part stands before its fields: content.0.text.text.
    path = [
        str(part) for part, before in zip(first["loc"], (None, *first["loc"]), strict=False) if part != before
    ]
    cause = first.get("ctx", {}).get("error")
    message = str(cause) if isinstance(cause, ValueError) else first["msg"]
    param = ".".join(path) or None
    return refuse(f"{param}: {message}" if param else message, param=param)
