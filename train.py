# SPDX-License-Identifier: MIT
"""Train one of the paper's cases (Table 2, Figure 2) with one manipulation held out.

    python train.py --mode bin_contrastive --holdout DF                         # on the toy
    python train.py --mode bin_contrastive --holdout DF --data FaceForensics++  # on the real one
    python train.py --mode bin_contrastive --explain    # which loss moves what, and do they agree?

The cases differ in which losses exist and which of them reach the encoder (the Baseline only in its
starting weights). `compute_losses` is Figure 2, `training_step` one step; the rest is bookkeeping.
"""
import argparse
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
from torch import distributed as dist, nn
from torch.nn import functional as F

import eval as evaluation
from data import MANIPULATIONS, SPLITS, EpochBatches, replacing
from heads import Classifier, ProjectionHead
from losses import multi_instance_info_nce
from moco import LabelQueue, ema_update
from s3d import MIN_SIZE, S3D, FrameEncoder, load_pretrained

MODES = {  # the rows of Table 2; bin_ce: does the classifier's gradient reach the encoder?
    "baseline": dict(init="kinetics400", bin_ce="grad"),
    "bin_ce": dict(init="coclr", bin_ce="grad"),
    "bin_contrastive": dict(init="coclr", bin_ce="cut", bin_contrast=True),
    "bin_ce_contrastive": dict(init="coclr", bin_ce="grad", bin_contrast=True),
    "bin_ce_multi_ce": dict(init="coclr", bin_ce="grad", multi_ce=True),
    "bin_contrastive_multi_contrastive": dict(init="coclr", bin_ce="cut", bin_contrast=True,
                                              multi_contrast=True),
    # The paper's point of comparison, EfficientNet-B7 on single frames
    "dfdc_winner": dict(init="imagenet", bin_ce="grad", clips=32, size=380),
}
HEADS = {"bin_ce": "bin_classifier", "bin_contrast": "bin_projection",
         "multi_ce": "multi_classifier", "multi_contrast": "multi_projection"}

def build_networks(args, multi_classes):
    """The networks that the case uses, and no others."""
    if args.mode == "dfdc_winner":
        encoder = FrameEncoder(args.width, pretrained=args.init == "imagenet")
    else:
        encoder = S3D(args.width).to(memory_format=torch.channels_last_3d)  # faster convolutions
        if args.init != "random":
            load_pretrained(encoder, args.init)
    nets = nn.ModuleDict({"encoder": encoder, "bin_classifier": Classifier(encoder.dim, 2)})
    if args.multi_ce:
        nets["multi_classifier"] = Classifier(encoder.dim, multi_classes)
    for stream, wanted in (("bin", args.bin_contrast), ("multi", args.multi_contrast)):
        if wanted:  # "Separate MLP heads are used in each stream"
            nets[f"{stream}_projection"] = ProjectionHead(encoder.dim)
            nets[f"{stream}_queue"] = LabelQueue(args.queue_size, 128)
            for name in ("encoder", f"{stream}_projection"):
                nets[f"ema_{name}"] = copy.deepcopy(nets[name]).requires_grad_(False)
    encoder.requires_grad_(args.bin_ce == "grad" or args.bin_contrast or args.multi_ce
                           or args.multi_contrast)
    return nets

def compute_losses(nets, args, clip, y_bin, y_multi):
    """Figure 2: the losses of the case for clip (B, 3, T, H, W) and labels (B,), by name, and the
    projections z (B, 128), by stream. What is computed from `embedding` sends its gradient into
    the encoder; what is computed from `embedding.detach()` does not."""
    embedding = nets["encoder"](clip)                                  # (B, dim), for both streams
    losses, z = {}, {}
    # In the contrastive cases, "these gradients are cut off at the classifier", which only monitors
    bin_input = embedding.detach() if args.bin_ce == "cut" else embedding
    losses["bin_ce"] = F.cross_entropy(nets["bin_classifier"](bin_input).float(), y_bin)
    if args.multi_ce:        # which manipulation?
        losses["multi_ce"] = F.cross_entropy(nets["multi_classifier"](embedding).float(), y_multi)
    if args.bin_contrast:    # Equation 1, binary labels
        z["bin"], queue = nets["bin_projection"](embedding), nets["bin_queue"]
        losses["bin_contrast"] = multi_instance_info_nce(z["bin"], y_bin, queue.keys, queue.labels,
                                                         args.temperature)
    if args.multi_contrast:  # Equation 1, multi-class labels
        z["multi"], queue = nets["multi_projection"](embedding), nets["multi_queue"]
        losses["multi_contrast"] = multi_instance_info_nce(z["multi"], y_multi, queue.keys,
                                                           queue.labels, args.temperature)
    return losses, z

def training_step(nets, args, optimizer, scaler, clip, y_bin, y_multi, cosines=False):
    """One step; returns what is logged. Raises FloatingPointError for a loss that is not finite."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(args.precision)
    autocast = torch.autocast(clip.device.type, dtype, enabled=dtype is not None)
    with autocast:
        losses, z = compute_losses(nets, args, clip, y_bin, y_multi)  # Figure 2
    measured = log_values(losses, z)
    if cosines:  # fp16 gradients need their scale
        losses_at_scale = {name: scaler.scale(loss) for name, loss in losses.items()}
        found = gradient_cosines(losses_at_scale, nets["encoder"])
        measured |= {f"cosine_{a}_{b}": cosine for (a, b), cosine in found.items()}
    optimizer.zero_grad()
    scaler.scale(sum(losses.values())).backward()                     # all loss weights are 1
    average_gradients(nets)                                           # over torchrun's processes
    scaler.step(optimizer)
    scaler.update()
    move_ema(nets, args)                                              # the EMA networks follow
    with autocast:
        enqueue_keys(nets, args, clip, y_bin, y_multi)                # Eq. 1: for later iterations
    return measured

def average_gradients(nets):
    """Over all processes of torchrun, as one flat vector."""
    if dist.is_available() and dist.is_initialized():
        gradients = [p.grad for p in nets.parameters() if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients])):
            gradient.copy_(mean.view_as(gradient))

def move_ema(nets, args):
    for name in nets:
        if name.startswith("ema_"):
            ema_update(nets[name.removeprefix("ema_")], nets[name], args.momentum)

@torch.no_grad()
def enqueue_keys(nets, args, clip, y_bin, y_multi):
    """The batch becomes keys for later steps. As in MoCo, BatchNorm normalises over the batch."""
    if args.bin_contrast or args.multi_contrast:
        embedding = nets["ema_encoder"](clip)                          # (B, dim)
    if args.bin_contrast:
        nets["bin_queue"].enqueue(nets["ema_bin_projection"](embedding), y_bin)
    if args.multi_contrast:
        nets["multi_queue"].enqueue(nets["ema_multi_projection"](embedding), y_multi)

def gradients_at(net, losses):
    """{loss: its gradient at net, one flat vector} of the losses that reach it. Keeps the graph."""
    weights = [p for p in net.parameters() if p.requires_grad]
    found = {}
    for name, loss in losses.items() if weights else ():
        gradients = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
        if gradients[0] is not None:
            found[name] = torch.cat([gradient.flatten() for gradient in gradients])
    return found

def gradient_cosines(losses, encoder):
    """{(loss, loss): cosine of their gradients at the encoder}, None where one is zero (empty
    queue) or overflows. The paper's "conflicting gradients" (3.2) would be below 0."""
    cosines = {}
    for (a, x), (b, y) in itertools.combinations(gradients_at(encoder, losses).items(), 2):
        norms = x.norm() * y.norm()
        cosines[a, b] = (x @ y / norms).item() if 0 < norms < math.inf else None
    return cosines

def log_values(losses, z):
    """For log.csv: the losses, and the mean cosine of all pairs of anchors (1: collapsed)."""
    measured = {f"loss_{name}": loss.item() for name, loss in losses.items()}
    if not all(map(math.isfinite, measured.values())):
        raise FloatingPointError(f"{measured}: stopped before this step; a smaller --lr may help")
    return measured | {f"similarity_{stream}": (anchors @ anchors.T).mean().item()
                       for stream, anchors in z.items()}

def explain(nets, args, loader, batches=20):
    """--explain: how strong is each loss's gradient at its head and at the encoder, and do the
    losses agree there? One more batch comes first: the queues must not be empty."""
    rows, endless = [], itertools.chain.from_iterable(itertools.repeat(loader))
    nets.train()
    for number, batch in enumerate(itertools.islice(endless, batches + 1)):
        batch = [tensor.to(args.device) for tensor in batch]
        if number:
            losses, _ = compute_losses(nets, args, *batch)
            rows.append(gradient_cosines(losses, nets["encoder"]))
            for net in ("encoder", *(HEADS[name] for name in losses)):
                for name, gradient in gradients_at(nets[net], losses).items():
                    rows[-1][name, net] = gradient.norm().item()
        enqueue_keys(nets, args, *batch)
    means = {key: evaluation.mean_and_deviation([row[key] for row in rows]) for key in rows[0]}
    print(f"\nmean ± standard deviation over {len(rows)} batches of {len(batch[0])} clips\n"
          f"{'loss':18}{'its head':18}{'gradient norm there':22}at the encoder")
    for name in losses:
        head, at_encoder = HEADS[name], means.get((name, "encoder"), "cut")
        print(f"L_{name:16}{head:18}{means[name, head]:22}{at_encoder}")
    for a, b in (pair for pair in means if pair[1] in losses):
        print(f"cosine of L_{a} and L_{b} at the encoder: {means[a, b]}")

def train(args, resume):
    """Train and test one run. Of several processes, the first alone prints and saves results."""
    out = Path(args.out)
    torch.set_num_threads(args.threads or torch.get_num_threads())
    torch.manual_seed(args.seed)
    if args.rank:
        dist.barrier()  # the first process finds the faces and downloads the weights
    sets = {split: evaluation.make_dataset(vars(args), split) for split in SPLITS}
    nets = build_networks(args, max(sets["train"].multi) + 1).to(args.device)
    if args.ranks > 1 and not args.rank:
        dist.barrier()
    batches = EpochBatches(sets["train"], args.batch_size, args.balance, args.seed, args.rank,
                           args.ranks)
    loader = evaluation.make_loader(sets["train"], args.workers, batch_sampler=batches)
    val_loader = evaluation.video_loader(sets["val"], args.workers)
    optimizer = torch.optim.AdamW(nets.parameters(), args.lr, weight_decay=1e-5)
    scaler = torch.amp.GradScaler(args.device.split(":")[0], enabled=args.precision == "fp16")
    print(f"{args.mode}, {args.holdout} held out, seed {args.seed}{', TOY data' * args.toy}")
    for split, videos in sets.items():
        print(f"{split}: {videos.counts}, not on disk: {sum(videos.missing.values())}")
    log, best, done = [], None, 0
    if resume:
        last, best = evaluation.load(out / "last.pt"), evaluation.load(out / "best.pt")["val"]
        log, done = last["log"], last["epoch"]
        nets.load_state_dict(last["nets"])
        optimizer.load_state_dict(last["optimizer"])
        scaler.load_state_dict(last["scaler"] or scaler.state_dict())  # empty unless fp16
        print(f"continuing after epoch {done} of {args.epochs}")
    if args.explain:
        return explain(nets, args, loader)
    config = {name: value for name, value in vars(args).items() if name not in ACTIONS}
    config |= {"format": evaluation.FORMAT, "torch": str(torch.__version__)}
    if not args.rank:
        for name in RUN_FILES if args.overwrite else ():
            (out / name).unlink(missing_ok=True)
        evaluation.save(config, out / "config.json")
    for epoch in range(done, args.epochs):
        batches.epoch = epoch
        row = train_epoch(nets, args, optimizer, scaler, loader, epoch)
        if args.rank:
            continue
        videos, *_ = evaluation.evaluate(nets["encoder"], nets["bin_classifier"], val_loader,
                                         args.device)
        val = evaluation.measure(videos)
        # Of originals and fakes alike: there are three fakes to each original.
        val["accuracy"] = (val["accuracy_real"] + val["accuracy_fake"]) / 2
        print(f"  validation: AUC {100 * val['auc']:.1f} %, accuracy {100 * val['accuracy']:.1f} %")
        log.append(row | {"val_accuracy": val["accuracy"], "val_auc": val["auc"]})
        state = {"config": config, "epoch": epoch + 1, "val": val}
        state |= {name: nets[name].state_dict() for name in ("encoder", "bin_classifier")}
        if best is None or val["auc"] >= best["auc"]:  # the held-out manipulation has no say
            best = val
            evaluation.save(state, out / "best.pt")
        state |= {"nets": nets.state_dict(), "optimizer": optimizer.state_dict(),
                  "scaler": scaler.state_dict(), "log": log}
        evaluation.save(state, out / "last.pt")
        with replacing(out / "log.csv") as temporary, open(temporary, "w", newline="") as file:
            csv.writer(file).writerows([log[0], *(row.values() for row in log)])
    if not args.rank:
        chosen = evaluation.load_checkpoint(out / "best.pt", args.device)
        results, _ = evaluation.test(*chosen, sets["test"], args.device, args.workers)
        evaluation.save(results, out / "results.json")
        print(evaluation.report(results))

def train_epoch(nets, args, optimizer, scaler, loader, epoch):
    """The epoch's row of log.csv: means over its steps, and the cosines of its first step."""
    nets.train()
    nets["encoder"].train(any(p.requires_grad for p in nets["encoder"].parameters()))
    history, started, steps = [], time.time(), len(loader)
    for step, batch in enumerate(loader, 1):
        batch = [tensor.to(args.device, non_blocking=True) for tensor in batch]
        at, total = epoch * steps + step, args.epochs * steps
        lr = args.lr * min(1, at / 50) * (1 + math.cos(math.pi * (at - 1) / total)) / 2
        for group in optimizer.param_groups:
            group["lr"] = lr
        # EfficientNet drops layers at random: --resume must drop the same ones.
        torch.manual_seed((args.seed * 1_000_003 + at) * 1_003 + args.rank)
        history.append(training_step(nets, args, optimizer, scaler, *batch, cosines=step == 1))
        speed = step * args.batch_size / (time.time() - started)
        left = timedelta(seconds=round((total - at) * args.batch_size / speed))
        losses = "  ".join(f"{k} {v:.3f}" for k, v in history[-1].items() if k.startswith("loss"))
        if not args.rank:
            evaluation.progress(f"epoch {epoch + 1}/{args.epochs} step {step}/{steps}  {losses}  "
                                f"{speed:.0f} clips/s  {left} left", last=step == steps)
    row = {"epoch": epoch + 1, "step": at, "lr": lr, **history[0]}
    return row | {name: np.mean([values[name] for values in history]).item()
                  for name in history[0] if not name.startswith("cosine_")}

def state_of(args):
    """What is in --out: "new", "unfinished" or "finished". ValueError if it is another run."""
    out = Path(args.out)
    if args.overwrite or not any((out / name).is_file() for name in RUN_FILES[:3]):
        return "new"
    before = evaluation.load(out / "config.json")
    differ = [f"{name} {before.get(name)} there, {value} now" for name, value in vars(args).items()
              if name not in PLACE | ACTIONS and before.get(name) != value]
    if differ:
        raise ValueError(f"{out} holds another run ({'; '.join(differ)}): --overwrite or move it")
    if (out / "results.json").is_file() and not args.explain:
        print(evaluation.report(evaluation.load(out / "results.json")))
        print("this run is finished; --overwrite repeats it")
        return "finished"
    if not args.resume and not args.explain:
        raise ValueError(f"{out} holds an unfinished run: --resume or --overwrite it")
    return "unfinished" if (out / "last.pt").is_file() else "new"

RUN_FILES = ("best.pt", "last.pt", "results.json", "config.json", "log.csv", "results_best.json",
             "results_last.json", *evaluation.PICTURES)  # the first three make a run
ACTIONS = {"resume", "overwrite", "explain"}
# These may change on --resume: where a run takes place, and the precision that suits the device.
PLACE = {"data", "cache", "workers", "device", "precision", "out", "changed", "rank"}
TOY = dict(init="random", epochs=12, batch_size=16, frames=8, size=64, clips=2, crop="frame",
           width=0.125, lr=1e-3, queue_size=256, momentum=0.9, workers=1, threads=1)

def number(kind, least, most=1e9):
    def convert(text):
        if not least <= kind(text) <= most:
            raise argparse.ArgumentTypeError(f"{text} is not between {least} and {most}")
        return kind(text)
    return convert

def parse(argv=None):
    parser = argparse.ArgumentParser(
        usage="python train.py [--mode MODE] [--holdout NAME] [--data FF++] [flags]",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter, add_help=False, allow_abbrev=False)
    flag, count = parser.add_argument, number(int, 1)
    switch = dict(action=argparse.BooleanOptionalAction, default=False)
    flag("--mode", choices=MODES, default="bin_contrastive", help="sets the next five flags")
    flag("--bin-ce", choices=("grad", "cut"), default="cut", help="may L_bin_ce reach the encoder?")
    flag("--bin-contrast", **switch, help="Equation 1, binary labels")
    flag("--multi-ce", **switch, help="cross-entropy, multi-class labels")
    flag("--multi-contrast", **switch, help="Equation 1, multi-class labels")
    flag("--init", default="coclr", help="coclr, kinetics400, imagenet, random or a path")
    flag("--holdout", choices=(*MANIPULATIONS, "none"), default="DF", help="kept for the test")
    flag("--data", default="toy", help="the folder of FF++, or toy, which is drawn into toy_ffpp/")
    flag("--compression", choices=("c0", "raw", "c23", "c40"), default="c23", help="of FF++")
    flag("--crop", default="face", help="face, frame (the centre), or a JSON file of boxes")
    flag("--cache", metavar="DIR", help="keeps cropped frames: each video is decoded only once")
    flag("--frames", type=count, default=32, help="consecutive frames in a clip")
    flag("--size", type=number(int, MIN_SIZE), default=128, help="pixels of a clip's side")
    flag("--clips", type=count, default=4, help="clips per video in validation and test")
    flag("--balance", choices=("binary", "none"), default="binary", help="originals : fakes, 1 : 1")
    flag("--augment", **switch | {"default": True}, help="random window, flip and colours")
    flag("--workers", type=number(int, 0), default=min(8, os.cpu_count()), help="video readers")
    flag("--epochs", type=count, default=30, help="passes over the training set")
    flag("--batch-size", type=number(int, 2), default=16, help="clips of all processes together")
    flag("--lr", type=number(float, 1e-12), default=1e-4, help="AdamW's peak learning rate")
    flag("--queue-size", type=count, default=2048, help="keys in each queue")
    flag("--temperature", type=number(float, 1e-6), default=0.07, help="tau of Equation 1")
    flag("--momentum", type=number(float, 0, 1), default=0.999, help="of the EMA networks")
    flag("--width", type=number(float, 0.01, 9), default=1.0, help="scales S3D's channels")
    flag("--seed", type=number(int, 0), default=0, help="random seed")
    flag("--device", type=evaluation.device, default=evaluation.DEVICE, help="cpu, cuda, mps")
    flag("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="of the networks")
    flag("--threads", type=number(int, 0), default=0, help="CPU threads; 0: torch's choice")
    flag("--out", metavar="DIR", help="the run's folder; None: runs/<mode>_<holdout>_seed<seed>")
    flag("--resume", action="store_true", help="continue after the last complete epoch in --out")
    flag("--overwrite", action="store_true", help="start again, and delete the run in --out")
    flag("--explain", action="store_true", help="gradients only; with --resume, of a run")
    known, _ = parser.parse_known_args(argv)
    flag("-h", "--help", action="help", help="this, with the defaults of --mode and --data")
    toy = known.data in ("toy", "toy_ffpp") or Path(known.data, "TOY.txt").is_file()
    single = known.mode == "dfdc_winner"
    more = (TOY if toy else {}) | ({"frames": 1} if single else {})
    parser.set_defaults(precision="bf16" if "cuda" in known.device else "fp32", rank=0, ranks=1,
                        **MODES[known.mode] | more)
    args = parser.parse_args(argv)
    if single and args.init not in ("imagenet", "random"):
        parser.error(f"--init {args.init}: dfdc_winner starts from imagenet or random")
    if not single and args.frames < 8:
        parser.error(f"--frames {args.frames}: at least 8 (fewer crash PyTorch on AVX-512 CPUs)")
    args.rank, args.ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if args.batch_size % (2 * args.ranks):
        parser.error(f"--batch-size {args.batch_size}: must be a multiple of {2 * args.ranks}")
    who = PLACE | ACTIONS | {"mode", "holdout", "seed", "threads"}
    args.changed = {name: value for name, value in vars(args).items()
                    if name not in who and value != parser.get_default(name)}
    args.toy, args.data = toy, "toy_ffpp" if args.data == "toy" else args.data
    args.out = args.out or f"runs/{args.mode}_{args.holdout}_seed{args.seed}"
    return args

def main(argv=None):
    args = parse(argv)
    try:
        if args.ranks > 1:
            if args.device == "cuda":
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            dist.init_process_group(timeout=timedelta(hours=2))
        if args.rank:
            sys.stdout = open(os.devnull, "w")
        elif args.data == "toy_ffpp":
            from tests.toy import make_toy
            make_toy("toy_ffpp")
        state = [None if args.rank else state_of(args)]
        if args.ranks > 1:
            dist.broadcast_object_list(state)
        if args.explain and args.resume and state[0] == "new":
            raise ValueError(f"--explain --resume: there is no last.pt in {args.out}")
        if state[0] != "finished":
            train(args, resume=args.resume and state[0] == "unfinished")
    except (OSError, ValueError, FloatingPointError) as error:
        sys.exit(f"train.py: {evaluation.sentence(error)}")
    except KeyboardInterrupt:
        sys.exit("interrupted: --resume continues after the last complete epoch, if there is one")

if __name__ == "__main__":
    main()
