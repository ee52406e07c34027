"""The documents: each command in them is known and its options exist, each link leads somewhere, snippets run."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from running_server import served
from small_student import small_student

HOME = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(
    path
    for path in HOME.rglob("*.md")
    if not re.match(r"\.|dist/|runs/|tests/", str(path.relative_to(HOME))) and path.name != "CHANGELOG.md"
)
PROGRAMS = (
    "apt-get",
    "cd",
    "curl",
    "export",
    "git",
    "jasper-ray",
    "make",
    "pip",
    "pre-commit",
    "python",
    "ray",
    "serve",
    "source",
)
QUICKSTART = "runs/quickstart/student"
HEADS = (1152, 384, 128)


def fences(path: Path, *languages: str) -> Iterator[str]:
    """Yield the fenced blocks in one of the languages."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(encoding="utf-8"), re.S | re.M):
        if language in languages:
            yield block


def commands_in(block: str) -> Iterator[list[str]]:
    """Yield the words of each command of a block; a block that begins with something else is text or output."""
    lines = block.replace("\\\n", " ").splitlines()
    prompted = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    if not prompted and not is_command(lines[0]):
        assert not any(map(is_command, lines)), f"a command stands among other lines:\n{block}"
        return
    for line in prompted or lines:
        words = shlex.split(line, comments=True)
        words = words[: words.index(">>")] if ">>" in words else words
        for command in " \n".join(words).split(" \n&& \n") if words else ():
            yield command.split(" \n")


def is_command(line: str) -> bool:
    return without_variables(line.split())[:1] != [] and without_variables(line.split())[0] in PROGRAMS


def without_variables(words: Sequence[str]) -> list[str]:
    """Drop `NAME=value` from the start."""
    first = next((i for i, word in enumerate(words) if not re.match(r"\w+=", word)), len(words))
    return list(words[first:])


COMMANDS = {
    (shlex.join(words), str(path.relative_to(HOME))): words
    for path in DOCUMENTS
    for block in fences(path, "", "bash", "sh", "console")
    for words in commands_in(block)
}


# ---- Each kind of command, and the proof that it works ----


def is_a_target(words: Sequence[str]) -> None:
    """CI and the tests use the Makefile; a target must be in it."""
    targets = re.findall(r"^([a-z]+):", (HOME / "Makefile").read_text(), re.M)
    assert [word for word in words[1:] if "=" not in word and word not in targets] == []


def has_our_options(words: Sequence[str]) -> None:
    """A command of ours parses its own command line."""
    script, *options = words[1:]
    name = Path(script).stem
    if name == "benchmark":
        importlib.import_module("benchmark").arguments(options)
    else:
        importlib.import_module(f"jasper_ray.commands.{name}").command_line().parse_args(options)


def has_clicks_options(words: Sequence[str]) -> None:
    """`ray` and `serve` of the installed version parse their options; test_cluster.py runs the commands."""
    import click

    module = {"ray": "ray.scripts.scripts", "serve": "ray.serve.scripts"}[words[0]]
    command: Any = importlib.import_module(module).cli
    rest = list(words[1:])
    while isinstance(command, click.Group):
        name = rest.pop(0)
        command = command.commands[name]
    own = rest[: rest.index("--")] if "--" in rest else rest
    command.make_parser(click.Context(command)).parse_args(own)
    if "--" in rest:
        check(rest[rest.index("--") + 1 :])


def sets_known_variables(words: Sequence[str]) -> None:
    """tests/serving/test_serving.py compares the values of Ray's variables with the server's own."""
    assert all(word.startswith("RAY_") for word in words[1:])


def names_extras(words: Sequence[str]) -> None:
    """The extras of `pip install` are declared."""
    project = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]
    extras = [extra for word in words for part in re.findall(r"\[(.*?)\]", word) for extra in part.split(",")]
    assert set(extras) <= set(project["optional-dependencies"])


def is_in(file: str) -> Callable[[Sequence[str]], None]:
    def check_file(words: Sequence[str]) -> None:
        assert words[-1] in (HOME / file).read_text()

    return check_file


def is_proved_elsewhere(words: Sequence[str]) -> None:
    """CI begins in a clone and in its environment; curl is run below."""


KNOWN: dict[str, Callable[[Sequence[str]], None]] = {
    r"git clone …$": is_proved_elsewhere,
    r"cd jasper_ray$": is_proved_elsewhere,
    r"source \.venv/bin/activate$": is_proved_elsewhere,
    r"curl http://127\.0\.0\.1:8000/\S+ -d \{": is_proved_elsewhere,
    r"make ": is_a_target,
    r"(\S*/)?python (\S*/)?jobs/\w+\.py": has_our_options,
    r"jasper-ray (distill|embed|serve|evaluate)": has_our_options,
    r"(ray|serve) ": has_clicks_options,
    r"export RAY_": sets_known_variables,
    r"pip install ": names_extras,
    r"apt-get install ": is_in(".ci/run"),
    r"pre-commit install$": is_in(".pre-commit-config.yaml"),
}


def check(words: Sequence[str]) -> None:
    """Find the kind of a command and prove it."""
    words = without_variables(words)
    line = " ".join(words)
    kinds = [proof for pattern, proof in KNOWN.items() if re.match(pattern, line)]
    assert kinds, f"no test or CI step runs {line!r}: add it to KNOWN with its proof"
    try:
        kinds[0](words)
    except SystemExit as ended:
        raise AssertionError(f"{line!r} is refused") from ended


@pytest.mark.parametrize("command", COMMANDS, ids=" in ".join)
def test_each_command_of_the_documents_is_known_and_has_its_options(command: tuple[str, str]) -> None:
    check(COMMANDS[command])


@pytest.mark.parametrize(
    "line",
    [
        "python jobs/embed.py --modle runs/quickstart/student --input a --output b",
        "python jobs/benchmark.py losses --rounds 3",
        "python jobs/distill.py --resume",
        "ray start --heads",
        "ray job submit -- python jobs/serve.py --modle m",
        "make everything",
        "pip install 'jasper-ray[unheard]'",
        "docker run jasper",
    ],
)
def test_a_wrong_command_is_found(line: str) -> None:
    with pytest.raises(Exception, match=r".*"):
        check(shlex.split(line))


def test_the_commands_are_collected() -> None:
    first_words = {without_variables(words)[0] for words in COMMANDS.values()}
    assert {"make", "python", "ray", "serve", "curl"} <= first_words
    assert len({name for _, name in COMMANDS}) >= 5


def test_options_named_in_a_sentence_exist(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("distill", "embed", "serve", "evaluate"):
        with pytest.raises(SystemExit):
            has_our_options(["jasper-ray", name, "--help"])
    for name in importlib.import_module("benchmark").BENCHMARKS:
        with pytest.raises(SystemExit):
            has_our_options(["python", "jobs/benchmark.py", name, "--help"])
    known = set(re.findall(r"--[a-z][\w-]*", capsys.readouterr().out))
    for path in DOCUMENTS:
        prose = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.S | re.M)
        named = {option for code in re.findall(r"`([^`\n]+)`", prose) for option in re.findall(r"--[a-z][\w-]*", code)}
        assert named - known - {"--generate"} == set(), path


def test_the_readme_is_short() -> None:
    assert len((HOME / "README.md").read_text(encoding="utf-8").splitlines()) < 200


def test_the_floors_of_the_guide_are_the_contracts() -> None:
    project = tomllib.loads((HOME / "pyproject.toml").read_text())
    (floors,) = (each for each in project["tool"]["importlinter"]["contracts"] if each["id"] == "floors")
    assert "\n".join([*floors["layers"], ""]) in list(fences(HOME / "CONTRIBUTING.md", ""))


def test_the_guide_names_files_and_tables_that_exist() -> None:
    guide = (HOME / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## How to add")[2].partition("\n## ")[0]
    code = "\n".join(path.read_text(encoding="utf-8") for path in HOME.glob("j*/**/*.py"))
    for named in re.findall(r"`([^`]+)`", guide):
        if "/" in named:
            assert (HOME / named).exists(), named
        else:
            assert re.search(rf"\b(class |def )?{named}\b", code), named


# ---- Links and snippets ----


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(HOME)))
def test_links_lead_to_files_and_headings(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.M)
            assert anchor in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings], target


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student with the quickstart's heads."""
    return small_student(tmp_path_factory.mktemp("models") / "student", sees=True, heads=HEADS, default_head=384)


def test_the_readmes_snippet_gives_the_shapes_beside_it(student: Path) -> None:
    (block,) = fences(HOME / "README.md", "python")
    names: dict[str, Any] = {}
    shapes = 0
    for line in block.replace(QUICKSTART, str(student)).splitlines():
        code, _, comment = line.partition("  # ")
        exec(code, names)
        if comment.startswith("("):
            shapes += 1
            value = eval(code.partition(" = ")[0], names)  # an expression, or the name that was assigned
            assert getattr(value, "shape", value) == ast.literal_eval(comment)
    assert shapes == 3


def test_a_server_answers_the_clients_of_the_documents(student: Path) -> None:
    curls = [words for words in COMMANDS.values() if words[0] == "curl"]
    (block,) = fences(HOME / "jasper_ray" / "serving" / "README.md", "python")
    with served(student, name="quickstart") as (address, _):
        for _, url, _, body in curls:
            answer = httpx.post(
                url.replace("http://127.0.0.1:8000", address),
                content=body,
                headers={"content-type": "application/x-www-form-urlencoded"},  # what curl sends
            )
            assert answer.status_code == 200, answer.text
            assert len(answer.json()["data"][0]["embedding"]) == json.loads(body)["dimensions"]
        exec(block.replace("http://127.0.0.1:8000", address), {})


def test_the_evaluation_sets_of_the_documents_are_valid(tmp_path: Path) -> None:
    from jasper_ray.evaluation import load_sets

    blocks = [block for path in DOCUMENTS for block in fences(path, "yaml") if block.startswith("- {type:")]
    assert blocks
    for block in blocks:
        (tmp_path / "sets.yaml").write_text(block)
        assert len(load_sets(str(tmp_path / "sets.yaml"))) == block.count("- {type:")
