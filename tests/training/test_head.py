"""The head in chunks gives the losses and gradients of the plain one, whether it trains or not."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from workbench.training import head


@pytest.mark.parametrize("trains", [False, True], ids=["frozen", "trains"])
@pytest.mark.parametrize("bias", [False, True])
def test_chunks_give_the_losses_and_gradients_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, trains: bool, bias: bool
) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(16, 50, bias=bias).requires_grad_(trains)
    hidden, targets = torch.randn(23, 16), torch.randint(0, 50, (23,))
    weights = torch.arange(1.0, 24)  # every row counts differently
    params = list(layer.parameters()) if trains else []
    monkeypatch.setattr(head, "CHUNK", 4)
    monkeypatch.setattr(head, "FROZEN_CHUNK", 5)
    found, seen = [], []
    layer.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    for chunked in (False, True):
        start = hidden.clone().requires_grad_()
        inside = start * 2  # not a leaf, as in a model
        if chunked:
            seen.clear()
            losses = head.row_losses(layer, inside, targets)
        else:
            losses = functional.cross_entropy(layer(inside), targets, reduction="none")
        found.append([losses, *torch.autograd.grad((losses * weights).sum(), [start, *params])])
    assert max(seen, default=0) == (4 if trains else 0)
    for whole, other in zip(*found, strict=True):
        torch.testing.assert_close(whole, other, rtol=1e-5, atol=1e-6)


def test_mixed_precision_rounds_no_more_than_the_plain_head() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 300, bias=False).requires_grad_(False)
    start, targets = torch.randn(40, 64, requires_grad=True), torch.randint(0, 300, (40,))
    exact = functional.cross_entropy(layer(start), targets, reduction="sum")
    (true,) = torch.autograd.grad(exact, start)
    errors = []
    for own in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            plain = functional.cross_entropy(layer(start * 1).float(), targets, reduction="none")
            losses = head.row_losses(layer, start * 1, targets) if own else plain
        (grad,) = torch.autograd.grad(losses.sum(), start)
        errors.append((grad - true).abs().max().item())
    assert errors[1] <= 1.5 * errors[0]


def test_a_row_that_is_sure_and_wrong_has_its_whole_loss() -> None:
    layer = nn.Linear(2, 3, bias=False).requires_grad_(False)
    layer.weight.copy_(torch.tensor([[300.0, 0.0], [0.0, 300.0], [0.0, 0.0]]))
    hidden, targets = torch.eye(2, requires_grad=True), torch.tensor([1, 1])
    losses = head.row_losses(layer, hidden * 1, targets)
    assert losses.tolist() == [300.0, 0.0]
    (grad,) = torch.autograd.grad(losses.sum(), hidden)
    torch.testing.assert_close(grad, torch.tensor([[300.0, -300.0], [0.0, 0.0]]))


def test_without_a_gradient_nothing_is_made_for_it() -> None:
    layer, hidden = nn.Linear(8, 9).requires_grad_(False), torch.randn(5, 8)
    with torch.no_grad():
        losses = head.row_losses(layer, hidden, torch.zeros(5, dtype=torch.long))
    assert not losses.requires_grad and losses.shape == (5,)
