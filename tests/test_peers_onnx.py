"""RNN, LSTM and GRU against ONNX: its reference evaluator in float64, and onnxruntime in float32 for what that lacks.

The evaluator (onnx 1.23) runs all three directions, initial states, peepholes and both GRUs. It passes over
`activations`, `clip` and `input_forget` of LSTM and GRU and over `sequence_lens` of all three without a word, and its
RNN knows tanh and affine functions only; `test_what_the_evaluator_lacks` fails when that changes. onnxruntime has all
of these. Neither computes gradients.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from elman import Cell, Recurrent, cells, use_engine
from elman.testing import Case, assert_near

onnx = pytest.importorskip("onnx")

T, B, I, H = 6, 5, 4, 8  # noqa: E741
LENGTHS = (3, 6, 1, 4, 6)
DIRECTIONS = ("forward", "reverse", "bidirectional")
Arrays = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Peer:
    """A cell and the node of ONNX that is the same.

    `gates` are Elman's names in ONNX's order of rows. "+" is a gate that ours has not and that stays open, as σ(100) is
    1 in both precisions; "1-i" is the forget gate that the attribute `input_forget` makes of the input gate.
    `activations` have a name, and α and β where the function takes any.
    """

    cell: Cell
    operator: str
    gates: str
    attributes: dict[str, Any] = field(default_factory=dict)
    peepholes: str = ""
    activations: tuple[tuple[Any, ...], ...] = ()


LSTM = "i o f g"
PEERS = {
    "elman": Peer(cells.get("elman")(), "RNN", "h"),
    "lstm": Peer(cells.get("lstm")(), "LSTM", LSTM),
    "peephole_lstm": Peer(cells.get("peephole_lstm")(), "LSTM", LSTM, peepholes="p_i p_o p_f"),
    "gru": Peer(cells.get("gru")(), "GRU", "z r n", {"linear_before_reset": 1}),
    "gru_reset_before": Peer(cells.get("gru_reset_before")(), "GRU", "z r n", {"linear_before_reset": 0}),
    "lstm_1997_tanh": Peer(cells.get("lstm_1997")("tanh"), "LSTM", "i o + g"),
}
# What takes activations or input_forget: onnxruntime only. 4 σ(v) - 2 = 2 tanh(v / 2).
RUNTIME_PEERS = {
    **PEERS,
    "elman_relu": Peer(cells.get("elman")("relu"), "RNN", "h", activations=(("Relu",),)),
    "lstm_1997": Peer(
        cells.get("lstm_1997")(),
        "LSTM",
        "i o + g",
        activations=(("Sigmoid",), ("ScaledTanh", 2.0, 0.5), ("ScaledTanh", 1.0, 0.5)),
    ),
    "coupled_lstm": Peer(
        cells.get("coupled_lstm")(), "LSTM", "i o 1-i g", {"input_forget": 1}, peepholes="p_i p_o 1-i"
    ),
    "coupled_lstm_without_peepholes": Peer(
        cells.get("coupled_lstm")(peepholes=False), "LSTM", "i o 1-i g", {"input_forget": 1}
    ),
}


def arrays_of(peer: Peer, module: Recurrent, suffixes: Sequence[str]) -> Arrays:
    """W [directions, G·H, I], R [directions, G·H, H], B [directions, 2·G·H] and P [directions, 3·H] of a layer."""
    found: dict[str, list[Tensor]] = {}
    for suffix in suffixes:
        weights = {p.name: getattr(module, f"{p.name}_l0{suffix}").detach() for p in module.layers[0][1].parameters}
        blocks = {p.name: p.blocks for p in module.layers[0][1].parameters}

        def rows(name: str, missing: float, width: int = 0, w: Any = weights, b: Any = blocks) -> Tensor:
            shape = (H, width) if width else (H,)
            like = w["weight_hh"]
            parts = [
                w[name][b[name][gate]]
                if name in w and gate in b[name]
                else like.new_full(shape, missing * (gate == "+"))
                for gate in peer.gates.split()
            ]
            return torch.cat(parts)

        found.setdefault("W", []).append(rows("weight_ih", 0.0, I))
        found.setdefault("R", []).append(rows("weight_hh", 0.0, H))
        found.setdefault("B", []).append(torch.cat([rows("bias_ih", 100.0), rows("bias_hh", 0.0)]))
        if peer.peepholes:
            zero = torch.zeros_like(weights["p_i"])
            found.setdefault("P", []).append(torch.cat([weights.get(name, zero) for name in peer.peepholes.split()]))
    return {name: torch.stack(parts).numpy() for name, parts in found.items()}


def model_of(peer: Peer, inputs: Arrays, direction: str) -> Any:
    """An ONNX model of one node, whose inputs are all its arrays."""
    names = ["X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"]
    wanted = names if peer.operator == "LSTM" else names[:6]
    outputs = ["Y", "Y_h", "Y_c"][: 3 if peer.operator == "LSTM" else 2]
    attributes = peer.attributes | {"hidden_size": H, "direction": direction}
    if peer.activations:
        times = 2 if direction == "bidirectional" else 1
        attributes["activations"] = [name for name, *_ in peer.activations] * times
        for key, k in (("activation_alpha", 1), ("activation_beta", 2)):
            if values := [function[k] for function in peer.activations if len(function) > k]:
                attributes[key] = values * times
    node = onnx.helper.make_node(
        peer.operator, [n if n in inputs else "" for n in wanted], outputs, name=peer.operator, **attributes
    )

    def value(name: str, dtype: Any, shape: Any = None) -> Any:
        return onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(dtype), shape)

    graph = onnx.helper.make_graph(
        [node],
        "peer",
        [value(n, a.dtype, a.shape) for n, a in inputs.items()],
        [value(n, inputs["X"].dtype) for n in outputs],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)


def evaluated(peer: Peer, inputs: Arrays, direction: str) -> list[Tensor]:
    """By the reference evaluator: Y [T, directions, B, H], Y_h (and Y_c) [directions, B, H]."""
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(model_of(peer, inputs, direction))
    return [torch.from_numpy(np.ascontiguousarray(v)) for v in evaluator.run(None, dict(inputs))]


def run_by_runtime(peer: Peer, inputs: Arrays, direction: str) -> list[Tensor]:
    """By onnxruntime, the same."""
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    serialized = model_of(peer, inputs, direction).SerializeToString()
    session = runtime.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(v) for v in session.run(None, inputs)]


def assert_equal(peer: Peer, direction: str, engine: str, dtype: torch.dtype, lengths: Sequence[int] | None) -> None:
    """Outputs and final states, from a random state, with every parameter random, are those of ONNX.

    Where ONNX runs one direction, it is compared with that half of our bidirectional layer.
    """
    case = Case(peer.cell, engine=engine, dtype=dtype, input_size=I, hidden_size=H, num_layers=1)
    module = case.module(bidirectional=True)
    x = case.input(T, B)
    state = [torch.randn(2, B, H, dtype=dtype) for _ in module.cell.state]
    with use_engine(engine), torch.no_grad():
        output, final = module(x, case.pass_in(state), lengths=lengths)
    halves = {"forward": slice(0, 1), "reverse": slice(1, 2), "bidirectional": slice(0, 2)}[direction]
    inputs = {"X": x.numpy(), **arrays_of(peer, module, ["", "_reverse"][halves])}
    inputs |= {f"initial_{n}": v[halves].numpy() for n, v in zip(("h", "c"), state, strict=False)}
    if lengths:
        inputs["sequence_lens"] = np.array(lengths, dtype=np.int32)
    theirs = (evaluated if lengths is None and dtype == torch.float64 else run_by_runtime)(peer, inputs, direction)
    finals = final if isinstance(final, tuple) else (final,)
    ours = [output.unflatten(2, (2, H)).transpose(1, 2)[:, halves], *(v[halves] for v in finals)]
    for name, a, b in zip(("output", "h", "c"), ours, theirs, strict=False):
        assert_near(a, b, f"{peer.operator} {direction}: {name}")
    assert len(ours) == len(theirs)


@pytest.mark.parametrize("engine", ["reference", "cpu"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", PEERS)
def test_equals_the_reference_evaluator(name: str, direction: str, engine: str) -> None:
    assert_equal(PEERS[name], direction, engine, torch.float64, None)


@pytest.mark.parametrize("engine", ["reference", "cpu"])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "lengths"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", RUNTIME_PEERS)
def test_equals_onnxruntime(name: str, direction: str, lengths: Sequence[int] | None, engine: str) -> None:
    assert_equal(RUNTIME_PEERS[name], direction, engine, torch.float32, lengths)


def test_what_the_evaluator_lacks() -> None:
    """Each attribute or input below changes what onnxruntime gives, and nothing of what the evaluator gives."""
    module = Case(cells.get("lstm")(), dtype=torch.float32, input_size=I, hidden_size=H, num_layers=1).module()
    x = {"X": torch.randn(T, B, I).numpy()}
    inputs = x | arrays_of(PEERS["lstm"], module, [""])
    relu = (("Sigmoid",), ("Relu",), ("Tanh",))
    lengths = {"sequence_lens": np.array(LENGTHS, dtype=np.int32)}
    lstm = cells.get("lstm")()
    for other, given in (
        (Peer(lstm, "LSTM", LSTM, {"clip": 0.1}), inputs),
        (Peer(lstm, "LSTM", LSTM, {"input_forget": 1}), inputs),
        (Peer(lstm, "LSTM", LSTM, activations=relu), inputs),
        (PEERS["lstm"], inputs | lengths),
    ):
        for run, changes in ((run_by_runtime, True), (evaluated, False)):
            plain, changed = run(PEERS["lstm"], inputs, "forward")[0], run(other, given, "forward")[0]
            assert torch.allclose(plain, changed) != changes, (other.attributes, other.activations)
    vanilla = Case(cells.get("elman")("relu"), dtype=torch.float32, input_size=I, hidden_size=H, num_layers=1).module()
    with pytest.raises(RuntimeError, match="Unknown activation function 'Relu'"):
        evaluated(RUNTIME_PEERS["elman_relu"], x | arrays_of(PEERS["elman"], vanilla, [""]), "forward")
