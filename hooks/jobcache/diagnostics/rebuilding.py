"""Which users' jobs seem to build the same data again and again: one rule, for the report and for check. A pure function."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Optional

# At least:
MANY = 5  # caches that are alike, and half of all
LARGE = 1 << 30  # bytes in each
# and at most:
ALIKE = 0.05  # difference between sizes that count as equal


@dataclass(frozen=True)
class Rebuilt:
    """Caches of a user that hold the same amount, so that jobs seem to build the same data. of: caches. again: bytes."""

    user: str
    caches: int
    of: int
    size: int
    again: int


def rebuilt(user: str, sizes: Sequence[int]) -> Optional[Rebuilt]:
    """Return how much the jobs of a user seem to have built again, None if their caches differ or are small.

    sizes: bytes of each cache. Neither links nor published builds count: these are what each job made, and what nobody used
    again.
    """
    wrote = [size for size in sizes if size > 0]
    middle = median(wrote) if wrote else 0
    alike = [size for size in wrote if abs(size - middle) <= ALIKE * middle]
    if len(alike) < MANY or len(alike) * 2 < len(wrote) or middle < LARGE:
        return None
    return Rebuilt(user, len(alike), len(wrote), round(middle), sum(alike) - round(middle))
