"""A pairwise hinge ranking loss over P scores, exact in O(P log P) time and O(P) memory.

Written out, the loss is a sum over the P x P comparisons of two scores. The comparison of p with a lower-ranked q is
active where `s_q + margin > s_p`, and there it is linear: `s_q + margin - s_p`. So two counts a score are all it takes:

    below_p = how many scores ranked below p are active against p (each pushes s_p up),
    above_p = how many scores ranked above p is p active against (each pushes s_p down),
    value * N = sum over p of (above_p - below_p) * s_p + below_p * margin,
    d value / d s_p = (above_p - below_p) / N.

In the order of the student's scores, those that one score is active against are a prefix, and those active against it
are all but a prefix: a binary search finds either. What remains is to count integers, "how many of the first k ranks
are lower (or higher) than mine", and a wavelet matrix (Claude, Navarro and Ordonez, 2015) answers that for all scores
at once, bit by bit of the rank, with cumulative sums and gathers and no further sort. The counts are exact; only the
final sum is rounded.
"""

# Shape legend: P scores; 3P = three positions for each of them.

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def hinge_ranking_loss(student_P: Tensor, teacher_P: Tensor, margin: float) -> Tensor:
    """Compute `1/N` times the sum over p, q with `teacher_p > teacher_q` of `max(0, student_q + margin - student_p)`.

    Both are float32 [P], P >= 2, and N = P(P-1)/2; only the student's scores get a gradient. Returns a float32 scalar.
    Comparisons are `student_q + margin > student_p` in float64; a hinge at exactly 0 has value 0 and gradient 0.
    """
    if student_P.device.type == "mps":
        # Apple's GPU has no float64. The scores are a few megabytes, so the CPU takes them and exactness stays.
        return hinge_ranking_loss(student_P.cpu(), teacher_P.cpu(), margin).to(student_P.device)
    loss: Tensor = HingeRanking.apply(student_P, teacher_P, margin)
    return loss


class HingeRanking(torch.autograd.Function):
    """The loss as one node of autograd, whose gradient is the counts."""

    @staticmethod
    def forward(ctx: Any, student_P: Tensor, teacher_P: Tensor, margin: float) -> Tensor:
        below_P, above_P = active_comparisons(student_P, teacher_P, margin)
        comparisons = len(student_P) * (len(student_P) - 1) // 2
        # A NaN target has no order, yet sorting gives it one: pass the NaN on, as the other losses do.
        slope_P = (above_P - below_P).double() + 0 * teacher_P.sum()
        ctx.save_for_backward((slope_P / comparisons).float())
        # float64 carries the sum: a count times a float32 score is exact in it, and large terms cancel to the loss.
        total = (slope_P * student_P).sum() + margin * below_P.sum().double()
        return (total / comparisons).float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient_P,) = ctx.saved_tensors
        return upstream * gradient_P, None, None


def active_comparisons(student_P: Tensor, teacher_P: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Count `below_p` and `above_p` of every score p, as this file's head defines them: two int64 [P].

    Either adds up to the number of all active comparisons.
    """
    sorted_P, order_P = student_P.double().sort()
    raised_P = sorted_P + margin
    rank_P = strictly_lower(teacher_P)[order_P]
    # In student order: q is active against the first `reach` scores, and the first `spared` are not active against p.
    # Both searches weigh the same rounded `raised`, so that they agree on every single comparison.
    reach_P = torch.searchsorted(sorted_P, raised_P)
    spared_P = torch.searchsorted(raised_P, sorted_P, right=True)
    spared_below_P, above_P = count_by_rank(rank_P, spared_P, reach_P)
    return unsort(rank_P - spared_below_P, order_P), unsort(above_P, order_P)


def strictly_lower(scores_P: Tensor) -> Tensor:
    """Count, for every score, those strictly lower: its rank from 0, shared by ties. int64 [P]."""
    sorted_P, order_P = scores_P.sort()
    return unsort(torch.searchsorted(sorted_P, sorted_P), order_P)


def unsort(values_P: Tensor, order_P: Tensor) -> Tensor:
    """Undo `values_P = unsorted_P[order_P]`."""
    return torch.empty_like(values_P).scatter_(0, order_P, values_P)


def count_by_rank(rank_P: Tensor, spared_P: Tensor, reach_P: Tensor) -> tuple[Tensor, Tensor]:
    """Count for every i: of the first `spared_i` ranks those lower than `rank_i`, of the first `reach_i` those higher.

    From the top bit down, the ranks of one node share the bits seen so far and are adjacent; a stable partition by
    the next bit sends them left (0) or right (1). Every i follows its own rank down, and with it three positions: its
    node's start and the ends of its two prefixes. Where i goes right, the members of the prefix that go left are lower;
    where i goes left, those that go right are higher. Equal ranks never part, so ties count for nothing.
    """
    rank_P = rank_P.int()  # positions in 32 bits halve the memory traffic, and hold batches of 65,536 texts
    position_3P = torch.stack([torch.zeros_like(rank_P), spared_P.int(), reach_P.int()])
    lower_P, higher_P = torch.zeros_like(rank_P), torch.zeros_like(rank_P)
    level_P, to_left = rank_P, rank_P.new_zeros(len(rank_P) + 1)
    for bit in reversed(range((len(rank_P) - 1).bit_length())):
        goes_left_P = level_P >> bit & 1 == 0
        torch.cumsum(goes_left_P, 0, dtype=torch.int32, out=to_left[1:])  # to_left[k]: how many of the first k go left
        left_3P = to_left.index_select(0, position_3P.flatten()).view_as(position_3P)
        right_3P = position_3P - left_3P
        goes_right_P = rank_P >> bit & 1  # 0 or 1: multiplying by it is faster than torch.where on a CPU
        lower_P += (left_3P[1] - left_3P[0]) * goes_right_P
        higher_P += (right_3P[2] - right_3P[0]) * (1 - goes_right_P)
        position_3P = left_3P + (to_left[-1] + right_3P - left_3P) * goes_right_P
        level_P = torch.cat([level_P[goes_left_P], level_P[~goes_left_P]])
    return lower_P.long(), higher_P.long()
