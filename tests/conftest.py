# SPDX-License-Identifier: MIT
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="also the long runs: the toy's targets with the default settings, 20 kills; about 80 minutes")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--long"):
        for item in items:
            if "long" in item.keywords:
                item.add_marker(pytest.mark.skipif(True, reason="needs --long"))


def pytest_configure(config):
    config.addinivalue_line("markers", "long: runs only with --long")


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """A folder with a small toy FF++ (6 + 2 + 4 identities) in toy_ffpp/, where train.py looks for it."""
    from data import make_toy
    folder = tmp_path_factory.mktemp("toy")
    make_toy(folder / "toy_ffpp", identities=(6, 2, 4), processes=2)
    return folder


def command(folder, script, *flags):
    """Run a script of the project as a user would; returns the finished process with stdout and stderr as text."""
    return subprocess.run([sys.executable, str(ROOT / script), *map(str, flags)], cwd=folder, text=True, encoding="utf-8",
                          capture_output=True, timeout=600, env={**os.environ, "PYTHONIOENCODING": "utf-8"})


TINY = ["--epochs", "2", "--batch-size", "4", "--size", "32", "--width", "0.125", "--queue-size", "10"]


@pytest.fixture(scope="session")
def finished(toy):
    """One short run of the case with all kinds of modules: its folder, what it printed, its flags."""
    flags = ["--mode", "bin_contrastive_multi_contrastive", "--holdout", "NT", "--seed", "3", *TINY, "--out", "runs/first"]
    result = command(toy, "train.py", *flags)
    assert result.returncode == 0, result.stderr
    return toy / "runs" / "first", result.stdout, flags


@pytest.fixture
def run():
    return command


@pytest.fixture
def refused(capfd, monkeypatch):
    """The sentence with which a command refuses, run inside this process (quicker by torch's import); the exit status
    is not 0 and there is no traceback."""
    def refused(folder, main, *flags):
        monkeypatch.chdir(folder)
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(flag) for flag in flags])
        assert stop.value.code not in (0, None)
        message = capfd.readouterr().err + (stop.value.code if isinstance(stop.value.code, str) else "")
        sentence = [line for line in message.strip().splitlines() if "finding faces" not in line]
        assert len(sentence) == 1, message
        return sentence[0]
    return refused
