"""Background jobs: a reliable queue of lists, and a log of events on a stream."""

from __future__ import annotations

import time

import redis


class JobQueue:
    """Jobs that are reserved, then completed in time, or tried again.

    A reserved job stays in the list of running jobs until it is completed, so that none is lost
    with its worker.
    """

    def __init__(self, client, patience=30, max_attempts=2, clock=time.time):
        self.client = client
        self.patience = patience
        self.max_attempts = max_attempts
        self.clock = clock

    def push(self, job_id, **payload):
        self.client.hset(f"job:{job_id}", mapping={"attempts": 0, **payload})
        self.client.lpush("jobs:waiting", job_id)

    def reserve(self):
        """Take the next job, if there is one."""
        return self._started(self.client.lmove("jobs:waiting", "jobs:running", "RIGHT", "LEFT"))

    def wait(self, timeout):
        """Take the next job; wait for it at most so many seconds."""
        return self._started(self.client.brpoplpush("jobs:waiting", "jobs:running", timeout))

    def _started(self, job_id):
        if not job_id:
            return None
        self.client.hincrby(f"job:{job_id}", "attempts", 1)
        self.client.zadd("jobs:deadlines", {job_id: self.clock() + self.patience})
        return job_id, self.client.hgetall(f"job:{job_id}")

    def complete(self, job_id):
        self.client.lrem("jobs:running", 1, job_id)
        self.client.zrem("jobs:deadlines", job_id)
        self.client.delete(f"job:{job_id}")

    def retry_overdue(self):
        """Put jobs whose worker is late back into the queue, or bury them at last."""
        overdue = self.client.zrangebyscore("jobs:deadlines", "-inf", self.clock())
        attempts = [self.client.hget(f"job:{job_id}", "attempts") for job_id in overdue]
        for job_id, count in zip(overdue, attempts, strict=True):
            buried = int(count) >= self.max_attempts
            self.client.lpush("jobs:buried" if buried else "jobs:waiting", job_id)
            self.client.lrem("jobs:running", 1, job_id)
            self.client.zrem("jobs:deadlines", job_id)
        return len(overdue)

    def status(self):
        return {
            "waiting": self.client.llen("jobs:waiting"),
            "running": self.client.lrange("jobs:running", 0, -1),
            "buried": self.client.lrange("jobs:buried", 0, -1),
        }


class EventLog:
    """Events that each consumer group processes once."""

    def __init__(self, client, stream, group):
        self.client = client
        self.stream = stream
        self.group = group

    def create_group(self):
        self.client.xgroup_create(self.stream, self.group, id="0", mkstream=True)

    def ensure_group(self):
        try:
            self.create_group()
        except redis.ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    def append(self, kind, **fields):
        return self.client.xadd(self.stream, {"kind": kind, **fields}, maxlen=1000)

    def process(self, consumer, handle, count=10):
        """Handle new events; what cannot be handled stays pending."""
        handled = []
        replies = self.client.xreadgroup(self.group, consumer, {self.stream: ">"}, count=count)
        for _, events in replies:
            for event_id, fields in events:
                try:
                    handle(fields)
                except ValueError:
                    continue
                handled.append(event_id)
        if handled:
            self.client.xack(self.stream, self.group, *handled)
        return len(handled)

    def take_over(self, consumer, min_idle_ms):
        """Claim what other consumers have left pending for too long."""
        _, events, _ = self.client.xautoclaim(self.stream, self.group, consumer, min_idle_ms)
        return [fields for _, fields in events]

    def pending(self):
        summary = self.client.xpending(self.stream, self.group)
        return summary["pending"], summary["consumers"]
