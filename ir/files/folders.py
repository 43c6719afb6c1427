"""Folders that appear whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

from tapeout.ir.errors import ArtefactError


@contextmanager
def written_folder(target: Path) -> Iterator[Path]:
    """A new folder to fill; at the end it takes the place of the target, and of what was there.

    After an error or an interruption everything is as it was before.

    Raises:
        ArtefactError: if it cannot be written.
    """
    temporary = target.with_name(f".{target.name}.{uuid4().hex}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        publish(temporary, target)
    except OSError as error:
        raise _unwritable(target, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_writable(target: Path) -> None:
    """Tries to make a folder beside the target, which is absolute: before long work whose result goes there.

    Raises:
        ArtefactError: if none can be made.
    """
    try:
        beside = next(folder for folder in target.parents if folder.exists())
        with TemporaryDirectory(dir=beside, prefix=f".{target.name}."):
            pass
    except OSError as error:
        raise _unwritable(target, error) from error


def _unwritable(target: Path, error: OSError) -> ArtefactError:
    return ArtefactError(
        f"{target} cannot be written: {error}", hint="check the disk's space and the folder's permissions"
    )


def publish(built: Path, target: Path) -> None:
    """Moves a finished folder to its place. What was there before is put back if that fails."""
    previous = previous_of(target)
    if target.exists():
        shutil.rmtree(previous, ignore_errors=True)
        target.rename(previous)
    try:
        built.rename(target)
    except BaseException:
        if previous.exists() and not target.exists():
            previous.rename(target)
        raise
    shutil.rmtree(previous, ignore_errors=True)


def previous_of(target: Path) -> Path:
    """Where the old folder is for the moment in which the new one takes its place."""
    return target.with_name(f".{target.name}.previous")


def existing_folder(target: Path, manifest: str, writer: str) -> Path:
    """The folder that was written there; the one before it if the process that was replacing that was killed.

    Args:
        target: where it was written.
        manifest: the name of a file that every such folder has.
        writer: what writes such folders, for the hint.

    Raises:
        ArtefactError: if there is none.
    """
    if target.is_dir():
        return target
    if not target.exists() and target.name and (previous_of(target) / manifest).is_file():
        return previous_of(target)
    raise ArtefactError(
        f"{target} is {'no folder' if target.exists() else 'missing'}", hint=f"give the folder that {writer} wrote"
    )
