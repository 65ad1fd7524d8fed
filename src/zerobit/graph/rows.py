"""A weight as one row per output channel, whatever its layout, and back."""

from torch import Tensor

from zerobit.graph.ir import Rows


def to_rows(w: Tensor, rows: Rows) -> Tensor:
    """[C, K], one row for each of the C output channels.

    Args:
        w: a weight in the layout of its layer.
        rows: how its output channels lie.
    """
    return _channels_first(w, rows).flatten(1)


def from_rows(flat_CK: Tensor, like: Tensor, rows: Rows) -> Tensor:
    """The weight in its layer's layout again; the inverse of `to_rows`.

    Args:
        flat_CK: [C, K].
        like: a weight of the wanted shape.
        rows: how its output channels lie.
    """
    shape = _channels_first(like, rows).shape
    w = flat_CK.reshape(shape)
    if rows.groups > 1:
        blocks = w.reshape(rows.groups, -1, *shape[1:]).transpose(1, 2)
        return blocks.reshape(like.shape)
    return w.movedim(0, rows.dim)


def _channels_first(w: Tensor, rows: Rows) -> Tensor:
    if rows.groups > 1:  # [g * I, O, *k] -> [g * O, I, *k], I and O of one group
        blocks = w.reshape(rows.groups, -1, *w.shape[1:]).transpose(1, 2)
        return blocks.reshape(rows.groups * w.shape[1], -1, *w.shape[2:])
    return w.movedim(rows.dim, 0)
