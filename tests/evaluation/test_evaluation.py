from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import yaml
from jobs_called import Commands
from sklearn.datasets import load_digits
from sklearn.metrics import ndcg_score

from jasper_ray.config import ConfigError
from jasper_ray.encoders import Encoder, HashEncoder
from jasper_ray.evaluation import (
    EVALUATION_SETS,
    Score,
    Scoreboard,
    ScoreRow,
    evaluate,
    geometry_scores,
    load_sets,
    read_scores,
    read_sets,
    render,
    with_moment,
    write_scores,
)
from jasper_ray.evaluation.base import SetData, SetSettings, Style, TextRequest, read_text
from jasper_ray.evaluation.geometry import pair_order
from jasper_ray.evaluation.pairs import spearman
from jasper_ray.evaluation.retrieval import ndcg
from jasper_ray.vectors import normalise

ROOT = Path(__file__).resolve().parents[2]

PAIRS = [
    ("A man is playing a guitar.", "A man plays the guitar.", 4.8),
    ("A woman is cutting an onion.", "A woman is cutting onions.", 4.2),
    ("A dog runs in the snow.", "A cat sleeps on a sofa.", 0.6),
    ("The stock market fell.", "A man plays the guitar.", 0.0),
]
PAIR_SET = {"type": "pairs", "name": "mini", "path": "mini.csv", "format": "csv", "header": False}
POSITIONS = {"left": 0, "right": 1, "score": 2}


class CountingEncoder(Encoder):
    """Two heads over hashed words; remembers what it was asked to encode."""

    dims = (64, 32)

    def __init__(self, prompts: Mapping[str, str] | None = None) -> None:
        self.heads = {dim: HashEncoder(dim, prompts) for dim in self.dims}
        self.prompts = prompts or {}
        self.calls: list[tuple[str | None, list[str]]] = []

    def encode(self, texts: Sequence[str], prompt_name: str | None = None, dim: int | None = None) -> np.ndarray:
        self.calls.append((prompt_name, list(texts)))
        return self.heads[dim or 64].encode(texts, prompt_name)

    def encode_heads(self, texts: Sequence[str], prompt_name: str | None = None) -> dict[int, np.ndarray]:
        self.calls.append((prompt_name, list(texts)))
        return {dim: head.encode(texts, prompt_name) for dim, head in self.heads.items()}


def write_sets(folder: Path, *sets: dict[str, Any]) -> Path:
    path = folder / "sets.yaml"
    path.write_text(yaml.safe_dump(list(sets)))
    return path


def write_pairs(folder: Path) -> None:
    lines = [f'"{left}",{right},{score}\n' for left, right, score in PAIRS]
    (folder / "mini.csv").write_text("".join(lines))


def write_beir(folder: Path) -> dict[str, Any]:
    documents = [("d1", "Soup", "boil the onion"), ("d2", "", "tune the guitar string"), ("d3", "Snow", "a dog runs")]
    (folder / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": key, "title": title, "text": text}) + "\n" for key, title, text in documents)
    )
    queries = [("q1", "guitar string"), ("q2", "a dog in snow"), ("q3", "nothing about this")]
    (folder / "queries.jsonl").write_text("".join(json.dumps({"_id": k, "text": t}) + "\n" for k, t in queries))
    (folder / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td2\t2\nq1\td1\t1\nq2\td3\t1\nq3\td1\t0\n")
    names = {"documents": "corpus.jsonl", "queries": "queries.jsonl", "qrels": "test.tsv"}
    return {"type": "retrieval", "name": "tiny", "format": "beir", **names}


def digits(rows: int) -> np.ndarray:
    """Unit vectors of real things: handwritten digits."""
    return normalise(load_digits().data[:rows])


# Agreement with the target


def pair_order_by_counting(student_P: np.ndarray, teacher_P: np.ndarray) -> float:
    same = opposite = 0
    for p, q in combinations(range(len(student_P)), 2):
        sign = np.sign(student_P[p] - student_P[q]) * np.sign(teacher_P[p] - teacher_P[q])
        same, opposite = same + (sign > 0), opposite + (sign < 0)
    return same / (same + opposite)


@pytest.mark.parametrize("levels", [3, 50, 10_000], ids=["mostly ties", "some ties", "hardly any ties"])
def test_pair_order_counts_what_its_definition_counts(levels: int) -> None:
    teacher_P = np.random.default_rng(0).integers(levels, size=80)
    student_P = teacher_P + np.random.default_rng(1).integers(levels, size=80)
    assert pair_order(student_P, teacher_P) == pytest.approx(pair_order_by_counting(student_P, teacher_P))


def test_pair_order_of_a_collapsed_student_is_chance() -> None:
    assert pair_order(np.ones(10), np.arange(10.0)) == 0.5


def test_a_student_equal_to_its_target_agrees_in_everything() -> None:
    found = geometry_scores(digits(50), digits(50))
    assert found["cosine"] == pytest.approx(1)
    assert (found["gram_error"], found["pair_order"]) == (0, 1)


def test_a_rotation_keeps_the_relations_and_loses_the_coordinates() -> None:
    x_ND = digits(50)
    rotation_DD, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(64, 64)))
    found = geometry_scores((x_ND @ rotation_DD).astype(np.float32), x_ND)
    assert abs(found["cosine"]) < 0.5
    assert found["gram_error"] == pytest.approx(0, abs=1e-6)
    assert found["pair_order"] > 0.999


def test_a_head_of_another_size_has_no_cosine_and_no_record_of_one() -> None:
    assert list(geometry_scores(digits(50)[:, 20:40], digits(50))) == ["gram_error", "pair_order"]


def test_gram_error_is_the_root_mean_square_off_the_diagonal() -> None:
    student_ND, target_NE = digits(20)[:, 20:40], digits(20)
    student_ND = normalise(student_ND)
    gaps = [student_ND[i] @ student_ND[j] - target_NE[i] @ target_NE[j] for i in range(20) for j in range(20) if i != j]
    assert geometry_scores(student_ND, target_NE)["gram_error"] == pytest.approx(
        np.sqrt(np.mean(np.square(gaps))), rel=1e-5
    )


def test_agreement_of_a_thousand_rows_takes_seconds() -> None:
    x_ND = digits(1000)
    started = time.perf_counter()
    geometry_scores(x_ND[:, 16:48], x_ND)
    assert time.perf_counter() - started < 30  # under 1 s alone; a loaded machine must not fail it


def test_agreement_refuses_rows_that_do_not_match() -> None:
    with pytest.raises(ValueError, match="5 student rows and 6 target rows"):
        geometry_scores(digits(5), digits(6))


# Metrics


def test_spearman_knows_nothing_but_ranks() -> None:
    left_PD = np.tile(np.array([[1.0, 0.0]]), (3, 1))
    angles = np.array([0.1, 0.5, 1.4])
    right_PD = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert spearman(left_PD, right_PD, np.array([100, 2, 1])) == pytest.approx(1)
    assert spearman(left_PD, left_PD, np.array([100, 2, 1])) == 0


def test_ndcg_by_hand() -> None:
    """Ranking d0, d2, d1; gains 0, 3, 1 at ranks 1, 2, 3; the best order has 3, 1."""
    documents_CD = np.array([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6]])
    found = ndcg(documents_CD, np.array([[1.0, 0.0]]), [{1: 1.0, 2: 3.0}])
    assert found == pytest.approx((3 / np.log2(3) + 1 / np.log2(4)) / (3 + 1 / np.log2(3)))


def test_ndcg_is_that_of_scikit_learn() -> None:
    documents_CD, labels_C = digits(300), load_digits().target[:300]
    queries_QD, relevant_QC = 2 * documents_CD[:20] + documents_CD[20:40], labels_C[None] == labels_C[:20, None]
    grades = [{int(row): 1.0 for row in np.flatnonzero(relevant_C)} for relevant_C in relevant_QC]
    wanted = ndcg_score(relevant_QC, queries_QD @ documents_CD.T, k=10)
    assert ndcg(documents_CD, queries_QD, grades) == pytest.approx(wanted)


def test_ndcg_looks_no_deeper_than_ten_and_keeps_the_order_of_equals() -> None:
    documents_CD = np.ones((12, 1))
    query_QD = np.ones((1, 1))
    assert ndcg(documents_CD, query_QD, [{9: 1.0}]) == pytest.approx(1 / np.log2(11))
    assert ndcg(documents_CD, query_QD, [{10: 1.0}]) == 0


# Reading


def test_a_beir_folder_is_read_with_titles_grades_and_judged_queries_alone(tmp_path: Path) -> None:
    path = write_sets(tmp_path, write_beir(tmp_path))
    (data,) = read_sets(load_sets(path))
    documents, queries = data.requests
    assert documents.texts == ("Soup boil the onion", "tune the guitar string", "Snow a dog runs")
    assert queries.texts == ("guitar string", "a dog in snow")
    assert data.judgements["grades"] == [{1: 2.0, 0: 1.0}, {2: 1.0}]


def test_cranfield_judgements_count_queries_by_order_and_codes_above_zero(tmp_path: Path) -> None:
    (tmp_path / "cran.all").write_text(".I 1\n.T\nwings\n.A\nx\n.B\ny\n.W\nwings\nin air .\n.I 2\n.T\n.A\n.B\n.W\n")
    (tmp_path / "cran.qry").write_text(".I 001\n.W\nfirst\nquery\n.I 004\n.W\nsecond query\n")
    (tmp_path / "cranqrel").write_text("1 2 -1\n2 1 3 \n2  2  1\n")
    names = {"documents": "cran.all", "queries": "cran.qry", "qrels": "cranqrel"}
    path = write_sets(tmp_path, {"type": "retrieval", "name": "cran", "format": "cranfield", **names})
    (data,) = read_sets(load_sets(path))
    assert [request.texts for request in data.requests] == [("wings in air .", ""), ("second query",)]
    assert data.judgements["grades"] == [{0: 1.0, 1: 1.0}]


@pytest.mark.parametrize(
    ("format", "text"),
    [
        ("csv", 'a,b,score\n"one, two",three,1\nfour,"say ""five""",2\n'),
        ("tsv", 'a\tb\tscore\none, two\tthree\t1\nfour\tsay "five"\t2\n'),
        (
            "jsonl",
            '{"a": "one, two", "b": "three", "score": 1}\n\n{"a": "four", "b": "say \\"five\\"", "score": "2"}\n',
        ),
    ],
)
def test_the_three_table_formats_say_the_same(tmp_path: Path, format: str, text: str) -> None:
    (tmp_path / "file").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    columns = {"left": "a", "right": "b", "score": "score"}
    path = write_sets(tmp_path, {"type": "pairs", "name": "p", "path": "file", "format": format, "columns": columns})
    (data,) = read_sets(load_sets(path))
    assert [request.texts for request in data.requests] == [("one, two", "four"), ("three", 'say "five"')]
    assert data.judgements["scores"].tolist() == [1, 2]


def test_texts_of_a_class_are_chosen_whatever_their_order_in_the_file(tmp_path: Path) -> None:
    rows = [f"text {i},{'odd' if i % 2 else 'even'}\n" for i in range(40)]
    (tmp_path / "one.csv").write_text("text,label\n" + "".join(rows))
    (tmp_path / "two.csv").write_text("text,label\n" + "".join(reversed(rows)))
    columns = {"text": "text", "label": "label"}
    common = {"type": "classification", "format": "csv", "columns": columns, "train_per_class": 5, "test": "one.csv"}
    path = write_sets(
        tmp_path, {"name": "a", "train": "one.csv", **common}, {"name": "b", "train": "two.csv", **common}
    )
    first, second = read_sets(load_sets(path))
    assert first.requests[0].texts == second.requests[0].texts
    assert [len(request.texts) for request in first.requests] == [10, 40]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "nowhere.csv"}, r"nowhere\.csv cannot be read: No such file"),
        ({"columns": {**POSITIONS, "score": 7}}, r"mini\.csv: line 1: 3 fields, expected at least 8"),
        (
            {"columns": {**POSITIONS, "score": 1}},
            r"line 1: the score is 'A man plays the guitar.', expected a finite number",
        ),
        ({"columns": {**POSITIONS, "score": -1}}, r"sets\.0\.columns\.score: .* found -1"),
        ({"columns": {**POSITIONS, "score": "score"}}, r"sets\.0: a file without header has no column names"),
        (
            {"header": True, "columns": {**POSITIONS, "score": "score"}},
            r"no column 'score'; its columns are A man is",
        ),
        ({"format": "jsonl", "header": True}, r"the columns of a jsonl file are named"),
        ({"type": "pair"}, r"sets\.0: type 'pair' is unknown; .* 'pairs', 'retrieval', 'classification'"),
        ({"limits": 3}, r"sets\.0\.limits: unknown key; did you mean limit\?"),
        ({"limit": 1}, r"gives all 1 pairs the score 4\.8"),
    ],
)
def test_a_mistake_in_a_set_is_told_in_one_sentence(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write_pairs(tmp_path)
    path = write_sets(tmp_path, {**PAIR_SET, "columns": POSITIONS, **change})
    with pytest.raises(ConfigError, match=message) as caught:
        read_sets(load_sets(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("type: pairs", r"holds \"\{'type': 'pairs'\}\", expected a YAML list of evaluation sets"),
        ("", "holds 'None', expected a YAML list"),
        ("- {type: pairs", "is not valid YAML"),
    ],
)
def test_a_file_that_is_no_list_of_sets_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "sets.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_sets(tmp_path / "sets.yaml")


def test_two_sets_of_one_name_are_refused(tmp_path: Path) -> None:
    one = {**PAIR_SET, "columns": POSITIONS}
    with pytest.raises(ConfigError, match="found 2 evaluation sets of the name 'mini'"):
        read_sets(load_sets(write_sets(tmp_path, one, one)))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q1\td9\t1\n", "calls document 'd9' relevant, which is not among the 3"),
        ("q9\td1\t1\n", "judges query 'q9', which is not among the 3"),
        ("q1\td1\thigh\n", r"test\.tsv, line 2: the grade is 'high', expected a number"),
        ("q1\td1\t0\n", "calls no document relevant"),
    ],
)
def test_judgements_of_unknown_things_are_refused(tmp_path: Path, line: str, message: str) -> None:
    path = write_sets(tmp_path, write_beir(tmp_path))
    (tmp_path / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + line)
    with pytest.raises(ConfigError, match=message):
        read_sets(load_sets(path))


# A set of one's own


class StorySet(SetSettings):
    """Sentences in order: mean distance of neighbours."""

    METRICS: ClassVar = {"jump": Style(2, "smallest")}

    type: Literal["story"]
    path: Path
    """File with a sentence a line."""

    def read(self) -> SetData:
        return SetData(self, (TextRequest(tuple(read_text(self.path).splitlines()), None),), {})

    def score(self, data: SetData, sentences_ND: np.ndarray) -> dict[str, float]:
        return {"jump": float(1 - np.einsum("nd,nd->n", sentences_ND[1:], sentences_ND[:-1]).mean())}


def test_a_new_kind_of_set_is_one_class_and_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EVALUATION_SETS, "story", StorySet)
    (tmp_path / "story.txt").write_text("A man plays.\nA man plays the guitar.\nThe guitar breaks.\n")
    story = {"type": "story", "name": "guitar", "path": "story.txt"}
    sets = read_sets(load_sets(write_sets(tmp_path, story, write_beir(tmp_path))))
    encoder = CountingEncoder()
    board = Scoreboard(tmp_path / "all.json", sets)
    board.take("start", tmp_path / "student", lambda: with_moment("start", evaluate(encoder, sets)))
    _, metrics, _, large, small = board.table().splitlines()
    assert metrics.split() == ["moment", "dim", "jump", "ndcg@10"]
    values = {score.dim: score.value for score in evaluate(encoder, sets) if score.set == "guitar"}
    best = min(values.values())
    assert [line.split()[-2] for line in (large, small)] == [
        f"{value:.2f}{'*' if value == best else ''}" for value in values.values()
    ]
    with pytest.raises(ConfigError, match="unknown key; did you mean path"):
        load_sets(write_sets(tmp_path, {**story, "paths": "story.txt"}))


# Scoring


def test_every_head_is_scored_from_one_pass_over_different_texts(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    sets = read_sets(load_sets(write_sets(tmp_path, {**PAIR_SET, "columns": POSITIONS})))
    encoder = CountingEncoder()
    scores = evaluate(encoder, sets)
    assert [(score.set, score.metric, score.dim) for score in scores] == [("mini", "spearman", d) for d in (64, 32)]
    assert scores[0].value > 50
    ((_, texts),) = encoder.calls
    assert len(texts) == len(set(texts)) == 7  # eight sentences, one of them twice


def test_one_head_scores_the_same_alone(tmp_path: Path) -> None:
    sets = read_sets(load_sets(write_sets(tmp_path, write_beir(tmp_path))))
    assert evaluate(CountingEncoder(), sets, [32]) == evaluate(CountingEncoder(), sets)[1:]


def test_shared_words_find_the_right_documents_and_classes(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(
        "".join(
            json.dumps({"text": f"{word} number {i}", "label": word}) + "\n"
            for word in ("cat", "dog")
            for i in range(9)
        )
    )
    labels = {"type": "classification", "name": "animals", "train": "train.jsonl", "test": "train.jsonl"}
    columns = {"columns": {"text": "text", "label": "label"}, "format": "jsonl"}
    path = write_sets(tmp_path, write_beir(tmp_path), {**labels, **columns})
    retrieval, classification = evaluate(HashEncoder(256), read_sets(load_sets(path)))
    assert (retrieval.metric, classification.metric) == ("ndcg@10", "accuracy")
    assert retrieval.value > 90
    assert classification.value == 100


def test_a_query_prompt_goes_before_queries_alone_and_only_where_the_model_has_prompts(tmp_path: Path) -> None:
    sets = read_sets(load_sets(write_sets(tmp_path, {**write_beir(tmp_path), "query_prompt": "s2p_query"})))
    prompted, bare, empty = CountingEncoder({"s2p_query": "Query: "}), CountingEncoder(), CountingEncoder({"query": ""})
    for encoder in (prompted, bare, empty):
        evaluate(encoder, sets)
    assert [prompt for prompt, _ in prompted.calls] == [None, "s2p_query"]
    assert [prompt for prompt, _ in bare.calls] == [prompt for prompt, _ in empty.calls] == [None]


def test_kept_scores_belong_to_the_contents_of_their_sets(tmp_path: Path) -> None:
    listed = write_sets(tmp_path, write_beir(tmp_path))
    encoder = CountingEncoder()

    def take() -> int:
        """Calls of the encoder so far, once a scoreboard of the sets as they are now has the student's scores."""
        sets = read_sets(load_sets(listed))
        board = Scoreboard(tmp_path / "all.json", sets)
        board.take("start", tmp_path / "student", lambda: with_moment("start", evaluate(encoder, sets)))
        assert read_scores(tmp_path / "all.json") == board.rows != []
        return len(encoder.calls)

    first = take()
    assert take() == first
    judged = tmp_path / "test.tsv"
    judged.write_text(judged.read_text().replace("q3\td1\t0", "q3\td1\t1"))
    assert take() == 2 * first


def test_an_unknown_prompt_or_head_is_told_before_anything_is_encoded(tmp_path: Path) -> None:
    sets = read_sets(load_sets(write_sets(tmp_path, {**write_beir(tmp_path), "query_prompt": "s2p_query"})))
    encoder = CountingEncoder({"search": "find: "})
    with pytest.raises(ConfigError, match="'tiny' asks for the prompt 's2p_query', but the model has search"):
        evaluate(encoder, sets)
    with pytest.raises(ConfigError, match="no head of size 7"):
        evaluate(CountingEncoder(), sets, [7])
    assert encoder.calls == []


def test_vectors_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    class Broken(HashEncoder):
        def encode(self, texts: Sequence[str], prompt_name: str | None = None, dim: int | None = None) -> np.ndarray:
            return super().encode(texts, prompt_name, dim) * np.nan

    with pytest.raises(FloatingPointError, match="64-d vectors"):
        evaluate(Broken(64), read_sets(load_sets(write_sets(tmp_path, write_beir(tmp_path)))))


# Report

RECORDS = [
    *with_moment("start", [Score(set="stsb", metric="spearman", dim=128, value=80.04)]),
    *with_moment(
        "after 1-fc1", [Score(set="stsb", metric="spearman", dim=dim, value=v) for dim, v in ((128, 82), (64, 81.5))]
    ),
    *with_moment(
        "after 1-fc1",
        [Score(set="held-out", metric="gram_error", dim=dim, value=v) for dim, v in ((128, 0.03), (64, 0.05))],
    ),
    *with_moment("mpnet", [Score(set="stsb", metric="spearman", dim=768, value=81.96)]),
]

TABLE = """\
                      stsb     held-out
moment       dim  spearman   gram_error
----------------------------------------
start        128      80.0            -
after 1-fc1  128      82.0*      0.0300*
              64      81.5       0.0500
mpnet        768      82.0*           -"""


def test_the_table_reads_well() -> None:
    assert render(RECORDS) == TABLE


def test_a_table_too_wide_goes_on_below() -> None:
    first, second = render(RECORDS, width=30).split("\n\n")
    assert max(map(len, (first + "\n" + second).splitlines())) <= 30
    assert ("stsb" in first, "held-out" in second) == (True, True)


def test_records_come_back_from_disk(tmp_path: Path) -> None:
    path = tmp_path / "new" / "scores.json"
    write_scores(RECORDS, path)
    assert read_scores(path) == RECORDS
    assert json.loads(path.read_text())[0] == {
        "moment": "start",
        "dim": 128,
        "metric": "spearman",
        "set": "stsb",
        "value": 80.04,
    }
    assert [file.name for file in path.parent.iterdir()] == ["scores.json"]


def test_a_file_without_scores_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_text('[{"moment": "start"}]')
    with pytest.raises(ConfigError, match="does not hold scores"):
        read_scores(tmp_path / "scores.json")


# The command


def test_the_command_explains_itself() -> None:
    script = [sys.executable, str(ROOT / "jobs" / "evaluate.py"), "--help"]
    found = subprocess.run(script, capture_output=True, text=True, check=True)
    for option in ("--model", "--sets", "--dim", "--json", "--device", "--dtype", "type: retrieval"):
        assert option in found.stdout


def test_the_command_leaves_with_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = Commands(tmp_path, monkeypatch, capsys).run("evaluate.py", "--model", "anything")
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("error: there is nothing to measure with: give --sets FILE")
    assert said.err.count("\n") == 1


# The standard sets, where they are at hand


def standard(name: str) -> Path:
    folder = os.environ.get("JASPER_RAY_EVAL_DATA")
    if not folder or not (Path(folder) / name).is_file():
        pytest.skip(f"{name} is not at hand; JASPER_RAY_EVAL_DATA names its folder")
    return Path(folder) / name


def test_the_standard_sets_are_read_whole(tmp_path: Path) -> None:
    pairs = {"type": "pairs", "name": "stsb", "path": str(standard("stsb-en-test.csv")), "format": "csv"}
    sick = {"type": "pairs", "name": "sick", "path": str(standard("sick_test.txt")), "format": "tsv"}
    sick_columns = {"left": "sentence_A", "right": "sentence_B", "score": "relatedness_score"}
    cranfield = {
        "documents": str(standard("cran.all")),
        "queries": str(standard("cran.qry")),
        "qrels": str(standard("cranqrel")),
    }
    banking = {"train": str(standard("banking77-train.csv")), "test": str(standard("banking77-test.csv"))}
    path = write_sets(
        tmp_path,
        {**pairs, "header": False, "columns": POSITIONS},
        {**sick, "columns": sick_columns},
        {"type": "retrieval", "name": "cranfield", "format": "cranfield", **cranfield},
        {
            "type": "classification",
            "name": "banking77",
            "format": "csv",
            "columns": {"text": "text", "label": "category"},
            "train_per_class": 20,
            **banking,
        },
    )
    sizes = [tuple(len(request.texts) for request in data.requests) for data in read_sets(load_sets(path))]
    assert sizes == [(1379, 1379), (4927, 4927), (1400, 225), (1540, 3080)]


def test_a_record_is_closed_and_finite() -> None:
    with pytest.raises(ValueError, match="finite"):
        ScoreRow(moment="start", dim=1, metric="spearman", set="a", value=float("nan"))
