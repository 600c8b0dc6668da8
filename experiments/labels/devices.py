"""Assignment of the GPUs of a node to the processes that label on it.

A process uses its share of the visible GPUs, and hides the others from itself by `CUDA_VISIBLE_DEVICES`
before CUDA starts. `device: null`, `device: cuda` and `device_map: auto` then stay within the share.
"""

import logging
import os
import re
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass

log = logging.getLogger(__name__)

VISIBLE = "CUDA_VISIBLE_DEVICES"
# `CUDA_VISIBLE_DEVICES` of the process that starts a sweep; the local launcher of submitit overwrites it.
LAUNCHED_WITH = "TOKENSCALE_VISIBLE_DEVICES"
_UNSET = "unset"


@dataclass(frozen=True)
class Place:
    """A process among those that share the visible GPUs of its node: `index` of `count`."""

    index: int = 0
    count: int = 1

    def share(self, devices: Sequence[str]) -> list[str]:
        """Return the part of `devices` that this process uses.

        The devices are divided into equal consecutive parts. If there are fewer than processes, processes
        take turns, one device each.
        """
        total = len(devices)
        if not total:
            return []
        if total < self.count:
            return [devices[self.index % total]]
        index = self.index % self.count
        start, end = (total * number // self.count for number in (index, index + 1))
        return list(devices[start:end])


def find_place(environment: Mapping[str, str], shard: tuple[int, int] = (0, 1)) -> Place:
    """Return the place of a process, from the variables of what started it, or else from its part i of n.

    A process that torchrun or a Slurm step started has a local rank. The jobs of a Slurm array have GPUs of
    their own. Processes on parts of the work that were started in another way, as by the local launchers of
    Hydra or by hand, are assumed to share a node.
    """
    if environment.get("SUBMITIT_EXECUTOR") != "local":
        if "LOCAL_RANK" in environment and "LOCAL_WORLD_SIZE" in environment:
            return Place(_read(environment, "LOCAL_RANK"), _read(environment, "LOCAL_WORLD_SIZE"))
        num_tasks = _count_tasks(environment)
        if "SLURM_LOCALID" in environment and (num_tasks > 1 or "SLURM_ARRAY_TASK_ID" in environment):
            return Place(_read(environment, "SLURM_LOCALID"), num_tasks)
    return Place(*shard)


def _count_tasks(environment: Mapping[str, str]) -> int:
    """Return the number of tasks of a Slurm step on this node."""
    for name in ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"):
        # As 8, 8(x2) or 8,4(x3): numbers of the nodes, in order.
        counts = [
            int(count)
            for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", environment.get(name, ""))
            for _ in range(int(times or 1))
        ]
        if counts:
            node = _read(environment, "SLURM_NODEID") if "SLURM_NODEID" in environment else 0
            return counts[min(node, len(counts) - 1)]
    return 1


def _read(environment: Mapping[str, str], name: str) -> int:
    text = environment[name]
    if not text.isdecimal():
        raise ValueError(
            f"the variable {name} is {text!r} and not a number: unset it, or start in another way"
        )
    return int(text)


def list_visible(environment: Mapping[str, str], count: Callable[[], int]) -> list[str]:
    """Return the GPUs that a process may use, as `CUDA_VISIBLE_DEVICES` names them; all if it is not set."""
    visible = environment.get(VISIBLE)
    if visible is None:
        return [str(number) for number in range(count())]
    devices = []
    for name in map(str.strip, visible.split(",")):
        if name in ("", "-1"):  # CUDA ignores what follows
            break
        devices.append(name)
    return devices


def remember_visible(environment: MutableMapping[str, str] = os.environ) -> None:
    """Store the visible GPUs of this process for the jobs of a sweep that it starts."""
    environment[LAUNCHED_WITH] = environment.get(VISIBLE, _UNSET)


def restore_visible(environment: MutableMapping[str, str]) -> None:
    """Make the GPUs of the process that started a sweep visible to a job of submitit's local launcher.

    That launcher hides all GPUs, unless `hydra.launcher.gpus_per_node` is given.
    """
    if environment.get("SUBMITIT_EXECUTOR") != "local" or environment.get(VISIBLE) != "":
        return
    before = environment.get(LAUNCHED_WITH, "")
    if before == _UNSET:
        del environment[VISIBLE]
    else:
        environment[VISIBLE] = before


def take_devices(
    shard: tuple[int, int] = (0, 1),
    *,
    environment: MutableMapping[str, str] = os.environ,
    count: Callable[[], int] | None = None,
) -> list[str]:
    """Make only this process's share of the GPUs visible to it, and return that share.

    `shard` is (i, n) for a process on the i-th of n parts of the work. Call it before CUDA starts, which
    reads `CUDA_VISIBLE_DEVICES` once.
    """
    restore_visible(environment)
    devices = list_visible(environment, count or count_gpus)
    share = find_place(environment, shard).share(devices)
    if share != devices:
        environment[VISIBLE] = ",".join(share)
        log.info("this process uses GPU %s, one part of the %d of its node", ", ".join(share), len(devices))
    return share


def count_gpus() -> int:
    """Return the number of visible GPUs."""
    import torch  # takes seconds

    return torch.cuda.device_count()
