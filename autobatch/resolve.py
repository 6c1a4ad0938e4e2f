"""Replacing every Future of a nested structure by its value."""

from __future__ import annotations
