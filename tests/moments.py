"""What happens at the so-manieth step of a program: given to `sys.setprofile`, for one thread."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import FrameType

import redis

import autobatch
from autobatch.errors import NotSent, OutcomeUnknown
from common import meanwhile


def _is_in(frame: FrameType, *packages: str) -> bool:
    return any(f"{os.sep}{name}{os.sep}" in frame.f_code.co_filename for name in packages)


class Elsewhere:
    """Calls a function in another thread, at the so-manieth event in a client or autobatch."""

    def __init__(self, number: int, function: Callable[[], object]) -> None:
        self.left = number
        self._function = function

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        if _is_in(frame, "redis", "valkey", "autobatch"):
            self.left -= 1
            if not self.left:
                sys.setprofile(None)
                with meanwhile(self._function):
                    pass


class InterruptAt:
    """Raises KeyboardInterrupt at the beginning of the so-manieth call inside the library."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        if event == "call" and _is_in(frame, "autobatch"):
            self.left -= 1
            if not self.left:
                sys.setprofile(None)
                raise KeyboardInterrupt


def assert_told_truly(pushed: list[autobatch.Future], plain: redis.Redis) -> None:
    """Each of RPUSH a 1, RPUSH a 2, ... has its value, or an error that does not lie."""
    errors = [future.exception() for future in pushed]
    sent = plain.lrange("a", 0, -1)
    for count, (future, error) in enumerate(zip(pushed, errors, strict=True), 1):
        if error is None:
            assert future == count
        elif isinstance(error, NotSent):
            assert str(count) not in sent
        else:
            assert isinstance(error, OutcomeUnknown)
