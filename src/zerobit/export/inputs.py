"""What files of all formats say of their inputs in their metadata: how they become integers."""

from typing import Any

from zerobit.integer.ir import Feed, IntegerTensor, Quantize, clip_range

#: Entry that says how each input becomes integers, as JSON.
INPUT = "zerobit.input"


def describe_input(op: Quantize | Feed, tensor: IntegerTensor, zero: int) -> dict[str, Any]:
    """How an input becomes integers: clip(rint((value - mean) / std / scale) + zero_point, *range), in float32.

    Args:
        op: the input.
        tensor: that it makes.
        zero: where the file stores the integer 0.

    Returns:
        "mean" and "std" (per channel), "scale", "zero_point", "range"; the last three are None for an input that is
        computed with in float, and so is what does not apply.
    """
    moments = {name: None if x is None else x.tolist() for name, x in (("mean", op.mean), ("std", op.std))}
    if tensor.is_float:
        return {**moments, **dict.fromkeys(("scale", "zero_point", "range"))}
    limits = [limit + zero for limit in clip_range(op, tensor)]
    return {**moments, "scale": float(tensor.step), "zero_point": zero, "range": limits}
