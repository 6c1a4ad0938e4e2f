"""RQ. A scope for every job: give `BatchJob` to the worker, and to the queue, as `job_class`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rq.job import Job

from autobatch.integrations.tasks import own_scope
from autobatch.scope import step_aside


class BatchJob(Job):
    """A job whose function runs in a scope of its own, and returns plain values.

    For a worker: `rq worker --job-class autobatch.integrations.rq.BatchJob`, or
    `Worker(..., job_class=BatchJob)`. An error that nobody has looked at fails the job.

    For a queue: `Queue(..., job_class=BatchJob)`. What waits in the scope that enqueues a job is
    sent before it: the worker may need to see that.
    """

    @property
    def func(self) -> Callable[..., Any] | None:
        """The job's function, in a scope of its own."""
        function = super().func
        return None if function is None else own_scope(function)

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Write the job to Redis, after what waits."""
        step_aside()
        super().save(*args, **kwargs)
