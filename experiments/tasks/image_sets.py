"""Names of collections of images, whatever their division into splits."""

from experiments.tasks.base import Task
from experiments.tasks.scenes import Scenes


def name_image_set(task: Task) -> str:
    """Name of the collection of images of `task`.

    Two divisions of one data set share the name, so that test images of one division are recognised in the
    other (`labels.held_out`). Pictures of `scenes` with another seed are different pictures with the same
    ids. This is handled here because the source of `scenes` is part of the fingerprint of all its labels.
    """
    if isinstance(task, Scenes):
        return f"{task.name} seed={task.seed} image_size={task.image_size} look={task.look}"
    return task.name
