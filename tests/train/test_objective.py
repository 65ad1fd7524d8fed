"""Objectives: batches of every form, the user's own loss and metric, distillation."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zerobit.errors import TrainingError
from zerobit.train.objective import Objective, accuracy, evaluate, output_distance, split_batch

CPU = torch.device("cpu")
X, Y, Z = torch.randn(4, 3), torch.tensor([0, 1, 1, 0]), torch.randn(4, 2)


@pytest.mark.parametrize(
    ("batch", "args", "kwargs", "target"),
    [
        ((X, Y), (X,), {}, Y),
        ([X, Y], (X,), {}, Y),
        ((X, Z, Y), (X, Z), {}, Y),
        ((X, {"y": Y}), (X,), {}, {"y": Y}),
        ({"x": X, "labels": Y}, (), {"x": X}, Y),
        ({"x": X, "z": Z, "target": Y}, (), {"x": X, "z": Z}, Y),
        ({"y": Y, "x": X}, (), {"x": X}, Y),
    ],
)
def test_batches_are_split(batch: Any, args: tuple[Any, ...], kwargs: dict[str, Any], target: Any) -> None:
    found = split_batch(batch)
    assert found[0] == args
    assert found[1] == kwargs
    assert found[2] is target or found[2] == target


@pytest.mark.parametrize(
    "batch",
    [X, (X,), [], {}, {"labels": Y}, {"x": X}, {"x": X, "labels": Y, "target": Y}, "text", None],
    ids=["tensor", "one", "list", "dict", "target only", "input only", "two targets", "text", "none"],
)
def test_batches_of_other_forms_are_refused(batch: Any) -> None:
    with pytest.raises(TrainingError, match=r"`batch` is a .*pass `batch_format`"):
        split_batch(batch)


class _Net(nn.Module):
    """Takes one or two inputs, by position or name."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)
        self.calls = 0

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        self.calls += 1
        return self.fc(x) if z is None else self.fc(x) + z


@pytest.mark.parametrize("batch", [(X, Y), (X, Z, Y), {"x": X, "labels": Y}, {"x": X, "z": Z, "labels": Y}])
def test_loss_sees_output_and_target_of_any_batch(batch: Any) -> None:
    net = _Net()
    args, kwargs, target = split_batch(batch)
    wanted = F.cross_entropy(net(*args, **kwargs), target)
    assert torch.equal(Objective()(net, None, batch, CPU), wanted)


def test_users_loss_metric_and_batch_format_are_used() -> None:
    net = _Net()
    objective = Objective(
        loss=lambda output, target: (output - target).abs().mean(),
        metric=lambda output, target: -(output - target).abs().mean(),
        batch_format=lambda batch: ((batch["in"],), {}, batch["out"]),
    )
    batch = {"in": X, "out": Z, "id": 7}
    assert torch.equal(objective(net, None, batch, CPU), (net(X) - Z).abs().mean())
    assert evaluate(net, [batch], objective) == pytest.approx(-float((net(X) - Z).abs().mean().detach()))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_distillation_blends_the_teacher_in(share: float) -> None:
    torch.manual_seed(0)
    net, teacher, losses = _Net(), _Net(), []

    def loss(output: Tensor, target: Tensor) -> Tensor:
        losses.append(1)
        return F.cross_entropy(output, target)

    found = Objective(loss=loss, distillation=share)(net, teacher, (X, Y), CPU)
    distance = output_distance(net(X), teacher(X), 2.0)
    wanted = (1 - share) * F.cross_entropy(net(X), Y) + share * distance
    torch.testing.assert_close(found, wanted)
    assert teacher.calls == (1 if share == 0 else 2)
    assert len(losses) == (0 if share == 1 else 1)
    found.backward()
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_distillation_is_a_share(share: float) -> None:
    with pytest.raises(TrainingError, match=r"`distillation`"):
        Objective(distillation=share)


def test_distance_of_logits_is_the_softened_divergence() -> None:
    """Hinton et al., arXiv 1503.02531: T^2 KL(teacher || student)."""
    student, teacher = torch.randn(5, 4), torch.randn(5, 4)
    p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
    wanted = 9 * (p * (p.log() - q.log())).sum(1).mean()
    torch.testing.assert_close(output_distance(student, teacher, 3.0), wanted)


@pytest.mark.parametrize("make", [lambda: torch.randn(5, 4), lambda: torch.randn(5, 1), lambda: torch.randn(2, 3, 4)])
def test_a_network_has_no_distance_from_itself(make: Any) -> None:
    output = make()
    assert float(output_distance(output, output, 2.0)) == pytest.approx(0, abs=1e-6)
    assert float(output_distance(output + torch.randn(output.shape), output, 2.0)) > 0.01


def test_distance_of_nested_outputs_is_the_sum() -> None:
    a, b = torch.randn(5, 4), torch.randn(5, 1)
    c, d = torch.randn(5, 4), torch.randn(5, 1)
    nested = output_distance({"logits": a, "aux": (b, None)}, {"logits": c, "aux": (d, None)}, 2.0)
    torch.testing.assert_close(nested, output_distance(a, c, 2.0) + output_distance(b, d, 2.0))


def test_metric_is_weighted_by_the_size_of_batches() -> None:
    net = nn.Identity()
    net.register_parameter("p", nn.Parameter(torch.zeros(1)))
    right, wrong = torch.eye(2)[[0, 0, 0]], torch.eye(2)[[0]]
    loader = [(right, torch.zeros(3, dtype=torch.int64)), (wrong, torch.ones(1, dtype=torch.int64))]
    assert evaluate(net, loader, Objective()) == 0.75
    assert float(accuracy(right, torch.zeros(3, dtype=torch.int64))) == 1


def test_evaluation_leaves_the_mode_as_it_was() -> None:
    net = _Net()
    for mode in (True, False):
        net.train(mode)
        evaluate(net, [(X, Y)], Objective())
        assert net.training == mode


def test_nested_inputs_are_weighted_by_their_batch() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.p = nn.Parameter(torch.zeros(1))

        def forward(self, scale: Tensor, pair: tuple[Tensor, Tensor]) -> Tensor:
            return pair[0] * scale + pair[1]

    right, wrong = torch.eye(2)[[0, 0, 0]], torch.eye(2)[[0]]
    scale, zeros = torch.tensor(1.0), torch.zeros(3, dtype=torch.int64)
    loader = [(scale, (right, right), zeros), (scale, (wrong, wrong), zeros[:1] + 1)]
    assert evaluate(Pair(), loader, Objective()) == 0.75


def test_an_empty_loader_cannot_be_evaluated() -> None:
    with pytest.raises(TrainingError):
        evaluate(_Net(), [], Objective())
