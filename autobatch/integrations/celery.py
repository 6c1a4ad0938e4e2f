"""Celery. One line of set-up makes a scope of every task: `Celery("shop", task_cls=BatchTask)`."""

from __future__ import annotations

from typing import Any

from celery import Task  # type: ignore[import-untyped]

from autobatch.integrations.tasks import own_scope
from autobatch.resolve import resolve
from autobatch.scope import step_aside


class BatchTask(Task):  # type: ignore[misc]  # celery has no types
    """A task whose body runs in a scope of its own, and returns plain values.

    For all tasks of an application, `Celery(..., task_cls=BatchTask)`; for one of them,
    `@app.task(base=BatchTask)`.

    An error that nobody has looked at is raised inside the task, so it fails, and `autoretry_for`
    sees it. (Signals and a `__call__` come too late for that: Celery wraps the body for its
    retries before them.)
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Wrap the body of the task, as soon as there is one."""
        super().__init_subclass__(**kwargs)
        run = cls.__dict__.get("run")
        if isinstance(run, staticmethod):  # of a function
            cls.run = staticmethod(own_scope(run.__func__))
        elif run is not None:  # with `bind=True`, or of a class
            cls.run = own_scope(run)

    def apply_async(self, args: Any = None, kwargs: Any = None, *rest: Any, **options: Any) -> Any:
        """Send the task to a worker, after what waits: the worker may need to see that."""
        step_aside()
        return super().apply_async(resolve(args), resolve(kwargs), *rest, **options)
