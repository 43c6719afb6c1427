"""What the tests of the commands share: a tiny checkpoint, and the command in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from command import Ran

from tapeout import cli

Run = Callable[..., Ran]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = tiny.word_tokenizer()
    return tiny.save(tiny.gpt2(len(tokenizer)), tmp_path_factory.mktemp("gpt2"), tokenizer)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in this process."""

    def invoke(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["tapeout", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return Ran(int(end.value.code or 0), captured.out, captured.err)

    return invoke
