"""Labelled images in memory, and batches of them.

Whole data sets are kept as one tensor each: the sets of the zoo are small, and slicing
one tensor is many times faster than a loader that collates single images.

Shape letters: N images, B batch, C channels, H height, W width.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_RAW_DTYPES = (torch.uint8, torch.float32)

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""Random change of raw images [B, C, H, W]; keeps shape and dtype, draws only from the generator."""


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels.

    Attributes:
        x: raw images [N, C, H, W], uint8 in 0..255 or float32.
        y: labels [N], int64.

    Raises:
        ValueError: if shapes or dtypes are not these, or the split is empty.
    """

    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        """Check shapes and dtypes once, so that nothing after has to."""
        if self.x.ndim != 4:
            msg = f"`x` has shape {tuple(self.x.shape)}, but must have 4 axes [N, C, H, W]; reshape it"
            raise ValueError(msg)
        if self.x.dtype not in _RAW_DTYPES:
            msg = f"`x` has dtype {self.x.dtype}, but must be uint8 or float32; convert it"
            raise ValueError(msg)
        if self.y.dtype != torch.int64:
            msg = f"`y` has dtype {self.y.dtype}, but must be int64; convert it"
            raise ValueError(msg)
        if len(self.x) == 0 or self.y.shape != self.x.shape[:1]:
            msg = (
                f"`y` has shape {tuple(self.y.shape)} and `x` {tuple(self.x.shape)}, "
                "but there must be one label per image and at least one image"
            )
            raise ValueError(msg)

    def __len__(self) -> int:
        """Return the number of images N."""
        return len(self.x)


@dataclass(frozen=True, eq=False)
class Task:
    """A data set with everything needed to train on it.

    Attributes:
        name: name of the data set.
        train: images to train on.
        val: images to choose by (early stopping, search).
        test: images to report on, and for nothing else.
        num_classes: number of classes K; labels are 0..K-1.
        mean: mean of each channel, in units of the [0, 1] image.
        std: standard deviation of each channel, in the same units.
        default_model: name of the zoo network that fits this data.
        augment: random change of raw training images, or None.
    """

    name: str
    train: Split
    val: Split
    test: Split
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    default_model: str
    augment: Augment | None = None

    def normalise(self, x: Tensor) -> Tensor:
        """Turn raw images into network input.

        Args:
            x: raw images [..., C, H, W]; uint8 is divided by 255 first.

        Returns:
            float32 images of the same shape, `(x - mean) / std` per channel.
        """
        mean = torch.tensor(self.mean, device=x.device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=x.device).view(-1, 1, 1)
        unit = x.to(torch.float32) / 255 if x.dtype == torch.uint8 else x
        return unit.sub(mean).div_(std)


def crop_and_flip(x: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Shift each image by up to `padding` pixels and mirror half of them.

    The usual CIFAR augmentation: pad with zeros, crop to the old size at a random
    place, flip left-right with probability 1/2; every image draws its own numbers.

    Args:
        x: images [B, C, H, W] of any dtype.
        generator: CPU generator, the only source of randomness.
        padding: largest shift, pixels.

    Returns:
        New images [B, C, H, W] of the same dtype.
    """
    num, _, height, width = x.shape
    top_B, left_B = torch.randint(2 * padding + 1, (2, num), generator=generator).to(x.device)
    flip_B = torch.rand(num, generator=generator).lt(0.5).to(x.device)
    padded = F.pad(x, (padding, padding, padding, padding))
    # A view of all crops [B, C, top, left, H, W]: picking one per image copies whole windows.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    crop = windows[torch.arange(num, device=x.device), :, top_B, left_B]
    return torch.where(flip_B.view(-1, 1, 1, 1), crop.flip(-1), crop)


class Batches:
    """Normalised batches of a split, the same for the same seed and epoch.

    Every pass draws from a generator of its own, so the batches neither depend on the
    global random state nor change it. Call `set_epoch` before each pass for a new order.
    """

    def __init__(
        self,
        split: Split,
        task: Task,
        batch_size: int,
        shuffle: bool = False,
        augment: bool = False,
        seed: int = 0,
    ) -> None:
        """Prepare batches; nothing is read or drawn yet.

        Args:
            split: images to go through.
            task: where normalisation and augmentation come from.
            batch_size: images per batch, at least 1; the last batch may be smaller.
            shuffle: draw a new order each epoch.
            augment: apply the augmentation of `task`, if it has one.
            seed: 0 or more; with the epoch it fixes every random number.

        Raises:
            ValueError: if `batch_size` or `seed` is out of range.
        """
        if batch_size < 1:
            msg = f"`batch_size` is {batch_size}, but must be 1 or more; 64 to 256 suits most tasks"
            raise ValueError(msg)
        if seed < 0:
            msg = f"`seed` is {seed}, but must be 0 or more; choose another number"
            raise ValueError(msg)
        self._split = split
        self._task = task
        self._batch_size = batch_size
        self._shuffle = shuffle
        self._augment = task.augment if augment else None
        self._seed = seed
        self._epoch = 0

    @cached_property
    def identity(self) -> str:
        """Of the images and labels, and how batches are made of them; other data have another one."""
        mark = hashlib.sha256()
        for tensor in (self._split.x, self._split.y):
            mark.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            mark.update(tensor.cpu().contiguous().numpy().tobytes())
        made = self._batch_size, self._shuffle, self._augment is not None, self._seed, self._task.mean, self._task.std
        return f"{mark.hexdigest()[:16]} {made}"

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, 0 or more, whose order and augmentation the next pass uses.

        Raises:
            ValueError: if `epoch` is negative.
        """
        if epoch < 0:
            msg = f"`epoch` is {epoch}, but must be 0 or more; count epochs from 0"
            raise ValueError(msg)
        self._epoch = epoch

    def __len__(self) -> int:
        """Return the number of batches in a pass."""
        return -(-len(self._split) // self._batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (network input [B, C, H, W] float32, labels [B] int64)."""
        generator = self._generator()
        x, y = self._split.x, self._split.y
        order = torch.randperm(len(x), generator=generator) if self._shuffle else torch.arange(len(x))
        for index in order.to(x.device).split(self._batch_size):
            raw = x[index]
            if self._augment is not None:
                raw = self._augment(raw, generator)
            yield self._task.normalise(raw), y[index]

    def _generator(self) -> torch.Generator:
        # SeedSequence mixes the two numbers, so (0, 1) and (1, 0) are unrelated streams.
        state = np.random.SeedSequence([self._seed, self._epoch]).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(state[0]))
