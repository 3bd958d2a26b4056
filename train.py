# SPDX-License-Identifier: MIT
"""Train one of the paper's cases (Table 2, Figure 2) with one manipulation held out.

    python train.py --mode bin_contrastive --holdout DF                         # on the toy
    python train.py --mode bin_contrastive --holdout DF --data FaceForensics++  # on the real one
    python train.py --mode bin_ce_contrastive --explain     # do the gradients of the losses agree?

The cases differ in which losses exist and which of them reach the encoder. (The Baseline differs
from Binary CE only in its starting weights.) `compute_losses` is Figure 2, `training_step` one
step; the rest is bookkeeping.
"""

import argparse
import atexit
import copy
import csv
import itertools
import math
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F

from data import (
    COMPRESSIONS,
    MANIPULATIONS,
    SPLITS,
    EpochBatches,
    cpu_count,
    make_dataset,
    make_loader,
    one_sentence,
    progress,
    replacing,
    video_loader,
)
from eval import (
    DEVICE,
    FORMAT,
    device,
    evaluate,
    load,
    load_checkpoint,
    mean_and_deviation,
    measure,
    number,
    report,
    save,
    test,
)
from heads import Classifier, ProjectionHead
from losses import multi_instance_info_nce
from moco import LabelQueue, ema_update
from s3d import MIN_SIZE, S3D, FrameEncoder, load_pretrained

# --- Settings ------------------------------------------------------------------------------------

# The rows of Table 2. Section 2.1.2 announces six cases and lists five: the sixth is the Baseline.
# bin_ce: does the gradient of the binary classifier reach the encoder, or is it cut?
MODES = {
    "baseline": {"init": "kinetics400", "bin_ce": "grad"},
    "bin_ce": {"init": "coclr", "bin_ce": "grad"},
    "bin_contrastive": {"init": "coclr", "bin_ce": "cut", "bin_contrast": True},
    "bin_ce_contrastive": {"init": "coclr", "bin_ce": "grad", "bin_contrast": True},
    "bin_ce_multi_ce": {"init": "coclr", "bin_ce": "grad", "multi_ce": True},
    "bin_contrastive_multi_contrastive": {
        "init": "coclr",
        "bin_ce": "cut",
        "bin_contrast": True,
        "multi_contrast": True,
    },
    # The paper's point of comparison: EfficientNet-B7 on single frames.
    "dfdc_winner": {"init": "imagenet", "bin_ce": "grad", "clips": 32, "size": 380},
}
TOY = {
    "init": "random",
    "crop": "frame",
    "frames": 8,
    "size": 50,
    "clips": 2,
    "epochs": 6,
    "lr": 1e-3,
    "queue_size": 256,
    "momentum": 0.9,
    "width": 0.125,
    "workers": 1,
}
DEFAULTS = {  # for FF++: the paper's; where it is silent, CoCLR's or our own (README)
    "bin_contrast": False,
    "multi_ce": False,
    "multi_contrast": False,
    "crop": "face",
    "frames": 32,
    "size": 128,
    "clips": 4,
    "epochs": 30,
    "lr": 1e-4,
    "queue_size": 2048,
    "momentum": 0.999,
    "width": 1.0,
    "workers": min(8, cpu_count()),
}
LOSSES = "bin_ce bin_contrast multi_ce multi_contrast".split()
START_AGAIN = "to start again, delete the folder or choose another --out"
WARM_UP = 50  # steps
EXPLAINED = 20  # batches of --explain
# Where a run takes place, and the precision that suits the device: may change on --resume.
PLACE = "data cache workers device precision out".split()
NOT_SETTINGS = {"resume", "explain", "rank", "ranks", *PLACE}


def declare_flags():
    """Flags without a default get it in `parse`."""
    parser = argparse.ArgumentParser(
        usage="python train.py [--mode MODE] [--holdout NAME] [--data FF++] [flags]",
        description="Defaults are in parentheses, unless the toy or the mode sets another.",
        allow_abbrev=False,
    )
    switch = argparse.BooleanOptionalAction
    positive = number(int, 1)
    flag = parser.add_argument
    flag("--mode", choices=MODES, default="bin_contrastive", help="sets the next five flags")
    flag("--bin-ce", choices=("grad", "cut"), help="may L_bin_ce reach the encoder?")
    flag("--bin-contrast", action=switch, help="Equation 1, binary labels")
    flag("--multi-ce", action=switch, help="cross-entropy, multi-class labels")
    flag("--multi-contrast", action=switch, help="Equation 1, multi-class labels")
    flag("--init", help="coclr, kinetics400, imagenet, random or a path")
    flag("--holdout", choices=(*MANIPULATIONS, "none"), default="DF", help="only in the test (DF)")
    flag("--data", default="toy", help="folder of FF++, or toy: drawn into toy_ffpp/ (toy)")
    flag("--compression", choices=COMPRESSIONS, default="c23", help="of FF++ (c23)")
    flag("--crop", help="face, frame (the centre), or a JSON file of boxes (face)")
    flag("--cache", metavar="DIR", help="keeps cropped frames: each video is decoded only once")
    flag("--still", action="store_true", help="train and test on clips without motion")
    flag("--frames", type=positive, help="consecutive frames in a clip (32)")
    flag("--size", type=number(int, MIN_SIZE), help="pixels of a clip's side (128)")
    flag("--clips", type=positive, help="per video, in validation and test (4)")
    flag("--workers", type=number(int, 0), help="processes that read videos (1 per CPU, at most 8)")
    flag("--epochs", type=positive, help="passes over the training set (30)")
    flag("--batch-size", type=number(int, 2), default=16, help="clips, over all ranks (16)")
    flag("--lr", type=number(float, 1e-12), help="AdamW's peak learning rate (0.0001)")
    flag("--queue-size", type=positive, help="keys in each queue (2048)")
    flag("--temperature", type=number(float, 1e-6), default=0.07, help="tau of Equation 1 (0.07)")
    flag("--momentum", type=number(float, 0, 1), help="of the EMA networks (0.999)")
    flag("--width", type=number(float, 0.01), help="scales S3D's channels (1.0)")
    flag("--seed", type=number(int, 0), default=0, help="random seed (0)")
    flag("--device", type=device, default=DEVICE, help="cpu, cuda, mps")
    flag("--precision", choices=("fp32", "bf16"), help="bf16 needs CUDA, where it is the default")
    flag("--out", metavar="DIR", help="the run's folder (runs/<mode>_<holdout>_seed<seed>)")
    flag("--resume", action="store_true", help="continue after the last complete epoch in --out")
    flag("--explain", action="store_true", help="gradients only; with --resume, of a trained run")
    return parser


def parse(argv=None):
    """The flags; those not given take the toy's value, else the mode's, else the paper's."""
    parser = declare_flags()
    args = parser.parse_args(argv)
    args.rank = int(os.environ.get("RANK", 0))
    args.ranks = int(os.environ.get("WORLD_SIZE", 1))
    args.case = all(getattr(args, name) is None for name in LOSSES)  # one of Table 2's, unchanged
    if args.data == "toy":
        args.data = "toy_ffpp"
    args.toy = args.data == "toy_ffpp" or Path(args.data, "TOY.txt").is_file()
    cuda = "cuda" in args.device

    defaults = {**DEFAULTS, **MODES[args.mode]}
    if args.toy:
        defaults.update(TOY)
    if args.mode == "dfdc_winner":
        defaults["frames"] = 1
    defaults["precision"] = "bf16" if cuda else "fp32"
    still = "_still" if args.still else ""
    defaults["out"] = f"runs/{args.mode}{still}_{args.holdout}_seed{args.seed}"
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)

    if args.bin_ce == "cut" and not (args.bin_contrast or args.multi_ce or args.multi_contrast):
        parser.error("--bin-ce cut: some other loss must reach the encoder")
    if args.precision == "bf16" and not cuda:
        parser.error("--precision bf16 needs CUDA: on CPUs some gradients would not be finite")
    if args.mode == "dfdc_winner" and args.init not in ("imagenet", "random"):
        parser.error(f"--init {args.init}: dfdc_winner starts from imagenet or random")
    if args.mode == "dfdc_winner" and args.still:
        parser.error("--still: dfdc_winner reads single frames, which have no motion")
    if args.mode != "dfdc_winner" and args.frames < 8:
        parser.error(f"--frames {args.frames}: at least 8 (fewer crash PyTorch on AVX-512 CPUs)")
    return args


# --- Networks ------------------------------------------------------------------------------------


def frozen_copy(net):
    return copy.deepcopy(net).requires_grad_(False)


def build_networks(args, multi_classes):
    """The networks that the case uses, and no others."""
    if args.mode == "dfdc_winner":
        encoder = FrameEncoder(args.width, pretrained=args.init == "imagenet")
    else:
        encoder = S3D(args.width, repeat_ends=args.init == "random")
        encoder.to(memory_format=torch.channels_last_3d)  # faster convolutions
        if args.init != "random":
            load_pretrained(encoder, args.init)

    nets = nn.ModuleDict()
    nets["encoder"] = encoder
    nets["bin_classifier"] = Classifier(encoder.dim, 2)
    if args.multi_ce:
        nets["multi_classifier"] = Classifier(encoder.dim, multi_classes)

    # "Separate MLP heads are used in each stream" (2.1.2); each has its own queue and EMA head.
    if args.bin_contrast:
        nets["bin_projection"] = ProjectionHead(encoder.dim)
        nets["bin_queue"] = LabelQueue(args.queue_size, 128)
        nets["ema_bin_projection"] = frozen_copy(nets["bin_projection"])
    if args.multi_contrast:
        nets["multi_projection"] = ProjectionHead(encoder.dim)
        nets["multi_queue"] = LabelQueue(args.queue_size, 128)
        nets["ema_multi_projection"] = frozen_copy(nets["multi_projection"])
    if args.bin_contrast or args.multi_contrast:
        nets["ema_encoder"] = frozen_copy(encoder)

    return nets


# --- Figure 2 ------------------------------------------------------------------------------------


def compute_losses(nets, args, clip, y_bin, y_multi):
    """Figure 2: the losses of the case for clip (B, 3, T, H, W) and labels (B,), by name, and the
    projections z (B, 128), by stream. What is computed from `embedding` sends its gradient into
    the encoder; what is computed from `embedding.detach()` does not."""
    embedding = nets["encoder"](clip)  # (B, dim), for both streams
    losses = {}
    z = {}

    # Binary stream, cross-entropy. Where the classifier only monitors a contrastive encoder,
    # "these gradients are cut off at the classifier".
    bin_input = embedding
    if args.bin_ce == "cut":
        bin_input = embedding.detach()
    logits = nets["bin_classifier"](bin_input)
    losses["bin_ce"] = F.cross_entropy(logits.float(), y_bin)

    # Multi-class stream, cross-entropy: which manipulation?
    if args.multi_ce:
        logits = nets["multi_classifier"](embedding)
        losses["multi_ce"] = F.cross_entropy(logits.float(), y_multi)

    # Binary stream, Equation 1
    if args.bin_contrast:
        z["bin"] = nets["bin_projection"](embedding)
        queue = nets["bin_queue"]
        losses["bin_contrast"] = multi_instance_info_nce(
            z["bin"], y_bin, queue.keys, queue.labels, args.temperature
        )

    # Multi-class stream, Equation 1
    if args.multi_contrast:
        z["multi"] = nets["multi_projection"](embedding)
        queue = nets["multi_queue"]
        losses["multi_contrast"] = multi_instance_info_nce(
            z["multi"], y_multi, queue.keys, queue.labels, args.temperature
        )
    return losses, z


# --- One step ------------------------------------------------------------------------------------


def training_step(nets, args, optimizer, clip, y_bin, y_multi, cosines=False):
    """One step; returns what is logged. Raises FloatingPointError for a loss that is not finite."""
    autocast = torch.autocast(clip.device.type, torch.bfloat16, enabled=args.precision == "bf16")
    with autocast:
        losses, z = compute_losses(nets, args, clip, y_bin, y_multi)  # Figure 2
    measured = log_values(losses, z)
    if cosines:
        for (a, b), cosine in gradient_cosines(losses, nets["encoder"]).items():
            measured[f"cosine_{a}_{b}"] = cosine

    optimizer.zero_grad()
    sum(losses.values()).backward()  # all loss weights are 1
    if args.ranks > 1:
        average_gradients(nets)
    optimizer.step()

    # The EMA networks follow; then the batch becomes keys, for later iterations (Equation 1).
    move_ema(nets, args)
    with autocast:
        enqueue_keys(nets, args, clip, y_bin, y_multi)
    return measured


def log_values(losses, z):
    """For log.csv: the losses, and the mean cosine of all pairs of anchors, self-pairs included
    (1: collapsed). Raises FloatingPointError."""
    measured = {}
    for name, loss in losses.items():
        measured[f"loss_{name}"] = loss.item()
        if not loss.isfinite():
            raise FloatingPointError(f"L_{name} is {loss.item()}: try a smaller --lr")
    for stream, anchors in z.items():
        measured[f"similarity_{stream}"] = (anchors @ anchors.T).mean().item()
    return measured


def average_gradients(nets):
    """Average over torchrun's ranks, as one flat vector. BatchNorm stays each rank's own: rank 0's
    running averages are saved."""
    gradients = [p.grad for p in nets.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    sizes = [gradient.numel() for gradient in gradients]
    for gradient, mean in zip(gradients, flat.split(sizes)):
        gradient.copy_(mean.view_as(gradient))


def move_ema(nets, args):
    """Each EMA network follows the trained one of the same name."""
    for name in nets:
        if name.startswith("ema_"):
            ema_update(nets[name.removeprefix("ema_")], nets[name], args.momentum)


@torch.no_grad()
def enqueue_keys(nets, args, clip, y_bin, y_multi):
    """The batch becomes keys for later steps. As in MoCo, BatchNorm normalises over the batch."""
    if args.bin_contrast or args.multi_contrast:
        embedding = nets["ema_encoder"](clip)  # (B, dim)
    if args.bin_contrast:
        nets["bin_queue"].enqueue(nets["ema_bin_projection"](embedding), y_bin)
    if args.multi_contrast:
        nets["multi_queue"].enqueue(nets["ema_multi_projection"](embedding), y_multi)


# --- Do the losses fight? ------------------------------------------------------------------------


def encoder_gradients(losses, encoder):
    """{loss: its gradient at the encoder, one flat vector} of the losses that reach it. Keeps the
    graph."""
    weights = list(encoder.parameters())
    gradients = {}
    for name, loss in losses.items():
        by_weight = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
        reached = [gradient.flatten() for gradient in by_weight if gradient is not None]
        if reached:
            gradients[name] = torch.cat(reached)
    return gradients


def gradient_cosines(losses, encoder):
    """{(loss, loss): cosine of their gradients at the encoder}, None where one is zero (empty
    queue). The paper's "conflicting gradients" (3.2) would be below 0."""
    gradients = encoder_gradients(losses, encoder)
    cosines = {}
    for a, b in itertools.combinations(gradients, 2):
        norms = gradients[a].norm() * gradients[b].norm()
        cosines[a, b] = None
        if norms > 0:
            cosines[a, b] = (gradients[a] @ gradients[b] / norms).item()
    return cosines


def explain(nets, args, loader):
    """--explain: how strong is each loss's gradient at the encoder, and do the losses agree there?
    One more batch comes first: the queues must not be empty."""
    norms = {}
    cosines = {}
    nets.train()
    for index, batch in zip(range(EXPLAINED + 1), loader):
        batch = [tensor.to(args.device) for tensor in batch]
        if index > 0:
            losses, _ = compute_losses(nets, args, *batch)
            gradients = encoder_gradients(losses, nets["encoder"])
            for name in losses:
                norm = gradients[name].norm().item() if name in gradients else None
                norms.setdefault(name, []).append(norm)
            for pair, cosine in gradient_cosines(losses, nets["encoder"]).items():
                cosines.setdefault(pair, []).append(cosine)
        enqueue_keys(nets, args, *batch)

    print(f"\nGradients at the encoder, mean ± standard deviation over {index} batches")
    for name, values in norms.items():
        print(f"norm of L_{name:30}{mean_and_deviation(values, none='cut')}")
    for (a, b), values in cosines.items():
        print(f"cosine of L_{a} and L_{b}: {mean_and_deviation(values)}")


# --- The run -------------------------------------------------------------------------------------


def learning_rate(args, step, steps):
    """Linear warm-up times half a cosine; the last step's rate is not quite 0."""
    warm_up = min(1, step / WARM_UP)
    decay = (1 + math.cos(math.pi * (step - 1) / steps)) / 2
    return args.lr * warm_up * decay


def train_epoch(nets, args, optimizer, loader, epoch):
    """The epoch's row of log.csv: means over its steps, and the cosines of its first step."""
    nets.train()
    steps = args.epochs * len(loader)
    started = time.time()
    history = []
    for index, batch in enumerate(loader, 1):
        batch = [tensor.to(args.device) for tensor in batch]
        step = epoch * len(loader) + index
        lr = learning_rate(args, step, steps)
        for group in optimizer.param_groups:
            group["lr"] = lr
        # EfficientNet drops layers at random: --resume must drop the same ones.
        torch.manual_seed((args.seed * 1_000_003 + step) * 1_003 + args.rank)

        measured = training_step(nets, args, optimizer, *batch, cosines=index == 1)
        history.append(measured)
        if args.rank == 0:
            speed = index * args.batch_size / (time.time() - started)
            losses = [f"{k} {v:.3f}" for k, v in measured.items() if k.startswith("loss_")]
            text = (
                f"epoch {epoch + 1}/{args.epochs}  {'  '.join(losses)}  {speed:.0f} clips/s, step"
            )
            progress(text, index, len(loader))

    row = {"epoch": epoch + 1, "step": step, "lr": lr}
    for name, first in history[0].items():
        row[name] = first
        if not name.startswith("cosine_"):
            row[name] = np.mean([measured[name] for measured in history]).item()
    return row


def validate(nets, args, loader):
    """AUC, and the mean of the accuracies on originals and on the more numerous fakes."""
    videos, _ = evaluate(nets["encoder"], nets["bin_classifier"], loader, args.device)
    val = measure(videos)
    accuracy = (val["accuracy_real"] + val["accuracy_fake"]) / 2
    print(f"  validation: AUC {100 * val['auc']:.1f} %, accuracy {100 * accuracy:.1f} %")
    return {"val_accuracy": accuracy, "val_auc": val["auc"]}


def settings(args):
    """What checkpoints and results keep of the flags; config["place"] may change on --resume."""
    config = {name: value for name, value in vars(args).items() if name not in NOT_SETTINGS}
    config["format"] = FORMAT
    config["place"] = {name: getattr(args, name) for name in PLACE}
    config["place"]["torch"] = str(torch.__version__)
    return config


def load_own(path, config):
    """A file of this run; ValueError if it is of another one."""
    content = load(path)
    before = content["config"]
    for name in config.keys() - {"place"}:
        if before.get(name) != config[name]:
            difference = f"{name} {before.get(name)} there, {config[name]} now"
            raise ValueError(f"{path} is of another run ({difference}); {START_AGAIN}")
    return content


def find_checkpoint(args, config):
    """last.pt of the unfinished run in --out, or None if training starts. Raises ValueError."""
    last = Path(args.out, "last.pt")
    saved = last if last.is_file() else last.with_name("best.pt")
    if not saved.is_file():
        return None
    checkpoint = load_own(saved, config)
    if not args.resume:
        raise ValueError(
            f"{args.out} holds an unfinished run: --resume continues it; {START_AGAIN}"
        )
    return checkpoint if saved == last else None  # killed before its first last.pt: start again


def restore(checkpoint, sets, nets, optimizer):
    """Continue from last.pt; returns its log. Refuses if the number of training videos of a class
    has changed; only reports it for the other splits."""
    for split, videos in sets.items():
        before = checkpoint["counts"][split]
        text = f"--resume: {split} had {before} videos before, now {videos.counts}"
        if before != videos.counts:
            if split == "train":
                raise ValueError(text)
            print(text)
    nets.load_state_dict(checkpoint["nets"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    print(f"continuing after epoch {checkpoint['epoch']}")
    return checkpoint["log"]


def prepare(args, config):
    """({split: dataset}, networks). Rank 0 draws the toy, looks for faces and downloads weights."""
    if args.toy:
        torch.set_num_threads(1)  # more would only slow down so small a network
    if args.rank > 0:
        dist.barrier()  # until rank 0 is through
    if args.data == "toy_ffpp":
        from tests.toy import make_toy  # the toy lives with the tests

        make_toy("toy_ffpp")
    sets = {split: make_dataset(config, split) for split in SPLITS}
    torch.manual_seed(args.seed)
    nets = build_networks(args, max(sets["train"].multi) + 1).to(args.device)
    if args.rank == 0 and args.ranks > 1:
        dist.barrier()

    toy = ", TOY data" if args.toy else ""
    print(f"{args.mode}, {args.holdout} held out, seed {args.seed}{toy}")
    for split, videos in sets.items():
        print(f"{split}: {videos.counts}, not on disk: {sum(videos.missing.values())}")
    return sets, nets


def train(args):
    """Train and test one run. Of torchrun's ranks, rank 0 alone reports and writes files."""
    config = settings(args)
    out = Path(args.out)
    sets, nets = prepare(args, config)
    if (out / "results.json").is_file() and not args.explain:
        print(report(load_own(out / "results.json", config)))
        print(f"This run is finished; {START_AGAIN}.")
        return
    checkpoint = None
    if args.resume or not args.explain:
        checkpoint = find_checkpoint(args, config)
    if args.explain and args.resume and checkpoint is None:
        raise ValueError(f"--explain --resume: there is no last.pt in {out}")

    optimizer = torch.optim.AdamW(nets.parameters(), args.lr, weight_decay=1e-5)
    batches = EpochBatches(sets["train"], args.batch_size, args.seed, args.rank, args.ranks)
    loader = make_loader(sets["train"], args.workers, batch_sampler=batches)
    val_loader = video_loader(sets["val"], args.workers)

    log = []
    if checkpoint is not None:
        log = restore(checkpoint, sets, nets, optimizer)
    if args.explain:
        return explain(nets, args, loader)
    if args.rank == 0:
        save(config, out / "config.json")

    for epoch in range(len(log), args.epochs):
        batches.epoch = epoch
        row = train_epoch(nets, args, optimizer, loader, epoch)
        if args.rank > 0:
            continue
        log.append({**row, **validate(nets, args, val_loader)})
        checkpoint = {
            "config": config,
            "epoch": epoch + 1,
            "encoder": nets["encoder"].state_dict(),
            "bin_classifier": nets["bin_classifier"].state_dict(),
        }
        # The best validation AUC, the later of equals; the held-out manipulation has no say.
        if log[-1]["val_auc"] == max(earlier["val_auc"] for earlier in log):
            save(checkpoint, out / "best.pt")
        # The rest of what --resume needs to be bit-exact: order, augmentation and learning rate
        # follow from the seed and the step.
        checkpoint.update(nets=nets.state_dict(), optimizer=optimizer.state_dict(), log=log)
        checkpoint["counts"] = {split: videos.counts for split, videos in sets.items()}
        with replacing(out / "log.csv") as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=log[0])
            writer.writeheader()
            writer.writerows(log)
        save(checkpoint, out / "last.pt")

    if args.rank == 0:
        encoder, classifier, _ = load_checkpoint(out / "best.pt", args.device)
        results = test(encoder, classifier, config, sets["test"], args.device, args.workers)
        results["val_auc"] = max(row["val_auc"] for row in log)
        print(report(results))  # where it raises, the run is not finished: --resume tests again
        save(results, out / "results.json")


def main(argv=None):
    if "LOCAL_RANK" in os.environ and torch.cuda.is_available():  # torchrun; before CUDA is used
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    args = parse(argv)
    if args.ranks > 1:
        dist.init_process_group(timeout=timedelta(hours=2))
        atexit.register(dist.destroy_process_group)
    if args.rank > 0:
        sys.stdout = open(os.devnull, "w")
    with one_sentence("train.py", "interrupted: --resume continues after the last complete epoch"):
        train(args)


if __name__ == "__main__":
    main()
