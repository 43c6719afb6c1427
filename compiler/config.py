"""Settings from the environment, read here and nowhere else.

TAPEOUT_DEBUG   comma-separated: passes (what ran), rules (which fired), verify (compare values after each
                pass), time (seconds of each)
TAPEOUT_DUMP    a folder: the circuit after each pass is written there as numbered text files
TAPEOUT_SKIP    comma-separated names of execution passes to leave out
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tapeout.ir.errors import PassError

_DEBUG = frozenset(("passes", "rules", "verify", "time"))


@dataclass(frozen=True, slots=True)
class Config:
    """The settings.

    Attributes:
        debug: what to say on standard error.
        dump: where to write circuits; None for nowhere.
        skip: passes to leave out.
    """

    debug: frozenset[str] = frozenset()
    dump: Path | None = None
    skip: frozenset[str] = frozenset()


def from_environment() -> Config:
    """The settings of this moment.

    Raises:
        PassError: if TAPEOUT_DEBUG holds a word that means nothing.
    """
    debug, skip = _words("TAPEOUT_DEBUG"), _words("TAPEOUT_SKIP")
    unknown = debug - _DEBUG
    if unknown:
        raise PassError(
            f"TAPEOUT_DEBUG holds {', '.join(sorted(unknown))}", hint=f"it takes {', '.join(sorted(_DEBUG))}"
        )
    dump = os.environ.get("TAPEOUT_DUMP")
    return Config(debug, Path(dump) if dump else None, skip)


def _words(variable: str) -> frozenset[str]:
    return frozenset(word.strip() for word in os.environ.get(variable, "").split(",") if word.strip())
