# SPDX-License-Identifier: MIT
import copy

import pytest
import torch
from torch import distributed as dist
from torch import nn

from losses import multi_instance_info_nce
from moco import LabelQueue, ema_update


def numbered(numbers):
    """Keys that are their own number three times, and labels that follow from it."""
    numbers = torch.tensor([*numbers], dtype=torch.long)
    return numbers[:, None].expand(-1, 3).float(), numbers % 5


def pairs(keys, labels):  # sorted, because the queue's order does not matter
    return sorted(zip(keys.tolist(), labels.tolist()))


@pytest.mark.parametrize("size", [1, 2, 5, 16, 37])
def test_after_any_enqueues_the_queue_holds_the_last_keys_with_their_labels(size):
    queue, total = LabelQueue(size, 3), 0
    for n in torch.randint(2 * size + 3, (60,)).tolist():
        queue.enqueue(*numbered(range(total, total + n)))
        total += n
        last = range(max(0, total - size), total)
        assert pairs(queue.keys, queue.labels) == pairs(*numbered(last))


def test_empty_slots_are_never_negatives():
    queue, (keys, key_labels) = LabelQueue(100, 3), numbered(range(6))
    assert queue.keys.shape == (0, 3)
    queue.enqueue(keys, key_labels)
    anchors = torch.randn(5, 3), torch.arange(5)
    loss = multi_instance_info_nce(*anchors, queue.keys, queue.labels)
    torch.testing.assert_close(loss, multi_instance_info_nce(*anchors, keys, key_labels))


def test_keys_carry_no_gradient_and_enqueueing_before_backward_does_not_disturb_it():
    z, queue, labels = torch.randn(4, 3, requires_grad=True), LabelQueue(4, 3), torch.arange(4) % 2
    queue.enqueue(2 * z, labels)
    assert not queue.keys.requires_grad
    loss = multi_instance_info_nce(z, labels, queue.keys, queue.labels)
    (expected,) = torch.autograd.grad(loss, z, retain_graph=True)
    queue.enqueue(*numbered(range(3)))
    loss.backward()
    assert torch.equal(z.grad, expected)


@pytest.mark.parametrize("m", [0.0, 0.9, 0.999, 1.0])
def test_the_ema_rule_moves_every_parameter_and_copies_every_buffer(m):
    online = nn.Sequential(nn.Conv3d(2, 3, 1), nn.BatchNorm3d(3))
    before, ema = copy.deepcopy(online), copy.deepcopy(online)
    online(torch.randn(4, 2, 2, 2, 2))  # moves BatchNorm's statistics
    nn.utils.vector_to_parameters(torch.randn(15), online.parameters())
    ema_update(online, ema, m)
    for old, new, now in zip(before.parameters(), ema.parameters(), online.parameters()):
        torch.testing.assert_close(new, m * old + (1 - m) * now)
    assert all(map(torch.equal, ema.buffers(), online.buffers()))


@pytest.mark.parametrize(
    "keys, labels",
    [
        (torch.zeros(2, 3), torch.zeros(1).long()),
        (torch.zeros(2, 4), torch.zeros(2).long()),
        (torch.zeros(2, 3), torch.zeros(2)),  # soft labels
    ],
)
def test_keys_and_labels_that_do_not_fit_raise_a_value_error(keys, labels):
    with pytest.raises(ValueError, match="integer labels"):
        LabelQueue(4, 3).enqueue(keys, labels)


def test_impossible_arguments_raise_a_value_error():
    with pytest.raises(ValueError, match="slot"):
        LabelQueue(0, 3)
    for m in (-0.1, 1.5):
        with pytest.raises(ValueError, match="momentum"):
            ema_update(nn.Linear(1, 1), nn.Linear(1, 1), m)
    with pytest.raises(ValueError, match="architecture"):
        ema_update(nn.Linear(1, 1), nn.Linear(1, 2), 0.9)


def enqueue_as_rank(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    queue = LabelQueue(5, 3)
    queue.enqueue(*numbered(range(4 * rank, 4 * rank + 4)))
    torch.save((queue.keys, queue.labels), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_on_several_ranks_every_queue_holds_the_keys_of_all(tmp_path):
    torch.multiprocessing.spawn(enqueue_as_rank, (tmp_path.as_posix(),), nprocs=2)
    for file in (tmp_path / "0.pt", tmp_path / "1.pt"):
        assert pairs(*torch.load(file)) == pairs(*numbered(range(3, 8)))
