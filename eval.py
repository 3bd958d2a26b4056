# SPDX-License-Identifier: MIT
"""Test time: only the binary stream is used (section 2.1.1), and every video gets one score.

A video's score is its mean fake probability over evenly spaced clips; above 0.5 it counts as fake.
The test of a hold-out is the originals and held-out fakes of the test split, 280 videos of FF++;
the seen manipulations are reported separately.

    python eval.py runs/.../best.pt --pictures                     # the test again
    python eval.py runs/.../best.pt --video my.mp4                 # your own videos
    python eval.py runs/.../best.pt --real folder --fake folder    # another dataset
    python eval.py --table runs/toy                                # Tables 2 and 3
"""

import argparse
import csv
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from torchvision.utils import save_image

from data import (
    COMPRESSIONS,
    MANIPULATIONS,
    NO_IMAGES,
    OwnVideos,
    is_video,
    make_dataset,
    one_sentence,
    progress,
    replacing,
    video_loader,
    without_motion,
)
from heads import Classifier
from s3d import S3D, FrameEncoder

import cv2  # isort: skip  # after data, which sets its log level

FORMAT = 4  # of checkpoints and results; those of other versions are refused
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LABELS = {
    "accuracy": "accuracy",
    "accuracy_real": "  on originals",
    "accuracy_fake": "  on fakes",
    "auc": "AUC",
    "ap": "average precision",
    "eer": "EER",
}
LEARNED = 0.8  # a best validation AUC below it: the run has hardly learned
OWN_CLIPS = 16  # of a video of your own
CLIPS_AT_ONCE = 32  # in one forward pass
PAPER = {  # accuracy in % with DF, F2F, FS, NT held out (Table 2); average as Table 3 prints it
    "baseline": ("Baseline (S3D)", 76.08, 66.08, 75.12, 69.18, 71.62),
    "bin_ce": ("Binary CE", 80.08, 73.44, 79.30, 75.78, 77.15),
    "bin_contrastive": ("Binary Contrastive", 84.77, 68.36, 82.42, 69.92, 76.17),
    "bin_ce_contrastive": ("Binary CE + Contrastive", 81.64, 66.02, 85.55, 70.31, 75.98),
    "bin_ce_multi_ce": ("Binary CE + Multi CE", 85.16, 68.75, 83.59, 73.44, 77.74),
    "bin_contrastive_multi_contrastive": (
        "Binary Contrastive + Multi Contrastive",
        83.20,
        58.98,
        80.08,
        64.06,
        71.58,
    ),
    "dfdc_winner": ("DFDC Winner", 85.71, 72.86, 51.07, 60.00, 67.41),
}
# A mode decides these settings: --table compares them between runs of one mode. It compares all
# others, except MAY_DIFFER, between all runs.
MODE_SETTINGS = "init bin_ce bin_contrast multi_ce multi_contrast frames size clips still".split()
MAY_DIFFER = "mode holdout seed place".split()
TABLE_NOTE = """
Accuracy in %, mean ± standard deviation (number of seeds) [the paper's]. Then the means over the
hold-outs: accuracy, AUC, gap (points of accuracy from the seen manipulations to the held-out one),
AUC on clips without motion (still) for held-out and seen fakes. Runs whose best validation AUC
stayed below 80 % (not learned). Cosine of two losses' gradients, second half of the epochs.
--init, --frames, --size and --clips may differ between rows.
"""
TILE = 150  # pixels of a picture in a sheet


# --- Metrics: labels (N,) 0 = original, 1 = manipulated; scores (N,) fake probabilities ----------


def metrics(labels, scores):
    """Accuracy at 0.5 (all, real, fake), AUC, average precision and equal error rate, in [0, 1].
    Raises ValueError without originals or fakes, or for a score that is not finite."""
    labels = np.asarray(labels)
    scores = np.asarray(scores, dtype=float)
    if not 0 < labels.sum() < len(labels) or not np.isfinite(scores).all():
        raise ValueError("metrics need originals, fakes and finite scores")

    # Lower the threshold step by step: how many fakes and originals lie above it? Ties at once.
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.append(np.diff(scores[order]) != 0, True)
    true_positives = np.cumsum(labels[order])[last_of_tie]
    false_positives = np.cumsum(1 - labels[order])[last_of_tie]
    precision = true_positives / (true_positives + false_positives)
    true_rates = np.append(0, true_positives / labels.sum())
    false_rates = np.append(0, false_positives / (1 - labels).sum())

    right = (scores > 0.5) == labels
    values = {
        "accuracy": right.mean(),
        "accuracy_real": right[labels == 0].mean(),
        "accuracy_fake": right[labels == 1].mean(),
        "auc": np.sum(np.diff(false_rates) * (true_rates[1:] + true_rates[:-1]) / 2),
        "ap": np.sum(np.diff(true_rates) * precision),
        "eer": np.interp(0, false_rates + true_rates - 1, false_rates),
    }
    return {name: float(value) for name, value in values.items()}


def wilson(share, n, z=1.96):
    """Wilson's 95 % interval of a share of n."""
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return [max(0.0, middle - half), min(1.0, middle + half)]


def intervals(labels, scores, draws=1000):
    """95 % intervals {metric: [low, high]}: Wilson's for the accuracies; for AUC the bootstrap over
    videos, with as many originals and fakes in each draw as there are."""
    labels = np.asarray(labels)
    scores = np.asarray(scores, dtype=float)
    originals = np.flatnonzero(labels == 0)
    fakes = np.flatnonzero(labels == 1)
    measured = metrics(labels, scores)

    rng = np.random.default_rng(0)
    aucs = []
    for _ in range(draws):
        drawn = np.append(rng.choice(originals, len(originals)), rng.choice(fakes, len(fakes)))
        aucs.append(metrics(labels[drawn], scores[drawn])["auc"])
    return {
        "accuracy": wilson(measured["accuracy"], len(labels)),
        "accuracy_real": wilson(measured["accuracy_real"], len(originals)),
        "accuracy_fake": wilson(measured["accuracy_fake"], len(fakes)),
        "auc": np.percentile(aucs, [2.5, 97.5]).tolist(),
    }


# --- Scores --------------------------------------------------------------------------------------


@torch.no_grad()
def evaluate(encoder, classifier, loader, device="cpu", still=False):
    """Score the videos of data.video_loader.

    Returns (videos, unreadable): [{"path", "class", "label", "score", "clips"}] with fake
    probabilities, "score" the mean of "clips", and [{"path", "reason"}].

    still: each video has a second score, "still", of its clips without motion. If it is much worse,
    the detector needs frames that differ. That does not show that it reads motion: any change might
    do, and a still clip is unlike any in training.
    """
    encoder.eval()
    classifier.eval()
    dataset = loader.dataset.dataset  # FFPP or OwnVideos, inside WholeVideos
    videos = []
    unreadable = []
    for batch, (clips, reasons) in enumerate(loader, 1):  # clips (V, N, 3, T, H, W)
        flat = clips.flatten(0, 1)
        if still:
            flat = torch.cat([flat, without_motion(flat)])
        chunks = [encoder(chunk.to(device)).float() for chunk in flat.split(CLIPS_AT_ONCE)]
        scores = classifier(torch.cat(chunks)).softmax(dim=1)[:, 1].cpu()
        if not scores.isfinite().all():
            raise ValueError("a score is not finite: these weights have diverged")
        scores = scores.unflatten(0, (-1, clips.shape[1]))  # (V, N), or (2 V, N) with still ones

        for row, reason in enumerate(reasons):
            index = len(videos) + len(unreadable)
            path, name, _ = dataset.videos[index]
            if reason:
                print(f"not scored: {reason}", file=sys.stderr)
                unreadable.append({"path": str(path), "reason": reason})
                continue
            video = {
                "path": str(path),
                "class": name,
                "label": dataset.binary[index],
                "score": scores[row].mean().item(),
                "clips": scores[row].tolist(),
            }
            if still:
                video["still"] = scores[len(reasons) + row].mean().item()
            if clips.shape[1] < dataset.shape[0] / 2:
                video["doubt"] = "(don't trust)"
            videos.append(video)

        progress("scored, batches of videos", batch, len(loader))
    return videos, unreadable


def tested_fakes(config):
    """The classes of the test: the held-out manipulation, or all if none is; "fake" of --fake."""
    if config["holdout"] == "none":
        return ["fake", *MANIPULATIONS]
    return ["fake", config["holdout"]]


def of_classes(videos, fakes):
    """The originals and these fakes."""
    return [video for video in videos if video["class"] in ("original", *fakes)]


def measure(videos, score="score"):
    """The metrics of scored videos."""
    return metrics([video["label"] for video in videos], [video[score] for video in videos])


def test(encoder, classifier, config, dataset, device, workers):
    """Test the networks of load_checkpoint; returns the content of results.json. It has no metrics
    if no originals, or no fakes to be tested, could be scored."""
    loader = video_loader(dataset, workers)
    still = config["frames"] > 1 and not config["still"]
    videos, unreadable = evaluate(encoder, classifier, loader, device, still)
    results = {"config": config, "videos": videos, "unreadable": unreadable, "seen": {}}

    fakes = tested_fakes(config)
    tested = of_classes(videos, fakes)
    labels = [video["label"] for video in tested]
    if set(labels) == {0, 1}:
        results["metrics"] = measure(tested)
        results["metrics"]["intervals"] = intervals(labels, [video["score"] for video in tested])
        if still:
            results["still"] = measure(tested, "still")
        seen = sorted({video["class"] for video in videos} - {"original", *fakes})
        for name in seen:
            results["seen"][name] = measure(of_classes(videos, [name]))
        if still and seen:
            aucs = [measure(of_classes(videos, [name]), "still")["auc"] for name in seen]
            results["still_seen"] = np.mean(aucs).item()
    return results


def seen_mean(results, metric):
    """The mean over the seen manipulations."""
    return np.mean([measured[metric] for measured in results["seen"].values()])


def report(results):
    """The results as a few lines of text. Raises ValueError if they have no metrics."""
    if "metrics" not in results:
        raise ValueError("no originals, or no fakes, could be scored")
    config = results["config"]
    measured = results["metrics"]
    tested = of_classes(results["videos"], tested_fakes(config))
    fakes = sum(video["label"] for video in tested)
    toy = " [TOY: says nothing about real deepfakes]" if config["toy"] else ""
    lines = [
        f"test of {config['mode']}, {config['holdout']} held out{toy}: "
        f"{len(tested) - fakes} originals, {fakes} fakes"
    ]

    for name, label in LABELS.items():
        line = f"  {label:18}{100 * measured[name]:6.1f} %"
        if name in measured["intervals"]:
            low, high = measured["intervals"][name]
            line += f"   95 % interval {100 * low:.1f} to {100 * high:.1f}"
        lines.append(line)

    def add(label, accuracy, auc, unit="%"):
        lines.append(f"  {label:18}{100 * accuracy:6.1f} {unit}, AUC {100 * auc:.1f} {unit}")

    for name, seen in results["seen"].items():
        add(f"{name}, seen", seen["accuracy"], seen["auc"])
    if results["seen"]:
        accuracy = seen_mean(results, "accuracy")
        auc = seen_mean(results, "auc")
        add("mean of the seen", accuracy, auc)
        # A positive gap: worse on the held-out manipulation.
        add("gap to held-out", accuracy - measured["accuracy"], auc - measured["auc"], "points")
    if "still" in results:
        line = f"  {'without motion':18}AUC {100 * results['still']['auc']:.1f} % held-out"
        if "still_seen" in results:
            line += f", {100 * results['still_seen']:.1f} % mean of the seen"
        lines.append(line)
    if results.get("val_auc", 1) < LEARNED:
        lines.append(
            f"best validation AUC {100 * results['val_auc']:.1f} %: this run has hardly learned"
        )
    return "\n".join(lines)


# --- Files ---------------------------------------------------------------------------------------


def load(path):
    """A checkpoint or results.json of train.py. Raises ValueError."""
    path = Path(path)
    try:
        if path.suffix == ".json":
            content = json.loads(path.read_text())
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
        if content["config"]["format"] == FORMAT:
            return content
    except Exception:  # a damaged file can raise anything
        pass
    raise ValueError(f"{path} is missing, damaged, or not of this version of train.py")


def load_checkpoint(path, device="cpu"):
    """(encoder, binary classifier, config) of a best.pt or last.pt, in eval mode. Raises
    ValueError."""
    checkpoint = load(path)
    if "encoder" not in checkpoint:
        raise ValueError(f"{path} is not a checkpoint: expected best.pt or last.pt of a run")
    config = checkpoint["config"]
    network = FrameEncoder if config["mode"] == "dfdc_winner" else S3D
    encoder = network(config["width"]).eval()
    encoder.load_state_dict(checkpoint["encoder"])
    classifier = Classifier(encoder.dim, 2).eval()
    classifier.load_state_dict(checkpoint["bin_classifier"])

    return encoder.to(device), classifier.to(device), config


def save(content, path):
    """Write a .pt or .json file, whole or not at all. Raises OSError."""
    path = Path(path)
    with replacing(path) as temporary:
        if path.suffix == ".json":
            temporary.write_text(json.dumps(content, indent=1))
            return
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # a full disk
            raise OSError(str(error).splitlines()[0]) from None


# --- Pictures ------------------------------------------------------------------------------------


def tile(clip, caption):
    """The middle frame of a clip (3, T, H, W) above a caption: (3, H, W) in [0, 1]."""
    frame = clip[:, clip.shape[1] // 2].permute(1, 2, 0).numpy()
    picture = np.full((TILE + 22, TILE, 3), 255, np.uint8)
    picture[:TILE] = cv2.resize(frame, (TILE, TILE))
    cv2.putText(picture, caption, (2, TILE + 15), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0))
    return torch.from_numpy(picture).permute(2, 0, 1) / 255


def save_pictures(videos, dataset, path):
    """A row for each video: its clips, as the network saw them, with their scores."""
    paths = [str(path) for path, _, _ in dataset.videos]
    columns = dataset.shape[0]
    blank = torch.ones(3, TILE + 22, TILE)
    tiles = []
    for video in videos:
        clips = dataset[paths.index(video["path"])][0]
        name = f"{video['class']} {video.get('doubt', '')} {Path(video['path']).stem}"
        tiles += [tile(clip, f"{score:.2f} {name}") for clip, score in zip(clips, video["clips"])]
        tiles += [blank] * (columns - len(clips))  # for those that were left out
    with replacing(path) as temporary:
        save_image(tiles, temporary, format="png", nrow=columns, padding=6, pad_value=1)


def worst_mistakes(results):
    """The paper's Figure 4: the ten tested videos whose scores are furthest from their labels, the
    worst first."""
    videos = of_classes(results["videos"], tested_fakes(results["config"]))
    videos.sort(key=lambda video: -abs(video["score"] - video["label"]))
    return videos[:10]


# --- Your own videos, other datasets -------------------------------------------------------------


def add_videos(videos, folders, name, label):
    """Add the video files below some folders as {key: (path, class, label)}. Raises ValueError for
    one found twice, also in another compression; FileNotFoundError."""
    for folder in folders:
        before = len(videos)
        for parent, _, files in os.walk(folder, followlinks=True):
            for path in [Path(parent, file) for file in sorted(files)]:
                if is_video(path) and "masks" not in path.relative_to(folder).parts:
                    parts = path.resolve().parts
                    key = tuple("*" if part in COMPRESSIONS else part for part in parts)
                    if key in videos:
                        raise ValueError(f"{videos[key][0]} and {path} are the same video")
                    videos[key] = (path, name, label)
        if len(videos) == before:
            raise FileNotFoundError(f"{folder} has no video files; {NO_IMAGES}")


def own_videos(args):
    """[(path, class, label)] of --video, or of --real and --fake."""
    if args.video:
        return [(Path(path), "own", None) for path in args.video]
    videos = {}
    add_videos(videos, args.real, "original", 0)
    add_videos(videos, args.fake, "fake", 1)
    return list(videos.values())


def show_own_videos(results, clips):
    """--video: a line for each scored video."""
    for video in results["videos"]:
        count = f"{len(video['clips'])} of {clips} clips {video.get('doubt', '')}"
        print(f"{video['path']}: fake score {video['score']:.3f}, {count}")
    toy = ", trained on a TOY" if results["config"]["toy"] else ""
    print(
        f"A research model{toy}: its score is not a verdict, least of all if few clips show a face"
    )


# --- Tables 2 and 3 ------------------------------------------------------------------------------


def mean_and_deviation(values, digits=".3g", none="-"):
    """As text, or `none`; values that are None are left out."""
    values = [value for value in values if value is not None]
    if not values:
        return none
    if len(values) == 1:
        return f"{values[0]:{digits}}"
    return f"{np.mean(values):{digits}} ± {np.std(values, ddof=1):{digits}}"


def read_run(path):
    """What the table needs of a results.json. Raises ValueError, also if it is damaged."""
    results = load(path)
    try:
        run = {"path": path, "config": results["config"]}
        run["accuracy"] = 100 * results["metrics"]["accuracy"]
        run["auc"] = 100 * results["metrics"]["auc"]
        run["config"]["videos scored"] = len(results["videos"])  # compared like a setting
        if results["seen"]:
            run["gap"] = 100 * seen_mean(results, "accuracy") - run["accuracy"]
        if "still" in results:
            run["still"] = 100 * results["still"]["auc"]
        if "still_seen" in results:
            run["still_seen"] = 100 * results["still_seen"]
        run["val_auc"] = results["val_auc"]

        # The cosines of two losses' gradients in the second half of the epochs.
        run["cosines"] = []
        with open(path.with_name("log.csv"), newline="") as file:
            epochs = list(csv.DictReader(file))
        for epoch in epochs[len(epochs) // 2 :]:
            names = [name for name in epoch if name.startswith("cosine_") and epoch[name]]
            run["cosines"] += [float(epoch[name]) for name in names]
    except Exception as error:
        raise ValueError(f"{path} is damaged: {error!r}") from None
    return run


def refuse_different_runs(runs):
    """Raises ValueError unless the runs differ in nothing but MAY_DIFFER and what a mode sets."""
    first_of_mode = {}
    known = {}
    for run in runs:
        config = run["config"]
        if not config["case"]:
            raise ValueError(f"{run['path']}: a loss was set by hand, so this is none of the cases")
        twin = known.setdefault((row_of(run), config["holdout"], config["seed"]), run)
        if twin is not run:
            raise ValueError(f"{twin['path']} and {run['path']} are the same run")

        same_mode = first_of_mode.setdefault(row_of(run), run)
        for name in config.keys() - MAY_DIFFER:
            other = same_mode if name in MODE_SETTINGS else runs[0]
            if config[name] != other["config"].get(name):
                difference = f"{name} {other['config'].get(name)}, not {config[name]}"
                raise ValueError(f"{other['path']} does not fit {run['path']}: it has {difference}")


def row_of(run):
    """A row of the table: the mode, with or without motion."""
    return run["config"]["mode"] + ("_still" if run["config"]["still"] else "")


def by_holdout(runs, name):
    """[[run's value, ...] with DF held out, with F2F, FS, NT]; runs without one are left out."""
    return [
        [run[name] for run in runs if run["config"]["holdout"] == holdout and name in run]
        for holdout in MANIPULATIONS
    ]


def mean_of_means(groups):
    """Of the hold-outs; "-" if one has no run."""
    return f"{np.mean([np.mean(group) for group in groups]):.1f}" if all(groups) else "-"


def table(folder):
    """Tables 2 and 3 from folder/*/results.json: (Markdown, the reasons why runs are left out).
    Raises FileNotFoundError without any; ValueError if the runs cannot be compared."""
    runs = []
    left_out = []
    for path in sorted(Path(folder).glob("*/results.json")):
        try:
            runs.append(read_run(path))
        except ValueError as error:
            left_out.append(str(error))
    if not runs:
        raise FileNotFoundError(f"--table {folder}: no */results.json of this version in it")
    refuse_different_runs(runs)

    toy = runs[0]["config"]["toy"]
    means = "auc gap still still_seen".split()
    titles = [*MANIPULATIONS, "average", "AUC", "gap", "still", "still, seen", "cosine"]
    titles.append("not learned")
    lines = [
        "### TOY: says nothing about real deepfakes" if toy else "### FaceForensics++",
        TABLE_NOTE,
        f"| Type of training | {' | '.join(titles)} |",
        "|---" * 12 + "|",
    ]
    rows = dict(PAPER)
    rows.update({f"{mode}_still": (f"{row[0]}, still", *row[1:]) for mode, row in PAPER.items()})
    for mode, (title, *paper) in rows.items():
        of_mode = [run for run in runs if row_of(run) == mode]
        if not of_mode:
            continue
        groups = by_holdout(of_mode, "accuracy")
        cells = [f"{mean_and_deviation(group, '.1f')} ({len(group)})" for group in groups]
        cells.append(mean_of_means(groups))
        if not toy:
            cells = [f"{ours} [{theirs:.2f}]" for ours, theirs in zip(cells, paper)]
        cells += [mean_of_means(by_holdout(of_mode, name)) for name in means]
        cosines = [cosine for run in of_mode for cosine in run["cosines"]]
        cells.append(mean_and_deviation(cosines, ".2f"))
        cells.append(f"{sum(run['val_auc'] < LEARNED for run in of_mode)} of {len(of_mode)}")
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines), left_out


# --- python eval.py ------------------------------------------------------------------------------


def device(name):
    """An argparse type."""
    try:
        torch.zeros(1, device=name)
    except Exception as error:
        raise argparse.ArgumentTypeError(f"{name}: {str(error).splitlines()[0]}") from None
    return name


def number(kind, least, most=1e9):
    """An argparse type: an int or a float from `least` to `most`."""

    def number(text):
        if not least <= kind(text) <= most:
            raise argparse.ArgumentTypeError(f"{text} is not between {least} and {most}")
        return kind(text)

    return number


def parse(argv=None):
    parser = argparse.ArgumentParser(
        usage="eval.py best.pt | --table DIR [flags]", allow_abbrev=False
    )
    flag = parser.add_argument
    flag("checkpoint", nargs="?", help="best.pt or last.pt of a run")
    task = parser.add_mutually_exclusive_group()
    task.add_argument("--pictures", action="store_true", help="the worst mistakes as mistakes.png")
    task.add_argument("--video", nargs="+", metavar="FILE", help="score your own videos instead")
    task.add_argument("--real", nargs="+", metavar="DIR", help="with --fake: test on these folders")
    task.add_argument("--table", metavar="DIR", help="Tables 2 and 3 for a folder of runs")
    flag("--fake", nargs="+", metavar="DIR", help="see --real")
    flag("--data", help="another copy of FF++ (default: the training run's)")
    flag("--cache", metavar="DIR", help="train.py's cache of cropped frames")
    flag("--clips", type=number(int, 1), help="per video (default: as in training; --video: 16)")
    flag("--workers", type=int, default=0, help="processes that read videos (0)")
    flag("--device", type=device, default=DEVICE, help="cpu, cuda, mps")
    flag("--out", metavar="DIR", help="for results and pictures (the run's folder)")
    args = parser.parse_args(argv)

    if bool(args.checkpoint) == bool(args.table):
        parser.error("expected either a checkpoint or --table DIR")
    if bool(args.real) != bool(args.fake):
        parser.error("--real goes with --fake")
    return args


def run(args):
    """What the flags ask for. True if nothing was left out."""
    if args.table:
        text, left_out = table(args.table)
        print(text)
        for reason in left_out:
            print(f"left out: {reason}", file=sys.stderr)
        return not left_out

    encoder, classifier, config = load_checkpoint(args.checkpoint, args.device)
    place = config["place"]
    place["data"] = args.data or place["data"]
    place["cache"] = args.cache or place["cache"]
    out = Path(args.out or Path(args.checkpoint).parent)
    if args.video:
        if not args.out:
            out = out / "videos"
        dataset = OwnVideos(own_videos(args), config, args.clips or OWN_CLIPS)
        path = out / "scores.json"
    elif args.real:
        dataset = OwnVideos(own_videos(args), config, args.clips or config["clips"])
        path = out / f"results_{Path(args.fake[0]).resolve().name}.json"
    else:
        config["clips"] = args.clips or config["clips"]
        dataset = make_dataset(config, "test")
        path = out / f"results_{Path(args.checkpoint).stem}.json"

    results = test(encoder, classifier, config, dataset, args.device, args.workers)
    save(results, path)
    print(f"every video's score: {path}")
    if args.video:
        show_own_videos(results, dataset.shape[0])
        if results["videos"]:
            save_pictures(results["videos"], dataset, out / "clips.png")
    else:
        print(report(results))
    if args.pictures:
        save_pictures(worst_mistakes(results), dataset, out / "mistakes.png")
    return not results["unreadable"]


def main(argv=None):
    args = parse(argv)
    with one_sentence("eval.py"):
        sys.exit(0 if run(args) else 1)


if __name__ == "__main__":
    main()
