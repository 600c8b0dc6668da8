"""Batches of tasks: which tasks are worked on together, in which order, and what becomes of failures."""

import asyncio
import threading

import pytest

from experiments.serving.batching import Batcher


def run(work, steps, **options):
    """The result of `steps(batcher)` on a batcher that is stopped at the end."""

    async def main():
        batcher = Batcher(work, **{"window_ms": 20.0, "max_batch": 3, **options})
        await batcher.start()
        try:
            return await steps(batcher)
        finally:
            await batcher.stop()

    return asyncio.run(main())


def test_tasks_form_batches_in_order_of_arrival():
    batches = []

    def double(tasks):
        batches.append(list(tasks))
        return [2 * task for task in tasks]

    async def steps(batcher):
        return await asyncio.gather(*(batcher.submit(task) for task in range(7)))

    assert run(double, steps) == [0, 2, 4, 6, 8, 10, 12]
    assert batches == [[0, 1, 2], [3, 4, 5], [6]]


def test_a_failure_is_that_of_its_task_alone():
    def invert(tasks):
        return [1 / task for task in tasks]

    async def steps(batcher):
        return await asyncio.gather(*(batcher.submit(task) for task in (1, 0, 4)), return_exceptions=True)

    first, second, third = run(invert, steps)
    assert (first, third) == (1, 0.25) and isinstance(second, ZeroDivisionError)


def test_a_work_function_that_loses_results_leaves_nobody_waiting():
    async def steps(batcher):
        await batcher.submit(1)

    with pytest.raises(AssertionError):
        run(lambda tasks: [], steps)


def test_tasks_that_nobody_waits_for_are_dropped_and_all_others_are_finished():
    proceed, seen = threading.Event(), []

    def work(tasks):
        assert proceed.wait(10)
        seen.extend(tasks)
        return tasks

    async def steps(batcher):
        waiting = [asyncio.create_task(batcher.submit(task)) for task in range(4)]
        await asyncio.sleep(0.05)
        assert batcher.num_waiting == 3
        waiting[2].cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert batcher.num_waiting == 2
        stopping = asyncio.create_task(batcher.stop())
        await asyncio.sleep(0.05)
        proceed.set()
        await stopping
        return [await task for task in waiting if not task.cancelled()]

    assert run(work, steps, max_batch=1, window_ms=0) == [0, 1, 3]
    assert seen == [0, 1, 3]
