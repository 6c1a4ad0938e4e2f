"""Sessions of a web application: a hash with a time to live each, and an index by user."""

from __future__ import annotations

import secrets


class SessionExpired(Exception):
    """There is no such session (any more)."""


class SessionStore:
    """The sessions of all users."""

    def __init__(self, client, ttl=1800, new_id=lambda: secrets.token_urlsafe(24)):
        self.client = client
        self.ttl = ttl
        self.new_id = new_id

    def create(self, user, **data):
        session_id = self.new_id()
        self.client.hset(self._key(session_id), mapping={"user": user, "hits": 0, **data})
        self.client.expire(self._key(session_id), self.ttl)
        self.client.sadd(self._index(user), session_id)
        return session_id

    def load(self, session_id):
        """Return a session's data and keep it alive."""
        key = self._key(session_id)
        data = self.client.hgetall(key)
        if not data:
            raise SessionExpired(session_id)
        self.client.hincrby(key, "hits", 1)
        self.client.expire(key, self.ttl)
        return data

    def update(self, session_id, **data):
        self.client.hset(self._key(session_id), mapping=data)

    def touch(self, session_id):
        return bool(self.client.expire(self._key(session_id), self.ttl))

    def sessions_of(self, user):
        """Return a user's live sessions by id; forget the expired ones."""
        session_ids = sorted(self.client.smembers(self._index(user)))
        sessions = {
            session_id: self.client.hgetall(self._key(session_id)) for session_id in session_ids
        }
        for session_id, data in list(sessions.items()):
            if not data:
                self.client.srem(self._index(user), session_id)
                del sessions[session_id]
        return sessions

    def destroy(self, session_id):
        user = self.client.hget(self._key(session_id), "user")
        self.client.delete(self._key(session_id))
        if user:
            self.client.srem(self._index(user), session_id)

    def destroy_all(self, user):
        """Log a user out everywhere; return from how many sessions."""
        session_ids = self.client.smembers(self._index(user))
        for session_id in session_ids:
            self.client.delete(self._key(session_id))
        self.client.delete(self._index(user))
        return len(session_ids)

    def _key(self, session_id):
        return f"session:{session_id}"

    def _index(self, user):
        return f"sessions-of:{user}"
