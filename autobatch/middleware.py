"""What the middlewares for ASGI and for WSGI have in common: their options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from autobatch.scope import MAX_BYTES, MAX_COMMANDS, check_limits

if TYPE_CHECKING:  # most applications have none, and it takes time to import
    from autobatch.panel import Panel

A = TypeVar("A")


class Middleware(Generic[A]):
    """Wraps an application.

    Attributes:
        app: what is wrapped.
    """

    def __init__(
        self,
        app: A,
        *,
        max_commands: int = MAX_COMMANDS,
        max_bytes: int = MAX_BYTES,
        suggest: bool | None = None,
        server_timing: bool = False,
        panel: Panel | None = None,
    ) -> None:
        """Wrap an application.

        Args:
            app: what to wrap.
            max_commands: as for `autobatch.batch`.
            max_bytes: likewise.
            suggest: likewise.
            server_timing: tell in each response's `Server-Timing` header how long its Redis calls
                took, up to its start. This tells clients of what stands behind the application.
            panel: the debug panel to serve at its path, for development.

        Raises:
            ValueError: a limit is below 1.
            TypeError: the panel is none.
        """
        check_limits(max_commands, max_bytes)
        if panel is not None and not hasattr(panel, "serves"):
            raise TypeError(f'panel= takes a Panel, as in panel=Panel("/redis"), not {panel!r}')
        self.app = app
        self._max_commands = max_commands
        self._max_bytes = max_bytes
        self._suggest = suggest
        self._server_timing = server_timing
        self._panel = panel
