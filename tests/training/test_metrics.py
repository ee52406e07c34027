"""What a stage tells: one line a step even where it was continued, and a line that people can read."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest

from jasper_ray import cli
from jasper_ray.cli import duration
from jasper_ray.training.metrics import (
    MetricsLog,
    Progress,
    StepClock,
    keep_steps_before,
    last_step,
    log_steps,
    logger,
    newest_records,
    progress_line,
)


def record(step: int, **values: Any) -> dict[str, Any]:
    return {"step": step, "total": 2.0, "rows_per_s": 100.0, "wait_share": 0.25, "seconds": 0.5, **values}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(record(step)) + "\n" for step in range(6)))
    return path


def steps(log: Path) -> list[int]:
    return [json.loads(line)["step"] for line in log.read_text().splitlines()]


# ---- The log ----


@pytest.mark.parametrize("step", [0, 3, 6, 100])
def test_only_earlier_steps_are_kept(log: Path, step: int) -> None:
    keep_steps_before(log, step)
    assert steps(log) == list(range(min(step, 6)))
    assert [path.name for path in log.parent.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("half", ['{"step": 2, "tot', "{", '{"step": 2', '{"step": 2, "total": NaN'])
def test_half_a_line_of_a_killed_worker_goes(log: Path, half: str) -> None:
    with log.open("a") as file:
        file.write(half)
    keep_steps_before(log, 4)
    assert steps(log) == [0, 1, 2, 3]
    assert log.read_text().endswith("\n")


def test_a_first_start_has_no_log_to_cut(tmp_path: Path) -> None:
    keep_steps_before(tmp_path / "metrics.jsonl", 3)
    assert list(tmp_path.iterdir()) == []


def test_a_continued_log_has_every_step_once(log: Path) -> None:
    with MetricsLog(log, first_step=4) as metrics:
        for step in range(4, 8):
            metrics.write(record(step, total=9.0))
    assert steps(log) == list(range(8))
    assert [json.loads(line)["total"] for line in log.read_text().splitlines()] == [2.0] * 4 + [9.0] * 4
    assert list(log.parent.glob("tensorboard/events.*"))


# ---- Where a step's time went ----


def test_a_step_counts_its_rows_and_what_teachers_did(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 14.0])
    monkeypatch.setattr("jasper_ray.training.metrics.time.perf_counter", lambda: next(times))
    clock = StepClock(started=next(times))
    clock.count(8, 0.5, {"a": 2.0, "b": 0.0})
    clock.count(8, 0.5, {"a": 0.0, "b": 0.0})
    assert clock.read(workers=2) == {
        "rows_per_s": 8.0,
        "wait_share": 0.25,
        "seconds": 4.0,
        "labelled/a": 16,
        "teacher_rows_per_s/a": 4.0,
        "labelled/b": 0,
    }


# ---- What a person reads ----


def test_the_line_averages_over_its_steps() -> None:
    records = [record(8, total=3.0), record(9, total=4.0, seconds=1.5, rows_per_s=20.0, wait_share=0.0)]
    line = progress_line("fc1", "texts", records, 50)
    assert line == "fc1  step 10/50  loss 3.5  40 texts/s  6% waiting  40 s left"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (8.4, "8 s"),
        (59.6, "1 min 0 s"),
        (130, "2 min 10 s"),
        (3599.7, "1 h 0 min"),
        (3900, "1 h 5 min"),
        (200000, "55 h 33 min"),
    ],
)
def test_durations_are_said_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_log_being_written_is_read_up_to_its_last_whole_line(log: Path) -> None:
    with log.open("a") as file:
        file.write('{"step": 6, "to')
    assert last_step(log) == 5
    assert last_step(log.with_name("none")) == -1


def test_a_long_log_is_read_from_its_end(log: Path) -> None:
    log.write_text("".join(json.dumps(record(step)) + "\n" for step in range(5000)))
    found = [entry["step"] for entry in newest_records(log)]
    assert found[-1] == 4999
    assert found == list(range(found[0], 5000))
    assert 100 < len(found) < 5000


def add(log: Path, *records: dict[str, Any]) -> None:
    with log.open("a") as file:
        file.writelines(json.dumps(entry) + "\n" for entry in records)


def test_each_step_is_told_once_and_the_last_ones_at_the_end(
    log: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logger, "disabled", False)  # import-linter, called by another test, silences all there are
    with caplog.at_level(logging.INFO, logger="jasper_ray"):
        with log_steps(log, "fc1", "texts", 10):
            add(log, record(6), record(7))
        with log_steps(log, "fc1", "texts", 10):
            pass
    assert [entry.getMessage() for entry in caplog.records] == [
        "fc1  step 8/10  loss 2  100 texts/s  25% waiting  1 s left"
    ]


def test_progress_goes_on_where_workers_went_back_to_a_checkpoint(log: Path) -> None:
    progress = Progress(log, "fc1", "texts", 10)
    log.write_text(json.dumps(record(2)) + "\n")
    assert "3/10" in progress.line()
    add(log, record(3))
    assert "4/10" in progress.line()


def test_a_stage_says_what_it_is_at_while_no_step_ends(log: Path) -> None:
    progress = Progress(log, "fc1", "texts", 10)
    assert progress.line() == "fc1  waiting for the first batch, 0 s"
    add(log, record(6))
    progress.line()
    assert progress.line() == "fc1  working on step 8/10, 0 s"
    add(log, *map(record, (7, 8, 9)))
    progress.line()
    assert progress.line() == "fc1  writing the student, 0 s"


def test_only_what_takes_long_is_told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "PROGRESS_S", 0.05)
    monkeypatch.setattr(cli.logger, "disabled", False)
    shards: list[int] = []
    with caplog.at_level(logging.INFO, logger="jasper_ray"):
        with cli.log_progress("reading"):
            pass
        with cli.log_progress("labelling", lambda: f"{len(shards)}/2 shards" if shards else None):
            time.sleep(0.12)
            shards.append(1)
            time.sleep(0.12)
    told = [entry.getMessage() for entry in caplog.records]
    assert told[0] == "labelling, 0 s"
    assert told[-1] == "labelling: 1/2 shards, 0 s"
