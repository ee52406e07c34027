"""What DeepSpeed needs of a machine to train on its CPU, checked before it is needed.

On its first run there, DeepSpeed compiles a small operator that sums gradients through shared memory. torch does
the compiling (`torch.utils.cpp_extension`): it runs `$CXX`, or `c++`, and `ninja`, both found on `PATH`, against
Python's own headers. The result is kept below `~/.cache/torch_extensions`, or in `TORCH_EXTENSIONS_DIR`.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

from jasper_ray.config import ConfigError

WHY = "DeepSpeed compiles an operator on its first run on CPU"
COMPILERS = ("c++", "g++", "clang++")


def require_compiler() -> None:
    """Makes sure that this process can compile DeepSpeed's operator; call it in every process that trains on CPU.

    It may put `ninja` on this process's `PATH` and name the compiler in its `CXX`, which child processes inherit.

    Raises:
        ConfigError: a C++ compiler, ninja or Python's headers are missing.
    """
    require_cxx()
    require_ninja()
    require_headers()


def require_cxx() -> None:
    """Finds the C++ compiler; torch itself would look for `c++` only, so another one's name goes into `CXX`."""
    named = os.environ.get("CXX")
    if named:
        # The value may carry a launcher or flags ("ccache g++"); its first word has to be a program.
        if not any(shutil.which(word) for word in shlex.split(named)[:1]):
            raise ConfigError(f"{WHY}, but the environment's CXX={named!r} is no program; unset CXX or correct it")
        return
    found = next((name for name in COMPILERS if shutil.which(name)), None)
    if found is None:
        raise ConfigError(
            f"{WHY}, but none of {', '.join(COMPILERS)} is on PATH; install a C++ compiler "
            "(`apt-get install g++`) or set CXX to one"
        )
    if found != COMPILERS[0]:
        os.environ["CXX"] = found


def require_ninja() -> None:
    """Finds ninja; the one installed beside this Python counts, also where the virtual environment is not activated."""
    if shutil.which("ninja"):
        return
    beside_python = Path(sys.executable).parent
    if not shutil.which("ninja", path=str(beside_python)):
        raise ConfigError(f"{WHY}, but ninja is not on PATH; install it (`pip install ninja`)")
    os.environ["PATH"] = os.pathsep.join([str(beside_python), *filter(None, [os.environ.get("PATH")])])


def require_headers() -> None:
    """Finds `Python.h`, which some systems ship apart from Python."""
    folder = sysconfig.get_path("include", scheme="posix_prefix")  # the place that torch hands to the compiler
    if not Path(folder, "Python.h").is_file():
        package = f"python{sys.version_info.major}.{sys.version_info.minor}-dev"
        raise ConfigError(f"{WHY}, but Python.h is not in {folder}; install its headers (`apt-get install {package}`)")
