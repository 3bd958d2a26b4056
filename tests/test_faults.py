# SPDX-License-Identifier: MIT
"""Nothing lost, nothing let in: kills at random moments, damaged files of every kind."""
import csv
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


def test_while_a_run_goes_on_its_folder_can_be_read_and_a_video_may_disappear(toy, run, tmp_path):
    shutil.copytree(toy / "toy_ffpp", tmp_path / "toy_ffpp")
    out, process = tmp_path / "runs" / "busy", start(tmp_path, *FLAGS, "--epochs", "500", "--out", "runs/busy")
    try:
        while process.poll() is None and not (out / "log.csv").is_file():
            time.sleep(0.05)
        gone = min((tmp_path / "toy_ffpp" / "manipulated_sequences" / "Deepfakes" / "c23" / "videos").glob("*.mp4"))
        gone.unlink()
        assert run(tmp_path, "eval.py", "runs/busy/best.pt", "--device", "cpu").returncode == 0
        if os.name != "nt":
            second = run(tmp_path, "train.py", *FLAGS, "--epochs", "500", "--out", "runs/busy", "--resume")
            assert second.returncode == 1 and second.stderr.count("\n") == 1 and "another process is training" in second.stderr
        for _ in range(40):  # while checkpoints and logs are renewed
            evaluation.load_checkpoint(out / "best.pt"), evaluation.load_checkpoint(out / "last.pt")
            json.loads((out / "config.json").read_text())
            assert (out / "log.csv").read_text().endswith("\n")
        assert process.poll() is None, process.stderr.read()
    finally:
        process.terminate()
        printed, error = process.communicate(timeout=60)
    assert "Traceback" not in error and gone.name in printed
    assert [line.split(",")[-3] for line in (out / "log.csv").read_text().splitlines()][-1] == "1"  # broken_videos


# --- Saving: what was there before survives every failure -----------------------------------------------------------------

WRITERS = {"last.pt": lambda path, n: train.save({"n": n}, path), "results.json": lambda path, n: evaluation.save_json({"n": n}, path),
           "log.csv": lambda path, n: train.write_log([{"n": n}], path)}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("fault", ["disk full", "permission denied at the rename", "Ctrl-C"])
def test_a_file_that_cannot_be_written_leaves_the_one_before_and_no_other(tmp_path, monkeypatch, name, fault):
    WRITERS[name](tmp_path / name, 1)
    before = (tmp_path / name).read_bytes()

    def fail(self, *_, **__):
        if fault == "permission denied at the rename":
            raise PermissionError(13, "Permission denied")
        (tmp_path / f"{name}.part").write_bytes(b"half")
        raise {"disk full": OSError(28, "No space left on device"), "Ctrl-C": KeyboardInterrupt()}[fault]
    if fault.startswith("permission"):
        monkeypatch.setattr(Path, "replace", fail)
    else:
        monkeypatch.setattr({"last.pt": torch, "results.json": json, "log.csv": csv.DictWriter}[name], {"last.pt": "save", "results.json": "dumps", "log.csv": "writerows"}[name], fail)
    with pytest.raises(KeyboardInterrupt if fault == "Ctrl-C" else OSError, match=None if fault == "Ctrl-C" else f"{name} could not be written"):
        WRITERS[name](tmp_path / name, 2)
    assert (tmp_path / name).read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", WRITERS)
def test_a_kill_between_writing_and_renaming_leaves_the_old_file_and_the_next_save_works(tmp_path, name):
    WRITERS[name](tmp_path / name, 1)
    before = (tmp_path / name).read_bytes()
    script = ("import os, sys; sys.path[:0] = sys.argv[1:3]\nfrom pathlib import Path\nfrom test_faults import WRITERS\n"
              "Path.replace = lambda *_: os._exit(9)\nWRITERS[sys.argv[4]](Path(sys.argv[3]) / sys.argv[4], 2)\n")
    result = subprocess.run([sys.executable, "-c", script, str(ROOT), str(ROOT / "tests"), str(tmp_path), name], timeout=120)
    assert result.returncode == 9 and (tmp_path / name).read_bytes() == before
    WRITERS[name](tmp_path / name, 3)
    assert (tmp_path / name).read_bytes() != before and [p.name for p in tmp_path.iterdir()] == [name]


def test_after_a_kill_between_best_and_last_the_results_name_the_epoch_that_best_holds(toy, monkeypatch, capsys):
    monkeypatch.chdir(toy)
    flags, save, measure = [*FLAGS, "--out", "runs/between"], train.save, evaluation.metrics
    score = lambda auc: monkeypatch.setattr(evaluation, "metrics", lambda *a: {**measure(*a), "auc": next(auc)})
    monkeypatch.setattr(train, "save", lambda state, path: sys.exit(9) if state["epoch"] == 2 and "log" in state else save(state, path))
    score(iter([0.5, 0.6]))
    with pytest.raises(SystemExit, match="9"):
        train.main(flags)  # best.pt holds epoch 2, last.pt epoch 1
    monkeypatch.setattr(train, "save", save)
    score(iter([0.4] * 9999))  # the second time epoch 2 rounds differently, as on a GPU
    train.main([*flags, "--resume"])
    assert json.loads(Path("runs/between/results.json").read_text())["epoch"] == torch.load("runs/between/best.pt", weights_only=True)["epoch"] == 2


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit on a file's size")
def test_a_run_whose_disk_is_full_names_the_file_and_leaves_what_could_be_written(toy):
    script = ("import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (2 ** 20, 2 ** 20)); sys.argv = sys.argv[1:]; sys.path.insert(0, sys.argv.pop(0))\n"
              "runpy.run_path(sys.argv[0], run_name='__main__')")  # best.pt stays below a megabyte, last.pt does not
    result = subprocess.run([sys.executable, "-c", script, str(ROOT), str(ROOT / "train.py"), *FLAGS, "--out", "runs/full"], cwd=toy, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1 and "last.pt could not be written" in result.stderr and "Traceback" not in result.stderr
    assert sorted(p.name for p in (toy / "runs" / "full").iterdir() if not p.name.startswith(("events", ".lock"))) == ["best.pt", "config.json"]
    evaluation.load_checkpoint(toy / "runs" / "full" / "best.pt")


def test_a_finished_run_whose_result_is_damaged_is_refused(finished, refused, toy):
    folder, _, flags = finished
    shutil.copytree(folder, toy / "runs" / "odd")
    results = json.loads((folder / "results.json").read_text())
    for changed in ({"last": 3}, {"last": {}}, {"seen": 1}, {"videos": []}, {"metrics": {}}):
        (toy / "runs" / "odd" / "results.json").write_text(json.dumps({**results, **changed}))
        assert "results.json" in refused(toy, train.main, *flags[:-1], "runs/odd")
    (toy / "runs" / "odd" / "config.json").unlink()
    sentence = refused(toy, train.main, *flags[:-1], "runs/odd")
    assert "config.json" in sentence and "--overwrite" in sentence


def test_one_manipulation_beside_the_held_out_one_that_cannot_be_read_costs_only_its_own_number(finished, run, tmp_path):
    folder, _, _ = finished
    shutil.copytree(folder.parent.parent / "toy_ffpp", tmp_path / "toy_ffpp")
    for path in (tmp_path / "toy_ffpp" / "manipulated_sequences" / "FaceSwap").rglob("*.mp4"):
        path.write_text("")
    assert run(tmp_path, "eval.py", folder / "best.pt", "--out", "results.json").returncode == 1
    assert set(json.loads((tmp_path / "results.json").read_text())["seen"]) == {"DF", "F2F"}


def test_a_checkpoint_of_something_else_is_refused_with_the_difference(finished, refused, toy):
    folder, _, flags = finished
    other = toy / "runs" / "foreign"
    shutil.copytree(folder, other)
    (other / "results.json").unlink()
    flags = [*flags[:-1], str(other), "--resume"]
    checkpoint = torch.load(folder / "last.pt", weights_only=True)
    torch.save({**checkpoint, "config": {**checkpoint["config"], "lr": 0.25}}, other / "last.pt")
    assert "--lr 0.25 there, 0.0005 now" in refused(toy, train.main, *flags)
    shutil.copy(folder / "best.pt", other / "last.pt")
    assert "lacks" in refused(toy, train.main, *flags)
    assert "this S3D needs (16," in refused(toy, train.main, "--init", folder / "best.pt", "--out", "runs/wider")
    assert "--crop frame" in refused(toy, evaluation.main, folder / "best.pt", "--crop", "frame")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_cache_that_cannot_be_written_is_named_and_no_video_blamed(refused, toy, tmp_path, workers):
    (tmp_path / "file").write_text("")
    sentence = refused(toy, train.main, *TINY, "--workers", workers, "--cache", tmp_path / "file" / "cache", "--out", f"runs/no_cache{workers}")
    assert "--cache" in sentence and "cannot be written" in sentence and "download" not in sentence


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
