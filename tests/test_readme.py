# SPDX-License-Identifier: MIT
"""The README's commands run: the toy stands in for FF++, and short runs for long ones."""
import re
import shutil
import textwrap

import pytest

from conftest import ROOT

COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
            for line in block.strip().splitlines()]
SHORT = ["--epochs", "1", "--batch-size", "4", "--frames", "8", "--size", "32", "--width", "0.125", "--init", "random", "--workers", "0"]


def test_the_readme_has_the_two_commands_that_install_and_run():
    assert [c for c in COMMANDS if "pip install" in c] == [
        "python -m pip install -r requirements.txt && python train.py --mode bin_contrastive --holdout DF",
        "python -m pip install -r requirements.txt && python -m pytest tests"]


def test_the_readmes_commands_run_in_their_order(toy, tmp_path, run):
    shutil.copytree(toy / "toy_ffpp", tmp_path / "toy_ffpp")
    shutil.copytree(toy / "toy_ffpp", tmp_path / "FaceForensics++")
    for command in COMMANDS:
        words = command.split(" && ")[-1].split()
        assert words[0] == "python"
        if words[1] == "-m":  # pytest itself
            continue
        short = SHORT if words[1] == "train.py" else []
        result = run(tmp_path, words[1], *words[2:], *short)
        assert result.returncode == 0, f"{command}\n{result.stderr}"


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
