"""Stop strings in a text that comes in pieces."""

from __future__ import annotations

from collections.abc import Sequence

from sparrowlm.text.stream import overlap


class StopStrings:
    """Lets text through up to the first stop string, and holds back what may be its beginning.

    Where pieces are cut makes no difference: the stop string that is complete first ends the
    text, and of several that end together the longest.

    >>> stops = StopStrings(["###"])
    >>> [stops.push("one #"), stops.push("two ##"), stops.push("#three"), stops.found]
    ['one ', '#two ', '', True]
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """The text that may be shown now. Nothing follows a stop string."""
        if self.found:
            return ""
        text = self._held + piece
        places = [(text.find(stop), stop) for stop in self._stops]
        ends = [(place + len(stop), place) for place, stop in places if place >= 0]
        if ends:
            self.found, self._held = True, ""
            return text[: min(ends)[1]]
        keep = max((overlap(text, stop) for stop in self._stops), default=0)
        cut = len(text) - keep
        self._held = text[cut:]
        return text[:cut]

    def finish(self) -> str:
        """What was held back, at the end of a text that no stop string ended."""
        text, self._held = self._held, ""
        return text
