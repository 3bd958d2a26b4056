# SPDX-License-Identifier: MIT
"""Test time: only the binary stream is left (section 2.1.1), and every video gets one score.

A video's score is the mean fake probability over `--clips` evenly spaced clips. The test set of a hold-out is
the originals and the held-out manipulation, 280 videos of the real FF++; all are scored, none is dropped.

    python eval.py runs/bin_contrastive_DF_seed0/best.pt

prints the paper's accuracy at 0.5 with the accuracy on originals and on fakes, AUC, average precision and
equal error rate, each with a 95 % bootstrap interval, and beside them the seen manipulations one by one.
results.json, next to the checkpoint, keeps the settings and every video's score.
"""
import argparse
import json
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from data import FFPP, MANIPULATIONS
from heads import Classifier
from s3d import S3D

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
    """All of them as a dictionary. Raises ValueError when there are not both originals and fakes."""
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=float)
    if not (0 < labels.sum() < len(labels)):
        raise ValueError(f"metrics need originals and fakes, got {int((labels == 0).sum())} and {int(labels.sum())}")
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


@torch.no_grad()
def evaluate(encoder, classifier, dataset, device="cpu", batch_size=16, workers=0):
    """One row per video of an FFPP of val or test clips:
    {"path", "class", "label", "score": mean fake probability in 0..1, "clips": [one probability per clip]}."""
    was_training = encoder.training, classifier.training
    encoder.eval(), classifier.eval()
    clips = [[] for _ in dataset.videos]
    for clip, _, _, video in DataLoader(dataset, batch_size, num_workers=workers, pin_memory=torch.device(device).type == "cuda"):
        fake = classifier(encoder(clip.to(device, non_blocking=True))).softmax(dim=1)[:, 1]  # (B,)
        for v, p in zip(video.tolist(), fake.tolist()):
            clips[v].append(p)
    encoder.train(was_training[0]), classifier.train(was_training[1])
    return [{"path": str(path), "class": name, "label": label, "score": float(np.mean(c)), "clips": c}
            for (path, name, _), label, c in zip(dataset.videos, dataset.binary, clips)]


def test(encoder, classifier, config, clips, device="cpu", workers=0, batch_size=16):
    """The paper's protocol for one hold-out: the content of results.json, without the checkpoint's name."""
    protocol = {"clips": clips, **{name: config[name] for name in ("frames", "size", "crop")}}
    dataset = FFPP(config["data_root"], "test", config["holdout"], config["compression"], config["frames"], config["size"],
                   clips, config["crop"], classes=["original", *MANIPULATIONS])
    videos = evaluate(encoder, classifier, dataset, device, batch_size, workers)
    column = lambda name, classes: [v[name] for v in videos if v["class"] in classes]
    pair = lambda *fakes: (column("label", ("original", *fakes)), column("score", ("original", *fakes)))
    heldout = list(MANIPULATIONS) if config["holdout"] == "none" else [config["holdout"]]
    seen = [name for name in MANIPULATIONS if name != config["holdout"]]
    return {"config": config, "protocol": protocol,
            "metrics": {**metrics(*pair(*heldout)), "intervals": intervals(*pair(*heldout))},
            "seen": {name: metrics(*pair(name)) for name in seen}, "videos": videos, "unreadable": []}


def load_checkpoint(path, device="cpu"):
    """(encoder, binary classifier, config) of a checkpoint of train.py. Raises ValueError, FileNotFoundError."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: expected a best.pt or last.pt that train.py wrote")
    try:
        checkpoint = torch.load(path, map_location=device, weights_only=True)
        config = checkpoint["config"]
        encoder, classifier = S3D(config["width"]), Classifier(S3D(config["width"]).dim, 2)
        encoder.load_state_dict(checkpoint["encoder"])
        classifier.load_state_dict(checkpoint["bin_classifier"])
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no checkpoint of train.py: {str(error).splitlines()[0]}") from None
    return encoder.to(device), classifier.to(device), config


def report(results, title):
    """The result as a few lines of text; a toy is called a toy."""
    config, found = results["config"], results["metrics"]
    counts = [sum(v["class"] == name for v in results["videos"]) for name in ("original", *MANIPULATIONS)]
    fakes = dict(zip(MANIPULATIONS, counts[1:]))
    unseen = list(MANIPULATIONS) if config["holdout"] == "none" else [config["holdout"]]
    what = "all four, none held out" if config["holdout"] == "none" else f"{config['holdout']}, never seen in training"
    toy = "  [TOY data: says nothing about real deepfakes]" if config["data"] == "toy" else ""
    lines = [f"{title}: {config['mode']} on {what}{toy}",
             f"  {counts[0]} originals + {sum(fakes[n] for n in unseen)} fakes; chance: accuracy 50 % at its best guess, AUC 0.50"
             if config["holdout"] != "none" else f"  {counts[0]} originals + {sum(counts[1:])} fakes; chance: AUC 0.50"]
    for name, label in (("accuracy", "accuracy"), ("accuracy_real", "  on originals"), ("accuracy_fake", "  on fakes"),
                        ("auc", "AUC"), ("ap", "average precision"), ("eer", "equal error rate")):
        low, high = found["intervals"][name]
        shown = (lambda x: f"{x:.3f}") if name in ("auc", "ap") else (lambda x: f"{100 * x:.1f} %")
        lines.append(f"  {label:20}{shown(found[name]):>8}   95 % interval {shown(low)} to {shown(high)}")
    if config["holdout"] != "none":
        lines.append("  seen in training:   " + ",  ".join(
            f"{name} accuracy {100 * m['accuracy']:.1f} %, AUC {m['auc']:.3f}" for name, m in results["seen"].items()))
    return "\n".join(lines)


def save_json(content, path):
    """Written beside and renamed: a reader never meets half a file."""
    temporary = Path(path).with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1))
    temporary.replace(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.error = lambda message: parser.exit(2, f"eval.py: {message} (python eval.py --help shows every flag)\n")
    parser.add_argument("checkpoint", help="best.pt or last.pt in a folder that train.py wrote")
    parser.add_argument("--data", help="the FF++ tree; default: the one trained on")
    parser.add_argument("--compression", choices=("c0", "c23", "c40"), help="default: the one trained on")
    parser.add_argument("--clips", type=int, default=4, help="evenly spaced clips per video, whose probabilities are averaged (4)")
    parser.add_argument("--batch-size", type=int, default=16, help="clips at once (16)")
    parser.add_argument("--workers", type=int, default=0, help="processes that read videos (0: the main one)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, mps")
    parser.add_argument("--out", help="default: results.json next to the checkpoint")
    args = parser.parse_args()
    if args.clips < 1:
        parser.error(f"--clips {args.clips}: at least one clip per video")
    try:
        encoder, classifier, config = load_checkpoint(args.checkpoint, args.device)
        config = {**config, "data_root": args.data or config["data_root"], "compression": args.compression or config["compression"]}
        results = test(encoder, classifier, config, args.clips, args.device, args.workers, args.batch_size)
    except (OSError, ValueError) as error:
        sys.exit(f"eval.py: {error}")
    out = Path(args.out or Path(args.checkpoint).parent / "results.json")
    save_json({"checkpoint": args.checkpoint, **results}, out)
    print(report(results, "test"))
    print(f"every video's score: {out}")


if __name__ == "__main__":
    main()
