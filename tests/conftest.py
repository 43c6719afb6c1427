"""What every test may use: golden texts, and hypothesis without deadlines.

Examples are the same in every run; `--hypothesis-profile fresh` draws others.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ["tapeout.testing.plugin"]  # where it is installed, pytest has it under this name already

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


@pytest.fixture
def golden(circuit_golden: Callable[[str, str], None]) -> Callable[[str, str], None]:
    """`golden(name, text)` fails unless `tests/golden/<name>.txt` holds that text."""
    return circuit_golden
