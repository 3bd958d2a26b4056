# SPDX-License-Identifier: MIT
"""The README keeps its word. The toy stands in for FF++, and short runs for long ones."""
import json
import re
import shutil
import subprocess
import sys
import textwrap

import pytest

import eval as evaluation
import train
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.strip().splitlines()]
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SHORT = ["--epochs", "1", "--batch-size", "4", "--frames", "8", "--size", "32", "--width", "0.125",
         "--init", "random", "--workers", "0", "--crop", "frame"]

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

def test_the_readmes_lines_of_code_are_the_projects():
    lines = {line.strip() for line in (ROOT / "losses.py").read_text(encoding="utf-8").splitlines()}
    quoted = [line for block in PYTHON if "torch.load" not in block for line in block.splitlines()]
    assert len(quoted) == 3 and set(quoted) <= lines

def test_the_readmes_way_to_use_a_trained_detector_gives_evals_score(finished, toy, capsys):
    block, = (block for block in PYTHON if "torch.load" in block)
    video = toy / "toy_ffpp" / "original_sequences" / "youtube" / "c23" / "videos" / "953.mp4"
    names = {}
    block = block.replace('"best.pt"', repr(str(finished[0] / "best.pt")))
    exec(block.replace('"video.mp4"', repr(str(video))), names)
    with pytest.raises(SystemExit, match="0"):
        evaluation.main([f"{finished[0]}/best.pt", "--video", str(video), "--clips=4", "--json"])
    scored, = json.loads(capsys.readouterr().out)["videos"]
    assert names["fake_probability"] == pytest.approx(scored["score"], abs=1e-5)

@pytest.mark.parametrize("name", ["s3d", "data", "losses", "moco", "heads"])
def test_a_concept_file_works_alone_as_its_docstring_says(name, toy, tmp_path, run):
    shutil.copy(ROOT / f"{name}.py", tmp_path)
    docstring = (tmp_path / f"{name}.py").read_text(encoding="utf-8").split('"""')[1]
    example = re.search(r"copy this file:\n\n((?:    .*\n|\n)+)", docstring).group(1)
    if name == "data":
        shutil.copytree(toy / "toy_ffpp", tmp_path / "FaceForensics++")
        video = "FaceForensics++/original_sequences/youtube/c23/videos/953.mp4"
        example = example.replace("my.mp4", video).replace("clips=4) ", "clips=4, crop='frame')")
    (tmp_path / "example.py").write_text(textwrap.dedent(example), encoding="utf-8")
    for script in ("example.py", f"{name}.py"):  # the example, then the lesson
        result = run(tmp_path, tmp_path / script)
        assert result.returncode == 0, example + result.stderr
