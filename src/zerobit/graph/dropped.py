"""What drops values in training only, and that a capture in evaluation mode therefore can't keep."""

from collections.abc import Iterator

from torch import nn

from zerobit.graph.program import STACK, Node, Program

#: Modules that drop values though not all of their names say so.
_DROPPING = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
    nn.MultiheadAttention,
    nn.RNNBase,
)
#: Attributes in which modules keep the share that they drop.
_RATES = ("p", "drop_prob", "drop_rate", "dropout", "dropout_p", "dropout_prob", "attention_dropout", "attn_dropout")
_ATTENTION = "aten.scaled_dot_product_attention.default"


def dropped_in_training(model: nn.Module, program: Program) -> tuple[str, ...]:
    """Modules of the model, with their class, that drop values in training while the program does not.

    Told by their class (a dropout, a stochastic depth by its name), or by a share of dropout in a module that calls
    the fused attention. A module that is never called is listed as well; a function that drops values is not seen.
    """
    kept = {path for node in program.code.nodes if node.op == "call_module" for path in _paths(node)}
    fused = {list(_paths(n))[-1] for n in program.code.nodes if str(n.target) == _ATTENTION and n.meta.get(STACK)}
    return tuple(
        f"{name} ({type(module).__name__})"
        for name, module in model.named_modules()
        if name not in kept and (_is_dropout(module) or (name in fused and _rate(module) > 0))
    )


def _paths(node: Node) -> Iterator[str]:
    """Modules that a call comes from, outermost first."""
    yield from (str(path) for path, _ in (node.meta.get(STACK) or {}).values())


def _is_dropout(module: nn.Module) -> bool:
    named = any(part in type(module).__name__ for part in ("Drop", "StochasticDepth"))
    return (named or isinstance(module, _DROPPING)) and _rate(module, unknown=1.0 if named else 0.0) > 0


def _rate(module: nn.Module, unknown: float = 0.0) -> float:
    """The largest share that a module says it drops."""
    rates = [getattr(module, name, None) for name in _RATES]
    known = [float(rate) for rate in rates if isinstance(rate, (int, float))]
    return max(known, default=unknown)
