# SPDX-License-Identifier: MIT
import math

import pytest
import torch
from torch.nn import functional as F

from losses import multi_instance_info_nce


def equation_1(z, labels, keys, key_labels, tau):
    """The paper's Eq. 1 term by term, in Python floats (float64)."""
    terms = []
    for i in range(len(z)):
        e = [math.exp(sum(a * b for a, b in zip(z[i].tolist(), key.tolist())) / tau) for key in keys]
        positives = sum(x for x, label in zip(e, key_labels) if label == labels[i])
        negatives = sum(x for x, label in zip(e, key_labels) if label != labels[i])
        if any(label == labels[i] for label in key_labels):
            terms.append(-math.log(positives / (positives + negatives)))
    return sum(terms) / len(terms) if terms else 0.0


def example(anchors, queue, classes=3, dim=8, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    unit = lambda n: F.normalize(torch.randn(n, dim, generator=g, dtype=dtype), dim=1)
    return unit(anchors), torch.randint(classes, (anchors,), generator=g), unit(queue), torch.randint(classes, (queue,), generator=g)


@pytest.mark.parametrize("seed", range(20))
def test_the_loss_is_equation_1_on_random_sizes(seed):
    g = torch.Generator().manual_seed(seed)
    anchors, queue, dim = (int(torch.randint(1, 40, (), generator=g)) for _ in range(3))
    z, labels, keys, key_labels = example(anchors, queue, dim=dim, seed=seed)
    for tau in (0.07, 0.5):
        assert abs(multi_instance_info_nce(z, labels, keys, key_labels, tau).item() - equation_1(z, labels, keys, key_labels, tau)) < 1e-6


def test_the_gradient_is_right():
    z, labels, keys, key_labels = example(5, 9)
    assert torch.autograd.gradcheck(lambda z: multi_instance_info_nce(z, labels, keys, key_labels, 0.2), z.requires_grad_())


def test_an_anchor_without_positives_is_left_out_of_loss_and_gradient():
    z, labels, keys, key_labels = example(4, 10)
    labels[2] = 99
    rest = [0, 1, 3]
    z.requires_grad_()
    loss = multi_instance_info_nce(z, labels, keys, key_labels)
    loss.backward()
    assert loss.item() == pytest.approx(multi_instance_info_nce(z.detach()[rest], labels[rest], keys, key_labels).item())
    assert z.grad[2].abs().max() == 0 and z.grad[rest].abs().min(dim=1).values.max() > 0


@pytest.mark.parametrize("queue", [0, 5])
def test_without_any_positive_the_loss_is_a_zero_that_can_be_differentiated(queue):
    z, labels, keys, _ = example(4, queue)
    z.requires_grad_()
    loss = multi_instance_info_nce(z, labels, keys, torch.full((queue,), 99))
    loss.backward()
    assert loss.item() == 0 and torch.equal(z.grad, torch.zeros_like(z))


def test_with_all_keys_positive_the_loss_is_zero():
    z, _, keys, _ = example(4, 6)
    assert multi_instance_info_nce(z, torch.ones(4).long(), keys, torch.ones(6).long()).item() == pytest.approx(0, abs=1e-12)


def test_with_identical_vectors_the_loss_is_the_logarithm_of_keys_per_positive():
    same = F.normalize(torch.ones(1, 8), dim=1)
    loss = multi_instance_info_nce(same, torch.tensor([1]), same.expand(12, 8), torch.tensor([1] * 3 + [0] * 9))
    assert loss.item() == pytest.approx(math.log(12 / 3), abs=1e-6)


def test_a_temperature_of_a_hundredth_and_huge_values_stay_finite_and_exact():
    # positives at cosine -1, negatives at 1: exp(-100) / exp(100) would be 0 / inf in float32
    z, keys = torch.tensor([[1.0, 0.0]], requires_grad=True), torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    loss = multi_instance_info_nce(z, torch.tensor([1]), keys, torch.tensor([1, 0]), temperature=0.01)
    loss.backward()
    assert loss.item() == pytest.approx(200) and torch.isfinite(z.grad).all()
    huge = multi_instance_info_nce(1e4 * z, torch.tensor([1]), 1e4 * keys, torch.tensor([1, 0]), temperature=0.01)
    assert huge.item() == pytest.approx(2e10)


def test_the_loss_falls_as_positives_come_closer():
    keys, labels = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([1, 0])
    losses = [multi_instance_info_nce(torch.tensor([[math.cos(a), math.sin(a)]]), torch.tensor([1]), keys, labels).item() for a in (2.5, 1.5, 0.5, 0)]
    assert losses == sorted(losses, reverse=True)


def test_half_precision_is_computed_in_float32():
    z, labels, keys, key_labels = example(6, 20, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = multi_instance_info_nce(z.bfloat16(), labels, keys.bfloat16(), key_labels)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(equation_1(z.bfloat16().double(), labels, keys.bfloat16().double(), key_labels, 0.07), rel=1e-5)


@pytest.mark.parametrize("broken", [
    lambda z, l, k, kl: (z[:, :3], l, k, kl), lambda z, l, k, kl: (z, l[:2], k, kl), lambda z, l, k, kl: (z, l, k, kl[:2]), lambda *a: (*a, 0.0)])
def test_arguments_that_do_not_fit_raise_a_value_error(broken):
    with pytest.raises(ValueError):
        multi_instance_info_nce(*broken(*example(4, 6)))
