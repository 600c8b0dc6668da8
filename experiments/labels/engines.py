"""Execution of jobs on blocks of a task: in this process, or by actors of a Ray cluster."""

import itertools
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from experiments.labels.blocks import Block, ImageQuestions
from experiments.labels.devices import count_gpus
from experiments.labels.progress import show_progress
from experiments.labels.reading_ahead import decode_ahead
from experiments.tasks.base import Task
from m3_backbone.arguments import NonNegativeFloat, PositiveInt, checked
from m3_backbone.backbone import Backbone


@dataclass(frozen=True, eq=False, kw_only=True)
class Job(ABC):
    """Work on the blocks of a task; engines send it to their processes by pickle.

    `images_per_batch` images are encoded together; `num_workers` processes read images ahead of the model.
    """

    task: Task
    backbone: Backbone
    images_per_batch: int
    num_workers: int

    @abstractmethod
    def blocks(self) -> Iterator[Block]:
        """Yield all blocks, in order."""

    @abstractmethod
    def work_on_block(self, block: Block, batches: Iterable[Sequence[ImageQuestions]]) -> Iterator[int]:
        """Answer a block and write its shard; yields the number of samples of each batch as it is done."""

    def work_on(self, blocks: Iterable[Block]) -> Iterator[int]:
        """Work on `blocks`; yields the number of samples of each batch as it is done."""
        images = decode_ahead(
            self.task, blocks, num_workers=self.num_workers, images_ahead=self.images_per_batch
        )
        for block, group in itertools.groupby(images, key=lambda item: item.block):
            batches = iter(partial(_take, group, self.images_per_batch), [])
            yield from self.work_on_block(block, batches)


def _take(images: Iterator[ImageQuestions], most: int) -> list[ImageQuestions]:
    return list(itertools.islice(images, most))


class Engine(Protocol):
    """Execution backend for a job. Every engine, with any number of processes, makes the same shards."""

    def run(self, job: Job, sizes: Mapping[str, int]) -> Iterator[int]:
        """Work on the blocks in `sizes` (name -> number of samples); yields numbers of finished samples."""
        ...


def run_job(engine: Engine, job: Job, sizes: Mapping[str, int], done: Container[str]) -> None:
    """Run a job on the blocks in `sizes` (name -> samples) that are not in `done`, with a progress bar."""
    rest = {name: size for name, size in sizes.items() if name not in done}
    with show_progress(
        f"{job.backbone.name} on {job.task.name}",
        total=sum(sizes.values()),
        initial=sum(sizes.values()) - sum(rest.values()),
        unit="samples",
    ) as progress:
        try:
            for num_samples in engine.run(job, rest):
                progress.update(num_samples)
        except KeyboardInterrupt as interrupt:
            interrupt.add_note(f"The unfinished file is lost, at most {max(rest.values()):,} samples.")
            raise


class LocalEngine(Engine):
    """Runs jobs in this process, on the device of the backbone.

    Args:
        share_gpus: whether a process on one part of the work (`shard`) uses only its part of the visible GPUs
            (`labels.devices`).
    """

    @checked
    def __init__(self, share_gpus: bool = True) -> None:
        self.share_gpus = share_gpus

    def run(self, job: Job, sizes: Mapping[str, int]) -> Iterator[int]:
        yield from job.work_on(block for block in job.blocks() if block.name in sizes)


class RayEngine(Engine):
    """Runs jobs with Ray Data, one stateful actor per GPU, on this machine or on a cluster.

    A shard is one Ray task: an actor that dies is replaced and its shard is made again. The label folder has
    to be on a file system that all machines share.

    Args:
        num_actors: number of actors; (least, most) lets Ray scale between these numbers; None: as many as
            there are GPUs for.
        num_gpus: GPUs per actor; 0 for actors on CPUs, fractions for actors that share a GPU. Ray shows an
            actor its own GPUs only, also with `device_map: auto`.
        num_cpus: CPU cores that Ray reserves per actor.
        address: a running cluster, as `auto` or `ray://HOST:10001`; null starts Ray on this machine.
        init: further arguments of `ray.init`.
    """

    @checked
    def __init__(
        self,
        num_actors: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None,
        num_gpus: NonNegativeFloat = 1,
        num_cpus: NonNegativeFloat = 1,
        address: str | None = None,
        init: Mapping[str, Any] | None = None,
    ) -> None:
        self.num_actors = tuple(num_actors) if isinstance(num_actors, Sequence) else num_actors
        self.num_gpus, self.num_cpus = num_gpus, num_cpus
        self.address, self.init = address, dict(init or {})

    def run(self, job: Job, sizes: Mapping[str, int]) -> Iterator[int]:
        if not sizes:
            # No block is left, but a killed run may still lack the token embeddings.
            yield from job.work_on(())
            return
        ray = _import_ray()
        started = not ray.is_initialized()
        if started:
            ray.init(**self._init_arguments())
        try:
            yield from self._hand_out(ray, job, sizes)
        finally:
            if started:
                ray.shutdown()

    def _init_arguments(self) -> dict[str, Any]:
        if self.address is not None:
            return {"address": self.address, "log_to_driver": False, **self.init}
        # Ray counts CPU cores without pinning them; without a spare core for reading its input it hangs.
        most = self.num_actors[1] if isinstance(self.num_actors, tuple) else self.num_actors
        if most is None:
            most = self._count_actors(self.init.get("num_gpus", count_gpus()))
        num_cpus = max(os.cpu_count() or 1, math.ceil(most * self.num_cpus) + 2)
        return {"num_cpus": num_cpus, "include_dashboard": False, "log_to_driver": False, **self.init}

    def _hand_out(self, ray: Any, job: Job, sizes: Mapping[str, int]) -> Iterator[int]:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False  # labelling shows its own
        rows = [{"block": name, "num_samples": size} for name, size in sizes.items()]
        # One row per block, so that a lost actor leaves one unfinished shard.
        done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _BlockActor,
            fn_constructor_args=(job,),
            batch_size=1,
            compute=self._pool(ray),
            num_gpus=self.num_gpus,
            num_cpus=self.num_cpus,
            max_restarts=-1,
            max_task_retries=-1,
        )
        try:
            for row in done.iter_rows():
                yield int(row["num_samples"])
        except ray.exceptions.RayTaskError as error:
            raise (error.cause or error) from None

    def _pool(self, ray: Any) -> Any:
        if isinstance(self.num_actors, tuple):
            least, most = self.num_actors
            return ray.data.ActorPoolStrategy(min_size=least, max_size=most)
        num_gpus = ray.cluster_resources().get("GPU", 0)
        return ray.data.ActorPoolStrategy(size=self.num_actors or self._count_actors(num_gpus))

    def _count_actors(self, num_gpus: float) -> int:
        """Return the number of actors that so many GPUs are enough for. Raises ValueError for none."""
        if not self.num_gpus:
            return 1
        if num_gpus < self.num_gpus:
            raise ValueError(
                f"engine.num_gpus={self.num_gpus:g}: there are {num_gpus:g} GPUs for Ray: set "
                "engine.num_gpus=0 engine.num_actors=2 for two actors on CPUs, or engine.address=ADDRESS for "
                "a cluster"
            )
        return int(num_gpus / self.num_gpus)


class _BlockActor:
    """Ray actor that works on blocks of a job; it loads the model once."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.blocks: Iterator[Block] = iter(())

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        for _ in self.job.work_on(self._find(name) for name in batch["block"]):
            pass
        return batch

    def _find(self, name: str) -> Block:
        # Blocks mostly arrive in order: continuing after the last one saves passes over the task.
        for blocks in (self.blocks, self.job.blocks()):
            self.blocks = blocks
            for block in blocks:
                if block.name == name:
                    return block
        raise AssertionError(name)


def _import_ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ValueError(
            "engine=ray needs Ray: pip install 'tokenscale[ray]', or set engine=local"
        ) from error
    return ray
