"""rq: jobs from queue to result, with a worker, failures, schedules and dependencies."""

from __future__ import annotations

import logging
import operator
from datetime import timedelta

from rq import Queue, SimpleWorker
from rq.job import Job
from rq.registry import FailedJobRegistry

NAME = "rq"
DISTRIBUTION = "rq"


def given(client):
    return Queue(connection=client)


def use(client, record):
    logging.getLogger("rq.worker").setLevel(logging.CRITICAL)
    queue = given(client)
    add = queue.enqueue(operator.add, 1, 2, job_id="add")
    fails = queue.enqueue(operator.truediv, 1, 0, job_id="fails")
    queue.enqueue(operator.neg, 5, job_id="after", depends_on=add)
    queue.enqueue(operator.neg, 6, job_id="cancelled")
    queue.enqueue_in(timedelta(hours=1), operator.neg, 7, job_id="later")
    record("len(queue)", len, queue)
    record("job_ids", lambda: list(queue.job_ids))
    record("status", lambda: [job.get_status().value for job in (add, fails)])
    record("cancel", lambda: Job.fetch("cancelled", connection=client).cancel())
    record("is_canceled", lambda: Job.fetch("cancelled", connection=client).is_canceled)
    record("fetch, missing", lambda: Job.fetch("missing", connection=client))
    record("exists", lambda: [Job.exists(i, connection=client) for i in ("add", "missing")])
    worker = SimpleWorker([queue], connection=client, name="worker")
    record("work", worker.work, burst=True)
    record("return_value", lambda: [add.return_value(), fails.return_value()])
    record("statuses", lambda: [job.get_status().value for job in (add, fails)])
    record("dependent", lambda: Job.fetch("after", connection=client).return_value())
    record("scheduled", queue.scheduled_job_registry.get_job_ids)
    failed = FailedJobRegistry(queue=queue)
    record("failed", failed.get_job_ids)
    record("in FailedJobRegistry", lambda: ["fails" in failed, "add" in failed])
    record("exception", lambda: fails.latest_result().exc_string.splitlines()[-1])
    record("requeue", lambda: failed.requeue("fails").get_status().value)
    record("Queue.all", lambda: [queue.name for queue in Queue.all(connection=client)])
    record("empty", queue.empty)
    record("delete", add.delete)
