"""The golden fixture itself: it fails on a missing text and on another one, and writes only when told to."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]


def run(pytester: pytest.Pytester, text: str, *options: str) -> dict[str, int]:
    pytester.makepyfile(test_it=f"def test_it(golden):\n    golden('folder/name', {text!r})\n")
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", *options)
    return result.parseoutcomes()


def test_golden_texts(pytester: pytest.Pytester) -> None:
    conftest = Path(__file__).with_name("conftest.py")
    pytester.makeconftest(conftest.read_text(encoding="utf-8"))
    path = pytester.path / "golden" / "folder" / "name.txt"
    assert run(pytester, "one\ntwo") == {"failed": 1}
    assert not path.exists()
    assert run(pytester, "one\ntwo", "--update-golden") == {"passed": 1}
    assert path.read_text(encoding="utf-8") == "one\ntwo\n"
    assert run(pytester, "one\ntwo") == {"passed": 1}
    assert run(pytester, "one\n2") == {"failed": 1}
    assert path.read_text(encoding="utf-8") == "one\ntwo\n"
