"""The version of tapeout itself."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def own_version() -> str:
    """The version that is installed; "0+unknown" in a checkout on the path that is not."""
    try:
        return version("tapeout")
    except PackageNotFoundError:
        return "0+unknown"
