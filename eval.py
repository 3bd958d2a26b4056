# SPDX-License-Identifier: MIT
"""Test time: only the binary stream is left (section 2.1.1), and every video gets one score.

A video's score is the mean fake probability over `--clips` evenly spaced clips. The test set of a hold-out is
the originals and the held-out manipulation, 280 videos of the real FF++; all that can be read are scored. The seen
manipulations' test videos are scored as well, but stand beside it.

    python eval.py runs/bin_contrastive_DF_seed0/best.pt

prints accuracy (the paper's measure; a score above 0.5 is a fake) with the accuracy on originals and on fakes, AUC,
average precision and equal error rate, each with a 95 % bootstrap interval, and beside them the seen manipulations one
by one. results.json, next to the checkpoint, keeps the settings and every video's score. --video scores videos of your
own, --real and --fake those of another dataset, --table and --roc put runs side by side.
"""
import argparse
import contextlib
import ctypes
import json
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import models
from torchvision.utils import make_grid

from data import FFPP, IMAGE_ENDINGS, MANIPULATIONS, VIDEO_ENDINGS, crop_square, find_face, is_toy, load_clip, read_clip
from heads import Classifier
from s3d import IMAGENET_MEAN_STD, S3D, load_pretrained

# --- Metrics: labels 0 = original, 1 = manipulated; scores = fake probability, (N,) each ------------------------------


def auc(labels, scores):
    """Area under the ROC curve: the share of (fake, original) pairs in the right order, ties counting half."""
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=float)
    _, tie, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(sizes) - (sizes - 1) / 2)[tie]  # from 1; tied scores share their mean rank
    fakes = int(labels.sum())
    return (ranks[labels == 1].sum() - fakes * (fakes + 1) / 2) / (fakes * (len(labels) - fakes))


def roc(labels, scores):
    """False and true positive rates as the threshold falls past each different score, from (0, 0) to (1, 1)."""
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=float)
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.append(np.diff(scores[order]) != 0, True)
    hits = np.cumsum(labels[order])[last_of_tie]
    alarms = np.cumsum(1 - labels[order])[last_of_tie]
    return np.append(0, alarms / (len(labels) - labels.sum())), np.append(0, hits / labels.sum())


def average_precision(labels, scores):
    """Mean precision over the steps of recall, without interpolation (scikit-learn's definition)."""
    labels = np.asarray(labels)
    alarms, hits = roc(labels, scores)
    alarms, hits = alarms * (len(labels) - labels.sum()), hits * labels.sum()
    return float(np.sum(np.diff(hits) / labels.sum() * (hits / np.maximum(hits + alarms, 1))[1:]))


def equal_error_rate(labels, scores):
    """Where the ROC curve, drawn straight between its points, crosses false positive rate = miss rate."""
    false_positive, true_positive = roc(labels, scores)
    gap = false_positive - (1 - true_positive)  # rises from -1 to 1
    i = int(np.argmax(gap >= 0))
    share = gap[i - 1] / (gap[i - 1] - gap[i])
    return float(false_positive[i - 1] + share * (false_positive[i] - false_positive[i - 1]))


def metrics(labels, scores):
    """All of them as a dictionary. Raises ValueError when there are not both originals and fakes, or a score is no number."""
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=float)
    if not (0 < labels.sum() < len(labels)):
        raise ValueError(f"metrics need originals and fakes, got {int((labels == 0).sum())} and {int(labels.sum())}")
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite")
    right = (scores > 0.5) == labels
    return dict(accuracy=float(right.mean()), accuracy_real=float(right[labels == 0].mean()),
                accuracy_fake=float(right[labels == 1].mean()), auc=float(auc(labels, scores)),
                ap=average_precision(labels, scores), eer=equal_error_rate(labels, scores))


def intervals(labels, scores, draws=1000, seed=0):
    """95 % bootstrap intervals of all metrics: videos drawn with replacement, originals and fakes apart."""
    labels, scores, rng = np.asarray(labels), np.asarray(scores, dtype=float), np.random.default_rng(seed)
    groups = [np.flatnonzero(labels == label) for label in (0, 1)]
    drawn = []
    for _ in range(draws):
        rows = np.concatenate([rng.choice(group, len(group)) for group in groups])
        drawn.append(metrics(labels[rows], scores[rows]))
    return {name: [float(np.percentile([d[name] for d in drawn], p)) for p in (2.5, 97.5)] for name in drawn[0]}


# --- Scoring ------------------------------------------------------------------------------------------------------


def quiet_worker(_):
    """Loader workers leave Ctrl-C to the main process, and do not complain when it is gone in the middle of a sentence."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    lost = (OSError, EOFError, KeyboardInterrupt)
    sys.excepthook = lambda kind, error, trace: None if issubclass(kind, lost) else sys.__excepthook__(kind, error, trace)


def world():
    """(number of this process, number of processes): 0, 1 unless torchrun started several."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def from_all_ranks(value):
    """[the value of each process, in rank order]."""
    values = [value] * world()[1]
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


@torch.no_grad()
def evaluate(encoder, classifier, dataset, device="cpu", batch_size=16, workers=0, keep_embeddings=False):
    """(videos, unreadable, embeddings) of a dataset of val or test clips: one row per readable video,
    {"path", "class", "label", "score": mean fake probability in 0..1, "clips": [one probability per clip]}, the paths
    of the others, and, if they are kept, the mean embedding of each readable video (videos, dim). Several processes
    share the videos out among them, and each returns the whole."""
    was_training = encoder.training, classifier.training
    encoder.eval(), classifier.eval()
    clips, sums, broken = {}, {}, set()
    rank, ranks = world()
    mine = Subset(dataset, [i for i in range(len(dataset)) if i // dataset.clips % ranks == rank])
    loader = DataLoader(mine, batch_size, num_workers=workers, pin_memory=torch.device(device).type == "cuda",
                        worker_init_fn=quiet_worker)
    for clip, _, _, video in loader:
        embedding = encoder(clip.to(device, non_blocking=True))                              # (B, dim)
        fake = classifier(embedding).softmax(dim=1)[:, 1]                                    # (B,)
        if not fake.isfinite().all():
            raise ValueError("the network's scores are not finite: its weights have diverged (where it was trained, a smaller "
                             "--lr may help)")
        for v, probability, vector in zip(video.tolist(), fake.tolist(), embedding.float().cpu().numpy()):
            if v < 0:  # FFPP's sign for a video that cannot be read
                broken.add(-1 - v)
                continue
            clips.setdefault(v, []).append(probability)
            if keep_embeddings:
                sums[v] = sums.get(v, 0) + vector
    encoder.train(was_training[0]), classifier.train(was_training[1])
    for their_clips, their_sums, their_broken in from_all_ranks((clips, sums, broken)):
        clips, sums, broken = clips | their_clips, sums | their_sums, broken | their_broken
    good = sorted(set(clips) - broken)
    rows = [{"path": str(dataset.videos[v][0]), "class": dataset.videos[v][1], "label": dataset.binary[v],
             "score": float(np.mean(clips[v])), "clips": clips[v]} for v in good]
    embeddings = np.stack([sums[v] / len(clips[v]) for v in good]) if keep_embeddings and good else None
    return rows, [str(dataset.videos[v][0]) for v in sorted(broken)], embeddings


def test(encoder, classifier, config, clips, device="cpu", workers=0, batch_size=16, keep_embeddings=False):
    """The paper's protocol for one hold-out: the content of results.json without the checkpoint's name, and the
    videos' embeddings, if they are kept."""
    dataset = test_set(config, clips)
    videos, unreadable, embeddings = evaluate(encoder, classifier, dataset, device, batch_size, workers, keep_embeddings)
    seen = [name for name in MANIPULATIONS if name != config["holdout"]]
    return {"config": config, "protocol": {"clips": clips, **{name: config[name] for name in ("frames", "size", "crop")}},
            "metrics": measure(videos, headline(config), with_intervals=True),
            "seen": {name: measure(videos, [name]) for name in seen if any(v["class"] == name for v in videos)},
            "videos": videos, "unreadable": unreadable}, embeddings


def test_set(config, clips):
    """Originals and all four manipulations of the test split; the headline is over the held-out one, the others stand
    beside it."""
    return FFPP(config["data_root"], "test", config["holdout"], config["compression"], config["frames"], config["size"],
                clips, config["crop"], classes=["original", *MANIPULATIONS], cache=config.get("cache"))


def headline(config):
    """The manipulations of the headline: the held-out one, or all when none was held out."""
    return list(MANIPULATIONS) if config["holdout"] == "none" else [config["holdout"]]


def measure(videos, fakes, with_intervals=False):
    """Metrics over the originals and these manipulations."""
    chosen = [v for v in videos if v["class"] in ("original", *fakes)]
    labels, scores = [v["label"] for v in chosen], [v["score"] for v in chosen]
    return {**metrics(labels, scores), **({"intervals": intervals(labels, scores)} if with_intervals else {})}


EFFICIENTNETS = (models.efficientnet_b0, models.EfficientNet_B0_Weights.IMAGENET1K_V1), \
                (models.efficientnet_b7, models.EfficientNet_B7_Weights.IMAGENET1K_V1)


class FrameEncoder(nn.Module):
    """The paper's point of comparison, the DFDC winner's image model: EfficientNet-B7 on single frames (B0 at a width
    below 1, for the toy). Same interface as S3D: clip (B, 3, T, H, W) uint8 or float in 0..1 -> (B, dim), the mean over
    the frames."""

    def __init__(self, width=1.0, pretrained=False):
        super().__init__()
        model, weights = EFFICIENTNETS[width >= 1]
        network = model(weights=weights if pretrained else None)
        self.layers, self.dim = network.features, network.classifier[1].in_features
        mean, std = IMAGENET_MEAN_STD
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1, 1))

    def forward(self, clip):
        clip = clip.to(self.mean.dtype) / 255 if clip.dtype == torch.uint8 else clip.to(self.mean.dtype)
        frames = ((clip - self.mean) / self.std).transpose(1, 2).flatten(0, 1)               # (B * T, 3, H, W)
        return self.layers(frames).mean(dim=(2, 3)).unflatten(0, (len(clip), -1)).mean(dim=1)


def build_encoder(mode, width, init="random"):
    """The encoder of a mode with its starting weights. Raises what load_pretrained raises."""
    if mode == "dfdc_winner":
        if init not in ("imagenet", "random"):
            raise ValueError(f"--init {init}: dfdc_winner starts from imagenet or random")
        try:
            return FrameEncoder(width, init == "imagenet")
        except (OSError, RuntimeError) as error:
            raise FileNotFoundError(f"could not download {EFFICIENTNETS[width >= 1][1].url} ({error}): fetch it on another "
                                    f"machine and put it into {Path(torch.hub.get_dir()) / 'checkpoints'}") from None
    encoder = S3D(width).to(memory_format=torch.channels_last_3d)  # channels innermost: faster convolutions
    if init != "random":
        load_pretrained(encoder, init)
    return encoder


def keep_freed_memory():
    """Linux takes the pages of each large tensor back as soon as it is freed, and clears new ones for the next: on a CPU
    a fifth of the time of inference. From here on freed memory stays with this process. (Not for training, where big
    and small pieces mix: a quarter more memory.) Elsewhere, or with another libc than GNU's, nothing happens."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(-4, 0)            # M_MMAP_MAX: no block of its own from the kernel, however large
        mallopt(-1, 2 ** 31 - 1)  # M_TRIM_THRESHOLD: the end of the heap is not given back


def check_device(name):
    """Raises ValueError for a device that this machine or this torch does not have."""
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from None


def load_checkpoint(path, device="cpu"):
    """(encoder, binary classifier, config) of a checkpoint of train.py, both networks in eval mode. Raises ValueError,
    FileNotFoundError."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: expected a best.pt or last.pt that train.py wrote")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        config = checkpoint["config"]
        for name in ("mode", "holdout", "data", "data_root", "compression", "crop"):
            if not isinstance(config[name], str):
                raise ValueError(f"config: {name}")
        if config["mode"] not in PAPER or config["holdout"] not in (*MANIPULATIONS, "none"):
            raise ValueError("config: mode, holdout")
        if not all(isinstance(config[name], int) and config[name] > 0 for name in ("frames", "size", "clips")):
            raise ValueError("config: frames, size, clips")
        encoder = build_encoder(config["mode"], config["width"])
        classifier = Classifier(encoder.dim, 2)
        encoder.load_state_dict(checkpoint["encoder"])
        classifier.load_state_dict(checkpoint["bin_classifier"])
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(f"{path} is no checkpoint of train.py that can be read safely, as tensors and plain values only: "
                         f"{type(error).__name__} {' '.join(str(error).split())[:120]}") from None
    return encoder.to(device).eval(), classifier.to(device).eval(), config


def report(results, title):
    """The result as a few lines of text; a toy is called a toy."""
    config, found = results["config"], results["metrics"]
    counts = {name: sum(v["class"] == name for v in results["videos"]) for name in ("original", *MANIPULATIONS)}
    fakes = sum(counts[name] for name in headline(config))
    what = "all four, none held out" if config["holdout"] == "none" else f"{config['holdout']}, never seen in training"
    toy = "  [TOY data: says nothing about real deepfakes]" if config["data"] == "toy" else ""
    guess = max(counts["original"], fakes) / (counts["original"] + fakes)
    lines = [f"{title}: {config['mode']} on {what}{toy}",
             f"  {counts['original']} originals + {fakes} fakes; chance: accuracy {100 * guess:.0f} %, AUC 0.500"]
    for name, label in (("accuracy", "accuracy"), ("accuracy_real", "  on originals"), ("accuracy_fake", "  on fakes"),
                        ("auc", "AUC"), ("ap", "average precision"), ("eer", "equal error rate")):
        low, high = found["intervals"][name]
        shown = (lambda x: f"{x:.3f}") if name in ("auc", "ap") else (lambda x: f"{100 * x:.1f} %")
        lines.append(f"  {label:20}{shown(found[name]):>8}   95 % interval {shown(low)} to {shown(high)}")
    if config["holdout"] != "none":
        lines.append("  test videos of the seen manipulations:  " + ",  ".join(
            f"{name} accuracy {100 * m['accuracy']:.1f} %, AUC {m['auc']:.3f}" for name, m in results["seen"].items()))
    if results["unreadable"]:
        lines.append(f"  NOT SCORED, cannot be read: {len(results['unreadable'])}: {', '.join(results['unreadable'])}")
    return "\n".join(lines)


@contextlib.contextmanager
def replacing(path):
    """A path beside `path` to write to, renamed to it at the end: a kill, a full disk, a reader at any moment meet the
    old file or the new one, never half of one."""
    temporary = Path(path).with_name(f"{Path(path).name}.part")
    try:
        yield temporary
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch tells a full disk by a RuntimeError
        raise OSError(f"{path} could not be written ({str(error).splitlines()[0]}); "
                      "what was there before is untouched") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def sentence(error):
    """What an error says, without the traceback that a loader worker adds."""
    text = str(error).strip()
    return text.splitlines()[-1].partition(": ")[2] if "DataLoader worker" in text else text


def resources(error):
    """A sentence for what a RuntimeError or MemoryError says of a machine that is too small, None for any other."""
    if "MemoryError" in f"{type(error)} {error}" or "out of memory" in str(error) or "can't allocate memory" in str(error):
        return "out of memory: a smaller --batch-size helps (in training also --accumulate, or smaller --frames or --size)"
    if "DataLoader worker (pid" in str(error):
        return "a process that reads videos was killed: too little (shared) memory for --workers, a smaller number helps"
    return None


def save_json(content, path):
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")


def save_and_print(content, path, text):
    """Neither a full disk nor a terminal that is gone costs the result."""
    try:
        save_json(content, path)
    finally:
        print(text)


# --- Videos from elsewhere ------------------------------------------------------------------------------------------


class VideoList(Dataset):
    """Clips of any video files (or folders of images), each with its class and label, as FFPP gives those of FF++."""

    def __init__(self, rows, config, clips):
        self.videos, self.binary = [(path, name, path) for path, name, _ in rows], [label for _, _, label in rows]
        self.clips, self.frames, self.size = clips, config["frames"], config["size"]
        if config["crop"] not in ("face", "frame"):
            raise ValueError(f"the checkpoint was trained on boxes from {config['crop']}, which knows no box of other "
                             "videos: train with --crop face or frame")
        self.faces = {}
        if config["crop"] == "face":
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                self.faces = dict(zip([path for path, _, _ in rows], pool.map(find_face, [path for path, _, _ in rows])))

    def __len__(self):
        return len(self.videos) * self.clips

    def __getitem__(self, index):
        video, number = divmod(index, self.clips)
        path = self.videos[video][0]
        clip = load_clip(path, self.faces.get(path), self.frames, self.size, (number + 0.5) / self.clips)
        if clip is None:
            return torch.zeros(3, self.frames, self.size, self.size, dtype=torch.uint8), self.binary[video], -1, -1 - video
        return clip.transpose(0, 1).contiguous(), self.binary[video], -1, video


def videos_in(folder):
    """Every video file, and every folder of images, below a folder."""
    found = {p for p in Path(folder).rglob("*") if p.is_file() and p.suffix.lower() in VIDEO_ENDINGS}
    beside = {p.parent for p in found}  # a picture beside videos is a thumbnail
    found |= {p.parent for p in Path(folder).rglob("*") if p.is_file() and p.suffix.lower() in IMAGE_ENDINGS} - beside
    found = {p for p in found if "masks" not in p.relative_to(folder).parts}  # FF++'s masks lie among its videos
    if not found:
        raise FileNotFoundError(f"{folder} holds no video: expected files ending in {', '.join(sorted(VIDEO_ENDINGS))} "
                                "or folders of images")
    return sorted(found)


def score_files(encoder, classifier, config, paths, clips, device, workers, batch_size, out, as_json):
    """Your own videos: score, spread over clips, timeline, and a picture of each. True when all could be scored."""
    dataset = VideoList([(Path(path), "own", 0) for path in paths], config, clips)
    rows, unreadable, _ = evaluate(encoder, classifier, dataset, device, batch_size, workers)
    for i, row in enumerate(rows, 1):
        face, picture = dataset.faces.get(Path(row["path"])), out / f"{i}_{Path(row['path']).stem[:100]}.png"
        row.update(spread=float(np.std(row["clips"])), face=face, picture=str(picture))
        del row["class"], row["label"]
        try:
            out.mkdir(parents=True, exist_ok=True)
            save_picture(strip(row, face), picture)
        except (OSError, ValueError, cv2.error) as error:  # a score is worth more than its picture
            row["picture"] = None
            print(f"eval.py: no picture of {row['path']} ({str(error).splitlines()[0]})", file=sys.stderr)
    note = (f"A score of a research model trained on {'TOY drawings' if config['data'] == 'toy' else 'FaceForensics++'} "
            f"({config['mode']}, held out {config['holdout']}), not a verdict: other manipulations, other footage and other "
            "compression change it.")
    if as_json:
        print(json.dumps({"note": note, "videos": rows, "unreadable": unreadable}, indent=1))
    else:
        for row in rows:
            timeline = "".join(" .:-=+*#%@"[min(9, int(10 * p))] for p in row["clips"])
            where = ("the centred square, as in training" if config["crop"] == "frame" else "face found" if row["face"] else
                     "NO FACE FOUND, the centred square instead: the score may mean little")
            print(f"{row['path']}\n  fake score {row['score']:.3f}, spread over {clips} clips {row['spread']:.3f}"
                  f"   0 s [{timeline}] end   (blank 0, @ 1)\n  {where}; picture {row['picture']}")
        print(note)
    for path in unreadable:
        print(f"eval.py: {path} cannot be read as a video: not scored", file=sys.stderr)
    return not unreadable


# --- Tables 2 and 3 ---------------------------------------------------------------------------------------------------

PAPER = {  # Table 2, accuracy in %, by held-out manipulation; last, the average that Table 3 prints
    "baseline": ("Baseline (S3D)", 76.08, 66.08, 75.12, 69.18, 71.62),
    "bin_ce": ("Binary CE", 80.08, 73.44, 79.30, 75.78, 77.15),
    "bin_contrastive": ("Binary Contrastive", 84.77, 68.36, 82.42, 69.92, 76.17),
    "bin_ce_contrastive": ("Binary CE + Contrastive", 81.64, 66.02, 85.55, 70.31, 75.98),
    "bin_ce_multi_ce": ("Binary CE + Multi CE", 85.16, 68.75, 83.59, 73.44, 77.74),
    "bin_contrastive_multi_contrastive": ("Binary Contrastive + Multi Contrastive", 83.20, 58.98, 80.08, 64.06, 71.58),
    "dfdc_winner": ("DFDC Winner", 85.71, 72.86, 51.07, 60.00, 67.41),
}
# What may differ between runs of one table: who they are, where they ran, and what a mode itself sets.
MAY_DIFFER = {"mode", "holdout", "seed", "out", "init", "device", "processes", "workers", "threads", "versions", "data_root",
              "precision", "compile", "cache", "bin_ce", "bin_contrast", "mult_ce", "mult_contrast", "overrides"}


def read_results(path):
    """A results.json. Raises ValueError when it is none."""
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
        config, found, videos = results["config"], results["metrics"], results["videos"]
        if config["mode"] not in PAPER or config["holdout"] not in (*MANIPULATIONS, "none"):
            raise ValueError("unknown mode or holdout")
        if not all(isinstance(config[name], kind) for name, kind in (("seed", int), ("data", str), ("compression", str))):
            raise ValueError("seed, data or compression")
        if not isinstance(config.get("overrides", ""), str):
            raise ValueError("overrides")
        if not all(isinstance(found[name], (int, float)) and np.isfinite(found[name]) for name in ("accuracy", "auc")):
            raise ValueError("accuracy or AUC is no number")
        dict(results["protocol"])["clips"]
        metrics([int(v["label"]) for v in videos], [float(v["score"]) for v in videos])
        [(str(v["path"]), str(v["class"])) for v in videos]
        return results
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no results.json of this project ({type(error).__name__}: {error})") from None


def table(folder):
    """Tables 2 and 3 as Markdown from every results.json below a folder: one table per kind of data and settings."""
    files = sorted(Path(folder).rglob("results.json"))
    if not files:
        raise FileNotFoundError(f"--table {folder}: no results.json there: expected the folder that holds the runs of train.py")
    lines, groups, first = [], {}, {}
    for path in files:
        results = read_results(path)
        config = results["config"]
        if config["holdout"] == "none":  # not a case of the paper
            continue
        settings = {name: value for name, value in {**config, **results["protocol"]}.items() if name not in MAY_DIFFER}
        settings["data"] = Path(config["data"]).name  # wherever the dataset lies
        group = config["data"] == "toy", config["mode"] == "dfdc_winner", json.dumps(settings, sort_keys=True)
        run = *group, config["mode"], config["holdout"], config["seed"], config.get("overrides")
        if run in first:
            lines += [f"{first[run]} and {path} are the same case, hold-out and seed: only the first counts.", ""]
            continue
        first[run] = path
        groups.setdefault(group, []).append(results)
    for toy, settings, runs, joined in with_image_model(groups):
        lines += one_table(toy, settings, runs, joined)
    return "\n".join(lines)


def with_image_model(groups):
    """[(toy, settings, runs, whether the image model's runs have joined them)]. DFDC Winner looks at single frames with
    settings of its own; its row stands in the other cases' table where it is the only one for this data, or the only
    one that shares all settings but frames, size and clips."""
    groups = [(toy, image_model, json.loads(settings), runs) for (toy, image_model, settings), runs in groups.items()]
    rest = lambda settings: {name: value for name, value in settings.items() if name not in ("frames", "size", "clips")}
    tables, joined = [], []
    for toy, image_model, settings, runs in groups:
        if image_model:
            continue
        same_data = lambda group: all(group[2][name] == settings[name] for name in ("data", "compression"))
        rows = [group for group in groups if group[1] and same_data(group)]
        if len(rows) > 1:
            rows = [group for group in rows if rest(group[2]) == rest(settings)]
        if len(rows) == 1:
            joined.append(rows[0])
        tables.append((toy, settings, runs + (rows[0][3] if len(rows) == 1 else []), len(rows) == 1))
    alone = [group for group in groups if group[1] and group not in joined]
    return tables + [(toy, settings, runs, False) for toy, _, settings, runs in alone]


def one_table(toy, settings, runs, joined):
    """The lines of one table: a row for each case, one more for each combination of flags that is no preset."""
    shown = ("frames", "size", "crop", "clips", "width", "epochs", "batch_size", "lr", "weight_decay", "accumulate", "balance",
             "augment", "queue_size", "momentum", "temperature")
    kind = "TOY data (a toy: its numbers say nothing about real deepfakes)" if toy else \
        f"FaceForensics++ {settings['compression']}, {settings['data']}"
    lines = [f"### {kind}", "",
             "Settings: " + ", ".join(f"{name} {settings[name]}" for name in shown if name in settings)
             + (" (DFDC Winner: single frames and settings of its own)" if joined else ""), "",
             "Accuracy in % on originals + the held-out manipulation: mean ± standard deviation over seeds (number of seeds)"
             + ("." if toy else "; in brackets the paper."), "",
             f"| Type of training | {' | '.join(MANIPULATIONS)} | average (Table 3) | average AUC |", "|---" * (len(MANIPULATIONS) + 3) + "|"]
    overrides = lambda run: f" [{run['config']['overrides']}]" if run["config"].get("overrides") else ""
    for mode, (label, *paper) in PAPER.items():
        of_mode = [run for run in runs if run["config"]["mode"] == mode]
        for override in sorted(set(map(overrides, of_mode))) or [""]:
            by_holdout = [[run["metrics"] for run in of_mode if (overrides(run), run["config"]["holdout"]) == (override, name)]
                          for name in MANIPULATIONS]
            cells = [over_seeds([found["accuracy"] for found in seeds]) for seeds in by_holdout]
            mean = lambda name: np.mean([np.mean([found[name] for found in seeds]) for seeds in by_holdout])
            cells += [f"{100 * mean('accuracy'):.1f}", f"{mean('auc'):.3f}"] if all(by_holdout) else ["–", "–"]
            if not toy and not override:
                cells = [f"{cell} [{theirs:.2f}]" for cell, theirs in zip(cells, paper)] + cells[len(paper):]
            lines.append(f"| {label}{override} | {' | '.join(cells)} |")
    videos = sorted({sum(v["class"] in ("original", run["config"]["holdout"]) for v in run["videos"]) for run in runs})
    interval = lambda share: " or ".join(f"{share * 1.96 * 100 * np.sqrt(0.8 * 0.2 / n):.1f}" for n in videos)
    lines += ["", f"An accuracy near 80 % on {' or '.join(map(str, videos))} videos has a 95 % interval of about ± {interval(1)} "
                  f"points, a mean of four hold-outs of ± {interval(0.5)} at best (they share their originals): smaller "
                  "differences bear no conclusion."]
    if not toy:
        off = [f"{label} {average:.2f} there, {np.mean(four):.2f} by Table 2" for label, *four, average in PAPER.values()
               if abs(np.mean(four) - average) > 0.011]
        lines.append(f"Averages of the paper's Table 3 that differ from its own Table 2: {'; '.join(off)}.")
    return lines + [""]


def over_seeds(accuracies):
    """Mean ± standard deviation in %, and the number of seeds."""
    if not accuracies:
        return "–"
    spread = f" ± {100 * np.std(accuracies, ddof=1):.1f}" if len(accuracies) > 1 else ""
    return f"{100 * np.mean(accuracies):.1f}{spread} ({len(accuracies)})"


# --- Pictures: OpenCV, BGR, white ground -------------------------------------------------------------------------------

PICTURES = "classes.png", "mistakes.png", "map.png"
COLOURS = [(60, 60, 60), (40, 40, 220), (30, 140, 240), (200, 90, 30), (60, 160, 40), (170, 50, 150), (160, 160, 0),
           (100, 60, 140)]


def save_picture(picture, path):
    """(cv2.imwrite cannot open every path on Windows, and does not say so.)"""
    written, content = cv2.imencode(".png", picture)
    if not written:
        raise ValueError(f"a picture of {picture.shape[1]} x {picture.shape[0]} pixels cannot be written")
    content.tofile(path)


def write_on(picture, text, x, y, colour=(0, 0, 0), scale=0.45):
    text = text.encode("ascii", "replace").decode()  # OpenCV's font knows no other letters
    cv2.putText(picture, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, scale, colour, 1, cv2.LINE_AA)


def strip(row, face, height=150):
    """Frames with the crop box, and below them the score over time."""
    pictures = []
    count = min(8, len(row["clips"]))
    for i in range(count):
        frame = read_clip(row["path"], 1, (i + 0.5) / count)[0].copy()
        left, top, side = crop_square(*frame.shape[:2], face)
        cv2.rectangle(frame, (left, top), (left + side - 1, top + side - 1), (0, 200, 255), max(1, frame.shape[0] // 150))
        width = max(1, round(frame.shape[1] * height / frame.shape[0]))
        pictures.append(cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA))
    frames = np.concatenate(pictures, axis=1)
    width = max(frames.shape[1], 560)
    chart = np.full((130, width, 3), 255, np.uint8)
    at = lambda i, p: (round(50 + (width - 70) * (i + 0.5) / len(row["clips"])), round(105 - 75 * p))
    for level in (0, 0.5, 1):
        cv2.line(chart, (50, at(0, level)[1]), (width - 20, at(0, level)[1]), (215, 215, 215), 1)
        write_on(chart, f"{level:.1f}", 15, at(0, level)[1] + 5, scale=0.4)
    points = [at(i, p) for i, p in enumerate(row["clips"])]
    for a, b in zip(points, points[1:]):
        cv2.line(chart, a, b, (200, 120, 40), 1, cv2.LINE_AA)
    for point, p in zip(points, row["clips"]):
        cv2.circle(chart, point, 4, (40, 40, 220) if p > 0.5 else (60, 160, 40), -1, cv2.LINE_AA)
    write_on(chart, f"fake score over time, mean {row['score']:.3f}" + ("" if face else "   centred square"), 50, 18)
    write_on(chart, "start", 50, 125, scale=0.4), write_on(chart, "end", width - 45, 125, scale=0.4)
    frames = cv2.copyMakeBorder(frames, 0, 0, 0, width - frames.shape[1], cv2.BORDER_CONSTANT, value=(255, 255, 255))
    return np.concatenate([frames, chart])


def tile(picture, text, size=150):
    """One captioned picture of a sheet, with a white border to write on."""
    picture = cv2.resize(picture, (size, size), interpolation=cv2.INTER_CUBIC)
    return cv2.copyMakeBorder(picture, 24, 6, 6, 6, cv2.BORDER_CONSTANT, value=(255, 255, 255)), text


def sheet(rows, titles):
    """Rows of (picture, caption) under their titles, as one picture; torchvision's make_grid lays each row out."""
    columns, parts = max(map(len, rows)), []
    for row, title in zip(rows, titles):
        captioned = []
        for picture, text in row:
            write_on(picture, text, 8, 17, scale=0.42)
            captioned.append(torch.from_numpy(picture).permute(2, 0, 1))
        captioned += [torch.full_like(captioned[0], 255)] * (columns - len(captioned))
        grid = np.ascontiguousarray(make_grid(captioned, nrow=columns, padding=0).permute(1, 2, 0).numpy())
        head = np.full((28, grid.shape[1], 3), 255, np.uint8)
        write_on(head, title, 8, 20, scale=0.5)
        parts += [head, grid]
    return np.concatenate(parts)


def axes(title, x_label, y_label, size=560):
    canvas = np.full((size + 40, size + 240, 3), 255, np.uint8)
    cv2.rectangle(canvas, (60, 40), (size, size - 20), (120, 120, 120), 1)
    write_on(canvas, title, 60, 16, scale=0.5), write_on(canvas, x_label, 60, size), write_on(canvas, y_label, 60, 34)
    place = lambda x, y: (round(60 + (size - 60) * x), round(size - 20 - (size - 60) * y))  # x, y in 0..1
    return canvas, place


def pictures(results, embeddings, out):
    """classes.png (the paper's Fig. 3 from whatever data is there), mistakes.png (Fig. 4), map.png. Returns the paths."""
    config, videos = results["config"], results["videos"]
    toy = "TOY: " if config["data"] == "toy" else ""
    by_target = {}
    for v in videos:
        by_target.setdefault(Path(v["path"]).stem.split("_")[0], {})[v["class"]] = v
    target, five = max(by_target.items(), key=lambda item: len(item[1]))
    order = [name for name in ("original", *MANIPULATIONS) if name in five]
    frame = lambda v, place=0.5: crop_square_of(read_clip(v["path"], 1, place)[0])
    classes = sheet([[tile(frame(five[name], place), name) for name in order] for place in (0.25, 0.75)],
                    [f"{toy}{target} as filmed and manipulated", "the same, later"])
    originals = sorted((v for v in videos if v["class"] == "original"), key=lambda v: -v["score"])[:5]
    fakes = sorted((v for v in videos if v["class"] in headline(config)), key=lambda v: v["score"])[:5]
    named = lambda v: f"{Path(v['path']).stem} {v['score']:.2f}"
    mistakes = sheet([[tile(frame(v), named(v)) for v in originals], [tile(frame(v), named(v)) for v in fakes]],
                     [f"{toy}originals with the highest fake score",
                      f"{' and '.join(headline(config))} with the lowest fake score"])
    centred = embeddings - embeddings.mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    points = centred @ directions[:2].T
    points = 0.04 + 0.92 * (points - points.min(0)) / np.maximum(np.ptp(points, axis=0), 1e-9)
    share = np.var(centred @ directions[:2].T, axis=0) / np.maximum(np.var(centred, axis=0).sum(), 1e-12)
    canvas, place = axes(f"{toy}{config['mode']}, held out {config['holdout']}: test embeddings",
                         f"1st principal component, {100 * share[0]:.0f} % of the variance", f"2nd, {100 * share[1]:.0f} %")
    for i, (name, colour) in enumerate(zip(("original", *MANIPULATIONS), COLOURS)):
        filled = -1 if name == "original" or name in headline(config) else 1  # 1: only the outline, for the seen ones
        for v, point in zip(videos, points):
            if v["class"] == name:
                cv2.circle(canvas, place(*point), 4, colour, filled, cv2.LINE_AA)
        cv2.circle(canvas, (585, 60 + 24 * i), 5, colour, filled, cv2.LINE_AA)
        write_on(canvas, name + (" (held out)" if name == config["holdout"] else ""), 600, 65 + 24 * i)
    out.mkdir(parents=True, exist_ok=True)
    for name, picture in zip(PICTURES, (classes, mistakes, canvas)):
        save_picture(picture, out / name)
    return [out / name for name in PICTURES]


def crop_square_of(frame):
    left, top, side = crop_square(*frame.shape[:2], None)
    return frame[top:top + side, left:left + side]


def roc_picture(runs):
    """ROC curves of several runs (folders or results.json files) in one picture."""
    canvas, place = axes("ROC: originals + held-out manipulation", "false positive rate", "true positive rate")
    cv2.line(canvas, place(0, 0), place(1, 1), (200, 200, 200), 1, cv2.LINE_AA)
    for i, run in enumerate(runs):
        path = Path(run) / "results.json" if Path(run).is_dir() else Path(run)
        if not path.is_file():
            raise FileNotFoundError(f"--roc {run}: no results.json there")
        results = read_results(path)
        chosen = [v for v in results["videos"] if v["class"] in ("original", *headline(results["config"]))]
        x, y = roc([v["label"] for v in chosen], [v["score"] for v in chosen])
        colour = COLOURS[i % len(COLOURS)]
        cv2.polylines(canvas, [np.array([place(a, b) for a, b in zip(x, y)])], False, colour, 2, cv2.LINE_AA)
        config, top = results["config"], 60 + 38 * i
        toy = "TOY " if config["data"] == "toy" else ""
        write_on(canvas, f"{toy}{config['holdout']} seed {config['seed']}: {results['metrics']['auc']:.3f}", 575, top, colour)
        write_on(canvas, config["mode"], 575, top + 15, colour, 0.38)
    return canvas


# --- The command ------------------------------------------------------------------------------------------------------


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.error = lambda message: parser.exit(2, f"eval.py: {message} (python eval.py --help shows every flag)\n")
    flag = parser.add_argument
    flag("checkpoint", nargs="?", help="best.pt or last.pt in a folder that train.py wrote")
    flag("--data", help="the FF++ tree, or toy; default: the one trained on")
    flag("--compression", choices=("c0", "raw", "c23", "c40"), help="default: the one trained on")
    flag("--crop", help="only to make sure: refuses a checkpoint that was trained with another crop")
    flag("--video", nargs="+", metavar="FILE", help="score these videos of your own instead of FF++'s test split")
    flag("--real", metavar="DIR", help="with --fake: test on the videos below two folders of another dataset")
    flag("--fake", metavar="DIR", help="see --real")
    flag("--table", metavar="DIR", help="the paper's Tables 2 and 3 from all runs below this folder (needs no checkpoint)")
    flag("--roc", nargs="+", metavar="RUN", help="ROC curves of these runs in one picture, --out or roc.png (needs no "
                                                 "checkpoint)")
    flag("--pictures", action="store_true", help="also classes.png, mistakes.png and map.png, next to the checkpoint")
    flag("--json", action="store_true", help="with --video: print JSON for machines")
    flag("--clips", type=int, help="evenly spaced clips per video, whose probabilities are averaged (those of training; with "
                                   "--video 16, if those are fewer)")
    flag("--cache", metavar="DIR", help="train.py's cache of cropped frames, for the test split (off)")
    flag("--batch-size", type=int, default=16, help="clips at once (16)")
    flag("--workers", type=int, default=0, help="processes that read videos (0: the main one)")
    flag("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, mps")
    flag("--out", help="where to write; default: next to the checkpoint, results.json for best.pt, results_last.json for last.pt, "
                       "results..._other.json when --data, --compression or --clips differ from training, "
                       "results_folders.json with --real; with --video the folder video_scores")
    args = parser.parse_args(argv)
    if args.clips is not None and args.clips < 1 or args.batch_size < 1 or args.workers < 0:
        parser.error("--clips and --batch-size are at least 1, --workers at least 0")
    if sum(map(bool, (args.video, args.real, args.table, args.roc))) > 1:
        parser.error("--video, --real, --table and --roc exclude each other")
    if args.json and not args.video:
        parser.error("--json goes with --video")
    if args.pictures and (args.video or args.real or args.table or args.roc):
        parser.error("--pictures are those of FF++'s test split: without --video, --real, --table and --roc")
    if bool(args.real) != bool(args.fake):
        parser.error("--real and --fake go together")
    if not (args.checkpoint or args.table or args.roc):
        parser.error("expected a checkpoint, --table DIR or --roc RUN ...")
    try:
        complete = run(args)
    except (OSError, ValueError) as error:
        sys.exit(f"eval.py: {sentence(error)}")
    except (RuntimeError, MemoryError) as error:
        if not resources(error):
            raise
        sys.exit(f"eval.py: {resources(error)}")
    except KeyboardInterrupt:
        sys.exit("\neval.py: interrupted")
    sys.exit(0 if complete else 1)


def run(args):
    """True when every video could be scored."""
    if args.out:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    if args.table:
        text = table(args.table)
        print(text)
        if args.out:
            Path(args.out).write_text(text, encoding="utf-8")
        return True
    if args.roc:
        out = args.out or "roc.png"
        save_picture(roc_picture(args.roc), out)
        print(f"written: {out}")
        return True
    check_device(args.device)
    keep_freed_memory()
    encoder, classifier, config = load_checkpoint(args.checkpoint, args.device)
    if args.crop and args.crop != config["crop"]:
        raise ValueError(f"--crop {args.crop}: {args.checkpoint} was trained with --crop {config['crop']} and knows faces of "
                         "that size only")
    clips = args.clips or (max(16, config["clips"]) if args.video else config["clips"])
    folder = Path(args.checkpoint).parent
    if args.video:
        return score_files(encoder, classifier, config, args.video, clips, args.device, args.workers, args.batch_size,
                           Path(args.out or "video_scores"), args.json)
    if args.real:
        rows = [(path, "original", 0) for path in videos_in(args.real)] + [(path, "fake", 1) for path in videos_in(args.fake)]
        dataset = VideoList(rows, config, clips)
        videos, unreadable, _ = evaluate(encoder, classifier, dataset, args.device, args.batch_size, args.workers)
        for path in unreadable:
            print(f"eval.py: {path} cannot be read: not scored", file=sys.stderr)
        found = measure(videos, ["fake"], with_intervals=True)
        out = Path(args.out or folder / "results_folders.json")
        lines = [f"{len(videos)} videos of {args.real} and {args.fake}:"]
        for name, of in (("original", args.real), ("fake", args.fake)) if config["crop"] == "face" else ():
            faces = [dataset.faces[path] for path, its_class, _ in rows if its_class == name]
            lines.append(f"  a face was found in {sum(map(bool, faces))} of {len(faces)} videos of {of}")
        for name in ("accuracy", "accuracy_real", "accuracy_fake", "auc", "ap", "eer"):
            low, high = found["intervals"][name]
            lines.append(f"  {name:14} {found[name]:.3f}   95 % interval {low:.3f} to {high:.3f}")
        save_and_print({"checkpoint": args.checkpoint, "config": config, "real": args.real, "fake": args.fake,
                        "metrics": found, "videos": videos, "unreadable": unreadable}, out, "\n".join(lines))
    else:
        root = "toy_ffpp" if args.data == "toy" else args.data or config["data_root"]
        compression = args.compression or config["compression"]
        other = (Path(root), compression, clips) != (Path(config["data_root"]), config["compression"], config["clips"])
        data = config["data"] if not args.data else "toy" if args.data == "toy" or is_toy(root) else root
        config = {**config, "data_root": root, "data": data, "compression": compression, "cache": args.cache}
        # results.json is that of best.pt under the run's own protocol: tables compare like with like, all else goes beside it.
        stem = Path(args.checkpoint).stem
        name = f"results{'' if stem == 'best' else f'_{stem}'}{'_other' if other else ''}.json"
        out = Path(args.out or folder / name)
        kept = read_results(out) if out.is_file() and out.resolve() == (folder / name).resolve() else {}
        results, embeddings = test(encoder, classifier, config, clips, args.device, args.workers, args.batch_size,
                                   args.pictures)
        unreadable = results["unreadable"]
        kept = {name: kept[name] for name in ("epoch", "last") if name in kept}  # what only train.py knows
        save_and_print({"checkpoint": args.checkpoint, **results, **kept}, out, report(results, "test"))
        if args.pictures:
            print("pictures:", ", ".join(map(str, pictures(results, embeddings, folder))))
        for path in unreadable:
            print(f"eval.py: {path} cannot be read: not scored", file=sys.stderr)
    print(f"every video's score: {out}")
    return not unreadable


if __name__ == "__main__":
    main()
