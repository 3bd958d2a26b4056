# SPDX-License-Identifier: MIT
"""The toy is honest: cheap statistics of a video do not give the manipulations away, a video network learns them."""
import json

import cv2
import numpy as np
import pytest
import torch

from data import MANIPULATIONS, SPLITS, list_videos, make_toy, read_clip
from eval import auc


def cheap_statistics(path):
    """Mean colour (3), frame difference, sharpness, contrast, motion energy of one video."""
    video = np.stack(read_clip(path, 24, 0)).astype(np.float32)
    gray = video.mean(-1)
    sharpness = np.mean([cv2.Laplacian(frame, cv2.CV_32F).var() for frame in gray])
    return [*video.mean((0, 1, 2)), np.abs(np.diff(gray, axis=0)).mean(), np.log(sharpness), gray.std((1, 2)).mean(), np.log(gray.var(0).mean())]


COLUMNS = {"colour": [0, 1, 2], "frame difference": [3], "all": list(range(7))}


def logistic_regression(x, y):
    """Weights and a bias that fit labels y (0, 1, classes weighted alike) to standardised x; returns the scoring function."""
    mean, std = x.mean(0), x.std(0)
    prepare = lambda x: torch.tensor(np.c_[(x - mean) / std, np.ones(len(x))])
    weight, target = torch.zeros(x.shape[1] + 1, dtype=torch.float64, requires_grad=True), torch.tensor(y, dtype=torch.float64)
    balance = torch.where(target == 1, 0.5 / target.mean(), 0.5 / (1 - target.mean()))
    optimizer = torch.optim.LBFGS([weight], max_iter=100)

    def loss():
        optimizer.zero_grad()
        value = torch.nn.functional.binary_cross_entropy_with_logits(prepare(x) @ weight, target, balance) + 1e-3 * weight.square().sum()
        value.backward()
        return value
    optimizer.step(loss)
    return lambda x: (prepare(x) @ weight).detach().numpy()


@pytest.fixture(scope="module")
def whole_toy(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole") / "toy_ffpp"
    make_toy(root)
    return root


@pytest.fixture(scope="module")
def cheap(whole_toy):
    """AUC of logistic regression per kind of statistics and hold-out: {kind: {holdout: (held-out, mean of seen)}}."""
    videos = list_videos(whole_toy)
    table = {split: {name: np.array([cheap_statistics(videos[name][t]) for t in SPLITS[split] if t in videos[name]]) for name in videos}
             for split in ("train", "test")}
    found = {}
    for kind, columns in COLUMNS.items():
        found[kind] = {}
        for holdout in MANIPULATIONS:
            seen = [name for name in MANIPULATIONS if name != holdout]
            x = np.concatenate([table["train"][name][:, columns] for name in ("original", *seen)])
            score = logistic_regression(x, np.repeat([0, 1], [len(table["train"]["original"]), len(x) - len(table["train"]["original"])]))
            originals = score(table["test"]["original"][:, columns])
            one = {name: auc(np.repeat([0, 1], [len(originals), len(originals)]), np.r_[originals, score(table["test"][name][:, columns])])
                   for name in MANIPULATIONS}
            found[kind][holdout] = one[holdout], np.mean([one[name] for name in seen])
        print(f"\nAUC of {kind}, mean over the hold-outs: held out {np.mean([a for a, _ in found[kind].values()]):.2f}, "
              f"seen {np.mean([b for _, b in found[kind].values()]):.2f}", end="")
    return found


def test_colour_and_frame_difference_stay_near_chance(cheap):
    for kind in ("colour", "frame difference"):
        for index in (0, 1):
            assert abs(np.mean([cheap[kind][h][index] for h in MANIPULATIONS]) - 0.5) < 0.1, cheap[kind]


def test_all_cheap_statistics_together_stay_far_from_solving_the_toy(cheap):
    assert np.mean([cheap["all"][h][0] for h in MANIPULATIONS]) < 0.75 and np.mean([cheap["all"][h][1] for h in MANIPULATIONS]) < 0.8, cheap["all"]


@pytest.mark.long
@pytest.mark.parametrize("mode", ["bin_ce", "bin_contrastive"])
def test_the_network_reaches_its_targets_and_beats_the_cheap_statistics(mode, whole_toy, cheap, run):
    seen, heldout = [], []
    for holdout in MANIPULATIONS:
        for seed in range(3):
            result = run(whole_toy.parent, "train.py", "--mode", mode, "--holdout", holdout, "--seed", seed)
            assert result.returncode == 0, result.stderr
            results = json.loads((whole_toy.parent / "runs" / f"{mode}_{holdout}_seed{seed}" / "results.json").read_text())
            heldout.append(results["metrics"]["auc"])
            seen += [m["auc"] for m in results["seen"].values()]
    assert np.mean(seen) >= 0.90 and np.mean(heldout) >= 0.75
    assert np.mean(seen) > np.mean([cheap["all"][h][1] for h in MANIPULATIONS]) + 0.1
    assert np.mean(heldout) > np.mean([cheap["all"][h][0] for h in MANIPULATIONS]) + 0.1
