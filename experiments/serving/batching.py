"""Batches of tasks that arrive one by one, for a worker thread."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Generic, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")
Idle = TypeVar("Idle")


class Batcher(Generic[Task, Result]):
    """Collects tasks and works on them in batches, in one thread and in order of arrival.

    `work(tasks)` returns one result or exception per task. When tasks arrive while the thread is idle, the
    batch starts after `window_ms`; tasks that arrive while it works form the next batches. A task whose
    waiter is cancelled before its batch starts is dropped. Functions given to `run_when_idle` run in the same
    thread, one at a time, and only while no task is waiting.

    Args:
        work: function of a batch; it runs in the thread.
        window_ms: milliseconds that the first task of a batch waits for others.
        max_batch: largest number of tasks of a batch.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Task]], Sequence[Result | Exception]],
        *,
        window_ms: float,
        max_batch: int,
    ) -> None:
        self.work, self.window_ms, self.max_batch = work, window_ms, max_batch
        self._waiting: deque[tuple[Task, asyncio.Future[Result]]] = deque()
        self._idle: deque[tuple[Callable[[], Any], asyncio.Future[Any]]] = deque()
        self._changed = asyncio.Event()
        self._is_closing = False
        self._runner: asyncio.Task[None] | None = None

    @property
    def num_waiting(self) -> int:
        """Number of tasks that no batch has taken yet."""
        return len(self._waiting)

    async def start(self) -> None:
        """Start to work; tasks that were submitted before are waiting."""
        self._changed, self._is_closing = asyncio.Event(), False
        self._runner = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Finish all tasks that were submitted, then stop; functions that have not started never run."""
        self._is_closing = True
        self._changed.set()
        if self._runner is not None:
            await self._runner
        for _, future in self._idle:
            future.cancel()
        self._idle.clear()

    async def submit(self, task: Task) -> Result:
        """Return the result of a task, or raise its exception."""
        entry = (task, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        self._changed.set()
        try:
            return await entry[1]
        finally:
            with suppress(ValueError):  # a batch has taken it
                self._waiting.remove(entry)

    async def run_when_idle(self, function: Callable[[], Idle]) -> Idle:
        """Return the result of a function that runs once no task is waiting, or raise its exception."""
        future: asyncio.Future[Idle] = asyncio.get_running_loop().create_future()
        self._idle.append((function, future))
        self._changed.set()
        return await future

    async def _run(self) -> None:
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as thread:
            while self._waiting or not self._is_closing:
                if not self._waiting:
                    if self._idle and not self._is_closing:
                        await self._run_idle(thread)
                        continue
                    await self._changed.wait()
                    self._changed.clear()
                    if not self._waiting:
                        continue
                    if len(self._waiting) < self.max_batch and not self._is_closing:
                        await asyncio.sleep(self.window_ms / 1000)
                batch = [self._waiting.popleft() for _ in range(min(self.max_batch, len(self._waiting)))]
                if batch:
                    await self._work_on(batch, thread)

    async def _run_idle(self, thread: ThreadPoolExecutor) -> None:
        function, future = self._idle.popleft()
        if future.done():  # its waiter is gone
            return
        try:
            result = await asyncio.get_running_loop().run_in_executor(thread, function)
        except Exception as error:  # it is the waiter's
            if not future.done():
                future.set_exception(error)
        else:
            if not future.done():
                future.set_result(result)

    async def _work_on(
        self, batch: list[tuple[Task, asyncio.Future[Result]]], thread: ThreadPoolExecutor
    ) -> None:
        """Work on a batch in the thread, and hand out its results."""
        loop = asyncio.get_running_loop()
        results: Sequence[Result | Exception]
        try:
            results = await loop.run_in_executor(thread, self._work, [task for task, _ in batch])
            assert len(results) == len(batch)
        except Exception as error:  # nobody waits forever
            results = [error] * len(batch)
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)

    def _work(self, tasks: list[Task]) -> Sequence[Result | Exception]:
        """Return the results of a batch; if `work` fails, each task is tried alone."""
        try:
            return self.work(tasks)
        except Exception as error:
            if len(tasks) == 1:
                return [error]
            return [result for task in tasks for result in self._work([task])]
