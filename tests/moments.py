"""What happens at the so-manieth step of a program: given to `sys.setprofile`, for one thread."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import FrameType

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
