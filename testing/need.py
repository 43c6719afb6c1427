"""What tests need and programs do not."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from tapeout.ir.errors import UnsupportedError


def need(module: str) -> Any:
    """The module.

    Raises:
        UnsupportedError: if it is not installed.
    """
    package = module.partition(".")[0]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            f"this part of tapeout.testing needs {package}, which is not installed", hint=f"pip install {package}"
        ) from error
