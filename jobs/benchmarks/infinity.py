"""Infinity, the server that ours is compared with: in a virtual environment of its own, since it needs older
libraries than we do (Python 3.12 at most, for its numpy), and with what makes it fastest on processors."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock

from jasper_ray.assets.cache import cache_folder
from jasper_ray.config import ConfigError

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
"""A file in an environment that is complete."""
NAME = "model"
PATH = "/v1/embeddings"


def infinity_program(peer_venv: Path | None) -> Path:
    """Infinity's command, in that environment or in one that is made here.

    Raises:
        ConfigError: it is not there, or cannot be made.
    """
    program = (peer_venv or environment()) / "bin" / "infinity_emb"
    if not program.is_file():
        raise ConfigError(f"there is no {program}; give --peer-venv the folder of an environment that has infinity_emb")
    return program


def infinity_command(program: Path, model: str, port: int, precision: str, batch: int) -> list[str]:
    """How Infinity serves a sentence-transformers folder, in fused layers without padding (`bettertransformer`)."""
    said = {
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
    return [str(program), "v2", *(word for pair in said.items() for word in pair), "--bettertransformer"]


def infinity_environment(threads: int) -> dict[str, str]:
    """Threads as ours; no news to its makers, and no hub."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
    }


def environment() -> Path:
    """The folder of a virtual environment with Infinity and our version of torch, made once and kept by the assets."""
    pins = (f"torch=={version('torch').partition('+')[0]}", *PINS)
    made_of = hashlib.sha256("\n".join((sys.version, *pins)).encode()).hexdigest()[:8]
    folder = cache_folder() / f"infinity-{made_of}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if not (folder / READY).is_file():
            logger.info("making an environment for Infinity in %s; minutes", folder)
            call([sys.executable, "-m", "venv", "--clear", str(folder)])
            # torch goes first and alone: pip then takes the build it is configured for, and the rest accepts it
            for wanted in (pins[:1], pins):
                call([str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *wanted])
            (folder / READY).write_text("\n".join(pins) + "\n", encoding="utf-8")
    return folder


def call(command: list[str]) -> None:
    ended = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), check=False)
    if ended.returncode:
        raise ConfigError(f"{' '.join(command)} failed; mend that, or give --peer-venv: {ended.stderr[-1000:]}")
