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
import csv
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader
from torchvision.utils import save_image

from data import (
    MANIPULATIONS,
    NO_IMAGES,
    is_toy,
    is_video,
    open_splits,
    read_video,
    replacing,
    without_motion,
)
from heads import Classifier
from s3d import S3D, FrameEncoder

FORMAT = 5  # of checkpoints and results; those of other versions are refused
LEARNED = 0.8  # a run whose best validation AUC is lower has hardly learned
OWN_CLIPS = 16  # of a video of your own
VIDEOS_AT_ONCE = 4  # in a batch of the loader
CLIPS_AT_ONCE = 32  # in one forward pass
# fmt: off
PAPER = {  # accuracy in % with DF, F2F, FS, NT held out (Table 2); average as Table 3 prints it
    "baseline": ("Baseline (S3D)", 76.08, 66.08, 75.12, 69.18, 71.62),
    "bin_ce": ("Binary CE", 80.08, 73.44, 79.30, 75.78, 77.15),
    "bin_contrastive": ("Binary Contrastive", 84.77, 68.36, 82.42, 69.92, 76.17),
    "bin_ce_contrastive": ("Binary CE + Contrastive", 81.64, 66.02, 85.55, 70.31, 75.98),
    "bin_ce_multi_ce": ("Binary CE + Multi CE", 85.16, 68.75, 83.59, 73.44, 77.74),
    "bin_contrastive_multi_contrastive":
        ("Binary Contrastive + Multi Contrastive", 83.20, 58.98, 80.08, 64.06, 71.58),
    "dfdc_winner": ("DFDC Winner", 85.71, 72.86, 51.07, 60.00, 67.41),
}
# fmt: on
LOSSES = "bin_ce bin_contrast multi_ce multi_contrast".split()
PLACE = "data cache workers device out torch".split()  # where and on what a run took place
TITLES = {  # lines of the report
    "accuracy": "accuracy",
    "accuracy_real": "  on originals",
    "accuracy_fake": "  on fakes",
    "auc": "AUC",
}
MEANS = {  # columns of the table
    "accuracy": "average",
    "auc": "AUC",
    "seen": "seen",
    "gap": "gap",
    "still": "still",
    "still_seen": "still, seen",
}
TABLE_NOTE = f"""
Accuracy in %, mean ± standard deviation (number of seeds) [the paper's, for FF++]. Then means over
the hold-outs: accuracy, AUC, accuracy on the seen manipulations, gap (seen minus held-out, in
points), AUC on clips without motion for held-out and for seen fakes (still). Not learned: runs
whose best validation AUC stayed below {100 * LEARNED:.0f} %.
"""


# --- Metrics: labels (N,) 0 = original, 1 = manipulated; scores (N,) fake probabilities ----------


def auc(originals, fakes):
    """The share of pairs (original, fake) whose scores are in the right order; ties count half."""
    originals = np.sort(originals)
    lower = np.searchsorted(originals, fakes, side="left")  # originals below each fake
    not_higher = np.searchsorted(originals, fakes, side="right")
    return float((lower + not_higher).mean() / (2 * len(originals)))


def metrics(labels, scores):
    """Accuracy at 0.5 (all, originals, fakes) and AUC, in [0, 1]. Raises ValueError without
    originals or fakes, or for a score that is not finite."""
    labels = np.asarray(labels)
    scores = np.asarray(scores, dtype=float)
    if set(labels.tolist()) != {0, 1} or not np.isfinite(scores).all():
        raise ValueError("metrics need originals, fakes and finite scores")
    right = (scores > 0.5) == labels
    return {
        "accuracy": float(right.mean()),
        "accuracy_real": float(right[labels == 0].mean()),
        "accuracy_fake": float(right[labels == 1].mean()),
        "auc": auc(scores[labels == 0], scores[labels == 1]),
    }


def wilson(share, n, z=1.96):
    """Wilson's 95 % interval of a share of n."""
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return [max(0.0, middle - half), min(1.0, middle + half)]


def intervals(labels, scores, draws=1000):
    """95 % intervals {metric: [low, high]}: Wilson's for the accuracies; for AUC the bootstrap over
    videos, with as many originals and fakes in each draw as there are."""
    labels = np.asarray(labels)
    originals = np.asarray(scores)[labels == 0]
    fakes = np.asarray(scores)[labels == 1]
    measured = metrics(labels, scores)

    rng = np.random.default_rng(0)
    aucs = []
    for _ in range(draws):
        drawn = rng.choice(originals, len(originals))
        aucs.append(auc(drawn, rng.choice(fakes, len(fakes))))
    return {
        "accuracy": wilson(measured["accuracy"], len(labels)),
        "accuracy_real": wilson(measured["accuracy_real"], len(originals)),
        "accuracy_fake": wilson(measured["accuracy_fake"], len(fakes)),
        "auc": np.percentile(aucs, [2.5, 97.5]).tolist(),
    }


# --- Scores --------------------------------------------------------------------------------------


@torch.no_grad()
def score_clips(encoder, classifier, clips, device):
    """The fake probabilities (V, N) of clips (V, N, 3, T, H, W)."""
    flat = clips.flatten(0, 1)
    embeddings = [encoder(chunk.to(device)) for chunk in flat.split(CLIPS_AT_ONCE)]
    scores = classifier(torch.cat(embeddings)).softmax(dim=1)[:, 1].cpu()
    if not scores.isfinite().all():
        raise ValueError("a score is not finite: these weights have diverged")
    return scores.view(clips.shape[:2])


def score_videos(encoder, classifier, clips, device, still):
    """The scores of V videos from their clips (V, N, 3, T, H, W): [{"score", "clips"}], where
    "score" is the mean of "clips". still: also "still", the mean over the same clips without
    motion. A detector that needs frames that differ is much worse there."""
    scores = score_clips(encoder, classifier, clips, device)
    videos = [{"score": row.mean().item(), "clips": row.tolist()} for row in scores]
    if still:
        scores = score_clips(encoder, classifier, without_motion(clips), device)
        for video, row in zip(videos, scores):
            video["still"] = row.mean().item()
    return videos


def evaluate(encoder, classifier, videos, device="cpu", still=False):
    """Score the videos of an FFPP, not its training split.

    Returns [{"path", "class", "label", "score", "clips"}], with "still" if asked: see score_videos.
    """
    encoder.eval()
    classifier.eval()
    scored = []
    loader = DataLoader(videos, batch_size=VIDEOS_AT_ONCE)
    for clips, _, _ in loader:  # (V, N, 3, T, H, W)
        scored += score_videos(encoder, classifier, clips, device, still)
    return [
        {"path": str(path), "class": name, "label": label, **video}
        for (path, name, _), label, video in zip(videos.videos, videos.binary, scored)
    ]


def read_own_video(path, config):
    """The clips of a video of your own, with these settings of a run."""
    clips = read_video(path, config["frames"], config["size"], config["clips"], config["crop"])
    return without_motion(clips) if config["still"] else clips


def evaluate_own(encoder, classifier, own, config, device):
    """Score videos [(path, class, label)] of your own, one at a time. Returns what `evaluate` does,
    and [{"path", "reason"}] of those that cannot be scored."""
    videos = []
    unreadable = []
    for path, name, label in own:
        try:
            clips = read_own_video(path, config)
        except ValueError as error:
            print(f"not scored: {error}", file=sys.stderr)
            unreadable.append({"path": str(path), "reason": str(error)})
            continue
        (scored,) = score_videos(encoder, classifier, clips[None], device, has_still_score(config))
        videos.append({"path": str(path), "class": name, "label": label, **scored})
    return videos, unreadable


# --- Results -------------------------------------------------------------------------------------


def has_still_score(config):
    """Whether a score without motion says anything: not for single frames, not for still clips."""
    return config["frames"] > 1 and not config["still"]


def measure(videos, score="score"):
    """The metrics of scored videos."""
    return metrics([video["label"] for video in videos], [video[score] for video in videos])


def tested(results):
    """The originals and the fakes that are no seen manipulation."""
    return [video for video in results["videos"] if video["class"] not in results["seen"]]


def summarise(videos, config):
    """The content of results.json for scored videos. Without originals, or without fakes, there are
    no metrics."""
    results = {"config": config, "videos": videos, "seen": {}}
    still_aucs = []
    for name in MANIPULATIONS:
        pair = [video for video in videos if video["class"] in ("original", name)]
        is_seen = config["holdout"] not in (name, "none")
        if is_seen and any(video["class"] == name for video in videos):
            results["seen"][name] = measure(pair)
            if has_still_score(config):
                still_aucs.append(measure(pair, "still")["auc"])

    labels = [video["label"] for video in tested(results)]
    if set(labels) == {0, 1}:
        scores = [video["score"] for video in tested(results)]
        results["metrics"] = {**metrics(labels, scores), "intervals": intervals(labels, scores)}
        if has_still_score(config):
            results["still"] = measure(tested(results), "still")
    if still_aucs:
        results["still_seen"] = float(np.mean(still_aucs))
    return results


def test(encoder, classifier, config, videos, device):
    """The content of results.json for the test split of FFPP."""
    scored = evaluate(encoder, classifier, videos, device, has_still_score(config))
    return summarise(scored, config)


def seen_and_gap(results, metric):
    """The mean of a metric over the seen manipulations, and its gap: how much worse it is on the
    held-out one."""
    mean = np.mean([measured[metric] for measured in results["seen"].values()])
    return mean, mean - results["metrics"][metric]


def report_line(title, accuracy, area, unit="%"):
    return f"  {title:18}{100 * accuracy:6.1f} {unit}, AUC {100 * area:.1f} {unit}"


def report(results):
    """The results as a few lines of text."""
    config = results["config"]
    measured = results["metrics"]
    labels = [video["label"] for video in tested(results)]
    toy = " [TOY: says nothing about real deepfakes]" if config["toy"] else ""
    lines = [
        f"test of {config['case']}, {config['holdout']} held out, on {config['data']}{toy}: "
        f"{labels.count(0)} originals, {labels.count(1)} fakes"
    ]

    for name, title in TITLES.items():
        low, high = measured["intervals"][name]
        lines.append(
            f"  {title:18}{100 * measured[name]:6.1f} %"
            f"   95 % interval {100 * low:.1f} to {100 * high:.1f}"
        )

    for name, seen in results["seen"].items():
        lines.append(report_line(f"{name}, seen", seen["accuracy"], seen["auc"]))
    if results["seen"]:
        accuracy, accuracy_gap = seen_and_gap(results, "accuracy")
        area, area_gap = seen_and_gap(results, "auc")
        lines.append(report_line("mean of the seen", accuracy, area))
        lines.append(report_line("gap to held-out", accuracy_gap, area_gap, "points"))
    if "still" in results:
        line = f"  {'without motion':18}AUC {100 * results['still']['auc']:.1f} % held-out"
        if "still_seen" in results:
            line += f", {100 * results['still_seen']:.1f} % mean of the seen"
        lines.append(line)
    if results.get("val_auc", 1) < LEARNED:
        best = 100 * results["val_auc"]
        lines.append(f"best validation AUC {best:.1f} %: this run has hardly learned")
    return "\n".join(lines)


# --- Files ---------------------------------------------------------------------------------------


def load(path):
    """A checkpoint or results.json of train.py. Raises FileNotFoundError, ValueError."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        if path.suffix == ".json":
            content = json.loads(path.read_text())
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
        version = content["config"].get("format")
    except Exception:  # a damaged file can raise anything
        raise ValueError(f"{path} cannot be read, or was not written by train.py") from None
    if version != FORMAT:
        raise ValueError(f"{path} is of format {version}; this version reads {FORMAT}")
    return content


def load_checkpoint(path, device="cpu"):
    """(encoder, binary classifier, config) of a best.pt or last.pt, in eval mode. Raises
    FileNotFoundError, ValueError."""
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
    """Write a .pt, .json or .csv file (a list of rows), whole or not at all. Raises OSError."""
    path = Path(path)
    with replacing(path) as temporary:
        if path.suffix == ".json":
            temporary.write_text(json.dumps(content, indent=1))
        elif path.suffix == ".csv":
            with open(temporary, "w", newline="") as file:
                writer = csv.DictWriter(file, fieldnames=content[0])
                writer.writeheader()
                writer.writerows(content)
        else:
            try:
                torch.save(content, temporary)
            except RuntimeError as error:  # a full disk
                raise OSError(str(error).splitlines()[0]) from None


# --- Pictures ------------------------------------------------------------------------------------


def save_pictures(rows, path):
    """A PNG with a row for each (scored video, its clips (N, 3, T, H, W)): the middle frames of the
    clips, as the network saw them. Prints which row is which."""
    columns = max(len(clips) for _, clips in rows)
    tiles = []
    print(f"{path} shows, from the top:")
    for video, clips in rows:
        print(f"  fake score {video['score']:.3f}  {video['path']}")
        frames = clips[:, :, clips.shape[2] // 2] / 255  # (N, 3, H, W)
        tiles += [*frames, *torch.ones(columns - len(frames), *frames.shape[1:])]
    with replacing(path) as temporary:
        save_image(tiles, temporary, format="png", nrow=columns, padding=6, pad_value=1)


def worst_mistakes(results):
    """The paper's Figure 4: the ten tested videos whose scores are furthest from their labels, the
    worst first."""
    return sorted(tested(results), key=lambda video: -abs(video["score"] - video["label"]))[:10]


# --- Your own videos, other datasets -------------------------------------------------------------


def videos_below(folders):
    """The video files below some folders, links followed, hidden ones and FF++'s masks left out.
    Raises FileNotFoundError for a folder without any."""
    videos = []
    for folder in folders:
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"{folder} is not a folder")
        before = len(videos)
        for parent, children, files in os.walk(folder, followlinks=True):
            children[:] = [name for name in sorted(children) if name[0] != "." and name != "masks"]
            videos += [Path(parent, name) for name in sorted(files) if is_video(Path(parent, name))]
        if len(videos) == before:
            raise FileNotFoundError(f"{folder} has no video files; {NO_IMAGES}")
    return videos


def own_videos(args):
    """[(path, class, label)] of --video, or of --real and --fake. Raises ValueError for a file
    under both labels."""
    if args.video:
        return [(Path(path), "own", None) for path in args.video]
    real = {path.resolve(): path for path in videos_below(args.real)}
    fake = {path.resolve(): path for path in videos_below(args.fake)}
    both = real.keys() & fake.keys()
    if both:
        raise ValueError(f"{min(both)} is below --real and below --fake")
    videos = [(path, "original", 0) for path in real.values()]
    return videos + [(path, "fake", 1) for path in fake.values()]


# --- Tables 2 and 3 ------------------------------------------------------------------------------


def mean_and_deviation(values, digits=".3g"):
    """Mean and standard deviation as text."""
    if len(values) < 2:
        return f"{values[0]:{digits}}" if values else "-"
    return f"{np.mean(values):{digits}} ± {np.std(values, ddof=1):{digits}}"


def read_run(path):
    """What the table needs of a results.json. Raises ValueError if it does not belong there."""
    results = load(path)
    if results["config"]["holdout"] == "none" or "val_auc" not in results:
        raise ValueError(f"{path} is not of a training run that held something out")
    run = {"path": path, "config": results["config"], "val_auc": results["val_auc"]}
    videos = sorted([video["class"], Path(video["path"]).name] for video in results["videos"])
    run["test"] = [run["config"]["toy"], *videos]

    seen, gap = seen_and_gap(results, "accuracy")
    run["accuracy"] = 100 * results["metrics"]["accuracy"]
    run["auc"] = 100 * results["metrics"]["auc"]
    run["seen"] = 100 * seen
    run["gap"] = 100 * gap
    if "still" in results:
        run["still"] = 100 * results["still"]["auc"]
        run["still_seen"] = 100 * results["still_seen"]
    return run


def differences(config, other):
    """The names of the settings in which two runs differ, PLACE apart."""
    names = config.keys() - set(PLACE)
    return sorted(name for name in names if config[name] != other.get(name))


def check_row(runs):
    """Raises ValueError if the runs of a row differ in more than hold-out, seed and place, or two
    have the same hold-out and seed."""
    first = runs[0]
    known = {}
    for run in runs:
        config = run["config"]
        names = differences(config, first["config"])
        names = [name for name in names if name not in ("holdout", "seed")]
        if names:
            raise ValueError(f"{first['path']} and {run['path']} differ in {', '.join(names)}")

        key = f"{config['case']} with {config['holdout']} held out, seed {config['seed']}"
        if key in known:
            raise ValueError(f"{known[key]} and {run['path']} are both {key}: keep one")
        known[key] = run["path"]


def by_holdout(runs, name):
    """[[run's value, ...] with DF held out, with F2F, FS, NT]; runs without one are left out."""
    return [
        [run[name] for run in runs if run["config"]["holdout"] == holdout and name in run]
        for holdout in MANIPULATIONS
    ]


def mean_of_means(groups):
    """The mean over the hold-outs as text; "-" if one has no run."""
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
        reason = left_out[0] if left_out else "none is there"
        raise FileNotFoundError(f"--table {folder}: no */results.json to show ({reason})")

    rows = {}
    for run in runs:
        rows.setdefault(run["config"]["case"], []).append(run)
        if run["test"] != runs[0]["test"]:
            raise ValueError(f"{run['path']} and {runs[0]['path']} tested different videos")
    for row in rows.values():
        check_row(row)

    toy = runs[0]["config"]["toy"]
    titles = ["Type of training", *MANIPULATIONS, *MEANS.values(), "not learned"]
    lines = [
        "### TOY: says nothing about real deepfakes" if toy else "### FaceForensics++",
        TABLE_NOTE,
        f"| {' | '.join(titles)} |",
        "|---" * len(titles) + "|",
    ]
    for case in [*PAPER, *sorted(rows.keys() - PAPER.keys())]:
        if case in rows:
            lines.append(table_row(case, rows[case]))

    configs = [run["config"] for run in runs]
    names = {name for config in configs for name in differences(config, configs[0])}
    names -= {"holdout", "seed", "mode", "case", "still", "init", *LOSSES}
    if names:
        lines.append(f"\nOther settings that differ between rows: {', '.join(sorted(names))}")
    return "\n".join(lines), left_out


def table_row(case, runs):
    """The row of these runs of one case, as Markdown."""
    title, *paper = PAPER.get(case, (case,))
    groups = by_holdout(runs, "accuracy")
    cells = [f"{mean_and_deviation(group, '.1f')} ({len(group)})" for group in groups]
    cells += [mean_of_means(by_holdout(runs, name)) for name in MEANS]
    if not runs[0]["config"]["toy"]:
        for column, value in enumerate(paper):
            cells[column] += f" [{value:.2f}]"
    failed = sum(run["val_auc"] < LEARNED for run in runs)
    return f"| {title} | {' | '.join(cells)} | {failed} of {len(runs)} |"


# --- python eval.py ------------------------------------------------------------------------------


def existing_device(name):
    """An argparse type: the name of a device that PyTorch can use here."""
    try:
        torch.zeros(1, device=name)
    except Exception as error:
        raise argparse.ArgumentTypeError(f"{name}: {str(error).splitlines()[0]}") from None
    return name


def parse(argv=None):
    parser = argparse.ArgumentParser(
        usage="eval.py best.pt | --table DIR [flags]", allow_abbrev=False
    )
    best = "cuda" if torch.cuda.is_available() else "cpu"
    flag = parser.add_argument
    flag("checkpoint", nargs="?", help="best.pt or last.pt of a run")
    task = parser.add_mutually_exclusive_group()
    task.add_argument("--video", nargs="+", metavar="FILE", help="score your own videos instead")
    task.add_argument("--real", nargs="+", metavar="DIR", help="with --fake: test on these folders")
    task.add_argument("--table", metavar="DIR", help="Tables 2 and 3 for a folder of runs")
    flag("--fake", nargs="+", metavar="DIR", help="see --real")
    flag(
        "--pictures", action="store_true", help="the worst mistakes, or your videos' clips, as PNG"
    )
    flag("--data", help="another copy of FF++ (default: the training run's)")
    flag("--cache", metavar="DIR", help="of prepared videos (default: the training run's)")
    flag("--clips", type=int, help="per video (default: as in training; --video: 16)")
    flag("--device", type=existing_device, default=best, help="cpu, cuda, mps")
    flag("--out", metavar="DIR", help="for results.json and pictures (a folder in the run's)")
    args = parser.parse_args(argv)

    if bool(args.checkpoint) == bool(args.table):
        parser.error("expected a checkpoint (before all flags) or --table DIR")
    if bool(args.real) != bool(args.fake):
        parser.error("--real goes with --fake")
    if (args.video or args.real) and (args.data or args.cache):
        parser.error("--data and --cache are for the test of FF++, not for your own videos")
    if args.clips is not None and args.clips < 1:
        parser.error("--clips must be positive")
    return args


def test_again(args, encoder, classifier, config, out):
    """The test of the run, on its own or another copy of FF++."""
    for name in ("data", "cache", "clips"):
        config[name] = getattr(args, name) or config[name]
    config["toy"] = config["toy"] or is_toy(config["data"])
    videos = open_splits(config, ["test"])["test"]

    results = test(encoder, classifier, config, videos, args.device)
    print(report(results))
    save(results, out / "results.json")
    if args.pictures:
        paths = [str(path) for path, _, _ in videos.videos]
        worst = worst_mistakes(results)
        rows = [(video, videos[paths.index(video["path"])][0]) for video in worst]
        save_pictures(rows, out / "mistakes.png")


def test_own_videos(args, encoder, classifier, config, out):
    """--video, --real and --fake. Returns whether every video could be scored."""
    own = own_videos(args)
    config["data"] = "own videos"
    config["toy"] = config["toy"] or any(is_toy(path) for path, _, _ in own)
    config["clips"] = args.clips or (OWN_CLIPS if args.video else config["clips"])
    videos, unreadable = evaluate_own(encoder, classifier, own, config, args.device)
    results = {**summarise(videos, config), "unreadable": unreadable}

    if "metrics" in results:
        print(report(results))
    else:  # --video, or one side of the test has nothing left
        toy = ", trained or tested on a TOY" if config["toy"] else ""
        for video in videos:
            count = f"from {len(video['clips'])} of {config['clips']} clips"
            print(f"{video['path']}: fake score {video['score']:.3f}, {count}")
        print(f"A research model{toy}: its score is no verdict, least of all from few clips")
    save(results, out / "results.json")
    if args.pictures and videos:
        shown = videos[:20] if args.video else worst_mistakes(results)
        rows = [(video, read_own_video(video["path"], config)) for video in shown]
        save_pictures(rows, out / "clips.png")
    return not unreadable


def run(args):
    """Do what the flags ask for. True if nothing was left out."""
    if args.table:
        text, left_out = table(args.table)
        print(text)
        for reason in left_out:
            print(f"left out: {reason}", file=sys.stderr)
        return not left_out

    # By default a folder in the run's, named after the first video or the first folder of fakes
    first = (args.video or args.fake or ["test"])[0]
    out = Path(args.checkpoint).parent / Path(first).resolve().stem
    if args.out:
        out = Path(args.out)
    if (out / "results.json").exists():
        raise ValueError(f"{out} holds results already: choose another --out")
    loaded = load_checkpoint(args.checkpoint, args.device)
    complete = True
    if args.video or args.real:
        complete = test_own_videos(args, *loaded, out)
    else:
        test_again(args, *loaded, out)
    print(f"every video's score: {out / 'results.json'}")
    return complete


def main(argv=None):
    args = parse(argv)
    if hasattr(sys.stdout, "reconfigure"):  # names that the terminal cannot show are escaped
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        sys.exit(0 if run(args) else 1)
    except (OSError, ValueError, torch.OutOfMemoryError) as error:
        sys.exit(f"eval.py: {error}")
    except KeyboardInterrupt:
        sys.exit("eval.py: interrupted")


if __name__ == "__main__":
    main()
