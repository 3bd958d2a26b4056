# SPDX-License-Identifier: MIT
"""The README keeps its word: its commands run (the toy stands in for FF++, short runs for long ones), its lines of code
are the project's, and a concept file works alone as its docstring says."""
import re
import runpy
import shutil
import subprocess
import sys
import textwrap

import pytest

import eval as evaluation
import train
from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.strip().splitlines()]
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SHORT = ["--epochs", "1", "--batch-size", "4", "--frames", "8", "--size", "32", "--width", "0.125", "--init", "random", "--workers", "0"]

def test_the_readme_has_the_two_commands_that_install_and_run():
    assert [c for c in COMMANDS if "pip install" in c] == [
        "python -m pip install -r requirements.txt && python train.py --mode bin_contrastive --holdout DF",
        "python -m pip install -r requirements.txt && python -m pytest tests"]

def test_the_readmes_commands_run_in_their_order(toy, tmp_path, run, monkeypatch):
    shutil.copytree(toy / "toy_ffpp", tmp_path / "toy_ffpp")
    shutil.copytree(toy / "toy_ffpp", tmp_path / "FaceForensics++")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    seen = set()
    for command in COMMANDS:
        program, *words = command.split(" && ")[-1].split()
        short = SHORT if "train.py" in words else []
        seen |= {word for word in words if word.endswith(".py")}
        try:
            if program == "torchrun":
                words[words.index("train.py")] = str(ROOT / "train.py")
                result = subprocess.run([sys.executable, "-m", "torch.distributed.run", *words, *short], capture_output=True, text=True, timeout=300)
                assert result.returncode == 0, f"{command}\n{result.stderr}"
            elif words[0] == "train.py":
                train.main([*words[1:], *short])
            elif words[0] == "eval.py":
                evaluation.main(words[1:])
            elif words[0] != "-m":  # pytest itself
                assert program == "python"
                runpy.run_path(str(ROOT / words[0]), run_name="__main__")
        except SystemExit as stop:
            assert not stop.code, f"{command}: {stop.code}"
    assert seen == {"train.py", "eval.py", "s3d.py", "data.py", "losses.py", "moco.py", "heads.py"}

@pytest.mark.skipif(sys.platform == "win32", reason="the loops are for bash")
def test_the_readmes_loops_fill_the_tables(toy, tmp_path):
    loops = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    assert len(loops) == 2
    shutil.copytree(toy / "toy_ffpp", tmp_path / "toy_ffpp")
    shutil.copytree(toy / "toy_ffpp", tmp_path / "FaceForensics++")
    for loop in loops:
        for name, few in (("seed", "0"), ("holdout", "NT"), ("mode", "bin_ce")):
            loop, found = re.subn(rf"for {name} in [^;]+;", f"for {name} in {few};", loop)
            assert found == 1
        loop = re.sub(r"python (train\.py[^\n\\|]*)", rf'"{sys.executable}" "{ROOT}"/\1 {" ".join(SHORT)} ', loop)
        loop = re.sub(r"python eval\.py", f'"{sys.executable}" "{ROOT}"/eval.py', loop)
        result = subprocess.run(["bash", "-c", loop], cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, loop + result.stderr
    assert (tmp_path / "runs" / "ffpp" / "bin_ce_NT_seed0" / "results.json").is_file() and "Binary CE" in result.stdout

def test_the_readmes_lines_of_code_are_the_projects():
    lines = {line.strip() for name in ("train", "losses") for line in (ROOT / f"{name}.py").read_text(encoding="utf-8").splitlines()}
    quoted = [line.strip() for block in PYTHON if "torch.load" not in block for line in block.splitlines()]
    assert len(quoted) > 8 and set(quoted) <= lines, set(quoted) - lines

def test_the_readmes_way_to_use_a_trained_detector_elsewhere_gives_evals_probability(finished, toy):
    folder, _, _ = finished
    block, = (block for block in PYTHON if "torch.load" in block)
    original = toy / "toy_ffpp" / "original_sequences" / "youtube" / "c23" / "videos" / "953.mp4"
    names = {}
    exec(block.replace('"best.pt"', repr(str(folder / "best.pt"))).replace('"video.mp4"', repr(str(original))), names)
    encoder, classifier, config = evaluation.load_checkpoint(folder / "best.pt")
    rows, _, _ = evaluation.evaluate(encoder, classifier, evaluation.VideoList([(original, "own", 0)], config, clips=1))  # its place: 0.5
    assert names["fake_probability"].item() == pytest.approx(rows[0]["score"], abs=1e-5)

def test_every_file_and_function_the_readme_names_exists():
    for file, function in re.findall(r"`(\w+\.py)`,[^|\n]*?`(\w+)`", README):
        assert re.search(rf"\b{function}\b", (ROOT / file).read_text(encoding="utf-8")), (file, function)

def test_every_file_carries_its_licence():
    for path in [*ROOT.glob("*.py"), *(ROOT / "tests").glob("*.py")]:
        assert path.read_text(encoding="utf-8").startswith("# SPDX-License-Identifier: MIT\n"), path

@pytest.mark.parametrize("name", ["s3d", "data", "losses", "moco", "heads"])
def test_a_concept_file_works_alone_as_its_docstring_says(name, toy, tmp_path, run):
    shutil.copy(ROOT / f"{name}.py", tmp_path)
    docstring = (tmp_path / f"{name}.py").read_text(encoding="utf-8").split('"""')[1]
    example = re.search(r"copy this file:\n\n((?:    .*\n|\n)+)", docstring).group(1)
    if name == "data":
        shutil.copytree(toy / "toy_ffpp", tmp_path / "FaceForensics++")
    (tmp_path / "example.py").write_text(textwrap.dedent(example), encoding="utf-8")
    result = run(tmp_path, tmp_path / "example.py")
    assert result.returncode == 0, example + result.stderr
