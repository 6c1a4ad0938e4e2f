"""Flask. One line of set-up where a view returns Futures: `app.json = JSONProvider(app)`."""

from __future__ import annotations

import functools
from typing import Any

from flask.json.provider import DefaultJSONProvider

from autobatch.future import FUTURE_TYPES, unwrap
from autobatch.integrations import encoding
from autobatch.resolve import resolve


class JSONProvider(DefaultJSONProvider):
    """Flask's JSON, for dicts, lists and `jsonify` that hold Futures anywhere."""

    @staticmethod
    def default(value: Any) -> Any:
        """Return what stands for a value that is no JSON: a Future's own value."""
        if type(value) in FUTURE_TYPES:
            return unwrap(value)
        return DefaultJSONProvider.default(value)

    def dumps(self, obj: Any, **kwargs: Any) -> str:
        """Return `obj` as JSON."""
        if kwargs.get("indent") is not None:
            obj = resolve(obj)  # json's encoder in Python takes a Future for what it seems to be
        return encoding.encode(obj, functools.partial(super().dumps, **kwargs))
