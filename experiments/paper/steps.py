"""Steps of a paper: commands with their arguments, and what is taken from their results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.command_line.script import list_commands


@dataclass(frozen=True)
class Step:
    """One command of a paper.

    `command` is the name of a command and `arguments` its options; with `-m` among them it is a sweep.
    `title` says what it shows; a step without a title prepares others, as labelling does. `needs` are steps
    whose results it reads. `tables` and `figures` are names of files without their suffix in the folder of
    the run, whose tables are in `tables/`.
    """

    name: str
    command: str
    arguments: tuple[str, ...] = ()
    title: str = ""
    needs: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()


def read_steps(entries: Mapping[str, Mapping[str, Any]]) -> list[Step]:
    """Return the steps of a configuration, a mapping from names to the other fields of `Step`.

    Raises ValueError for a command that does not exist, and for a step that needs a later or unknown one.
    """
    steps: list[Step] = []
    for name, entry in entries.items():
        texts: dict[str, Any] = {
            key: value if isinstance(value, str) else tuple(value) for key, value in entry.items()
        }
        step = Step(name, **texts)
        if step.command not in list_commands():
            raise ValueError(
                f"list_of_steps.{name}.command={step.command}: give one of {', '.join(list_commands())}"
            )
        if missing := set(step.needs) - {earlier.name for earlier in steps}:
            raise ValueError(f"list_of_steps.{name}.needs={min(missing)}: there is no such earlier step")
        steps.append(step)
    return steps


def select_steps(steps: Sequence[Step], names: Sequence[str] | None) -> list[Step]:
    """Return the steps with these names and all that they need, in order; all steps for None.

    Raises ValueError for an unknown name.
    """
    by_name = {step.name: step for step in steps}
    if names is None:
        return list(steps)
    if unknown := [name for name in names if name not in by_name]:
        raise ValueError(f"steps: there is no step {unknown[0]!r}, give one of {', '.join(by_name)}")
    wanted, queue = set(), list(names)
    while queue:
        name = queue.pop()
        wanted.add(name)
        queue += by_name[name].needs
    return [step for step in steps if step.name in wanted]
