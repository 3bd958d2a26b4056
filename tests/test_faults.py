# SPDX-License-Identifier: MIT
"""Nothing lost, nothing let in: kills at random moments, damaged files of every kind."""
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import eval as evaluation
import train
from conftest import ROOT, TINY
from data import read_boxes
from s3d import S3D, load_pretrained

H264 = Path(__file__).parent / "fixtures" / "h264_bframes.mp4"
FLAGS = ["--mode", "bin_contrastive", "--holdout", "FS", *TINY, "--epochs", "5"]


def start(folder, *flags):
    return subprocess.Popen([sys.executable, str(ROOT / "train.py"), *flags], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.long)])
def test_a_run_killed_at_random_moments_ends_as_the_undisturbed_one(toy, kills):
    began, draw = time.time(), random.Random(kills)
    undisturbed = start(toy, *FLAGS, "--out", f"runs/undisturbed{kills}")
    assert undisturbed.wait() == 0
    length, done, number = time.time() - began, 0, 0
    contents = lambda out: torch.load(toy / out / "last.pt", weights_only=True)
    expected = contents(f"runs/undisturbed{kills}")
    while done < kills:
        out, number = f"runs/killed{kills}_{number}", number + 1
        while True:
            process = start(toy, *FLAGS, "--out", out, "--resume")
            try:
                process.wait(draw.uniform(0.2, 1) * length if done < kills else None)
            except subprocess.TimeoutExpired:
                process.kill()  # SIGKILL: nothing of ours runs any more
                process.communicate()
                done += 1
                for name in ("best.pt", "last.pt"):  # whatever the moment, what is there can be read
                    if (toy / out / name).is_file():
                        torch.load(toy / out / name, weights_only=True)
                continue
            assert process.returncode == 0, process.stderr.read()
            break
        found = contents(out)
        assert [{k: v for k, v in row.items() if k not in ("clips_per_second", "seconds")} for row in found["log"]] == \
               [{k: v for k, v in row.items() if k not in ("clips_per_second", "seconds")} for row in expected["log"]]
        for part in ("encoder", "bin_classifier"):
            assert all(torch.equal(found[part][k], expected[part][k]) for k in expected[part])
        for net in expected["others"]:
            assert all(torch.equal(found["others"][net][k], expected["others"][net][k]) for k in expected["others"][net])


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_leave_with_the_command_to_go_on(toy, number):
    out = f"runs/stopped{number}"
    process = start(toy, *FLAGS, "--epochs", "500", "--out", out)
    while process.poll() is None and not (toy / out / "last.pt").is_file():
        time.sleep(0.05)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode != 0 and "--resume" in error and "Traceback" not in error


# --- Fuzzing: fixed seeds; each input ends in success or in one of our own sentences ------------------------------------

def mutated(content, seed):
    """Bytes with some flipped, a piece cut out, doubled, overwritten, or the end gone."""
    draw, content = random.Random(seed), bytearray(content)
    for _ in range(draw.randint(1, 4)):
        a = draw.randrange(len(content))
        b = min(len(content), a + draw.choice([1, 4, 64, 2000]))
        kind = draw.randrange(5)
        if kind == 0:
            content[a:b] = bytes(draw.randrange(256) for _ in range(b - a))
        elif kind == 1:
            del content[a:b]
        elif kind == 2:
            content[a:a] = content[a:b]
        elif kind == 3:
            content[a:b] = draw.choice([b"\x00", b"\xff"]) * (b - a)
        else:
            del content[max(1, a):]
        content = content or bytearray(b"x")
    return bytes(content)


def test_mutated_videos_give_a_clip_or_are_named_unreadable(tmp_path):
    for seed in range(200):
        (tmp_path / f"{seed}.mp4").write_bytes(mutated(H264.read_bytes(), seed))
    (tmp_path / "read.py").write_text(
        "import sys; sys.path.insert(0, sys.argv[1])\nfrom data import UnreadableVideo, read_clip\nfrom pathlib import Path\n"
        "for path in sorted(Path(sys.argv[2]).glob('*.mp4')):\n    try:\n        assert len(read_clip(path, 8, 0.7)) == 8\n"
        "    except UnreadableVideo as error:\n        assert path.name in str(error)\nprint('all read')\n")
    result = subprocess.run([sys.executable, str(tmp_path / "read.py"), str(ROOT), str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert "all read" in result.stdout, result.stderr  # in a process of its own: a crash of the decoder would show


def test_mutated_checkpoints_load_or_raise_a_value_error(finished, tmp_path):
    folder, _, _ = finished
    content, opened = (folder / "best.pt").read_bytes(), 0
    model = S3D(0.125)
    for seed in range(60):
        (tmp_path / "best.pt").write_bytes(mutated(content, seed))
        for load in (lambda: evaluation.load_checkpoint(tmp_path / "best.pt"), lambda: load_pretrained(model, tmp_path / "best.pt")):
            try:
                load()
                opened += 1
            except ValueError as error:
                assert "best.pt" in str(error)
    assert opened < 120


def test_mutated_json_files_are_read_or_refused(finished, tmp_path):
    folder, _, _ = finished
    boxes = json.dumps({f"{i:03d}": [10, 20, 30.5, 40] for i in range(5)}).encode()
    for read, content in ((read_boxes, boxes), (evaluation.read_results, (folder / "results.json").read_bytes())):
        for seed in range(150):
            (tmp_path / "file.json").write_bytes(mutated(content, seed))
            try:
                read(tmp_path / "file.json")
            except ValueError as error:
                assert "file.json" in str(error)


@pytest.mark.parametrize("content", ['[]', '{"000": [1, 2, 3]}', '{"000": [1, 2, 0, 5]}', '{"000": [1, 2, NaN, 5]}', '{"000": "abcd"}', '[' * 100000, "{"])
def test_a_json_of_boxes_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "boxes.json").write_text(content)
    with pytest.raises(ValueError, match="boxes.json"):
        read_boxes(tmp_path / "boxes.json")


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("name", ["best.pt", "last.pt"])
def test_code_in_a_checkpoint_is_not_run_by_any_command(finished, refused, toy, tmp_path, name):
    folder, _, flags = finished
    shutil.copytree(folder, toy / "runs" / f"evil_{name}")
    (toy / "runs" / f"evil_{name}" / "results.json").unlink()
    torch.save({"config": Malicious(str(tmp_path / "created")), "encoder": {}}, toy / "runs" / f"evil_{name}" / name)
    assert name in refused(toy, evaluation.main, f"runs/evil_{name}/{name}")
    if name == "last.pt":
        assert name in refused(toy, train.main, *flags[:-1], f"runs/evil_{name}", "--resume")
    assert not (tmp_path / "created").exists()


def test_a_training_set_of_which_more_than_one_in_a_hundred_is_broken_stops_the_run(toy, run, tmp_path):
    shutil.copytree(toy / "toy_ffpp", tmp_path / "toy_ffpp")
    for path in sorted((tmp_path / "toy_ffpp" / "manipulated_sequences" / "FaceSwap" / "c23" / "videos").glob("*.mp4"))[:6]:
        path.write_bytes(b"")
    result = run(tmp_path, "train.py", *TINY, "--holdout", "DF")
    assert result.returncode != 0 and "more than 1 %" in result.stderr and "FaceSwap" in result.stderr and "Traceback" not in result.stderr


def test_odd_folder_names_do_no_harm(finished, run, toy, tmp_path):
    folder, _, _ = finished
    odd = tmp_path / "- spaces, ünïcode and\nnewline"
    shutil.copytree(toy / "toy_ffpp", odd / "toy_ffpp")
    result = run(odd, "eval.py", folder / "best.pt", "--out", "-results.json".replace("-", "./-", 1))
    assert result.returncode == 0, result.stderr
    assert (odd / "-results.json").is_file()
