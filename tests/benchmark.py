# SPDX-License-Identifier: MIT
"""How fast and how large, beside torchvision's S3D as it comes. A script, not a test.

    python tests/benchmark.py          # about four minutes on two CPU cores

The encoders live in a process each and take turns, so that a noisy machine is noisy for all; the
first round warms up and does not count. Times are medians, with minimum and maximum in brackets.
The two allocator variables make glibc keep the memory that torch frees.
"""
import contextlib
import copy
import itertools
import multiprocessing
import os
import platform
import shutil
import statistics
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
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import eval as evaluation
import train
from data import FFPP, MANIPULATIONS, SPLITS, crop_frame, list_videos
from s3d import KINETICS

try:
    import av
except ImportError:
    av = None
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCH, FRAMES, SIZE = 16 if DEVICE == "cuda" else 4, 32, 128
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "2147483647"}

class TorchvisionS3D(nn.Module):
    dim = 1024

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.features = torchvision.models.video.s3d().features
        self.register_buffer("statistics", torch.tensor(KINETICS).view(2, 1, 3, 1, 1, 1))

    def forward(self, clip):
        mean, std = self.statistics
        return self.features((clip / 255 - mean) / std).mean(dim=(2, 3, 4))

def prepare(who, task):
    """In the process of one encoder: sets prepare.work, what is timed."""
    with contextlib.redirect_stdout(None), tempfile.TemporaryDirectory() as folder:
        theirs, path = TorchvisionS3D(), f"{folder}/s3d.pth"
        torch.save(theirs.state_dict(), path)
        args = train.parse(["--data", "none", "--init", path, "--mode", "bin_contrastive"])
        nets = train.build_networks(args, multi_classes=4)
        torch.save({"config": {**vars(args), "format": evaluation.FORMAT},
                    "encoder": nets["encoder"].state_dict(),
                    "bin_classifier": nets["bin_classifier"].state_dict()}, path)
        encoder, _, _ = evaluation.load_checkpoint(path, DEVICE)
    if who == "torchvision":
        args.precision, encoder, nets["encoder"] = "fp32", theirs.to(DEVICE).eval(), theirs
        nets["ema_encoder"] = copy.deepcopy(theirs).requires_grad_(False)
    nets.to(DEVICE)
    clip = torch.randint(256, (BATCH, 3, FRAMES, SIZE, SIZE), dtype=torch.uint8).to(DEVICE)
    keys = F.normalize(torch.randn(args.queue_size, 128), dim=1).to(DEVICE)
    nets["bin_queue"].enqueue(keys, torch.arange(args.queue_size, device=DEVICE) % 2)
    optimizer = torch.optim.AdamW([p for p in nets.parameters() if p.requires_grad], lr=args.lr)
    step = [nets, args, optimizer, torch.amp.GradScaler(DEVICE, enabled=args.precision == "fp16"),
            clip, *2 * [torch.arange(BATCH, device=DEVICE) % 2]]

    def work():
        if task == "training step":
            nets.train()
            return train.training_step(*step)
        with torch.no_grad():
            return encoder(clip).cpu().numpy()
    prepare.work = work

def clock(work):
    """(seconds, what work returns)"""
    started = time.perf_counter()
    result = work()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, result

def measured():
    """(seconds, what prepare.work returned, peak memory in MB so far)"""
    seconds, result = clock(prepare.work)
    if DEVICE == "cuda":
        return seconds, result, torch.cuda.max_memory_allocated() / 2 ** 20
    try:
        import resource
    except ImportError:  # Windows
        return seconds, result, float("nan")
    unit = 2 ** 20 if sys.platform == "darwin" else 2 ** 10
    return seconds, result, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit

def compare(title, works, rounds=7):
    """Time works {name: function that returns seconds}; the last is what others are compared with."""
    times = [[work() for work in works.values()] for _ in range(rounds + 1)]
    medians = [statistics.median(each) for each in zip(*times[1:])]
    print(f"\n{title}")
    for name, median, each in zip(works, medians, zip(*times[1:])):
        print(f"  {name:28}{1e3 * median:9.1f} ms [{1e3 * min(each):.1f} .. {1e3 * max(each):.1f}]"
              f"{medians[-1] / median:9.2f} times as fast", flush=True)

def encoders(task):
    latest = {}

    def start(who):
        pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), prepare, (who, task))

        def work():  # the first call starts the process
            with mock.patch.dict(os.environ, ALLOCATOR if "variables" in who else {}):
                seconds, *latest[who] = pool.submit(measured).result()
            return seconds
        return work

    names = "ours", "ours, allocator variables", "torchvision"
    compare(f"{task}, {BATCH} clips of {FRAMES} x {SIZE} x {SIZE}", {who: start(who) for who in names})
    print("  peak memory:", ", ".join(f"{who} {peak:.0f} MB" for who, (_, peak) in latest.items()))
    if task == "inference":
        ours, theirs = latest["ours"][0], latest["torchvision"][0]
        print(f"  largest difference of the embeddings: {np.abs(ours - theirs).max():.1e}, "
              f"of values up to {np.abs(theirs).max():.1e}")

def film(path):
    """A noisy video of 120 frames; in H.264 if PyAV is installed (OpenCV cannot write that)."""
    rng = np.random.default_rng(0)
    picture = cv2.resize(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8), (800, 600))
    frames = [cv2.add(picture[i:i + 480, i:i + 640],
                      rng.integers(0, 24, (480, 640, 3), dtype=np.uint8)) for i in range(120)]
    if av is None:
        writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"mp4v"), 25, (640, 480))
        for frame in frames:
            writer.write(frame)
        return writer.release()
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="bgr24")))
        container.mux(stream.encode())
