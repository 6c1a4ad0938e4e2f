"""What the flushes of a scope did."""

from __future__ import annotations

from collections.abc import Sized


class Stats:
    """Counts of one scope.

    Attributes:
        flushes: how often something was sent.
        round_trips: how often the program waited for the network. A flush over several servers
            writes to all before it reads from any: one.
        exchanges: the writes with the reading of their replies, on all connections.
    """

    __slots__ = ("_taken", "_waiting", "exchanges", "flushes", "round_trips")

    def __init__(self, waiting: Sized) -> None:
        self._waiting = waiting
        self._taken = 0
        self.flushes = 0
        self.round_trips = 0
        self.exchanges = 0

    @property
    def commands(self) -> int:
        """The commands that were called, those of a finished atomic block included."""
        return self._taken + len(self._waiting)

    def took(self, commands: int) -> None:
        """Count commands that do not wait any more."""
        self._taken += commands

    def __repr__(self) -> str:
        return (
            f"Stats(commands={self.commands}, flushes={self.flushes}, "
            f"round_trips={self.round_trips}, exchanges={self.exchanges})"
        )
