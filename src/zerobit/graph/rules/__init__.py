"""One rule per op kind. A new op is a rule in one of these files and its name here."""

from zerobit.graph.rules.affine import ConvRule, LinearRule, NormRule
from zerobit.graph.rules.base import AbstractRule, Arguments, Ref
from zerobit.graph.rules.pointwise import AddRule, ConcatRule, IdentityRule, PadRule, ReluRule
from zerobit.graph.rules.pooling import AdaptiveAvgPoolRule, AvgPoolRule, MaxPoolRule, MeanRule
from zerobit.graph.rules.reshape import ReshapeRule

_ALL: tuple[AbstractRule, ...] = (
    ConvRule(),
    LinearRule(),
    NormRule(),
    ReluRule(),
    IdentityRule(),
    AddRule(),
    PadRule(),
    ConcatRule(),
    MaxPoolRule(),
    AvgPoolRule(),
    AdaptiveAvgPoolRule(),
    MeanRule(),
    ReshapeRule(),
)

#: Aten overload -> rule. An op that is not here is a barrier.
RULES: dict[str, AbstractRule] = {target: rule for rule in _ALL for target in rule.targets}

__all__ = ["RULES", "AbstractRule", "Arguments", "Ref"]
