"""Data sets by name: `load_task("digits")`, `load_task("cifar10", data=...)`, `load_task("npz", data=...)`.

Nothing here is executed from a data file: CIFAR-10 is read from its binary version and
`.npz` files with `allow_pickle=False`.
"""

import difflib
import math
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zerobit.zoo.data import Split, Task, crop_and_flip

TASKS = ("digits", "cifar10", "npz")
#: Tasks whose data comes with a package.
_PACKAGED = ("digits",)

_CIFAR_FOLDER = "cifar-10-batches-bin"
_CIFAR_TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
_CIFAR_TEST = "test_batch.bin"
_CIFAR_RECORD = 1 + 3 * 32 * 32  # bytes: label, then the red, green and blue planes
# Address and checksum as published at https://www.cs.toronto.edu/~kriz/cifar.html
_CIFAR_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
_CIFAR_HASH = "md5:c32a1d4ab5d03f1284b67883e8d87530"
# Mean and standard deviation of the 50,000 training images, in units of [0, 1].
_CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
_CIFAR_STD = (0.2470, 0.2435, 0.2616)

_NPZ_ARRAYS = ("x_train", "y_train", "x_val", "y_val", "x_test", "y_test")


def load_task(name: str, data: str | Path | None = None, download: bool = False) -> Task:
    """Load a data set.

    Args:
        name: `digits` (8x8 digits of scikit-learn, nothing to fetch), `cifar10` (the
            binary version of CIFAR-10) or `npz` (your own arrays).
        data: for `cifar10` the folder `cifar-10-batches-bin` or the folder that holds
            it; for `npz` the file, with the arrays x_train, y_train, x_val, y_val,
            x_test, y_test (images [N, C, H, W], uint8 or float; labels [N], integer).
        download: for `cifar10`, fetch the set (170 MB) into `data`, or into the user's
            cache folder if `data` is None, unless it is there already.

    Returns:
        The task with its three splits in memory.

    Raises:
        ValueError: if the name is unknown, or the data are missing, cut short or of
            the wrong shape.
        ImportError: if `digits` or a download lacks its optional package.
    """
    if name == "digits":
        _warn_ignored(name, data=data is not None, download=download)
        return _digits()
    if name == "cifar10":
        return _cifar10(None if data is None else Path(data), download=download)
    if name == "npz":
        _warn_ignored(name, data=False, download=download)
        return _npz(data)
    nearest = difflib.get_close_matches(name, TASKS, n=3)
    hint = f"did you mean {' or '.join(map(repr, nearest))}?" if nearest else "use 'npz' for your own data."
    msg = f"`task` is {name!r}, but the tasks are {', '.join(TASKS)}; {hint}"
    raise ValueError(msg)


def needs_data(name: str) -> bool:
    """Whether a task is read from a folder or file.

    Args:
        name: of the task.
    """
    return name not in _PACKAGED


def _warn_ignored(task: str, **given: bool) -> None:
    for argument in (name for name, is_given in given.items() if is_given):
        warnings.warn(f"`{argument}` has no effect for the task {task!r}", stacklevel=3)


# --- digits ---------------------------------------------------------------------------


def _digits() -> Task:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        msg = "the task 'digits' needs scikit-learn; install it with: pip install 'zerobit[zoo]'"
        raise ImportError(msg) from None
    pixels, labels = load_digits(return_X_y=True)  # pixels are 0..16
    x = torch.from_numpy((np.asarray(pixels) / 16).astype(np.float32)).view(-1, 1, 8, 8)
    y = torch.from_numpy(np.asarray(labels).astype(np.int64))
    parts = _stratified(y.numpy(), fractions=(0.6, 0.2))
    train, val, test = (Split(x[part], y[part]) for part in parts)
    mean, std = _channel_stats(train.x)
    return Task("digits", train, val, test, 10, mean, std, default_model="digits")


def _stratified(labels_N: np.ndarray, fractions: tuple[float, float]) -> list[Tensor]:
    """Return image indices of train, val and test; each class is cut at the same fractions."""
    rng = np.random.default_rng(0)
    parts: list[list[np.ndarray]] = [[], [], []]
    for label in np.unique(labels_N):
        members = rng.permutation(np.flatnonzero(labels_N == label))
        first = round(len(members) * fractions[0])
        second = round(len(members) * (fractions[0] + fractions[1]))
        for part, chosen in zip(parts, np.split(members, [first, second]), strict=True):
            part.append(chosen)
    return [torch.from_numpy(np.sort(np.concatenate(part))) for part in parts]


# --- cifar10 --------------------------------------------------------------------------


def _cifar10(data: Path | None, *, download: bool) -> Task:
    folder = _download_cifar(data) if download else _find_cifar(data)
    batches = [_read_cifar(folder / name) for name in _CIFAR_TRAIN]
    _check_equal_lengths(folder, [len(batch) for batch in batches])
    images = torch.cat([batch.x for batch in batches])
    labels = torch.cat([batch.y for batch in batches])
    # The last tenth of a fixed random order: 5,000 of the 50,000 training images.
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(images)))
    num_train = len(images) - max(1, len(images) // 10)
    train, val = (Split(images[part], labels[part]) for part in (order[:num_train], order[num_train:]))
    return Task(
        name="cifar10",
        train=train,
        val=val,
        test=_read_cifar(folder / _CIFAR_TEST),
        num_classes=10,
        mean=_CIFAR_MEAN,
        std=_CIFAR_STD,
        default_model="resnet8",
        augment=crop_and_flip,
    )


def _cifar_missing(folder: Path) -> list[str]:
    return [name for name in (*_CIFAR_TRAIN, _CIFAR_TEST) if not (folder / name).is_file()]


def _cifar_candidates(data: Path) -> tuple[Path, Path]:
    return data, data / _CIFAR_FOLDER


def _find_cifar(data: Path | None) -> Path:
    advice = (
        "download cifar-10-binary.tar.gz and unpack it there, or load the task with download=True "
        "(--download of `zerobit train` and `zerobit search`)"
    )
    if data is None and (fetched := _fetched_cifar()) is not None:
        return fetched
    if data is None:
        msg = f"`data` is None, but the task 'cifar10' needs the folder {_CIFAR_FOLDER}; {advice}"
        raise ValueError(msg)
    for folder in _cifar_candidates(data):
        if not _cifar_missing(folder):
            return folder
    # Name the folder that comes closest, so that one missing file reads as one missing file.
    folder = min(_cifar_candidates(data), key=lambda candidate: len(_cifar_missing(candidate)))
    missing = ", ".join(_cifar_missing(folder))
    msg = (
        f"`data` is {str(data)!r}, but {str(folder)!r} lacks {missing}; "
        f"it must be the folder {_CIFAR_FOLDER} (or hold it) with data_batch_1.bin to data_batch_5.bin "
        f"and test_batch.bin; {advice}"
    )
    raise ValueError(msg)


def _read_cifar(path: Path) -> Split:
    raw = np.fromfile(path, dtype=np.uint8)
    if raw.size == 0 or raw.size % _CIFAR_RECORD:
        msg = (
            f"`data`: {str(path)!r} has {raw.size} bytes, but must be one or more whole records "
            f"of {_CIFAR_RECORD} bytes; it was cut short or is another format, so fetch it again"
        )
        raise ValueError(msg)
    records = raw.reshape(-1, _CIFAR_RECORD)
    labels = records[:, 0]
    if labels.max() > 9:
        msg = (
            f"`data`: {str(path)!r} holds the label {labels.max()}, but CIFAR-10 has 0 to 9; "
            "it is damaged or is another format (CIFAR-100?), so fetch it again"
        )
        raise ValueError(msg)
    pixels = np.ascontiguousarray(records[:, 1:]).reshape(-1, 3, 32, 32)
    return Split(torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64)))


def _check_equal_lengths(folder: Path, lengths: list[int]) -> None:
    # A file cut between two records still reads well; only its length gives it away.
    if len(set(lengths)) > 1:
        counts = ", ".join(f"{name}: {num}" for name, num in zip(_CIFAR_TRAIN, lengths, strict=True))
        msg = (
            f"`data`: the files in {str(folder)!r} must hold equally many images, but hold {counts}; "
            "one was cut short, so fetch it again"
        )
        raise ValueError(msg)


def _cache() -> Path:
    """Where downloads go that are given no folder; pooch is installed."""
    import pooch

    return Path(pooch.os_cache("zerobit"))


def _fetched_cifar() -> Path | None:
    """The folder of an earlier download, if it is whole."""
    if find_spec("pooch") is None:
        return None
    return next((folder for folder in _cifar_candidates(_cache()) if not _cifar_missing(folder)), None)


def _download_cifar(data: Path | None) -> Path:
    try:
        import pooch
    except ImportError:
        msg = "`download` needs pooch; install it with: pip install 'zerobit[zoo]'"
        raise ImportError(msg) from None
    target = _cache() if data is None else data
    for folder in _cifar_candidates(target):
        if not _cifar_missing(folder):
            return folder
    archive = pooch.retrieve(_CIFAR_URL, known_hash=_CIFAR_HASH, fname=_CIFAR_URL.rsplit("/", 1)[1], path=target)
    unpack_tar(Path(archive), target)
    return _find_cifar(target)


def unpack_tar(archive: Path, target: Path) -> None:
    """Unpack a tar file below `target`.

    Args:
        archive: the tar file, compressed or not.
        target: folder to unpack into.

    Raises:
        ValueError: if a member would land outside `target`, or is no plain file or folder.
    """
    # Pythons before 3.11.4 have no filters, so what they refuse is refused here
    filters = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            inside = (target / member.name).resolve().is_relative_to(target.resolve())
            if not inside or not (member.isfile() or member.isdir()):
                msg = f"`archive` is {str(archive)!r}, but unpacking {member.name!r} is unsafe; do not trust this file"
                raise ValueError(msg)
        tar.extractall(target, **filters)  # type: ignore[arg-type]


# --- npz ------------------------------------------------------------------------------


def _npz(data: str | Path | None) -> Task:
    if data is None or not Path(data).is_file():
        msg = (
            f"`data` is {None if data is None else str(data)!r}, but the task 'npz' needs an existing "
            f".npz file with the arrays {', '.join(_NPZ_ARRAYS)}; write one with numpy.savez"
        )
        raise ValueError(msg)
    path = Path(data)
    arrays = _read_npz(path)
    train, val, test = (_npz_split(path, arrays, part) for part in ("train", "val", "test"))
    shape = tuple(train.x.shape[1:])
    for part, split in (("val", val), ("test", test)):
        if tuple(split.x.shape[1:]) != shape or split.x.dtype != train.x.dtype:
            msg = (
                f"`data`: x_{part} in {str(path)!r} holds images {tuple(split.x.shape[1:])} {split.x.dtype}, "
                f"but x_train {shape} {train.x.dtype}; all three must agree, so write it again"
            )
            raise ValueError(msg)
    mean, std = _channel_stats(train.x)
    num_classes = 1 + max(int(split.y.max()) for split in (train, val, test))
    default_model = "dscnn" if shape == (1, 49, 10) else "resnet8"
    return Task("npz", train, val, test, num_classes, mean, std, default_model)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        if not zipfile.is_zipfile(path):  # numpy would take any .npy or pickle file as well
            msg = "not a zip file"
            raise zipfile.BadZipFile(msg)
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in _NPZ_ARRAYS if name not in file]
            arrays = {name: file[name] for name in _NPZ_ARRAYS if name in file}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        msg = (
            f"`data` is {str(path)!r}, which cannot be read as an .npz file of plain arrays "
            f"({error}); write it again with numpy.savez"
        )
        raise ValueError(msg) from None
    if missing:
        msg = (
            f"`data`: {str(path)!r} lacks the arrays {', '.join(missing)}; "
            f"it must hold {', '.join(_NPZ_ARRAYS)}, so write it again with all of them"
        )
        raise ValueError(msg)
    return arrays


def _npz_split(path: Path, arrays: Mapping[str, np.ndarray], part: str) -> Split:
    x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
    where = f"`data`: arrays x_{part}, y_{part} in {str(path)!r}"
    if y.dtype.kind not in "iu" or (y.size and y.min() < 0):
        msg = f"{where}: `y` has dtype {y.dtype}, but must be integers, 0 or more; write the class numbers"
        raise ValueError(msg)
    if x.dtype != np.uint8 and x.dtype.kind != "f":
        msg = f"{where}: `x` has dtype {x.dtype}, but must be uint8 or float; convert it"
        raise ValueError(msg)
    if x.dtype.kind == "f":
        x = x.astype(np.float32)
        if not np.isfinite(x).all():
            msg = f"{where}: `x` holds NaN or infinity, but must be finite; clean the data"
            raise ValueError(msg)
    try:
        return Split(torch.from_numpy(x), torch.from_numpy(y.astype(np.int64)))
    except ValueError as error:
        msg = f"{where}: {error}"
        raise ValueError(msg) from None


def _channel_stats(x: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel of [N, C, H, W], in units of [0, 1]."""
    scale = 255 if x.dtype == torch.uint8 else 1
    mean: list[float] = []
    std: list[float] = []
    # One channel at a time, so that the float64 copy stays small.
    for channel in x.unbind(1):
        values = channel.to(torch.float64) / scale
        mean.append(values.mean().item())
        deviation = values.std(correction=0).item()
        # A constant channel becomes zero rather than NaN.
        std.append(deviation if deviation > 0 and math.isfinite(deviation) else 1.0)
    return tuple(mean), tuple(std)
