# SPDX-License-Identifier: MIT
import csv
import json
import re
import shutil
import subprocess
import sys
import time

import pytest
import torch

import train
from conftest import ROOT, TINY
from data import MANIPULATIONS

TABLE = {  # which losses there are, and whether each reaches the encoder (True), is cut at the embedding (False)
    "baseline": {"bin_ce": True},
    "bin_ce": {"bin_ce": True},
    "bin_contrastive": {"bin_ce": False, "bin_contrast": True},
    "bin_ce_contrastive": {"bin_ce": True, "bin_contrast": True},
    "bin_ce_multi_ce": {"bin_ce": True, "mult_ce": True},
    "bin_contrastive_multi_contrastive": {"bin_ce": False, "bin_contrast": True, "mult_contrast": True},
}
HEAD = {"bin_ce": "bin_classifier", "mult_ce": "mult_classifier", "bin_contrast": "bin_projection", "mult_contrast": "mult_projection"}


def case(*flags):
    args = train.parse([*flags, "--width", "0.125", "--queue-size", "20"])
    torch.manual_seed(0)
    nets = train.build_networks(args, multi_classes=4).train()
    batch = torch.randint(0, 256, (8, 3, 8, 32, 32), dtype=torch.uint8), torch.tensor([0, 1] * 4), torch.tensor([0, 1, 0, 2, 0, 3, 0, 1])
    train.enqueue_keys(nets, args, *batch)  # a first iteration, so that there are positives
    return args, nets, batch


def reached(nets):
    return {name for name, net in nets.items() if any(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())}


# --- The diagrams ---

@pytest.mark.parametrize("mode", TABLE)
def test_each_loss_alone_reaches_exactly_the_modules_of_the_papers_diagram(mode):
    assert {*TABLE, "dfdc_winner"} == set(train.MODES)
    args, nets, batch = case("--mode", mode)
    losses, _ = train.compute_losses(nets, args, *batch)
    assert set(losses) == set(TABLE[mode])
    for name, reaches_encoder in TABLE[mode].items():
        nets.zero_grad(set_to_none=True)
        losses[name].backward(retain_graph=True)
        assert reached(nets) == {HEAD[name]} | ({"encoder"} if reaches_encoder else set())


@pytest.mark.parametrize("mode", TABLE)
def test_each_contrastive_stream_has_its_own_head_ema_head_and_queue_on_one_ema_encoder(mode):
    _, nets, _ = case("--mode", mode)
    expected = {"encoder", *(HEAD[name] for name in TABLE[mode]), "bin_classifier"}
    for stream in ("bin", "mult"):
        if f"{stream}_contrast" in TABLE[mode]:
            expected |= {"ema_encoder", f"{stream}_queue", f"ema_{stream}_projection"}
    assert set(nets) == expected


def test_a_training_step_is_losses_then_weights_then_ema_then_keys():
    args, nets, batch = case("--mode", "bin_contrastive_multi_contrastive", "--momentum", "0.9")
    trained = [p for p in nets.parameters() if p.requires_grad]
    assert not {id(p) for name in nets if name.startswith("ema") for p in nets[name].parameters()} & {id(p) for p in trained}
    old = {name: p.clone() for name, p in nets.named_parameters()}
    queued = {stream: nets[f"{stream}_queue"].keys for stream in ("bin", "mult")}
    expected = {f"loss_{name}": loss.item() for name, loss in train.compute_losses(nets, args, *batch)[0].items()}
    measured, = train.training_step(nets, {}, args, [batch], torch.optim.AdamW(trained, lr=1e-2), torch.amp.GradScaler("cpu", enabled=False))
    # The losses are those of the queue as it was: this batch's own keys are not among their positives.
    assert {name: value for name, value in measured.items() if name.startswith("loss_")} == pytest.approx(expected)
    for name, p in nets.named_parameters():
        assert not torch.equal(p, old[name]), name
        if name.startswith("ema"):  # follows the new weights
            torch.testing.assert_close(p, 0.9 * old[name] + 0.1 * nets.get_parameter(name.removeprefix("ema_")))
    with torch.no_grad():
        embedding = nets["ema_encoder"](batch[0])
        for stream, labels in (("bin", batch[1]), ("mult", batch[2])):  # new keys behind the old, made by the EMA as it is now
            queue = nets[f"{stream}_queue"]
            torch.testing.assert_close(queue.keys, torch.cat([queued[stream], nets[f"ema_{stream}_projection"](embedding)]))
            assert torch.equal(queue.labels[8:], labels)


def test_any_case_flag_can_be_overridden():
    args, nets, batch = case("--mode", "bin_contrastive", "--mult-ce", "--bin-ce", "grad", "--no-bin-contrast")
    losses, _ = train.compute_losses(nets, args, *batch)
    assert set(losses) == {"bin_ce", "mult_ce"}
    losses["bin_ce"].backward()
    assert reached(nets) == {"encoder", "bin_classifier"}


def test_an_encoder_that_no_loss_reaches_builds_no_graph():
    args, nets, batch = case("--mode", "bin_contrastive", "--no-bin-contrast")
    sum(train.compute_losses(nets, args, *batch)[0].values()).backward()
    assert reached(nets) == {"bin_classifier"} and all(p.grad is None for p in nets["encoder"].parameters())


def test_modes_are_presets_of_the_papers_starting_weights_on_real_data():
    init = lambda mode: train.parse(["--mode", mode, "--data", "somewhere"]).init
    assert init("baseline") == "kinetics400" and {init(m) for m in TABLE if m != "baseline"} == {"coclr"}
    assert train.parse(["--mode", "baseline"]).init == "random"  # no published weights fit the toy's narrow encoder


def test_the_point_of_comparison_trains_an_image_model_on_single_frames():
    args = train.parse(["--mode", "dfdc_winner", "--data", "somewhere"])
    assert (args.init, args.frames, args.size, args.width) == ("imagenet", 1, 380, 1.0)
    args = train.parse(["--mode", "dfdc_winner"])
    nets = train.build_networks(args, multi_classes=4)
    losses, _ = train.compute_losses(nets, args, torch.randint(0, 256, (4, 3, 1, 32, 32), dtype=torch.uint8), torch.tensor([0, 1, 0, 1]), None)
    losses["bin_ce"].backward()
    assert set(nets) == reached(nets) == {"encoder", "bin_classifier"}
    encoder = nets["encoder"].eval()
    clip = torch.randint(0, 256, (2, 3, 2, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(encoder(clip), encoder(clip.double() / 255))  # of any type, as S3D
    torch.testing.assert_close(encoder(clip), (encoder(clip[:, :, :1]) + encoder(clip[:, :, 1:])) / 2)  # the mean over the frames


def test_under_torchrun_each_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert train.parse(["--device", "cuda", "--precision", "fp32"]).device == "cuda:1"
    assert train.parse(["--device", "cuda:3", "--precision", "fp32"]).device == "cuda:3"


# --- The command ---

def test_a_run_ends_with_one_clear_result(finished):
    folder, printed, _ = finished
    results = json.loads((folder / "results.json").read_text())
    assert {v["class"] for v in results["videos"]} == {"original", *MANIPULATIONS} and set(results["seen"]) == {"DF", "F2F", "FS"}
    assert f"{100 * results['metrics']['accuracy']:.1f} %" in printed
    for words in ("seed 3", "TOY", "4 originals + 4 fakes", "on originals", "on fakes", "AUC", "chance", "last checkpoint",
                  "written: runs", "python eval.py runs"):
        assert words in printed, words
    assert {p.name for p in folder.iterdir()} >= {"best.pt", "last.pt", "log.csv", "config.json", "results.json"}


def test_chance_is_printed_and_logged_with_everything_else(finished):
    folder, printed, _ = finished
    assert "binary losses 0.693" in printed and "multi-class losses 1.242" in printed  # ln 2; 1/2 ln 2 + 1/2 ln 6
    with open(folder / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert set(rows[0]) == {"epoch", "step", "lr", "loss_bin_ce", "loss_bin_contrast", "loss_mult_contrast", "similarity_bin_positive",
                            "similarity_bin_negative", "similarity_mult_positive", "similarity_mult_negative", "val_accuracy", "val_auc",
                            "broken_videos", "clips_per_second", "seconds"}
    config = json.loads((folder / "config.json").read_text())
    assert config["seed"] == 3 and config["holdout"] == "NT" and set(config["versions"]) == {"python", "torch", "torchvision", "numpy", "opencv"}


def test_eval_repeats_the_result_of_the_run(finished, run, toy):
    folder, _, _ = finished
    before = json.loads((folder / "results.json").read_text())
    result = run(toy, "eval.py", "runs/first/best.pt", "--clips", "2", "--out", "runs/again.json")
    assert result.returncode == 0, result.stderr
    again = json.loads((toy / "runs" / "again.json").read_text())
    assert [v["clips"] for v in again["videos"]] == [v["clips"] for v in before["videos"]] and again["metrics"] == before["metrics"]


def without_time(path):
    return [re.sub(r",[^,]*,[^,]*$", "", line) for line in path.read_text().splitlines()]  # the last two columns are timings


def test_two_runs_with_one_seed_are_equal_bit_for_bit_whatever_the_workers(finished, run, toy):
    folder, _, flags = finished
    result = run(toy, "train.py", *flags[:-1], "runs/second", "--workers", "2")
    assert result.returncode == 0, result.stderr
    assert without_time(folder / "log.csv") == without_time(toy / "runs" / "second" / "log.csv")
    first, second = (torch.load(path / "last.pt", weights_only=True) for path in (folder, toy / "runs" / "second"))
    flat = lambda checkpoint: {**checkpoint["encoder"], **checkpoint["bin_classifier"], **{(n, k): v for n, s in checkpoint["others"].items() for k, v in s.items()}}
    assert all(torch.equal(a, b) for a, b in zip(flat(first).values(), flat(second).values(), strict=True))


def test_a_finished_run_is_not_trained_again(finished, run, toy):
    folder, printed, flags = finished
    before = (folder / "last.pt").stat().st_mtime_ns
    result = run(toy, "train.py", *flags)
    assert result.returncode == 0 and "--overwrite" in result.stdout and "test of the checkpoint chosen on validation" in result.stdout
    assert (folder / "last.pt").stat().st_mtime_ns == before


def test_a_folder_with_other_settings_is_refused_and_the_difference_named(finished, refused, toy):
    _, _, flags = finished
    assert "--lr 0.0005 there, 0.5 now" in refused(toy, train.main, *flags, "--lr", "0.5")


def test_explain_shows_and_measures_the_diagram(run, toy):
    result = run(toy, "train.py", "--mode", "bin_contrastive", "--explain", *TINY)
    assert result.returncode == 0, result.stderr
    assert "X <== bin_classifier <== L_bin_ce" in result.stdout and "encoder <====== " in result.stdout
    rows = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines() if re.match(r"(encoder|bin_|ema_)\S* +[\d.]", line)}
    measured = {name: [value != "." and float(value) > 0 for value in values] for name, values in rows.items()}
    assert measured == {"encoder": [False, True], "bin_classifier": [True, False], "bin_projection": [False, True],
                        "ema_encoder": [False, False], "ema_bin_projection": [False, False]}
    assert not (toy / "runs" / "bin_contrastive_DF_seed0").exists()


@pytest.mark.parametrize("flags, named", [
    (["--mode", "bin_contrastiv"], "bin_contrastiv"), (["--holdout", "Deepfakes"], "Deepfakes"), (["--hold-out", "DF"], "--hold-out"),
    (["--epoch", "3"], "--epoch"), (["--frames", "4"], "--frames 4"), (["--size", "16"], "--size 16"), (["--batch-size", "1"], "--batch-size 1"),
    (["--queue-size", "0"], "--queue-size 0"), (["--temperature", "0"], "--temperature"), (["--momentum", "1.1"], "--momentum"),
    (["--seed", "-1"], "--seed"), (["--queue-size", "99999999999"], "at most"), (["--device", "meta"], "--device meta"), (["--lr", "inf"], "--lr"),
    (["--data", "no/such/folder"], "no/such/folder"), (["--compression", "c40"], "c23"), (["--init", "no.pt"], "no.pt"),
    (["--batch-size", "1000"], "--batch-size 1000"), (["--crop", "no.json"], "no.json"), (["--mode", "dfdc_winner", "--init", "coclr"], "coclr")])
def test_a_mistake_is_one_clear_sentence(refused, toy, flags, named):
    assert named in refused(toy, train.main, *flags)


def test_a_mistake_leaves_no_traceback_and_an_exit_status(run, toy):
    result = run(toy, "train.py", "--mode", "bin_contrastiv")
    assert result.returncode == 2 and len(result.stderr.strip().splitlines()) == 1


def test_a_loss_that_is_not_finite_stops_the_run_before_it_reaches_the_weights(run, toy):
    result = run(toy, "train.py", *TINY, "--lr", "1e38", "--out", "runs/broken")
    assert result.returncode != 0 and re.search(r"L_bin_\w+ is (nan|inf)", result.stderr) and "Traceback" not in result.stderr


def test_help_explains_every_flag(run, toy):
    result = run(toy, "train.py", "--help")
    assert result.returncode == 0
    for flag in ("--mode", "--holdout", "--data", "--compression", "--crop", "--out", "--seed", "--epochs", "--batch-size", "--frames", "--size", "--width",
                 "--lr", "--queue-size", "--temperature", "--momentum", "--init", "--workers", "--device", "--precision", "--resume", "--explain",
                 "--bin-ce", "--bin-contrast", "--no-mult-ce", "--mult-contrast"):
        assert flag in result.stdout


# --- Going on ---

def test_a_run_that_was_killed_and_resumed_ends_as_one_that_was_not(finished, run, refused, toy):
    folder, _, flags = finished
    flags = [*flags[:-1], "runs/killed"]
    process = subprocess.Popen([sys.executable, str(ROOT / "train.py"), *flags], cwd=toy, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (toy / "runs" / "killed" / "last.pt").is_file():
        time.sleep(0.02)
    process.kill()
    process.wait()
    sentence = refused(toy, train.main, *flags)
    assert "--resume" in sentence and "--overwrite" in sentence
    result = run(toy, "train.py", *flags, "--resume")
    assert result.returncode == 0 and "resumed after epoch" in result.stdout, result.stderr
    assert without_time(folder / "log.csv") == without_time(toy / "runs" / "killed" / "log.csv")
    first, second = (torch.load(path / "last.pt", weights_only=True) for path in (folder, toy / "runs" / "killed"))
    assert all(torch.equal(first["encoder"][k], second["encoder"][k]) for k in first["encoder"])


def test_eval_on_an_unfinished_run_does_not_finish_it(finished, run, refused, toy):
    folder, _, flags = finished
    shutil.copytree(folder, toy / "runs" / "half")
    (toy / "runs" / "half" / "results.json").unlink()
    assert run(toy, "eval.py", "runs/half/best.pt").returncode == 0
    assert "unfinished" in refused(toy, train.main, *flags[:-1], "runs/half")


def test_eval_on_a_finished_run_keeps_what_train_wrote(finished, run, toy):
    folder, _, flags = finished
    shutil.copytree(folder, toy / "runs" / "whole")
    assert run(toy, "eval.py", "runs/whole/best.pt").returncode == 0 and run(toy, "eval.py", "runs/whole/best.pt", "--clips", "3").returncode == 0
    assert json.loads((toy / "runs" / "whole" / "results.json").read_text())["last"] == json.loads((folder / "results.json").read_text())["last"]
    assert (toy / "runs" / "whole" / "results_other.json").is_file()
    assert run(toy, "eval.py", "runs/whole/last.pt", "--clips", "3").returncode == 0
    assert (toy / "runs" / "whole" / "results_last_other.json").is_file()
    result = run(toy, "train.py", *flags[:-1], "runs/whole")
    assert result.returncode == 0 and "last checkpoint" in result.stdout


def test_overwrite_leaves_nothing_of_the_old_run(finished, run, toy):
    folder, _, flags = finished
    shutil.copytree(folder, toy / "runs" / "old")
    for name in ("results_other.json", "results_last.json", "map.png"):
        (toy / "runs" / "old" / name).write_text("old")
    (toy / "runs" / "old" / "notes.txt").write_text("mine")
    assert run(toy, "train.py", *flags[:-1], "runs/old", "--overwrite").returncode == 0
    assert {p.name for p in (toy / "runs" / "old").iterdir() if not p.name.startswith(("events", ".lock"))} == {
        "best.pt", "last.pt", "log.csv", "config.json", "results.json", "notes.txt"}
