"""From an `nn.Module` to a `Program` of our own, through torch.export."""

import contextlib
import copy
import inspect
import io
import itertools
import logging
import operator
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, export
from torch.export.graph_signature import OutputKind
from torch.fx.experimental.symbolic_shapes import is_concrete_int

from zerobit.errors import CaptureError
from zerobit.graph.edits import DROPOUTS, make_dropout_modal
from zerobit.graph.program import STACK, OpOverload, Program, Structure, map_nodes

#: Checks that the exporter adds; they hold types and sizes fast that may change later.
_CHECKS = (
    "aten._assert_tensor_metadata.default",
    "aten._assert_scalar.default",
    "aten.sym_constrain_range.default",
    "aten.sym_constrain_range_for_size.default",
)
#: Calls that can return their input itself, though their schema does not say so.
_RETURN_INPUT = (*DROPOUTS, "aten.type_as.default")


class FloatProgram(Program):
    """A captured network in float, without slots; computes what the model computes in evaluation mode."""


def capture(model: nn.Module, example: Any, kwargs: Mapping[str, Any] | None = None) -> FloatProgram:
    """Capture a model as a program whose parameters are copies under the same names.

    Args:
        model: any module that torch.export takes; it is copied and never changed.
        example: a tensor, or a tuple of positional inputs; dimension 0 of the first tensor, and of all of
            that size there, is the batch and becomes free.
        kwargs: named inputs, if the model takes any.

    Raises:
        CaptureError: torch.export can't take the model, or `example` doesn't fit it.
    """
    args = example if isinstance(example, tuple) else (example,)
    inputs = (args, dict(kwargs or {}))
    twin = _twin(model)
    exported, inputs, is_fixed = _export(twin, inputs)
    names = _first_names(twin)
    code = _own_code(exported, names)
    _drop_counters(code, type(model).__name__)
    if not _make_functional(code):
        code = _own_code(_decomposed(exported), names)
        _undo_decompositions(code)
    free = _free_inputs(exported)
    tensors = _copied_tensors(twin, exported)
    nesting: Any = exported.call_spec
    structure = Structure(
        nesting.in_spec,
        nesting.out_spec,
        free,
        frozenset(tensors) - frozenset(twin.state_dict()),
        _branches(exported, code),
    )
    flat = nesting.in_spec.flatten_up_to(inputs)
    single = [x[:1] if is_free and not is_fixed else x for x, is_free in zip(flat, free, strict=True)]
    program = FloatProgram(code, tensors, structure, single)
    make_dropout_modal(program)
    program.changed()
    return program.eval()


def _twin(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model).eval()
    except Exception as error:
        msg = (
            f"`model` ({type(model).__name__}) can't be copied: {_brief(error)}. A model must survive "
            "copy.deepcopy; delete what hooks or an earlier run left in it, or capture a freshly built model"
        )
        raise CaptureError(msg) from None


def _brief(error: Exception) -> str:
    """Type and first line of an error."""
    line = " ".join(str(error).strip().splitlines()[:1])
    return f"{type(error).__name__}: {line[:300]}"


def _export(model: nn.Module, inputs: Any) -> tuple[ExportedProgram, Any, bool]:
    """torch.export with a free batch.

    A model that fixes its batch is taken with what torch finds free, or for the example's batch alone.

    Returns:
        The export; the inputs it was made with; whether some batch sizes are ruled out.
    """
    repeated = _repeat_single(inputs)
    first: Exception | None = None
    # An example of batch 1 is not repeated for a model that wants just that.
    for given, size in ((repeated, Dim("batch")), (repeated, Dim.AUTO), (inputs, None)):
        args, kwargs = given
        try:
            shapes = None if size is None else _dynamic(_bound(model, given), _batch_size(given), size)
            with _quiet():
                exported = export(model, args, kwargs or None, dynamic_shapes=shapes, strict=False)
        except Exception as error:  # torch.export raises many types; all mean "not this way"
            first = first or error
            continue
        if first is None:
            return exported, given, False
        if size is None or any(_free_inputs(exported)):
            sizes = "what torch finds free" if size else f"batches of {_batch_size(given)} only"
            text = f"the model fixes its batch size ({_brief(first)}); it was captured for {sizes}"
            warnings.warn(text, stacklevel=3)
            return exported, given, True
    assert first is not None
    msg = (
        f"`model` ({type(model).__name__}) can't be captured by torch.export: {_brief(first)}. Check that "
        "`example` fits the model; branches on tensor values must be rewritten (torch.where, torch.cond)"
    )
    raise CaptureError(msg) from None


def _free_inputs(exported: ExportedProgram) -> tuple[bool, ...]:
    """For each flat input, whether torch keeps the size of dimension 0 open."""
    user_inputs = exported.graph_signature.user_inputs
    nodes = [n for n in exported.graph.nodes if n.op == "placeholder"][-len(user_inputs) :]
    shapes = [n.meta["val"].shape if isinstance(n.meta.get("val"), Tensor) else () for n in nodes]
    return tuple(len(shape) > 0 and not is_concrete_int(shape[0]) for shape in shapes)


def _bound(model: nn.Module, inputs: Any) -> dict[str, Any]:
    """Inputs by argument name, the form in which torch.export wants to hear about shapes."""
    args, kwargs = inputs
    return inspect.signature(model.forward).bind(*args, **kwargs).arguments


def _batch_size(inputs: Any) -> int | None:
    """Size of dimension 0 of the first tensor that has one."""
    return next((x.shape[0] for x in _tensors(inputs) if x.dim()), None)


def _is_batch(value: Any, batch: int | None) -> bool:
    return batch is not None and isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == batch


def _repeat_single(inputs: Any) -> Any:
    """Repeat examples of batch 1, which torch.export would take for a constant."""
    if _batch_size(inputs) != 1:
        return inputs
    return _map_leaves(lambda x: torch.cat([x, x]) if _is_batch(x, 1) else x, inputs)


def _dynamic(value: Any, batch: int | None, size: Any) -> Any:
    """Dimension 0 of every batched tensor free."""
    return _map_leaves(lambda x: {0: size} if _is_batch(x, batch) else None, value)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)


def _map_leaves(change: Callable[[Any], Any], value: Any) -> Any:
    """The same nest of tuples, lists and dicts with every leaf changed."""
    if isinstance(value, tuple) and type(value) is not tuple:
        # A named tuple takes its fields one by one.
        return type(value)(*(_map_leaves(change, v) for v in value))
    if isinstance(value, (tuple, list)):
        return type(value)(_map_leaves(change, v) for v in value)
    if isinstance(value, dict):
        result = copy.copy(value)
        result.update({k: _map_leaves(change, v) for k, v in value.items()})
        return result
    return change(value)


def _first_names(model: nn.Module) -> dict[str, str]:
    """Parameter or buffer name -> the first name of the same tensor, another one only if it is tied."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in _named_tensors(model)}


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _own_code(exported: ExportedProgram, first_names: Mapping[str, str]) -> fx.Graph:
    """The exported graph with parameters as attributes instead of arguments, and only the user's results."""
    signature = exported.graph_signature
    lifted = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    code = fx.Graph()
    own: dict[fx.Node, fx.Node] = {}
    attributes: dict[str, fx.Node] = {}
    for node in exported.graph.nodes:
        if node.op == "placeholder" and node.name in lifted:
            name = first_names.get(lifted[node.name], lifted[node.name])
            attributes[name] = own[node] = attributes.get(name) or code.get_attr(name)
        elif node.op == "output":
            is_result = [spec.kind is OutputKind.USER_OUTPUT for spec in signature.output_specs]
            results = tuple(itertools.compress(node.args[0], is_result))
            code.output(map_nodes(results, own.__getitem__))
        elif str(node.target) not in _CHECKS:
            own[node] = code.node_copy(node, own.__getitem__)
            # All else that the exporter notes is of its own example, and could not be copied or stored.
            own[node].meta = {STACK: node.meta.get(STACK)}
            if node.op == "placeholder":  # an input may bear the name of a parameter
                own[node].target = own[node].name
    code.eliminate_dead_code()
    return code


def _branches(exported: ExportedProgram, code: fx.Graph) -> dict[str, nn.Module]:
    """Code of control flow that the graph refers to."""
    read = {n.target for n in code.nodes if n.op == "get_attr"}
    return {name: module for name, module in exported.graph_module.named_children() if name in read}


def _copied_tensors(model: nn.Module, exported: ExportedProgram) -> dict[str, Tensor]:
    """Own copies of the model's tensors and of constants in its code; tied parameters stay tied."""
    named = dict(_named_tensors(model))
    constants: Any = exported.constants
    for name in exported.graph_signature.inputs_to_lifted_tensor_constants.values():
        named.setdefault(name, constants[name])
    copies: dict[int, Tensor] = {}
    for tensor in named.values():
        new = tensor.detach().clone()
        is_parameter = isinstance(tensor, nn.Parameter)
        copies[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if is_parameter else new
    return {name: copies[id(tensor)] for name, tensor in named.items()}


def _written(node: fx.Node) -> fx.Node | None:
    """What a call changes in place, if it does and this is its first argument."""
    if node.op != "call_function" or not isinstance(node.target, OpOverload) or not _schema(node).is_mutable:
        return None
    info = _schema(node).arguments[0].alias_info
    first = node.args[0] if node.args else None
    return first if info is not None and info.is_write and isinstance(first, fx.Node) else None


def _schema(node: fx.Node) -> Any:
    return node.target._schema  # pyright: ignore


def _memory(node: fx.Node) -> fx.Node:
    """The node whose memory the result of a call may lie in: itself, or what it is a view of."""
    while node.op == "call_function" and node.args and isinstance(node.args[0], fx.Node) and _may_alias(node):
        node = node.args[0]
    return node


def _may_alias(node: fx.Node) -> bool:
    if node.target is operator.getitem or str(node.target) in _RETURN_INPUT:
        return True
    returns = _schema(node).returns if isinstance(node.target, OpOverload) else ()
    return any(result.alias_info is not None for result in returns)


def _drop_counters(code: fx.Graph, model: str) -> None:
    """Take out writes to buffers that no result depends on.

    Raises:
        CaptureError: results depend on them, so that one call would change the next.
    """
    writes = [n for n in code.nodes if (w := _written(n)) is not None and _memory(w).op == "get_attr"]
    states = {_memory(n) for n in writes}
    for node in reversed(writes):
        if not node.users:
            code.erase_node(node)
    code.eliminate_dead_code()
    left = [str(state.target) for state in states if state.users]
    if left:
        msg = (
            f"`model` ({model}) changes its buffer `{left[0]}` in evaluation mode and reads it, so that one "
            "call changes the next; a network must compute the same from the same inputs; "
            "take the state as an input and return the new one"
        )
        raise CaptureError(msg)


def _make_functional(code: fx.Graph) -> bool:
    """Replace in-place calls by their functional form and let later readers read the result.

    Returns:
        Whether that was enough. It is not where a changed tensor is also read under another name, as a view.
    """
    nodes = list(code.nodes)
    position = {node: i for i, node in enumerate(nodes)}
    memory = {node: _memory(node) for node in nodes}
    for i, node in enumerate(nodes):
        changed = _written(node)
        if changed is None:
            if isinstance(node.target, OpOverload) and _schema(node).is_mutable:
                return False
            continue
        functional = _functional_form(node)
        others = [n for n in nodes[:i] if n is not changed and memory[n] is memory[changed]]
        if functional is None or any(position[user] > i for other in others for user in other.users):
            return False
        node.target = functional
        for reader in [user for user in changed.users if position[user] > i]:
            reader.replace_input_with(changed, node)
    return True


def _functional_form(node: fx.Node) -> Any:
    """aten.relu for aten.relu_; None if there is no such call of the same arguments."""
    name, overload = _schema(node).name.split("::")[-1], _schema(node).overload_name
    packet = getattr(torch.ops.aten, name[:-1], None) if name.endswith("_") and not name.endswith("__") else None
    functional = getattr(packet, overload or "default", None)
    if functional is None:
        return None
    ours, theirs = _schema(node).arguments, functional._schema.arguments
    fits = [str(a.type) for a in ours] == [str(a.type) for a in theirs]
    return functional if fits and set(node.kwargs) <= {a.name for a in theirs} else None


def _decomposed(exported: ExportedProgram) -> ExportedProgram:
    """The export with writes into views made functional by torch, which knows how; it loses dropout."""
    if any(str(n.target).replace("_.", ".") in DROPOUTS for n in exported.graph.nodes):
        warnings.warn("the model writes into parts of tensors in place; its dropout is left out", stacklevel=3)
    with _quiet():
        return exported.run_decompositions({})


@contextlib.contextmanager
def _quiet() -> Generator[None, None, None]:
    """Without warnings, logs and prints: the exporter's are about its own workings, and what fails raises."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _undo_decompositions(code: fx.Graph) -> None:
    """Give BatchNorm its own call again, and views the form that takes inputs of any memory layout."""
    for node in list(code.nodes):
        if str(node.target) == "aten.view.default":
            node.target = torch.ops.aten.reshape.default
        elif str(node.target) == "aten._native_batch_norm_legit_no_training.default":
            x, weight, bias, mean, var, momentum, eps = node.args
            (first,) = node.users
            with code.inserting_before(node):
                arguments = (x, weight, bias, mean, var, False, momentum, eps, False)
                norm = code.call_function(torch.ops.aten.batch_norm.default, arguments)
            norm.meta = node.meta
            first.replace_all_uses_with(norm)
            code.erase_node(first)
            code.erase_node(node)
