"""The generator of random choices: known answers, the same in compiled code and in torch, and what it depends on."""

import pytest
import torch
from torch import Tensor

from elman.engine import draws
from elman.engine.draws import Noise
from elman.engine.packing import Packing

CPU = torch.device("cpu")


# Of the generator's authors: tests/kat_vectors of Random123.
@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0), (0, 0), (0x9D1C5EC6, 0x8BD50731)),
        ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 2, (0xFD36D048, 0x2D17272C)),
        ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xBA3E4725, 0xF27D669E)),
    ],
)
def test_known_answers(counter: tuple[int, int], key: tuple[int, int], expected: tuple[int, int]) -> None:
    words = draws.threefry(*map(torch.tensor, (*key, *counter)))
    assert tuple(int(w) for w in words) == expected


def _mask(packing: Packing, noise: Noise, width: int = 37, moving: bool = True, probability: float = 0.3) -> Tensor:
    table = draws.rows(noise, "a test", 3, packing)
    return draws.mask(table, moving, probability, packing, width, (1.0, 0.0), torch.float32)


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, 0x0123456789ABCDEF])
@pytest.mark.parametrize("moving", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("row", [2**40 - 2, [5, 2**40, 0, 7, 1]])
@pytest.mark.parametrize("lengths", [[3, 7, 1, 7, 5], [7, 7, 5, 3, 1], [4] * 5])
def test_compiled_equals_torch(
    seed: int,
    moving: bool,
    dtype: torch.dtype,
    row: int | list[int],
    lengths: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packing = Packing.from_lengths(lengths, CPU)
    noise = Noise(seed, step=2**32 - 3, row=row)
    found = []
    for compiled in (True, False):
        if not compiled:
            monkeypatch.setattr(draws, "_library", lambda real: None)
        table = draws.rows(noise, "a test", 3, packing)
        x = torch.randn(packing.total, 37, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
        choice = draws.Keyed(noise, "a test", 3)
        dropped = draws.masked(x, choice, moving, 0.3, packing)
        found.append((dropped, torch.autograd.grad(dropped.sum(), x)[0]))
        found.append((table, draws.mask(table, moving, 0.3, packing, 37, (1 / 0.7, 0.5), dtype)))
    assert draws._library(torch.float32) is None
    for a, b in zip(found[:2], found[2:], strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])
    assert found[1][1].dtype == found[0][0].dtype == dtype


def test_a_share_of_the_units_is_chosen() -> None:
    packing = Packing.dense(100, 50, CPU)
    for probability in (0.0, 0.1, 0.5, 0.9):
        share = _mask(packing, Noise(1), 200, probability=probability).mean().item()
        assert abs(share - probability) <= 4 * (probability * (1 - probability) / 1e6) ** 0.5


def test_no_two_places_share_their_choices() -> None:
    """Rows, steps, units, seeds, purposes and places are independent: half of the choices agree."""
    packing = Packing.dense(40, 50, CPU)
    whole = _mask(packing, Noise(1), 50, probability=0.5).view(40, 50, 50)
    other_seed = _mask(packing, Noise(2), 50, probability=0.5).view(40, 50, 50)
    pairs = [
        (whole, other_seed),
        (whole[1:], whole[:-1]),
        (whole[:, 1:], whole[:, :-1]),
        (whole[:, :, 1:], whole[..., :-1]),
    ]
    for purpose, place in (("another", 3), ("a test", 4)):
        table = draws.rows(Noise(1), purpose, place, packing)
        pairs.append((whole, draws.mask(table, True, 0.5, packing, 50, (1.0, 0.0), torch.float32).view(40, 50, 50)))
    for a, b in pairs:
        assert abs((a == b).float().mean().item() - 0.5) < 5 * 0.5 / a.numel() ** 0.5


def test_steps_and_rows_are_counted_from_where_the_noise_says() -> None:
    whole = _mask(Packing.dense(9, 6, CPU), Noise(4)).view(9, 6, 37)
    assert torch.equal(_mask(Packing.dense(5, 6, CPU), Noise(4).after(4)).view(5, 6, 37), whole[4:])
    assert torch.equal(_mask(Packing.dense(9, 2, CPU), Noise(4, row=3)).view(9, 2, 37), whole[:, 3:5])
    assert torch.equal(_mask(Packing.dense(9, 2, CPU), Noise(4, row=(5, 0))).view(9, 2, 37), whole[:, [5, 0]])
    lengths = [2, 9, 5, 1, 9, 9]
    packing = Packing.from_lengths(lengths, CPU)
    alive = torch.tensor([[t < n for n in lengths] for t in range(9)])
    assert torch.equal(packing.unpack(_mask(packing, Noise(4)), 9)[alive], whole[alive])


def test_the_seed_comes_from_torch() -> None:
    torch.manual_seed(5)
    seeds = [draws.fresh().seed for _ in range(3)]
    torch.manual_seed(5)
    assert [draws.fresh().seed for _ in range(3)] == seeds
    assert len(set(seeds)) == 3


def test_wrong_number_of_rows() -> None:
    with pytest.raises(ValueError, match=r"one for each of 6 rows, got \(1, 2\)"):
        _mask(Packing.dense(2, 6, CPU), Noise(0, row=(1, 2)))
