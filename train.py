# SPDX-License-Identifier: MIT
"""Train one of the paper's cases (Table 2, Figure 2) with one manipulation held out.

    python train.py --mode bin_contrastive --holdout DF                         # on the toy
    python train.py --mode bin_contrastive --holdout DF --data FaceForensics++  # on the real one
    python train.py --mode bin_ce_contrastive --explain     # do the gradients of the losses agree?

The cases differ in which losses exist and which of them reach the encoder. (The Baseline differs
from Binary CE only in its starting weights; on the toy, where both start at random, in nothing.)
`compute_losses` is Figure 2, `training_step` one step; the rest is bookkeeping.
"""

import argparse
import atexit
import copy
import itertools
import math
import os
import sys
import time
from collections import defaultdict
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from data import (
    MANIPULATIONS,
    SPLITS,
    EpochBatches,
    cpu_count,
    ignore_ctrl_c,
    is_toy,
    list_videos,
    multi_labels,
    open_splits,
    progress,
)
from eval import (
    FORMAT,
    LOSSES,
    differences,
    evaluate,
    existing_device,
    load,
    mean_and_deviation,
    measure,
    report,
    save,
    test,
)
from heads import Classifier, ProjectionHead
from losses import multi_instance_info_nce
from moco import LabelQueue, ema_update
from s3d import MIN_SIZE, S3D, FrameEncoder, load_pretrained

# The rows of Table 2. Section 2.1.2 announces six cases and lists five: we take the Baseline for
# the sixth, and Kinetics-400 for its "Supervised weights".
# bin_ce: does the gradient of the binary classifier reach the encoder, or is it cut?
# fmt: off
MODES = {
    "baseline": dict(init="kinetics400", bin_ce="grad"),
    "bin_ce": dict(init="coclr", bin_ce="grad"),
    "bin_contrastive": dict(init="coclr", bin_ce="cut", bin_contrast=True),
    "bin_ce_contrastive": dict(init="coclr", bin_ce="grad", bin_contrast=True),
    "bin_ce_multi_ce": dict(init="coclr", bin_ce="grad", multi_ce=True),
    "bin_contrastive_multi_contrastive":
        dict(init="coclr", bin_ce="cut", bin_contrast=True, multi_contrast=True),
    # The paper's point of comparison: EfficientNet-B7 on single frames.
    "dfdc_winner": dict(init="imagenet", bin_ce="grad", clips=32, size=380),
}
TOY = dict(
    init="random", width=0.125, crop="frame", frames=8, size=50, clips=2,
    epochs=6, lr=1e-3, queue_size=256, momentum=0.9, workers=1,
)
# fmt: on
WARM_UP = 50  # steps
EXPLAINED = 20  # batches of --explain
NOT_SETTINGS = "resume explain prepare rank".split()
START_AGAIN = "to start again, delete the folder or choose another --out"

# --- Networks ------------------------------------------------------------------------------------


def frozen_copy(net):
    return copy.deepcopy(net).requires_grad_(False)


def build_networks(args, multi_classes):
    """The networks and queues that the case uses, and no others."""
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


def embed(encoder, clip):
    """clip (B, 3, T, H, W) -> embedding (B, dim), float32. The encoder computes in bfloat16 where
    the GPU has it. Heads and losses do not, nor do validation and test."""
    half = clip.is_cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    with torch.autocast(clip.device.type, torch.bfloat16, enabled=half):
        return encoder(clip).float()


# --- Figure 2 ------------------------------------------------------------------------------------


def compute_losses(nets, args, clip, y_bin, y_multi):
    """Figure 2: the losses of the case for clip (B, 3, T, H, W) and labels (B,), by name, and the
    projections z (B, 128), by stream. What is computed from `embedding` sends its gradient into
    the encoder; what is computed from `embedding.detach()` does not."""
    embedding = embed(nets["encoder"], clip)  # (B, dim), for both streams
    losses = {}
    z = {}

    # Binary stream, cross-entropy. Where the classifier only monitors a contrastive encoder,
    # "these gradients are cut off at the classifier".
    bin_input = embedding
    if args.bin_ce == "cut":
        bin_input = embedding.detach()
    losses["bin_ce"] = F.cross_entropy(nets["bin_classifier"](bin_input), y_bin)

    # Multi-class stream, cross-entropy: which manipulation?
    if args.multi_ce:
        losses["multi_ce"] = F.cross_entropy(nets["multi_classifier"](embedding), y_multi)

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


def training_step(nets, args, optimizer, clip, y_bin, y_multi):
    """One step; returns what is logged. Raises ValueError for a loss that is not finite."""
    losses, z = compute_losses(nets, args, clip, y_bin, y_multi)  # Figure 2
    measured = log_values(losses, z)

    optimizer.zero_grad()
    sum(losses.values()).backward()  # all loss weights are 1
    if args.ranks > 1:
        average_gradients(nets)
    optimizer.step()

    # The EMA networks follow; then the batch becomes keys, for later iterations (Equation 1).
    move_ema(nets, args)
    enqueue_keys(nets, args, clip, y_bin, y_multi)
    return measured


def log_values(losses, z):
    """For log.csv: the losses, and the mean cosine of all pairs of anchors, self-pairs included
    (1: collapsed). Raises ValueError."""
    measured = {}
    for name, loss in losses.items():
        measured[f"loss_{name}"] = loss.item()
        if not loss.isfinite():
            raise ValueError(f"L_{name} is {loss.item()}: try a smaller --lr")
    for stream, anchors in z.items():
        measured[f"similarity_{stream}"] = (anchors @ anchors.T).mean().item()
    return measured


def average_gradients(nets):
    """Average over torchrun's ranks. BatchNorm stays each rank's own: rank 0's running averages are
    saved."""
    for parameter in nets.parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()


def move_ema(nets, args):
    """Each EMA network follows the trained one of the same name."""
    for name in nets:
        if name.startswith("ema_"):
            ema_update(nets[name.removeprefix("ema_")], nets[name], args.momentum)


@torch.no_grad()
def enqueue_keys(nets, args, clip, y_bin, y_multi):
    """The batch becomes keys for later steps."""
    if args.bin_contrast or args.multi_contrast:
        embedding = embed(nets["ema_encoder"], clip)  # (B, dim)
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


def endless(loader, device):
    """Batches of one epoch after the other."""
    for epoch in itertools.count():
        loader.batch_sampler.epoch = epoch
        for batch in loader:
            yield [tensor.to(device) for tensor in batch]


def explain(nets, args, loader):
    """--explain: how strong is each loss's gradient at the encoder, and do the losses agree there?
    The paper's "conflicting gradients" (3.2) would have a cosine below 0; unrelated ones have about
    0. All loss weights are 1: the loss with the larger norm moves the encoder more. Prints means
    over the batches; returns {"norms": {loss: [...]}, "cosines": {two losses: [...]}}."""
    nets.train()
    norms = defaultdict(list)
    cosines = defaultdict(list)
    batches = endless(loader, args.device)
    enqueue_keys(nets, args, *next(batches))  # the queues must not be empty
    for batch in itertools.islice(batches, EXPLAINED):
        losses, _ = compute_losses(nets, args, *batch)
        gradients = encoder_gradients(losses, nets["encoder"])
        for name, gradient in gradients.items():
            norms[name].append(gradient.norm().item())
        for a, b in itertools.combinations(gradients, 2):
            cosine = F.cosine_similarity(gradients[a], gradients[b], dim=0)
            cosines[f"L_{a} and L_{b}"].append(cosine.item())
        enqueue_keys(nets, args, *batch)

    print(f"\nGradients at the encoder, mean ± standard deviation over {EXPLAINED} batches")
    for name in losses:
        text = mean_and_deviation(norms[name]) if name in gradients else "cut"
        print(f"norm of L_{name:30}{text}")
    for pair, values in cosines.items():
        print(f"cosine of {pair}: {mean_and_deviation(values)}")
    return {"norms": norms, "cosines": cosines}


# --- Flags ---------------------------------------------------------------------------------------


def declare_flags():
    parser = argparse.ArgumentParser(
        usage="python train.py [--mode MODE] [--holdout NAME] [--data FF++] [flags]",
        description="Defaults are those of the given --mode and --data.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    switch = argparse.BooleanOptionalAction
    best = "cuda" if torch.cuda.is_available() else "cpu"
    flag = parser.add_argument
    flag("--mode", choices=MODES, default="bin_contrastive", help="sets the flags of a case")
    flag(
        "--bin-ce", choices=("grad", "cut"), default="grad", help="may L_bin_ce reach the encoder?"
    )
    flag("--bin-contrast", action=switch, default=False, help="Equation 1, binary labels")
    flag("--multi-ce", action=switch, default=False, help="cross-entropy, multi-class labels")
    flag("--multi-contrast", action=switch, default=False, help="Equation 1, multi-class labels")
    flag("--init", default="coclr", help="coclr, kinetics400, imagenet, random or a path")
    flag("--holdout", choices=(*MANIPULATIONS, "none"), default="DF", help="only in the test")
    flag(
        "--data", default="toy_ffpp", help="folder of FF++; toy_ffpp: a toy, drawn there if need be"
    )
    flag("--compression", choices=("c0", "raw", "c23", "c40"), default="c23", help="of FF++")
    flag("--crop", choices=("face", "frame"), default="face", help="the face, or the centre")
    flag("--cache", default="cache", metavar="DIR", help="for prepared videos")
    flag("--still", action="store_true", help="train and test on clips without motion")
    flag("--frames", type=int, default=32, help="consecutive frames in a clip")
    flag("--size", type=int, default=128, help="pixels of a clip's side")
    flag("--clips", type=int, default=4, help="per video, in validation and test")
    flag("--workers", type=int, default=min(8, cpu_count()), help="processes that read clips")
    flag("--epochs", type=int, default=30, help="passes over the training set")
    flag("--batch-size", type=int, default=16, help="clips, over all ranks")
    flag("--lr", type=float, default=1e-4, help="AdamW's peak learning rate")
    flag("--queue-size", type=int, default=2048, help="keys in each queue")
    flag("--temperature", type=float, default=0.07, help="tau of Equation 1")
    flag("--momentum", type=float, default=0.999, help="of the EMA networks")
    flag("--width", type=float, default=1.0, help="scales S3D's channels")
    flag("--seed", type=int, default=0, help="random seed")
    flag("--device", type=existing_device, default=best, help="cpu, cuda, mps")
    flag(
        "--out", default="runs/{case}_{holdout}_seed{seed}", metavar="DIR", help="the run's folder"
    )
    flag("--resume", action="store_true", help="continue after the last complete epoch in --out")
    flag("--prepare", action="store_true", help="only prepare and check all videos")
    flag(
        "--explain",
        action="store_true",
        help="gradients only; with --resume, a trained run's, kept in explain.json",
    )
    return parser


def parse(argv=None):
    """The flags: as typed, else as the toy or the mode sets them, else the defaults."""
    argv = sys.argv[1:] if argv is None else argv
    parser = declare_flags()
    # --mode and --data set defaults of the others, which --help shows.
    first, _ = parser.parse_known_args([word for word in argv if word not in ("-h", "--help")])
    toy = first.data == "toy_ffpp" or is_toy(first.data)
    preset = {**MODES[first.mode], **(TOY if toy else {})}
    if first.mode == "dfdc_winner":
        preset["frames"] = 1
        if toy:
            preset["clips"] = 16  # as many frames of a video as S3D sees in 2 clips of 8
    parser.set_defaults(**preset)
    args = parser.parse_args(argv)

    args.toy = toy
    args.rank = int(os.environ.get("RANK", 0))
    args.ranks = int(os.environ.get("WORLD_SIZE", 1))
    args.case = case_name(args, parser)
    if args.out == parser.get_default("out"):
        args.out = args.out.format(**vars(args))
    check_flags(args, parser)
    return args


def case_name(args, parser):
    """The mode, and those of the flags below that were set to another value than the mode's or the
    toy's (`parse` has made these the parser's defaults). A case is a row of the table."""
    parts = [args.mode]
    for name in ("init", *LOSSES, "still"):
        value = getattr(args, name)
        if value == parser.get_default(name):
            continue
        if name == "init":
            parts.append(Path(value).stem)
        elif name == "bin_ce":
            parts.append(f"bin_ce_{value}")
        else:
            parts.append(name if value else f"no_{name}")
    return "_".join(parts)


def check_flags(args, parser):
    for name in "frames size clips epochs batch_size lr queue_size temperature width".split():
        if not getattr(args, name) > 0:
            parser.error(f"--{name.replace('_', '-')} must be positive")
    if not 0 <= args.momentum <= 1:
        parser.error("--momentum must be between 0 and 1")
    if min(args.seed, args.workers) < 0:
        parser.error("--seed and --workers must not be negative")
    if args.batch_size % (2 * args.ranks):
        parser.error(f"--batch-size must be a multiple of {2 * args.ranks}")
    if args.queue_size < args.batch_size and (args.bin_contrast or args.multi_contrast):
        parser.error("--queue-size must not be smaller than --batch-size")

    if args.bin_ce == "cut" and not (args.bin_contrast or args.multi_ce or args.multi_contrast):
        parser.error("--bin-ce cut: some other loss must reach the encoder")
    if args.mode == "dfdc_winner":
        if args.init not in ("imagenet", "random"):
            parser.error(f"--init {args.init}: dfdc_winner starts from imagenet or random")
        if args.still:
            parser.error("--still: dfdc_winner reads single frames, which have no motion")
    elif args.frames < 8 or args.size < MIN_SIZE:
        # S3D needs 5 frames; to train on fewer than 8 crashes PyTorch on CPUs with AVX-512.
        parser.error(f"S3D needs --frames 8 and --size {MIN_SIZE} or more")


# --- The run -------------------------------------------------------------------------------------


def learning_rate(args, step, steps):
    """Linear warm-up times half a cosine; the last step's rate is not quite 0."""
    warm_up = min(1, step / WARM_UP)
    decay = (1 + math.cos(math.pi * (step - 1) / steps)) / 2
    return args.lr * warm_up * decay


def train_epoch(nets, args, optimizer, loader, epoch):
    """The epoch's row of log.csv: means over its steps (of torchrun's ranks, rank 0's share)."""
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

        measured = training_step(nets, args, optimizer, *batch)
        history.append(measured)
        if args.rank == 0:
            speed = index * args.batch_size / (time.time() - started)
            losses = [f"{k} {v:.3f}" for k, v in measured.items() if k.startswith("loss_")]
            text = (
                f"epoch {epoch + 1}/{args.epochs}  {'  '.join(losses)}  {speed:.0f} clips/s, step"
            )
            progress(text, index, len(loader))

    row = {"epoch": epoch + 1, "step": step, "lr": lr}
    for name in measured:
        row[name] = np.mean([each[name] for each in history]).item()
    return row


def validate(nets, args, videos):
    """AUC, and the mean of two accuracies, because fakes are more numerous than originals."""
    val = measure(evaluate(nets["encoder"], nets["bin_classifier"], videos, args.device))
    accuracy = (val["accuracy_real"] + val["accuracy_fake"]) / 2
    print(f"  validation: AUC {100 * val['auc']:.1f} %, accuracy {100 * accuracy:.1f} %")
    return {"val_accuracy": accuracy, "val_auc": val["auc"]}


def settings(args):
    """The flags that decide a run, for its checkpoints and results."""
    config = {name: value for name, value in vars(args).items() if name not in NOT_SETTINGS}
    return {**config, "format": FORMAT, "torch": str(torch.__version__)}


def load_own(path, config):
    """A file of this run. Raises ValueError if it is of another one."""
    content = load(path)
    before = content["config"]
    names = differences(config, before)
    if names:
        changed = [f"{name} {before.get(name)} there, {config[name]} now" for name in names]
        raise ValueError(f"{path} is of another run ({'; '.join(changed)}): {START_AGAIN}")
    return content


def find_checkpoint(args, config):
    """last.pt of the run in --out, or None where there is none to continue. Raises ValueError."""
    last = Path(args.out, "last.pt")
    if args.explain and not args.resume:
        return None
    if not last.is_file():
        if args.explain:
            raise ValueError(f"--explain --resume: there is no {last}")
        return None
    checkpoint = load_own(last, config)
    if not args.resume:
        raise ValueError(
            f"{args.out} holds an unfinished run: --resume continues it; {START_AGAIN}"
        )
    return checkpoint


def prepare_videos(args):
    """{split: FFPP}. Draws the toy and decodes what is not in the cache yet."""
    if args.data == "toy_ffpp":
        from tests.toy import make_toy  # the toy lives with the tests

        make_toy("toy_ffpp")
    sets = open_splits(vars(args), SPLITS)
    for split, videos in sets.items():
        print(f"{split}: {videos.counts}, not on disk: {sum(videos.missing.values())}")
    return sets


def set_up(args):
    """({split: FFPP}, networks). Rank 0 downloads weights and prepares the videos for all."""
    toy = ", TOY data" if args.toy else ""
    print(f"{args.case}, {args.holdout} held out, seed {args.seed}{toy}")
    if args.toy:
        torch.set_num_threads(1)  # more would only slow down so small a network

    if args.data != "toy_ffpp":
        list_videos(args.data, args.compression)  # refuses a wrong folder before anything is done

    if args.rank > 0:
        dist.barrier()  # (1) until rank 0 is through
    torch.manual_seed(args.seed)
    multi_classes = 1 + max(multi_labels(args.holdout).values())
    nets = build_networks(args, multi_classes).to(args.device)
    sets = prepare_videos(args)
    if args.rank == 0 and args.ranks > 1:
        dist.barrier()  # lets the others through (1)
    return sets, nets


def train(args):
    """Train and test one run. Of torchrun's ranks, rank 0 alone reports and writes files."""
    config = settings(args)
    out = Path(args.out)
    if (out / "results.json").is_file() and not args.explain:
        print(report(load_own(out / "results.json", config)))
        print(f"This run is finished; {START_AGAIN}.")
        return
    checkpoint = find_checkpoint(args, config)
    if args.rank == 0 and not args.explain:
        save(config, out / "config.json")

    sets, nets = set_up(args)
    counts = {split: videos.counts for split, videos in sets.items()}
    batches = EpochBatches(sets["train"], args.batch_size, args.seed, args.rank, args.ranks)
    loader = DataLoader(
        sets["train"],
        batch_sampler=batches,
        num_workers=args.workers,
        persistent_workers=args.workers > 0,
        worker_init_fn=ignore_ctrl_c,
    )
    optimizer = torch.optim.AdamW(nets.parameters(), args.lr, weight_decay=1e-5)

    log = []
    best = None
    if checkpoint is not None:
        if checkpoint["counts"] != counts:
            raise ValueError(f"--resume: there were {checkpoint['counts']} videos, now {counts}")
        nets.load_state_dict(checkpoint["nets"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        log = checkpoint["log"]
        best = checkpoint["best"]
        print(f"continuing after epoch {len(log)}")
    if args.explain:
        gradients = explain(nets, args, loader)
        if args.resume and args.rank == 0:
            save(gradients, out / "explain.json")
        return

    for epoch in range(len(log), args.epochs):
        batches.epoch = epoch
        row = train_epoch(nets, args, optimizer, loader, epoch)
        if args.rank == 0:
            log.append({**row, **validate(nets, args, sets["val"])})
            checkpoint = make_checkpoint(nets, optimizer, config, log, best, counts)
            best = checkpoint["best"]
            save(checkpoint, out / "last.pt")
            save(log, out / "log.csv")

    if args.rank == 0:
        save(log, out / "log.csv")  # again: the run may have been killed just before
        finish(nets, args, config, best, sets["test"])


def finish(nets, args, config, best, videos):
    """Keep and test the best epoch's detector."""
    out = Path(args.out)
    save(best, out / "best.pt")
    nets["encoder"].load_state_dict(best["encoder"])
    nets["bin_classifier"].load_state_dict(best["bin_classifier"])
    results = test(nets["encoder"], nets["bin_classifier"], config, videos, args.device)
    results["val_auc"] = best["val_auc"]
    print(report(results))
    save(results, out / "results.json")


def make_checkpoint(nets, optimizer, config, log, best, counts):
    """last.pt: this epoch's detector, the best one so far, and all that --resume needs to go on bit
    for bit (on a CPU). Order, augmentation and learning rate follow from the seed and the step."""
    now = {
        "config": config,
        "epoch": len(log),
        "val_auc": log[-1]["val_auc"],
        "encoder": nets["encoder"].state_dict(),
        "bin_classifier": nets["bin_classifier"].state_dict(),
    }
    # The best validation AUC, the later of equals; the held-out manipulation has no say.
    if best is None or now["val_auc"] >= best["val_auc"]:
        best = copy.deepcopy(now)
    rest = {"nets": nets.state_dict(), "optimizer": optimizer.state_dict()}
    return {**now, **rest, "best": best, "log": log, "counts": counts}


def main(argv=None):
    if "LOCAL_RANK" in os.environ and torch.cuda.is_available():  # torchrun; before CUDA is used
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    args = parse(argv)
    if args.ranks > 1:
        dist.init_process_group(timeout=timedelta(days=1))  # for as long as rank 0 prepares
        atexit.register(dist.destroy_process_group)
    if args.rank > 0:
        sys.stdout = open(os.devnull, "w")

    if hasattr(sys.stdout, "reconfigure"):  # names that the terminal cannot show are escaped
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        if args.prepare:
            args.holdout = "none"  # all classes, in all splits
            prepare_videos(args)
        else:
            train(args)
    except (OSError, ValueError, torch.OutOfMemoryError) as error:
        sys.exit(f"train.py: {error}")
    except KeyboardInterrupt:
        sys.exit("train.py: interrupted; --resume continues a training after its last epoch")


if __name__ == "__main__":
    main()
