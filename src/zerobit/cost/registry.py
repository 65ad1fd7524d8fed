"""All costs by name. A device is a module in `cost/devices` or a TOML file in `cost/targets`; both are found here."""

import pkgutil
from functools import cache
from importlib import import_module

from zerobit.cost import devices
from zerobit.cost.analytic import Bops, Macs, Size
from zerobit.cost.base import AbstractCost
from zerobit.cost.device import Device
from zerobit.cost.memory import PeakRam
from zerobit.cost.table import load_target, target_files
from zerobit.errors import BudgetError


@cache
def _devices() -> dict[str, Device]:
    modules = [import_module(f"{devices.__name__}.{m.name}") for m in pkgutil.iter_modules(devices.__path__)]
    found = [m.DEVICE for m in modules if hasattr(m, "DEVICE")] + [load_target(path) for path in target_files()]
    assert len({d.name for d in found}) == len(found), [d.name for d in found]
    return {d.name: d for d in sorted(found, key=lambda d: d.name)}


@cache
def _costs() -> dict[str, AbstractCost]:
    """By every name that can be written."""
    result: dict[str, AbstractCost] = {cost.name: cost for cost in (Size(), Macs(), Bops(), PeakRam())}
    for device in _devices().values():
        result[device.name] = next(iter(device.metrics.values()))
        result.update({f"{device.name}.{metric}": cost for metric, cost in device.metrics.items()})
    return result


def forget() -> None:
    """Look for devices anew at the next question."""
    _devices.cache_clear()
    _costs.cache_clear()


def device_names() -> tuple[str, ...]:
    """All devices, sorted."""
    return tuple(_devices())


def device(name: str) -> Device:
    """The device of a name.

    Raises:
        BudgetError: there is none.
    """
    if name not in _devices():
        msg = f"`target` is {name!r}; known devices are {device_names()}; choose one of these"
        raise BudgetError(msg)
    return _devices()[name]


def cost_names() -> tuple[str, ...]:
    """Every name that `named_cost` takes, in the order of its table; a device's first metric has two names."""
    return tuple(_costs())


def named_cost(name: str, more: tuple[str, ...] = ()) -> AbstractCost:
    """The cost that a budget names.

    Args:
        name: "size", "macs", "bops", "ram", a device for its first metric, or "DEVICE.METRIC", such as "mpic.energy".
        more: names that are allowed too, for the message.

    Raises:
        BudgetError: there is none of that name.
    """
    if name in _costs():
        return _costs()[name]
    msg = f"`budget` names the cost {name!r}; allowed are {', '.join((*cost_names(), *more))}; choose one of these"
    raise BudgetError(msg)
