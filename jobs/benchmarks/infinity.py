"""Infinity, the server that ours is compared with, with its fastest options on CPUs.

It runs in a virtual environment of its own, since it needs older libraries (and, for its numpy, at most Python 3.12).
"""

from __future__ import annotations

import hashlib
import logging
import subprocess
import sys
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock

from benchmarks.servers import NAME, Running, server
from jasper_ray.assets.cache import cache_folder
from jasper_ray.config import ConfigError
from jasper_ray.serving.ray_serve import free_ports

logger = logging.getLogger(__name__)

PINS = (
    "infinity-emb[server,torch]==0.0.78",
    "transformers==4.48.3",  # the last series that optimum's BetterTransformer takes: Infinity's default, and its best
    "optimum==1.27.0",
    "sentence-transformers==3.4.1",
    "typer==0.12.5",
    "click==8.1.8",
    "uvicorn[standard]==0.32.1",
    "numpy==1.26.4",
)
READY = "ready"
"""A file in a complete environment."""


def infinity_program(peer_venv: Path | None) -> Path:
    """Find Infinity's command in this environment, or install one.

    Raises:
        ConfigError: the environment does not have it, or it cannot be installed.
    """
    program = (peer_venv or environment()) / "bin" / "infinity_emb"
    if not program.is_file():
        raise ConfigError(f"there is no {program}; give --peer-venv the folder of an environment that has infinity_emb")
    return program


def infinity_server(
    program: Path, model: str, precision: str, batch: int, threads: int
) -> AbstractContextManager[Running]:
    """Start Infinity on a sentence-transformers folder, with fused layers without padding (`bettertransformer`)."""
    port = free_ports(1)[0]
    options = {
        "--model-id": model,
        "--served-model-name": NAME,
        "--engine": "torch",
        "--device": "cpu",
        "--dtype": precision,
        "--batch-size": str(batch),
        "--port": str(port),
        "--host": "127.0.0.1",
        "--url-prefix": "/v1",
        "--log-level": "warning",
    }
    command = [str(program), "v2", *(word for pair in options.items() for word in pair), "--bettertransformer"]
    quiet = {"OMP_NUM_THREADS": str(threads), "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    return server(command, "/v1/embeddings", NAME, port, quiet)


def environment() -> Path:
    """Install Infinity and our version of torch into a virtual environment, once; it is kept beside the assets."""
    pins = (f"torch=={version('torch').partition('+')[0]}", *PINS)
    made_of = hashlib.sha256("\n".join((sys.version, *pins)).encode()).hexdigest()[:8]
    folder = cache_folder() / f"infinity-{made_of}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if not (folder / READY).is_file():
            logger.info("installing Infinity in %s; this takes minutes", folder)
            run([sys.executable, "-m", "venv", "--clear", str(folder)])
            # torch goes first and alone: pip then takes the build it is configured for, and the rest accepts it
            for packages in (pins[:1], pins):
                run([str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *packages])
            (folder / READY).write_text("\n".join(pins) + "\n", encoding="utf-8")
    return folder


def run(command: list[str]) -> None:
    """Run a command.

    Raises:
        ConfigError: it failed.
    """
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise ConfigError(f"{' '.join(command)} failed; fix that, or give --peer-venv: {ended.stderr[-1000:]}")
