"""The commands of `jobs/` in the process of the tests, which has imported torch and Ray already."""

from __future__ import annotations

import runpy
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from jasper_ray.cli import signal_handlers_restored

JOBS = Path(__file__).resolve().parents[2] / "jobs"


@dataclass(frozen=True)
class Ended:
    """The exit code of a command, and its output."""

    code: object
    out: str
    err: str


class Commands:
    """Runs commands in a folder from which no model can be fetched."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys
        monkeypatch.chdir(folder)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(self, name: str, *words: str) -> Ended:
        """Run a command to its end, and restore the signal handlers that it replaced."""
        code: object = 0
        self.monkeypatch.setattr(sys, "argv", [str(JOBS / name), *words])
        with signal_handlers_restored():
            try:
                runpy.run_path(str(JOBS / name), run_name="__main__")
            except SystemExit as stopped:
                code = stopped.code
        said = self.capsys.readouterr()
        return Ended(code, said.out, said.err)
