# SPDX-License-Identifier: MIT
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch

import eval as evaluation
import train
from data import one_sentence, read_boxes, read_clip, read_video, replacing
from tests.conftest import ROOT, TINY


@pytest.mark.parametrize("fault", [KeyboardInterrupt, PermissionError])
def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, fault):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises((KeyboardInterrupt, OSError)) as raised, replacing(path) as temporary:
        temporary.write_text("half")
        raise fault("no luck")
    assert raised.type is KeyboardInterrupt or str(path) in str(raised.value)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_a_full_disk_is_named_with_the_file_and_costs_nothing_that_was_there(tmp_path, monkeypatch):
    evaluation.save("old", tmp_path / "last.pt")

    def fail(*args):
        raise RuntimeError("PytorchStreamWriter failed writing file: file write failed")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="last.pt"):
        evaluation.save("new", tmp_path / "last.pt")
    assert torch.load(tmp_path / "last.pt") == "old" and os.listdir(tmp_path) == ["last.pt"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signal")
def test_ctrl_c_ends_a_run_in_a_sentence_and_resume_goes_on(toy, tmp_path, monkeypatch):
    odd = shutil.copytree(toy, tmp_path / "- a folder's ünïcode%20 and\nnewline")
    flags = [*TINY, "--epochs", "9", "--cache", str(odd / "cäche"), "--out", str(odd / "r n")]
    process = subprocess.Popen(
        [sys.executable, ROOT / "train.py", *flags],
        cwd=odd,
        text=True,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    while process.poll() is None and not (odd / "r n/last.pt").is_file():
        time.sleep(0.02)
    while process.poll() is None:  # again, as Python loses one that arrives in a destructor
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the loader's workers, too
        time.sleep(4)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and "Traceback" not in error and "--resume" in error
    monkeypatch.chdir(odd)
    train.main([*flags, "--resume"])
    assert Path("r n", "results.json").is_file()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_cache_that_cannot_be_written_is_named(refused, toy, tmp_path, workers):
    flags = ["--workers", workers, "--cache", toy / "toy_ffpp/TOY.txt/cache"]
    assert "TOY.txt" in refused(toy, train.main, *TINY, *flags, "--out", tmp_path)


class Malicious:
    def __reduce__(self):
        return open, ("created", "w")


@pytest.mark.parametrize("name", ["best.pt", "last.pt"])
def test_code_in_a_checkpoint_is_never_run(finished, refused, toy, tmp_path, name):
    out = shutil.copytree(finished[0], tmp_path / "run")
    (out / "results.json").unlink()
    torch.save({"config": Malicious(), "encoder": {}}, out / name)
    assert name in refused(toy, evaluation.main, out / name)
    assert name in refused(toy, train.main, *finished[2][:-1], out, "--resume")
    assert not (toy / "created").exists()


def read_damaged(path, read):
    torch.set_num_threads(1)  # in a forked process, as in a loader's worker
    content = path.read_bytes()
    for seed in range(50):
        draw = random.Random(seed)
        start = draw.randrange(len(content))
        end = start + draw.choice([1, 9, 99, len(content)])
        other = draw.choice([draw.randbytes(9), bytes(9), 2 * content[start:end], b""])
        path.write_bytes(content[:start] + other + content[end:])
        try:
            read(path)
        except ValueError as error:
            assert path.name in str(error)


@pytest.mark.parametrize(
    "name, read",
    [
        ("best.pt", evaluation.load_checkpoint),
        ("results.json", evaluation.load),
        ("h264_bframes.mp4", partial(read_clip, frames=8, position=0.7, crop=list)),
        ("h264_bframes.mp4", partial(read_video, frames=8, size=32, clips=3, crop="frame")),
    ],
)
def test_a_damaged_file_is_read_or_named_and_crashes_nothing(finished, tmp_path, name, read):
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    shutil.copy(ROOT / "tests/fixtures/h264_bframes.mp4", tmp_path)
    with ProcessPoolExecutor(1) as process:
        process.submit(read_damaged, tmp_path / name, read).result()


@pytest.mark.parametrize(
    "content", ['{"000": [1, 2, 0, 5]}', '{"000": [1, 2, NaN, 5]}', '{"000": [1]}', "{", "[]"]
)
def test_a_file_that_holds_no_boxes_is_named(tmp_path, content):
    (tmp_path / "boxes.json").write_text(content)
    with pytest.raises(ValueError, match="boxes.json"):
        read_boxes(tmp_path / "boxes.json")


def test_a_lost_process_of_the_loader_is_one_sentence_that_says_what_to_do(capsys):
    for text in ("DataLoader worker (pid 7) is killed by signal: Bus error.", "something else"):
        with pytest.raises((SystemExit, RuntimeError)) as stop, one_sentence("train.py"):
            raise RuntimeError(text)
        lost = text.startswith("DataLoader")
        assert (stop.type is SystemExit) == lost and ("--workers 0" in str(stop.value)) == lost
