# SPDX-License-Identifier: MIT
"""Test time: only the binary stream is used (section 2.1.1), and every video gets one score.

A video's score is its mean fake probability over evenly spaced clips; above 0.5 it counts as fake.
The test of a hold-out is the originals and held-out fakes of the test split, 280 videos of FF++;
the seen manipulations are reported separately.

    python eval.py runs/.../best.pt --pictures                     # the test again
    python eval.py runs/.../best.pt --video my.mp4                 # your own videos
    python eval.py runs/.../best.pt --real folder --fake folder    # another dataset
    python eval.py --table runs                                    # Tables 2 and 3
"""
import argparse
import contextlib
import csv
import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.data import ConcatDataset, DataLoader

from data import (FFPP, MANIPULATIONS, SPLITS, UnreadableVideo, crop_frame, evenly, find_faces,
                  is_video, list_videos, read_clips, read_video, replacing, square)
import cv2  # after data, which sets its log level
from heads import Classifier
from s3d import S3D, ConvBNReLU, FrameEncoder

FORMAT = 2  # of checkpoints and results; those of other versions are refused
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PICTURES = ("classes.png", "mistakes.png", "map.png", "roc.png")

# --- Metrics: labels (N,) 0 = original, 1 = manipulated; scores (N,) fake probabilities ---------
def roc(labels, scores):
    """False and true positive rates at each threshold, from (0, 0) to (1, 1)."""
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.append(np.diff(scores[order]) != 0, True)
    hits = np.cumsum(labels[order])[last_of_tie] / labels.sum()
    alarms = np.cumsum(1 - labels[order])[last_of_tie] / (1 - labels).sum()
    return np.append(0, alarms), np.append(0, hits)

def metrics(labels, scores):
    """Accuracy at 0.5 (all, real, fake), AUC, average precision and equal error rate, in [0, 1].
    Raises ValueError without originals or fakes, or for a score that is not finite."""
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=float)
    if not 0 < labels.sum() < len(labels) or not np.isfinite(scores).all():
        raise ValueError("metrics need originals, fakes and finite scores")
    alarms, hits = roc(labels, scores)
    true, false = hits[1:] * labels.sum(), alarms[1:] * (1 - labels).sum()
    right = (scores > 0.5) == labels
    values = dict(accuracy=right.mean(), accuracy_real=right[labels == 0].mean(),
                  accuracy_fake=right[labels == 1].mean(),
                  auc=np.sum(np.diff(alarms) * (hits[1:] + hits[:-1]) / 2),
                  ap=np.sum(np.diff(hits) * true / (true + false)),
                  eer=np.interp(0, alarms + hits - 1, alarms))
    return {name: float(value) for name, value in values.items()}

def intervals(labels, scores, draws=1000):
    """95 % intervals {metric: [low, high]}: Wilson's for accuracies, for the others the bootstrap
    over videos, with as many originals and fakes in each draw as there are."""
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=float)
    groups = [np.flatnonzero(labels == label) for label in (0, 1)]
    rng, drawn = np.random.default_rng(0), []
    for _ in range(draws):
        rows = np.concatenate([rng.choice(group, len(group)) for group in groups])
        drawn.append(metrics(labels[rows], scores[rows]))
    found, sizes = metrics(labels, scores), [len(labels), *map(len, groups)]
    shares = {name: wilson(found[name], n) for name, n in zip(list(found)[:3], sizes)}
    return shares | {name: np.percentile([each[name] for each in drawn], [2.5, 97.5]).tolist()
                     for name in ("auc", "ap", "eer")}

def wilson(share, n, z=1.96):
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return [max(0.0, middle - half), min(1.0, middle + half)]

def progress(text, last):
    """A line on stderr, at most every five seconds and at the end."""
    if last or time.time() > progress.next:
        progress.next = time.time() + 5
        print(text, file=sys.stderr, flush=True)
progress.next = 0

class Rows(ConcatDataset):
    """[dataset] as (clips, {"path", "class", "label"}) or (None, {"path", "reason"}) per video."""

    def __getitem__(self, index):
        dataset, = self.datasets
        path, name, _ = dataset.videos[index]
        try:
            clips, label, extra = dataset[index]  # FFPP's multi label, or the faces of OwnVideos
        except UnreadableVideo as error:
            return None, {"path": str(path), "reason": str(error)}
        row = {"path": str(path), "class": name, "label": label}
        return clips, row | {"faces": extra} if isinstance(extra, list) else row

def ignore_interrupt(_):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process

def make_loader(dataset, workers, **how):
    return DataLoader(dataset, num_workers=workers, persistent_workers=workers > 0,
                      pin_memory=torch.cuda.is_available(), worker_init_fn=ignore_interrupt, **how)

def video_loader(dataset, workers=0):
    """Batches of whole videos for evaluate, about 16 clips each."""
    return make_loader(Rows([dataset]), workers, collate_fn=list,
                       batch_size=max(1, 16 // dataset.clips))

@torch.no_grad()
def evaluate(encoder, classifier, loader, device="cpu", still=False):
    """Score the videos of a video_loader: (videos [{"path", "class", "label", "score", "clips"}],
    unreadable [path], embeddings [(dim,)]). Scores are fake probabilities, those of a video and its
    embedding are means over its clips.

    still: each video has a second score, "still", of its clips without motion: frame T // 2 of a
    clip, T times. It shows whether the detector needs frames that differ."""
    encoder.eval()
    classifier.eval()
    videos, unreadable, embeddings = [], [], []
    for batch in loader:
        readable = [(clips, row) for clips, row in batch if clips is not None]
        for row in [row for clips, row in batch if clips is None]:
            unreadable.append(row["path"])
            print(f"not scored: {row['reason']}", file=sys.stderr)
        if readable:
            clips = torch.cat([clips for clips, _ in readable])                  # (N, 3, T, H, W)
            number = len(clips)
            if still:
                middle = clips.shape[2] // 2
                frozen = clips[:, :, middle:middle + 1].expand_as(clips)
                clips = torch.cat([clips, frozen])                               # (2 N, 3, T, H, W)
            vectors = torch.cat([encoder(part.to(device)).float() for part in clips.split(16)])
            fake = classifier(vectors).softmax(dim=1)[:, 1].cpu()                # (N,)
            if not fake.isfinite().all():
                raise ValueError("a score is not finite: these weights have diverged")
            sizes = [len(clips) for clips, _ in readable]
            parts = zip(readable, fake[:number].split(sizes), vectors[:number].cpu().split(sizes))
            for (_, row), scores, vector in parts:
                videos.append(row | {"score": scores.mean().item(), "clips": scores.tolist()})
                embeddings.append(vector.mean(dim=0).numpy())
            if still:
                for row, scores in zip(videos[-len(readable):], fake[number:].split(sizes)):
                    row["still"] = scores.mean().item()
        done = len(videos) + len(unreadable)
        progress(f"scored {done}/{len(loader.dataset)} videos", last=done == len(loader.dataset))
    return videos, unreadable, embeddings

def tested_manipulations(config):
    """The manipulations of the test: the held-out one, or all if none is."""
    return list(MANIPULATIONS) if config["holdout"] == "none" else [config["holdout"]]

def measure(videos, fakes=("fake", *MANIPULATIONS), with_intervals=False):
    """The metrics of scored videos: originals and these fakes."""
    chosen = [v for v in videos if v["class"] in ("original", *fakes)]
    labels, scores = ([v[key] for v in chosen] for key in ("label", "score"))
    found = metrics(labels, scores)
    return found | {"intervals": intervals(labels, scores)} if with_intervals else found

def test(encoder, classifier, config, dataset, device="cpu", workers=0):
    """The test of what load_checkpoint returns: (the content of results.json, embeddings)."""
    loader = video_loader(dataset, workers)
    still = config["frames"] > 1
    videos, unreadable, embeddings = evaluate(encoder, classifier, loader, device, still)
    held_out = tested_manipulations(config)
    seen = {v["class"] for v in videos} - {"original", *held_out}
    names = ("data", "compression", "clips", "frames", "size", "crop")
    results = {"config": config, "protocol": {name: config[name] for name in names},
            "metrics": measure(videos, held_out, with_intervals=True),
            "seen": {name: measure(videos, [name]) for name in sorted(seen)},
            "videos": videos, "unreadable": unreadable}
    if still:
        tested = [v for v in videos if v["class"] in ("original", *held_out)]
        labels, scores = ([v[key] for v in tested] for key in ("label", "still"))
        results["still"] = metrics(labels, scores)
    return results, embeddings

def seen_mean(results, metric):
    """The mean over the seen manipulations."""
    return float(np.mean([found[metric] for found in results["seen"].values()]))

def report(results):
    """The results as a few lines of text."""
    config, classes = results["config"], [v["class"] for v in results["videos"]]
    toy = " [TOY: says nothing about real deepfakes]" if config["toy"] else ""
    reals, fakes = classes.count("original"), sum(map(classes.count, tested_manipulations(config)))
    title = f"test of {config['mode']}, {config['holdout']} held out{toy}"
    lines = [f"{title}: {reals} originals, {fakes} fakes", *metric_lines(results["metrics"])]
    lines += [f"  {name}, seen in training: accuracy {100 * found['accuracy']:.1f} %, AUC "
              f"{100 * found['auc']:.1f} %" for name, found in results["seen"].items()]
    if results["seen"]:
        means = [seen_mean(results, name) for name in ("accuracy", "auc")]
        gaps = [mean - results["metrics"][name] for mean, name in zip(means, ("accuracy", "auc"))]
        lines.append(f"  mean of the seen: accuracy {100 * means[0]:.1f} %, AUC {100 * means[1]:.1f} %; "
                     f"gap: accuracy {100 * gaps[0]:.1f}, AUC {100 * gaps[1]:.1f} points")
    if "still" in results:
        still = {name: 100 * value for name, value in results["still"].items()}
        lines.append(f"  without motion: accuracy {still['accuracy']:.1f} % (originals "
                     f"{still['accuracy_real']:.1f}, fakes {still['accuracy_fake']:.1f}), "
                     f"AUC {still['auc']:.1f} %")
    return "\n".join(lines + [f"  not scored: {path}" for path in results["unreadable"]])

def metric_lines(found):
    labels = "accuracy", "  on originals", "  on fakes", "AUC", "average precision", "EER"
    rows = zip(labels, found["intervals"].items())
    return [f"  {label:18}{100 * found[name]:6.1f} %   95 % interval {100 * low:.1f} to "
            f"{100 * high:.1f}" for label, (name, (low, high)) in rows]

def load(path):
    """A checkpoint, config.json or results.json of train.py. Raises ValueError."""
    with contextlib.suppress(Exception):  # a damaged file can raise anything
        if Path(path).suffix == ".json":
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
        config = content.get("config", content)
        if config["format"] == FORMAT and config.keys() >= {"mode", "holdout", "seed", "changed"}:
            return content
    raise ValueError(f"{path} is missing, damaged, or not of this version of train.py")

def load_checkpoint(path, device="cpu"):
    """(encoder, binary classifier, config) of a best.pt or last.pt for scoring: in eval mode, each
    BatchNorm folded into its convolution. Raises ValueError."""
    checkpoint = load(path)
    config = checkpoint["config"]
    encoder = (FrameEncoder if config["mode"] == "dfdc_winner" else S3D)(config["width"]).eval()
    classifier = Classifier(encoder.dim, 2).eval()
    encoder.load_state_dict(checkpoint["encoder"])
    classifier.load_state_dict(checkpoint["bin_classifier"])
    for block in encoder.modules():
        if isinstance(block, ConvBNReLU):
            block[0], block[1] = fuse_conv_bn_eval(block[0], block[1]), torch.nn.Identity()
    return encoder.to(device), classifier.to(device), config

def save(content, path):
    """Write a .pt, .png or JSON file, whole or not at all. Raises OSError."""
    with replacing(Path(path)) as temporary:
        if Path(path).suffix == ".pt":
            torch.save(content, temporary)
        elif Path(path).suffix == ".png":
            temporary.write_bytes(cv2.imencode(".png", content)[1].tobytes())
        else:
            temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")

def device(name):
    """An argparse type."""
    try:
        torch.zeros(1, device=name).item()
        return name
    except (RuntimeError, AssertionError, ImportError) as error:
        raise argparse.ArgumentTypeError(f"{name}: {str(error).splitlines()[0]}") from None

def sentence(error):
    """What an error says, without the traceback that a loader worker adds."""
    text = str(error).strip()
    return text.splitlines()[-1].partition(": ")[2] if "DataLoader worker" in text else text

def face_boxes(config, targets):
    """--crop as {target id: face (x, y, w, h) or None}: "face" finds them in the originals, "frame"
    needs none, else it is a JSON file. Raises FileNotFoundError (no dataset), ValueError."""
    crop = config["crop"]
    if crop == "frame":
        return {}
    if crop == "face":
        videos = list_videos(config["data"], config["compression"])["original"]
        videos = {target: videos[target] for target in targets if target in videos}
        return find_faces(videos, Path("runs", "faces.json"))
    with contextlib.suppress(Exception):
        boxes = json.loads(Path(crop).read_text(encoding="utf-8"))
        boxes = {target: box and tuple(map(round, box)) for target, box in boxes.items()}
        if all(len(t) == 3 and (not b or len(b) == 4 and min(b[2:]) > 0) for t, b in boxes.items()):
            return boxes
    raise ValueError(f'--crop {crop}: expected face, frame, or a JSON file of boxes in pixels like '
                     '{"000": [x, y, width, height], "001": null}')

def make_dataset(config, split):
    """FFPP with the settings of train.py."""
    return FFPP(config["data"], split, config["holdout"], config["compression"], config["frames"],
                config["size"], config["clips"], face_boxes(config, SPLITS[split]),
                config["augment"], config["cache"])

class OwnVideos(FFPP):
    """Any videos, (path, class, label) each. Items as in FFPP, but with the faces of the clips."""

    def __init__(self, videos, config, clips):
        self.videos, self.clips, self.config = videos, clips, config
        if config["crop"] not in ("face", "frame"):
            raise ValueError(f"{config['crop']} has no boxes for them: train with --crop face")

    def __getitem__(self, index):
        path, _, label = self.videos[index]
        frames, size, crop = (self.config[name] for name in ("frames", "size", "crop"))
        clips, faces = read_video(path, frames, size, self.clips, crop)
        return clips, label, faces

def videos_below(folder):
    """The video files below a folder. Raises FileNotFoundError; ValueError for one found twice."""
    found = {}
    for parent, _, names in os.walk(folder, followlinks=True):
        for path in sorted(Path(parent, name) for name in names):
            parts = path.resolve().parts
            key = tuple(part for part in parts if part not in ("c0", "raw", "c23", "c40"))
            if is_video(path) and "masks" not in path.relative_to(folder).parts:
                if found.setdefault(key, path) != path:
                    raise ValueError(f"{found[key]} and {path} are the same video")
    if not found:
        raise FileNotFoundError(f"{folder} has no video files; folders of images are not read: they"
                                " sample the frames, and a clip needs consecutive ones")
    print(f"{folder}: {len(found)} videos", file=sys.stderr)
    return sorted(found.values())

def score_others(args, encoder, classifier, config):
    """--video, or --real and --fake. True if every video was scored."""
    clips = args.clips or (max(16, config["clips"]) if args.video else config["clips"])
    videos = [(Path(path), "own", None) for path in args.video or ()]
    if args.real:
        videos += [(path, "original", 0) for path in videos_below(args.real)]
        videos += [(path, "fake", 1) for path in videos_below(args.fake)]
        if len({path.resolve() for path, _, _ in videos}) < len(videos):
            raise ValueError(f"--real {args.real} and --fake {args.fake} share videos")
    loader = video_loader(OwnVideos(videos, config, clips), args.workers)
    videos, unreadable, _ = evaluate(encoder, classifier, loader, args.device)
    found = {"videos": videos, "unreadable": unreadable}
    if args.real:
        found |= {"config": config, "metrics": measure(videos, with_intervals=True)}
        out = args.out or Path(args.checkpoint).with_name("results_folders.json")
        save(found, out)
        for name in ("original", "fake"):
            chosen = [v for v in videos if v["class"] == name]
            scored, total = (sum(len(v[key]) for v in chosen) for key in ("clips", "faces"))
            print(f"{name}: {len(chosen)} videos, {scored} of {total} clips scored")
        print(*metric_lines(found["metrics"]), f"every video's score: {out}", sep="\n")
        return not unreadable
    for number, video in enumerate(videos, 1):
        path = Path(args.out or "video_scores", f"{number}_{Path(video['path']).stem[:40]}.png")
        save(strip(video, config["frames"]), path)
        video |= {"spread": float(np.std(video["clips"])), "picture": str(path)}
        if not args.json:
            what = "face in" if config["crop"] == "face" else "scored"
            print(f"{video['path']}: fake score {video['score']:.3f}, spread {video['spread']:.3f},"
                  f" {what} {len(video['clips'])} of {clips} clips, {path}")
    note = f"A research model{', trained on a TOY' * config['toy']}: its score is not a verdict."
    print(json.dumps(found | {"note": note}, indent=1) if args.json else note)
    return not unreadable

PAPER = {  # accuracy in % with DF, F2F, FS, NT held out (Table 2); average as Table 3 prints it
    "baseline": ("Baseline (S3D)", 76.08, 66.08, 75.12, 69.18, 71.62),
    "bin_ce": ("Binary CE", 80.08, 73.44, 79.30, 75.78, 77.15),
    "bin_contrastive": ("Binary Contrastive", 84.77, 68.36, 82.42, 69.92, 76.17),
    "bin_ce_contrastive": ("Binary CE + Contrastive", 81.64, 66.02, 85.55, 70.31, 75.98),
    "bin_ce_multi_ce": ("Binary CE + Multi CE", 85.16, 68.75, 83.59, 73.44, 77.74),
    "bin_contrastive_multi_contrastive": ("Binary Contrastive + Multi Contrastive", 83.20, 58.98,
                                          80.08, 64.06, 71.58),
    "dfdc_winner": ("DFDC Winner", 85.71, 72.86, 51.07, 60.00, 67.41)}

def table(folder):
    """Tables 2 and 3 as Markdown, from every results.json below a folder; one per dataset, with a
    row for each case and each set of changed settings."""
    tables = {}
    for path in sorted(Path(folder).rglob("results.json")):
        results = load(path)
        config = results["config"]
        changed = ", ".join(f"{name} {value}" for name, value in sorted(config["changed"].items()))
        rows = tables.setdefault((config["toy"], Path(config["data"]).name), {})
        runs = rows.setdefault((list(PAPER).index(config["mode"]), changed), {})
        key = config["holdout"], config["seed"]
        if key in runs:
            raise ValueError(f"{runs[key]['path']} and {path} are the same run")
        with open(path.with_name("log.csv"), newline="") as file:
            cosines = [[float(value) for name, value in epoch.items()
                        if name.startswith("cosine_") and value] for epoch in csv.DictReader(file)]
        thirds = [sum((cosines[epoch] for epoch in part), [])
                  for part in np.array_split(range(len(cosines)), 3)]
        runs[key] = results["metrics"] | {"path": path, "cosines": thirds}
        if results.get("seen"):
            runs[key]["gap"] = seen_mean(results, "accuracy") - runs[key]["accuracy"]
        if "still" in results:
            runs[key]["still"] = results["still"]["auc"]
    if not tables:
        raise FileNotFoundError(f"--table {folder}: no results.json below this folder")
    return "\n\n".join(one_table(*data, rows) for data, rows in sorted(tables.items()))

def one_table(toy, data, rows):
    title = "TOY: says nothing about real deepfakes" if toy else f"FaceForensics++ ({data})"
    lines = [f"### {title}\n\nAccuracy in %, mean ± standard deviation (number of seeds)"
             f"{'' if toy else ' [the paper]'}; cosine in each third of the epochs\n",
             f"| Type of training | {' | '.join(MANIPULATIONS)} | average | AUC | gap | still AUC "
             "| cosine |", "|---" * 10 + "|"]
    for (row, changed), runs in sorted(rows.items()):
        label, *paper = list(PAPER.values())[row]
        groups = [[run for (holdout, _), run in runs.items() if holdout == name]
                  for name in MANIPULATIONS]
        cells = [f"{mean_and_deviation([100 * run['accuracy'] for run in group], '.1f')} "
                 f"({len(group)})" for group in groups]
        for name in ("accuracy", "auc", "gap", "still"):
            values = [[run[name] for run in group if name in run] for group in groups]
            means = [100 * np.mean(group) for group in values if group]
            cells.append(f"{np.mean(means):.1f}" if len(means) == 4 else "-")
        if not toy and not changed:
            cells[:5] = [f"{ours} [{theirs:.2f}]" for ours, theirs in zip(cells, paper)]
        thirds = [sum((run["cosines"][i] for run in runs.values()), []) for i in range(3)]
        cells.append(", ".join(mean_and_deviation(part, ".2f") for part in thirds if part) or "-")
        label += f" [{changed}]" if changed else ""
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)

def mean_and_deviation(values, digits=".3g"):
    values = [value for value in values if value is not None]
    spread = f" ± {np.std(values, ddof=1):{digits}}" if len(values) > 1 else ""
    return f"{np.mean(values):{digits}}{spread}" if values else "-"

COLOURS = {"original": (60, 60, 60), "DF": (40, 40, 220), "F2F": (30, 140, 240),
           "FS": (200, 90, 30), "NT": (60, 160, 40)}

def write_on(picture, text, x, y, colour=(0, 0, 0)):
    text = text.encode("ascii", "replace").decode()  # OpenCV's font has no other letters
    cv2.putText(picture, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.42, colour, 1, cv2.LINE_AA)

def sheet(rows):
    """{title: [(picture, caption), ...]} as one picture, a row each."""
    parts, columns = [], max(map(len, rows.values()))
    for title, tiles in rows.items():
        row = np.full((206, 162 * columns, 3), 255, np.uint8)
        write_on(row, title, 6, 18)
        for left, (picture, caption) in zip(range(6, 162 * columns, 162), tiles):
            write_on(row, caption, left, 44)
            row[50:200, left:left + 150] = cv2.resize(picture, (150, 150))
        parts.append(row)
    return np.concatenate(parts)

def chart(title, x_label, y_label, legend):
    """(an empty chart with a legend {text: colour}, the function that places (x, y) in 0..1)"""
    canvas = np.full((580, 760, 3), 255, np.uint8)
    cv2.rectangle(canvas, (60, 40), (560, 540), (120, 120, 120), 1)
    for text, y in ((title, 14), (y_label, 32), (x_label, 560)):
        write_on(canvas, text, 60, y)
    for row, (text, colour) in enumerate(legend.items()):
        write_on(canvas, text, 575, 60 + 24 * row, colour)
    return canvas, lambda x, y: (round(60 + 500 * x), round(540 - 500 * y))

def tile(video, caption, place=0.5):
    """The centre square of a frame of a scored video, for a sheet."""
    (frame,), = read_clips(Path(video["path"]), 1, [place])
    return crop_frame(frame, None, 150)[..., ::-1], caption

def pictures(results, embeddings, out):
    """classes.png (Figure 3), mistakes.png (Figure 4), map.png and roc.png of a test."""
    config, videos = results["config"], results["videos"]
    held_out = tested_manipulations(config)
    title = f"{'TOY: ' if config['toy'] else ''}{config['mode']}, {config['holdout']} held out: "
    target = Path(videos[0]["path"]).stem
    five = {v["class"]: v for v in videos if Path(v["path"]).stem.split("_")[0] == target}
    rows = {f"{title}one target at {100 * place:.0f} % of its video":
            [tile(video, name, place) for name, video in five.items()] for place in (0.25, 0.75)}
    save(sheet(rows), out / PICTURES[0])
    ranked = [videos[i] for i in np.argsort([v["score"] for v in videos])]
    rows = {"highest originals": [v for v in ranked[::-1] if v["label"] == 0][:5],
            "lowest held-out fakes": [v for v in ranked if v["class"] in held_out][:5]}
    rows = {title + name: [tile(v, f"{Path(v['path']).stem} {v['score']:.2f}") for v in row]
            for name, row in rows.items()}
    save(sheet(rows), out / PICTURES[1])

    centred = np.stack(embeddings) - np.mean(embeddings, axis=0)
    points = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
    points = (points - points.min(0)) / np.maximum(np.ptp(points, axis=0), 1e-9)
    legend = {f"{name}{' (held out)' * (name in held_out)}": c for name, c in COLOURS.items()}
    canvas, place = chart(f"{title}test embeddings", "1st principal component", "2nd", legend)
    for video, point in zip(videos, points):
        filled = -1 if video["class"] in ("original", *held_out) else 1
        cv2.circle(canvas, place(*point), 4, COLOURS[video["class"]], filled, cv2.LINE_AA)
    save(canvas, out / PICTURES[2])
    canvas, place = chart(f"{title}ROC", "false positive rate", "true positive rate", legend)
    for name in {v["class"] for v in videos} & MANIPULATIONS.keys():
        chosen = [v for v in videos if v["class"] in ("original", name)]
        labels, scores = (np.array([v[key] for v in chosen]) for key in ("label", "score"))
        curve = np.array([place(x, y) for x, y in zip(*roc(labels, scores))])
        cv2.polylines(canvas, [curve], False, COLOURS[name], 2, cv2.LINE_AA)
    save(canvas, out / PICTURES[3])

def strip(video, frames):
    """The middle frames of the clips, with their squares and scores."""
    places, scores, tiles = evenly(len(video["faces"])), iter(video["clips"]), []
    middles = read_clips(Path(video["path"]), frames, places, lambda clip: clip[frames // 2])
    for place, face, frame in zip(places, video["faces"], middles):
        score = "not scored"
        if not isinstance(face, str):
            left, top, side = square(*frame.shape[:2], face)
            frame, score = frame[top:top + side, left:left + side], f"{next(scores):.2f}"
        tiles.append((frame, f"{100 * place:.0f} %: {score}"))
    title = f"{Path(video['path']).name}: fake score {video['score']:.3f}, clip by clip"
    return sheet({title + " " * i: tiles[i:i + 8] for i in range(0, len(tiles), 8)})

def parse(argv=None):
    parser = argparse.ArgumentParser(usage="eval.py best.pt | --table [flags]", allow_abbrev=False)
    flag, what = parser.add_argument, parser.add_mutually_exclusive_group().add_argument
    flag("checkpoint", nargs="?", help="best.pt or last.pt of a run")
    what("--pictures", action="store_true", help="classes, mistakes, map and ROC curves as PNG")
    what("--video", nargs="+", metavar="FILE", help="score videos of your own instead")
    what("--real", metavar="DIR", help="with --fake: test on the videos below two folders")
    what("--table", metavar="DIR", help="Tables 2 and 3 of all runs below a folder")
    flag("--fake", metavar="DIR", help="see --real")
    flag("--json", action="store_true", help="with --video: print JSON")
    flag("--data", help="another copy of FF++ (default: the one of the training)")
    flag("--compression", choices=("c0", "raw", "c23", "c40"), help="default: that of the training")
    flag("--clips", type=int, help="per video (default: as in training, for --video at least 16)")
    flag("--cache", metavar="DIR", help="train.py's cache of cropped frames")
    flag("--workers", type=int, default=0, help="processes that read videos (default: 0)")
    flag("--device", type=device, default=DEVICE, help="cpu, cuda, mps")
    flag("--out", help="where the scores go: a JSON file, or with --video a folder")
    args = parser.parse_args(argv)
    if args.clips is not None and args.clips < 1:
        parser.error(f"--clips {args.clips}: at least 1")
    if bool(args.checkpoint) == bool(args.table):
        parser.error("expected either a checkpoint or --table DIR")
    if bool(args.real) != bool(args.fake) or args.json and not args.video:
        parser.error("--real goes with --fake, --json with --video")
    if args.video and any(Path(path).is_dir() for path in args.video):
        parser.error("--video takes files: for folders there are --real DIR --fake DIR")
    return args

def run(args):
    """True if every video was scored."""
    if args.table:
        print(table(args.table))
        return True
    encoder, classifier, config = load_checkpoint(args.checkpoint, args.device)
    if args.video or args.real:
        return score_others(args, encoder, classifier, config)
    given = {name: getattr(args, name) for name in ("data", "compression", "clips", "cache")}
    config |= {name: value for name, value in given.items() if value}
    dataset = make_dataset(config, "test")
    results, embeddings = test(encoder, classifier, config, dataset, args.device, args.workers)
    path = Path(args.checkpoint)
    out = args.out or path.with_name(f"results_{path.stem}.json")
    save(results, out)
    print(report(results), f"every video's score: {out}", sep="\n")
    if args.pictures:
        pictures(results, embeddings, path.parent)
        print("pictures:", *(path.with_name(name) for name in PICTURES))
    return not results["unreadable"]

def main(argv=None):
    args = parse(argv)
    try:
        sys.exit(0 if run(args) else 1)
    except (OSError, ValueError) as error:
        sys.exit(f"eval.py: {sentence(error)}")
    except KeyboardInterrupt:
        sys.exit("eval.py: interrupted")

if __name__ == "__main__":
    main()
