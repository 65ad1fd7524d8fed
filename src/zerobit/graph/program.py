"""`Program`: a captured network that runs, its tensors under the user's names, and runs that record or mask.

This file, capture.py and walks.py are the only ones that touch torch.fx and torch.export.
"""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim

from zerobit.errors import CaptureError
from zerobit.graph.inputs import check_inputs
from zerobit.graph.ir import Shape
from zerobit.graph.limits import Limit

#: Prefix of the modules that we put into a program; everything else is the user's.
SLOTS = "slots"

#: What we keep of a node's meta data: the user's modules that a call comes from.
STACK = "nn_module_stack"

Node = fx.Node
Code = fx.Graph
OpOverload = type(torch.ops.aten.relu.default)
#: Marks a size of an example that an exporter may take for free.
ANY_SIZE = Dim.AUTO


def map_nodes(value: Any, change: Callable[[Node], Any]) -> Any:
    """The same nest of arguments with every node changed."""
    return fx.map_arg(value, change)


@dataclass(frozen=True, eq=False)
class Structure:
    """What a capture fixes for good: how calls are nested, and what is no ordinary tensor. Copies share it.

    Attributes:
        inputs: tree of the arguments.
        outputs: tree of the results.
        free: for each flat input the dimensions of any size; 0, if there, is the batch.
        transient: names of the buffers that the user's state_dict leaves out.
        branches: code of control flow (torch.cond) by name; it holds no tensors of its own.
        limits: conditions on free sizes other than the batch.
        dropped: modules of the user, with their class, that drop values in training and no longer do.
        frozen: names of the parameters that the user wants left alone.
    """

    inputs: Any
    outputs: Any
    free: tuple[frozenset[int], ...]
    transient: frozenset[str] = frozenset()
    branches: Mapping[str, nn.Module] = field(default_factory=dict[str, nn.Module])
    limits: tuple[Limit, ...] = ()
    dropped: tuple[str, ...] = ()
    frozen: frozenset[str] = frozenset()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Structure":
        del memo
        return self


class Program(nn.Module):
    """Abstract: a network as a graph of aten calls over parameters that keep the user's names.

    A user's layer may bear the name of an attribute of ours, such as `code`: tensors and slots are reached
    with `fetch`, never as attributes.

    Args:
        code: the fx graph; owned by this program from now on.
        tensors: parameter or buffer name -> tensor; every name that `code` reads.
        structure: of arguments and results.
        example: flat example inputs, batch 1 if it is free; their shapes and types are kept to derive graphs
            from, what is no tensor is built in.
    """

    def __init__(
        self, code: fx.Graph, tensors: Mapping[str, Tensor], structure: Structure, example: Sequence[Any]
    ) -> None:
        super().__init__()
        self.code = code
        self.structure = structure
        self.example = [x.detach().to("meta") if isinstance(x, Tensor) else x for x in example]
        self._function: Callable[..., Any] | None = None
        for name, value in {**structure.branches, **tensors}.items():
            assign(self, name, value, persistent=name not in structure.transient)

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, (Tensor, nn.Module)):
            super().__setattr__(name, value)
        else:  # nn.Module would refuse a name that the user has given to a layer
            object.__setattr__(self, name, value)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_function": None, "code": _pack(self.code)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "code": _unpack(state["code"])})

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run on inputs nested as the captured model's were; any batch size."""
        flat = self.flatten_inputs(args, kwargs)
        results = self._compiled()(_Names(self), *flat)
        return self.structure.outputs.unflatten(list(results))

    def flatten_inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
        """Flat tensors of a call.

        Raises:
            CaptureError: the call is nested otherwise, or a tensor has another shape (batch apart).
        """
        try:
            flat = self.structure.inputs.flatten_up_to((args, dict(kwargs)))
        except ValueError as error:
            msg = (
                f"`inputs` are nested otherwise than the example inputs were ({error}); "
                "call the network as the captured model was called"
            )
            raise CaptureError(msg) from None
        check_inputs(flat, self.example, self.structure.free, self.structure.limits)
        return flat

    def freeze(self, names: Iterable[str]) -> None:
        """Leave parameters alone, on top of those that are already.

        Args:
            names: of parameters, as in `tensors`.
        """
        self.structure = replace(self.structure, frozen=self.structure.frozen | frozenset(names))

    def _compiled(self) -> Callable[..., Any]:
        if self._function is None:
            python = self.code.python_code("self")
            scope: dict[str, Any] = dict(python.globals)
            exec(compile(python.src, f"<{type(self).__name__}>", "exec"), scope)  # generated by torch.fx
            self._function = scope["forward"]
        assert self._function is not None
        return self._function

    def changed(self) -> None:
        """Forget the compiled code after an edit of `code`."""
        self.code.lint()
        self._function = None

    @property
    def example_specs(self) -> list[tuple[Shape, torch.dtype]]:
        """Shape and type of the example tensors."""
        return [(tuple(x.shape), x.dtype) for x in self.example if isinstance(x, Tensor)]

    @property
    def batched_inputs(self) -> dict[str, bool]:
        """Flat inputs, those that are no tensors included: name -> whether dimension 0 is a batch of any size."""
        names = (n.name for n in self.code.nodes if n.op == "placeholder")
        return {name: 0 in free for name, free in zip(names, self.structure.free, strict=True)}

    @property
    def device(self) -> torch.device:
        """Where the tensors are; the CPU if there are none."""
        return next((t.device for t in self.parameters()), torch.device("cpu"))

    def tensors(self) -> dict[str, Tensor]:
        """The user's parameters and buffers by name, none of slots; a tied one under each of its names."""
        slots = {str(n.target) for n in self.code.nodes if n.op == "call_module"}
        named = (
            *self.named_parameters(remove_duplicate=False),
            *self.named_buffers(remove_duplicate=False),
        )
        return {name: tensor for name, tensor in named if slots.isdisjoint(_prefixes(name))}

    def tensor(self, name: str) -> Tensor:
        """One of `tensors`, without a walk through all."""
        found = fetch(self, name)
        assert isinstance(found, Tensor)
        return found

    def example_inputs(self) -> list[Any]:
        """Zeros like the example, floating ones in the parameters' type, so that `.double()` works."""
        floating = next((p.dtype for p in self.parameters() if p.is_floating_point()), None)
        device = self.device
        return [_zeros(x, floating, device) if isinstance(x, Tensor) else x for x in self.example]


@dataclass(frozen=True)
class _Named:
    """Stands for a node or an aten operator in packed code; neither can be copied out of its graph or pickled."""

    name: str


def _pack(code: fx.Graph) -> list[tuple[Any, ...]]:
    """The nodes of a graph as plain values."""
    packed: list[tuple[Any, ...]] = []
    for node in code.nodes:
        args, kwargs = map_nodes((node.args, node.kwargs), lambda n: _Named(n.name))
        target = _Named(str(node.target)) if isinstance(node.target, OpOverload) else node.target
        packed.append((node.op, target, args, kwargs, node.name, node.meta.get(STACK)))
    return packed


def _unpack(packed: Sequence[tuple[Any, ...]]) -> fx.Graph:
    """The graph again."""
    code = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for op, target, args, kwargs, name, stack in packed:
        if isinstance(target, _Named):
            target = operator.attrgetter(target.name)(torch.ops)
        args, kwargs = _resolve((args, kwargs), nodes)
        nodes[name] = code.create_node(op, target, args, kwargs, name)
        nodes[name].meta = {STACK: stack}
    return code


def _resolve(value: Any, nodes: Mapping[str, fx.Node]) -> Any:
    if isinstance(value, _Named):
        return nodes[value.name]
    if isinstance(value, dict):
        return {k: _resolve(v, nodes) for k, v in value.items()}
    if isinstance(value, slice):
        return slice(*(_resolve(v, nodes) for v in (value.start, value.stop, value.step)))
    return type(value)(_resolve(v, nodes) for v in value) if isinstance(value, (tuple, list)) else value


class _Names:
    """What compiled code reads attributes from: the user's names and the slots, nothing else of a program."""

    def __init__(self, program: Program) -> None:
        self.__program = program

    def __getattr__(self, name: str) -> Any:
        return fetch(self.__program, name)


def _prefixes(name: str) -> list[str]:
    """Names of the modules that a dotted name lies in."""
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def _zeros(like: Tensor, floating: torch.dtype | None, device: torch.device) -> Tensor:
    dtype = floating if floating is not None and like.is_floating_point() else like.dtype
    return torch.zeros(like.shape, dtype=dtype, device=device)


def fetch(root: nn.Module, name: str) -> Any:
    """The tensor or module at a dotted name.

    Looked up in the modules' own tables: as attributes, names of ours would hide those of the user.
    """
    found: Any = root
    for part in name.split("."):
        found = next(table[part] for table in _tables(found) if part in table)
    return found


def assign(root: nn.Module, name: str, value: Tensor | nn.Module, *, persistent: bool = True) -> None:
    """Put a tensor or module at a dotted name, making plain containers on the way.

    A taken name keeps its place in the state_dict. A buffer that is not `persistent` is left out of it.
    """
    *path, last = name.split(".")
    for part in path:
        modules = vars(root)["_modules"]
        root = modules.setdefault(part, nn.Module())
    kind = "_modules" if isinstance(value, nn.Module) else "_parameters"
    kind = kind if isinstance(value, (nn.Module, nn.Parameter)) else "_buffers"
    for table in _tables(root):
        if table is not vars(root)[kind]:
            table.pop(last, None)
    vars(root)[kind][last] = value
    if not persistent:
        vars(root)["_non_persistent_buffers_set"].add(last)


def remove(root: nn.Module, name: str) -> None:
    """Forget the tensor or module at a dotted name."""
    path, _, last = name.rpartition(".")
    parent = fetch(root, path) if path else root
    for table in _tables(parent):
        table.pop(last, None)
    vars(parent)["_non_persistent_buffers_set"].discard(last)


def _tables(module: nn.Module) -> tuple[dict[str, Any], ...]:
    """Where a module keeps its parameters, buffers and children."""
    return tuple(vars(module)[kind] for kind in ("_parameters", "_buffers", "_modules"))


def slot_name(*parts: str) -> str:
    """Dotted name of a slot, one level below `slots`; different parts give different names."""
    return f"{SLOTS}." + ":".join(part.replace(".", "/") for part in parts)


def graph_module(code: fx.Graph, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A module that runs a graph over tensors of plain names; flat inputs, flat results."""
    return fx.GraphModule(dict(tensors), code)


def empty_code() -> fx.Graph:
    """A graph without nodes."""
    return fx.Graph()
