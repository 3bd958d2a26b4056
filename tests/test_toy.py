# SPDX-License-Identifier: MIT
"""The toy: its files, and how much of it can be solved with statistics that need no network."""
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

def test_an_interrupted_rendering_leaves_nothing_behind(tmp_path, monkeypatch):
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
    (root / "TOY.txt").write_text("Drawn by make_toy in data.py: not FaceForensics++")  # version 1
    toy.make_toy(root, SMALL, processes=2)
    assert list(tmp_path.iterdir()) == [root] and "notes.txt" not in contents(root)
    time = root.stat().st_mtime_ns
    toy.make_toy(root, SMALL)
    assert root.stat().st_mtime_ns == time

# Columns of `statistics`: two upper corners; these with nose, mouth and the whole frame; all.
KINDS = {"two corners": [0, 5], "eleven": [0, 5, 20, 26, 27, *range(36, 42)], "all": range(42)}

def statistics(path):
    """Sharpness in 6 x 6 tiles, row by row, and of the whole frame: mean colour (3), contrast,
    frame difference and motion energy."""
    reader = cv2.VideoCapture(str(path))
    video = np.float32([reader.read()[1] for _ in range(toy.FRAMES)])  # (T, H, W, 3)
    gray = video.mean(-1)
    laplacian = np.stack([cv2.Laplacian(frame, cv2.CV_32F) for frame in gray])
    tiles = laplacian.reshape(len(gray), 6, 10, 6, 10).var((2, 4)).mean(0)
    return [*np.log1p(tiles).ravel(), *video.mean((0, 1, 2)), gray.std((1, 2)).mean(),
            np.log(np.abs(np.diff(gray, axis=0)).mean()), np.log(gray.var(0).mean())]

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

def test_the_room_shows_no_class_and_cheap_statistics_show_how_easy_the_toy_is(tmp_path):
    toy.make_toy(tmp_path / "toy_ffpp")
    table = {"train": {}, "test": {}}
    for name, folder in FOLDERS.items():
        videos = sorted((tmp_path / "toy_ffpp" / folder).glob("*.mp4"))
        for split in table:
            x = [statistics(path) for path in videos if path.name[:3] in SPLITS[split]]
            table[split][name] = torch.tensor(np.array(x), dtype=torch.float64)
    mean, std = table["train"]["original"].mean(0), table["train"]["original"].std(0)

    def prepare(split, name, columns):
        x = ((table[split][name] - mean) / std)[:, list(columns)]
        return torch.nn.functional.pad(x, (0, 1), value=1)  # the last column is for the bias

    average = {}
    for kind, columns in KINDS.items():
        found = {}
        for holdout in MANIPULATIONS:
            seen = [name for name in FOLDERS if name != holdout]  # the originals come first
            x = torch.cat([prepare("train", name, columns) for name in seen])
            y = (torch.arange(len(x)) >= len(table["train"]["original"])).double()
            weights = logistic_regression(x, y)
            real = prepare("test", "original", columns) @ weights
            fake = prepare("test", holdout, columns) @ weights
            found[holdout] = (fake[:, None] > real).double().mean().item()
        average[kind] = np.mean(list(found.values()))
        rounded = ", ".join(f"{holdout} {auc:.2f}" for holdout, auc in found.items())
        print(f"\nheld-out AUC, {kind}: {rounded}, mean {average[kind]:.2f}", end="")
    assert 0.4 < average["two corners"] < 0.6, average
    assert average["all"] > 0.9, average
