# SPDX-License-Identifier: MIT
"""How fast and how large, beside what one would run instead. A benchmark, not a test: it asserts nothing.

    python tests/benchmark.py          # about four minutes on two CPU cores

Ours and torchvision's S3D live in a process each, so that both memories can be told apart, and take turns, so that a
noisy machine is noisy for both; the first round warms up and does not count. Medians, in brackets minimum and maximum.
"""
import contextlib
import io
import multiprocessing
import statistics
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data
import eval as evaluation
import train
from losses import multi_instance_info_nce
from moco import LabelQueue, ema_update
from s3d import S3D, load_pretrained

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCH, FRAMES, SIZE, QUEUE = (16 if DEVICE == "cuda" else 4), 32, 128, 2048


class TorchvisionS3D(nn.Module):
    """The peer, as it comes: default memory layout, BatchNorm apart from the convolutions, float32."""
    dim = 1024

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        model = torchvision.models.video.s3d(weights=None)
        for module in model.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight)  # features of size 1, so that differences mean something
        self.features, self.input = model.features, S3D(0.01)

    def forward(self, clip):
        return self.features((clip / 255 - self.input.mean) / self.input.std).mean(dim=(2, 3, 4))


def clock(work):
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def peak_megabytes():
    if DEVICE == "cuda":
        return torch.cuda.max_memory_allocated() / 2 ** 20
    try:
        import resource  # not on Windows
    except ImportError:
        return float("nan")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2 ** 20 if sys.platform == "darwin" else 2 ** 10)


def serve(pipe, who, task):
    """A process with one encoder for one task: answers ("inference" or "step", batch, frames, size, queue) with seconds."""
    if who != "torchvision" and task == "inference":
        evaluation.keep_freed_memory()  # as eval.py does
    theirs = TorchvisionS3D()
    args = train.parse(["--mode", "bin_contrastive", "--data", "none", "--init", "random", "--device", DEVICE])
    with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as folder:
        nets = train.build_networks(args, multi_classes=4)
        torch.save({f"features.{name}": value for name, value in theirs.features.state_dict().items()}, f"{folder}/s3d.pth")
        load_pretrained(nets["encoder"], f"{folder}/s3d.pth")
    theirs.input.mean.copy_(nets["encoder"].mean), theirs.input.std.copy_(nets["encoder"].std)
    if who == "torchvision":
        args.precision = "fp32"
        nets["encoder"] = theirs
        nets["ema_encoder"] = TorchvisionS3D().requires_grad_(False)
    nets.to(DEVICE)
    if who == "ours, compiled":
        nets["encoder"].compile()
    optimizer = torch.optim.AdamW([p for p in nets.parameters() if p.requires_grad], lr=args.lr)
    scaler = torch.amp.GradScaler(DEVICE, enabled=args.precision == "fp16")
    torch.backends.cudnn.benchmark = True
    made = {}

    def work(kind, batch, frames, size, queue):
        if (batch, frames, size) not in made:
            made.clear()
            made[batch, frames, size] = torch.randint(0, 256, (batch, 3, frames, size, size), dtype=torch.uint8, device=DEVICE)
        clip, y = made[batch, frames, size], torch.arange(batch, device=DEVICE) % 2
        if kind == "inference":
            nets.eval()
            with torch.no_grad():  # float32, as eval.py
                return nets["encoder"](clip)
        nets.train()
        if len(nets["bin_queue"].slots) != queue:
            nets["bin_queue"] = LabelQueue(queue, 128).to(DEVICE)
            nets["bin_queue"].enqueue(nn.functional.normalize(torch.randn(queue, 128), dim=1), torch.arange(queue) % 2)
        train.training_step(nets, {}, args, [(clip, y, y)], optimizer, scaler)

    before = peak_megabytes()
    with contextlib.suppress(EOFError):  # the main process is done
        while order := pipe.recv():
            if order == "memory":
                pipe.send((peak_megabytes(), before))
            elif order[0] == "embedding":
                torch.manual_seed(1)
                pipe.send(work("inference", *order[1:]).float().cpu().numpy())
            elif order[0] == "flops":
                with FlopCounterMode(display=False) as counter:
                    work(*order[1:])
                pipe.send(counter.get_total_flops())
            else:
                pipe.send(clock(lambda: work(*order)))


class Process:
    def __init__(self, who, task):
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        context.Process(target=serve, args=(other, who, task), daemon=True).start()

    def __call__(self, *order):
        self.pipe.send(order if len(order) > 1 else order[0])
        return self.pipe.recv()


def in_turn(works, rounds):
    """{name: [seconds of each round but the first]}."""
    seconds = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, work in works.items():
            seconds[name].append(work())
    return {name: times[1:] for name, times in seconds.items()}


def shown(times, unit="s"):
    factor = {"s": 1, "ms": 1e3}[unit]
    return f"{factor * statistics.median(times):9.3f} {unit} [{factor * min(times):.3f} .. {factor * max(times):.3f}]"


def compare(title, works, rounds=7, unit="s", note=lambda name, seconds: ""):
    times = in_turn(works, rounds)
    reference = statistics.median(list(times.values())[-1])
    print(f"\n{title}")
    for name, seconds in times.items():
        print(f"  {name:38}{shown(seconds, unit):38}{reference / statistics.median(seconds):7.2f} x{note(name, statistics.median(seconds))}")


def encoders():
    side = 8192 if DEVICE == "cuda" else 2048
    a = torch.randn(side, side, device=DEVICE)
    peak = 2 * side ** 3 / min(clock(lambda: a @ a) for _ in range(10))
    print(f"{torch.cuda.get_device_name() if DEVICE == 'cuda' else f'CPU, {torch.get_num_threads()} threads'}; torch {torch.__version__}; "
          f"a float32 matrix product of {side} x {side} runs at {peak / 1e9:.0f} GFLOP/s: 'of peak' is relative to it")
    names = ["ours", *(["ours, compiled"] if DEVICE == "cuda" else []), "torchvision"]
    shape = BATCH, FRAMES, SIZE, QUEUE
    for task, title in (("inference", "encoder inference"), ("step", "training step of bin_contrastive")):
        processes = {name: Process(name, task) for name in names}
        if task == "inference":
            embedding = {name: process("embedding", *shape) for name, process in processes.items()}
        flops = processes["ours"]("flops", task, *shape)
        compare(f"{title}, {BATCH} clips of {FRAMES} x {SIZE} x {SIZE}, {flops / 1e9:.0f} GFLOP",
                {name: (lambda process=process: process(task, *shape)) for name, process in processes.items()},
                note=lambda name, seconds: f"{BATCH / seconds:9.2f} clips/s{100 * flops / seconds / peak:6.0f} % of peak")
        memory = {name: process("memory") for name, process in processes.items()}
        print("  peak memory: " + ", ".join(f"{name} {peak:.0f} MB ({before:.0f} of them before the first clip)"
                                            for name, (peak, before) in memory.items()))
        if task == "inference":
            print(f"  largest difference between the embeddings: {np.abs(embedding['ours'] - embedding['torchvision']).max():.1e} "
                  f"(they lie in {embedding['ours'].min():.2f} .. {embedding['ours'].max():.2f})")

    print("\nhow a training step grows (ours), seconds:")
    for axis, title, values in ((0, "batch", (2, 4, 8, 16)), (1, "frames", (8, 16, 32, 64)), (2, "pixels", (64, 96, 128, 192)), (3, "queue", (256, 2048, 16384, 65536))):
        row = []
        for value in values:
            at = [*shape[:axis], value, *shape[axis + 1:]]
            row.append(f"{value}: {statistics.median([processes['ours']('step', *at) for _ in range(3)]):.2f}")
        print(f"  {title:8}" + "   ".join(f"{cell:14}" for cell in row))


def reading():
    with tempfile.TemporaryDirectory() as folder:
        path, codec = f"{folder}/video.mp4", "MPEG-4 part 2 (OpenCV's wheels cannot write H.264; install PyAV for that)"
        rng = np.random.default_rng(0)
        picture = cv2.resize(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8), (800, 600), interpolation=cv2.INTER_CUBIC)
        film = [np.clip(picture[i:i + 480, i:i + 640] + rng.normal(0, 8, (480, 640, 3)), 0, 255).astype(np.uint8) for i in range(120)]
        try:
            import av
        except ImportError:
            av = None
            writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"mp4v"), 25, (640, 480))
            for frame in film:
                writer.write(frame)
            writer.release()
        else:
            codec = "H.264"
            with av.open(path, "w") as container:
                stream = container.add_stream("libx264", rate=25)
                stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p"
                for frame in film:
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="bgr24")))
                container.mux(stream.encode())

        def pyav(start):
            clip = []
            with av.open(path) as container:
                stream = container.streams.video[0]
                stream.thread_type, stream.codec_context.thread_count = "SLICE", 1
                container.seek(int(start / 25 / stream.time_base), stream=stream)
                for frame in container.decode(stream):
                    if frame.pts * stream.time_base * 25 >= start - 0.5:
                        clip.append(data.crop_frame(frame.to_ndarray(format="bgr24"), None, SIZE))
                    if len(clip) == FRAMES:
                        return np.stack(clip)

        data.load_clip(path, None, FRAMES, SIZE, 0, f"{folder}/cache")  # the first time fills it
        works = {"ours, from the cache": lambda place: data.load_clip(path, None, FRAMES, SIZE, place, f"{folder}/cache"),
                 "ours, decoding": lambda place: data.load_clip(path, None, FRAMES, SIZE, place),
                 **({"PyAV": lambda place: pyav(round(place * (120 - FRAMES)))} if av else {})}

        def at_random_places(read):  # the same ones for each: later ones take longer
            places = iter(np.random.default_rng(1).random(100).tolist())
            return lambda: clock(lambda: read(next(places)))

        works = {name: at_random_places(read) for name, read in works.items()}
        compare(f"a clip of {FRAMES} frames at a random place of a video of 640 x 480, {codec}, one thread, cropped to {SIZE} px", works, 25, "ms")


def small_parts():
    torch.manual_seed(0)
    online, ema = S3D().to(DEVICE), S3D().to(DEVICE).requires_grad_(False)

    @torch.no_grad()
    def parameter_by_parameter():
        for p, q in zip(online.parameters(), ema.parameters()):
            q.data = q.data * 0.999 + p.data * 0.001  # as MoCo and CoCLR write it

    compare("EMA update of S3D", {"one foreach call": lambda: clock(lambda: ema_update(online, ema, 0.999)),
                                  "parameter by parameter": lambda: clock(parameter_by_parameter)}, 25, "ms")
    for size in (256, 2048, 65536):
        queue = LabelQueue(size, 128).to(DEVICE)
        queue.enqueue(nn.functional.normalize(torch.randn(size, 128, device=DEVICE), dim=1), torch.arange(size, device=DEVICE) % 2)
        z = nn.functional.normalize(torch.randn(16, 128, device=DEVICE), dim=1).requires_grad_()
        y = torch.arange(16, device=DEVICE) % 2
        times = in_turn({"loss, forward and backward": lambda: clock(lambda: multi_instance_info_nce(z, y, queue.keys, queue.labels).backward()),
                         "16 keys into the queue": lambda: clock(lambda: queue.enqueue(z, y))}, 25)
        print(f"\n16 anchors and a queue of {size}")
        for name, seconds in times.items():
            print(f"  {name:38}{shown(seconds, 'ms')}")


if __name__ == "__main__":
    encoders()
    reading()
    small_parts()
