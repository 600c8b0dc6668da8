"""Options of imported outcomes: scales that have names, and costs that are not visual tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self


class NamedScale(int):
    """Nominal cost of an option, in units of `Options.unit`; as text it is the name of the option.

    It is an int like any other scale, so that computations, JSON and saved predictors need no special case.
    """

    name: str

    def __new__(cls, cost: int, name: str) -> Self:
        scale = super().__new__(cls, cost)
        scale.name = name
        return scale

    def __str__(self) -> str:
        return self.name

    def __format__(self, form: str) -> str:
        return format(self.name, form)

    def __getnewargs__(self) -> tuple[int, str]:  # type: ignore[override]
        return int(self), self.name


@dataclass(frozen=True)
class Options:
    """Names of the options of imported outcomes, cheapest first, and the unit of their costs.

    `cost` is a plural noun, such as "dollars". The outcome table stores costs as whole numbers of `unit`, in
    `visual_tokens`. `has_confidence` is False if the options reported no confidence in their answers.
    """

    names: tuple[str, ...]
    cost: str
    unit: float
    has_confidence: bool

    def name_scales(self, scales: Sequence[int]) -> tuple[int, ...]:
        """Return the scales with the names of the options."""
        return tuple(NamedScale(scale, name) for scale, name in zip(scales, self.names, strict=True))

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Self | None:
        """Return the options in the manifest of labels; None for labels of a backbone."""
        content = manifest.get("options")
        return None if content is None else cls.parse(content, len(manifest["scales"]), "the manifest")

    @classmethod
    def parse(cls, content: Any, num_scales: int, origin: str) -> Self:
        """Return the options in the metadata of a table. Raises ValueError for content of another form."""
        if (
            not isinstance(content, Mapping)
            or not isinstance(content.get("names"), list)
            or len(content["names"]) != num_scales
            or not all(isinstance(name, str) for name in [*content["names"], content.get("cost")])
            or not isinstance(content.get("unit"), float | int)
            or not 0 < content["unit"] < float("inf")
            or not isinstance(content.get("has_confidence"), bool)
        ):
            raise ValueError(f"{origin}: the options in its metadata are damaged")
        return cls(
            tuple(content["names"]), content["cost"], float(content["unit"]), content["has_confidence"]
        )
