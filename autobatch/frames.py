"""Which lines of the program stand behind a call of the library: the frames' part of records."""

from __future__ import annotations

import asyncio
import enum
import os
import pathlib
from types import CodeType, FrameType
from typing import NamedTuple, TypeAlias

from autobatch.command import IN_LIBRARY
from autobatch.report import Place

# Code and instruction: the line is looked up when the record is made.
Line: TypeAlias = tuple[CodeType, int]


class _Part(enum.Enum):
    """What a file is a part of."""

    PROGRAM = enum.auto()
    BETWEEN = enum.auto()
    """It stands between the program and the call: redis-py, autobatch, `asyncio.wait_for`."""
    LOOP = enum.auto()
    """An event loop, which runs callbacks: nobody of the program has called."""


_ASYNCIO = f"{pathlib.Path(asyncio.__file__).parent}{os.sep}"
_LETTING_OTHERS_WAIT = {asyncio.tasks.__file__, asyncio.timeouts.__file__}


class _Parts(dict[str, _Part]):
    def __missing__(self, filename: str) -> _Part:
        self[filename] = part = _part_of(filename)
        return part


def _part_of(filename: str) -> _Part:
    if IN_LIBRARY[filename] or filename in _LETTING_OTHERS_WAIT:
        return _Part.BETWEEN
    return _Part.LOOP if filename.startswith(_ASYNCIO) else _Part.PROGRAM


# Of each file, as of IN_LIBRARY: every recorded call asks for several.
_PARTS = _Parts()


def of_program(filename: str) -> bool:
    """Return whether a file is neither of the library nor of what drives it."""
    return _PARTS[filename] is _Part.PROGRAM


def user_of(frame: FrameType | None) -> tuple[FrameType | None, str]:
    """Return the frame of the program that needs a value, and what for.

    The innermost frame of a library that the program called tells what for. There is none of the
    program where an event loop itself drives a Future.
    """
    inner = None
    while frame is not None and (part := _PARTS[frame.f_code.co_filename]) is not _Part.PROGRAM:
        if part is _Part.LOOP:
            return None, _use_of(inner)
        if IN_LIBRARY[frame.f_code.co_filename]:
            inner = frame
        frame = frame.f_back
    return frame, _use_of(inner)


class Edge(NamedTuple):
    """Where the program opened a scope: callers beyond that are not of interest.

    The code counts, not the frame, which would keep alive what is in it.
    """

    code: CodeType | None
    inside: bool  # a `with` block is a part of its function


NO_EDGE = Edge(None, inside=False)


def edge_around(frame: FrameType | None) -> Edge:
    """Return where the program opens a scope that a frame of the library makes."""
    inside = False
    while frame is not None and IN_LIBRARY[frame.f_code.co_filename]:
        inside = frame.f_code.co_name in {"__enter__", "__aenter__"}
        frame = frame.f_back
    return Edge(None if frame is None else frame.f_code, inside)


def lines_of(frame: FrameType | None, edge: Edge) -> tuple[Line, ...]:
    """Return where a frame of the program is, and where those are that have called it."""
    lines: list[Line] = []
    while frame is not None and len(lines) < _DEPTH:
        code = frame.f_code
        if code is edge.code and lines and not edge.inside:
            break
        part = _PARTS[code.co_filename]
        if part is _Part.LOOP:
            break
        if part is _Part.PROGRAM:
            lines.append((code, frame.f_lasti))
        if code is edge.code:
            break
        frame = frame.f_back
    return tuple(lines)


def places_of(lines: tuple[Line, ...]) -> tuple[Place, ...]:
    """Return the places of some lines."""
    return tuple([Place.of(*line) for line in lines])


def _use_of(frame: FrameType | None) -> str:
    if frame is None:
        return "value"
    name = frame.f_code.co_name
    if name == "forward":  # of the table in future.py
        operation = frame.f_locals.get("operation")
        return str(getattr(operation, "__name__", "value"))
    if name.endswith("_iter"):  # redis-py's own loops
        return "iter"
    module = frame.f_globals["__name__"]
    return _USES.get(name, "value" if module in _WHERE_VALUES_ARE_TAKEN else "argument")


# What else the program calls there is a command, or leads to one.
_WHERE_VALUES_ARE_TAKEN = {"autobatch.future", "autobatch.resolve", "autobatch.promise"}
# By the function of the library that the program called.
_USES = {
    "__await__": "await",
    "send": "await",
    "exception": "exception",
    "__str__": "str",
    "__class__": "class",
    "__getattr__": "attribute",
    "__radd__": "add",
    "__getitem__": "value",  # of a client
}
_DEPTH = 5
