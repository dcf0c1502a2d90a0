"""Muon in fp32: momentum whose matrices are made nearly orthogonal before they are applied.

The optimizer of the same name in PyTorch iterates in bf16, which processors without such products
emulate: ten times as slow there as the whole forward and backward pass.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic in Keller Jordan's post on Muon
_ROUNDS = 5


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; for matrices [rows, columns] only.

    Matrices of one shape are done together. The rate of tall ones is scaled by
    ``sqrt(rows / columns)``, decay is decoupled.
    """

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, weight_decay: float, momentum: float
    ) -> None:
        super().__init__(parameters, {"lr": lr, "decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Apply the gradients once."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for matrix in group["params"]:
                alike[matrix.shape].append(matrix)
            for shape, matrices in alike.items():
                update = orthogonal(torch.stack([self._moved(m, group) for m in matrices]))
                rate = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                for matrix, direction in zip(matrices, update, strict=True):
                    matrix.mul_(1 - group["lr"] * group["decay"]).add_(direction, alpha=-rate)

    def _moved(self, matrix: Tensor, group: dict[str, float]) -> Tensor:
        assert matrix.grad is not None
        state = self.state[matrix]
        if not state:
            state["momentum"] = torch.zeros_like(matrix)
        moved: Tensor = state["momentum"].lerp_(matrix.grad, 1 - group["momentum"])
        return matrix.grad.lerp(moved, group["momentum"])


def orthogonal(matrices: Tensor) -> Tensor:
    """[n, rows, columns] -> the same with singular values near 1, by Newton-Schulz iteration."""
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(_ROUNDS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
