"""The ordered set of visual token counts that a backbone supports."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Self


def exact_scales(grid: int) -> tuple[int, ...]:
    """Every scale that pools a `grid` x `grid` square of tokens without remainder, ascending."""
    return tuple(side**2 for side in range(1, grid + 1) if grid % side == 0)


def pooled_side(scale: int, grid: int) -> int:
    """Side of the pooled square, in tokens. ValueError, naming the possible scales, where it is not exact."""
    if scale not in exact_scales(grid):
        possible = ", ".join(map(str, exact_scales(grid)))
        raise ValueError(f"scale {scale} is not possible on a {grid}x{grid} grid: choose one of {possible}")
    return isqrt(scale)


@dataclass(frozen=True, init=False)
class ScaleLadder:
    """Scales, in visual tokens per image grid, from coarse to fine, and the side of the grid they pool."""

    scales: tuple[int, ...]
    grid: int

    def __init__(self, scales: Sequence[int], grid: int) -> None:
        if not scales:
            raise ValueError("a scale ladder needs at least one scale")
        for scale in scales:
            pooled_side(scale, grid)
        object.__setattr__(self, "scales", tuple(sorted(set(scales))))
        object.__setattr__(self, "grid", grid)

    @classmethod
    def of_grid(cls, grid: int) -> Self:
        """M3's ladder: the side shrinks by its smallest prime factor until one token is left.

        A grid of 24 has the sides 24, 12, 6, 3, 1. Each divides the one before it, so that every coarser set
        of tokens derives from the finer one.
        """
        sides = [grid]
        while sides[-1] > 1:
            side = sides[-1]
            factor = next(factor for factor in range(2, side + 1) if side % factor == 0)
            sides.append(side // factor)
        return cls([side**2 for side in sides], grid)

    @property
    def coarsest(self) -> int:
        return self.scales[0]

    @property
    def finest(self) -> int:
        return self.scales[-1]

    def check(self, scale: int) -> int:
        """The scale itself; ValueError, naming the possible ones, where it is not on the ladder."""
        if scale not in self.scales:
            possible = ", ".join(map(str, self.scales))
            raise ValueError(f"scale {scale} is not on the ladder of this backbone: choose one of {possible}")
        return scale

    def index(self, scale: int) -> int:
        """Position of the scale, 0 being the coarsest."""
        return self.scales.index(self.check(scale))

    def __iter__(self) -> Iterator[int]:
        return iter(self.scales)

    def __len__(self) -> int:
        return len(self.scales)
