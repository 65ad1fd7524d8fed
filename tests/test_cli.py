"""The command line: what there is, what it prints, how it fails."""

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import typer

import zerobit
from commands import copied, invoke
from zerobit.cli import app
from zerobit.cost.registry import cost_names, named_cost
from zerobit.options import MethodOptions, asked_costs, make_method
from zerobit.plan import Plan
from zerobit.search.methods import METHODS

COMMANDS: dict[str, set[str]] = {
    "demo": {"--out", "--seed"},
    "train": {
        "--task", "--data", "--model", "--out", "--epochs", "--lr", "--batch", "--seed", "--device", "--download",
    },
    "search": {
        "--task", "--data", "--model", "--budget", "--target", "--max-drop", "--strength", "--out", "--float",
        "--float-epochs",
        "--method", "--weight-bits", "--activation-bits", "--granularity", "--shared", "--sampling", "--power-of-two",
        "--plan", "--frozen", "--bits", "--min-channels", "--multiple-of", "--epochs",
        "--lr", "--distillation", "--batch", "--seed", "--device", "--download",
    },
    "inspect": {"--input", "--frozen", "--bits", "--min-channels", "--multiple-of", "--json", "target"},
    "profile": {
        "--input", "--runtime", "--out", "--weight-bits", "--activation-bits", "--grid", "--multiple-of", "--rounds",
        "--seed", "model",
    },
    "targets": {"--target"},
    "cost": {"--target", "--data", "run"},
    "export": {"--format", "--container", "--weights", "--name", "--out", "--data", "run"},
    "verify": {"--data", "run"},
}  # fmt: skip


def test_commands_and_options_are_these() -> None:
    group: Any = typer.main.get_command(app)
    found = {name: {p.opts[0] for p in command.params} for name, command in group.commands.items()}
    assert found == COMMANDS


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_explains_every_option(command: str) -> None:
    result = invoke(*command.split(), "--help")
    assert result.exit_code == 0
    text = re.sub(r"\x1b\[[0-9;]*m", "", result.output)
    assert all(name.lstrip("-") in text.lower() for name in COMMANDS.get(command, COMMANDS))


def test_no_command_shows_the_help() -> None:
    assert "search" in invoke().output


def test_targets_lists_every_name_and_those_of_the_user(tmp_path: Path) -> None:
    text = files("zerobit.cost").joinpath("targets").joinpath("mpic.toml").read_text(encoding="utf-8")
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    result = invoke("targets", "--target", tmp_path / "mine.toml")
    assert result.exit_code == 0, result.output
    for name in (*cost_names(), "mine.cycles", "mine.energy"):
        assert name in result.output


def test_inspect_shows_layers_and_groups() -> None:
    result = invoke("inspect", "zerobit.zoo.models:resnet8", "--input", "1,3,32,32")
    assert result.exit_code == 0, result.output
    assert "77,360 weights" in result.output
    assert "12,501,632 MACs" in result.output
    assert "block2.conv1" in result.output


def test_inspect_speaks_json() -> None:
    result = invoke("inspect", "zerobit.zoo.models:resnet8", "--input", "1x3x32x32", "--json")
    found = json.loads(result.stdout)
    assert (found["weights"], found["macs"], found["bytes_at_8_bit"]) == (77_360, 12_501_632, 77_360)
    assert len(found["layers"]) == 10
    assert sum(layer["weights"] for layer in found["layers"]) == 77_360
    kept = {g["name"]: g["kept_because"] for g in found["groups"] if g["kept_because"]}
    assert kept == {"classifier": "an output of the network"}
    assert found["barriers"] == []
    assert found["searched_share"] == 1.0


def test_inspect_shows_what_wishes_do() -> None:
    result = invoke(
        "inspect", "zerobit.zoo.models:resnet8", "--input", "1,3,32,32", "--json",
        "--frozen", "block1.conv2", "--bits", "conv=8", "--bits", "block3=0,4,8", "--min-channels", "block2=5",
        "--multiple-of", "8",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    rows = {row["name"]: row for row in found["layers"]}
    assert rows["conv"]["bits"] == [8]
    assert rows["block1.conv2"]["bits"] == []
    assert rows["block1.conv2"]["float_because"] == "frozen by the user"
    assert rows["block3.conv1"]["bits"] == [0, 4, 8]
    groups = {group["name"]: group for group in found["groups"]}
    assert (groups["block2.conv1"]["at_least"], groups["block2.conv1"]["multiple_of"]) == (8, 8)
    assert [weight["name"] for weight in found["float_weights"]] == ["block1.conv2.weight"]


def test_inspect_takes_named_and_integer_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "two_inputs_net.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.table, self.fc = torch.nn.Embedding(9, 4), torch.nn.Linear(4, 3)\n"
        "    def forward(self, tokens, scale):\n"
        "        return self.fc(self.table(tokens).mean(1) * scale)\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    result = invoke("inspect", "two_inputs_net:Net", "--input", "2,5:int64", "--input", "scale=2,4", "--json")
    assert result.exit_code == 0, result.output
    assert [row["name"] for row in json.loads(result.stdout)["layers"]] == ["table", "fc"]


def test_a_fixed_width_needs_no_budget_and_the_plan_of_a_run_is_trained_again(run: Path, tmp_path: Path) -> None:
    for given, share in ((("--weight-bits", 4), 0.5), (("--plan", run / "plan.json"), 0.25)):
        folder = tmp_path / given[0]
        result = invoke(
            "search", "--method", "fixed", *given, "--float", run / "float.safetensors", "--epochs", 1, 0,
            "--batch", 256, "--device", "cpu", "--out", folder,
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        stages = {s["name"]: s for s in json.loads((folder / "run.json").read_text(encoding="utf-8"))["stages"]}
        assert 0.95 * share * 19_408 < stages["exported"]["size"] <= share * 19_408
    plans = [Plan.from_json((path / "plan.json").read_text(encoding="utf-8")) for path in (run, folder)]
    assert plans[0].hash == plans[1].hash


def test_a_plan_of_another_network_is_found_before_any_training(run: Path, tmp_path: Path) -> None:
    result = invoke(
        "search", "--method", "fixed", "--plan", run / "plan.json", "--model", "dscnn", "--out", tmp_path / "run"
    )
    assert result.exit_code == 2, result.output
    assert "`plan` has groups" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_the_options_that_it_is_said_to_take(name: str) -> None:
    """And is made with them, by its name in the package."""
    values: dict[str, Any] = {
        "weight_bits": "0,2,4,8", "activation_bits": "4,8", "granularity": "channel", "shared": True,
        "sampling": "gumbel", "power_of_two": True,
    }  # fmt: skip
    given = {option: value for option, value in values.items() if option in METHODS[name].options}
    if name == "fixed":
        given = {"weight_bits": "6", "activation_bits": "4"}
    made = make_method(name, MethodOptions(**given))
    assert type(made) is METHODS[name].load() is getattr(zerobit, METHODS[name].type_name)
    for option, value in given.items():
        field = {"power_of_two": "restrict"}.get(option, option)
        widths = tuple(int(b) for b in str(value).split(",")) if option.endswith("bits") else None
        assert getattr(made, field) == (widths or ("power_of_two" if option == "power_of_two" else value))


def test_a_softmax_suits_itself_to_a_device_unless_it_is_told() -> None:
    asked = MethodOptions(activation_bits="4,8")
    for budget, granularity in (("size=25%", "channel"), ("ne16.cycles=25%", "layer")):
        made = make_method("softmax", asked, lambda entry=budget: asked_costs([entry], None, None, ()))
        assert isinstance(made, zerobit.ChannelSoftmax)
        assert made.granularity == granularity
    told = make_method("softmax", MethodOptions(granularity="channel"), lambda: [named_cost("ne16")])
    assert isinstance(told, zerobit.ChannelSoftmax)
    assert told.granularity == "channel"
    assert make_method("softmax") is None


def test_a_search_leaves_everything_in_its_folder(run: Path) -> None:
    names = {p.name for p in run.iterdir()}
    assert {"run.json", "plan.json", "small.safetensors", "model.onnx", "report.html", "float.safetensors"} <= names
    assert not [n for n in names if n.endswith(".tmp")]
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert (record["task"], record["model"]) == ("digits", "digits")
    stages = {s["name"]: s for s in record["stages"]}
    assert list(stages) == ["float", "searched", "fine-tuned", "exported"]
    assert stages["exported"]["size"] <= 0.25 * 19_408
    assert stages["float"]["size"] == 4 * 19_408
    assert [s["seconds"] > 0 for s in stages.values()] == [False, True, True, False]


def test_the_same_command_again_resumes(run: Path, tmp_path: Path) -> None:
    folder = copied(run, tmp_path)
    before = {n: (folder / n).read_bytes() for n in ("plan.json", "small.safetensors", "model.onnx")}
    result = invoke(
        "search", "--task", "digits", "--budget", "size=25%", "--float-epochs", 1, "--epochs", 1, 1,
        "--batch", 256, "--device", "cpu", "--out", folder,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert {n: (folder / n).read_bytes() for n in before} == before


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("search", "--budget", "size=lots"), "`budget` for size is 'lots'"),
        (("search", "--budget", "25%"), "`budget` is '25%'"),
        (("search", "--budget", "weight=25%"), "`budget` names the cost 'weight'"),
        (("search", "--budget", "size=25%", "--budget", "warp=25%"), "the cost 'warp'; allowed are size, macs"),
        (("search", "--budget", "ram=5ms"), "`budget` for ram is '5ms'"),
        (("search", "--budget", "mine=25%", "--target", "mine.toml"), "mine.toml"),
        (("targets", "--target", "nowhere:cost"), "`target` 'nowhere:cost' can't be imported"),
        (("search", "--budget", "size=25%", "--budget", "size=50%"), "`budget`"),
        (("search", "--budget", "size=25%", "--max-drop", "1"), "`budget`, `strength`, `max_drop`"),
        (("search",), "`budget`, `strength`, `max_drop`"),
        (("search", "--strength", "size=much"), "`strength`"),
        (("search", "--strength", "size"), "`strength` is 'size'"),
        (("search", "--strength", "size=-1"), "`strength`"),
        (("search", "--max-drop", "-1"), "`max_drop`"),
        (("search", "--budget", "size=25%", "--method", "guess"), f"`method` is 'guess'; allowed are {(*METHODS,)}"),
        (("search", "--budget", "size=25%", "--weight-bits", "0,1"), "`weight_bits`"),
        (("search", "--budget", "size=25%", "--weight-bits", "few"), "`weight_bits` is 'few'"),
        (("search", "--budget", "size=25%", "--activation-bits", "0,8"), "`activation_bits`"),
        (("search", "--budget", "size=25%", "--granularity", "kernel"), "`granularity` is 'kernel'"),
        (("search", "--weight-bits", "0,8"), "`budget`, `strength`, `max_drop`"),
        (
            ("search", "--budget", "size=25%", "--method", "djpq", "--sampling", "soft"),
            "`sampling` is 'soft'; `method` 'djpq' has no such option, allowed are --weight-bits, --activation-bits, "
            "--granularity, --power-of-two; leave it out",
        ),
        (("search", "--budget", "size=25%", "--method", "sequential", "--shared"), "`shared` is given; `method` 'seq"),
        (("search", "--budget", "size=25%", "--power-of-two"), "`power_of_two` is given; `method` 'softmax' has no"),
        (("search", "--budget", "size=25%", "--plan", "plan.json"), "`plan` is 'plan.json'; `method` 'softmax' has no"),
        (("search", "--method", "fixed", "--granularity", "layer"), "`granularity` is 'layer'; `method` 'fixed'"),
        (("search", "--method", "fixed"), "`weight_bits` or `plan`: neither is given"),
        (("search", "--method", "fixed", "--weight-bits", "4", "--plan", "p"), "`weight_bits` or `plan`: both"),
        (("search", "--method", "fixed", "--weight-bits", "2,4"), "`weight_bits` is '2,4'; `method` 'fixed' takes one"),
        (("search", "--method", "fixed", "--weight-bits", "1"), "`weight_bits` holds 1"),
        (("search", "--method", "fixed", "--weight-bits", "4", "--max-drop", "1"), "`max_drop` is 0.01, but `method`"),
        (("search", "--method", "fixed", "--plan", "nowhere.json"), "`plan` nowhere.json can't be read"),
        (("search", "--budget", "size=25%", "--sampling", "soft"), "`sampling` is 'soft'"),
        (("search", "--budget", "size=25%", "--task", "mnist"), "`task` is 'mnist'"),
        (("search", "--budget", "size=25%", "--model", "resnet9"), "`model` is 'resnet9'"),
        (
            ("search", "--budget", "size=25%", "--model", "resnet8"),
            "`model` is 'resnet8', which is made for images of (3, 32, 32); those of `task` 'digits' are (1, 8, 8)",
        ),
        (("train", "--model", "resnet8"), "`model` is 'resnet8'"),
        (("search", "--budget", "size=1B"), "the smallest reachable is"),
        (("search", "--method", "bsq", "--budget", "ne16=1%"), "the smallest reachable is"),
        (("search", "--method", "fixed", "--weight-bits", "8", "--budget", "size=25%"), "`budget` for size"),
        (("search", "--budget", "size=25%", "--epochs", "0", "0"), "`epochs` is (0, 0)"),
        (("search", "--budget", "size=25%", "--epochs", "-1", "3"), "`epochs` is (-1, 3)"),
        (("search", "--budget", "size=25%", "--float-epochs", "0"), "`float_epochs` is 0"),
        (("search", "--budget", "size=25%", "--lr", "-1"), "`lr` is -1.0"),
        (("search", "--budget", "size=25%", "--distillation", "5"), "`distillation` is 5.0"),
        (("train", "--lr", "nan"), "`lr` is nan"),
        (("search", "--budget", "size=25%", "--float", "nowhere.safetensors"), "`float`"),
        (("search", "--budget", "size=25%", "--task", "cifar10", "--data", "nowhere"), "`data`"),
        (("train", "--task", "cifar10", "--data", "nowhere"), "`data`"),
        (("train", "--task", "npz"), "`data`"),
        (("train", "--task", "npz", "--data", "nowhere.npz"), "`data`"),
        (("train", "--batch", "0", "--epochs", "1"), "`batch_size`"),
        (("train", "--seed", "-1"), "`seed`"),
        (("train", "--epochs", "0"), "`epochs`"),
        (("export", "nowhere"), "`run` nowhere"),
        (("verify", "nowhere"), "`run` nowhere"),
        (("inspect", "zerobit.zoo.models", "--input", "1,3"), "`target`"),
        (("inspect", "torch.nn:Linear", "--input", "1,3"), "`target` 'torch.nn:Linear' can't be called"),
        (("train", "--out", __file__), "which is a file; allowed is a folder"),
        (("search", "--budget", "size=25%", "--out", __file__), "which is a file; allowed is a folder"),
        (("inspect", "zerobit.zoo.models:resnet9", "--input", "1,3"), "`target`"),
        (("inspect", "no_such_module:net", "--input", "1,3"), "`target`"),
        (("inspect", "zerobit.zoo.models:resnet8", "--input", "1,3,a"), "`input`"),
        (("inspect", "zerobit.zoo.models:resnet8", "--input", "1,3:int9"), "`input`"),
        (("search", "--budget", "size=25%", "--frozen", "clasifier"), "`frozen` has the pattern 'clasifier'"),
        (("search", "--budget", "size=25%", "--bits", "8"), "`bits` is '8'"),
        (("search", "--budget", "size=25%", "--bits", "conv=many"), "`bits` is 'conv=many'"),
        (("search", "--budget", "size=25%", "--bits", "conv=9"), "`bits['conv']`"),
        (("search", "--budget", "size=25%", "--min-channels", "some"), "`min_channels` is ['some']"),
        (("search", "--budget", "size=25%", "--min-channels", "0"), "`min_channels` is 0"),
        (("search", "--budget", "size=25%", "--multiple-of", "4", "--multiple-of", "8"), "`multiple_of` is ['4', '8']"),
        (("inspect", "zerobit.zoo.models:resnet8", "--input", "1,3,0,32"), "`input`"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, tuple) else "",
)
def test_mistakes_end_with_one_line_that_names_them(
    arguments: tuple[str, ...], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert named in line
    assert list(tmp_path.iterdir()) == [], "nothing is written before a mistake is found"


def test_an_unknown_option_is_a_usage_error() -> None:
    assert invoke("search", "--bugdet", "size=25%").exit_code == 2
