# SPDX-License-Identifier: MIT
"""How fast and how large, beside torchvision's S3D as it comes (not on Windows): about four minutes
on two CPU cores. The encoders live in a process each and take turns, so that a noisy machine is
noisy for all. With the two allocator variables, glibc keeps the memory that torch frees."""

import contextlib
import copy
import multiprocessing
import os
import resource
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from timeit import timeit
from unittest import mock

import cv2
import numpy as np
import torch
import torchvision

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import eval as evaluation
import train
from data import FFPP, MANIPULATIONS, SPLITS, list_videos
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
    with contextlib.redirect_stdout(None), tempfile.TemporaryDirectory() as folder:
        theirs, path = TorchvisionS3D(), f"{folder}/s3d.pth"
        torch.save(theirs.state_dict(), path)
        args = train.parse(["--data", "none", "--init", path, "--mode", "bin_contrastive"])
        nets = train.build_networks(args, multi_classes=4)
        torch.save(
            {
                "config": train.settings(args),
                "encoder": nets["encoder"].state_dict(),
                "bin_classifier": nets["bin_classifier"].state_dict(),
            },
            path,
        )
        encoder, _, _ = evaluation.load_checkpoint(path, DEVICE)
    if who == "torchvision":
        args.precision, encoder, nets["encoder"] = "fp32", theirs.to(DEVICE).eval(), theirs
        nets["ema_encoder"] = copy.deepcopy(theirs).requires_grad_(False)
    nets.to(DEVICE)
    clip = torch.randint(256, (BATCH, 3, FRAMES, SIZE, SIZE), dtype=torch.uint8).to(DEVICE)
    y = torch.arange(BATCH, device=DEVICE) % 2
    nets["bin_queue"].enqueue(torch.eye(128, device=DEVICE).repeat(16, 1), y.repeat(2048 // BATCH))
    optimizer = torch.optim.AdamW([p for p in nets.parameters() if p.requires_grad], lr=args.lr)

    def work():
        if task == "inference":
            with torch.no_grad():
                return encoder(clip).cpu()
        return train.training_step(nets.train(), args, optimizer, clip, y, y)

    prepare.work = work


def measured():
    """What prepare.work returns, and the peak memory in MB so far."""
    result = prepare.work()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
        return result, torch.cuda.max_memory_allocated() / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return result, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def compare(title, works, rounds=7):
    """Time works {name: function of the round}, in turn, and compare them with the last one."""
    times = (
        1e3
        * np.array(
            [
                [timeit(partial(work, number), number=1) for work in works.values()]
                for number in range(rounds + 1)
            ]
        )[1:]
    )
    medians = np.median(times, axis=0)
    print(f"\n{title}: median [minimum .. maximum]")
    for name, median, each in zip(works, medians, times.T):
        print(
            f"  {name:28}{median:9.1f} ms [{each.min():.1f} .. {each.max():.1f}]"
            f"{medians[-1] / median:9.2f} times as fast",
            flush=True,
        )


def encoders(task):
    names = "ours", "ours, allocator variables", "torchvision"
    spawn, latest = multiprocessing.get_context("spawn"), {}
    pools = {who: ProcessPoolExecutor(1, spawn, prepare, (who, task)) for who in names}

    def work(who, _):  # the first call starts the process
        with mock.patch.dict(os.environ, ALLOCATOR if "variables" in who else {}):
            latest[who] = pools[who].submit(measured).result()

    compare(
        f"{task}, {BATCH} clips of {FRAMES} x {SIZE} x {SIZE}",
        {who: partial(work, who) for who in names},
    )
    print("  peak memory:", ", ".join(f"{who} {peak:.0f} MB" for who, (_, peak) in latest.items()))
    if task == "inference":
        ours, theirs = latest["ours"][0], latest["torchvision"][0]
        print(f"  embeddings differ by {(ours - theirs).norm() / theirs.norm():.1e} of their norm")


def reading(folder):
    for part in ("original", *MANIPULATIONS.values()):
        Path(folder, part).mkdir()
        for i in range(20_000):
            Path(folder, part, f"{i:03d}.mp4").touch()
    compare("100,000 files", {"list_videos": lambda _: list_videos(folder)}, rounds=3)
    path, rng = f"{folder}/original/{SPLITS['train'][0]}.mp4", np.random.default_rng(0)
    picture = cv2.resize(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8), (800, 600))
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"mp4v"), 25, (640, 480))
    for i in range(120):
        noise = rng.integers(0, 24, (480, 640, 3), dtype=np.uint8)
        writer.write(cv2.add(picture[i : i + 480, i : i + 640], noise))
    writer.release()
    decoded, cached = (
        FFPP(folder, "train", "none", augment=False, cache=cache)
        for cache in (None, f"{folder}/cache")
    )
    compare(
        f"{FRAMES} frames at random places of a video of 640 x 480, MPEG-4",
        {"from the cache": lambda seed: cached[0, seed], "decoded": lambda seed: decoded[0, seed]},
        rounds=25,
    )


if __name__ == "__main__":
    print(
        f"{os.cpu_count()} cores with {torch.backends.cpu.get_cpu_capability()}, {DEVICE}; torch "
        f"{torch.__version__}, torchvision {torchvision.__version__}, OpenCV {cv2.__version__}"
    )
    encoders("inference")
    encoders("training step")
    with tempfile.TemporaryDirectory() as temporary:
        reading(temporary)
