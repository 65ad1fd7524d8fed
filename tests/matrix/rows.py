"""The matrix: every network that the laws are held on, and the coverage table lists. A new network is one row."""

from matrix.attention import ATTENTION
from matrix.convolutional import CONVOLUTIONAL
from matrix.others import OTHERS
from matrix.row import MatrixRow
from matrix.signals import SIGNALS
from matrix.third_party import THIRD_PARTY

MATRIX: tuple[MatrixRow, ...] = (*CONVOLUTIONAL, *SIGNALS, *ATTENTION, *OTHERS, *THIRD_PARTY)

#: What `make test` checks; the definitions of others need a package that only `make test-all` installs.
QUICK: tuple[MatrixRow, ...] = tuple(row for row in MATRIX if row.is_quick)
