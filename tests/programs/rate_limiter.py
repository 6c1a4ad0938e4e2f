"""Three ways to limit how often somebody may do something."""

from __future__ import annotations

import time


class FixedWindow:
    """At most `limit` calls in each period that begins with the first call."""

    def __init__(self, client, limit, period):
        self.client = client
        self.limit = limit
        self.period = period

    def allow(self, who):
        key = f"fixed:{who}"
        calls = self.client.incr(key)
        if calls == 1:
            self.client.expire(key, self.period)
        return calls <= self.limit


class SlidingWindow:
    """At most `limit` calls within the last `period` seconds, at any time."""

    def __init__(self, client, limit, period, clock=time.time):
        self.client = client
        self.limit = limit
        self.period = period
        self.clock = clock

    def allow(self, who):
        now = self.clock()
        key = f"sliding:{who}"
        with self.client.pipeline() as pipe:
            pipe.zremrangebyscore(key, 0, now - self.period)
            pipe.zadd(key, {repr(now): now})
            pipe.zcard(key)
            pipe.expire(key, self.period)
            _, _, calls, _ = pipe.execute()
        if calls > self.limit:
            self.client.zrem(key, repr(now))
            return False
        return True


class TokenBucket:
    """Tokens come back at a constant rate; a call takes one."""

    TAKE = """
    local bucket = redis.call('HMGET', KEYS[1], 'tokens', 'at')
    local capacity, rate, now = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
    local tokens = tonumber(bucket[1] or capacity)
    tokens = math.min(capacity, tokens + (now - tonumber(bucket[2] or now)) * rate)
    local allowed = 0
    if tokens >= 1 then
        tokens = tokens - 1
        allowed = 1
    end
    redis.call('HSET', KEYS[1], 'tokens', tostring(tokens), 'at', ARGV[3])
    redis.call('PEXPIRE', KEYS[1], math.ceil(1000 * capacity / rate))
    return allowed
    """

    def __init__(self, client, capacity, rate, clock=time.time):
        self.client = client
        self.capacity = capacity
        self.rate = rate
        self.clock = clock
        self._take = client.register_script(self.TAKE)

    def take(self, who):
        return self._take(
            keys=[f"bucket:{who}"], args=[self.capacity, self.rate, repr(self.clock())]
        )

    def remaining(self, who):
        return float(self.client.hget(f"bucket:{who}", "tokens") or self.capacity)
