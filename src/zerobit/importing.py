"""Importing what a user names as MODULE:NAME."""

import importlib
import sys
from pathlib import Path
from typing import Any


def import_object(module: str, name: str) -> Any:
    """An attribute of a module, which may lie in the working folder, as `python -m` finds it.

    Raises:
        ImportError: there is no such module.
        AttributeError: it has no such attribute.
        ValueError: the name of the module is empty.
    """
    sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module), name)
    finally:
        sys.path.pop(0)
