"""Errors a user can cause; each message says what it was, what is allowed and what to do.

ValueError
`-- ZerobitError        everything below, for one `except`
    |-- CaptureError    torch.export can't take the model, or the example inputs don't fit it
    |-- FormatError     a bit width, pattern or number format that can't be
    |-- BudgetError     a budget that can't be read or can't be met
    |-- PlanError       a plan that doesn't fit the network, or can't be read
    |-- CheckpointError a file that can't be read, is truncated or belongs to something else
    |-- TrainingError   a loss or gradient that is not finite, or inputs of the wrong form
    `-- ExportError     a network that the chosen file format can't hold

Broken invariants of our own are assertions, never one of these.
"""


class ZerobitError(ValueError):
    """Base of all errors that a user of zerobit can cause and mend."""


class CaptureError(ZerobitError):
    """The model can't be captured as a graph, or the example inputs don't fit it."""


class FormatError(ZerobitError):
    """A bit width or number format that can't be."""


class BudgetError(ZerobitError):
    """A budget that can't be read, or that the network can't meet."""


class PlanError(ZerobitError):
    """A plan that can't be read or doesn't fit the network."""


class CheckpointError(ZerobitError):
    """A checkpoint or run folder that is missing, truncated or of another network."""


class TrainingError(ZerobitError):
    """Training can't go on: a value that is not finite, or data of the wrong form."""


class ExportError(ZerobitError):
    """The network can't be written in the chosen file format."""
