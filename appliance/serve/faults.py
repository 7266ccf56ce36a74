"""What goes wrong, as OpenAI's clients understand it: an error object with type, code and parameter."""

from __future__ import annotations

from typing import Any


class Fault(Exception):
    """A request is answered with an error object.

    Args:
      status: of HTTP.
      code: a word for programs.
      message: a sentence for people, without anything of the request but names of fields.
      param: the field that is wrong.
      retry_after: seconds after which trying again makes sense.
    """

    def __init__(self, status: int, code: str, message: str, *, param: str = "", retry_after: int = 0) -> None:
        super().__init__(code)
        self.status, self.code, self.message, self.param, self.retry_after = status, code, message, param, retry_after

    @property
    def headers(self) -> dict[str, str]:
        """The headers that belong to it."""
        more = {"www-authenticate": "Bearer"} if self.status == 401 else {}
        return more | ({"retry-after": str(self.retry_after)} if self.retry_after else {})

    def body(self) -> dict[str, Any]:
        """Make the error object."""
        kind = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}.get(
            self.status, "server_error" if self.status >= 500 else "invalid_request_error"
        )
        said = {"message": self.message, "type": kind, "param": self.param or None, "code": self.code}
        return {"error": said}


def invalid(message: str, param: str = "", code: str = "invalid_request") -> Fault:
    """Make the fault of a request that does not say what it must."""
    return Fault(400, code, message, param=param)


class EngineFailed(Exception):
    """An engine did not do what it must; the request may be answered by another.

    Args:
      reason: one word or two: "refused", "http 500", "no first token", "no next token", "garbled", "ended early",
        "wrong model".
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
