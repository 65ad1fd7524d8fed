"""Which zerobit writes a file."""

from importlib.metadata import PackageNotFoundError, version

#: Entry of a file's metadata that says so.
VERSION = "zerobit.version"


def zerobit_version() -> str:
    """Version of the installed package; "not installed" where it runs from a source tree."""
    try:
        return version("zerobit")
    except PackageNotFoundError:
        return "not installed"
