"""Batches that are filled by size and shrink when the memory does not suffice."""

import torch

from m3_backbone.decoding.batches import Capacity, run_batches

CPU = torch.device("cpu")


def run(sizes, capacity, fits=lambda batch: True, owners=None, num_threads=1):
    """Return the batches that ran, of items that are their own sizes."""

    def work(batch):
        if not fits(batch):
            raise torch.OutOfMemoryError
        return [10 * item for item in batch]

    threads = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        batches = run_batches(work, sizes, capacity, CPU, sizes, owners)
    finally:
        torch.set_num_threads(threads)
    assert [result for _, results in batches for result in results] == [10 * size for size in sizes]
    return [list(batch) for batch, _ in batches]


def test_batches_are_filled_up_to_the_capacity():
    assert run([3, 3, 4, 5, 6, 1], Capacity(10)) == [[3, 3, 4], [5], [6, 1]]


def test_an_item_above_the_capacity_is_a_batch_of_its_own():
    assert run([2, 50, 2, 2], Capacity(10)) == [[2], [50], [2, 2]]


def test_items_of_one_owner_are_divided_only_if_they_exceed_a_batch():
    assert run([3, 3, 3, 3, 3], Capacity(10), owners=[1, 1, 2, 2, 3]) == [[3, 3], [3, 3, 3]]
    assert run([3, 3, 3, 3, 3], Capacity(10), owners=[1, 1, 1, 1, 2]) == [[3, 3, 3], [3, 3]]
    # Two threads with half the capacity each; their parts begin with an owner, too.
    assert run([2, 2, 2, 2], Capacity(8), owners=[1, 2, 2, 2], num_threads=2) == [[2], [2, 2], [2]]


def test_what_did_not_fit_is_remembered():
    capacity = Capacity(16)
    batches = run([4] * 8, capacity, fits=lambda batch: sum(batch) <= 8)
    assert batches == [[4, 4]] * 4 and capacity.limit == 8
    assert run([4] * 4, capacity) == [[4, 4], [4, 4]]
