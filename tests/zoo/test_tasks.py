"""The zoo's data sets: files good and bad, splits, normalisation and batches."""

import io
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from zerobit.zoo.data import Batches, Split, Task, crop_and_flip
from zerobit.zoo.tasks import TASKS, load_task, needs_data, unpack_tar

Arrays = dict[str, np.ndarray]

TRAIN_FILES = [f"data_batch_{i}.bin" for i in range(1, 6)]
NUM_PER_FILE = 8


def _records(seed: int, num: int = NUM_PER_FILE) -> np.ndarray:
    rng = np.random.default_rng(seed)
    records = rng.integers(0, 256, (num, 3073), dtype=np.uint8)
    records[:, 0] = rng.integers(0, 10, num)
    return records


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    """Return a folder that holds a small set in the CIFAR-10 binary layout."""
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for seed, name in enumerate([*TRAIN_FILES, "test_batch.bin"]):
        _records(seed).tofile(folder / name)
    return tmp_path


@pytest.fixture
def arrays() -> Arrays:
    """Return valid arrays of an npz task: 3 classes, 2x5x4 images."""
    rng = np.random.default_rng(0)
    made: Arrays = {}
    for part, num in (("train", 30), ("val", 6), ("test", 9)):
        made[f"x_{part}"] = rng.integers(0, 256, (num, 2, 5, 4), dtype=np.uint8)
        made[f"y_{part}"] = np.arange(num) % 3
    return made


def _save(tmp_path: Path, arrays: Arrays) -> Path:
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]  # savez takes options by keyword too
    return path


# --- load_task ------------------------------------------------------------------------


@pytest.mark.parametrize(("wrong", "hint"), [("cifar", "did you mean 'cifar10'"), ("x", "use 'npz'")])
def test_unknown_task_is_told_the_names(wrong: str, hint: str) -> None:
    with pytest.raises(ValueError, match=r"`task` is .* digits, cifar10, npz") as caught:
        load_task(wrong)
    assert hint in str(caught.value)


def test_ignored_argument_warns() -> None:
    with pytest.warns(UserWarning, match="`data` has no effect"):
        load_task("digits", "somewhere")


# --- digits ---------------------------------------------------------------------------


def test_digits_are_split_by_class_and_always_alike() -> None:
    task, again = load_task("digits"), load_task("digits")
    assert [len(split) for split in (task.train, task.val, task.test)] == [1078, 360, 359]
    for split in (task.train, task.val, task.test):
        share = split.y.bincount() / len(split)
        torch.testing.assert_close(share, torch.full((10,), 0.1), atol=0.01, rtol=0)
    assert torch.equal(task.test.x, again.test.x)


def test_digits_images_are_in_the_unit_range_and_in_one_split_only() -> None:
    task = load_task("digits")
    x = torch.cat([task.train.x, task.val.x, task.test.x])
    assert x.shape == (1797, 1, 8, 8)
    assert (x.min(), x.max()) == (0, 1)
    assert len(x.flatten(1).unique(dim=0)) == len(x)


def test_digits_without_scikit_learn_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"zerobit\[zoo\]"):
        load_task("digits")


# --- cifar10 --------------------------------------------------------------------------


def test_cifar_keeps_every_image_with_its_label(cifar: Path) -> None:
    task = load_task("cifar10", cifar)
    assert [len(split) for split in (task.train, task.val, task.test)] == [36, 4, 8]
    loaded = torch.cat(
        [torch.cat([split.y[:, None].to(torch.uint8), split.x.flatten(1)], 1) for split in (task.train, task.val)]
    )
    written = np.concatenate([_records(seed) for seed in range(5)])
    assert sorted(map(bytes, loaded.numpy())) == sorted(map(bytes, written))
    np.testing.assert_array_equal(task.test.x.flatten(1).numpy(), _records(5)[:, 1:])


def test_cifar_is_found_in_the_folder_itself_or_its_parent(cifar: Path) -> None:
    inner, outer = load_task("cifar10", cifar / "cifar-10-batches-bin"), load_task("cifar10", str(cifar))
    assert torch.equal(inner.val.x, outer.val.x)


def test_cifar_present_is_not_downloaded_again(cifar: Path) -> None:
    assert len(load_task("cifar10", cifar, download=True).test) == 8


def test_cifar_that_was_downloaded_is_found_without_a_folder(cifar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zerobit.zoo.tasks._cache", lambda: cifar)
    assert len(load_task("cifar10").test) == 8


def test_cifar_without_data_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zerobit.zoo.tasks._cache", lambda: tmp_path)
    with pytest.raises(ValueError, match=r"`data` is None.*download=True"):
        load_task("cifar10")


def test_cifar_folder_missing_names_path_and_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere.*lacks data_batch_1\.bin.*test_batch\.bin"):
        load_task("cifar10", tmp_path / "nowhere")


def test_cifar_one_file_missing_names_only_that_one(cifar: Path) -> None:
    (cifar / "cifar-10-batches-bin" / "data_batch_3.bin").unlink()
    with pytest.raises(ValueError, match=r"lacks data_batch_3\.bin;"):
        load_task("cifar10", cifar)


@pytest.mark.parametrize("num_bytes", [0, 100, 3073 * NUM_PER_FILE - 1])
def test_cifar_truncated_inside_a_record(cifar: Path, num_bytes: int) -> None:
    path = cifar / "cifar-10-batches-bin" / "data_batch_2.bin"
    path.write_bytes(path.read_bytes()[:num_bytes])
    with pytest.raises(ValueError, match=rf"data_batch_2\.bin' has {num_bytes} bytes"):
        load_task("cifar10", cifar)


def test_cifar_truncated_between_records(cifar: Path) -> None:
    path = cifar / "cifar-10-batches-bin" / "data_batch_5.bin"
    path.write_bytes(path.read_bytes()[:-3073])
    with pytest.raises(ValueError, match=r"equally many images.*data_batch_5\.bin: 7"):
        load_task("cifar10", cifar)


def test_cifar_label_out_of_range(cifar: Path) -> None:
    path = cifar / "cifar-10-batches-bin" / "test_batch.bin"
    path.write_bytes(b"\x0a" + path.read_bytes()[1:])
    with pytest.raises(ValueError, match=r"holds the label 10"):
        load_task("cifar10", cifar)


@pytest.mark.parametrize("name", ["../outside.bin", "cifar-10-batches-bin/../../outside.bin"])
def test_archive_cannot_write_outside_its_folder(tmp_path: Path, name: str) -> None:
    archive = tmp_path / "evil.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        member = tarfile.TarInfo(name)
        member.size = 3
        tar.addfile(member, io.BytesIO(b"bad"))
    with pytest.raises(ValueError, match="unsafe"):
        unpack_tar(archive, tmp_path / "inside")
    assert not (tmp_path / "outside.bin").exists()


# --- npz ------------------------------------------------------------------------------


def test_npz_round_trip(tmp_path: Path, arrays: Arrays) -> None:
    task = load_task("npz", _save(tmp_path, arrays))
    np.testing.assert_array_equal(task.val.x.numpy(), arrays["x_val"])
    np.testing.assert_array_equal(task.test.y.numpy(), arrays["y_test"])
    assert (task.num_classes, task.default_model, task.augment) == (3, "resnet8", None)


def test_npz_keyword_features_go_to_dscnn(tmp_path: Path) -> None:
    made: Arrays = {}
    for part in ("train", "val", "test"):
        made[f"x_{part}"] = np.random.default_rng(0).normal(size=(4, 1, 49, 10))
        made[f"y_{part}"] = np.arange(4, dtype=np.int32)
    task = load_task("npz", _save(tmp_path, made))
    assert task.default_model == "dscnn"
    assert task.train.x.dtype == torch.float32


@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_npz_train_images_normalise_to_zero_mean_unit_deviation(
    tmp_path: Path, arrays: Arrays, dtype: type[np.generic]
) -> None:
    task = load_task("npz", _save(tmp_path, {k: v.astype(dtype) if k[0] == "x" else v for k, v in arrays.items()}))
    x = task.normalise(task.train.x)
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3), correction=0), torch.ones(2), atol=1e-5, rtol=0)


def test_npz_constant_channel_becomes_zero(tmp_path: Path, arrays: Arrays) -> None:
    arrays["x_train"][:, 1] = 7
    task = load_task("npz", _save(tmp_path, arrays))
    torch.testing.assert_close(task.normalise(task.train.x)[:, 1], torch.zeros(30, 5, 4))


def test_npz_missing_file_names_the_arrays(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.npz.*x_train, y_train"):
        load_task("npz", tmp_path / "absent.npz")


def test_only_digits_need_no_data() -> None:
    assert [name for name in TASKS if not needs_data(name)] == ["digits"]


def test_npz_needs_data() -> None:
    with pytest.raises(ValueError, match="`data` is None"):
        load_task("npz")


def test_npz_missing_arrays_are_named(tmp_path: Path, arrays: Arrays) -> None:
    del arrays["x_val"], arrays["y_test"]
    with pytest.raises(ValueError, match="lacks the arrays x_val, y_test;"):
        load_task("npz", _save(tmp_path, arrays))


def test_npz_cut_short(tmp_path: Path, arrays: Arrays) -> None:
    path = _save(tmp_path, arrays)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="cannot be read"):
        load_task("npz", path)


def test_npz_damaged_inside(tmp_path: Path, arrays: Arrays) -> None:
    path = tmp_path / "data.npz"
    np.savez_compressed(path, **arrays)  # pyright: ignore[reportArgumentType]
    content = bytearray(path.read_bytes())
    content[100:300] = bytes(200)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read"):
        load_task("npz", path)


def test_npz_single_array_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "one.npy"
    np.save(path, np.zeros(3))
    with pytest.raises(ValueError, match="not a zip file"):
        load_task("npz", path)


def test_npz_never_unpickles(tmp_path: Path, arrays: Arrays) -> None:
    arrays["x_train"] = np.array([{"any": "object"}] * 30, dtype=object)
    with pytest.raises(ValueError, match="cannot be read"):
        load_task("npz", _save(tmp_path, arrays))


@pytest.mark.parametrize(
    ("name", "bad", "message"),
    [
        ("x_train", np.zeros((30, 5, 4), np.uint8), r"x_train.*4 axes"),
        ("x_train", np.zeros((0, 2, 5, 4), np.uint8), r"x_train.*one label per image"),
        ("x_train", np.zeros((30, 2, 5, 4), np.int64), r"x_train.*int64.*uint8 or float"),
        ("x_train", np.full((30, 2, 5, 4), np.nan), r"x_train.*NaN"),
        ("x_val", np.zeros((6, 2, 5, 5), np.uint8), r"x_val.*\(2, 5, 5\).*agree"),
        ("x_val", np.zeros((6, 2, 5, 4), np.float32), r"x_val.*float32.*agree"),
        ("y_test", np.zeros(8, np.int64), r"y_test.*\(8,\).*one label per image"),
        ("y_test", np.zeros(9), r"y_test.*float64.*integers"),
        ("y_test", np.full(9, -1), r"y_test.*0 or more"),
    ],
)
def test_npz_wrong_array_is_named(tmp_path: Path, arrays: Arrays, name: str, bad: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_task("npz", _save(tmp_path, {**arrays, name: bad}))


# --- Split, Task ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), "`x` has shape"),
        (torch.zeros(2, 1, 1, 1, dtype=torch.float64), torch.zeros(2, dtype=torch.int64), "`x` has dtype"),
        (torch.zeros(2, 1, 1, 1), torch.zeros(2), "`y` has dtype"),
        (torch.zeros(2, 1, 1, 1), torch.zeros(3, dtype=torch.int64), "`y` has shape"),
    ],
)
def test_split_refuses(x: torch.Tensor, y: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Split(x, y)


def test_normalise_leaves_raw_images_alone() -> None:
    task = load_task("digits")
    before = task.train.x.clone()
    task.normalise(task.train.x)
    assert torch.equal(task.train.x, before)


def test_normalise_divides_only_integers_by_255(cifar: Path) -> None:
    task = load_task("cifar10", cifar)
    torch.testing.assert_close(task.normalise(task.test.x), task.normalise(task.test.x.float() / 255))


# --- Batches --------------------------------------------------------------------------


@pytest.fixture
def task(cifar: Path) -> Task:
    return load_task("cifar10", cifar)


def _all(batches: Batches, epoch: int = 0) -> torch.Tensor:
    batches.set_epoch(epoch)
    return torch.cat([torch.cat([x.flatten(1), y[:, None].float()], 1) for x, y in batches])


def test_plain_batches_are_the_split_in_order(task: Task) -> None:
    batches = Batches(task.train, task, 10)
    assert [len(y) for _, y in batches] == [10, 10, 10, 6]
    assert len(batches) == 4
    assert torch.equal(torch.cat([x for x, _ in batches]), task.normalise(task.train.x))
    assert torch.equal(torch.cat([y for _, y in batches]), task.train.y)


def test_batches_depend_on_seed_and_epoch_only(task: Task) -> None:
    def drawn(seed: int, epoch: int) -> torch.Tensor:
        torch.manual_seed(int(np.random.default_rng().integers(1000)))
        return _all(Batches(task.train, task, 16, shuffle=True, augment=True, seed=seed), epoch)

    first = drawn(0, 1)
    assert torch.equal(first, drawn(0, 1))
    assert not torch.equal(first, drawn(1, 0))
    assert not torch.equal(first, drawn(0, 2))


def test_batches_leave_global_random_state_alone(task: Task) -> None:
    state = torch.get_rng_state()
    _all(Batches(task.train, task, 16, shuffle=True, augment=True))
    assert torch.equal(state, torch.get_rng_state())


def test_a_second_pass_of_one_epoch_is_the_same(task: Task) -> None:
    batches = Batches(task.train, task, 16, shuffle=True, augment=True)
    assert torch.equal(_all(batches), _all(batches))


def test_shuffling_only_reorders(task: Task) -> None:
    plain = _all(Batches(task.train, task, 7))
    shuffled = _all(Batches(task.train, task, 7, shuffle=True))
    assert not torch.equal(plain, shuffled)
    assert torch.equal(plain.unique(dim=0), shuffled.unique(dim=0))


@pytest.mark.parametrize(("batch_size", "seed", "message"), [(0, 0, "`batch_size` is 0"), (1, -1, "`seed` is -1")])
def test_batches_refuse(task: Task, batch_size: int, seed: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Batches(task.train, task, batch_size, seed=seed)


def test_negative_epoch_is_refused(task: Task) -> None:
    with pytest.raises(ValueError, match="`epoch` is -1"):
        Batches(task.train, task, 1).set_epoch(-1)


# --- augmentation ---------------------------------------------------------------------


def test_every_augmented_image_is_a_shift_or_its_mirror_image() -> None:
    x = torch.arange(1, 101, dtype=torch.uint8).view(1, 1, 10, 10).expand(40, 2, 10, 10)
    out = crop_and_flip(x, torch.Generator().manual_seed(0), padding=2)
    padded = np.pad(x[0].numpy(), ((0, 0), (2, 2), (2, 2)))
    allowed = set()
    for top in range(5):
        for left in range(5):
            crop = padded[:, top : top + 10, left : left + 10]
            allowed |= {crop.tobytes(), crop[:, :, ::-1].tobytes()}
    drawn = {image.tobytes() for image in out.numpy()}
    assert drawn <= allowed
    assert len(drawn) > 10
    assert out.dtype == torch.uint8


def test_augmentation_of_no_shift_mirrors_about_half() -> None:
    x = torch.rand(400, 1, 4, 4)
    out = crop_and_flip(x, torch.Generator().manual_seed(0), padding=0)
    num_same = sum(torch.equal(a, b) for a, b in zip(x, out, strict=True))
    num_mirrored = sum(torch.equal(a.flip(-1), b) for a, b in zip(x, out, strict=True))
    assert num_same + num_mirrored == 400
    assert 150 < num_mirrored < 250
