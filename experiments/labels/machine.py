"""Description of this machine, and timing of calls on it."""

import os
import platform
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch


def time_call(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return (result of `work`, its run time in seconds); waits until a GPU has finished.

    `torch.utils.benchmark.Timer` waits too, but repeats the work and drops its result.
    """
    start = perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, perf_counter() - start


def describe_machine() -> str:
    """Return the name of the GPU, or of the CPU with its number of cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{_name_processor()}, {os.cpu_count()} cores"


def _name_processor() -> str:
    """Return the model of the CPU if the system reports it, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def count_threads() -> int:
    """Return the number of threads in which torch computes on the CPU."""
    return torch.get_num_threads()
