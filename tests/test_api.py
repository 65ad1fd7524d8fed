"""`compress`: every form of budget, the model untouched, and files that come back equal."""

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zerobit as zb
from killed import Killed, until
from zerobit.cost.usage import usage
from zerobit.report import layer_rows
from zerobit.zoo.data import Batches, Split, Task
from zerobit.zoo.tasks import load_task


class SmallNet(nn.Module):
    """A small network for images of 8 by 8."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(1, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.fc = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.conv1(x)))
        return self.fc(torch.relu(self.conv2(x)).mean((2, 3)))


def _part(split: Split, count: int) -> Split:
    return Split(split.x[:count], split.y[:count])


def _task() -> Task:
    return load_task("digits")


def _loaders() -> tuple[Batches, Batches]:
    task = _task()
    return Batches(_part(task.train, 96), task, 32, shuffle=True), Batches(_part(task.val, 60), task, 30)


def _compress(**arguments: Any) -> zb.Result:
    torch.manual_seed(0)
    model = arguments.pop("model", None) or SmallNet()
    train, val = _loaders()
    return zb.compress(
        model, train, val, epochs=arguments.pop("epochs", (1, 1)), device="cpu", progress=False, **arguments
    )


@pytest.fixture(scope="module")
def result() -> zb.Result:
    task = _task()
    return _compress(budget="30%", normalisation=zb.Normalisation(task.mean, task.std), test_loader=_loaders()[1])


FULL = 9 * 8 + 9 * 64 + 80  # bytes of SmallNet at 8 bit


@pytest.mark.parametrize(
    ("budget", "cost", "limit"),
    [
        ({"size": "25%"}, zb.cost.Size(), 0.25 * FULL),
        ("25%", zb.cost.Size(), 0.25 * FULL),
        ({"size": "0.4kB"}, zb.cost.Size(), 400),
        (300, zb.cost.Size(), 300),
        ({"macs": "50%"}, zb.cost.Macs(), 0.5 * (64 * 72 + 16 * 576 + 80)),
        ({"bops": "20%"}, zb.cost.Bops(), 0.2 * 64 * (64 * 72 + 16 * 576 + 80)),
        ({"mpic": 4e3}, zb.cost.TableLatency.load("mpic"), 4e3),
    ],
)
def test_every_form_of_budget_is_kept(budget: Any, cost: Any, limit: float) -> None:
    found = _compress(budget=budget)
    spent = float(cost(usage(found.graph, found.plan.net_bits())))
    assert 0.5 * limit < spent <= limit
    assert found.net.plan == found.plan
    assert [s.name for s in found.stages] == ["float", "searched", "fine-tuned"]
    assert found.stages[0].size == 4 * FULL
    if cost.name == "size":
        assert found.stages[-1].size == spent


def test_wishes_are_kept() -> None:
    model = SmallNet(channels=16)
    found = _compress(
        model=model, budget={"macs": "50%"}, frozen=["fc"], bits={"conv1": (0, 4), "conv2": (0, 8)},
        min_channels={"conv2": 6}, multiple_of=4,
    )  # fmt: skip
    assert set(found.plan.weights) == {"conv1.weight", "conv2.weight"}
    assert set(found.plan.weights["conv1.weight"].bits) <= {0, 4}
    assert set(found.plan.weights["conv2.weight"].bits) == {8}, "the frozen layer reads all of its channels"
    assert len(found.plan.kept["conv1"]) in (4, 8, 12)
    assert torch.equal(found.net.tensors()["fc.weight"], model.fc.weight)
    assert "min_channels {'conv2': 6}" in found.facts["control"]
    assert all(row.differences == 0 for row in found.verify() if row.inputs == "samples")


@pytest.mark.parametrize("wish", [{"frozen": ["head"]}, {"bits": {"head": 8}}, {"min_channels": 0}])
def test_a_wish_that_cannot_be_is_refused_before_training(wish: dict[str, Any]) -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        pytest.fail("training has begun")

    with pytest.raises(zb.ZerobitError, match=rf"`{next(iter(wish))}`"):
        _compress(budget="25%", loss=loss, **wish)


def test_a_strength_makes_smaller_the_larger_it_is() -> None:
    sizes = [_compress(strength=("size", s), epochs=(4, 0), choice_lr=0.3).stages[-1].size for s in (0.0, 30.0)]
    assert sizes[1] < sizes[0]


def test_max_drop_finds_a_small_network() -> None:
    found = _compress(max_drop=0.9)
    assert found.stages[-1].size < 0.1 * FULL
    assert found.stages[0].val is not None
    assert found.stages[-1].val is not None
    assert found.stages[0].val - found.stages[-1].val <= 0.9


def test_max_drop_tries_only_what_the_method_reaches() -> None:
    found = _compress(max_drop=0.9, method=zb.ChannelSoftmax(weight_bits=(4, 8)))
    assert 0.5 * FULL <= found.stages[-1].size < 0.8 * FULL


def test_a_drop_that_no_network_keeps_is_an_error() -> None:
    train, val = _loaders()
    first: list[int] = []

    def metric(output: Tensor, target: Tensor) -> float:  # the float network is measured first, and best
        first.append(1)
        return 1.0 if len(first) <= len(val) else 0.0

    with pytest.raises(zb.ZerobitError, match=r"`max_drop` is 0.5; the smallest drop reached is 1"):
        zb.compress(SmallNet(), train, val, max_drop=0.5, metric=metric, epochs=(1, 0), device="cpu", progress=False)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_never_changed(training: bool) -> None:
    model = SmallNet().train(training)
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    parameters = [id(p) for p in model.parameters()]
    found = _compress(model=model, budget="25%")
    after = model.state_dict()
    assert all(torch.equal(after[k], before[k]) for k in before)
    assert [m.training for m in model.modules()] == modes
    assert [id(p) for p in model.parameters()] == parameters
    assert all(p.grad is None for p in model.parameters())
    theirs = {t.data_ptr() for t in model.state_dict().values()}
    assert not theirs & {t.data_ptr() for t in found.net.state_dict().values()}


def test_the_same_seed_gives_the_same_result() -> None:
    noisy = zb.ChannelSoftmax(sampling="gumbel")
    a, b, c = (_compress(budget="25%", seed=s, model=_fixed(), method=noisy) for s in (3, 3, 4))
    assert a.plan == b.plan
    assert a.plan.hash == b.plan.hash
    assert all(torch.equal(t, b.net.state_dict()[k]) for k, t in a.net.state_dict().items())
    assert any(
        t.shape != c.net.state_dict()[k].shape or not torch.equal(t, c.net.state_dict()[k])
        for k, t in a.net.state_dict().items()
    )


def _fixed() -> SmallNet:
    torch.manual_seed(11)
    return SmallNet()


def test_the_result_is_an_ordinary_module(result: zb.Result) -> None:
    net = result.net
    assert isinstance(net, nn.Module)
    out = net(torch.randn(5, 1, 8, 8))
    assert out.shape == (5, 10)
    out.sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    net.zero_grad()


def test_saved_and_loaded_networks_are_equal(result: zb.Result, tmp_path: Path) -> None:
    path = result.save(tmp_path / "folder" / "small.safetensors")
    loaded = zb.load(path, SmallNet())
    x = torch.randn(4, 1, 8, 8)
    assert torch.equal(loaded(x), result.net.eval()(x))
    assert loaded.plan == result.plan
    assert [p.name for p in path.parent.iterdir()] == ["small.safetensors"]
    again = zb.load(zb.save(loaded, tmp_path / "again.safetensors"), SmallNet())
    assert torch.equal(again(x), loaded(x))


@pytest.mark.parametrize(
    "model",
    [
        SmallNet(channels=6),
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)),
        nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
    ],
    ids=["narrower", "other", "linear"],
)
def test_a_file_of_another_network_is_refused(result: zb.Result, model: nn.Module, tmp_path: Path) -> None:
    path = result.save(tmp_path / "small.safetensors")
    with pytest.raises(zb.ZerobitError, match=r"`plan`|`path`"):
        zb.load(path, model.eval())


@pytest.mark.parametrize("damage", ["missing", "truncated", "empty", "text", "other"])
def test_a_damaged_file_is_refused(result: zb.Result, damage: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = result.save(tmp_path / "small.safetensors")
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "other":
        save_file({"x": torch.zeros(1)}, path)
    else:
        path.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"no file"}[damage])
    with pytest.raises(zb.ZerobitError, match=r"`path`"):
        zb.load(path, SmallNet())


def test_the_report_names_all_layers(result: zb.Result, tmp_path: Path) -> None:
    page = result.report(tmp_path / "report.html").read_text(encoding="utf-8")
    rows = layer_rows(result.graph, result.plan)
    assert [r.name for r in rows] == ["conv1.weight", "conv2.weight", "fc.weight"]
    assert sum(r.size for r in rows) == pytest.approx(result.stages[-1].size)
    assert sum(r.share for r in rows) == pytest.approx(1)
    for row in rows:
        assert f"<td>{row.name}<td>{row.kept} of {row.channels}<" in page
    for stage in result.stages:
        assert f"<td>{stage.name}<" in page
    assert "size &lt;= 30%" in page
    times = [stage.seconds for stage in result.stages]
    assert times[0] == 0
    assert min(times[1:]) > 0, "of search and of fine-tuning"
    assert all(f"<td>{t:,.1f}<" in page for t in times[1:])
    assert "http" not in page, "a page that loads nothing"


def test_the_exported_file_computes_the_same(result: zb.Result, tmp_path: Path) -> None:
    path = result.export(tmp_path / "model.onnx")
    for rows in (result.verify(path), result.verify()):
        assert {row.inputs for row in rows} == {"samples", "random extremes"}
        assert all(row.values > 0 and row.differences == 0 and row.largest == 0 for row in rows)


def test_a_result_is_exported_in_every_format(result: zb.Result, tmp_path: Path) -> None:
    folder = result.export(tmp_path / "firmware", format="c", name="mine")
    assert "mine_run(" in (folder / "model.h").read_text()
    assert "#define SAMPLES 2u" in (folder / "vectors.h").read_text()
    path = result.export(tmp_path / "model.tflite", format="tflite")
    assert path.read_bytes()[4:8] == b"TFL3"
    with pytest.raises(zb.ZerobitError, match="`format` is 'keras'; allowed are"):
        result.export(tmp_path / "model.keras", format="keras")
    assert not (tmp_path / "model.keras").exists()


def test_a_file_of_another_network_differs(result: zb.Result, tmp_path: Path) -> None:
    other = copy.deepcopy(result.net)
    with torch.no_grad():
        other.tensors()["fc.weight"].neg_()
    task = _task()
    path = zb.export.onnx(other, tmp_path / "other.onnx", mean=task.mean, std=task.std)
    assert any(row.differences for row in result.verify(path))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({}, "`budget`, `strength`, `max_drop`"),
        ({"budget": "25%", "max_drop": 0.1}, "`budget`, `strength`, `max_drop`"),
        ({"budget": "25%", "strength": ("size", 1.0)}, "`budget`, `strength`, `max_drop`"),
        ({"budget": {}}, "`budget`"),
        ({"budget": {"size": "25%", "bops": "1%"}}, "smallest reachable is .* BOP.*other limits: size"),
        ({"budget": {"size": "25%"}, "targets": ["mine.xml"]}, "`target`"),
        ({"budget": {"weight": "25%"}}, "`budget` names the cost 'weight'"),
        ({"budget": "lots"}, "`budget` for size is 'lots'"),
        ({"budget": 0}, "`budget` for size"),
        ({"budget": 3}, "smallest reachable"),
        ({"strength": ("size", -1.0)}, "`strength`"),
        ({"max_drop": 0.0}, "`max_drop`"),
        ({"max_drop": -1.0}, "`max_drop`"),
        ({"budget": "25%", "epochs": 0}, "`epochs`"),
        ({"budget": "25%", "epochs": (-1, 3)}, "`epochs`"),
        ({"budget": "25%", "epochs": [2, 1, 1]}, "`epochs` is .2, 1, 1.; allowed are a number, or"),
        ({"budget": "25%", "epochs": (1.5, 1)}, "`epochs`"),
        ({"budget": "25%", "lr": 0.0}, "`lr` is 0.0"),
        ({"budget": "25%", "choice_lr": float("inf")}, "`choice_lr` is inf"),
        ({"budget": "25%", "method": "bsq"}, "`method` is 'bsq'; allowed is a method"),
        ({"budget": "25%", "method": zb.Bsq}, "`method` is <class"),
        ({"budget": "25%", "distillation": 2.0}, "`distillation`"),
    ],
)
def test_arguments_that_cannot_be_are_refused_before_training(arguments: dict[str, Any], named: str) -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        pytest.fail("training has begun")

    with pytest.raises(zb.ZerobitError, match=named):
        _compress(loss=loss, **arguments)


@pytest.mark.parametrize("loader", [[], (b for b in _loaders()[0]), iter([])], ids=["empty", "generator", "iterator"])
def test_a_loader_without_length_is_refused_before_anything_is_read(loader: Iterable[Any]) -> None:
    with pytest.raises(zb.ZerobitError, match=r"`train_loader` has .*length.*use a DataLoader or a list"):
        zb.compress(SmallNet(), loader, _loaders()[1], budget="25%", device="cpu", progress=False)


def test_a_validation_without_batches_is_named() -> None:
    with pytest.raises(zb.ZerobitError, match=r"`val_loader` gave no batch"):
        zb.compress(SmallNet(), _loaders()[0], [], budget="25%", device="cpu", progress=False)


@pytest.mark.parametrize("loader", [[], [(torch.randn(2, 1, 8, 8),)]])
def test_a_loader_without_batches_or_targets_is_refused(loader: list[Any]) -> None:
    with pytest.raises(zb.ZerobitError, match=r"`train_loader`|`batch`"):
        zb.compress(SmallNet(), loader, _loaders()[1], budget="25%", device="cpu", progress=False)


def test_two_inputs_in_dict_batches_and_another_loss() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image, self.table = nn.Conv2d(1, 4, 3), nn.Linear(3, 5)
            self.last = nn.Linear(9, 1)

        def forward(self, image: Tensor, table: Tensor) -> Tensor:
            a = torch.relu(self.image(image)).mean((2, 3))
            return self.last(torch.cat([a, torch.relu(self.table(table))], 1))

    random = torch.Generator().manual_seed(0)
    loader = [
        {
            "image": torch.randn(6, 1, 5, 5, generator=random),
            "table": torch.randn(6, 3, generator=random),
            "target": torch.randn(6, 1, generator=random),
        }
        for _ in range(3)
    ]
    found = zb.compress(
        Two(), loader, loader, budget="40%", epochs=(2, 1), device="cpu", progress=False,
        loss=nn.functional.mse_loss, metric=lambda output, target: -nn.functional.mse_loss(output, target),
    )  # fmt: skip
    assert set(found.samples) == set(found.graph.inputs)
    assert found.net(image=loader[0]["image"], table=loader[0]["table"]).shape == (6, 1)
    assert found.stages[-1].val is not None
    assert found.stages[-1].val < 0


def test_a_killed_compression_goes_on(tmp_path: Path) -> None:
    whole = _compress(budget="25%", model=_fixed(), epochs=(2, 2))
    steps = 3 + 3 + 1 + 3  # batches of two epochs of search and of one and a bit of fine-tuning
    with pytest.raises(Killed):
        _compress(budget="25%", model=_fixed(), epochs=(2, 2), run=tmp_path, loss=until(steps))
    resumed = _compress(budget="25%", model=_fixed(), epochs=(2, 2), run=tmp_path, loss=until(100))
    assert resumed.plan == whole.plan
    assert all(torch.equal(t, resumed.net.state_dict()[k]) for k, t in whole.net.state_dict().items())
    assert resumed.stages == whole.stages


def test_every_public_name_is_there() -> None:
    assert all(getattr(zb, name) is not None for name in zb.__all__)
    with pytest.raises(AttributeError, match=r"no attribute 'compres'"):
        zb.compres  # noqa: B018
