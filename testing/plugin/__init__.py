"""The pytest plugin: golden texts of circuits.

Installed, this is the package `pytest_tapeout`, beside `tapeout` and not in it: pytest loads its plugins at every
start, and must not load torch for that.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from tapeout.ir import Circuit

OPTION, FOLDER = "--update-golden", "tapeout_golden"


class CircuitGolden(Protocol):
    """What the fixture `circuit_golden` gives."""

    def __call__(self, name: str, circuit: Circuit | str) -> None:
        """Fails unless the golden text of that name is the circuit's; `name` may hold slashes."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the option and the setting."""
    group = parser.getgroup("tapeout")
    group.addoption(OPTION, action="store_true", help="write the golden texts of circuits anew; read the diff")
    parser.addini(FOLDER, "folder of golden texts, from the root; by default golden/ beside each test file")


@pytest.fixture
def circuit_golden(request: pytest.FixtureRequest) -> CircuitGolden:
    """`circuit_golden(name, circuit)` compares the circuit, or a text, with the file `golden/<name>.txt`.

    A missing file fails. `--update-golden` writes it: a change of a golden text is a change of behaviour.
    """
    folder = _folder(request)
    update = bool(request.config.getoption(OPTION))

    def compare(name: str, circuit: Circuit | str) -> None:
        __tracebackhide__ = True
        path = (folder / f"{name}.txt").resolve()
        if not path.is_relative_to(folder):
            pytest.fail(f"the golden text {name!r} would lie outside {folder}; give a name below it")
        wanted = _text(circuit).rstrip("\n") + "\n"
        if update:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted, encoding="utf-8")
        elif not path.exists():
            pytest.fail(f"there is no golden text {path}; write it with {OPTION} and read it")
        elif (found := path.read_text(encoding="utf-8")) != wanted:
            difference = difflib.unified_diff(found.splitlines(), wanted.splitlines(), "golden", "now", lineterm="")
            pytest.fail("\n".join([f"{path.name} differs:", *difference]))

    return compare


def _folder(request: pytest.FixtureRequest) -> Path:
    configured = str(request.config.getini(FOLDER) or "")
    base = request.config.rootpath / configured if configured else request.path.parent / "golden"
    return base.resolve()


def _text(circuit: Any) -> str:
    if isinstance(circuit, str):
        return circuit
    from tapeout.ir import circuit_text

    return circuit_text(circuit)
