"""Each loss equals its twin, written out in loops; the fast ranking loss is exact to the single comparison."""

# Shape legend: B rows (texts), D dimensions of a student's row, E of a teacher's, P = B(B-1)/2 unordered pairs of rows.

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import combinations

import pytest
import torch
from benchmarks.losses import matrix_hinge_ranking, matrix_relative_similarity
from torch import Tensor

from jasper_ray.losses import cosine_loss, count_comparisons, relative_similarity_loss, similarity_loss
from jasper_ray.losses.ranking import active_comparisons, hinge_ranking_loss

MARGIN = 0.015
Loss = Callable[[Tensor, Tensor], Tensor]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """These tensors are small: on a busy machine more threads mostly wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---- The twins: float64 scalars, one term at a time, gradients by autograd ----


def cosine_of(a_D: Tensor, b_D: Tensor) -> Tensor:
    return (a_D @ b_D) / (a_D.norm() * b_D.norm())


def loop_cosine(student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for s_D, t_D in zip(student_BD, teacher_BD, strict=True):
        total = total + 1 - cosine_of(s_D, t_D)
    return total / len(student_BD)


def loop_similarity(student_BD: Tensor, teacher_BE: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    rows = range(len(student_BD))
    for i in rows:
        for j in rows:
            total = total + (cosine_of(student_BD[i], student_BD[j]) - cosine_of(teacher_BE[i], teacher_BE[j])) ** 2
    return total / len(student_BD) ** 2


def loop_relative_similarity(student_BD: Tensor, teacher_BE: Tensor, margin: float = MARGIN) -> Tensor:
    pairs = list(combinations(range(len(student_BD)), 2))
    student = [cosine_of(student_BD[i], student_BD[j]) for i, j in pairs]
    teacher = [cosine_of(teacher_BE[i], teacher_BE[j]) for i, j in pairs]
    total, comparisons = 0 * student_BD.sum(), 0
    for p, q in combinations(range(len(pairs)), 2):
        comparisons += 1
        if teacher[p] > teacher[q]:
            total = total + torch.relu(student[q] - student[p] + margin)
        if teacher[q] > teacher[p]:
            total = total + torch.relu(student[p] - student[q] + margin)
    return total / comparisons


def loop_counts(student: list[float], teacher: list[float], margin: float) -> tuple[list[int], list[int]]:
    below, above = [0] * len(student), [0] * len(student)
    for p in range(len(student)):
        for q in range(len(student)):
            if teacher[p] > teacher[q] and student[q] + margin > student[p]:
                below[p] += 1
                above[q] += 1
    return below, above


LOSSES: list[tuple[Loss, Loss]] = [
    (cosine_loss, loop_cosine),
    (similarity_loss, loop_similarity),
    (relative_similarity_loss, loop_relative_similarity),
]
each_loss = pytest.mark.parametrize(("loss", "twin"), LOSSES, ids=["cosine", "similarity", "relative_similarity"])


# ---- Rows to try them on ----


def random_rows(rows: int, dimensions: int, seed: int) -> Tensor:
    return torch.randn(rows, dimensions, generator=torch.Generator().manual_seed(seed))


def sign_rows(rows: int, seed: int) -> Tensor:
    """Rows of +1 and -1 in 64 dimensions: every cosine is a multiple of 1/32, without rounding, so many tie exactly."""
    return random_rows(rows, 64, seed).sign()


def rows_with_cosines(cosine_P: Tensor, rows: int) -> Tensor:
    """Unit rows whose pairs have the given (small) cosines: the Cholesky factor of their Gram matrix."""
    gram_BB = torch.eye(rows, dtype=torch.float64)
    i_P, j_P = torch.triu_indices(rows, rows, offset=1)
    gram_BB[i_P, j_P] = gram_BB[j_P, i_P] = cosine_P.double()
    return torch.linalg.cholesky(gram_BB).float()


def value_and_gradient(loss: Loss, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    student = student.detach().clone().requires_grad_()
    value = loss(student, teacher)
    (gradient,) = torch.autograd.grad(value, student)
    return value.detach(), gradient


def assert_same(found: Tensor, expected: Tensor, relative: float = 1e-6, absolute: float = 1e-12) -> None:
    """Equal to `relative` of the largest entry expected, or to `absolute`."""
    error = (found.double() - expected.double()).abs().max().item()
    allowed = max(relative * expected.abs().max().item(), absolute)
    assert error <= allowed, f"off by {error}, allowed are {allowed}"


# ---- All three losses ----


@each_loss
@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        (random_rows(8, 24, seed=0), random_rows(8, 24, seed=1)),  # unrelated
        (random_rows(8, 24, seed=2) * 100, random_rows(8, 24, seed=3) * 0.01),  # lengths must not matter
        (random_rows(3, 5, seed=4), random_rows(3, 5, seed=5)),  # the smallest batch with two pairs
        (sign_rows(8, seed=6), sign_rows(8, seed=7)),  # tied cosines on both sides
        (random_rows(8, 64, seed=8), sign_rows(1, seed=9).expand(8, 64)),  # the teacher finds all texts the same
        (sign_rows(1, seed=10).expand(8, 64), random_rows(8, 64, seed=11)),  # the student does
    ],
    ids=["random", "unnormalised", "smallest", "tied", "constant teacher", "constant student"],
)
def test_loss_equals_its_loop_twin(loss: Loss, twin: Loss, student: Tensor, teacher: Tensor) -> None:
    value, gradient = value_and_gradient(loss, student, teacher)
    expected_value, expected_gradient = value_and_gradient(twin, student.double(), teacher.double())
    assert value.dtype == torch.float32
    assert value.shape == ()
    assert_same(value, expected_value)
    assert_same(gradient, expected_gradient, absolute=2e-9)  # where all directions are one, gradients cancel to 0


@each_loss
def test_gradient_is_the_slope_of_the_value(loss: Loss, twin: Loss) -> None:
    student, teacher, step = random_rows(12, 16, seed=20), random_rows(12, 16, seed=21), random_rows(12, 16, seed=22)
    _, gradient = value_and_gradient(loss, student, teacher)
    small = 1e-4
    ahead, behind = (twin(student.double() + sign * small * step, teacher.double()) for sign in (1, -1))
    assert (gradient * step).sum().item() == pytest.approx((ahead - behind).item() / (2 * small), rel=1e-3)


@each_loss
def test_half_precision_input_is_computed_in_float32(loss: Loss, twin: Loss) -> None:
    student, teacher = random_rows(16, 32, seed=30).bfloat16(), random_rows(16, 32, seed=31).bfloat16()
    value, gradient = value_and_gradient(loss, student, teacher)
    assert gradient.dtype == torch.bfloat16  # as its tensor
    assert_same(value, loss(student.float(), teacher.float()), relative=0)


@each_loss
def test_autocast_does_not_reach_inside(loss: Loss, twin: Loss) -> None:
    student, teacher = random_rows(16, 32, seed=32), random_rows(16, 32, seed=33)
    expected = value_and_gradient(loss, student, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = value_and_gradient(loss, student, teacher)
    assert found[0].dtype == torch.float32
    assert_same(found[0], expected[0], relative=0)
    assert_same(found[1], expected[1], relative=0)


@each_loss
def test_order_of_the_texts_does_not_matter(loss: Loss, twin: Loss) -> None:
    student, teacher = random_rows(20, 16, seed=40), random_rows(20, 16, seed=41)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(42))
    value, gradient = value_and_gradient(loss, student, teacher)
    permuted_value, permuted_gradient = value_and_gradient(loss, student[order], teacher[order])
    assert_same(permuted_value, value)
    assert_same(permuted_gradient, gradient[order])


@each_loss
def test_teacher_gets_no_gradient(loss: Loss, twin: Loss) -> None:
    student = random_rows(4, 8, seed=50).requires_grad_()
    teacher = random_rows(4, 8, seed=51).requires_grad_()
    loss(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None


@each_loss
@pytest.mark.parametrize("side", [0, 1], ids=["student", "teacher"])
def test_nan_shows_in_the_loss(loss: Loss, twin: Loss, side: int) -> None:
    rows = [random_rows(8, 8, seed=60), random_rows(8, 8, seed=61)]
    rows[side][3, 3] = math.nan
    value, gradient = value_and_gradient(loss, *rows)
    assert value.isnan()
    assert gradient.isnan().any()


@each_loss
def test_errors_say_what_was_found(loss: Loss, twin: Loss) -> None:
    with pytest.raises(ValueError, match="student has 4 rows and the teacher 5"):
        loss(torch.ones(4, 8), torch.ones(5, 8))
    with pytest.raises(ValueError, match=r"student's vectors have shape \(2, 4, 8\)"):
        loss(torch.ones(2, 4, 8), torch.ones(4, 8))
    with pytest.raises(ValueError, match=r"teacher's vectors have shape \(8,\)"):
        loss(torch.ones(4, 8), torch.ones(8))
    with pytest.raises(ValueError, match="batch of 0; this loss needs at least"):
        loss(torch.ones(0, 8), torch.ones(0, 8))


def test_batches_without_a_comparison_are_refused() -> None:
    with pytest.raises(ValueError, match="batch of 1; this loss needs at least 2"):
        similarity_loss(torch.ones(1, 8), torch.ones(1, 8))
    with pytest.raises(ValueError, match="batch of 2; this loss needs at least 3"):
        relative_similarity_loss(torch.ones(2, 8), torch.ones(2, 8))


def test_cosine_needs_equal_dimensions_and_the_others_do_not() -> None:
    student, teacher = random_rows(6, 8, seed=70), random_rows(6, 12, seed=71)
    with pytest.raises(ValueError, match="rows have 8 dimensions and the teacher's 12"):
        cosine_loss(student, teacher)
    for loss, twin in LOSSES[1:]:
        assert_same(loss(student, teacher), twin(student.double(), teacher.double()))


# ---- A student that equals its teacher ----


def test_perfect_student_has_no_cosine_and_no_similarity_loss() -> None:
    rows = random_rows(32, 48, seed=80)
    assert abs(cosine_loss(rows, rows).item()) < 1e-6
    assert similarity_loss(rows, rows).item() == 0
    assert similarity_loss(rows * 3, rows).item() < 1e-12


def test_perfect_student_pays_only_for_pairs_closer_than_the_margin() -> None:
    cosine_P = torch.tensor([0.00, 0.02, 0.04, 0.05, 0.07, 0.09])  # one gap of 0.01, the others 0.02
    rows = rows_with_cosines(cosine_P, rows=4)
    assert relative_similarity_loss(rows, rows, margin=0.015).item() == pytest.approx((0.015 - 0.01) / 15, rel=1e-4)
    assert relative_similarity_loss(rows, rows, margin=0.009).item() == 0


# ---- Relative similarity, comparison by comparison ----


@pytest.mark.parametrize("margin", [0.0, 1 / 16, 0.5], ids=["no margin", "one step", "eight steps"])
@pytest.mark.parametrize("student_steps", [0, 2, 16], ids=["student free", "student in halves", "student in 1/16"])
@pytest.mark.parametrize("teacher_steps", [0, 2, 16], ids=["teacher free", "teacher in halves", "teacher in 1/16"])
def test_every_comparison_is_counted_once(student_steps: int, teacher_steps: int, margin: float) -> None:
    """Scores in steps of 1/16 tie with each other, and meet the margin of 1/16 exactly: a hinge at 0 is not active."""
    student_P, teacher_P = random_rows(2, 61, seed=90)
    if student_steps:
        student_P = (student_P * student_steps).round() / student_steps
    if teacher_steps:
        teacher_P = (teacher_P * teacher_steps).round() / teacher_steps
    below_P, above_P = active_comparisons(student_P, teacher_P, margin)
    assert (below_P.tolist(), above_P.tolist()) == loop_counts(student_P.tolist(), teacher_P.tolist(), margin)

    found = value_and_gradient(lambda s, t: hinge_ranking_loss(s, t, margin), student_P, teacher_P)
    expected = value_and_gradient(lambda s, t: matrix_hinge_ranking(s, t, margin), student_P.double(), teacher_P)
    assert_same(found[0], expected[0])
    assert_same(found[1], expected[1])


@pytest.mark.parametrize("scores", [2, 3, 4, 5, 31, 32, 33, 64, 65])
def test_any_number_of_scores(scores: int) -> None:
    student_P, teacher_P = random_rows(2, scores, seed=scores)
    below_P, above_P = active_comparisons(student_P, teacher_P, 0.1)
    assert (below_P.tolist(), above_P.tolist()) == loop_counts(student_P.tolist(), teacher_P.tolist(), 0.1)


@pytest.mark.parametrize("noise", [0.01, 1.0, 100.0], ids=["near the teacher", "half way", "far away"])
def test_fast_form_equals_the_published_matrix(noise: float) -> None:
    teacher = random_rows(48, 64, seed=100)
    student = teacher + noise * random_rows(48, 64, seed=101)
    found = value_and_gradient(relative_similarity_loss, student, teacher)
    expected = value_and_gradient(
        lambda s, t: matrix_relative_similarity(s, t, MARGIN, dtype=torch.float64), student, teacher
    )
    assert_same(found[0], expected[0])
    assert_same(found[1], expected[1])


def test_no_digit_is_lost_over_a_hundred_billion_comparisons() -> None:
    """1,024 texts, a student in exactly the opposite order: all 1.4e11 hinges are active, and their sum is known."""
    pairs = 1024 * 1023 // 2
    step = 2.0**-20
    rank_P = torch.arange(pairs, dtype=torch.float32)
    found, gradient = value_and_gradient(lambda s, t: hinge_ranking_loss(s, t, MARGIN), -step * rank_P, rank_P)
    comparisons = pairs * (pairs - 1) // 2
    assert found.item() == pytest.approx(step * (pairs**3 - pairs) / 6 / comparisons + MARGIN, rel=1e-7)
    assert_same(gradient, (pairs - 1 - 2 * rank_P.double()) / comparisons)


def test_tiny_loss_survives_the_cancellation() -> None:
    """All scores are equal: each of 1.2e7 comparisons costs the margin, here 1e-9, whatever the scores' own size."""
    student_P = torch.full((5_000,), 0.7)
    teacher_P = torch.arange(5_000, dtype=torch.float32)
    assert hinge_ranking_loss(student_P, teacher_P, 1e-9).item() == pytest.approx(1e-9, rel=1e-6)


def test_a_batch_of_128_makes_33_028_128_comparisons() -> None:
    pairs = 128 * 127 // 2
    shuffled = torch.randperm(pairs, generator=torch.Generator().manual_seed(110))
    teacher = rows_with_cosines(shuffled * (0.007 / pairs), rows=128)  # far apart for float32: no ties
    assert count_comparisons(teacher) == 33_028_128


def test_tied_pairs_are_not_compared() -> None:
    assert count_comparisons(torch.eye(16)) == 0
    teacher = torch.tensor([[1.0, 1, 1, 1], [1, 1, -1, -1], [1, 1, 1, -1]])  # cosines 0, 1/2 and 1/2
    assert count_comparisons(teacher) == 2
