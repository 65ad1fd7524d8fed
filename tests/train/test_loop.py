"""The loop: records, mistakes by name, and a killed run that goes on as if it had not been killed."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from killed import Killed, until
from searches import METHODS, attached
from zerobit.cost import Size
from zerobit.cost.price import Budget
from zerobit.cut.apply import apply
from zerobit.cut.decide import decide, read_offer
from zerobit.errors import CheckpointError, TrainingError
from zerobit.train.loop import Epoch, Hardware, cosine, duration, one_cycle
from zerobit.train.objective import Objective
from zerobit.train.phases import Data, Recipe, finetune, search, train_float
from zerobit.zoo.data import Batches, Split, Task

HARDWARE = Hardware("cpu", progress=False)
EPOCHS = 3


def _data() -> Data:
    random = torch.Generator().manual_seed(0)
    x, y = torch.randn(24, 1, 4, 4, generator=random), torch.randint(0, 3, (24,), generator=random)
    examples = TensorDataset(x, y)
    return Data(DataLoader(examples, 8, shuffle=True), DataLoader(examples, 12))


STEPS = 3  # of 8 in 24


Run = Callable[[Objective, Path | None], tuple[nn.Module, list[Epoch]]]


def _search(method: str, **changes: Any) -> Run:
    def run(objective: Objective, file: Path | None) -> tuple[nn.Module, list[Epoch]]:
        torch.manual_seed(1)
        net, teacher = attached("mlp", method), attached("mlp", "no_pruning").eval()
        recipe = Recipe(**{"search_epochs": EPOCHS, "finetune_epochs": 1, "lr": 1e-2, "commit": 1.0, **changes})
        price = Budget(Size(), "40%")
        return net, search(net, price, teacher, _data(), objective, recipe, HARDWARE, checkpoint=file)

    return run


def _finetune(objective: Objective, file: Path | None) -> tuple[nn.Module, list[Epoch]]:
    torch.manual_seed(1)
    net = attached("mlp")
    small = apply(net, decide(net, Budget(Size(), "40%")))
    recipe = Recipe(search_epochs=1, finetune_epochs=EPOCHS, lr=1e-2, commit=1.0)
    return small, finetune(small, net.eval(), _data(), objective, recipe, HARDWARE, checkpoint=file)


def _float(objective: Objective, file: Path | None) -> tuple[nn.Module, list[Epoch]]:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 3))
    return net, train_float(net, _data(), objective, HARDWARE, epochs=EPOCHS, lr=0.1, checkpoint=file)


PHASES: dict[str, Run] = {
    "float": _float,
    "fine-tune": _finetune,
    **{f"search {m}": _search(m) for m in ("default", "shared", "gumbel", "activations", "fracbits")},
}


def _state(net: nn.Module) -> dict[str, list[Any]]:
    return {name: t.tolist() for name, t in net.state_dict().items()}


@pytest.mark.parametrize("name", PHASES)
def test_a_killed_run_goes_on_as_if_it_had_not_been(name: str, tmp_path: Path) -> None:
    whole, history = PHASES[name](Objective(), None)
    again, _ = PHASES[name](Objective(), None)
    assert _state(again) == _state(whole), "the same seed gives the same weights"
    file = tmp_path / "phase.ckpt"
    for killed_after in (0, STEPS - 1, STEPS + 1, 1):
        with pytest.raises(Killed):
            PHASES[name](Objective(loss=until(killed_after)), file)
    assert [p.name for p in tmp_path.iterdir()] == ["phase.ckpt"]
    resumed, found = PHASES[name](Objective(loss=until(2 * STEPS)), file)
    assert _state(resumed) == _state(whole)
    assert found == history
    finished, found = PHASES[name](Objective(loss=until(0)), file)
    assert _state(finished) == _state(whole)
    assert found == history


@pytest.mark.parametrize("method", METHODS)
def test_a_finished_search_that_is_resumed_gives_the_same_plan(method: str, tmp_path: Path) -> None:
    """Its schedule is not in the checkpoint, and preferences depend on the temperature."""
    nets = [_search(method)(Objective(), tmp_path / "search.ckpt")[0] for _ in range(2)]
    assert decide(nets[0]) == decide(nets[1])
    whole, resumed = (read_offer(net)[0] for net in nets)
    assert np.array_equal(whole.keep_score, resumed.keep_score)
    assert np.array_equal(whole.width_score, resumed.width_score)


@pytest.mark.parametrize("name", PHASES)
def test_every_epoch_is_recorded(name: str) -> None:
    net, history = PHASES[name](Objective(), None)
    assert [e.number for e in history] == [1, 2, 3]
    assert all(math.isfinite(e.loss) and 0 <= e.metric <= 1 for e in history)
    assert all(("B" in e.note) == name.startswith("search") for e in history)
    assert all(p.isfinite().all() for p in net.parameters())


def test_wall_time_is_kept_over_a_resumption(tmp_path: Path) -> None:
    def slow(output: Tensor, target: Tensor) -> Tensor:
        time.sleep(0.01)
        return F.cross_entropy(output, target)

    file = tmp_path / "phase.ckpt"
    _, history = _float(Objective(loss=slow), file)
    assert all(e.seconds >= STEPS * 0.01 for e in history)
    assert duration(history) == sum(e.seconds for e in history)
    _, again = _float(Objective(loss=until(0)), file)
    assert [e.seconds for e in again] == [e.seconds for e in history]


def test_training_lowers_the_loss() -> None:
    _, history = _float(Objective(), None)
    assert history[-1].loss < history[0].loss


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_named_with_epoch_and_step(bad: float, tmp_path: Path) -> None:
    left = [STEPS + 1]

    def loss(output: Tensor, target: Tensor) -> Tensor:
        left[0] -= 1
        return F.cross_entropy(output, target) * (bad if left[0] < 0 else 1.0)

    with pytest.raises(TrainingError, match=r"`loss` is (nan|inf) in search, epoch 2, step 2; .*learning rate"):
        _search("default")(Objective(loss=loss, distillation=0.0), tmp_path / "phase.ckpt")


def test_nothing_is_learned_from_a_bad_step() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    before = _state(net)
    objective = Objective(loss=lambda output, target: output.sum() * math.nan)
    with pytest.raises(TrainingError):
        train_float(net, _data(), objective, HARDWARE, epochs=1)
    assert _state(net) == before


class _Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield torch.zeros(16), 0


@pytest.mark.parametrize("loader", [[], (b for b in _data().train), iter([]), DataLoader(_Stream())])
def test_a_loader_without_batches_or_length_is_refused(loader: Iterable[Any]) -> None:
    data = Data(loader, _data().val)
    with pytest.raises(TrainingError, match=r"`train_loader` has .*length"):
        train_float(nn.Linear(16, 3), data, Objective(), HARDWARE, epochs=1)


@pytest.mark.parametrize(
    ("changes", "other"),
    [
        ({}, {"lr": 2e-2}),
        ({}, {"choice_lr": 2e-2}),
        ({}, {"search_epochs": 4}),
        ({}, {"weight_decay": 0.1}),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(
    changes: dict[str, Any], other: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "phase.ckpt"
    _search("default", **changes)(Objective(), file)
    before = file.read_bytes()
    with pytest.raises(CheckpointError, match=r"`checkpoint` .*other settings"):
        _search("default", **other)(Objective(), file)
    assert file.read_bytes() == before


@pytest.mark.parametrize("method", [m for m in METHODS if m != "default"])
def test_a_checkpoint_of_another_method_is_refused(method: str, tmp_path: Path) -> None:
    file = tmp_path / "phase.ckpt"
    _search("default", search_epochs=1)(Objective(), file)
    with pytest.raises(CheckpointError):
        _search(method, search_epochs=1)(Objective(), file)


def _batches(value: int = 100, size: int = 4) -> Batches:
    x, y = torch.full((12, 1, 4, 4), value, dtype=torch.uint8), torch.arange(12) % 3
    split = Split(x, y)
    return Batches(split, Task("plain", split, split, split, 3, (0.5,), (0.5,), ""), size)


def _tune(objective: Objective, train: Iterable[Any], file: Path) -> None:
    torch.manual_seed(1)
    small = apply(net := attached("mlp"), decide(net, Budget(Size(), "40%")))
    recipe = Recipe(search_epochs=0, finetune_epochs=1)
    finetune(small, None, Data(train, _data().val), objective, recipe, HARDWARE, checkpoint=file)


@pytest.mark.parametrize(
    ("objective", "train"),
    [
        (Objective(loss=F.multi_margin_loss), _batches()),
        (Objective(), _batches(value=101)),
        (Objective(), _batches(size=5)),
        (Objective(), list(_batches())[:2]),
    ],
    ids=["loss", "images", "batch size", "batches"],
)
def test_a_checkpoint_of_another_loss_or_other_data_is_refused(
    objective: Objective, train: Iterable[Any], tmp_path: Path
) -> None:
    """One of a phase that is done, too: its network was trained for something else."""
    file = tmp_path / "phase.ckpt"
    _tune(Objective(), _batches(), file)
    before = file.read_bytes()
    _tune(Objective(), _batches(), file)
    with pytest.raises(CheckpointError, match=r"`checkpoint` .*other settings"):
        _tune(objective, train, file)
    assert file.read_bytes() == before


def test_a_checkpoint_of_another_cost_of_the_same_name_is_refused(tmp_path: Path) -> None:
    def run(price: Budget) -> None:
        torch.manual_seed(1)
        recipe = Recipe(search_epochs=1, finetune_epochs=1)
        search(attached("mlp"), price, None, _data(), Objective(), recipe, HARDWARE, checkpoint=tmp_path / "s.ckpt")

    run(Budget(Size(), "50%"))
    with pytest.raises(CheckpointError, match=r"`checkpoint` .*other settings"):
        run(Budget(Size(storage=(8,)), "50%"))


def test_a_checkpoint_of_other_start_weights_is_refused(tmp_path: Path) -> None:
    """A float network trained anew is another network: what was searched for the old one doesn't go on with it."""
    file = tmp_path / "phase.ckpt"
    _float(Objective(), file)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(CheckpointError, match=r"other settings"):
        train_float(net, _data(), Objective(), HARDWARE, epochs=EPOCHS, lr=0.1, checkpoint=file)


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "pickle"])
def test_a_damaged_checkpoint_is_refused(damage: str, tmp_path: Path) -> None:
    file = tmp_path / "phase.ckpt"
    _float(Objective(), file)
    whole = file.read_bytes()
    damaged = {"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"no checkpoint", "pickle": b"\x80\x04N."}
    file.write_bytes(damaged[damage])
    with pytest.raises(CheckpointError, match=r"`checkpoint` .*can't be read"):
        _float(Objective(), file)


def test_a_write_that_fails_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "phase.ckpt"
    with pytest.raises(Killed):
        _float(Objective(loss=until(STEPS)), file)
    before = file.read_bytes()

    def half(state: object, path: Path) -> None:
        path.write_bytes(before[:100])
        msg = "no space left on device"
        raise OSError(msg)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", half)
        with pytest.raises(OSError, match=r"no space"):
            _float(Objective(), file)
    assert file.read_bytes() == before
    whole, _ = _float(Objective(), None)
    resumed, _ = _float(Objective(loss=until(2 * STEPS)), file)
    assert _state(resumed) == _state(whole)


def test_schedules_start_and_end_where_they_should() -> None:
    assert cosine(0) == 1
    assert cosine(1) == pytest.approx(0)
    assert cosine(2) == pytest.approx(0)
    assert one_cycle(0) == pytest.approx(0.04)
    assert one_cycle(0.25) == pytest.approx(1)
    assert one_cycle(1) == pytest.approx(0)
    values = [cosine(i / 10) for i in range(11)]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize(
    ("epochs", "choosing", "tuning"),
    [((8, 4), 5, 7), ((20, 10), 12, 18), ((1, 1), 1, 1), ((0, 3), 0, 3), ((2, 0), 2, 0)],
)
def test_the_end_of_a_search_trains_the_cut_network(epochs: tuple[int, int], choosing: int, tuning: int) -> None:
    """Choices stand after 60 % of the search's epochs, and all epochs are spent."""
    recipe = Recipe(search_epochs=epochs[0], finetune_epochs=epochs[1])
    assert (recipe.choosing_epochs, recipe.tuning_epochs) == (choosing, tuning)
    assert recipe.search_share == choosing / sum(epochs)


def test_the_search_learns_to_keep_its_budget() -> None:
    """Validation is of the hard network, and a search under a price makes it smaller."""
    net = attached("mlp")
    recipe = Recipe(search_epochs=6, finetune_epochs=0, lr=1e-3, choice_lr=0.2, commit=1.0)
    before = float(Size()(_usage(net)))
    search(net, Budget(Size(), "30%"), None, _data(), Objective(), recipe, HARDWARE)
    assert float(Size()(_usage(net))) < before


def _usage(net: Any) -> Any:
    from zerobit.cost.usage import usage

    return usage(net.graph, net.bits(hard=True))


def test_a_device_without_float64_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrainingError, match=r"`device` 'mps' can't be used.*float64.*use 'cpu'"):
        Hardware("mps").fabric()
    asked = []
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr("zerobit.train.loop.Fabric", lambda **arguments: asked.append(arguments["accelerator"]))
    Hardware("auto").fabric()
    assert asked == ["cpu"]
