"""Jinja. One line of set-up where a template shows Futures: `install(environment)`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from jinja2 import Environment

from autobatch.future import unwrap
from autobatch.resolve import resolve


def install(environment: Environment) -> None:
    """Make the templates of an environment take Futures wherever they take values.

    What a template outputs is unwrapped first, and so is what its filters and tests are given:
    `{{ value }}`, `{{ value|tojson }}`, `{% if value is none %}`. Filters and tests that are added
    later are not wrapped.
    """
    finalize: Any = environment.finalize
    environment.finalize = unwrap if finalize is None else _given_values(finalize)
    for table in (environment.filters, environment.tests):
        for name, function in table.items():
            table[name] = _given_values(function)


def _given_values(function: Any) -> Callable[..., Any]:
    @functools.wraps(function)  # Jinja's marks, too
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*map(resolve, args), **kwargs)

    return wrapper
