"""Images as bytes: a pixel 0..255 means the real value pixel * float32(1/255), computed in float32.

Shape legend: N batch, C channels, H height, W width.
"""

import numpy as np
from numpy.typing import NDArray

from zerobit.errors import ExportError

#: Real value of one step of a pixel.
PIXEL_STEP = np.float32(1) / np.float32(255)


def pixels_to_real(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Real values 0..1 of pixels, of any shape."""
    return pixels.astype(np.float32) * PIXEL_STEP


def real_to_pixels(x: NDArray[np.generic]) -> NDArray[np.uint8]:
    """The nearest pixels of real values 0..1, of any shape.

    Raises:
        ExportError: a value lies outside by half a pixel or more.
    """
    pixels = np.rint(np.asarray(x, np.float32) * np.float32(255))
    if pixels.min(initial=0) < 0 or pixels.max(initial=0) > 255:
        msg = f"`samples` span {x.min()}..{x.max()}; a file that takes pixels needs uint8, or float values in 0..1"
        raise ExportError(msg)
    return pixels.astype(np.uint8)
