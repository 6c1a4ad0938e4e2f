"""What the synchronous clients of a server and those of a cluster have in common."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from autobatch.funnel import Funnel
from autobatch.future import unwrap
from autobatch.scope import step_aside


class SyncFunnel(Funnel):
    """What looks at replies itself, and how a client ends, whatever it leads to."""

    # A type checker goes on seeing redis-py's signatures.
    if not TYPE_CHECKING:

        def register_script(self, script):
            self._know_script(script)
            return super().register_script(script)

        def __getitem__(self, name):
            value = unwrap(self.get(name))
            if value is None:
                raise KeyError(name)
            return value

        def lock(self, *args, **kwargs):
            # Lock.locked() tests `is not None`, and its other methods need each reply at once.
            return super(SyncFunnel, self.eager).lock(*args, **kwargs)

    def close(self) -> None:
        """Send what waits, then close the connections, as redis-py's client does."""
        step_aside()
        if self._origin is not None:
            self._origin.close()
        else:
            plain: Any = super()
            plain.close()

    def __del__(self) -> None:
        # The garbage collector must not flush, and a twin must not close what it shares.
        if self._origin is None:
            # As redis-py does: a half-made client has nothing to close.
            with contextlib.suppress(Exception):
                plain: Any = super()
                plain.close()
