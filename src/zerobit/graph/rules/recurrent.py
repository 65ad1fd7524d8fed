"""LSTM, GRU and plain recurrent layers: a hidden unit goes with its gates, in all layers and both directions.

With the rows of its weights and biases masked a unit of an LSTM never leaves zero, since its cell starts at zero and
its candidate is tanh(0); the same holds for GRU and for tanh and ReLU layers.
"""

from dataclasses import replace

import numpy as np

from zerobit.graph.axes import Axes, AxisState
from zerobit.graph.ir import Kind, Op
from zerobit.graph.rules.base import AbstractRule, Arguments, Ref, Shapes, as_kind, refuse


class RecurrentRule(AbstractRule):
    """Recurrent layers over a whole sequence, of any depth and direction; with a projection a barrier."""

    #: Overload -> number of blocks of rows in a weight.
    _BLOCKS = {"aten.lstm.input": 4, "aten.gru.input": 3, "aten.rnn_tanh.input": 1, "aten.rnn_relu.input": 1}  # noqa: RUF012
    targets = tuple(_BLOCKS)

    def read(self, op: Op, arguments: Arguments, shapes: Shapes) -> Op:
        """Kind RECURRENT with its states and the parameters of each layer and direction, in order."""
        states = arguments["hx"] if isinstance(arguments["hx"], (list, tuple)) else [arguments["hx"]]
        params = arguments["params"]
        if not all(isinstance(p, Ref) and p.name in op.parameters for p in params) or not op.inputs:
            return refuse(op, "its weights are computed, not parameters")
        directions = 2 if arguments["bidirectional"] else 1
        cells = int(arguments["num_layers"]) * directions
        hidden = shapes[params[1].name][1]
        per_cell = len(params) // cells
        if per_cell != (4 if arguments["has_biases"] else 2) or shapes[states[0].name][-1] != hidden:
            return refuse(op, "it projects its hidden state")
        names = [p.name for p in params]
        return as_kind(
            replace(op, inputs=tuple(n for n in op.inputs if n not in names)),
            Kind.RECURRENT,
            sequence=arguments["input"].name,
            states=tuple(state.name for state in states),
            cells=tuple(tuple(names[i * per_cell : (i + 1) * per_cell]) for i in range(cells)),
            directions=directions,
            hidden=hidden,
        )

    def couple(self, op: Op, state: AxisState) -> tuple[Axes, ...]:
        """One set of hidden units for all cells; the states must be zero where they are absent."""
        a = op.attrs
        sequence = state.axes(a["sequence"])
        state.require_zero(sequence)
        for labels in sequence.labels[:-1]:
            state.pin_axis(labels, f"not on the channel dimension of `{op.name}`")
        units = state.atoms.fresh(a["cells"][0][0].rpartition(".")[0] or op.name, a["hidden"])
        rows = np.tile(units, self._BLOCKS[op.target])
        for i, (inward, recurrent, *biases) in enumerate(a["cells"]):
            first = i < a["directions"]
            state.label_parameter(inward, (rows, sequence.labels[-1] if first else np.tile(units, a["directions"])))
            state.label_parameter(recurrent, (rows, units))
            for bias in biases:
                state.label_parameter(bias, (rows,))
            state.masked |= {inward, recurrent, *biases}
        for name in a["states"]:
            initial = state.axes(name)
            state.require_zero(initial)
            state.meet([units, initial.labels[-1]], f"starts from a state that stays in `{op.name}`")
        rank = len(sequence.labels)
        result = Axes((*(None,) * (rank - 1), np.tile(units, a["directions"])))
        return (result, *(Axes((*(None,) * (len(state.shapes[name]) - 1), units)) for name in a["states"]))
