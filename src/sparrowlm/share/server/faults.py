"""What a client is told when a request cannot be answered, in OpenAI's shape."""

from __future__ import annotations

from typing import Any

from sparrowlm.errors import SparrowError, UserError


class ApiFault(Exception):
    """A request that is refused.

    Args:
        status: of HTTP.
        message: what is wrong and what would be right, for a person.
        param: the field at fault.
        code: a word that a program can compare.
        retry_after: seconds after which another try makes sense; None: it makes none.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after = retry_after
        super().__init__(message)

    @property
    def body(self) -> dict[str, Any]:
        """`{"error": {…}}`, as OpenAI's clients read it."""
        return {
            "error": {
                "message": _writable(self.message),
                "type": _type(self.status),
                "param": self.param and _writable(self.param),
                "code": self.code,
            }
        }

    @property
    def headers(self) -> dict[str, str]:
        """What goes with the status."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        own = {401: {"WWW-Authenticate": "Bearer"}, 408: {"Connection": "close"}}
        return headers | own.get(self.status, {})


def fault_of(fault: SparrowError) -> ApiFault:
    """One of ours, for a client: a mistake of the person's is the request's."""
    told = " ".join(filter(None, [fault.what, fault.why and f"({fault.why})", fault.fix]))
    if isinstance(fault, UserError):
        return ApiFault(400, told, param=fault.where or None, code="invalid_value")
    return ApiFault(500, told, code="engine_fault")


def _writable(text: str) -> str:
    """A text that may quote half of a surrogate pair, which no UTF-8 can carry."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _type(status: int) -> str:
    """OpenAI's word for a kind of fault."""
    known = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    return known.get(status, "server_error" if status >= 500 else "invalid_request_error")
