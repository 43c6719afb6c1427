"""The pytest plugin in suites of its own: golden texts, where they lie, and how little is loaded at the start."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import tapeout  # noqa: F401 (pytester forgets what a suite imported, and torch cannot be imported twice)

pytest_plugins = ["pytester"]

PLUGIN = ("-p", "tapeout.testing.plugin", "-p", "no:cacheprovider")
SOURCE = Path(__file__).parents[2] / "testing" / "plugin" / "__init__.py"

TEXT = "def test_it(circuit_golden):\n    circuit_golden('folder/name', {text!r})\n"
CIRCUIT = """
import tapeout as rc

def test_it(circuit_golden):
    circuit_golden("sum", rc.Add(rc.Scalar({value}, (2,), "a"), rc.Scalar(3.0, (2,), "b"), name="sum"))
"""


def run(pytester: pytest.Pytester, *options: str) -> dict[str, int]:
    return pytester.runpytest_inprocess(*PLUGIN, *options).parseoutcomes()


def test_golden_texts_lie_beside_the_test(pytester: pytest.Pytester) -> None:
    path = pytester.path / "golden" / "folder" / "name.txt"
    pytester.makepyfile(test_it=TEXT.format(text="one\ntwo"))
    assert run(pytester) == {"failed": 1}
    assert not path.exists()
    assert run(pytester, "--update-golden") == {"passed": 1}
    assert path.read_text(encoding="utf-8") == "one\ntwo\n"
    assert run(pytester) == {"passed": 1}
    pytester.makepyfile(test_it=TEXT.format(text="one\n2"))
    result = pytester.runpytest_inprocess(*PLUGIN)
    assert result.parseoutcomes() == {"failed": 1}
    result.stdout.fnmatch_lines(["*name.txt differs:*", "*-two", "*+2"])
    assert path.read_text(encoding="utf-8") == "one\ntwo\n"


def test_a_circuit_is_compared_by_its_text(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=CIRCUIT.format(value=1.0))
    assert run(pytester, "--update-golden") == {"passed": 1}
    text = (pytester.path / "golden" / "sum.txt").read_text(encoding="utf-8")
    assert text == "'sum' [2] Add\n  'a' [2] Scalar 1\n  'b' [2] Scalar 3\n"
    assert run(pytester) == {"passed": 1}
    pytester.makepyfile(test_it=CIRCUIT.format(value=2.0))
    result = pytester.runpytest_inprocess(*PLUGIN)
    assert result.parseoutcomes() == {"failed": 1}
    result.stdout.fnmatch_lines(["*-*'a' [[]2[]] Scalar 1", "*+*'a' [[]2[]] Scalar 2"])


def test_the_folder_can_be_set(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\ntapeout_golden = texts\n")
    below = pytester.mkdir("below")
    (below / "test_it.py").write_text(TEXT.format(text="one"), encoding="utf-8")
    assert run(pytester, "--update-golden") == {"passed": 1}
    assert (pytester.path / "texts" / "folder" / "name.txt").read_text(encoding="utf-8") == "one\n"
    assert not (below / "golden").exists()


def test_no_name_leads_outside(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it="def test_it(circuit_golden):\n    circuit_golden('../name', 'x')\n")
    result = pytester.runpytest_inprocess(*PLUGIN, "--update-golden")
    assert result.parseoutcomes() == {"failed": 1}
    result.stdout.fnmatch_lines(["*would lie outside*give a name below it*"])
    assert not (pytester.path / "name.txt").exists()


def test_a_suite_may_name_the_plugin_a_second_time(pytester: pytest.Pytester) -> None:
    """As ours does, so that it works in a checkout too."""
    pytester.makeconftest('pytest_plugins = ["tapeout.testing.plugin"]')
    pytester.makepyfile(test_it=TEXT.format(text="one"))
    assert run(pytester, "--update-golden") == {"passed": 1}


def test_the_option_is_explained(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_inprocess(*PLUGIN, "--help")
    result.stdout.fnmatch_lines(["*--update-golden*write the golden texts of circuits anew*", "*tapeout_golden*"])


LOADED = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("plugin", sys.argv[1])
spec.loader.exec_module(importlib.util.module_from_spec(spec))
print(*{name.partition(".")[0] for name in sys.modules})
"""


def test_the_plugin_loads_neither_torch_nor_tapeout() -> None:
    done = subprocess.run([sys.executable, "-c", LOADED, str(SOURCE)], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "pytest" in loaded
    assert loaded.isdisjoint({"torch", "tapeout", "hypothesis"})


@pytest.mark.skipif(not list(entry_points(group="pytest11", name="tapeout.testing.plugin")), reason="not installed")
def test_installed_it_is_there_by_itself_and_light(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_it="import sys\n\ndef test_it(circuit_golden):\n    circuit_golden('name', 'x')\n"
        "    assert 'torch' not in sys.modules and 'tapeout' not in sys.modules\n"
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "--update-golden")
    assert result.parseoutcomes() == {"passed": 1}
