"""Set-up that every test shares."""

from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Derandomised, so that a failure is the same everywhere; no deadline, because the first
# call into torch is slow.
settings.register_profile("zerobit", deadline=None, derandomize=True)
settings.load_profile("zerobit")

# The networks here are so small that threads cost more than they save, all the more between
# the workers of pytest-xdist.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder, not to be changed."""
    from commands import short_run  # the commands take a while to import, and few tests use them

    return short_run(tmp_path_factory.mktemp("cli") / "run")
