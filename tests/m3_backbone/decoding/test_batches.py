"""Batches that are filled by size and shrink when the memory does not suffice."""

import torch

from m3_backbone.decoding.batches import Capacity, run_batches

CPU = torch.device("cpu")


def run(sizes, capacity, fits=lambda batch: True):
    """Return the batches that ran, of items that are their own sizes."""

    def work(batch):
        if not fits(batch):
            raise torch.OutOfMemoryError
        return [10 * item for item in batch]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        batches = run_batches(work, sizes, capacity, CPU, sizes)
    finally:
        torch.set_num_threads(threads)
    assert [result for _, results in batches for result in results] == [10 * size for size in sizes]
    return [list(batch) for batch, _ in batches]


def test_batches_are_filled_up_to_the_capacity():
    assert run([3, 3, 4, 5, 6, 1], Capacity(10)) == [[3, 3, 4], [5], [6, 1]]


def test_an_item_above_the_capacity_is_a_batch_of_its_own():
    assert run([2, 50, 2, 2], Capacity(10)) == [[2], [50], [2, 2]]


def test_what_did_not_fit_is_remembered():
    capacity = Capacity(16)
    batches = run([4] * 8, capacity, fits=lambda batch: sum(batch) <= 8)
    assert batches == [[4, 4]] * 4 and capacity.limit == 8
    assert run([4] * 4, capacity) == [[4, 4], [4, 4]]
