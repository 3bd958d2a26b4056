# SPDX-License-Identifier: MIT
"""The README keeps its word. The toy stands in for FF++, and short runs for long ones."""

import json
import re
import shutil
import subprocess
import sys
import textwrap

import cv2
import numpy as np
import pytest

import data
import eval as evaluation
import train
from data import CLASSES, FFPP
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.strip().splitlines()]
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SHORT = [
    *("--epochs", "1", "--batch-size", "4", "--frames", "8", "--size", "32", "--width", "0.125"),
    *("--init", "random", "--workers", "0", "--crop", "frame"),
]


def run_as_written(command):
    program, *words = command.split(" && ")[-1].split()
    if "train.py" in words:
        words += SHORT
    if program == "torchrun":
        words[words.index("train.py")] = str(ROOT / "train.py")
        subprocess.run([sys.executable, "-m", "torch.distributed.run", *words], check=True)
    elif words[0] == "train.py":
        train.main(words[1:])
    elif words[0] == "eval.py":
        evaluation.main(words[1:])
    elif words[0] == "data.py":
        data.main(words[1:])
    else:
        assert command.endswith("python -m pytest tests")


def test_the_readmes_commands_run_in_their_order(toy, tmp_path, monkeypatch):
    shutil.copytree(toy / "toy_ffpp", tmp_path / "toy_ffpp")
    shutil.copytree(toy / "toy_ffpp", tmp_path / "FaceForensics++")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    for command in COMMANDS:
        try:
            run_as_written(command)
        except SystemExit as stop:
            assert not stop.code, f"{command}: {stop.code}"


@pytest.mark.skipif(sys.platform == "win32", reason="the loops are for bash")
def test_the_readmes_loops_fill_a_table(toy, tmp_path):
    loops = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    assert len(loops) == 2
    for name in ("toy_ffpp", "FaceForensics++"):
        shutil.copytree(toy / "toy_ffpp", tmp_path / name)
    for loop in loops:
        for name, few in (("seed", "0"), ("holdout", "NT"), ("mode", "bin_ce")):
            loop = re.sub(rf"for {name} in [^;]+;", f"for {name} in {few};", loop)
        loop = loop.replace("python ", f'"{sys.executable}" "{ROOT}"/')
        loop = loop.replace("/train.py", f"/train.py {' '.join(SHORT)}")
        result = subprocess.run(["bash", "-c", loop], cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0 and "| Binary CE" in result.stdout, loop + result.stderr


def test_the_readmes_way_to_use_a_trained_detector_gives_evals_score(finished, toy, tmp_path):
    block = next(block for block in PYTHON if "torch.load" in block)
    video = toy / "toy_ffpp/original_sequences/youtube/c23/videos/953.mp4"
    block = block.replace('"best.pt"', repr(str(finished[0] / "best.pt")))
    names = {}
    exec(block.replace('"video.mp4"', repr(str(video))), names)

    flags = ["--video", str(video), "--clips=4", "--out", str(tmp_path)]
    with pytest.raises(SystemExit, match="0"):
        evaluation.main([f"{finished[0]}/best.pt", *flags])
    scored = json.loads((tmp_path / "scores.json").read_text())["videos"]
    assert names["fake_probability"] == pytest.approx(scored[0]["score"], abs=1e-5)


def toy_picture(root):
    """Five frames of an original and of its four fakes, as the network sees them."""
    videos = FFPP(root, "test", "none", frames=8, size=50, clips=1)
    rows = []
    for name in CLASSES:
        index = next(i for i, video in enumerate(videos.videos) if video[1:] == (name, "953"))
        frames = videos[index][0][0][:, :5].permute(2, 1, 3, 0).flatten(1, 2).numpy()
        rows.append(frames[..., ::-1])  # (50, 5 * 50, 3), BGR
    return np.concatenate(rows)


def test_the_readmes_picture_of_the_toy_is_drawn_by_it(toy):
    picture = cv2.imread(str(ROOT / ".github/toy.png")).astype(float)
    assert np.abs(picture - toy_picture(toy / "toy_ffpp")).mean() < 3


@pytest.mark.parametrize("name", ["s3d", "data", "losses", "moco", "heads"])
def test_a_concept_file_works_alone_as_its_docstring_says(name, toy, tmp_path, run):
    shutil.copy(ROOT / f"{name}.py", tmp_path)
    docstring = (tmp_path / f"{name}.py").read_text(encoding="utf-8").split('"""')[1]
    example = re.search(r"copy this file:\n\n((?:    .*\n|\n)+)", docstring).group(1)
    if name == "data":
        shutil.copytree(toy / "toy_ffpp", tmp_path / "FaceForensics++")
        video = "FaceForensics++/original_sequences/youtube/c23/videos/953.mp4"
        example = example.replace("my.mp4", video).replace("clips=4) ", "clips=4, crop='frame') ")
    (tmp_path / "example.py").write_text(textwrap.dedent(example), encoding="utf-8")
    for script in ("example.py", f"{name}.py"):  # the example, then the lesson
        result = run(tmp_path, tmp_path / script)
        assert result.returncode == 0, example + result.stderr
