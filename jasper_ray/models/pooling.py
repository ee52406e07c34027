"""How a body's token states become one vector a text."""

# Shape legend: B texts, T tokens, H hidden size of the body.

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Pooling = Literal["mean", "cls", "lasttoken"]


def pool(states_BTH: Tensor, mask_BT: Tensor, pooling: Pooling) -> Tensor:
    """Pooled states `[B, H]` of the tokens that `mask_BT` marks with 1; padding may be on either side."""
    if pooling == "mean":
        return mean_pool(states_BTH, mask_BT)
    rows_B = torch.arange(len(states_BTH), device=states_BTH.device)
    if pooling == "cls":
        return states_BTH[rows_B, mask_BT.argmax(dim=1)]
    last_B = mask_BT.shape[1] - 1 - mask_BT.flip(1).argmax(dim=1)
    return states_BTH[rows_B, last_B]


def mean_pool(states_BTH: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean over the marked tokens, summed in the states' own precision; a text has at least one token."""
    weights_BT1 = mask_BT.unsqueeze(-1).to(states_BTH.dtype)
    return (states_BTH * weights_BT1).sum(dim=1) / weights_BT1.sum(dim=1)
