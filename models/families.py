"""The model families that there are."""

from __future__ import annotations

from typing import Any

from tapeout.ir.errors import ModelError
from tapeout.models.family import Family
from tapeout.models.gpt2 import GPT2
from tapeout.models.llama import LLAMA

FAMILIES: dict[str, Family] = {family.model_type: family for family in (GPT2, LLAMA)}
"""Every model family by Hugging Face's name for it."""


def family_of(config: Any) -> Family:
    """The family of the models that have this configuration.

    Raises:
        ModelError: if the architecture or a field of the configuration is not supported.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise ModelError(
            f"models of type {config.model_type!r} are not supported",
            hint=f"supported are {', '.join(sorted(FAMILIES))}",
        )
    family.check_config(config)
    return family
