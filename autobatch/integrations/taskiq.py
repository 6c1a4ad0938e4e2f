"""taskiq. One line of set-up makes a scope of every task declared after it.

broker = RedisStreamBroker(url).with_middlewares(BatchMiddleware())
"""

from __future__ import annotations

from typing import Any

from taskiq import AsyncBroker, AsyncTaskiqDecoratedTask, TaskiqMessage, TaskiqMiddleware

from autobatch.integrations.tasks import own_scope
from autobatch.resolve import resolve
from autobatch.scope import astep_aside


class BatchTask(AsyncTaskiqDecoratedTask[Any, Any]):
    """A task whose function runs in a scope of its own, and returns plain values."""

    def __init__(
        self, broker: AsyncBroker, task_name: str, original_func: Any, **rest: Any
    ) -> None:
        """Wrap `original_func`, which the worker calls."""
        super().__init__(broker, task_name, own_scope(original_func), **rest)


class BatchMiddleware(TaskiqMiddleware):
    """Make every task that is declared after it a scope.

    An error that nobody has looked at fails the task, so retries work. What waits in the scope
    that sends a task is sent before it: the worker may need to see that.
    """

    def set_broker(self, broker: AsyncBroker) -> None:
        """Make tasks of what `broker.task` decorates from now on."""
        super().set_broker(broker)
        broker.decorator_class = BatchTask  # type: ignore[assignment]  # it is generic

    async def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        """Send what waits, and put plain values in the place of Futures among the arguments."""
        await astep_aside()
        message.args = resolve(message.args)
        message.kwargs = resolve(message.kwargs)
        return message
