"""The names that users import: each exists, is documented, and is the seed's where the seed has one."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from importlib.metadata import entry_points, version

import pytest

import tapeout
from tapeout.ir.errors import TapeoutError

MODULES = ("tapeout", "tapeout.ir", "tapeout.models", "tapeout.passes", "tapeout.tasks.ioi")

# What the seed and the system it was written for call by these names.
SEED_NAMES = """
    Add Array Circuit Concat DiscreteVar Einsum GeneralFunction Getter I Index IterativeMatcher Matcher Module
    ModuleArgSpec ModuleSpec RandomSampleSpec Rearrange Regex RunDiscreteVarAllSpec Sampler Scalar Scatter
    SetSymbolicShape Symbol Tag TorchDeviceDtype Updater cast_circuit conform_all_modules get_free_symbols
    module_new_bind new_traversal restrict split_to_concat substitute_all_modules
"""


def undocumented(name: str, value: object) -> str | None:
    """What is wrong with the documentation of a public name, or None."""
    if not (inspect.isclass(value) or inspect.isroutine(value)):
        return None
    text = value.__dict__.get("__doc__") if inspect.isclass(value) else value.__doc__
    if not text:
        return f"{name} has no docstring"
    if inspect.isclass(value) and text.startswith(f"{value.__name__}("):  # what @dataclass writes by itself
        return f"{name} has no docstring of its own"
    return None


@pytest.mark.parametrize("module", MODULES)
def test_listed_names_exist_and_are_documented(module: str) -> None:
    found = importlib.import_module(module)
    assert found.__doc__
    assert len(found.__all__) == len(set(found.__all__))
    missing = [name for name in found.__all__ if not hasattr(found, name)]
    assert missing == []
    assert [problem for name in found.__all__ if (problem := undocumented(name, getattr(found, name)))] == []


def test_missing_documentation_is_seen() -> None:
    class Silent(TapeoutError):
        pass

    assert undocumented("Silent", Silent) == "Silent has no docstring"
    assert undocumented("f", lambda: None) == "f has no docstring"


def test_star_import() -> None:
    names: dict[str, object] = {}
    exec("from tapeout import *", names)
    assert set(tapeout.__all__) <= set(names)


def test_seed_names() -> None:
    assert [name for name in SEED_NAMES.split() if name not in tapeout.__all__] == []


def test_import_lines_of_the_seed() -> None:
    """In a fresh interpreter: nothing has to be imported before."""
    lines = (
        "import tapeout as rc; rc.I",
        "from tapeout.passes import To, configure_transformer",
        "from tapeout.models import load_circuit",
        "from tapeout.tasks.ioi import IOIDataset, print_max_min_by_tok_k_torch",
        "import tapeout.models as remix_utils; remix_utils.load_gpt2_small_circuit",
    )
    for line in lines:
        subprocess.run([sys.executable, "-c", line], check=True, capture_output=True, timeout=120)


def test_every_error_is_a_tapeout_error_with_a_hint() -> None:
    kinds = [getattr(tapeout, name) for name in tapeout.__all__ if name.endswith("Error")]
    assert len(kinds) >= 12
    for kind in kinds:
        assert issubclass(kind, TapeoutError)
        assert "hint: do this" in str(kind("what is wrong", hint="do this", facts=["one", "two"]))


def test_version_is_that_of_the_distribution() -> None:
    assert tapeout.__version__ == version("tapeout")


def test_command_is_installed() -> None:
    (command,) = entry_points(group="console_scripts", name="tapeout")
    assert command.load() is importlib.import_module("tapeout.cli").main
