"""From an `nn.Module` to a `Program` of our own, through torch.export."""

import contextlib
import copy
import io
import itertools
import logging
import operator
import warnings
from collections.abc import Container, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, export
from torch.export.graph_signature import OutputKind
from torch.fx.experimental.symbolic_shapes import is_concrete_int

from zerobit.errors import CaptureError
from zerobit.graph.dropped import dropped_in_training
from zerobit.graph.edits import DROPOUTS, make_dropout_modal
from zerobit.graph.functional import compute_constants, drop_counters, make_functional, undo_decompositions
from zerobit.graph.inputs import batch_size, free_dimensions, name_arguments, repeat_single
from zerobit.graph.limits import size_limits
from zerobit.graph.normalise import SIZES, normalise, sizes
from zerobit.graph.program import STACK, Program, Structure, map_nodes
from zerobit.graph.reasons import brief, where

#: Checks that the exporter adds; they hold types and sizes fast that may change later.
_CHECKS = (
    "aten._assert_tensor_metadata.default",
    "aten._assert_scalar.default",
    "aten.sym_constrain_range.default",
    "aten.sym_constrain_range_for_size.default",
)
#: Regions of other gradient or autocast settings, with the position of their code among the arguments.
_REGIONS = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4}


class FloatProgram(Program):
    """A captured network in float, without slots; computes what the model computes in evaluation mode."""


def capture(
    model: nn.Module, example: Any, kwargs: Mapping[str, Any] | None = None, *, free_size: bool = False
) -> FloatProgram:
    """Capture a model as a program whose parameters are copies under the same names.

    The program computes what the model computes in evaluation mode, bit for bit. Attention modules of torch have
    a second, fused implementation for evaluation that rounds otherwise; what is captured is the plain one, which
    `torch.backends.mha.set_fastpath_enabled(False)` selects. Regions without gradients (`torch.no_grad`) are
    trained like the rest.

    Args:
        model: any module that torch.export takes; it is copied and never changed.
        example: a tensor, or a tuple of positional inputs; dimension 0 of the first tensor, and of all of
            that size there, is the batch and becomes free.
        kwargs: named inputs, if the model takes any.
        free_size: whether dimensions from 2 on of floating inputs (height and width) become free as well, as
            far as the model allows it; one that fixes them is captured for the example's sizes.

    Raises:
        CaptureError: torch.export can't take the model, or `example` doesn't fit it.
    """
    args = example if isinstance(example, tuple) else (example,)
    twin = _twin(model)
    exported, inputs, is_fixed = _export(twin, (args, dict(kwargs or {})), free_size=free_size)
    names = _first_names(twin)
    code = _own_code(exported, names)
    constants = compute_constants(code, _lifted(exported, names), names)
    drop_counters(code, type(model).__name__)
    if not make_functional(code):
        code = _own_code(_decomposed(exported), names)
        undo_decompositions(code)
        constants = compute_constants(code, _lifted(exported, names), names)
    _finish(code)
    free = _free_dims(exported)
    read = {n.target for n in code.nodes if n.op == "get_attr"}
    constants = {n: t for n, t in {**_lifted(exported, names), **constants}.items() if n in read}
    tensors = _copied_tensors(twin, constants)
    nesting: Any = exported.call_spec
    structure = Structure(
        nesting.in_spec,
        nesting.out_spec,
        free,
        transient=frozenset(tensors) - frozenset(twin.state_dict()),
        branches=_branches(exported, code),
        limits=size_limits(_input_shapes(exported)) if free_size else (),
    )
    flat = nesting.in_spec.flatten_up_to(inputs)
    single = [x[:1] if 0 in dims and not is_fixed else x for x, dims in zip(flat, free, strict=True)]
    program = FloatProgram(code, tensors, structure, single)
    make_dropout_modal(program)
    program.structure = replace(structure, dropped=dropped_in_training(twin, program))
    return program.eval()


def _twin(model: nn.Module) -> nn.Module:
    # What a hook computed from parameters in the last call (weight_norm) can't be copied, but is computed anew.
    computed = [v for m in model.modules() for v in vars(m).values() if isinstance(v, Tensor) and not v.is_leaf]
    try:
        return copy.deepcopy(model, {id(v): v.detach().clone() for v in computed}).eval()
    except Exception as error:
        msg = (
            f"`model` ({type(model).__name__}) can't be copied: {brief(error)}. A model must survive "
            "copy.deepcopy; delete what hooks or an earlier run left in it, or capture a freshly built model"
        )
        raise CaptureError(msg) from None


def _export(model: nn.Module, inputs: Any, *, free_size: bool) -> tuple[ExportedProgram, Any, bool]:
    """torch.export with a free batch.

    A model that fixes its batch is taken with what torch finds free, or for the example's batch alone.

    Returns:
        The export; the inputs it was made with; whether some batch sizes are ruled out.
    """
    repeated = repeat_single(inputs)
    if free_size:
        exported = _with_free_size(model, repeated)
        if exported is not None:
            return exported, repeated, False
    first: Exception | None = None
    # An example of batch 1 is not repeated for a model that wants just that.
    for given, batch in ((repeated, Dim("batch")), (repeated, Dim.AUTO), (inputs, None)):
        try:
            exported = _try(model, given, batch)
        except Exception as error:  # torch.export raises many types; all mean "not this way"
            first = first or error
            continue
        if first is None:
            return exported, given, False
        if batch is None or any(_free_dims(exported)):
            allowed = "what torch finds free" if batch else f"batches of {batch_size(given)} only"
            place = where(first)
            text = (
                f"the model fixes its batch size ({brief(first)}{' at ' * bool(place)}{place}); "
                f"it was captured for {allowed}"
            )
            warnings.warn(text, stacklevel=3)
            return exported, given, True
    assert first is not None
    place = where(first)
    msg = (
        f"`model` ({type(model).__name__}) can't be captured by torch.export: {brief(first)}\n"
        f"{'at ' * bool(place)}{place}{chr(10) * bool(place)}"
        "Check that `example` fits the model; branches on tensor values must be rewritten (torch.where, "
        "torch.cond), and so must calls that leave torch (.item(), numpy)"
    )
    raise CaptureError(msg) from None


def _try(model: nn.Module, inputs: Any, batch: Any, size: Any = None) -> ExportedProgram:
    args, kwargs = inputs
    with _quiet(), _plain_attention():
        shapes = None
        if batch is not None:
            name_arguments(model, inputs)
            shapes = free_dimensions(model, inputs, batch, size)
        return export(model, args, kwargs or None, dynamic_shapes=shapes, strict=False)


def _with_free_size(model: nn.Module, inputs: Any) -> ExportedProgram | None:
    """The export with free batch and sizes, if twice the example's sizes are allowed as well."""
    try:
        exported = _try(model, inputs, Dim("batch"), Dim.AUTO)
    except Exception:
        return None
    flat = exported.call_spec.in_spec.flatten_up_to(inputs)  # pyright: ignore
    twice = [
        tuple(n * 2 if d and d in dims else n for d, n in enumerate(x.shape)) if isinstance(x, Tensor) else ()
        for x, dims in zip(flat, _free_dims(exported), strict=True)
    ]
    allowed = all(limit.allows(twice) for limit in size_limits(_input_shapes(exported)))
    return exported if allowed else None


def _input_shapes(exported: ExportedProgram) -> list[Sequence[Any]]:
    """For each flat input its sizes, symbolic where they are free; none of what is no tensor."""
    user_inputs = exported.graph_signature.user_inputs
    nodes = [n for n in exported.graph.nodes if n.op == "placeholder"][-len(user_inputs) :] if user_inputs else []
    return [n.meta["val"].shape if isinstance(n.meta.get("val"), Tensor) else () for n in nodes]


def _free_dims(exported: ExportedProgram) -> tuple[frozenset[int], ...]:
    """For each flat input, the dimensions whose size torch keeps open."""
    shapes = _input_shapes(exported)
    return tuple(frozenset(d for d, size in enumerate(shape) if not is_concrete_int(size)) for shape in shapes)


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
    own: dict[fx.Node, Any] = {}
    attributes: dict[str, fx.Node] = {}
    for node in exported.graph.nodes:
        if node.op == "placeholder" and node.name in lifted:
            name = first_names.get(lifted[node.name], lifted[node.name])
            attributes[name] = own[node] = attributes.get(name) or code.get_attr(name)
            own[node].meta = {SIZES: sizes(node.meta.get("val"))}
        elif node.op == "output":
            is_result = [spec.kind is OutputKind.USER_OUTPUT for spec in signature.output_specs]
            results = tuple(itertools.compress(node.args[0], is_result))
            code.output(map_nodes(results, own.__getitem__))
        else:
            _copy_node(node, code, own, exported.graph_module)
    code.eliminate_dead_code()
    return code


def _copy_node(node: fx.Node, code: fx.Graph, own: dict[fx.Node, Any], root: nn.Module) -> None:
    """Copy a call of the exporter into our code; `own` says what stands for which of its nodes."""
    if str(node.target) in _CHECKS:
        return
    source = node.all_input_nodes[0] if node.target is operator.getitem else None
    if source is not None and isinstance(own[source], tuple):
        own[node] = own[source][node.args[1]]
    elif _is_plain_region(node):
        position = _REGIONS[str(node.target)]
        region = getattr(root, str(node.args[position].target))  # pyright: ignore
        own[node] = _inlined(region, map_nodes(node.args[position + 1 :], own.__getitem__), code)
    else:
        own[node] = code.node_copy(node, own.__getitem__)
        # All else that the exporter notes is of its own example, and could not be copied or stored.
        own[node].meta = {STACK: node.meta.get(STACK), SIZES: sizes(node.meta.get("val"))}
        if node.op == "placeholder":  # an input may bear the name of a parameter
            own[node].target = own[node].name


def _is_plain_region(node: fx.Node) -> bool:
    """Whether a region computes the same without its setting: all but autocast that is on."""
    name = str(node.target)
    return name in _REGIONS and not (name == "wrap_with_autocast" and node.args[2])


def _inlined(region: fx.GraphModule, args: Sequence[Any], code: fx.Graph) -> tuple[Any, ...]:
    """Copy the code of a region; returns its results."""
    inputs = [n for n in region.graph.nodes if n.op == "placeholder"]
    own: dict[fx.Node, Any] = dict(zip(inputs, args, strict=True))
    for node in region.graph.nodes:
        if node.op == "output":
            return tuple(map_nodes(node.args[0], own.__getitem__))
        if node.op != "placeholder":
            _copy_node(node, code, own, region)
    raise AssertionError(region)


def _finish(code: fx.Graph) -> None:
    normalise(code)
    code.eliminate_dead_code()
    for node in code.nodes:
        node.meta.pop(SIZES, None)


def _branches(exported: ExportedProgram, code: fx.Graph) -> dict[str, nn.Module]:
    """Code of control flow that the graph refers to."""
    read = {n.target for n in code.nodes if n.op == "get_attr"}
    return {name: module for name, module in exported.graph_module.named_children() if name in read}


def _lifted(exported: ExportedProgram, names: Container[str]) -> dict[str, Tensor]:
    """Constants in the model's code, which are none of its parameters and buffers."""
    constants: Any = exported.constants
    lifted = exported.graph_signature.inputs_to_lifted_tensor_constants.values()
    return {name: constants[name] for name in lifted if name not in names}


def _copied_tensors(model: nn.Module, constants: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Own copies of the model's tensors and of constants in its code; tied parameters stay tied."""
    named = {**constants, **dict(_named_tensors(model))}
    copies: dict[int, Tensor] = {}
    for tensor in named.values():
        new = tensor.detach().clone()
        is_parameter = isinstance(tensor, nn.Parameter)
        copies[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if is_parameter else new
    return {name: copies[id(tensor)] for name, tensor in named.items()}


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


@contextlib.contextmanager
def _plain_attention() -> Generator[None, None, None]:
    """Without the fused attention of torch's evaluation mode, which would be one opaque call."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
