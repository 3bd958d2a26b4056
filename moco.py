# SPDX-License-Identifier: MIT
"""Momentum and queue: what label-informed MoCo (section 2.1.2) adds to the trained encoder.

MoCo (He et al., 2020) compares a clip with many others without encoding them again: their keys, the
outputs of encoder and projection head, wait in a queue. Keys of different age stay comparable
because a slow copy of the networks makes them, an exponential moving average (EMA) without a
gradient. The paper queues each key with its clip's label, which decides what is a positive.

A training step ends with the keys, because Equation 1 uses those of "previous iterations":

    loss from z and queue.keys  ->  optimiser step  ->  ema_update  ->  queue.enqueue(new keys)

`python moco.py` shows a queue that fills and wraps. To use it elsewhere, copy this file:

    import copy, torch
    from moco import LabelQueue, ema_update
    encoder = torch.nn.Linear(8, 4)
    ema_encoder = copy.deepcopy(encoder).requires_grad_(False)
    queue = LabelQueue(size=16, dim=4)
    clips, labels = torch.randn(6, 8), torch.tensor([0, 1, 1, 0, 1, 1])
    ema_update(encoder, ema_encoder, m=0.999)           # after the optimiser's step
    keys = torch.nn.functional.normalize(ema_encoder(clips), dim=1)
    queue.enqueue(keys, labels)                         # queue.keys (6, 4), queue.labels (6,)
"""

import torch
from torch import distributed as dist
from torch import nn


@torch.no_grad()
def ema_update(online, ema, m):
    """ema <- m * ema + (1 - m) * online for every parameter of two modules of one architecture;
    buffers are copied. Raises ValueError if m is not in [0, 1]."""
    if not 0 <= m <= 1:
        raise ValueError(f"momentum m must be in [0, 1], got {m}")
    for parameter, ema_parameter in zip(online.parameters(), ema.parameters(), strict=True):
        ema_parameter.lerp_(parameter, 1 - m)
    for buffer, ema_buffer in zip(online.buffers(), ema.buffers(), strict=True):
        ema_buffer.copy_(buffer)  # BatchNorm's running statistics are averages already


class LabelQueue(nn.Module):
    """The last `size` keys with their labels; a module, so that checkpoints include it.

    keys (filled, dim) and labels (filled,) are in no particular order. It starts empty; MoCo's
    starts full of random vectors, which belong to no clip. MoCo also shuffles clips between
    GPUs, because a clip meets its own key, normalised in the same batch, as its positive. Here a
    batch never meets its own keys. Its positives may include an earlier clip of the same video,
    since training shows an original once beside each of its fakes.
    """

    def __init__(self, size, dim):
        super().__init__()
        self.register_buffer("slots", torch.zeros(size, dim))
        self.register_buffer("slot_labels", torch.zeros(size, dtype=torch.long))
        self.register_buffer("enqueued", torch.tensor(0))  # ever, not only those still in a slot

    @property
    def filled(self):
        return min(int(self.enqueued), len(self.slots))

    @property
    def keys(self):
        return self.slots[: self.filled]

    @property
    def labels(self):
        return self.slot_labels[: self.filled]

    @torch.no_grad()
    def enqueue(self, keys, labels):
        """Add keys (B, dim) with labels (B,); the oldest make room. A loss that used the queue must
        have gone backward before, because its gradient needs the old keys.

        With torch.distributed, every rank adds the keys of all ranks in rank order, so that all
        queues stay equal; all must bring the same B. Raises ValueError for labels of another shape
        or type, or more keys than slots.
        """
        if labels.shape != keys.shape[:1] or labels.is_floating_point():
            raise ValueError("expected keys (B, dim) and integer labels (B,)")
        keys = gather(keys)
        labels = gather(labels)
        size = len(self.slots)
        if len(keys) > size:
            raise ValueError(f"{len(keys)} keys at once do not fit into a queue of size {size}")
        slot = (self.enqueued + torch.arange(len(keys), device=keys.device)) % size
        self.slots[slot] = keys
        self.slot_labels[slot] = labels
        self.enqueued += len(keys)


def gather(rows):
    """(B, ...) on each rank -> (ranks * B, ...) on every rank; without ranks: rows."""
    if not (dist.is_available() and dist.is_initialized()):
        return rows
    gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, rows.contiguous())
    return torch.cat(gathered)


def main():
    """The lesson: a queue that fills and wraps."""
    queue = LabelQueue(size=6, dim=1)
    print("6 slots, 4 keys a step. A key is its own number, its label says odd (1) or even (0):")
    for step in range(4):
        keys = queue.keys.flatten().tolist()
        print(f"  step {step}: the loss sees {keys}, {queue.labels.tolist()}")
        new = torch.arange(4 * step, 4 * step + 4)
        queue.enqueue(new[:, None].float(), new % 2)


if __name__ == "__main__":
    main()
