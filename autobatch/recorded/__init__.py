"""Recorded runs: files of what flushes did, to be looked at, and to be replayed."""

from __future__ import annotations

from autobatch.recorded.file import Arguments, Recorder, Run, load

__all__ = ["Arguments", "Recorder", "Run", "load"]
