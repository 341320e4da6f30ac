"""Scratch memory: what is taken together stands apart, what is given back serves again, what is outgrown goes."""

import ctypes
import os
import sys
import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import elman
from elman.engine import memory, threads
from elman.engine.memory import Scratch, Tensors, empty


def spans(*tensors: torch.Tensor) -> list[range]:
    return [range(t.data_ptr(), t.data_ptr() + t.numel() * t.itemsize) for t in tensors]


def apart(*tensors: torch.Tensor) -> bool:
    ordered = sorted(spans(*tensors), key=lambda span: span.start)
    return all(a.stop <= b.start for a, b in pairwise(ordered))


def test_parts_of_a_run_share_memory_and_never_touch_what_it_holds() -> None:
    scratch = Scratch()
    for _ in range(3):  # the first run finds no block yet, the others one that is large enough
        scratch.begin()
        held = scratch.tensor(300, 7, dtype=torch.float32).fill_(1)
        parts = []
        for rows in (50, 200, 100):
            with scratch.within():
                part = scratch.tensor(rows, 3, dtype=torch.float64).fill_(2)
                other = scratch.tensor(10, dtype=torch.float32).fill_(3)
                assert part.shape == (rows, 3)
                assert apart(held, part, other)
                parts.append(part.data_ptr())
        later = scratch.tensor(5, dtype=torch.float32).fill_(4)
        assert apart(held, later)
        assert (held == 1).all()
    assert len(set(parts)) == 1
    assert later.data_ptr() == parts[0]


def test_a_block_that_is_outgrown_is_gone() -> None:
    scratch = Scratch()
    sizes = []
    for size in (1000, 1000, 5000, 5000, 1000):
        scratch.begin()
        scratch.take(size)
        sizes.append(scratch._block.numel())
    assert sizes[1] == sizes[2] >= 1000
    assert sizes[3] == sizes[4] >= 5000
    assert not scratch._more


def test_small_runs_between_large_ones_do_not_keep_the_block_small() -> None:
    scratch = Scratch()
    for _ in range(2):
        for size in (1000, 50_000):
            address, block = scratch.all_of(size), scratch._block
            assert 0 <= address - block.data_ptr() <= block.numel() - size
            assert not scratch._more


@pytest.mark.parametrize("pooled", [True, False], ids=["from the pool", "from torch"])
@pytest.mark.parametrize("rows", [3, 5000])
def test_tensors_have_memory_in_front_and_behind(pooled: bool, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if not pooled:
        monkeypatch.setattr(memory, "_maker", lambda: None)
    tensors = Tensors([(memory.rows_and(2), 7), (3,)], torch.float32, [(14, 21), (0, 5)])
    assert tensors.make(1)[0].shape == (3, 7)
    first, second = tensors.make(rows - 2)
    assert first.shape == (rows, 7)
    assert first.is_contiguous()
    assert second.shape == (3,)
    whole = np.frombuffer(
        (ctypes.c_float * (14 + rows * 7 + 21)).from_address(first.data_ptr() - 14 * first.itemsize), np.float32
    )
    first.fill_(1)
    whole[:14] = whole[-21:] = 2  # which is nobody else's
    assert (first == 1).all()
    del first, second
    again = tensors.make(rows - 2)[0].fill_(3)
    assert (again == 3).all()


def test_tensors_of_all_sizes_stand_apart_and_come_back() -> None:
    """From a single number to blocks that are mapped; of one size the last one that was freed comes first."""
    assert memory._maker() is not None
    sizes = [round(1.07**k) for k in range(200)]
    for order in (sizes, sizes[::-1], sizes):  # so that a block that came back is wanted for another size
        tensors = [empty(size, dtype=torch.float32) for size in order]
        assert apart(*tensors)
        for k, tensor in enumerate(tensors):
            tensor.fill_(k)
        assert all((tensor == k).all() for k, tensor in enumerate(tensors))
        assert all(tensor.data_ptr() % 64 == 0 for tensor in tensors)
        del tensors
    for size in (3, 700, 30_000):  # less than a block that is mapped
        place = empty(size, dtype=torch.float32).data_ptr()
        assert empty(size, dtype=torch.float32).data_ptr() == place


def _huge() -> int:
    """kB of this process's own memory in huge pages."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("AnonHugePages"))


def test_large_blocks_are_in_huge_pages() -> None:
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.exists() or "[never]" in setting.read_text():
        pytest.skip("the system has no huge pages")
    before = _huge()
    block = empty(40_000_000, dtype=torch.float32).zero_()
    assert _huge() - before > 100_000
    assert block.sum() == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("size", [1 << 12, 1 << 20, 1 << 22])
def test_a_forked_process_does_not_write_to_this_ones(size: int) -> None:
    """As workers of a data loader would, small blocks and those in huge pages."""
    scratch = Scratch()
    for _ in range(2):
        scratch.begin()
        at = scratch.take(size)
    ctypes.memset(at, 1, size)
    child = os.fork()
    if child == 0:
        ctypes.memset(at, 2, size)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert ctypes.string_at(at, size) == b"\x01" * size


def test_an_interrupt_while_tensors_are_made_gives_memory_back_once(by_capsules: None) -> None:
    """As one by the user, behind torch's conversion and before its result is handed on."""
    Tensors([(1000,)], torch.float32).make()

    def interrupt(frame: object, event: str, function: object) -> None:
        if event == "c_return" and getattr(function, "__name__", "") == "_from_dlpack":
            raise KeyboardInterrupt

    for sizes in ([(1000,)], [(1000,), (1000,), (1000,)]):
        sys.setprofile(interrupt)
        try:
            with pytest.raises(KeyboardInterrupt):
                Tensors(sizes, torch.float32).make()
        finally:
            sys.setprofile(None)
        made = [tensor for _ in range(4) for tensor in Tensors(sizes, torch.float32).make()]
        assert apart(*made)


def test_scratch_memory_of_a_thread_that_python_forgets() -> None:
    """A thread of other code's is another one to Python at each call: what was the last one's is gone, and not used."""
    pool = threads.pool()
    if pool is None:
        pytest.skip("torch has no pool of threads that is known here")
    parallel = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)(pool[0])
    number = ctypes.CFUNCTYPE(ctypes.c_int)(pool[1])
    room = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_int64)(memory.scratch_function())
    layer, x = elman.GRU(3, 40), torch.randn(6, 2, 3)
    with torch.no_grad(), elman.use_engine("cpu"):
        expected = layer(x)[0]
    seen: list[tuple[int, int | None, int | None, bool]] = []

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def share(_: int | None) -> None:
        if number() == 0:
            return
        before = room(1)
        with torch.no_grad(), elman.use_engine("cpu"):
            same = all(torch.allclose(layer(x)[0], expected, atol=1e-6) for _ in range(4))
        seen.append((threading.get_native_id(), before, room(1), same))

    for _ in range(3):
        parallel(ctypes.cast(share, ctypes.c_void_p), None, 2, 0)
    assert len({thread for thread, *_ in seen}) == 1
    assert [before for _, before, _, _ in seen] == [None, None, None]
    assert all(behind is not None and same for _, _, behind, same in seen)
