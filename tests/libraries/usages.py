"""The libraries, in the order of the table."""

from __future__ import annotations

from . import (
    cachelib_cache,
    celery_backend,
    django_cache,
    dogpile_region,
    flask_sessions,
    limits_async,
    limits_strategies,
    litestar_store,
    pottery_containers,
    redis_client_lock,
    redis_lock,
    redis_om_async,
    redis_om_models,
    rq_queue,
    slowapi_limiter,
    walrus_database,
)

USAGES = [
    limits_strategies,
    limits_async,
    slowapi_limiter,
    dogpile_region,
    rq_queue,
    celery_backend,
    pottery_containers,
    redis_client_lock,
    redis_lock,
    redis_om_models,
    redis_om_async,
    litestar_store,
    cachelib_cache,
    flask_sessions,
    django_cache,
    walrus_database,
]
