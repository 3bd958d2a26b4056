# SPDX-License-Identifier: MIT
"""How fast, beside torchvision's S3D as it comes: about four minutes on two CPU cores.

The encoders live in a process each and take turns, so that a noisy machine is noisy for all. With
the two allocator variables, glibc keeps the memory that torch frees.
"""

import contextlib
import copy
import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import torch
import torchvision

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import train
from s3d import KINETICS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCH, FRAMES, SIZE = 16 if DEVICE == "cuda" else 4, 32, 128
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "2147483647"}


class TorchvisionS3D(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.features = torchvision.models.video.s3d().features

    def forward(self, clip):
        mean, std = torch.tensor(KINETICS, device=clip.device).view(2, 1, 3, 1, 1, 1)
        return self.features((clip / 255 - mean) / std).mean(dim=(2, 3, 4))


def prepare(who, task):
    """In the process of one encoder: set prepare.work, the function that is timed."""
    torch.manual_seed(0)
    theirs = TorchvisionS3D()
    with contextlib.redirect_stdout(None), tempfile.TemporaryDirectory() as folder:
        torch.save(theirs.state_dict(), f"{folder}/s3d.pth")
        args = train.parse(["--data", "none", "--init", f"{folder}/s3d.pth"])
        nets = train.build_networks(args, multi_classes=4)
    if who == "torchvision":
        nets["encoder"] = theirs
        nets["ema_encoder"] = copy.deepcopy(theirs).requires_grad_(False)
    nets.to(DEVICE)
    clip = torch.randint(256, (BATCH, 3, FRAMES, SIZE, SIZE), dtype=torch.uint8).to(DEVICE)
    y = torch.arange(BATCH, device=DEVICE) % 2
    nets["bin_queue"].enqueue(torch.eye(128, device=DEVICE).repeat(16, 1), y.repeat(2048 // BATCH))
    optimizer = torch.optim.AdamW(nets.parameters(), lr=args.lr)

    def work():
        if task == "inference":
            with torch.no_grad():
                return nets["encoder"].eval()(clip).cpu()
        return train.training_step(nets.train(), args, optimizer, clip, y, y)

    prepare.work = work


def measured():
    """What prepare.work returns."""
    result = prepare.work()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return result


def encoders(task, rounds=7):
    """Time the encoders in turn, and compare them with torchvision's."""
    names = ("ours", "ours, allocator variables", "torchvision")
    spawn = multiprocessing.get_context("spawn")
    pools = {name: ProcessPoolExecutor(1, spawn, prepare, (name, task)) for name in names}
    times = {name: [] for name in names}
    latest = {}
    for number in range(rounds + 1):
        for name, pool in pools.items():
            with mock.patch.dict(os.environ, ALLOCATOR if "variables" in name else {}):
                started = time.perf_counter()
                latest[name] = pool.submit(measured).result()  # the first call starts the process
            if number > 0:
                times[name].append(1e3 * (time.perf_counter() - started))

    print(f"\n{task}, {BATCH} clips of {FRAMES} x {SIZE} x {SIZE}: median [minimum .. maximum]")
    base = np.median(times["torchvision"])
    for name in names:
        median = np.median(times[name])
        spread = f"[{min(times[name]):.1f} .. {max(times[name]):.1f}]"
        print(f"  {name:28}{median:9.1f} ms {spread}{base / median:9.2f} times as fast")
    if task == "inference":
        difference = (latest["ours"] - latest["torchvision"]).norm() / latest["ours"].norm()
        print(f"  embeddings differ by {difference:.1e} of their norm")


if __name__ == "__main__":
    print(
        f"{os.cpu_count()} cores with {torch.backends.cpu.get_cpu_capability()}, {DEVICE}; torch "
        f"{torch.__version__}, torchvision {torchvision.__version__}, OpenCV {cv2.__version__}"
    )
    encoders("inference")
    encoders("training step")
