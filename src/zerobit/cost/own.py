"""Costs that users bring along: a Python function, or a file of figures."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from zerobit.cost.base import AbstractCost, LayerUse, Usage, rounded_up, total
from zerobit.cost.fit import fit
from zerobit.cost.measured import parse_fit, read_toml
from zerobit.cost.measurements import Table
from zerobit.cost.table import load_target
from zerobit.errors import BudgetError
from zerobit.formats import GRID
from zerobit.importing import import_object


@dataclass(frozen=True)
class FunctionCost(AbstractCost):
    """The sum of a function over all layers. What the function returns is checked when it is first used.

    Attributes:
        name: as in `--budget name=...`.
        unit: of the value.
        function: of one run of a layer; returns a float64 tensor that broadcasts with `layer.inputs`, made of the
            layer's tensors by differentiable operations and without detaching any: a search follows its gradient.
        per_channel: whether, with the inputs given, it is linear in the number of channels at each width. Only say so
            if it is: False is always right, and slower to project.
        storage: widths that weights are stored and computed with, all by default; channels of others come to the
            function at the next one.
        channel_multiple: the number of channels that stay is best a multiple of this.
    """

    name: str
    unit: str
    function: Callable[[LayerUse], Tensor]
    per_channel: bool = False
    storage: tuple[int, ...] = GRID[1:]
    channel_multiple: int = 1
    _checked: list[bool] = field(default_factory=list[bool], init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.storage or not set(self.storage) <= set(GRID[1:]):
            msg = f"`storage` of the cost {self.name} is {self.storage}; allowed are widths from {GRID[1:]}; name some"
            raise BudgetError(msg)

    def __call__(self, use: Usage) -> Tensor:
        """The sum.

        Raises:
            BudgetError: the function fails or returns something else than it should; names the layer.
        """
        call = self.function if self._checked else self._check
        result = total([call(self._stored(layer)) for layer in use.layers])
        if torch.is_grad_enabled() and not result.requires_grad and any(_follows(layer) for layer in use.layers):
            advice = "use no .item(), .detach() or numpy in it"
            self._fail(use.layers[0], "a value without gradient", "one that follows the layer's tensors", advice)
        self._checked.extend([True] * (not self._checked and bool(use.layers)))
        return result

    def _stored(self, layer: LayerUse) -> LayerUse:
        if self.storage == GRID[1:]:
            return layer
        counts = layer.weight.counts
        held = [GRID.index(width) for width in rounded_up(self.storage)]
        moves = torch.eye(len(GRID), dtype=counts.dtype, device=counts.device)[held]
        return replace(layer, weight=replace(layer.weight, counts=counts @ moves))

    def _check(self, layer: LayerUse) -> Tensor:
        try:
            value: Any = self.function(layer)
        except Exception as error:  # whatever a user's function raises, the layer is worth knowing
            msg = (
                f"`function` of the cost {self.name} failed at layer {layer.name!r} "
                f"({type(error).__name__}: {error}); it must work for every layer; correct it"
            )
            raise BudgetError(msg) from error
        shape = _batch(layer)
        if not isinstance(value, Tensor):
            self._fail(layer, f"a {type(value).__name__}", "a tensor", "compute it from the layer's tensors")
        elif value.dtype != torch.float64:
            self._fail(layer, f"{value.dtype}", "torch.float64", "leave the layer's float64 tensors in their type")
        elif not _expands(value.shape, shape):
            advice = "sum over widths with .sum(-1), and over nothing else"
            self._fail(layer, f"the shape {tuple(value.shape)}", f"one that broadcasts to {shape}", advice)
        elif not bool(value.isfinite().all()):
            self._fail(layer, f"{value.tolist()}", "finite numbers", "take care of layers without channels")
        self._check_several(layer, value)
        return value

    @torch.no_grad()
    def _check_several(self, layer: LayerUse, value: Tensor) -> None:
        """A projection prices hundreds of choices in one call: each must cost what it does alone."""
        other = _halved(layer)
        shape = _batch(layer)
        advice = "take widths from the last dimension (counts[..., 5]), and use torch.where instead of if"
        try:
            alone = torch.stack([one.expand(shape) for one in (value, self.function(other))])
            both: Any = self.function(_stacked(layer, other)).expand(2, *shape)
        except Exception as error:
            was = f"{type(error).__name__} ({error})"
            self._fail(layer, was, "a value for each of several choices at once", advice)
        if not torch.allclose(both, alone, rtol=1e-9, atol=0):
            self._fail(layer, "another value for several choices at once", "what each costs alone", advice)

    def _fail(self, layer: LayerUse, was: str, allowed: str, advice: str) -> NoReturn:
        msg = (
            f"`function` of the cost {self.name} returned {was} at layer {layer.name!r}; allowed is {allowed}; {advice}"
        )
        raise BudgetError(msg)


def _batch(layer: LayerUse) -> tuple[int, ...]:
    parts = layer.weight.counts.shape[:-1], layer.weight.fan_in.shape, layer.inputs.shape, layer.positions.shape
    return tuple(torch.broadcast_shapes(*parts))


def _halved(layer: LayerUse) -> LayerUse:
    """With half of its channels removed, and half of its inputs."""
    counts = layer.weight.counts / 2
    counts = torch.cat([counts[..., :1] + counts.sum(-1, keepdim=True), counts[..., 1:]], -1)
    weight = replace(layer.weight, counts=counts, fan_in=layer.weight.fan_in / 2)
    return replace(layer, weight=weight, inputs=layer.inputs / 2)


def _stacked(one: LayerUse, other: LayerUse) -> LayerUse:
    """Two choices for a layer as one use."""
    weight = replace(
        one.weight,
        counts=torch.stack([one.weight.counts, other.weight.counts]),
        fan_in=torch.stack([one.weight.fan_in, other.weight.fan_in]),
    )
    return replace(one, weight=weight, inputs=torch.stack([one.inputs, other.inputs]))


def _expands(shape: torch.Size, to: tuple[int, ...]) -> bool:
    try:
        return tuple(torch.broadcast_shapes(shape, to)) == to
    except RuntimeError:
        return False


def _follows(layer: LayerUse) -> bool:
    """Whether a search asks for the gradient of a layer's cost."""
    return layer.weight.counts.requires_grad


def load_costs(reference: str) -> dict[str, AbstractCost]:
    """A user's own costs, by every name that a budget can call them.

    Args:
        reference: a .toml file, of a device (`zerobit.cost.table.load_target`; its metrics are DEVICE.METRIC, the first
            also DEVICE) or of a fit (`MeasuredCost.save`); a .csv file of measurements, which are fitted; or
            MODULE:NAME of a cost, or of a function of a layer (`FunctionCost`). A function may have attributes `unit`,
            `per_channel`, `storage` and `channel_multiple`.

    Raises:
        BudgetError: it can't be read; says where and why.
    """
    cost: AbstractCost
    if reference.endswith(".toml"):
        path = Path(reference)
        data = read_toml(path)
        if data.get("kind") != "fit":
            device = load_target(path)
            by_metric = {f"{device.name}.{metric}": cost for metric, cost in device.metrics.items()}
            return {device.name: next(iter(by_metric.values())), **by_metric}
        cost = parse_fit(data, path.name)
    elif reference.endswith(".csv"):
        path = Path(reference)
        cost = fit(Table.read(path), path.stem)
    else:
        cost = _imported(reference)
    return {cost.name: cost}


def load_cost(reference: str) -> AbstractCost:
    """The first of `load_costs`: of a device the cost that bears its name."""
    return next(iter(load_costs(reference).values()))


def _imported(reference: str) -> AbstractCost:
    advice = "write a .toml or .csv file, or MODULE:NAME of a cost or a function"
    module, colon, name = reference.partition(":")
    if not (module and colon and name):
        msg = f"`target` is {reference!r}; allowed are a file and MODULE:NAME; {advice}"
        raise BudgetError(msg)
    try:
        found = import_object(module, name)
    except (ImportError, AttributeError, ValueError) as error:
        msg = f"`target` {reference!r} can't be imported ({error}); {advice}"
        raise BudgetError(msg) from None
    if isinstance(found, AbstractCost):
        return found
    if isinstance(found, type) or not callable(found):
        msg = f"`target` {reference!r} is a {type(found).__name__}; allowed are a cost and a function; {advice}"
        raise BudgetError(msg)
    settings = {
        key: getattr(found, key) for key in ("per_channel", "storage", "channel_multiple") if hasattr(found, key)
    }
    function: Callable[[LayerUse], Any] = found
    return FunctionCost(name, getattr(found, "unit", ""), function, **settings)
