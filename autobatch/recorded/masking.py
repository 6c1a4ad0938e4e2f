"""Arguments that stand in for those of a program, whose values may be secret.

Equal values have equal stand-ins, of the same length, so that a replay does the same work. Keys,
options, the sources of scripts, and numbers that are no values (scores, counts, seconds) stay as
they are. A number that is a value gets another number of as many digits.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Callable, Sequence
from typing import Any

from autobatch.keys import keys_of

# Words that are a part of a command's syntax: what COMMAND DOCS of Valkey 9.1.2 tells, which
# tests/test_recorded.py holds against the server that runs the tests, and what Redis 8 adds.
_OPTIONS_TABLE = """
ABSTTL ACLCAT AFTER AGGREGATE ALPHA AND ANY APPEND ASC ASYNC BEFORE BIT BLOCK BY BYBOX BYLEX
BYPOLYGON BYRADIUS BYSCORE BYTE CANCEL CH COPY COUNT DB DESC ENTRIESADDED ENTRIESREAD EX EXAT FAIL
FIELDS FILTERBY FLUSH FNX FORCE FREQ FROMLONLAT FROMMEMBER FT FULL FXX GET GROUP GT IDLE IDLETIME
IDX IFEQ INCR INCRBY JUSTID KEEPTTL KM LARGE-REPLY LARGE-REQUEST LASTID LEFT LEN LIBRARYNAME LIMIT
LT M MATCH MAX MAXDELETEDID MAXLEN MI MIN MINID MINMATCHLEN MKSTREAM MODULE NOACK NOMKSTREAM
NOSCORES NOT NOVALUES NX ONE OR OVERFLOW PATTERN PERSIST PX PXAT RANK REPLACE RETRYCOUNT REV RIGHT
SAMPLES SAT SCHEDULE SET SLOT SLOW STORE STOREDIST STREAMS SUM SYNC TIME TYPE VERSION WEIGHTS
WITHCODE WITHCOORD WITHDIST WITHHASH WITHMATCHLEN WITHSCORE WITHSCORES WITHVALUES WRAP XOR XX
"""
_OPTIONS_OF_REDIS_8 = """
ACKED ANDOR DELREF DIFF DIFF1 FPHA IFDEQ IFDNE IFNE KEEPREF
"""
_OPTIONS = frozenset(f"{_OPTIONS_TABLE} {_OPTIONS_OF_REDIS_8}".split())
_NUMBER = re.compile(rb"[(\[]?[-+]?(\d+(\.\d+)?([eE][-+]?\d+)?|inf)|[-+$>*=~#]")
# Numbers of a certain form that only some commands know: the ids of streams, the types of integers.
_FORMS = {
    "X": re.compile(rb"[(]?\d+-(\d+|\*)"),
    "BITFIELD": re.compile(rb"[iu]\d{1,2}|#\d+"),
}
# Where a command's values are, among its arguments: numbers there are as secret as texts.
_VALUES: dict[str, slice | Callable[[Sequence[Any]], slice]] = {
    **dict.fromkeys(("SET", "GETSET", "SETNX", "APPEND", "DELIFEQ"), slice(2, 3)),
    **dict.fromkeys(("SETEX", "PSETEX", "SETRANGE", "HSETNX", "LSET", "LREM"), slice(3, 4)),
    **dict.fromkeys(("MSET", "MSETNX"), slice(2, None, 2)),
    **dict.fromkeys(("HSET", "HMSET"), slice(3, None, 2)),
    **dict.fromkeys(("LPUSH", "LPUSHX", "RPUSH", "RPUSHX"), slice(2, None)),
    **dict.fromkeys(("SADD", "SREM", "SISMEMBER", "SMISMEMBER", "PFADD"), slice(2, None)),
    **dict.fromkeys(("SMOVE", "LINSERT"), slice(3, None)),
    "ECHO": slice(1, 2),
    "JSON.SET": slice(3, 4),
    "HSETEX": lambda args: slice(_place_of_fields(args) + 3, None, 2),
    "XADD": lambda args: slice(place_of_id(args) + 2, None, 2),
    **dict.fromkeys(("LPOS", "PUBLISH", "SPUBLISH"), slice(2, 3)),
}
# Their first argument is a program's text, or a digest of one.
_PROGRAMS = frozenset({"EVAL", "EVAL_RO", "EVALSHA", "EVALSHA_RO", "FCALL", "FCALL_RO"})
_SOURCES = frozenset({"SCRIPT LOAD", "FUNCTION LOAD"})
# What nobody needs for a replay, and nobody may see.
_SECRET = ("AUTH", "HELLO", "ACL", "CONFIG", "MIGRATE", "CLIENT", "MODULE", "SENTINEL")
# Their values have a form that a stand-in has not.
_PACKED = frozenset({"RESTORE", "FUNCTION RESTORE"})
_DIGITS = 16  # of a stand-in, at least
_TURNS = 8


def told_of(name: str) -> bool:
    """Return whether a file may have the arguments of a command.

    Args:
        name: in upper case, a subcommand after one space.
    """
    return name.partition(" ")[0] not in _SECRET


class Mask:
    """Stand-ins for values: the same ones within a file, others in each file."""

    def __init__(self) -> None:
        self._salt = secrets.token_bytes(16)

    def arguments(self, name: str, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Return the arguments of a command with stand-ins; None if there can be none.

        Args:
            name: in upper case, a subcommand after one space.
            args: all of it, one word of the name after the other.
        """
        if name in _PACKED:
            return None
        if name in _SOURCES:
            return args
        shown = name.count(" ") + 1 + (name in _PROGRAMS)
        kept = {as_bytes(key) for key in keys_of(name, args) or ()}
        form = next((form for start, form in _FORMS.items() if name.startswith(start)), None)
        where = _VALUES.get(name, slice(0))
        values = range(len(args))[where if isinstance(where, slice) else where(args)]
        masked = list(args)
        for at, arg in enumerate(args[shown:], shown):
            text = as_bytes(arg)
            if at in values and _NUMBER.fullmatch(text):
                masked[at] = self._other_number(arg)
            elif text not in kept and not _is_syntax(text, form):
                masked[at] = self._other_text(text)
        return tuple(masked)

    def _other_text(self, text: bytes) -> str:
        digest = hashlib.blake2s(self._salt + text, digest_size=_DIGITS // 2).hexdigest()
        return digest + "x" * (len(text) - len(digest))

    def _other_number(self, number: Any) -> Any:
        text = re.sub(r"\d{2,}", self._other_digits, as_bytes(number).decode("latin-1"))
        return type(number)(text) if type(number) in {int, float} else text

    def _other_digits(self, found: re.Match[str]) -> str:
        """Return as many digits, others for each number: a small block cipher, a Feistel network.

        It walks on until a result begins with 0 if, and only if, the number did.
        """
        digits = found[0]
        leading = digits[0] == "0"
        while True:
            left, right = digits[: len(digits) // 2], digits[len(digits) // 2 :]
            for turn in range(_TURNS):
                key = self._salt + f"{turn}:{len(digits)}:{right}".encode()
                step = int.from_bytes(hashlib.blake2s(key).digest(), "big")
                mixed = (int(left) + step) % 10 ** len(left)
                left, right = right, f"{mixed:0{len(left)}}"
            digits = left + right
            if (digits[0] == "0") is leading:
                return digits


def place_of_id(args: Sequence[Any]) -> int:
    """Return where the id is among the arguments of XADD."""
    at = 2
    while at < len(args):
        word = as_bytes(args[at]).upper()
        if word in {b"NOMKSTREAM", b"KEEPREF", b"DELREF", b"ACKED"}:
            at += 1
        elif word == b"LIMIT":
            at += 2
        elif word in {b"MAXLEN", b"MINID"}:
            at += 3 if {b"=", b"~"} & {as_bytes(arg) for arg in args[at + 1 : at + 2]} else 2
        else:
            break
    return at


def _place_of_fields(args: Sequence[Any]) -> int:
    """Return where the word FIELDS is among the arguments of HSETEX."""
    words = [as_bytes(arg).upper() for arg in args]
    return words.index(b"FIELDS", 2) if b"FIELDS" in words[2:] else len(args)


def _is_syntax(text: bytes, form: re.Pattern[bytes] | None) -> bool:
    if _NUMBER.fullmatch(text) or (form is not None and form.fullmatch(text)):
        return True
    return text.upper().decode("latin-1") in _OPTIONS


def as_bytes(arg: Any) -> bytes:
    """Return an argument as it travels, with UTF-8."""
    if isinstance(arg, (bytes, bytearray, memoryview)):
        return bytes(arg)
    return str(arg).encode("utf-8", "surrogateescape")
