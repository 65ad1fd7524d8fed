"""Set-up that every test shares."""

import torch
from hypothesis import settings

# Derandomised, so that a failure is the same everywhere; no deadline, because the first
# call into torch is slow.
settings.register_profile("zerobit", deadline=None, derandomize=True)
settings.load_profile("zerobit")

# The networks here are so small that threads cost more than they save, all the more between
# the workers of pytest-xdist.
torch.set_num_threads(1)
