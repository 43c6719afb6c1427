"""What a sweep gives: an array with labels."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from zipfile import ZipFile

import numpy as np

from tapeout.ir.errors import MatchError
from tapeout.tasks.patching.variants import Variants

if TYPE_CHECKING:
    import xarray as xr

PROMPT = "prompt"
"""The name of the last axis, over the rows of the data."""


@dataclass(frozen=True, slots=True)
class SweepResult:
    """The metric of every variant on every prompt.

    Attributes:
        values: the metric, float64, with the axes of the variants and `prompt`; NaN for cells that are empty or were
            not computed.
        baseline: the metric without any change, one number a prompt.
        complete: whether all variants were computed; False after an interruption.
    """

    values: xr.DataArray
    baseline: xr.DataArray
    complete: bool = True

    @property
    def dims(self) -> tuple[str, ...]:
        return tuple(map(str, self.values.dims))

    def effect(self) -> xr.DataArray:
        """What each variant changes: the metric less that of the baseline."""
        out: xr.DataArray = (self.values - self.baseline).rename("effect")
        return out

    def mean(self, dim: str = PROMPT) -> SweepResult:
        """The mean over one axis.

        Raises:
            MatchError: if there is no such axis.
        """
        if dim not in self.dims:
            raise MatchError(f"there is no axis {dim!r}", hint=f"the axes are {', '.join(self.dims)}")
        baseline = self.baseline.mean(dim) if dim in self.baseline.dims else self.baseline
        return replace(self, values=self.values.mean(dim, skipna=False), baseline=baseline)

    def to_numpy(self) -> np.ndarray[Any, Any]:
        """The values; axes as in `dims`."""
        out: np.ndarray[Any, Any] = self.values.to_numpy()
        return out

    def to_pandas(self) -> Any:
        """A pandas Series with one level of its index for each axis; empty cells are left out."""
        return self.values.to_series().dropna()

    def save(self, path: str | Path) -> list[Path]:
        """Writes `PATH.npz` (values, baseline) and `PATH.json` (axes, labels), and `PATH.parquet` if pyarrow is there.

        Each file appears whole or not at all.

        Returns:
            The files.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
            made = [Path(folder) / f"{path.name}{ending}" for ending in (".npz", ".json")]
            np.savez(made[0], values=self.to_numpy(), baseline=self.baseline.to_numpy())
            coords = {dim: self.values[dim].to_numpy().tolist() for dim in self.dims}
            about = {"dims": self.dims, "coords": coords, "complete": self.complete}
            made[1].write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
            if find_spec("pyarrow") is not None:
                made.append(Path(folder) / f"{path.name}.parquet")
                self.to_pandas().to_frame().reset_index().to_parquet(made[2])
            out = [path.parent / file.name for file in made]
            for file, final in zip(made, out, strict=True):
                os.replace(file, final)
        return out

    @staticmethod
    def load(path: str | Path) -> SweepResult:
        """What `save` wrote under that path."""
        path = Path(path)
        about = json.loads(path.with_name(f"{path.name}.json").read_text(encoding="utf-8"))
        with ZipFile(path.with_name(f"{path.name}.npz")) as file:
            values, baseline = (_read_array(file, name) for name in ("values", "baseline"))
        return labelled(about["coords"], values, baseline, about["complete"])


def _read_array(file: ZipFile, name: str) -> np.ndarray[Any, Any]:
    """An array of an npz file; one that would have to be unpickled is refused."""
    with file.open(f"{name}.npy") as stream:
        out: np.ndarray[Any, Any] = np.lib.format.read_array(stream, allow_pickle=False)
        return out


def as_result(
    variants: Variants, values: np.ndarray[Any, Any], baseline: np.ndarray[Any, Any], complete: bool
) -> SweepResult:
    """The result of a sweep over variants: values [*axes of the variants, PROMPTS], baseline [PROMPTS]."""
    coords: dict[str, Any] = {dim: list(variants.coords[dim]) for dim in variants.dims}
    return labelled({**coords, PROMPT: list(range(len(baseline)))}, values, baseline, complete)


def labelled(
    coords: dict[str, Any], values: np.ndarray[Any, Any], baseline: np.ndarray[Any, Any], complete: bool
) -> SweepResult:
    import xarray as xr

    mine = {PROMPT: coords[PROMPT]} if baseline.ndim else {}
    return SweepResult(
        xr.DataArray(values, coords, list(coords), name="metric"),
        xr.DataArray(baseline, mine, list(mine), name="metric"),
        complete,
    )
