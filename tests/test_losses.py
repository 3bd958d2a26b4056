# SPDX-License-Identifier: MIT
import math

import pytest
import torch
from torch.nn import functional as F

from losses import multi_instance_info_nce


def equation_1(z, labels, keys, key_labels, tau):
    """Equation 1, anchor by anchor, over the anchors that have a positive."""
    losses = []
    for anchor, label in zip(z, labels):
        terms = (keys @ anchor / tau).exp()
        positives = terms[key_labels == label].sum()
        if positives > 0:
            losses.append(-torch.log(positives / terms.sum()))
    return sum(losses, 0 * z.sum()) / max(1, len(losses))


def example(anchors, queue, dim=8):
    """Anchors of labels 0 to 3, keys of labels 0 to 2, in float64."""
    z, keys = (F.normalize(torch.randn(n, dim).double(), dim=1) for n in (anchors, queue))
    return z.requires_grad_(), torch.randint(4, (anchors,)), keys, torch.randint(3, (queue,))


@pytest.mark.parametrize("seed", range(9))
def test_loss_and_gradient_are_those_of_equation_1_on_random_sizes(seed):
    torch.manual_seed(seed)
    arguments = example(*torch.randint(1, 40, (3,)).tolist())
    for tau in (0.07, 0.5):
        loss, expected = (f(*arguments, tau) for f in (multi_instance_info_nce, equation_1))
        torch.testing.assert_close(loss, expected)
        gradients = (torch.autograd.grad(value, arguments[0]) for value in (loss, expected))
        torch.testing.assert_close(*gradients)


def test_keys_receive_no_gradient():
    z, labels, keys, key_labels = example(9, 9)
    multi_instance_info_nce(z, labels, keys.requires_grad_(), key_labels).backward()
    assert keys.grad is None and z.grad.any()


@pytest.mark.parametrize("queue", [0, 5])
def test_without_any_positive_loss_and_gradient_are_zero(queue):
    z, labels, keys, key_labels = example(4, queue)
    loss = multi_instance_info_nce(z, labels, keys, key_labels + 9)
    loss.backward()
    assert loss == 0 and torch.equal(z.grad, torch.zeros_like(z))


@pytest.mark.parametrize("tau", [1e-6, 0.01, 1, 1e6])
def test_loss_and_gradient_are_exact_at_extreme_temperatures(tau):
    """The positive lies at -1, the negative at 1; exp(-100) is 0 and exp(100) inf in float32."""
    z = torch.tensor([[1.0, 0]], requires_grad=True)
    keys = torch.tensor([[-1.0, 0], [1, 0]])
    loss = multi_instance_info_nce(z, torch.tensor([1]), keys, torch.tensor([1, 0]), tau)
    loss.backward()
    smaller = math.exp(-2 / tau)
    assert loss.item() == pytest.approx(2 / tau + math.log1p(smaller), rel=1e-6)
    assert z.grad[0].tolist() == pytest.approx([2 / tau / (1 + smaller), 0], rel=1e-6)


@pytest.mark.parametrize("labels", [torch.zeros(3).long(), torch.zeros(4)])
def test_labels_of_another_number_or_soft_labels_are_refused(labels):
    z, _, keys, key_labels = example(4, 6)
    for arguments in ((z, labels, keys, key_labels), (keys, key_labels, z, labels)):
        with pytest.raises(ValueError, match="integer labels"):
            multi_instance_info_nce(*arguments)
