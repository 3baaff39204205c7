"""The command, called in this process."""

from __future__ import annotations

import pytest

from tightpass.cli import main


def call(capsys, monkeypatch, *arguments):
    """Exit code, stdout and stderr."""
    monkeypatch.setattr("sys.argv", ["tightpass", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    captured = capsys.readouterr()
    return stop.value.code or 0, captured.out, captured.err
