"""What a sweep gives: an array with labels."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile, ZipFile

import numpy as np

from tapeout.ir.errors import ArtefactError, MatchError
from tapeout.tasks.patching.sweeps.variants import Variants

if TYPE_CHECKING:
    import xarray as xr

PROMPT = "prompt"
"""The name of the last axis, over the rows of the data."""


@dataclass(frozen=True, eq=False)
class SweepResult:
    """The metric of every variant on every prompt. It is labelled when that is asked for: xarray takes long to load.

    Args:
        coords: the labels of each axis: those of the variants, then `prompt`.
        numbers: the metric, float64; NaN for cells that are empty or were not computed.
        baseline_numbers: the metric without any change, one number a prompt.
        complete: whether all variants were computed; False after an interruption.
    """

    coords: Mapping[str, Sequence[Any]]
    numbers: np.ndarray[Any, Any]
    baseline_numbers: np.ndarray[Any, Any]
    complete: bool = True

    @cached_property
    def values(self) -> xr.DataArray:
        """The metric with its labels."""
        return _labelled(self.numbers, self.coords)

    @cached_property
    def baseline(self) -> xr.DataArray:
        """The metric without any change, with the label of each prompt."""
        return _labelled(self.baseline_numbers, {PROMPT: self.coords[PROMPT]} if PROMPT in self.coords else {})

    @property
    def dims(self) -> tuple[str, ...]:
        return tuple(self.coords)

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
        coords = {name: labels for name, labels in self.coords.items() if name != dim}
        baseline = np.asarray(self.baseline_numbers.mean()) if dim == PROMPT else self.baseline_numbers
        return SweepResult(coords, self.numbers.mean(self.dims.index(dim)), baseline, self.complete)

    def to_numpy(self) -> np.ndarray[Any, Any]:
        """The values; axes as in `dims`."""
        return self.numbers

    def to_pandas(self) -> Any:
        """A pandas Series with one level of its index for each axis; empty cells are left out."""
        return self.values.to_series().dropna()

    def save(self, path: str | Path) -> list[Path]:
        """Writes `PATH.npz` (values, baseline) and `PATH.json` (axes, labels), and `PATH.parquet` if pyarrow is there.

        Each file appears whole or not at all. `PATH.npz` given as the path means the same.

        Returns:
            The files.

        Raises:
            ArtefactError: if they cannot be written.
        """
        path = _without_ending(path)
        try:
            return self._save(path)
        except OSError as error:
            raise ArtefactError(
                f"{path} cannot be written: {error}", hint="check the disk's space and the folder's permissions"
            ) from error

    def _save(self, path: Path) -> list[Path]:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
            made = [Path(folder) / f"{path.name}{ending}" for ending in (".npz", ".json")]
            np.savez(made[0], values=self.numbers, baseline=self.baseline_numbers)
            coords = {dim: np.asarray(labels).tolist() for dim, labels in self.coords.items()}
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
        """What `save` wrote under that path.

        Raises:
            ArtefactError: if it is missing or damaged.
        """
        path = _without_ending(path)
        try:
            about = json.loads(path.with_name(f"{path.name}.json").read_text(encoding="utf-8"))
            with ZipFile(path.with_name(f"{path.name}.npz")) as file:
                values, baseline = (_read_array(file, name) for name in ("values", "baseline"))
            return SweepResult(about["coords"], values, baseline, about["complete"])
        except (OSError, ValueError, KeyError, TypeError, BadZipFile) as error:
            raise ArtefactError(
                f"there is no result of a sweep at {path}: {error}",
                hint="give the path that SweepResult.save was given; tapeout patch writes OUT/sweep",
            ) from error


def _without_ending(path: str | Path) -> Path:
    path = Path(path)
    return path.with_suffix("") if path.suffix in (".npz", ".json", ".parquet") else path


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
    return SweepResult({**coords, PROMPT: list(range(len(baseline)))}, values, baseline, complete)


def _labelled(numbers: np.ndarray[Any, Any], coords: Mapping[str, Sequence[Any]]) -> xr.DataArray:
    import xarray as xr

    return xr.DataArray(numbers, dict(coords), list(coords), name="metric")
