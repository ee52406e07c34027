from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from jasper_ray.compiler import require_compiler
from jasper_ray.config import ConfigError


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of PATH, on a machine whose Python has headers and no ninja beside it."""
    programs, python, headers = tmp_path / "programs", tmp_path / "python", tmp_path / "headers"
    for folder in (programs, python, headers):
        folder.mkdir()
    (headers / "Python.h").touch()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("CXX", "")  # so that what the code writes there is undone after the test
    monkeypatch.setattr(sys, "executable", str(python / "python"))
    monkeypatch.setattr(sysconfig, "get_path", lambda name, scheme: str(headers))
    return programs


def install(folder: Path, *names: str) -> None:
    for name in names:
        program = folder / name
        program.write_text("#!/bin/sh\necho 1.0\n")
        program.chmod(0o755)


def test_a_machine_with_everything_is_left_as_it_is(machine: Path) -> None:
    install(machine, "c++", "ninja")
    require_compiler()
    assert (os.environ["PATH"], os.environ["CXX"]) == (str(machine), "")


def test_no_compiler_is_said_before_the_compiling(machine: Path) -> None:
    install(machine, "ninja")
    with pytest.raises(ConfigError, match=r"none of c\+\+, g\+\+, clang\+\+ is on PATH; install a C\+\+ compiler"):
        require_compiler()


def test_another_compiler_than_torch_looks_for_is_named_to_it(machine: Path) -> None:
    install(machine, "g++", "ninja")
    require_compiler()
    assert os.environ["CXX"] == "g++"


def test_cxx_may_carry_flags_and_must_be_a_program(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(machine, "ninja", "icpx")
    monkeypatch.setenv("CXX", "icpx -O1")
    require_compiler()
    monkeypatch.setenv("CXX", "icpy")
    with pytest.raises(ConfigError, match="CXX='icpy' is no program"):
        require_compiler()


def test_ninja_beside_python_is_put_on_path_once(machine: Path) -> None:
    install(machine, "c++")
    install(Path(sys.executable).parent, "ninja")
    require_compiler()
    require_compiler()
    assert os.environ["PATH"].split(os.pathsep) == [str(Path(sys.executable).parent), str(machine)]
    assert subprocess.check_output(["ninja", "--version"], text=True) == "1.0\n"  # the way torch asks for it


def test_no_ninja_anywhere_names_the_package(machine: Path) -> None:
    install(machine, "c++")
    with pytest.raises(ConfigError, match="ninja is not on PATH; install it"):
        require_compiler()


def test_missing_python_headers_name_the_package(machine: Path) -> None:
    install(machine, "c++", "ninja")
    (machine.parent / "headers" / "Python.h").unlink()
    with pytest.raises(ConfigError, match=r"Python\.h is not in .*-dev"):
        require_compiler()


def test_the_environment_these_tests_run_in_can_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.environ["PATH"])
    monkeypatch.setenv("CXX", os.environ.get("CXX", ""))
    require_compiler()
    assert shutil.which("ninja")
