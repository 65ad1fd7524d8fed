"""The command line. Each command says what it did, where the files are, and shows a table."""

import json
import shlex
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from zerobit.errors import ZerobitError

app = typer.Typer(
    name="zerobit",
    help="Prune trained PyTorch networks and quantise them to mixed precision, down to a proven integer network.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# Brackets are no markup: layers, paths and extras such as 'zerobit[onnx]' have them in their names.
console = Console(markup=False)
errors = Console(stderr=True, markup=False)

Task = Annotated[str, typer.Option(help="digits, cifar10 or npz")]
Data = Annotated[Path | None, typer.Option(help="folder or file with the task's data; digits needs none")]
Model = Annotated[
    str | None,
    typer.Option(
        help="network of the zoo: digits, resnet8, dscnn, vgg7, resnet18 or mobilenet_v2; the task's own if left out"
    ),
]
Out = Annotated[Path, typer.Option(help="run folder to write; a killed run resumes from it")]
Seed = Annotated[int, typer.Option(help="of every random draw")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda")]
Batch = Annotated[int, typer.Option(help="samples per step")]
Download = Annotated[bool, typer.Option("--download", help="fetch the data if it is not there (cifar10)")]
Frozen = Annotated[
    list[str] | None, typer.Option(help="PATTERN of layers that stay as they are, such as head.*; may be repeated")
]
Bits = Annotated[
    list[str] | None, typer.Option(help="PATTERN=WIDTHS of weights, such as stem=8 or head=4,8; may be repeated")
]
MinChannels = Annotated[
    list[str] | None, typer.Option(help="NUMBER of channels that every group keeps, or PATTERN=NUMBER")
]
MultipleOf = Annotated[list[str] | None, typer.Option(help="channels stay in multiples of NUMBER, or PATTERN=NUMBER")]
Target = Annotated[
    list[str] | None,
    typer.Option(help="a device of your own that a budget can name: FILE.toml, FILE.csv or MODULE:NAME"),
]
RunFolder = Annotated[Path, typer.Argument(help="run folder that `zerobit search` wrote")]


def _guarded(command: Callable[..., None]) -> Callable[..., None]:
    """User mistakes end with one message and exit code 2, without a traceback."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (ZerobitError, ValueError, OSError, ImportError) as error:
            errors.print(f"error: {error}", style="red", highlight=False, soft_wrap=True)
            raise typer.Exit(2) from None

    return run


@app.command()
@_guarded
def demo(
    out: Out = Path("zerobit-demo"),
    seed: Seed = 0,
) -> None:
    """Train a small network on real digits, compress it to a quarter of its 8-bit size, export and verify it."""
    from zerobit.workflows import Settings, compress_task, train_task

    settings = Settings(task="digits", out=out, seed=seed, batch=32, device="cpu", command=_command())
    console.print("1. Train the float network on scikit-learn's handwritten digits.")
    train_task(settings, epochs=15, console=console)
    console.print("2. Search widths 0 (removed), 2, 4 and 8 bit per channel under size=25%, cut, fine-tune.")
    compress_task(settings, budget=["size=25%"], epochs=(20, 10), console=console)
    console.print("3. Run the compressed network in every runtime that is here, and compare every layer with integers.")
    _verify(out, None)


@app.command()
@_guarded
def train(
    task: Task = "digits",
    data: Data = None,
    model: Model = None,
    out: Out = Path("float-run"),
    epochs: Annotated[int, typer.Option(help="passes over the training data")] = 40,
    lr: Annotated[float, typer.Option(help="peak learning rate of the cycle")] = 0.2,
    batch: Batch = 128,
    seed: Seed = 0,
    device: Device = "auto",
    download: Download = False,
) -> None:
    """Train a float network of the zoo."""
    from zerobit.workflows import Settings, train_task

    settings = Settings(
        task=task, out=out, data=data, model=model, seed=seed, batch=batch, device=device, download=download,
        command=_command(),
    )  # fmt: skip
    train_task(settings, epochs=epochs, lr=lr, console=console)


@app.command()
@_guarded
def search(
    task: Task = "digits",
    data: Data = None,
    model: Model = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(help="COST=LIMIT, such as size=25%, ram=48kB or ne16.cycles=1e5; may be repeated"),
    ] = None,
    target: Target = None,
    max_drop: Annotated[float | None, typer.Option(help="points lost at most; finds the smallest network")] = None,
    strength: Annotated[str | None, typer.Option(help="COST=STRENGTH instead of a budget, such as size=0.5")] = None,
    out: Out = Path("run"),
    float_: Annotated[
        Path | None,
        typer.Option("--float", help="float network from `zerobit train`; trained in the run if left out"),
    ] = None,
    float_epochs: Annotated[int, typer.Option(help="epochs of that training")] = 40,
    method: Annotated[
        str,
        typer.Option(
            help="softmax, djpq, fracbits or bsq; sequential, which prunes first and quantises then; "
            "or fixed, which trains at given widths and needs no budget"
        ),
    ] = "softmax",
    weight_bits: Annotated[
        str | None, typer.Option(help="WIDTHS offered to weights, such as 0,2,4,8; 0 removes channels; one with fixed")
    ] = None,
    activation_bits: Annotated[str | None, typer.Option(help="WIDTHS offered to activations, such as 4,8")] = None,
    granularity: Annotated[
        str | None, typer.Option(help="a width per channel or per layer (djpq: tensor or channel); not with fixed")
    ] = None,
    shared: Annotated[bool, typer.Option("--shared", help="softmax: the published coupled form")] = False,
    sampling: Annotated[str | None, typer.Option(help="softmax: hard, softmax or gumbel; hard if left out")] = None,
    power_of_two: Annotated[
        bool, typer.Option("--power-of-two", help="djpq: only 2, 4 and 8 bit, but for layers of --bits")
    ] = False,
    plan: Annotated[Path | None, typer.Option(help="fixed: plan.json of a run, instead of one width")] = None,
    frozen: Frozen = None,
    bits: Bits = None,
    min_channels: MinChannels = None,
    multiple_of: MultipleOf = None,
    epochs: Annotated[tuple[int, int], typer.Option(help="of search and of fine-tuning")] = (8, 4),
    lr: Annotated[float, typer.Option(help="of weights, bit planes and ranges")] = 1e-3,
    distillation: Annotated[float, typer.Option(help="share of the loss from the float network")] = 0.5,
    batch: Batch = 128,
    seed: Seed = 0,
    device: Device = "auto",
    download: Download = False,
) -> None:
    """Compress a network of the zoo: search, cut, fine-tune, export."""
    from zerobit.options import MethodOptions, asked_costs, make_control, make_method
    from zerobit.workflows import Settings, compress_task

    asked = MethodOptions(weight_bits, activation_bits, granularity, shared, sampling, power_of_two, plan)
    settings = Settings(
        task=task, out=out, data=data, model=model, seed=seed, batch=batch, device=device, download=download,
        command=_command(),
    )  # fmt: skip
    compress_task(
        settings,
        budget=budget,
        max_drop=None if max_drop is None else max_drop / 100,
        strength=strength,
        targets=target or (),
        float_path=float_,
        float_epochs=float_epochs,
        method=make_method(method, asked, lambda: asked_costs(budget, max_drop, strength, target or ())),
        control=make_control(frozen, bits, min_channels, multiple_of),
        epochs=epochs,
        lr=lr,
        distillation=distillation,
        console=console,
    )


@app.command()
@_guarded
def inspect(
    target: Annotated[str, typer.Argument(help="MODULE:FACTORY, a function that returns a model")],
    input_: Annotated[
        list[str],
        typer.Option("--input", help="shape with its batch, such as 1,3,32,32 or tokens=1,16:int64; one per input"),
    ],
    frozen: Frozen = None,
    bits: Bits = None,
    min_channels: MinChannels = None,
    multiple_of: MultipleOf = None,
    as_json: Annotated[bool, typer.Option("--json", help="for machines")] = False,
) -> None:
    """Show what zerobit makes of a model: what can be removed and quantised, what can't, and why."""
    from zerobit.options import make_control
    from zerobit.workflows import inspect_model

    found = inspect_model(target, input_, make_control(frozen, bits, min_channels, multiple_of))
    if as_json:
        sys.stdout.write(json.dumps(found.as_dict(), indent=2) + "\n")
        return
    found.show(console)


@app.command()
@_guarded
def profile(
    model: Annotated[
        str, typer.Argument(help="network of the zoo, or MODULE:FACTORY, a function that returns a model")
    ],
    input_: Annotated[
        list[str] | None,
        typer.Option("--input", help="as of inspect, such as 1,3,32,32; the zoo's own if left out"),
    ] = None,
    runtime: Annotated[
        str, typer.Option(help="onnxruntime, or an NPU whose compiler estimates, such as ethos-u55-128 (zerobit[npu])")
    ] = "onnxruntime",
    out: Annotated[
        Path, typer.Option(help="TOML file of the fit; the measurements go to the CSV file beside it")
    ] = Path("profile.toml"),
    weight_bits: Annotated[str, typer.Option(help="WIDTHS of weights to measure")] = "2,4,8",
    activation_bits: Annotated[str, typer.Option(help="WIDTHS of activations to measure")] = "8",
    grid: Annotated[int, typer.Option(help="channel counts of inputs and outputs, in equal steps up to all")] = 4,
    multiple_of: Annotated[int, typer.Option(help="measure channel counts that are multiples of this, or all")] = 16,
    rounds: Annotated[int, typer.Option(help="how often each configuration is timed")] = 40,
    seed: Seed = 0,
) -> None:
    """Measure the layers of a model, in a runtime here or by an NPU's compiler, and fit a cost for `--target`."""
    from zerobit.workflows import profile_model

    profile_model(
        model, input_ or [], out, runtime=runtime, weight_bits=weight_bits, activation_bits=activation_bits, grid=grid,
        multiple_of=multiple_of, rounds=rounds, seed=seed, command=_command(), console=console,
    )  # fmt: skip


@app.command()
@_guarded
def targets(target: Target = None) -> None:
    """List what a budget can limit: the names of all costs, their units, and where their figures are from."""
    from zerobit.workflows import cost_rows

    table = Table(title="What `--budget NAME=LIMIT` can limit", title_justify="left")
    for title in ("name", "unit", "what it is"):
        table.add_column(title, overflow="fold")
    for row in cost_rows(target or ()):
        table.add_row(*row)
    console.print(table)


@app.command()
@_guarded
def cost(
    run: RunFolder,
    target: Annotated[
        list[str] | None,
        typer.Option(help="ethos-u55-128 and the like (zerobit[npu]), or what `targets` lists; may be repeated"),
    ] = None,
    data: Data = None,
) -> None:
    """Show what a run's network costs: on targets, by the compiler of an NPU, and by formula."""
    from zerobit.deployment import cost_run, cost_table

    with console.status("compiling"):
        rows = cost_run(run, target or (), data)
    console.print(cost_table(rows))
    for note in filter(None, (row.note for row in rows)):
        console.print(note, highlight=False, soft_wrap=True)
    if any(row.cpu_operators for row in rows):
        console.print("Cycles have nothing of operators on the CPU.", highlight=False)


@app.command("export")
@_guarded
def export_(
    run: RunFolder,
    format_: Annotated[str, typer.Option("--format", help="onnx, c or tflite")] = "onnx",
    container: Annotated[
        str | None, typer.Option(help="onnx: packcast (2, 4, 8 bit packed), int8 or exact; packcast if left out")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="tflite: int8 or int4; int8 if left out")] = None,
    name: Annotated[str | None, typer.Option(help="c: what functions begin with; zb if left out")] = None,
    out: Annotated[Path | None, typer.Option(help="file, or folder of c; in RUN if left out")] = None,
    data: Data = None,
) -> None:
    """Write a run's network as a file or a C library that runs elsewhere."""
    from zerobit.coverage import show_float_ops
    from zerobit.deployment import FileOptions, export_run

    options = FileOptions.of(format_, container=container, weights=weights, name=name)
    written = export_run(run, format_, options, out, data)
    console.print(f"wrote {written.path}", highlight=False, soft_wrap=True)
    for fact in written.facts:
        console.print(f"  {fact}", highlight=False, soft_wrap=True)
    show_float_ops(written.float_ops, console)


@app.command()
@_guarded
def verify(run: RunFolder, data: Data = None) -> None:
    """Run a run's files wherever this machine can, and compare every layer; exit code 1 if any value differs."""
    _verify(run, data)


def _verify(run: Path, data: Path | None) -> None:
    from zerobit.coverage import show_float_ops
    from zerobit.deployment import comparison_table, runtime_table, trained_table, verify_run

    with console.status("") as status:
        outcome = verify_run(run, data, lambda text: status.update(f"comparing {text}"))
    console.print(runtime_table(outcome))
    for title, reason in outcome.skipped.items():
        console.print(f"not run: {title}, {reason}", highlight=False, soft_wrap=True)
    console.print(comparison_table(outcome))
    console.print(trained_table(outcome))
    show_float_ops(outcome.float_ops, console)
    if outcome.accuracy is not None and outcome.agreement is not None:
        different, values = (sum(getattr(row, n) for row in outcome.outputs) for n in ("differences", "values"))
        console.print(
            f"outputs of the ONNX file on all test samples: {different:,} of {values:,} values differ; "
            f"test accuracy {100 * outcome.accuracy:.2f} %, "
            f"same prediction as the trained network on {100 * outcome.agreement:.2f} % of samples",
            highlight=False,
        )
    if not outcome.layers:
        errors.print("NOTHING WAS COMPARED: no runtime is here; install one of those above", style="red")
        raise typer.Exit(1)
    if outcome.first_difference:
        errors.print(f"NOT EQUAL: {outcome.first_difference}", style="red")
        raise typer.Exit(1)
    console.print("equal in every value", style="green")


def _command() -> str:
    return shlex.join(["zerobit", *sys.argv[1:]])


def main() -> None:
    """Entry point."""
    app()
