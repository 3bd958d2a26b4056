# SPDX-License-Identifier: MIT
"""The README keeps its word. The toy stands in for FF++, and short runs for long ones."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import cv2
import pytest
import torch

import eval as evaluation
import train
from tests import pictures, results
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = "".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL)).splitlines()
LOOPS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
(PYTHON,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
(DIFF,) = re.findall(r"```diff\n(.*?)```", README, re.DOTALL)
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
    videos = next(tmp_path.rglob("Deepfakes/c23/videos"))
    for name in ("Celeb-real", "YouTube-real", "Celeb-synthesis"):
        shutil.copytree(videos, tmp_path / "Celeb-DF-v2" / name)
    monkeypatch.chdir(tmp_path)
    for command in COMMANDS:
        try:
            run_as_written(command)
        except SystemExit as stop:
            assert not stop.code, f"{command}: {stop.code}"
    assert len(COMMANDS) > 5


# In place of python and sbatch: a program that notes how it is called and fails for seed 13, and
# one that runs two jobs of an array.
NOTE_CALL = """
echo "$*" >> calls.txt
[[ "$*" != *"--seed 13"* ]]
"""
RUN_JOBS = """
for id in 1 84; do SLURM_ARRAY_TASK_ID=$id bash -c "${@: -1}"; done
"""


def identity(run):
    return run.case, run.epochs, run.holdout, run.seed


@pytest.mark.skipif(sys.platform == "win32", reason="the loops are for bash")
def test_the_readmes_loops_make_the_runs_that_they_promise(tmp_path, monkeypatch):
    for name, script in {"python": NOTE_CALL, "sbatch": RUN_JOBS}.items():
        (tmp_path / name).write_text("#!/usr/bin/env bash" + script)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    calls = []
    failed = []
    for loop in LOOPS:
        (tmp_path / "calls.txt").write_text("")
        result = subprocess.run(["bash", "-c", loop], cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0 and not result.stderr
        calls.append([line.split() for line in (tmp_path / "calls.txt").read_text().splitlines()])
        failed += result.stdout.splitlines()

    toy, write_list, one_gpu, cluster = calls
    *_, first_folder, second_folder = toy.pop()
    runs = [train.parse(call[1:]) for call in toy]
    trained = {identity(run): Path(run.out) for run in runs if not run.explain}
    explained = {identity(run): Path(run.out) for run in runs if run.explain}
    assert len(trained) == len(set(trained.values())) == 160
    epochs = {(str(out.parent), key[1]) for key, out in trained.items()}
    six = train.TOY["epochs"]
    assert epochs == {(str(Path(first_folder)), six), (str(Path(second_folder)), 3 * six)}
    assert explained == {key: out for key, out in trained.items() if key[-1] != 13}
    assert len(failed) == 32 and all(line.startswith("failed: --mode") for line in failed)

    runs = [train.parse(call[1:]) for call in one_gpu]
    assert len(runs) == len({identity(run) for run in runs}) == len({run.out for run in runs}) == 84
    on_cuda = ["train.py", "--device", "cuda"]
    assert cluster == [[*on_cuda, *call[1:]] for call in (one_gpu[0], one_gpu[-1])]
    assert write_list == []


def test_the_readmes_own_loss_trains_and_has_a_row_in_the_table(toy, tmp_path, run):
    for path in ROOT.glob("*.py"):
        shutil.copy(path, tmp_path)
    for change in DIFF.split("@@ ")[1:]:
        name, *lines = change.splitlines()
        before = "\n".join(line[1:] for line in lines if line[0] != "+")
        after = "\n".join(line[1:] for line in lines if line[0] != "-")
        code = (tmp_path / name).read_text(encoding="utf-8")
        assert code.count(before) == 1, before
        (tmp_path / name).write_text(code.replace(before, after), encoding="utf-8")

    flags = ["--data", toy / "toy_ffpp", "--mode", "bin_ce_compact", *SHORT]
    for extra in ([], ["--resume", "--explain"]):
        result = run(tmp_path, tmp_path / "train.py", *flags, *extra)
        assert result.returncode == 0, result.stderr
    assert "cosine of L_bin_ce and L_compact" in result.stdout
    assert "loss_compact" in (tmp_path / "runs/bin_ce_compact_DF_seed0/log.csv").read_text()
    assert "\n| bin_ce_compact |" in run(tmp_path, tmp_path / "eval.py", "--table", "runs").stdout


def test_the_readmes_tables_are_those_of_the_runs():
    rows = results.read_csv()
    assert len(rows) == 160
    for lines in (results.question_lines, results.case_lines, results.gradient_lines):
        assert "\n".join(lines(rows)) in README
    assert results.control_line(rows) in " ".join(README.split())  # whatever its line breaks
    for case, (_, *accuracies) in evaluation.PAPER.items():
        assert f"| `{case}` | {' | '.join(f'{x:.2f}' for x in accuracies)} |" in README


def test_the_pictures_are_those_that_the_command_draws(tmp_path, monkeypatch):
    committed = pictures.FOLDER
    monkeypatch.setattr(pictures, "FOLDER", tmp_path)
    pictures.main()
    for name in ("results.svg", "cases.svg"):
        text = (committed / name).read_text(encoding="utf-8")
        assert (tmp_path / name).read_text(encoding="utf-8") == text
    drawn, shown = cv2.imread(str(tmp_path / "toy.png")), cv2.imread(str(committed / "toy.png"))
    assert (cv2.absdiff(drawn, shown) > 40).mean() < 2e-4  # versions of OpenCV differ a little


def test_the_readmes_way_to_use_a_trained_detector_gives_evals_score(
    finished, toy, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copy(toy / "toy_ffpp/original_sequences/youtube/c23/videos/953.mp4", "video.mp4")
    # After few steps BatchNorm's averages lag so far behind that all scores are equal.
    encoder, *_ = evaluation.load_checkpoint(finished[0] / "best.pt")
    for module in encoder.modules():
        module.momentum = 1
    encoder.train()(torch.rand(4, 3, 8, 32, 32))
    checkpoint = torch.load(finished[0] / "best.pt", weights_only=True)
    torch.save({**checkpoint, "encoder": encoder.state_dict()}, "best.pt")

    names = {}
    exec(PYTHON, names)
    with pytest.raises(SystemExit, match="^0$"):
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
