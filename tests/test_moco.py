# SPDX-License-Identifier: MIT
import copy
import random

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from losses import multi_instance_info_nce
from moco import LabelQueue, ema_update


@pytest.mark.parametrize("size", [1, 2, 5, 16, 37])
def test_after_any_enqueues_the_queue_holds_the_last_keys_in_order_with_their_labels(size):
    draw, queue, keys, labels = random.Random(size), LabelQueue(size, 3), torch.empty(0, 3), torch.empty(0, dtype=torch.long)
    for _ in range(60):
        n = draw.choice([0, 1, 2, 3, 7, size, size + 1, 2 * size + 3])
        new, new_labels = torch.randn(n, 3), torch.randint(5, (n,))
        queue.enqueue(new, new_labels)
        keys, labels = torch.cat([keys, new])[-size:], torch.cat([labels, new_labels])[-size:]
        assert torch.equal(queue.keys, keys) and torch.equal(queue.labels, labels)


def test_empty_slots_are_never_negatives():
    keys, labels, z = nn.functional.normalize(torch.randn(6, 4), dim=1), torch.tensor([0, 1, 0, 1, 1, 0]), torch.randn(3, 4)
    queue = LabelQueue(100, 4)
    assert queue.keys.shape == (0, 4)
    queue.enqueue(keys, labels)
    anchors = torch.tensor([0, 1, 0])
    assert torch.equal(multi_instance_info_nce(z, anchors, queue.keys, queue.labels), multi_instance_info_nce(z, anchors, keys, labels))


def test_enqueueing_before_backward_does_not_disturb_the_gradient():
    z, queue = torch.randn(4, 3, requires_grad=True), LabelQueue(4, 3)
    queue.enqueue(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))
    loss = multi_instance_info_nce(z, torch.tensor([0, 1, 1, 0]), queue.keys, queue.labels)
    expected, = torch.autograd.grad(loss, z, retain_graph=True)
    queue.enqueue(torch.randn(3, 3), torch.tensor([0, 1, 0]))
    loss.backward()
    assert torch.equal(z.grad, expected)


def test_keys_carry_no_gradient_into_the_queue():
    queue = LabelQueue(4, 3)
    queue.enqueue(torch.randn(2, 3, requires_grad=True) * 2, torch.tensor([0, 1]))
    assert not queue.keys.requires_grad


def test_a_queue_survives_its_state_dict():
    queue, copied = LabelQueue(5, 2), LabelQueue(5, 2)
    for n in (3, 4):
        queue.enqueue(torch.randn(n, 2), torch.randint(3, (n,)))
    copied.load_state_dict(queue.state_dict())
    for q in (queue, copied):
        q.enqueue(torch.ones(1, 2), torch.tensor([9]))
    assert torch.equal(queue.keys, copied.keys) and torch.equal(queue.labels, copied.labels)


@pytest.mark.parametrize("m", [0.0, 0.9, 0.999, 1.0])
def test_the_ema_rule_moves_every_parameter_and_copies_every_buffer(m):
    online = nn.Sequential(nn.Conv3d(2, 3, 1), nn.BatchNorm3d(3))
    ema = copy.deepcopy(online)
    online(torch.randn(4, 2, 2, 2, 2))
    for p in online.parameters():
        p.data.add_(torch.randn_like(p))
    before = [p.clone() for p in ema.parameters()]
    ema_update(online, ema, m)
    for p, old, new in zip(online.parameters(), before, ema.parameters()):
        torch.testing.assert_close(new, m * old + (1 - m) * p)
    for b, e in zip(online.buffers(), ema.buffers()):
        assert torch.equal(b, e)


def test_impossible_arguments_raise_a_value_error():
    with pytest.raises(ValueError):
        LabelQueue(0, 3)
    with pytest.raises(ValueError):
        LabelQueue(3, 3).enqueue(torch.zeros(2, 3), torch.zeros(1))
    with pytest.raises(ValueError):
        ema_update(nn.Linear(1, 1), nn.Linear(1, 1), 1.5)


def enqueue_as_rank(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    queue = LabelQueue(5, 1)
    for step in range(2):
        queue.enqueue(torch.tensor([[10.0 * step + 2 * rank], [10.0 * step + 2 * rank + 1]]), torch.tensor([rank, rank]))
    torch.save((queue.keys.flatten().tolist(), queue.labels.tolist()), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_on_several_ranks_every_queue_holds_the_keys_of_all_in_rank_order(tmp_path):
    mp.spawn(enqueue_as_rank, (tmp_path.as_posix(),), nprocs=2)
    for rank in (0, 1):
        assert torch.load(tmp_path / f"{rank}.pt") == ([3.0, 10.0, 11.0, 12.0, 13.0], [1, 0, 0, 1, 1])
