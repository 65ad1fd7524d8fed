"""One rule per op kind. A new op is a rule in one of these files and its name here."""

from zerobit.graph.rules.affine import AddmmRule, ConvRule, ConvTransposeRule, EmbeddingRule, LinearRule
from zerobit.graph.rules.base import AbstractRule, Arguments, Call, Cut, Ref, refuse
from zerobit.graph.rules.contract import AttentionRule, EinsumRule, MatmulRule
from zerobit.graph.rules.movement import (
    AlongRule,
    ConcatRule,
    ExpandRule,
    IndexRule,
    PadRule,
    PermuteRule,
    PixelShuffleRule,
    RepeatRule,
    SliceRule,
    TileRule,
)
from zerobit.graph.rules.norms import BatchNormRule, GroupNormRule, InstanceNormRule, LayerNormRule
from zerobit.graph.rules.pointwise import (
    BinaryRule,
    ConstantRule,
    GluRule,
    IdentityRule,
    PreluRule,
    ReluRule,
    UnaryRule,
    WhereRule,
)
from zerobit.graph.rules.pooling import (
    AdaptiveAvgPoolRule,
    AdaptiveMaxPoolRule,
    AvgPoolRule,
    MaxPoolRule,
    MeanRule,
    ReduceRule,
    ResizeRule,
)
from zerobit.graph.rules.recurrent import RecurrentRule
from zerobit.graph.rules.reshape import ReshapeRule

_ALL: tuple[AbstractRule, ...] = (
    ConvRule(),
    ConvTransposeRule(),
    LinearRule(),
    AddmmRule(),
    EmbeddingRule(),
    RecurrentRule(),
    MatmulRule(),
    EinsumRule(),
    AttentionRule(),
    BatchNormRule(),
    InstanceNormRule(),
    GroupNormRule(),
    LayerNormRule(),
    ReluRule(),
    UnaryRule(),
    BinaryRule(),
    WhereRule(),
    ConstantRule(),
    PreluRule(),
    GluRule(),
    IdentityRule(),
    PermuteRule(),
    SliceRule(),
    ExpandRule(),
    RepeatRule(),
    TileRule(),
    AlongRule(),
    IndexRule(),
    PadRule(),
    ConcatRule(),
    PixelShuffleRule(),
    MaxPoolRule(),
    AvgPoolRule(),
    AdaptiveAvgPoolRule(),
    AdaptiveMaxPoolRule(),
    ResizeRule(),
    ReduceRule(),
    MeanRule(),
    ReshapeRule(),
)

#: Aten overload -> rule. An op that is not here is a barrier.
RULES: dict[str, AbstractRule] = {target: rule for rule in _ALL for target in rule.targets}

__all__ = ["RULES", "AbstractRule", "Arguments", "Call", "Cut", "Ref", "refuse"]
