"""`jobs/distill.py` on the command line: what is wrong is one line within seconds, before anything is begun."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from jobs_called import Commands
from small_run import recipe_values, stage

from jasper_ray.commands import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
COMMAND = ROOT / "jobs" / "distill.py"


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    return recipe_values(tmp_path, stage("first"), rows=20)


def written(folder: Path, values: dict[str, Any]) -> str:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return str(path)


def process(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as a user starts it, where no model can be fetched."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(COMMAND), *arguments]
    return subprocess.run(command, cwd=folder, text=True, capture_output=True, env=environment, timeout=120)


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Commands:
    return Commands(tmp_path, monkeypatch, capsys)


def refusal(commands: Commands, *words: str) -> str:
    """What the command says before it gives up."""
    said = commands.run("distill.py", *words)
    assert (said.code, said.out) == (2, "")
    return said.err


# ---- As a user starts it ----


def test_help_comes_at_once_and_names_the_recipes(tmp_path: Path) -> None:
    answer = process(tmp_path, "--help")
    assert "jasper-2b, minilm-mpnet, quickstart" in " ".join(answer.stdout.split())


def test_a_pattern_that_matches_nothing_is_one_line_before_ray_starts(values: dict[str, Any], tmp_path: Path) -> None:
    values["stages"][0]["train"] = ["head.*"]
    answer = process(tmp_path, written(tmp_path, values), "--run", "run")
    assert (answer.returncode, answer.stdout) == (2, "")
    *waits, told = answer.stderr.splitlines()
    assert re.fullmatch(r"error: stages\.0\.train: the pattern 'head\.\*' matches no parameter .*", told)
    assert all(re.fullmatch(r".*  (loading torch|loading Ray|checking the recipe), \d+ s", line) for line in waits), (
        "there are some on a slow machine"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained_in_sentences(name: str) -> None:
    parser = import_module(f"jasper_ray.commands.{name}").command_line()
    for option in parser._actions[1:]:  # after --help
        assert re.fullmatch(r"[A-Z].*\.", option.help, re.DOTALL), f"{option.option_strings}: {option.help}"


# ---- In this process, which has the libraries loaded already ----


def test_an_unknown_recipe_is_one_line(commands: Commands, tmp_path: Path) -> None:
    said = refusal(commands, "quickstrat")
    assert re.fullmatch(r"error: there is no shipped recipe 'quickstrat'; .*quickstart.*\n", said)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_the_largest_recipe_needs_no_weights(
    commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JASPER_RAY_CACHE", str(tmp_path / "cache"))
    said = commands.run("distill.py", "jasper-2b", "--dry-run")
    assert said.code == 0, said.err
    assert re.search(r"^fc1 +18\.89M +1\.\d+B .* 8 x 4 CPU \+ 1 GPU +1024 texts, ZeRO-2, bf16$", said.out, re.M)
    assert re.search(r"^the cluster needs at least 42\.5 CPUs and 13 GPUs$", said.out, re.M)
    assert list(tmp_path.iterdir()) == []


# ---- Everything that is found before Ray starts ----


def no_file(values: dict[str, Any], folder: Path) -> None:
    values["corpus"]["sources"][0]["path"] = "nowhere.txt"


def no_column(values: dict[str, Any], folder: Path) -> None:
    (folder / "texts.jsonl").write_text(json.dumps({"title": "a"}) + "\n")
    values["corpus"]["sources"] = [{"path": "texts.jsonl", "format": "jsonl", "column": "text"}]


def no_text(values: dict[str, Any], folder: Path) -> None:
    (folder / "empty.txt").write_text("")
    values["corpus"]["sources"][0]["path"] = "empty.txt"


def no_weights(values: dict[str, Any], folder: Path) -> None:
    (folder / "teacher").mkdir()
    (folder / "teacher" / "config.json").write_text("{}")
    values["teachers"][0] = {"model": str(folder / "teacher"), "dim": 32}


def damaged_asset(values: dict[str, Any], folder: Path) -> None:
    """An asset folder whose weights are not what was unpacked."""
    asset = folder / "cache" / "all-MiniLM-L6-v2"
    asset.mkdir(parents=True)
    (asset / "model.safetensors").write_bytes(b"not the weights")
    (asset / "asset.json").write_text(json.dumps({"size": 90868376, "mtime_ns": 0, "sha256": "0"}))


def no_such_set(values: dict[str, Any], folder: Path) -> None:
    columns = {"left": 0, "right": 1, "score": 2}
    pairs = {"type": "pairs", "name": "sts", "path": "sts.csv", "format": "csv", "header": False, "columns": columns}
    values["evaluation"] = {"sets": [pairs]}


def no_such_key(values: dict[str, Any], folder: Path) -> None:
    values["stages"][0]["warm_up"] = 0.1


WRONG = {
    no_such_key: r".*recipe\.yaml: stages\.0\.warm_up: unknown key; did you mean warmup\?",
    no_file: r"source 'nowhere': found no file at nowhere\.txt; .*change path",
    no_column: r"source 'texts': .*texts\.jsonl has no column 'text', it has title; change the source's column",
    no_text: r"source 'empty': empty\.txt is empty; .*change the source's path",
    no_weights: r"'.*/teacher' has no \.safetensors weights; give a whole model folder",
    damaged_asset: r".*/all-MiniLM-L6-v2/model\.safetensors has sha256 .*, expected .*: delete the folder .*",
    no_such_set: r".*sts\.csv.*",
}


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("spoil", WRONG, ids=lambda spoil: spoil.__name__)
def test_what_is_wrong_is_one_line_and_nothing_is_begun(
    commands: Commands, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], tmp_path: Path, spoil: Any
) -> None:
    spoil(values, tmp_path)
    if spoil is damaged_asset:
        monkeypatch.setenv("JASPER_RAY_CACHE", str(tmp_path / "cache"))
    said = refusal(commands, written(tmp_path, values), "--run", "run")
    assert re.fullmatch(rf"error: {WRONG[spoil]}.*\n", said), said
    assert not (tmp_path / "run").exists()
    assert not ray.is_initialized()


def test_a_run_folder_that_cannot_be_made_is_one_line(
    commands: Commands, values: dict[str, Any], tmp_path: Path
) -> None:
    said = refusal(commands, written(tmp_path, values), "--run", "/dev/null/x")
    assert (
        said == "error: the run folder '/dev/null/x' cannot be written (Not a directory); choose another with --run\n"
    )
