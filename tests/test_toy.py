# SPDX-License-Identifier: MIT
"""The toy: its files, and what its two kinds of trace show to whom."""

import cv2
import numpy as np
import pytest
import torch

from data import MANIPULATIONS, SPLITS
from tests import toy

SMALL = (6, 2, 4)
FOLDERS = {"original": "original_sequences/youtube/c23/videos"}
for name, folder in MANIPULATIONS.items():
    FOLDERS[name] = f"manipulated_sequences/{folder}/c23/videos"


def contents(root):
    return {file.relative_to(root).as_posix(): file.read_bytes() for file in root.rglob("*.*")}


def test_the_toy_has_the_layout_of_ffpp_and_is_the_same_every_time(tmp_path):
    toy.make_toy(tmp_path / "one", SMALL, processes=2)
    toy.make_toy(tmp_path / "two", SMALL, processes=1)
    files = contents(tmp_path / "one")
    assert files == contents(tmp_path / "two")

    expected = {"TOY.txt"}
    for split, count in zip(("train", "val", "test"), SMALL):
        for i, target in enumerate(SPLITS[split][:count]):
            expected.add(f"{FOLDERS['original']}/{target}.mp4")
            fake = f"{target}_{SPLITS[split][i ^ 1]}.mp4"
            expected.update(f"{FOLDERS[name]}/{fake}" for name in MANIPULATIONS)
    assert set(files) == expected
    assert files["TOY.txt"].startswith(f"toy version {toy.TOY_VERSION}".encode())


def test_an_interrupted_drawing_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(toy, "print", interrupt, raising=False)  # all videos are written by then
    with pytest.raises(KeyboardInterrupt):
        toy.make_toy(tmp_path / "toy", SMALL, processes=2)
    assert not list(tmp_path.iterdir())


def test_the_same_version_is_kept_another_is_replaced_and_any_other_folder_refused(tmp_path):
    root = tmp_path / "toy"
    root.mkdir()
    (root / "notes.txt").touch()
    with pytest.raises(FileExistsError, match="toy is not the toy .* move it away"):
        toy.make_toy(root, SMALL)
    assert list(contents(root)) == ["notes.txt"]

    (root / "TOY.txt").write_text("toy version 2")
    toy.make_toy(root, SMALL, processes=2)
    assert list(tmp_path.iterdir()) == [root] and "notes.txt" not in contents(root)

    time = root.stat().st_mtime_ns
    toy.make_toy(root, SMALL)
    assert root.stat().st_mtime_ns == time


def test_one_frames_shade_has_the_same_law_in_all_five_classes():
    count = 1000
    shades = {}
    for name in FOLDERS:
        rng = np.random.default_rng(0 if name == "original" else [1, *name.encode()])
        drawn = [toy.draw_shade(rng, name)[rng.integers(toy.FRAMES)] for _ in range(count)]
        shades[name] = np.stack([frame.mean((0, 1)) for frame in drawn])  # (count, 3 channels)

    for name in MANIPULATIONS:
        ratio = shades[name].std(0) / shades["original"].std(0)
        assert np.abs(ratio - 1).max() < 0.1, name
        for fake, real in zip(shades[name].T, shades["original"].T):
            values = np.sort(np.concatenate([fake, real]))
            below = [np.searchsorted(np.sort(sample), values, "right") for sample in (fake, real)]
            gap = np.abs(below[0] - below[1]).max() / count
            assert gap < 1.63 * (2 / count) ** 0.5, name  # Kolmogorov and Smirnov, at 1 %


def read(path):
    reader = cv2.VideoCapture(str(path))
    return np.float32([reader.read()[1] for _ in range(toy.FRAMES)])  # (T, H, W, 3)


def one_frame(video, rng):
    """Of a random frame: log sharpness in 7 x 7 tiles, row by row, mean colour (3), contrast."""
    frame = video[rng.integers(len(video))]
    gray = frame.mean(-1)
    side = toy.SIZE // 7
    tiles = cv2.Laplacian(gray, cv2.CV_32F).reshape(7, side, 7, side).var((1, 3))
    return [*np.log1p(tiles).ravel(), *frame.mean((0, 1)), gray.std()]


def change(video):
    """The log of how much the middle of the face changes in time, relative to the border."""
    gray = video.mean(-1)
    middle = gray[:, 21:35, 21:35].mean((1, 2))
    outside = np.ones(gray.shape[1:], bool)
    outside[5:-5, 5:-5] = False
    return np.log((middle - gray[:, outside].mean(1)).std())


@pytest.fixture(scope="module")
def table(whole_toy):
    """{split: {class: (videos, 54)}} of the whole toy: 53 columns of `one_frame`, then `change`."""
    root = whole_toy / "toy_ffpp"
    rng = np.random.default_rng(0)
    rows = {"train": {}, "test": {}}
    for name, folder in FOLDERS.items():
        videos = sorted((root / folder).glob("*.mp4"))
        for split in rows:
            chosen = [read(path) for path in videos if path.name[:3] in SPLITS[split]]
            statistics = [[*one_frame(video, rng), change(video)] for video in chosen]
            rows[split][name] = torch.tensor(statistics, dtype=torch.float64)
    return rows


def logistic_regression(x, y):
    """The weights for x that predict y (0 or 1, both weighted alike)."""
    weights = torch.zeros(x.shape[1], dtype=x.dtype, requires_grad=True)
    balance = torch.where(y == 1, 0.5 / y.mean(), 0.5 / (1 - y.mean()))
    optimizer = torch.optim.LBFGS([weights], max_iter=100)

    def loss():
        optimizer.zero_grad()
        logits = x @ weights
        value = torch.nn.functional.binary_cross_entropy_with_logits(logits, y, balance)
        value = value + 1e-3 * weights.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weights.detach()


def auc(fake, real):
    return (fake[:, None] > real).double().mean().item()


def fitted_aucs(table, columns):
    """Mean AUC of logistic regression on these columns over the hold-outs: (held-out, seen)."""
    mean = table["train"]["original"].mean(0)
    std = table["train"]["original"].std(0)

    def prepare(split, name):
        x = ((table[split][name] - mean) / std)[:, columns]
        return torch.nn.functional.pad(x, (0, 1), value=1)  # the last column is for the bias

    held_out, seen = [], []
    for holdout in MANIPULATIONS:
        names = [name for name in FOLDERS if name != holdout]  # the originals come first
        x = torch.cat([prepare("train", name) for name in names])
        y = (torch.arange(len(x)) >= len(table["train"]["original"])).double()
        weights = logistic_regression(x, y)

        real = prepare("test", "original") @ weights
        for name in MANIPULATIONS:
            value = auc(prepare("test", name) @ weights, real)
            (held_out if name == holdout else seen).append(value)
    print(f"\nAUC of one frame: held-out {np.round(held_out, 2)}, seen {np.mean(seen):.3f}")
    return np.mean(held_out), np.mean(seen)


def test_one_frame_shows_seen_manipulations_and_hardly_the_held_out_one(table):
    held_out, seen = fitted_aucs(table, list(range(53)))
    assert held_out <= 0.65 and seen >= 0.75


def test_the_room_shows_no_class(table):
    held_out, seen = fitted_aucs(table, [0, 6])  # the sharpness of the two upper corners
    assert 0.4 < held_out < 0.6 and 0.4 < seen < 0.6


def test_one_number_about_time_shows_every_manipulation(table):
    aucs = [
        auc(table["test"][name][:, 53], table["test"]["original"][:, 53]) for name in MANIPULATIONS
    ]
    print(f"\nAUC of the change in time: {np.round(aucs, 3)}")
    assert np.mean(aucs) >= 0.9 and min(aucs) >= 0.85
