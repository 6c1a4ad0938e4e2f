"""The linter as a plugin of flake8, which brings the tree, `noqa` and `--select` along."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from autobatch.lint.finder import find


class Plugin:
    """What flake8 calls for each file."""

    name = "autobatch"
    version = "1"
    # Who installs autobatch has other modules, too, where a client of redis-py gives plain values.
    off_by_default = True

    def __init__(self, tree: ast.Module, lines: list[str]) -> None:
        self._tree = tree
        self._lines = lines

    def run(self) -> Iterator[tuple[int, int, str, type[Plugin]]]:
        """Return what was found: line, column, text and who says so."""
        for found in find("".join(self._lines), self._tree):
            yield found.line, found.column - 1, f"{found.code} {found.message}", Plugin
