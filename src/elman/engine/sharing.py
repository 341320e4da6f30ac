"""How threads share out a loop, rows or units, how many they are, and whether matrix tiles multiply."""

import math

from elman.engine.products import TERM_BYTES

SPLIT_FROM = 1 << 17  # bytes of matrices from which sharing them out repays meeting after each part of a step


# Bytes of matrices that count as near. The limits that are multiples of it were found good where a core's own cache has
# 1 MB, and where it has 2: docs/engine.md.
NEAR = 1 << 20


# Bytes of matrices whose terms, half as many again, are more than a thread's own cache holds.
FAR_BY_TILES = 4 * NEAR // 3


def split_rows(size: int, numbers: int, exchanged: int, workers: int, by_tiles: bool) -> int:
    """At steps with no more rows than this, threads share out the units: each reads only its part of the matrices.

    That pays where reading the matrices takes longer than multiplying by them. But threads then have to read what the
    others have computed, while each row of a thread's own stays with it: so it is a matter of how many multiply-adds
    there are for each number that changes hands. Forward that is one state, backward the gradients of all gates.

    Args:
        size: bytes of the matrices. numbers: how many there are in them.
        exchanged: numbers of a row that the matrices are multiplied by and that a step computes.
        workers: threads.
        by_tiles: whether matrix tiles multiply, to which far matrices cost more than to vectors.
    """
    if size < SPLIT_FROM:
        return 0
    far = size > (FAR_BY_TILES if by_tiles else 4 * NEAR)
    each = 50 if far else 128  # multiply-adds for a number that changes hands; measured, see docs/engine.md
    return min(max(numbers * workers // (exchanged * each), 1), 24 * workers) if exchanged else 1


# Bytes of matrices that a thread reads in the time by which a meeting takes longer with one thread more: on an Intel
# Xeon with 16 cores, docs/engine.md.
_MEETING = 10_000


def loop_threads(size: int, rows: int, shared: int, workers: int) -> int:
    """Threads of a loop, of `workers`: where they share out units at all steps, as many as repay their meetings.

    Each of n threads reads size / n of the matrices, and all meet after each part, which takes the longer the more they
    are. The sum of both is least where n is about the square root of the size.

    Args:
        size: bytes of the matrices. rows: at a step, at most. shared: see `split_rows`.
    """
    if rows > shared:
        return workers
    return max(1, min(math.isqrt(size * rows // _MEETING), workers))


TILE = 16  # rows of a matrix tile, which takes about as long for fewer; see terms.h
# Bytes of terms between which reading them for a single tile of rows is worth it: docs/engine-measurements.md.
_FEW_TERMS, _MANY_TERMS = NEAR // 2, 4 * NEAR


def multiplied_by_tiles(rows: int, shared: int, workers: int, numbers: int) -> bool:
    """Whether a loop multiplies by matrix tiles, where there are any: see `terms.h`.

    A tile takes as long for few rows as for sixteen, so tiles have to be two thirds full. Terms are half as many bytes
    as numbers again, which have to be near if each is read for a single tile of rows.

    Args:
        rows: at a step, at most. shared: see `split_rows`. workers: threads. numbers: of the matrices.
    """
    each = rows if rows <= shared else -(-rows // workers)
    if 3 * each < 2 * TILE * -(-each // TILE):
        return False
    return each > TILE or rows > shared or _FEW_TERMS < numbers * TERM_BYTES <= _MANY_TERMS


def sharing(size: int, numbers: int, exchanged: int, rows: int, workers: int, terms: bool) -> tuple[int, bool]:
    """What `split_rows` says of a loop, and whether it multiplies by matrix tiles.

    Args:
        rows: at a step, at most. terms: whether there are matrix tiles for its numbers. The rest: see `split_rows`.
    """
    if terms:
        shared = split_rows(size, numbers, exchanged, workers, True)
        if multiplied_by_tiles(rows, shared, workers, numbers):
            return shared, True
    return split_rows(size, numbers, exchanged, workers, False), False
