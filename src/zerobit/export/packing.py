"""Integers of a few bits in bytes, for all formats."""

import numpy as np
from numpy.typing import NDArray


def pack_bits(values: NDArray[np.int8], bits: int) -> bytes:
    """Two's complement fields of 2, 4 or 8 bits, low bits of a byte first; zeros fill the last byte."""
    per_byte = 8 // bits
    flat = values.reshape(-1).view(np.uint8) & np.uint8((1 << bits) - 1)
    fields = np.pad(flat, (0, -len(flat) % per_byte)).reshape(-1, per_byte)
    shifts = (np.arange(per_byte) * bits).astype(np.uint8)
    return np.bitwise_or.reduce(fields << shifts, axis=1).astype(np.uint8).tobytes()
