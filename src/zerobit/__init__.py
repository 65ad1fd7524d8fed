"""zerobit: joint channel pruning and mixed-precision quantization, down to a proven integer network.

Names are imported on first use, so that `import zerobit` stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zerobit import cost as cost
    from zerobit import export as export
    from zerobit.api import Normalisation, Result, compress
    from zerobit.cost.price import Budget, Strength
    from zerobit.coverage import Coverage, inspect
    from zerobit.cut.apply import QuantNet, apply
    from zerobit.cut.decide import commit, decide
    from zerobit.cut.store import load, save
    from zerobit.errors import ZerobitError
    from zerobit.integer.lower import settle
    from zerobit.plan import Plan
    from zerobit.search.attach import attach, calibrate
    from zerobit.search.methods.bsq import Bsq
    from zerobit.search.methods.djpq import Djpq
    from zerobit.search.methods.fixed import Fixed
    from zerobit.search.methods.fracbits import FracBits
    from zerobit.search.methods.sequential import PruneThenQuantize
    from zerobit.search.methods.softmax import ChannelSoftmax
    from zerobit.search.net import SearchNet

_HOME = {
    "Bsq": "zerobit.search.methods.bsq",
    "Budget": "zerobit.cost.price",
    "ChannelSoftmax": "zerobit.search.methods.softmax",
    "Coverage": "zerobit.coverage",
    "Djpq": "zerobit.search.methods.djpq",
    "Fixed": "zerobit.search.methods.fixed",
    "FracBits": "zerobit.search.methods.fracbits",
    "Normalisation": "zerobit.api",
    "Plan": "zerobit.plan",
    "PruneThenQuantize": "zerobit.search.methods.sequential",
    "QuantNet": "zerobit.cut.apply",
    "Result": "zerobit.api",
    "SearchNet": "zerobit.search.net",
    "Strength": "zerobit.cost.price",
    "ZerobitError": "zerobit.errors",
    "apply": "zerobit.cut.apply",
    "attach": "zerobit.search.attach",
    "calibrate": "zerobit.search.attach",
    "commit": "zerobit.cut.decide",
    "compress": "zerobit.api",
    "decide": "zerobit.cut.decide",
    "inspect": "zerobit.coverage",
    "load": "zerobit.cut.store",
    "save": "zerobit.cut.store",
    "settle": "zerobit.integer.lower",
}

__all__ = [
    "Bsq",
    "Budget",
    "ChannelSoftmax",
    "Coverage",
    "Djpq",
    "Fixed",
    "FracBits",
    "Normalisation",
    "Plan",
    "PruneThenQuantize",
    "QuantNet",
    "Result",
    "SearchNet",
    "Strength",
    "ZerobitError",
    "apply",
    "attach",
    "calibrate",
    "commit",
    "compress",
    "cost",
    "decide",
    "export",
    "inspect",
    "load",
    "save",
    "settle",
]


def __getattr__(name: str) -> Any:
    if name in ("cost", "export"):
        return import_module(f"zerobit.{name}")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    msg = f"module 'zerobit' has no attribute {name!r}"
    raise AttributeError(msg)
