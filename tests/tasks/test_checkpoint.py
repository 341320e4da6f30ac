"""Checkpoints: what goes in comes out, and damage is found."""

import pickle
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from elman.errors import UserError
from elman.train import checkpoint
from elman.train.checkpoint import Checkpoints, load, save, write_atomically

State = namedtuple("State", "h t")


def test_a_tree_comes_back_exactly(tmp_path: Path) -> None:
    shared = torch.arange(6.0).view(2, 3)
    tree = {
        "numbers": [1, -0.1, 1e300, True, None, "a\nb", 2**62],
        3: {"tuple": (1, (2,)), "tensor": "not one"},
        "state": State(shared.t(), torch.tensor([1, 2])),
        "shared": [shared, shared[0]],
        "empty": [{}, [], (), torch.zeros(0)],
        "bytes": torch.get_rng_state(),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "scalar": torch.tensor(7.0, dtype=torch.float64),
    }
    save(tmp_path / "a.safetensors", tree)
    back = load(tmp_path / "a.safetensors")

    def same(left: object, right: object) -> bool:
        if isinstance(left, torch.Tensor):
            return isinstance(right, torch.Tensor) and left.dtype == right.dtype and torch.equal(left, right)
        if isinstance(left, dict):
            assert isinstance(right, dict)
            return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
        if isinstance(left, (list, tuple)):
            assert isinstance(right, (list, tuple))
            assert isinstance(left, list) == isinstance(right, list)
            assert getattr(left, "_fields", None) == getattr(right, "_fields", None)
            return len(left) == len(right) and all(map(same, left, right))
        return type(left) is type(right) and left == right

    assert same(tree, back)
    assert same(tree, pickle.loads(pickle.dumps(back)))  # as processes hand it to each other


def test_other_objects_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="cannot hold a set"):
        save(tmp_path / "a", {"x": {1}})


@pytest.mark.parametrize("where", [0.1, 0.3, 0.5, 0.7, 0.9, 0.999])
@pytest.mark.parametrize("how", ["flip", "cut"])
def test_damage_anywhere_is_found(tmp_path: Path, where: float, how: str) -> None:
    file = tmp_path / "a.safetensors"
    save(file, {"x": torch.randn(64, generator=torch.Generator().manual_seed(0)), "y": [1, 2, 3]})
    data = bytearray(file.read_bytes())
    place = int(len(data) * where)
    if how == "flip":
        data[place] ^= 1
    file.write_bytes(data if how == "flip" else data[:place])
    with pytest.raises(UserError, match=r"a\.safetensors is damaged"):
        load(file)


def test_the_last_ones_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in range(1, 8):
        checkpoints.save(step, {"step": step}, keep=3, best=2 if step < 7 else 7)
        kept = [load(file)["step"] for file in checkpoints.files()]
        assert kept == [*([2] if 5 <= step < 7 else []), *range(max(1, step - 2), step + 1)]


def test_the_older_serves_when_the_newer_is_damaged(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    said: list[str] = []
    assert checkpoints.load_latest(said.append) is None
    for step in (5, 10, 1000):
        checkpoints.save(step, {"step": step}, keep=2, best=0)
    assert [file.name for file in checkpoints.files()] == ["step-000000010.safetensors", "step-000001000.safetensors"]
    assert checkpoints.load_latest(said.append) == {"step": 1000}
    assert said == []
    checkpoints.files()[1].write_bytes(b"nonsense")
    assert checkpoints.load_latest(said.append) == {"step": 10}
    assert "step-000001000.safetensors is damaged" in said[0]
    checkpoints.files()[0].write_bytes(b"")
    with pytest.raises(UserError, match="every checkpoint"):
        checkpoints.load_latest(said.append)


def test_a_crash_while_writing_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a"
    write_atomically(file, b"old")

    def crash(descriptor: int) -> None:
        raise OSError("power cut")

    monkeypatch.setattr(checkpoint.os, "fsync", crash)
    with pytest.raises(OSError, match="power cut"):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
