# SPDX-License-Identifier: MIT
"""What the tests share. Run `python -m pytest tests` in the root of the repository."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # more would wait for each other in small networks
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores Ctrl-C
ROOT = Path(__file__).resolve().parent.parent
TINY = "--epochs 2 --batch-size 4 --size 32 --width 0.125 --queue-size 20".split()  # seconds


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """A folder with a small toy in toy_ffpp/: 6 + 2 + 4 identities."""
    from tests.toy import make_toy

    folder = tmp_path_factory.mktemp("toy")
    make_toy(folder / "toy_ffpp", identities=(6, 2, 4), processes=2)
    return folder


@pytest.fixture(scope="session")
def whole_toy(tmp_path_factory):
    """A folder with the toy in toy_ffpp/, as train.py draws it."""
    from tests.toy import make_toy

    folder = tmp_path_factory.mktemp("whole")
    make_toy(folder / "toy_ffpp")
    return folder


def command(folder, script, *flags):
    """A script of the project, run in a folder as a user would: the finished process, in text."""
    return subprocess.run(
        [sys.executable, str(ROOT / script), *map(str, flags)],
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
        timeout=600,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )


@pytest.fixture
def here(toy, monkeypatch):
    monkeypatch.chdir(toy)


@pytest.fixture
def run():
    return command


@pytest.fixture(scope="session")
def finished(toy):
    """A short run with every kind of contrastive module: (its folder, its stdout, its flags)."""
    mode = "bin_contrastive_multi_contrastive"
    flags = f"--mode {mode} --holdout NT --seed 3 {' '.join(TINY)} --out runs/first".split()
    result = command(toy, "train.py", *flags)
    assert result.returncode == 0, result.stderr
    return toy / "runs/first", result.stdout, flags


@pytest.fixture
def refused(monkeypatch, capfd):
    """The one sentence with which main(flags) ends. Inside this process: no second import."""

    def refuse(folder, main, *flags):
        monkeypatch.chdir(folder)
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(flag) for flag in flags])
        sentence, error = stop.value.code, capfd.readouterr().err
        if not isinstance(sentence, str):  # argparse has printed it, after the usage
            usage, sentence = error.strip().splitlines()
            assert stop.value.code == 2 and usage.startswith("usage: ")
        assert "\n" not in sentence and "Traceback" not in error
        return sentence

    return refuse
