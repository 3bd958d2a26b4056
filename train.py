# SPDX-License-Identifier: MIT
"""Train one of the paper's cases (Table 2, Fig. 2) with one manipulation held out.

    python train.py --mode bin_contrastive --holdout DF                         # the toy FF++, rendered on first use
    python train.py --mode bin_contrastive --holdout DF --data FaceForensics++  # the real one
    python train.py --mode bin_contrastive --explain                            # which loss reaches which module

The cases differ in which losses exist and whose gradient reaches the encoder (the Baseline in its starting weights).
`--mode` sets --bin-ce, --bin-contrast, --mult-ce, --mult-contrast and --init; each can be overridden, so that a
combination the paper never tried is one command: --mode bin_contrastive --mult-ce --out runs/mine.

Read compute_losses for the diagrams, training_step for the order of things; the rest is bookkeeping.
"""
import argparse
import contextlib
import copy
import csv
import json
import math
import os
import platform
import shutil
import signal
import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.distributed as dist
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

import eval as evaluation
from data import FFPP, MANIPULATIONS, EpochSampler, is_toy, make_toy
from heads import Classifier, ProjectionHead
from losses import multi_instance_info_nce
from moco import LabelQueue, ema_update
from s3d import MIN_FRAMES, MIN_SIZE

MODES = {  # one row of Table 2 each. bin_ce: "grad" reaches the encoder, "cut" stops at the embedding
    "baseline":                          dict(init="kinetics400", bin_ce="grad", bin_contrast=False, mult_ce=False, mult_contrast=False),
    "bin_ce":                            dict(init="coclr", bin_ce="grad", bin_contrast=False, mult_ce=False, mult_contrast=False),
    "bin_contrastive":                   dict(init="coclr", bin_ce="cut", bin_contrast=True, mult_ce=False, mult_contrast=False),
    "bin_ce_contrastive":                dict(init="coclr", bin_ce="grad", bin_contrast=True, mult_ce=False, mult_contrast=False),
    "bin_ce_multi_ce":                   dict(init="coclr", bin_ce="grad", bin_contrast=False, mult_ce=True, mult_contrast=False),
    "bin_contrastive_multi_contrastive": dict(init="coclr", bin_ce="cut", bin_contrast=True, mult_ce=False, mult_contrast=True),
    # The paper's point of comparison: EfficientNet-B7 on single frames, whose scores are averaged into the video's.
    "dfdc_winner":                       dict(init="imagenet", bin_ce="grad", bin_contrast=False, mult_ce=False, mult_contrast=False),
}
PRESETS = {
    # random: no published weights fit the toy's narrow encoder (so baseline and bin_ce are one and the same there)
    "toy": dict(init="random", epochs=15, batch_size=16, frames=8, size=48, clips=2, crop="face", width=0.25, lr=5e-4,
                queue_size=256, momentum=0.9, workers=1, threads=1),
    # the paper's 128 px; for the rest see the README's table of decisions. The starting weights are the mode's
    "paper": dict(epochs=30, batch_size=16, frames=32, size=128, clips=4, crop="face", width=1.0, lr=1e-4,
                  queue_size=2048, momentum=0.999, workers=min(8, os.cpu_count()), threads=0),
}
SINGLE_FRAMES = {"toy": dict(frames=1, clips=8), "paper": dict(frames=1, clips=32, size=380)}  # dfdc_winner


# --- The diagram: networks, losses, gradients ------------------------------------------------------------------------

def build_networks(args, multi_classes):
    """Only what the flags ask for, as one ModuleDict: what a case does not use does not exist."""
    encoder = evaluation.build_encoder(args.mode, args.width, args.init)
    nets = nn.ModuleDict({"encoder": encoder, "bin_classifier": Classifier(encoder.dim, 2)})
    if args.mult_ce:
        nets["mult_classifier"] = Classifier(encoder.dim, multi_classes)
    for stream in contrastive_streams(args):
        nets[f"{stream}_projection"] = ProjectionHead(encoder.dim)
        nets[f"ema_{stream}_projection"] = copy.deepcopy(nets[f"{stream}_projection"]).requires_grad_(False)
        nets[f"{stream}_queue"] = LabelQueue(args.queue_size, 128)
    if contrastive_streams(args):
        nets["ema_encoder"] = copy.deepcopy(encoder).requires_grad_(False)
    encoder.requires_grad_(encoder_learns(args))  # where no loss reaches it, not even a graph is built
    return nets


def contrastive_streams(args):
    return [stream for stream, wanted in (("bin", args.bin_contrast), ("mult", args.mult_contrast)) if wanted]


def encoder_learns(args):
    return args.bin_ce == "grad" or args.bin_contrast or args.mult_ce or args.mult_contrast


def compute_losses(nets, args, clip, y_bin, y_mult):
    """All losses of the case for one batch, by name, and the projections z. One forward of the encoder serves both
    streams. Fig. 2 is this function: what is computed from `embedding` sends its gradient into the encoder,
    what is computed from `embedding.detach()` does not."""
    embedding = nets["encoder"](clip)                                                # (B, dim)
    losses, z = {}, {}
    # Binary stream, cross-entropy. "cut": the classifier learns, its gradient stops here ("These gradients are cut off
    # at the classifier"; Binary Contrastive, and "just like" it Binary Contrastive + Multi Contrastive).
    # "grad" (all other cases): it goes on into the encoder.
    bin_input = embedding.detach() if args.bin_ce == "cut" else embedding
    losses["bin_ce"] = F.cross_entropy(nets["bin_classifier"](bin_input).float(), y_bin)
    if args.mult_ce:        # Multi-class stream, cross-entropy (Binary CE + Multi CE)
        losses["mult_ce"] = F.cross_entropy(nets["mult_classifier"](embedding).float(), y_mult)
    if args.bin_contrast:   # Eq. 1 with binary labels: each stream has its own MLP head and its own queue
        z["bin"] = nets["bin_projection"](embedding)                                 # (B, 128)
        queue = nets["bin_queue"]
        losses["bin_contrast"] = multi_instance_info_nce(z["bin"], y_bin, queue.keys, queue.labels, args.temperature)
    if args.mult_contrast:  # Eq. 1 with multi-class labels
        z["mult"] = nets["mult_projection"](embedding)                               # (B, 128)
        queue = nets["mult_queue"]
        losses["mult_contrast"] = multi_instance_info_nce(z["mult"], y_mult, queue.keys, queue.labels, args.temperature)
    return losses, z


def training_step(nets, parallel, args, parts, optimizer, scaler):
    """Losses, gradients, weights; then the EMA networks; then the keys for later steps. The keys come after the losses
    because Eq. 1 compares with keys of "previous iterations" only, and last, so that the newest weights make them.

    parts: [(clip, y_bin, y_mult)], the batch, or with --accumulate the parts it is cut into. parallel: under torchrun,
    the trained networks as DistributedDataParallel wraps them. Returns [{name: value}], a part's losses and
    similarities each. Raises FloatingPointError, before a weight has changed, for a loss that is not finite.
    """
    amp = dict(device_type=parts[0][0].device.type, enabled=args.precision != "fp32",
               dtype={"bf16": torch.bfloat16, "fp16": torch.float16}.get(args.precision))
    measured = []
    optimizer.zero_grad(set_to_none=True)
    for clip, y_bin, y_mult in parts:
        with contextlib.ExitStack() as local:  # processes average their gradients once, with the last part
            for net in parallel.values() if len(measured) + 1 < len(parts) else ():
                local.enter_context(net.no_sync())
            with torch.autocast(**amp):
                losses, z = compute_losses({**nets, **parallel}, args, clip, y_bin, y_mult)
            values = dict(zip(losses, torch.stack([*losses.values()]).tolist()))
            for name, value in values.items():
                if not math.isfinite(value):
                    raise FloatingPointError(f"L_{name} is {value}")
            scaler.scale(sum(losses.values()) / len(parts)).backward()  # all loss weights are 1
        measured.append({**{f"loss_{name}": value for name, value in values.items()}, **similarities(nets, z, y_bin, y_mult)})
    scaler.step(optimizer)
    scaler.update()
    move_ema(nets, args)
    with torch.autocast(**amp):
        for part in parts:
            enqueue_keys(nets, args, *part)
    return measured


def move_ema(nets, args):
    for name in ("encoder", *(f"{stream}_projection" for stream in contrastive_streams(args))):
        if f"ema_{name}" in nets:
            ema_update(nets[name], nets[f"ema_{name}"], args.momentum)


@torch.no_grad()
def enqueue_keys(nets, args, clip, y_bin, y_mult):
    """The EMA networks turn the batch into keys for later steps. As in MoCo they stay in train mode: BatchNorm normalises
    keys by their own batch, as it does the anchors. (MoCo also shuffles the clips between GPUs, lest a query know its
    own key by the statistics they share. Here a clip's own key is not among the keys it is compared with.)"""
    if contrastive_streams(args):
        embedding = nets["ema_encoder"](clip)                                        # (B, dim)
    for stream in contrastive_streams(args):
        labels = {"bin": y_bin, "mult": y_mult}[stream]
        nets[f"{stream}_queue"].enqueue(nets[f"ema_{stream}_projection"](embedding), labels)


# --- --explain: the diagram as text, and measured ---------------------------------------------------------------------

def explain(nets, args, batch):
    """Print the case's diagram and the gradient norm that each loss, alone, sends into each network. Look at which are
    zero: in training the keys are older than the anchors, so the contrastive norms differ."""
    clip, y_bin, y_mult, _ = batch
    nets.train()
    enqueue_keys(nets, args, clip, y_bin, y_mult)  # the batch's own keys stand for those of earlier iterations
    losses, _ = compute_losses(nets, args, clip, y_bin, y_mult)
    modules = [name for name in nets if not name.endswith("queue")]
    print(f"\n{args.mode}        --> forward    <== gradient    X cut by .detach()\n\n  clip --> encoder --> embedding")
    for name in losses:
        stream, kind = name.rsplit("_", 1)
        head = f"{stream}_{'classifier' if kind == 'ce' else 'projection'}"
        keys = f" <-- {stream}_queue <-- ema_{stream}_projection <-- ema_encoder <-- earlier clips"
        cut = name == "bin_ce" and args.bin_ce == "cut"
        print(f"                          |\n                          +--> {head} --> L_{name}{keys if kind == 'contrast' else ''}")
        print(f"           {'               X' if cut else 'encoder <====== '} <== {head} <== L_{name}")
    print(f"\nmeasured on one batch of {len(clip)} clips: norm of the gradient of each loss in each module (. = none)\n")
    width = max(map(len, modules)) + 2
    print(" " * width + "".join(f"{'L_' + name:>17}" for name in losses))
    norms = {}
    for name, loss in losses.items():
        nets.zero_grad(set_to_none=True)
        loss.backward(retain_graph=True)
        for module in modules:
            gradients = [p.grad.norm() for p in nets[module].parameters() if p.grad is not None]
            norms[module, name] = torch.stack(gradients).norm().item() if gradients else 0.0
    for module in modules:
        print(f"{module:{width}}" + "".join(f"{norms[module, n]:17.2e}" if norms[module, n] else f"{'.':>17}" for n in losses))
    nets.zero_grad(set_to_none=True)
    return norms


# --- The run --------------------------------------------------------------------------------------------------------

class DealtBatches:
    """The batches of one process. The epoch's order is cut into parts of batch_size / accumulate clips, and each part is
    dealt out in rank order: no clip twice, and the shares of all processes together are the part that one process
    would see. The incomplete batch at the end of an epoch is left out."""

    def __init__(self, sampler, args, rank, ranks):
        self.sampler, self.rank = sampler, rank
        self.batch, self.part = args.batch_size, args.batch_size // args.accumulate  # clips, of all processes together
        self.share = self.part // ranks                                              # clips of this process in a part

    def __len__(self):
        return len(self.sampler) // self.batch * (self.batch // self.part)

    def __iter__(self):
        order = list(self.sampler)
        for start in range(self.rank * self.share, len(self) * self.part, self.part):
            yield order[start:start + self.share]


def train(args):
    rank, ranks = evaluation.world()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.backends.cudnn.benchmark = True  # all clips have one size: let cuDNN find its fastest convolutions
    torch.manual_seed(args.seed)
    device, out = torch.device(args.device), Path(args.out)
    resuming = args.resume and (out / "last.pt").is_file() and not args.explain
    if rank:
        dist.barrier()  # the first process goes ahead: it finds the faces and downloads the weights
    read = lambda split: FFPP(args.data_root, split, args.holdout, args.compression, args.frames, args.size,
                              args.clips, args.crop, augment=args.augment, cache=args.cache)
    train_set, val_set, test_set = read("train"), read("val"), evaluation.test_set(vars(args), args.clips)
    multi_classes = max(train_set.multi) + 1
    start = argparse.Namespace(**{**vars(args), "init": "random"}) if resuming else args  # last.pt's weights come below
    nets = build_networks(start, multi_classes).to(device)
    if ranks > 1 and not rank:
        dist.barrier()

    sampler = EpochSampler(train_set, args.balance, args.seed)
    if len(sampler) < args.batch_size:
        raise ValueError(f"--batch-size {args.batch_size}: an epoch has only {len(sampler)} clips")
    if ranks > min(len(videos.videos) for videos in (train_set, val_set, test_set)):
        raise ValueError(f"{ranks} processes: more than there are videos in one of the splits")
    batches = DealtBatches(sampler, args, rank, ranks)
    loader = DataLoader(train_set, batch_sampler=batches, num_workers=args.workers, pin_memory=device.type == "cuda",
                        persistent_workers=args.workers > 0, worker_init_fn=evaluation.quiet_worker)
    if args.compile:
        nets["encoder"].compile()
    # Under torchrun the trained networks average their gradients over all processes in backward(); compute_losses does
    # not notice. BatchNorm normalises by the process's own clips (as in MoCo).
    trained = {name: net for name, net in nets.items() if any(p.requires_grad for p in net.parameters())}
    parallel = {}
    if ranks > 1:
        parallel = {name: DistributedDataParallel(net, broadcast_buffers=False) for name, net in trained.items()}
    weights = [p for net in trained.values() for p in net.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=args.lr, weight_decay=args.weight_decay)
    describe(args, nets, train_set, val_set, test_set, ranks)
    if args.explain:
        return explain(nets, args, [part.to(device) for part in next(iter(loader))])
    print_chance(args, train_set, val_set, sampler)

    if not rank:
        out.mkdir(parents=True, exist_ok=True)
        lock = alone_in(out)  # held as long as this variable lives
    config = settings(args, ranks)
    scaler = torch.amp.GradScaler(device.type, enabled=args.precision == "fp16")
    rows, best, first_epoch = [], None, 0
    if resuming:
        checkpoint = load_last(out / "last.pt", args)
        for name in nets:
            nets[name].load_state_dict(checkpoint[name] if name in checkpoint else checkpoint["others"][name])
        optimizer.load_state_dict(checkpoint["optimizer"])
        if checkpoint["scaler"]:  # empty but for fp16
            scaler.load_state_dict(checkpoint["scaler"])
        rows, first_epoch = checkpoint["log"], checkpoint["epoch"]
        best = read_checkpoint(out / "best.pt", {"epoch", "val"})  # at times newer than last.pt, which is written after it
        best = {"epoch": best["epoch"], **best["val"]}
        print(f"resumed after epoch {first_epoch} of {args.epochs}")
    writer = None
    if not rank:
        if args.overwrite:
            for old in ("last.pt", "best.pt", "log.csv", "config.json", "results*.json", *evaluation.PICTURES):
                for path in out.glob(old):
                    path.unlink()
        evaluation.save_json(config, out / "config.json")
        writer = tensorboard(out)
    steps, started, broken = len(batches) // args.accumulate, time.time(), set()
    total, done_before = steps * args.epochs, steps * first_epoch

    for epoch in range(first_epoch, args.epochs):
        sampler.epoch = epoch
        nets.train()
        nets["encoder"].train(encoder_learns(args))
        history, epoch_started, loaded = {}, time.time(), iter(loader)
        for step in range(1, steps + 1):
            parts = []
            while len(parts) < args.accumulate:
                *part, video = next(loaded)  # clip (B, 3, T, H, W) uint8, y_bin (B,), y_mult (B,); video (B,)
                name_broken({-1 - v for v in video.tolist() if v < 0}, train_set, broken)  # < 0: it cannot be read
                parts.append([tensor.to(device, non_blocking=True) for tensor in part])
            at = epoch * steps + step
            lr = args.lr * min(1, at / min(50, total)) * 0.5 * (1 + math.cos(math.pi * at / total))  # warm-up times cosine
            for group in optimizer.param_groups:
                group["lr"] = lr
            # EfficientNet drops layers at random: a resumed run must drop the same, two processes different ones.
            torch.manual_seed((args.seed * 1_000_003 + at) * ranks + rank)
            try:
                measured = training_step(nets, parallel, args, parts, optimizer, scaler)
            except FloatingPointError as error:
                good = f"the last good state is {out / 'last.pt'}" if rows else "no epoch was finished"
                raise FloatingPointError(f"{error} at epoch {epoch + 1}, step {step}: stopped before it reached the weights; "
                                         f"{good} (a smaller --lr may help)") from None
            for name in measured[0]:
                history.setdefault(name, []).extend(values[name] for values in measured)
            speed = (at - done_before) * args.batch_size / (time.time() - started)
            now = "  ".join(f"L_{name[5:]} {value:.3f}" for name, value in measured[-1].items() if name.startswith("loss_"))
            progress(f"epoch {epoch + 1}/{args.epochs} step {step}/{steps}  {now}  {speed:.0f} clips/s  "
                     f"{clock((total - at) * args.batch_size / speed)} left", step == steps)

        for buffer in nets["encoder"].buffers() if ranks > 1 else ():
            dist.broadcast(buffer, 0)  # BatchNorm's running statistics: those of the first process for all
        videos, unreadable, _ = evaluation.evaluate(nets["encoder"], nets["bin_classifier"], val_set, device,
                                                    args.batch_size, args.workers)
        val = evaluation.metrics([v["label"] for v in videos], [v["score"] for v in videos])
        gathered = evaluation.from_all_ranks((history, broken))
        name_broken(set().union(*(theirs for _, theirs in gathered)), train_set, broken)
        means = {}
        for name in history:
            values = [value for theirs, _ in gathered for value in theirs[name]]
            means[name] = float(np.nanmean(values)) if np.isfinite(values).any() else math.nan
        seconds = time.time() - epoch_started
        row = {"epoch": epoch + 1, "step": at, "lr": lr, **means, "val_accuracy": val["accuracy"], "val_auc": val["auc"],
               "broken_videos": len(broken), "clips_per_second": steps * args.batch_size / seconds, "seconds": seconds}
        rows.append(row)
        print(f"  validation on seen manipulations: accuracy {100 * val['accuracy']:.1f} %, AUC {val['auc']:.3f}"
              + "".join(f"; {stream} similarity to positives {means[f'similarity_{stream}_positive']:.2f}, "
                        f"to negatives {means[f'similarity_{stream}_negative']:.2f}" for stream in contrastive_streams(args)))
        if unreadable:
            print(f"  left out of validation, cannot be read: {', '.join(unreadable)}")
        better = best is None or (val["auc"], val["accuracy"]) >= (best["auc"], best["accuracy"])  # later wins a tie
        best = {"epoch": epoch + 1, **val} if better else best
        if not rank:
            state = {"config": config, "epoch": epoch + 1, "val": val,
                     "encoder": nets["encoder"].state_dict(), "bin_classifier": nets["bin_classifier"].state_dict()}
            if better:
                save(state, out / "best.pt")
            others = {name: net.state_dict() for name, net in nets.items() if name not in state}
            save({**state, "others": others, "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict(),
                  "log": rows}, out / "last.pt")
            write_log(rows, out / "log.csv")
            for name, value in row.items() if writer else ():
                writer.add_scalar(name, value, at)

    if ranks > 1:
        dist.barrier()  # best.pt and last.pt are there
    final = final_test(args, out, best["epoch"], device)
    if not rank:
        evaluation.save_json(final, out / "results.json")
    print(result_text(final, out))


def alone_in(out):
    """Lock a run's folder against a second process that would train there; the system lets go when this one ends, however
    it ends. Raises ValueError. (Some network file systems know no locks.)"""
    file = open(out / ".lock", "w")
    try:
        if sys.platform == "win32":
            import msvcrt
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise ValueError(f"another process is training in {out}: wait for it, or choose another --out") from None
    except OSError:
        pass
    return file


def final_test(args, out, best_epoch, device):
    """The content of results.json: the whole test of best.pt, and the metrics of last.pt."""
    results = {}
    for name in ("best",) if best_epoch == args.epochs else ("best", "last"):  # the same weights at the same epoch
        encoder, classifier, config = evaluation.load_checkpoint(out / f"{name}.pt", device)
        # A resumed run may find its data elsewhere.
        config = {**config, "data": args.data, "data_root": args.data_root, "cache": args.cache}
        results[name], _ = evaluation.test(encoder, classifier, config, args.clips, device, args.workers, args.batch_size)
    last = results.get("last", results["best"])
    return {"checkpoint": str(out / "best.pt"), "epoch": best_epoch, **results["best"], "last": last["metrics"]}


def settings(args, ranks):
    """What config.json and the checkpoints say about how they came to be."""
    config = {name: value for name, value in vars(args).items() if name not in ("explain", "resume", "overwrite")}
    case = {**MODES[args.mode], **{name: value for name, value in PRESETS[args.preset].items() if name == "init"}}
    config["overrides"] = ", ".join(f"{name} {config[name]}" for name, value in case.items() if config[name] != value)
    config["processes"] = ranks
    config["versions"] = dict(python=platform.python_version(), torch=str(torch.__version__),
                              torchvision=torchvision.__version__, numpy=np.__version__, opencv=cv2.__version__)
    return config


def describe(args, nets, train_set, val_set, test_set, ranks):
    """What is about to be trained, on what."""
    toy = " (the TOY FF++: its numbers say nothing about real deepfakes)" if args.data == "toy" else ""
    print(f"{args.mode}, held out: {args.holdout}; seed {args.seed}; {f'{ranks} processes; ' if ranks > 1 else ''}"
          f"device {args.device}; preset {args.preset}{toy}")
    others = "".join(f", L_{name}" for name in ("bin_contrast", "mult_ce", "mult_contrast") if getattr(args, name))
    print(f"L_bin_ce {args.bin_ce}{others}; encoder from {args.init}, "
          f"{sum(p.numel() for p in nets['encoder'].parameters()):,} parameters")
    for split, dataset in (("train", train_set), ("val", val_set), ("test", test_set)):
        line = f"{split:5} {len(dataset.videos):5} videos: {', '.join(f'{n} {name}' for name, n in dataset.counts.items())}"
        if split == "test":
            headline = sum(dataset.counts[name] for name in ("original", *evaluation.headline(vars(args))))
            line += f" ({headline} of them the test itself, the others beside it)"
        if any(dataset.missing.values()):
            line += f"; not on disk: {', '.join(f'{n} {name}' for name, n in dataset.missing.items() if n)}"
        print(line)
        targets = {target for _, _, target in dataset.videos}
        lost = {target for target in targets if not dataset.faces.get(target)} if args.crop != "frame" else ()
        if lost:
            print(f"      no face found in {len(lost)} of {len(targets)} originals: the centred square is taken there")


def print_chance(args, train_set, val_set, sampler):
    """What always predicting the labels' frequencies costs: their entropy, for cross-entropy and for Eq. 1 alike (there,
    with all similarities equal, the positives' share of the sum is their share of the queue)."""
    chance = {}
    for stream, labels in (("binary", train_set.binary), ("multi-class", train_set.multi)):
        share = torch.tensor([labels[i] for i, _ in sampler]).bincount().double() / len(sampler)
        chance[stream] = -(share * share.clamp_min(1e-12).log()).sum().item()
    streams = ("binary", "multi-class") if args.mult_ce or args.mult_contrast else ("binary",)
    print(f"chance: {', '.join(f'{stream} losses {chance[stream]:.3f}' for stream in streams)}, AUC 0.5: what stays there has "
          f"learned nothing (always 'fake' would be {100 * np.mean(val_set.binary):.0f} % right in validation)")


def name_broken(found, train_set, broken):
    """Tell each unreadable video once, and stop where they are too many."""
    for video in found - broken:
        broken.add(video)
        print(f"\ncannot be read, another clip of its class stands in: {train_set.videos[video][0]}")
    if len(broken) > max(1, 0.01 * len(train_set.videos)):
        first = ", ".join(str(train_set.videos[video][0]) for video in sorted(broken)[:5])
        raise ValueError(f"{len(broken)} of {len(train_set.videos)} training videos cannot be read, more than 1 %: "
                         f"check the download ({first}, ...)")


def load_last(path, args):
    """The last.pt to go on from. Raises ValueError for one that cannot be read safely, or that other settings made."""
    checkpoint = read_checkpoint(path, {"config", "encoder", "bin_classifier", "others", "optimizer", "scaler", "log", "epoch"})
    differences = other_settings(checkpoint["config"], args)
    if differences:
        raise ValueError(f"{path} is not of this run ({differences}): train anew with --overwrite")
    return checkpoint


def read_checkpoint(path, parts):
    """A checkpoint of an earlier part of the run that has these parts. Raises ValueError."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        missing = parts - checkpoint.keys()
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(f"{path} cannot be read safely, as tensors and plain values only ({type(error).__name__}): "
                         "train anew with --overwrite") from None
    if missing:
        raise ValueError(f"{path} is not of this run (lacks {', '.join(sorted(missing))}): train anew with --overwrite")
    return checkpoint


def result_text(results, out):
    """The one clear result that a run ends with."""
    last = results["last"]
    return (f"\n{evaluation.report(results, f'test of the checkpoint chosen on validation, epoch ' + str(results['epoch']))}\n"
            f"  the last checkpoint: accuracy {100 * last['accuracy']:.1f} % (originals {100 * last['accuracy_real']:.1f} %, "
            f"fakes {100 * last['accuracy_fake']:.1f} %), AUC {last['auc']:.3f}\n"
            f"written: {out} (best.pt, last.pt, log.csv, config.json, results.json)\n"
            f"next:    python eval.py {out / 'best.pt'} --pictures")


@torch.no_grad()
def similarities(nets, z, y_bin, y_mult):
    """Mean cosine of this step's anchors to their positives and to their negatives in the queue; when both go
    to 1 the representation has collapsed. NaN while there are none."""
    found = {}
    for stream, anchors in z.items():
        queue, labels = nets[f"{stream}_queue"], {"bin": y_bin, "mult": y_mult}[stream]
        cosine, positive = anchors @ queue.keys.T, labels[:, None] == queue.labels[None]
        found[f"similarity_{stream}_positive"] = cosine[positive].mean().item()
        found[f"similarity_{stream}_negative"] = cosine[~positive].mean().item()
    return found


def save(state, path):
    with evaluation.replacing(path) as temporary:
        torch.save(state, temporary)


def write_log(rows, path):
    with evaluation.replacing(path) as temporary, open(temporary, "w", newline="") as file:
        table = csv.DictWriter(file, rows[0].keys())
        table.writeheader()
        table.writerows(rows)


def tensorboard(out):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(out)


def clock(seconds):
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"


def progress(text, last, printed=[0.0]):
    """One line that renews itself in a terminal; in a log file a line every ten seconds."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns - 1
        print("\r" + text[:width].ljust(width), end="\n" if last else "", flush=True)
    elif last or time.time() - printed[0] > 10:
        printed[0] = time.time()
        print(text, flush=True)


# --- Flags ---------------------------------------------------------------------------------------------------------

def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.error = lambda message: parser.exit(2, f"train.py: {message} (python train.py --help explains every flag)\n")
    switch = dict(action=argparse.BooleanOptionalAction, default=None)
    both = lambda name: f"(toy {PRESETS['toy'][name]}, real data {PRESETS['paper'][name]})"

    flag = parser.add_argument_group("the case").add_argument
    flag("--mode", choices=MODES, default="bin_contrastive",
         help="a row of Table 2: sets --bin-ce, --bin-contrast, --mult-ce, --mult-contrast and --init (bin_contrastive)")
    flag("--holdout", choices=(*MANIPULATIONS, "none"), default="DF", help="the manipulation kept for the test (DF)")
    flag("--bin-ce", choices=("grad", "cut"),
         help="the binary classifier's cross-entropy reaches the encoder, or is cut at the embedding")
    flag("--bin-contrast", **switch, help="Eq. 1 with the labels original, manipulated")
    flag("--mult-ce", **switch, help="cross-entropy of a second classifier: which manipulation")
    flag("--mult-contrast", **switch, help="Eq. 1 with the labels original, 1st, 2nd, ... manipulation")
    flag("--init", help="the encoder's starting weights: kinetics400, coclr, random, or the path of a checkpoint; dfdc_winner: "
                        "imagenet or random (real data: the paper's choice for the mode; toy: random)")

    flag = parser.add_argument_group("data").add_argument
    flag("--data", default="toy",
         help="the FF++ tree, or toy: rendered into toy_ffpp/ on first use (toy). It also chooses the defaults below: small "
              "ones for the toy")
    flag("--compression", choices=("c0", "raw", "c23", "c40"), default="c23",
         help="which of FF++'s compressions to read (c23)")
    flag("--crop", help="face: found by OpenCV's Haar cascade in each original and shared with its manipulations (where the "
                        "original is not on disk, found in one of them); frame: the centred square; or a JSON file "
                        "{target id: [x, y, width, height]} (face)")
    flag("--cache", metavar="DIR",
         help="keep every video's cropped frames there as raw bytes, and decode each video once only; takes 3 x size x size "
              "bytes per frame: 49 kB at 128 px, about 25 GB per 500,000 frames (off)")
    flag("--frames", type=int, help=f"consecutive frames in a clip {both('frames')[:-1]}; dfdc_winner 1)")
    flag("--size", type=int, help=f"pixels, height and width of a clip {both('size')[:-1]}; dfdc_winner 48, 380)")
    flag("--balance", choices=("binary", "none"), default="binary",
         help="binary: each fake is drawn with its own original, half of all clips are original; none: each video once, "
              "3 fakes to 1 original (binary)")
    flag("--augment", action=argparse.BooleanOptionalAction, default=True,
         help="random crop, flip and colours, alike over a clip (on)")
    flag("--clips", type=int,
         help=f"evenly spaced clips per video in validation and test {both('clips')[:-1]}; dfdc_winner 8, 32)")
    flag("--workers", type=int, help=f"processes that read videos; any number gives the same result {both('workers')}")

    flag = parser.add_argument_group("training").add_argument
    flag("--epochs", type=int, help=f"passes over the training set, as --balance has it {both('epochs')}")
    flag("--batch-size", type=int, help=f"clips per optimiser step, of all processes together {both('batch_size')}")
    flag("--accumulate", type=int, default=1,
         help="cut the batch into this many parts, one after the other, where it does not fit into memory; the queue and "
              "the EMA still move once per step, BatchNorm sees a part (1)")
    flag("--lr", type=float,
         help=f"AdamW's learning rate: rises to it over 50 steps, then falls along a cosine to 0 {both('lr')}")
    flag("--weight-decay", type=float, default=1e-5, help="AdamW's (1e-5, that of CoCLR's pre-training)")
    flag("--queue-size", type=int, help=f"keys in each queue {both('queue_size')}")
    flag("--temperature", type=float, default=0.07, help="tau of Eq. 1 (0.07)")
    flag("--momentum", type=float, help=f"m of the EMA encoder {both('momentum')}")
    flag("--width", type=float, help=f"scales the channels of S3D; dfdc_winner: B7 from 1 on, else B0 {both('width')}")
    flag("--seed", type=int, default=0, help="of weights, order, clips and augmentation (0)")
    flag("--device", help="cpu, cuda, cuda:1, mps (cuda where there is one, else cpu)")
    flag("--compile", action="store_true", help="torch.compile the encoder: slow to start, then faster on a GPU")
    flag("--threads", type=int,
         help=f"CPU threads of the networks, 0: torch's choice; another number rounds differently {both('threads')}")
    flag("--precision", choices=("fp32", "bf16", "fp16"),
         help="autocast of the networks; losses stay in fp32 (CUDA: bf16, or fp16 where it lacks that; else fp32)")

    flag = parser.add_argument_group("the run").add_argument
    flag("--out", help="folder for weights, log and results (runs/<mode>_<holdout>_seed<seed>)")
    flag("--resume", action="store_true",
         help="go on after the last whole epoch of the run in --out; where there is none, start it")
    flag("--overwrite", action="store_true", help="train anew in a folder that holds a run")
    flag("--explain", action="store_true", help="print the gradient-flow diagram and the measured gradients, train nothing")

    known, _ = parser.parse_known_args(argv)
    preset = "toy" if known.data == "toy" or is_toy(known.data) else "paper"
    parser.set_defaults(**{**MODES[known.mode], **PRESETS[preset]})
    if known.mode == "dfdc_winner":
        parser.set_defaults(**SINGLE_FRAMES[preset])
    args = parser.parse_args(argv)
    args.preset, args.data_root = preset, "toy_ffpp" if args.data == "toy" else args.data
    args.data = "toy" if preset == "toy" else args.data
    args.out = args.out or f"runs/{args.mode}_{args.holdout}_seed{args.seed}"
    if not args.device:
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.device == "cuda" and "LOCAL_RANK" in os.environ:  # torchrun's: a GPU for each process
        args.device = f"cuda:{os.environ['LOCAL_RANK']}"
    if args.precision is None:
        cuda = args.device.startswith("cuda")
        args.precision = "fp32" if not cuda else "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"

    ranks = int(os.environ.get("WORLD_SIZE", 1))  # torchrun's
    for wrong, message in (
        (args.resume and args.overwrite, "--resume and --overwrite exclude each other"),
        (args.frames < 1, f"--frames {args.frames}: at least 1"),
        (args.mode != "dfdc_winner" and args.frames < MIN_FRAMES, f"--frames {args.frames}: S3D pools away fewer than {MIN_FRAMES}"),
        (args.size < MIN_SIZE, f"--size {args.size}: S3D pools away fewer than {MIN_SIZE} pixels"),
        (args.batch_size < 2, f"--batch-size {args.batch_size}: BatchNorm needs at least 2 clips"),
        (args.accumulate < 1, f"--accumulate {args.accumulate}: at least 1"),
        (args.batch_size % (args.accumulate * ranks) or args.batch_size // (args.accumulate * ranks) < 2,
         f"--batch-size {args.batch_size}: {ranks} processes with --accumulate {args.accumulate} must each get the same "
         "number of clips, at least 2"),
        (args.queue_size < 1, f"--queue-size {args.queue_size}: at least one key"),
        (args.epochs < 1, f"--epochs {args.epochs}: at least one"),
        (args.clips < 1, f"--clips {args.clips}: at least one"),
        (not 0 <= args.threads <= 1024, f"--threads {args.threads}: from 0 to 1024"),
        (not 0 <= args.seed < 2 ** 32, f"--seed {args.seed}: from 0 to 2^32 - 1"),
        *((getattr(args, name) > most, f"--{name.replace('_', '-')} {getattr(args, name)}: at most {most}") for name, most in (
            ("frames", 1000), ("size", 4096), ("clips", 10_000), ("batch_size", 100_000), ("queue_size", 10 ** 8), ("epochs", 10 ** 6))),
        (args.workers < 0, f"--workers {args.workers}: 0 or more"),
        (not 0 < args.width < 100, f"--width {args.width}: more than 0, less than 100"),
        (not 0 < args.lr < math.inf, f"--lr {args.lr}: more than 0"),
        (not 0 < args.temperature < math.inf, f"--temperature {args.temperature}: more than 0"),
        (not 0 <= args.momentum <= 1, f"--momentum {args.momentum}: from 0 to 1"),
    ):
        if wrong:
            parser.error(message)
    return args


def other_settings(before, args):
    """In words, which settings of an earlier part of the run differ from these; empty when none does."""
    # What may differ between two halves of a run: another device or precision only rounds differently, the data may have
    # moved. (Another number of processes is allowed, too; BatchNorm then sees other batches.)
    may_differ = {"device", "precision", "compile", "cache", "workers", "out", "resume", "overwrite", "explain", "data", "data_root"}
    return "; ".join(f"--{name.replace('_', '-')} {before.get(name)} there, {value} now"
                     for name, value in vars(args).items() if name not in may_differ and before.get(name) != value)


def existing_run(args):
    """What stands in --out already: ("nothing" or "continue", None) to train, ("finished", its result as text),
    ("refused", why)."""
    out = Path(args.out)
    if args.overwrite or not any((out / name).is_file() for name in ("best.pt", "last.pt", "results.json")):
        return "nothing", None
    try:
        before = json.loads((out / "config.json").read_text(encoding="utf-8"))
        before.keys()
    except (OSError, ValueError, AttributeError, RecursionError):
        return "refused", f"{out / 'config.json'} cannot be read: choose another --out, or --overwrite it"
    differences = other_settings(before, args)
    if differences:
        return "refused", f"{out} holds a run with other settings ({differences}): choose another --out, or --overwrite it"
    if (out / "results.json").is_file():
        results = evaluation.read_results(out / "results.json")
        if "last" in results:  # written by this file at the end; eval.py alone does not finish a run
            try:
                return "finished", result_text(results, out)
            except (LookupError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
                return "refused", f"{out / 'results.json'} is incomplete ({type(error).__name__}: {error}): --overwrite trains anew"
    if args.resume:
        return "continue", None
    return "refused", f"{out} holds an unfinished run: --resume continues it, --overwrite trains anew"


def main(argv=None):
    args = parse(argv)
    out = Path(args.out)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C
    try:
        evaluation.check_device(args.device)
        join_processes(args.device)
        rank, ranks = evaluation.world()
        if not rank and args.data == "toy" and not Path(args.data_root).is_dir():
            make_toy(args.data_root)
        state, found = ("nothing", None) if args.explain else evaluation.from_all_ranks(None if rank else existing_run(args))[0]
        if state == "refused":
            sys.exit(1 if rank else f"train.py: {found}")
        if state == "finished":
            print(f"{found}\nthis run was finished before; --overwrite trains it anew")
        else:
            train(args)
        if ranks > 1:  # not after an error: it would wait for processes that wait for this one, until torchrun ends them
            dist.destroy_process_group()
    except (OSError, ValueError, FloatingPointError) as error:
        sys.exit(f"train.py: {evaluation.sentence(error)}")
    except (RuntimeError, MemoryError) as error:
        if not evaluation.resources(error):
            raise
        sys.exit(f"train.py: {evaluation.resources(error)}")
    except KeyboardInterrupt:
        saved = (out / "last.pt").is_file() and not args.explain
        sys.exit("\ninterrupted; " + ("every whole epoch is saved: the same command with --resume (and without --overwrite) "
                                     "goes on from there" if saved else "no epoch was finished"))


def join_processes(device):
    """Under torchrun: meet the other processes. Only the first prints to stdout, and only it writes."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    warnings.filterwarnings("ignore", ".*broadcast_buffers")  # deprecated; older versions of torch lack its successor
    backend = "nccl" if device.startswith("cuda") else "gloo"
    dist.init_process_group(backend, timeout=timedelta(hours=2))  # the others wait while the first downloads or renders
    if dist.get_rank():
        sys.stdout = open(os.devnull, "w")


if __name__ == "__main__":
    main()
