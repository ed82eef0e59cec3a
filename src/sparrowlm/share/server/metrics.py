"""What Prometheus reads at `/metrics`."""

from __future__ import annotations

from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

__all__ = ["CONTENT_TYPE_LATEST", "Gauges", "Metrics"]

# Seconds: from a tiny model's token to a long queue.
FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Gauges(Protocol):
    """What is looked up when it is asked for."""

    @property
    def active(self) -> int:
        """Completions that hold a slot."""
        ...

    @property
    def waiting(self) -> int:
        """Completions that wait for one."""
        ...

    slots: int


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self, of: Gauges) -> None:
        self.registry = own = CollectorRegistry()
        self.requests = Counter(
            "sparrow_requests", "Requests, by route and status.", ["route", "status"], registry=own
        )
        self.read = Counter("sparrow_prompt_tokens", "Tokens of prompts.", ["model"], registry=own)
        self.written = Counter(
            "sparrow_completion_tokens", "Tokens that were drawn.", ["model"], registry=own
        )
        self.first = Histogram(
            "sparrow_time_to_first_token_seconds",
            "From the acceptance of a request to its first token.",
            buckets=FIRST,
            registry=own,
        )
        self.between = Histogram(
            "sparrow_time_between_tokens_seconds",
            "From one token of a completion to its next.",
            buckets=BETWEEN,
            registry=own,
        )
        for name, told, look in (
            ("sparrow_queue_length", "Completions that wait for a slot.", lambda: of.waiting),
            ("sparrow_active_slots", "Completions that hold a slot.", lambda: of.active),
            ("sparrow_slots", "Slots of all models.", lambda: of.slots),
        ):
            Gauge(name, told, registry=own).set_function(look)

    def page(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)
