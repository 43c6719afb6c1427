"""What commands print with --json."""

from __future__ import annotations

import json
import math
from typing import Any


def json_text(facts: Any, indent: int | None = None) -> str:
    """JSON that every reader takes: null where a number is none, or has no end."""
    return json.dumps(_plain(facts), indent=indent, allow_nan=False)


def _plain(facts: Any) -> Any:
    if isinstance(facts, dict):
        return {name: _plain(each) for name, each in facts.items()}
    if isinstance(facts, list | tuple):
        return [_plain(each) for each in facts]
    return None if isinstance(facts, float) and not math.isfinite(facts) else facts
