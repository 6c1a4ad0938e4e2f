"""Arguments that stand in for those of a program, whose values may be secret.

Equal values have equal stand-ins, of the same length, so that a replay does the same work: keys,
numbers, options and the sources of scripts stay as they are.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import Any

from autobatch.keys import keys_of

# Words that are a part of a command's syntax.
_OPTIONS_TABLE = """
ABSTTL AFTER AGGREGATE ALPHA AND ANY ASC BEFORE BIT BLOCK BY BYBOX BYLEX BYRADIUS BYSCORE BYTE
CH COPY COUNT CREATE DB DELSTATIC DESC DIFF DIFF1 ENTRIESREAD EX EXAT FIELDS FORCE FREQ
FROMLONLAT FROMMEMBER FT FULL FVS FNX FXX GET GROUP GT IDLE IDLETIME IDX INCR JUSTID KEEPTTL KM
LASTID LEFT LEN LIMIT LT M MATCH MAX MAXLEN MAXLENGTH MI MIN MINID MINMATCHLEN MKSTREAM NOACK
NOMKSTREAM NOT NX ONE OR OVERFLOW PERSIST PX PXAT RANK REPLACE RETRYCOUNT REV RIGHT SAMPLES
SAT SET STORE STOREDIST STREAMS SUM TIME TYPE WEIGHTS WITHCOORD WITHDIST WITHHASH WITHMATCHLEN
WITHSCORE WITHSCORES WITHVALUES WRAP XOR XX FAIL INCRBY
"""
_OPTIONS = frozenset(_OPTIONS_TABLE.split())
_NUMBER = re.compile(rb"[(\[]?[-+]?(\d+(\.\d+)?([eE][-+]?\d+)?|inf)|\d+-\d+|[iu]\d{1,2}|[-+$>*=~#]")
# Their first argument is a program's text, or a digest of one.
_PROGRAMS = frozenset({"EVAL", "EVAL_RO", "EVALSHA", "EVALSHA_RO", "FCALL", "FCALL_RO"})
_SOURCES = frozenset({"SCRIPT LOAD", "FUNCTION LOAD"})
# What nobody needs for a replay, and nobody may see.
_SECRET = ("AUTH", "HELLO", "ACL", "CONFIG", "MIGRATE", "CLIENT")
_DIGITS = 16  # of a stand-in, at least


class Mask:
    """Stand-ins for values: the same ones within a file, others in each file."""

    def __init__(self) -> None:
        self._salt = secrets.token_bytes(16)

    def arguments(self, name: str, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Return the arguments of a command with stand-ins; None if it is not to be told of.

        Args:
            name: in upper case, a subcommand after one space.
            args: all of it, one word of the name after the other.
        """
        if name.startswith(_SECRET):
            return None
        words = name.count(" ") + 1
        kept = {_bytes(key) for key in keys_of(name, args) or ()}
        shown = words + (name in _PROGRAMS or name in _SOURCES)
        return (
            *args[:shown],
            *(arg if _bytes(arg) in kept else self._masked(arg) for arg in args[shown:]),
        )

    def _masked(self, arg: Any) -> Any:
        if isinstance(arg, (int, float)):
            return arg
        value = _bytes(arg)
        if value.upper().decode("latin-1") in _OPTIONS or _NUMBER.fullmatch(value):
            return arg
        digest = hashlib.blake2s(self._salt + value, digest_size=_DIGITS // 2).hexdigest()
        return digest + "x" * (len(value) - len(digest))


def _bytes(arg: Any) -> bytes:
    if isinstance(arg, (bytes, bytearray, memoryview)):
        return bytes(arg)
    return str(arg).encode("utf-8", "surrogateescape")
