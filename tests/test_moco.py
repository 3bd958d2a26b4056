# SPDX-License-Identifier: MIT
import copy

import pytest
import torch
from torch import nn

from moco import LabelQueue, ema_update


def numbered(numbers):
    """Keys that are their own number three times, and labels that follow from it."""
    numbers = torch.tensor([*numbers]).long()
    return numbers[:, None].expand(-1, 3).float(), numbers % 5


def pairs(keys, labels):  # sorted, because the queue's order does not matter
    return sorted(zip(keys.tolist(), labels.tolist(), strict=True))


@pytest.mark.parametrize("size", [1, 2, 5, 16])
def test_after_any_enqueues_the_queue_holds_the_last_keys_with_their_labels(size):
    queue = LabelQueue(size, 3)
    total = 0
    for n in torch.randint(size + 1, (40,)).tolist():
        queue.enqueue(*numbered(range(total, total + n)))
        total += n
        last = range(max(0, total - size), total)
        assert pairs(queue.keys, queue.labels) == pairs(*numbered(last))


def test_keys_carry_no_gradient():
    queue = LabelQueue(4, 3)
    queue.enqueue(torch.randn(4, 3, requires_grad=True), torch.arange(4))
    assert not queue.keys.requires_grad


@pytest.mark.parametrize("m", [0, 0.9, 0.999, 1])
def test_the_ema_rule_moves_every_parameter_and_copies_every_buffer(m):
    online = nn.Sequential(nn.Conv3d(2, 3, 1), nn.BatchNorm3d(3))
    before, ema = copy.deepcopy(online), copy.deepcopy(online)
    online(torch.randn(4, 2, 2, 2, 2))  # moves BatchNorm's statistics
    nn.utils.vector_to_parameters(torch.randn(15), online.parameters())
    ema_update(online, ema, m)
    for old, new, now in zip(before.parameters(), ema.parameters(), online.parameters()):
        torch.testing.assert_close(new, m * old + (1 - m) * now)
    assert all(map(torch.equal, ema.buffers(), online.buffers()))


def test_more_keys_than_slots_at_once_are_refused():
    with pytest.raises(ValueError, match="size 4"):
        LabelQueue(4, 3).enqueue(*numbered(range(5)))


@pytest.mark.parametrize("labels", [torch.zeros(1).long(), torch.zeros(2)])
def test_labels_of_another_number_or_soft_labels_are_refused(labels):
    with pytest.raises(ValueError, match="integer labels"):
        LabelQueue(4, 3).enqueue(torch.zeros(2, 3), labels)
