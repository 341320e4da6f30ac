"""What the catalogue says of cells, and that docs/cells.md says the same."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from elman import Cell, cells
from elman.catalogue import cost
from elman.catalogue.docstring import read
from elman.catalogue.facts import facts
from elman.catalogue.markdown import document
from elman.catalogue.sizes import size_formula
from elman.cells import Extra
from elman.cells.layout import layout
from elman.cli import main

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Odd(Cell):
    heads: int = 3
    reach: int | None = None

    gates = ("h",)
    extras = (Extra("gap", width=2),)

    def step(self, x: Any, u: Any, s: Any, p: Any) -> Any:
        return self.State(h=u.h(s.h) + x.h + x.gap[:, :1])


def test_the_document_is_up_to_date() -> None:
    assert (ROOT / "docs/cells.md").read_text(encoding="utf-8") == document(), "run `make docs`"


def test_the_document_has_a_section_for_each_cell() -> None:
    sections = re.findall(r"^### `(\w+)`$", document(), re.M)
    assert tuple(sections) == cells.names()


@pytest.mark.parametrize("name", cells.names())
def test_each_cell_is_described(name: str) -> None:
    found = facts(name)
    assert re.fullmatch(r"[^\d,]+ (19|20)\d\d", found.docstring.source)
    assert found.docstring.summary.endswith(".")
    assert any(found.docstring.source[-4:] in note for note in found.docstring.notes)
    assert not isinstance(found.formulas, str)
    parts = layout(found.cell, 12, 48)
    sizes = {"H": Fraction(48), "I": Fraction(12)}

    def value(formula: str) -> Fraction:
        expression = re.sub(r"(\d)(?=[HI])", r"\1*", formula.replace("²", "**2").replace("·", "*"))
        return Fraction(eval(expression, {}, sizes))

    shapes = [tuple(value(size) for size in shape.strip("[]").split(", ")) for _, shape, _ in found.parameters]
    assert shapes == [p.shape for p in parts.parameters]
    assert value(found.parameter_count) == sum(int(a) * int(b) for a, b in ((*shape, 1)[:2] for shape in shapes))
    assert [value(width) for _, width in found.states] == [width for _, width in parts.states]


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("elman", "Elman 1990"),
        ("gru", "Cho et al. 2014"),
        ("peephole_lstm", "Gers & Schmidhuber 2000"),
        ("cfn", "Laurent & von Brecht 2017"),
        ("rg_lru", "De et al. 2024"),
        ("minimal_rnn", "Chen 2017"),
    ],
)
def test_sources_are_short(name: str, source: str) -> None:
    assert read(cells.get(name)).source == source


def test_size_formulas() -> None:
    assert size_formula(lambda h, i: 4 * h * (h + i + 2), 1) == "4H·(I + H + 2)"
    assert size_formula(lambda h, i: h * h // 4 + 3 * h // 2, 4) == "H/4·(H + 6)"
    assert size_formula(lambda h, i: i * i + 7, 1) == "I² + 7"
    assert size_formula(lambda h, i: 0, 1) == "0"
    assert size_formula(lambda h, i: h**3, 1) is None
    assert size_formula(lambda h, i: max(h, 5), 1) is None


def test_a_cell_of_ones_own_is_described_too() -> None:
    found = facts(Odd(heads=5))
    assert (found.name, found.docstring.text, found.docstring.source) == ("Odd", "", "")
    assert [(o.name, o.type, o.default) for o in found.options] == [
        ("heads", "int", "5"),
        ("reach", "int | None", "None"),
    ]
    assert found.extras == ("gap",)
    assert found.formulas == "step takes a slice of a value, [(slice(None, None, None), slice(None, 1, None))]"
    assert found.variants == ()


def test_other_choices_of_an_option_show_what_they_change() -> None:
    (variant,) = facts("coupled_lstm").variants
    assert variant[0] == "peepholes=False"
    assert [left for left, _ in variant[1].plain] == ["i", "o"]
    assert [option for option, _ in facts("sru").variants] == ["version=1"]
    assert [option for option, _ in facts("miru").variants] == ['reset="gate"']


def test_every_registered_cell_has_a_family() -> None:
    families = cells.families()
    assert tuple(name for names in families.values() for name in names) == cells.names()
    cells.register("test_only", Odd)
    try:
        assert list(cells.families().items()) == [*families.items(), ("Registered here", ("test_only",))]
    finally:
        cells._registry.pop("test_only")


def test_the_kept_costs_are_of_cells_that_exist() -> None:
    """A cell that has not been measured yet has none."""
    kept = cost.kept()
    assert set(kept.relative) <= set(cells.names())
    assert kept.relative["lstm"] == pytest.approx(1, abs=0.1)
    assert kept.to_json() + "\n" == cost.KEPT.read_text(encoding="utf-8")


def test_costs_are_measured() -> None:
    lines: list[str] = []
    measured = cost.measure([("depth_gated_lstm", cells.get("depth_gated_lstm")()), ("Odd", Odd())], 0.0, lines.append)
    assert list(measured.relative) == ["depth_gated_lstm", "Odd"]
    assert all(value > 0 for value in measured.relative.values())
    assert len(lines) == 2 * cost.ROUNDS
    assert json.loads(measured.to_json())["date"] == measured.date


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Runs `elman cells ARGUMENTS` in a folder that has mine.py: exit status, standard output and error."""
    (tmp_path / "mine.py").write_text(
        "from elman.cells.lstm import LSTM\n\nclass Mine(LSTM):\n    '''As it was.'''\n\nnothing = 3\n"
    )
    (tmp_path / "broken.py").write_text("import no_such_thing\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(["cells", *arguments])
        found = capsys.readouterr()
        return status, found.out, found.err

    yield run
    for name in ("mine", "broken"):
        sys.modules.pop(name, None)


def test_all_cells_are_listed(shown: Any) -> None:
    status, out, err = shown()
    assert (status, err) == (0, "")
    lines = out.splitlines()
    for family, names in cells.families().items():
        start = lines.index(family) + 1
        assert [line.split()[0] for line in lines[start : start + len(names)]] == list(names)
    (line,) = [line for line in lines if line.startswith("gru ")]
    kept = f"{cost.kept().relative['gru']:.2f}"
    assert re.split(r" {2,}", line) == ["gru", "Cho et al. 2014", "h", "r z n", "3H·(I + H + 2)", kept, "cpu"]
    assert cost.kept().date in lines[-1]
    assert shown("--names") == (0, "\n".join(cells.names()) + "\n", "")


def test_one_cell_in_full(shown: Any) -> None:
    status, out, err = shown("antisymmetric_rnn")
    assert (status, err) == (0, "")
    for expected in (
        "antisymmetric_rnn: elman.cells.antisymmetric.AntisymmetricRNN",
        "Chang, Chen, Haber & Chi",
        "  h_t = h_{t-1} + 0.01 tanh(W_h x_t + A_h h_{t-1} + b_h)",
        "  A = U - Uᵀ - 0.01 I, where U is what is stored.",
        "  weight_hh  [H, H]",
        "  epsilon  = 0.01  float",
        "  h  [B, H]  the output",
        "  not torch: torch has no kernel for AntisymmetricRNN",
        f"  {cost.kept().relative['antisymmetric_rnn']:.2f} × lstm",
    ):
        assert expected in out
    assert "not trained" in shown("echo_state")[1]
    assert "dt (default 1)" in shown("cfc")[1]
    assert 'With nonlinearity="relu":\n\n  h_t = relu(' in shown("elman")[1]


def test_a_cell_in_a_module_here(shown: Any) -> None:
    status, out, _ = shown("mine:Mine")
    assert status == 0
    assert out.startswith("mine:Mine: mine.Mine\n\nAs it was.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lsmt"], "unknown cell 'lsmt'; did you mean 'lstm'?"),
        (["mine:Yours"], "cell 'mine:Yours': the module 'mine' has no 'Yours'"),
        (["mine:nothing"], "cell must be a subclass of elman.Cell, got 3"),
        (["broken:Cell"], "cell 'broken:Cell': cannot import 'broken': ModuleNotFoundError: No module named 'no_such_"),
        (["--json"], "--json prints measured costs: it needs --cost"),
        (["lstm", "gru"], "unrecognized arguments: gru"),
    ],
)
def test_wrong_arguments(shown: Any, arguments: list[str], message: str) -> None:
    status, out, err = shown(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"elman: {message}")
    assert err.count("\n") == 1


def test_costs_measured_here(shown: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("elman.catalogue.command.SECONDS", 0.0)
    status, out, err = shown("mine:Mine", "--cost", "--json")
    assert status == 0
    assert list(json.loads(out)["relative"]) == ["mine:Mine"]
    assert "round 3 of 3, mine:Mine" in err
    assert re.search(r"Cost\n\n  \d+\.\d\d × lstm", shown("mine:Mine", "--cost")[1])


def test_the_engine_of_the_environment(shown: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELMAN_ENGINE", "torch")
    assert "none: the engine 'torch' cannot run this layer" in shown()[1]
    monkeypatch.setenv("ELMAN_ENGINE", "trch")
    status, out, err = shown("lstm")
    assert (status, out, err.count("\n")) == (2, "", 1)


def test_the_listing_needs_the_core_alone() -> None:
    code = (
        "import sys\n"
        "for name in ('yaml', 'rich', 'safetensors', 'tokenizers', 'tensorboard'): sys.modules[name] = None\n"
        "from elman.cli import main\n"
        "assert main(['cells']) == main(['cells', 'gru']) == 0\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
