"""Heat maps: a matrix of effects as a picture, and as a page that shows the values under the pointer."""

from __future__ import annotations

import os
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tapeout.ir.errors import DataError

if TYPE_CHECKING:
    import altair as alt
    import xarray as xr

_CELL = 28
"""The side of a square where there are few, in pixels before the picture is scaled."""

_MOST_WIDTH, _MOST_HEIGHT = 720, 960
"""How large all of them together may be."""


_SHORT = 2
"""Characters of a label that fit below a square."""


def heat_map(effects: xr.DataArray, title: str = "") -> alt.Chart:
    """A chart of a matrix: a square a value, in colours centred on 0 (blue above, red below).

    Args:
        effects: two axes with names and labels, the rows first; its name says what the values are. Values that
            are not there (NaN) are left blank.
        title: above the chart.

    Returns:
        An Altair chart: `chart.save("x.html")`, or a notebook shows it.

    Raises:
        DataError: for an array of another rank.
    """
    import altair as alt

    if effects.ndim != 2:
        raise DataError(
            f"a heat map of an array with the axes {', '.join(map(str, effects.dims)) or 'none'}",
            hint='choose or average until two are left: effects.mean("prompt"), effects.sel(position=15)',
        )
    rows, columns = (str(dim) for dim in effects.dims)
    quantity = str(effects.name or "effect")
    angle = 0 if max(len(str(label)) for label in effects[columns].values.tolist()) <= _SHORT else -90
    largest = float(abs(effects).max().fillna(0)) or 1.0
    colour = alt.Color("value:Q", title=quantity).scale(scheme="redblue", domain=[-largest, largest])
    chart: alt.Chart = (
        alt.Chart(alt.Data(values=_records(effects)), title=title)
        .mark_rect()
        .encode(
            x=alt.X("column:N", title=columns, sort=None, axis=alt.Axis(labelOverlap=True, labelAngle=angle)),
            y=alt.Y("row:N", title=rows, sort=None, axis=alt.Axis(labelOverlap=True)),
            color=colour,
            tooltip=[
                alt.Tooltip("row:N", title=rows),
                alt.Tooltip("column:N", title=columns),
                alt.Tooltip("value:Q", title=quantity, format=".4f"),
            ],
        )
        .properties(
            width=min(_CELL * effects.shape[1], _MOST_WIDTH), height=min(_CELL * effects.shape[0], _MOST_HEIGHT)
        )
    )
    return chart


def _records(effects: xr.DataArray) -> list[dict[str, Any]]:
    rows, columns = (effects[dim].values.tolist() for dim in effects.dims)
    values = effects.values.tolist()
    return [
        {"row": str(row), "column": str(column), "value": value}
        for row, line in zip(rows, values, strict=True)
        for column, value in zip(columns, line, strict=True)
        if value == value
    ]


def write_heat_map(chart: alt.Chart, folder: Path, name: str = "heat_map") -> list[Path]:
    """Writes `name.png` and `name.html` to a folder; the page holds all that it needs and loads nothing.

    Each file appears whole or not at all.

    Returns:
        the two files.
    """
    picture, page = BytesIO(), StringIO()
    chart.save(picture, format="png", scale_factor=2)
    chart.save(page, format="html", inline=True)
    contents = {f"{name}.png": picture.getvalue(), f"{name}.html": page.getvalue().encode()}
    for file, content in contents.items():
        partial = folder / f".{file}"
        partial.write_bytes(content)
        os.replace(partial, folder / file)
    return [folder / file for file in contents]
