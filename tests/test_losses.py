# SPDX-License-Identifier: MIT
import math

import pytest
import torch
from torch.nn import functional as F

from losses import multi_instance_info_nce


def equation_1(z, labels, keys, key_labels, tau):
    """Equation 1 term by term in Python's floats, which are float64."""
    terms = []
    for anchor, label in zip(z.tolist(), labels.tolist()):
        positives = negatives = 0.0
        for key, key_label in zip(keys.tolist(), key_labels.tolist()):
            term = math.exp(sum(a * b for a, b in zip(anchor, key)) / tau)
            if key_label == label:
                positives += term
            else:
                negatives += term
        if positives:
            terms.append(-math.log(positives / (positives + negatives)))
    return sum(terms) / len(terms) if terms else 0.0


def example(anchors, queue, dim=8, dtype=torch.float64):
    z = F.normalize(torch.randn(anchors, dim, dtype=dtype), dim=1).requires_grad_()
    keys = F.normalize(torch.randn(queue, dim, dtype=dtype), dim=1)
    return z, torch.randint(3, (anchors,)), keys, torch.randint(3, (queue,))


@pytest.mark.parametrize("seed", range(20))
def test_the_loss_is_equation_1_on_random_sizes(seed):
    torch.manual_seed(seed)
    arguments = example(*torch.randint(1, 40, (3,)).tolist())
    for tau in (0.07, 0.5):
        loss = multi_instance_info_nce(*arguments, tau)
        assert loss.item() == pytest.approx(equation_1(*arguments, tau), rel=1e-10, abs=1e-10)


def test_the_gradient_is_that_of_the_loss_and_keys_receive_none():
    z, labels, keys, key_labels = example(5, 9)
    keys.requires_grad_()
    multi_instance_info_nce(z, labels, keys, key_labels).backward()
    assert keys.grad is None
    assert torch.autograd.gradcheck(
        lambda z: multi_instance_info_nce(z, labels, keys.detach(), key_labels, 0.2), z
    )


def test_an_anchor_without_positives_is_left_out_of_loss_and_gradient():
    z, labels, keys, _ = example(4, 10)
    labels[:] = torch.tensor([0, 1, 99, 1])
    key_labels, rest = torch.arange(10) % 2, [0, 1, 3]
    loss = multi_instance_info_nce(z, labels, keys, key_labels)
    loss.backward()
    assert loss == multi_instance_info_nce(z[rest], labels[rest], keys, key_labels)
    assert (z.grad.norm(dim=1) > 0).tolist() == [True, True, False, True]


@pytest.mark.parametrize("queue", [0, 5])
def test_without_any_positive_the_loss_is_a_zero_that_can_be_differentiated(queue):
    z, labels, keys, _ = example(4, queue)
    loss = multi_instance_info_nce(z, labels, keys, torch.full((queue,), 99))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(z.grad, torch.zeros_like(z))


@pytest.mark.parametrize("tau", [1e-6, 0.01, 1.0, 1e6])
def test_loss_and_gradient_are_exact_at_extreme_temperatures(tau):
    """The positive lies at -1, the negative at 1; exp(-100) is 0 and exp(100) inf in float32."""
    z, keys = (
        torch.tensor([[1.0, 0.0]], requires_grad=True),
        torch.tensor([[-1.0, 0.0], [1.0, 0.0]]),
    )
    loss = multi_instance_info_nce(z, torch.tensor([1]), keys, torch.tensor([1, 0]), tau)
    loss.backward()
    smaller = math.exp(-2 / tau)
    assert loss.item() == pytest.approx(2 / tau + math.log1p(smaller), rel=1e-6)
    assert z.grad[0].tolist() == pytest.approx([2 / tau / (1 + smaller), 0], rel=1e-6)


def test_half_precision_is_computed_in_float32():
    z, labels, keys, key_labels = example(6, 20, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = multi_instance_info_nce(z, labels, keys, key_labels)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(equation_1(z, labels, keys, key_labels, 0.07), rel=1e-5)


LIKE_THIS = (torch.ones(4, 8), torch.zeros(4).long(), torch.ones(6, 8), torch.zeros(6).long())


@pytest.mark.parametrize(
    "argument, wrong",
    [
        (1, torch.zeros(3).long()),
        (1, torch.zeros(4)),  # a soft label
        (2, torch.ones(6, 7)),
        (3, torch.zeros(5).long()),
    ],
)
def test_arguments_that_do_not_fit_raise_a_value_error(argument, wrong):
    arguments = [*LIKE_THIS]
    arguments[argument] = wrong
    with pytest.raises(ValueError):
        multi_instance_info_nce(*arguments)


@pytest.mark.parametrize("tau", [0.0, -1.0, float("nan")])
def test_a_temperature_must_be_positive(tau):
    with pytest.raises(ValueError, match="temperature"):
        multi_instance_info_nce(*LIKE_THIS, tau)
