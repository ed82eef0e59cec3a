"""How much of anything a client may have."""

from __future__ import annotations

from typing import NamedTuple


class Limits(NamedTuple):
    """Bounds of one server; none of them can be lifted by a request."""

    queue: int = 64
    """Completions that may wait for a slot, of all models together; a request beyond gets 429."""
    body_bytes: int = 1 << 20
    """Of a request's body, else 413."""
    head_bytes: int = 16 << 10
    """Of a request's line and headers, else 400."""
    connections: int = 256
    """Open at once; one more is closed with 503."""
    head_seconds: float = 10.0
    """Until the headers of a request are there, else the connection is closed."""
    idle_seconds: int = 60
    """That a connection may wait for its next request. Clients drop theirs sooner (httpx after 5
    seconds): who closes last is never met by a request on its way."""
    body_seconds: float = 30.0
    """Until its body is there, else 408."""
    stall_seconds: float = 30.0
    """That a reader may take nothing while something waits for it; then it is cut off."""
    pieces: int = 4096
    """Tokens that may wait for a slow reader of a stream; then its completion ends."""
    drain_seconds: float = 30.0
    """That completions under way have to end when the server is asked to stop."""
    retry_seconds: int = 1
    """What `Retry-After` says where the queue is full."""
