"""FastAPI. One line of set-up: `install(app)`."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from anyio import from_thread
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.routing import get_name

from autobatch.ambient import open_scope, whole_of
from autobatch.asgi import BatchMiddleware
from autobatch.asyncio import resolve
from autobatch.integrations.returning import plain
from autobatch.report import Reason
from autobatch.resolve import resolve as resolve_now
from autobatch.unseen import surface

_MARK = "__autobatch_plain__"


def install(app: FastAPI, **options: Any) -> None:
    """Make every request of an application a scope, and let its endpoints return Futures.

    It holds for all routes: those that the application has, those that it gets later, and those of
    the routers that it includes.

    Args:
        app: the application, which has not started yet.
        options: those of `autobatch.asgi.BatchMiddleware`.
    """
    app.add_middleware(BatchMiddleware, **options)
    _adopt(app.router)


class BatchRoute(APIRoute):
    """A route whose endpoint may return Futures, where `install` is too much.

    `APIRouter(route_class=BatchRoute)`, or `app.router.route_class = BatchRoute`; and
    `app.add_middleware(BatchMiddleware)`.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **kwargs: Any) -> None:
        """Create a route; the arguments are FastAPI's."""
        super().__init__(path, _returning_plain(endpoint), **kwargs)


def _adopt(router: APIRouter) -> None:
    if not issubclass(router.route_class, BatchRoute):
        kind = router.route_class
        router.route_class = (
            BatchRoute
            if kind is APIRoute
            else type(f"Batch{kind.__name__}", (BatchRoute, kind), {})
        )
        router.include_router = _adopting(router.include_router)  # type: ignore[method-assign]
    for route in router.routes:
        if isinstance(route, APIRoute):
            # FastAPI calls the one, and makes others from the other where it includes a router.
            route.dependant.call = route.endpoint = _returning_plain(route.endpoint)
        elif isinstance(included := getattr(route, "original_router", None), APIRouter):
            _adopt(included)


def _adopting(include_router: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(include_router)
    def wrapper(router: APIRouter, *args: Any, **kwargs: Any) -> None:
        _adopt(router)
        include_router(router, *args, **kwargs)

    return wrapper


def _returning_plain(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """Return an endpoint of the same kind, signature and name, which returns no Futures."""
    if hasattr(endpoint, _MARK):
        return endpoint
    wrapper: Any = functools.wraps(endpoint)(_around(endpoint))
    # Older versions of FastAPI look for the names in annotations in the wrapper's own module.
    with contextlib.suppress(Exception):
        wrapper.__signature__ = inspect.signature(endpoint, eval_str=True)
    wrapper.__name__ = get_name(endpoint)
    setattr(wrapper, _MARK, True)
    made: Callable[..., Any] = wrapper
    return made


def _around(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    kinds = _code_of(endpoint)

    async def coroutine(*args: Any, **kwargs: Any) -> Any:
        return await plain(await endpoint(*args, **kwargs))

    def function(*args: Any, **kwargs: Any) -> Any:
        return _plain_in_thread(endpoint(*args, **kwargs))

    # Streams: an error can only end what has started, so those of unseen commands are logged.

    async def async_generator(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        async with contextlib.aclosing(endpoint(*args, **kwargs)) as items:
            async for item in items:
                yield await resolve(item)

    def generator(*args: Any, **kwargs: Any) -> Iterator[Any]:
        with contextlib.closing(endpoint(*args, **kwargs)) as items:
            for item in items:
                yield from_thread.run(resolve, item) if _flush_in_thread() else resolve_now(item)

    if any(map(inspect.isasyncgenfunction, kinds)):
        return async_generator
    if any(map(inspect.isgeneratorfunction, kinds)):
        return generator
    if any(map(inspect.iscoroutinefunction, kinds)):
        return coroutine
    return function


def _plain_in_thread(returned: Any) -> Any:
    """Do as `plain` does, in a thread of FastAPI's."""
    if _flush_in_thread():
        return from_thread.run(plain, returned)
    scope = open_scope()
    if scope is not None:
        surface(scope.unseen())
    return resolve_now(returned)


def _flush_in_thread() -> bool:
    """Flush; return whether asyncio clients take part, for whom only the loop can wait."""
    scope = open_scope()
    if scope is not None and scope.busy:
        whole_of(scope).because(Reason.RESPONSE)
        scope.flush()
        return scope.busy
    return False


def _code_of(endpoint: Any) -> list[Any]:
    """Return what tells the kind of an endpoint: a function, a partial one, or an object."""
    while isinstance(endpoint, functools.partial):
        endpoint = endpoint.func
    if not inspect.isroutine(endpoint) and not inspect.isclass(endpoint):
        endpoint = type(endpoint).__call__
    return [endpoint, inspect.unwrap(endpoint)]
