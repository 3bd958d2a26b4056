# SPDX-License-Identifier: MIT
"""The README keeps its word. The toy stands in for FF++, and short runs for long ones."""

import json
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import eval as evaluation
import train
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = "".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL)).splitlines()
LOOPS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SHORT = "--epochs 1 --batch-size 4 --size 32 --workers 0".split()


def run_as_written(command):
    program, script, *flags = command.split(" && ")[-1].split()
    if program == "torchrun":  # test_parallel.py runs it
        train.parse(flags[flags.index("train.py") + 1 :])
    elif script == "train.py":
        train.main([*flags, *SHORT])
    elif script == "eval.py":
        evaluation.main(flags)
    else:
        assert command.endswith("python -m pytest tests")


def test_the_readmes_commands_run_in_their_order(toy, tmp_path, monkeypatch):
    for name in ("toy_ffpp", "FaceForensics++"):
        shutil.copytree(toy / "toy_ffpp", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for command in COMMANDS:
        try:
            run_as_written(command)
        except SystemExit as stop:
            assert not stop.code, f"{command}: {stop.code}"
    assert len(COMMANDS) > 5


@pytest.mark.skipif(sys.platform == "win32", reason="the loops are for bash")
@pytest.mark.parametrize("loop", LOOPS)
def test_the_readmes_loops_make_different_runs_in_the_folder_of_their_table(loop):
    shell = ["bash", "-c", 'python() { echo "$@"; }\n' + loop]
    text = subprocess.run(shell, capture_output=True, encoding="utf-8", check=True).stdout
    *runs, table = [line.split() for line in text.splitlines()]
    folders = {Path(train.parse(run[1:]).out) for run in runs}
    assert len(folders) == len(runs) > 5
    assert {folder.parent for folder in folders} == {Path(evaluation.parse(table[1:]).table)}


def test_the_readmes_way_to_use_a_trained_detector_gives_evals_score(
    finished, toy, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copy(toy / "toy_ffpp/original_sequences/youtube/c23/videos/953.mp4", "video.mp4")
    # After few steps BatchNorm's averages lag so far behind that all scores are equal.
    encoder, _, config = evaluation.load_checkpoint(finished[0] / "best.pt")
    for module in encoder.modules():
        module.momentum = 1
    encoder.train()(torch.rand(4, 3, 8, 32, 32))
    checkpoint = torch.load(finished[0] / "best.pt", weights_only=True)
    torch.save({**checkpoint, "encoder": encoder.state_dict()}, "best.pt")

    names = {}
    exec(next(block for block in PYTHON if "torch.load" in block), names)
    with pytest.raises(SystemExit, match="0"):
        evaluation.main("best.pt --video video.mp4 --clips 4 --out .".split())
    (video,) = json.loads(Path("results.json").read_text())["videos"]
    assert names["fake_probability"] == pytest.approx(video["score"], abs=1e-5)
    assert len(set(video["clips"])) == 4


@pytest.mark.parametrize("name", ["s3d", "data", "losses", "moco", "heads"])
def test_a_concept_file_works_alone_as_its_docstring_says(name, toy, tmp_path, run):
    shutil.copy(ROOT / f"{name}.py", tmp_path)
    docstring = (tmp_path / f"{name}.py").read_text(encoding="utf-8").split('"""')[1]
    example = re.search(r"copy this file:\n\n((?:    .*\n|\n)+)", docstring).group(1)
    if name == "data":
        shutil.copytree(toy / "toy_ffpp", tmp_path / "FaceForensics++")
        shutil.copy(next(toy.rglob("953.mp4")), tmp_path / "my.mp4")
        example = example.replace("size=128", "size=128, crop='frame'")  # faces are drawn
    lesson = f"import runpy\nrunpy.run_path('{name}.py', run_name='__main__')\n"
    (tmp_path / "example.py").write_text(textwrap.dedent(example) + lesson, encoding="utf-8")
    result = run(tmp_path, tmp_path / "example.py")
    assert result.returncode == 0, example + result.stderr
