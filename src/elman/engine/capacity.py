"""What stands for any batch of so many rows, with about so many entries, in what is written once for all of them."""

from dataclasses import dataclass
from functools import lru_cache

# Stand for N and for T' in what is the same for many batches: below zero, where no other count is.
TOTAL, STEPS = -1 << 41, -1 << 40


@dataclass(frozen=True, eq=False)
class Ragged:
    """Any batch of rows of unequal lengths: what packings of as many rows have in common.

    Attributes:
        batch: packed rows.
        capacity: no batch has more entries.
        count: B, the caller's rows.
    """

    batch: int
    capacity: int
    count: int
    total: int = TOTAL
    steps: int = STEPS
    is_dense: bool = False
    kept: bool = True

    @staticmethod
    @lru_cache(maxsize=1024)
    def at(batch: int, capacity: int, count: int) -> "Ragged":
        """The only one with these sizes."""
        return Ragged(batch, capacity, count)
