"""Which images the ids of a task stand for, however they are divided into splits."""

from experiments.tasks.base import Task
from experiments.tasks.scenes import Scenes


def name_image_set(task: Task) -> str:
    """Name of the collection of images that ids of `task` belong to.

    Two divisions of one data set share it, so that an image which was a test image of one is known in the
    other (`labels.held_out`). Pictures of `scenes` with another seed have the same ids and are others. That
    is said here and not in `scenes`, whose source is part of the fingerprint of all labels made of it.
    """
    if isinstance(task, Scenes):
        return f"{task.name} seed={task.seed} image_size={task.image_size} look={task.look}"
    return task.name
