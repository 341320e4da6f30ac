"""Random orders that need no memory."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

ROUNDS = 8
Integers = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint64]


class Permutation:
    """A random order of ``range(count)``, computed element by element: a terabyte's windows cost what ten do.

    A balanced Feistel network over the smallest even number of bits that holds ``count``, walked until it lands inside
    (Black & Rogaway, "Ciphers with arbitrary finite domains", 2002). ``key`` (not negative) names the order: the same
    key gives the same one everywhere.
    """

    def __init__(self, count: int, *key: int) -> None:
        self.count = count
        self._half = np.uint64(max(1, (max(count - 1, 1).bit_length() + 1) // 2))
        self._mask = (np.uint64(1) << self._half) - np.uint64(1)
        self._keys = np.random.SeedSequence(key).generate_state(ROUNDS, np.uint64)

    def __len__(self) -> int:
        return self.count

    def at(self, places: Integers) -> Integers:
        """The elements at ``places``, int64 ``[N]``, each in ``range(count)``."""
        value = self._encipher(places.astype(np.uint64))
        while (outside := value >= self.count).any():
            value[outside] = self._encipher(value[outside])
        return value.astype(np.int64)

    def _encipher(self, value: Bits) -> Bits:
        left, right = value >> self._half, value & self._mask
        for key in self._keys:
            left, right = right, left ^ (_scrambled(right + key) & self._mask)
        both: Bits = (left << self._half) | right
        return both


def _scrambled(value: Bits) -> Bits:
    """The finaliser of splitmix64 (Steele, Lea & Flood 2014): every bit depends on every other."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Bits = value ^ (value >> np.uint64(31))
    return mixed
