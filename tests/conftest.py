"""What every test may use: golden texts, and hypothesis without deadlines.

Examples are the same in every run; `--hypothesis-profile fresh` draws others.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

GOLDEN = Path(__file__).parent / "golden"

settings.register_profile(
    "tapeout",
    deadline=None,
    derandomize=True,
    database=None,
    print_blob=False,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
settings.register_profile("fresh", settings.get_profile("tapeout"), derandomize=False)
settings.load_profile("tapeout")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden texts anew; read the diff")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden(name, text)` fails unless `tests/golden/<name>.txt` holds that text."""
    update = bool(request.config.getoption("--update-golden"))

    def compare(name: str, text: str) -> None:
        path = GOLDEN / f"{name}.txt"
        wanted = text.rstrip("\n") + "\n"
        if update:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted, encoding="utf-8")
        elif not path.exists():
            pytest.fail(f"there is no golden text {path}; write it with --update-golden and read it")
        elif (found := path.read_text(encoding="utf-8")) != wanted:
            difference = difflib.unified_diff(found.splitlines(), wanted.splitlines(), "golden", "now", lineterm="")
            pytest.fail(f"{path.name} differs:\n" + "\n".join(difference))

    return compare
