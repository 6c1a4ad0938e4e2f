"""The switch that turns batching off: the environment variable AUTOBATCH_DISABLE.

It is read once, when this module is imported, and looked at when a scope is opened, when a limit is
reached and when a shared connection writes: a call in a batch pays nothing for it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


def is_set(name: str) -> bool:
    """Return whether an environment variable says yes: anything but nothing, 0, no and false."""
    return os.environ.get(name, "").strip().lower() not in {"", "0", "no", "false"}


# To be read as `switch.batching`, since it can be turned.
batching = not is_set("AUTOBATCH_DISABLE")


@contextlib.contextmanager
def unbatched() -> Iterator[None]:
    """Turn batching off in the `with` block, as AUTOBATCH_DISABLE=1 does, for the whole process.

    It holds for the scopes and event loops that begin inside: each command is sent by itself when
    it is called, and raises its error there.
    """
    global batching  # noqa: PLW0603  # it is the switch
    before, batching = batching, False
    try:
        yield
    finally:
        batching = before
