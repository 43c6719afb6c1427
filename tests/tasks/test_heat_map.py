"""Heat maps: what is drawn, and files that stand for themselves."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from tapeout.ir.errors import DataError
from tapeout.tasks.patching.heat_map import heat_map, write_heat_map

EFFECTS = xr.DataArray(
    [[0.5, -2.0, np.nan], [0.0, 1.0, 0.25]],
    dims=("layer", "head"),
    coords={"layer": [3, 4], "head": ["h0", "h1", "h2"]},
    name="logit difference",
)


def test_a_square_a_value_in_colours_centred_on_zero() -> None:
    spec = heat_map(EFFECTS, "Effects").to_dict()
    cells = {(each["row"], each["column"]): each["value"] for each in spec["data"]["values"]}
    assert cells == {("3", "h0"): 0.5, ("3", "h1"): -2.0, ("4", "h0"): 0.0, ("4", "h1"): 1.0, ("4", "h2"): 0.25}
    assert spec["encoding"]["color"]["scale"]["domain"] == [-2.0, 2.0]
    assert [spec["encoding"][axis]["title"] for axis in "yx"] == ["layer", "head"]
    assert [each["title"] for each in spec["encoding"]["tooltip"]] == ["layer", "head", "logit difference"]
    assert spec["title"] == "Effects"


def test_where_nothing_has_an_effect_the_scale_is_not_empty() -> None:
    assert heat_map(0 * EFFECTS).to_dict()["encoding"]["color"]["scale"]["domain"] == [-1.0, 1.0]
    empty = heat_map(EFFECTS.where(False)).to_dict()
    assert empty["encoding"]["color"]["scale"]["domain"] == [-1.0, 1.0] and empty["data"]["values"] == []


def test_another_rank_is_refused_with_the_way_out() -> None:
    with pytest.raises(DataError, match="axes layer, head, prompt") as caught:
        heat_map(EFFECTS.expand_dims(prompt=[0], axis=2))
    assert 'effects.mean("prompt")' in str(caught.value)


def test_the_picture_and_the_page_need_nothing_else(tmp_path: Path) -> None:
    picture, page = write_heat_map(heat_map(EFFECTS), tmp_path, "effects")
    assert picture.name == "effects.png" and picture.read_bytes().startswith(b"\x89PNG")
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"<(script|link)[^>]+(src|href)=", text)
    assert json.dumps(-2.0) in text
