# SPDX-License-Identifier: MIT
import copy
import csv
import json
import re
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from torch import nn
from torchvision import models

import eval as evaluation
import train
from tests.conftest import TINY

TABLE = {  # the losses that reach the encoder, and those that are cut off at the embedding
    "baseline": (["bin_ce"], []),
    "bin_ce": (["bin_ce"], []),
    "bin_contrastive": (["bin_contrast"], ["bin_ce"]),
    "bin_ce_contrastive": (["bin_ce", "bin_contrast"], []),
    "bin_ce_multi_ce": (["bin_ce", "multi_ce"], []),
    "bin_contrastive_multi_contrastive": (["bin_contrast", "multi_contrast"], ["bin_ce"]),
    "dfdc_winner": (["bin_ce"], [])}
HEAD = {"bin_ce": "bin_classifier", "bin_contrast": "bin_projection",
        "multi_ce": "multi_classifier", "multi_contrast": "multi_projection"}
CLIPS = torch.randint(0, 256, (8, 3, 8, 32, 32), dtype=torch.uint8)
BATCH = CLIPS, torch.tensor([0, 1] * 4), torch.tensor([0, 1, 0, 2, 0, 3, 0, 1])
QUICK = [*TINY, "--batch-size", "12", "--workers", "0"]  # 3 steps an epoch

def case(*flags, filled=True):
    args = train.parse(["--width", "0.125", "--queue-size", "20", *flags])
    nets = train.build_networks(args, multi_classes=4).train()
    if filled:
        train.enqueue_keys(nets, args, *BATCH)
    return args, nets

def step(args, nets):
    optimizer = torch.optim.AdamW([p for p in nets.parameters() if p.requires_grad], lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return train.training_step(nets, args, optimizer, scaler, *BATCH, cosines=True)

def separate_gradients(args, nets):
    """{loss: {module: gradient}} of the modules that it reaches, by a backward pass for each."""
    losses, _ = train.compute_losses(nets, args, *BATCH)
    found = {name: {} for name in losses}
    for name, loss in losses.items():
        nets.zero_grad()
        loss.backward(retain_graph=True)
        for net in nets:
            parts = [p.grad.flatten() for p in nets[net].parameters() if p.grad is not None]
            if parts and torch.cat(parts).any():
                found[name][net] = torch.cat(parts)
    return found

def log(folder):
    return list(csv.DictReader(Path(folder, "log.csv").read_text().splitlines()))

def times(folder):
    return {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*")}

@pytest.fixture
def here(toy, monkeypatch):
    monkeypatch.chdir(toy)

@pytest.mark.parametrize("mode", TABLE)
def test_each_loss_alone_reaches_exactly_the_modules_of_the_papers_diagram(mode):
    reach, cut = TABLE[mode]
    found = separate_gradients(*case("--mode", mode))
    assert found.keys() == {*reach, *cut} and mode in train.MODES
    for loss, nets in found.items():
        assert nets.keys() == {HEAD[loss], *(["encoder"] if loss in reach else [])}

def test_each_contrastive_stream_has_its_own_head_ema_head_and_queue_on_one_ema_encoder():
    _, nets = case("--mode", "bin_contrastive_multi_contrastive")
    assert set(nets) == {
        "encoder", "bin_classifier", "bin_projection", "multi_projection", "ema_encoder",
        "ema_bin_projection", "ema_multi_projection", "bin_queue", "multi_queue"}

def test_a_training_step_is_losses_then_weights_then_ema_then_keys():
    args, nets = case("--mode", "bin_contrastive_multi_contrastive", "--momentum", "0.9")
    old = copy.deepcopy(nets)
    losses, _ = train.compute_losses(nets, args, *BATCH)
    measured = step(args, nets)
    for name, loss in losses.items():  # the queue as it was: no positive from this batch
        assert measured[f"loss_{name}"] == pytest.approx(loss.item(), rel=1e-5)
    for name, p in nets.named_parameters():
        assert not torch.equal(p, old.get_parameter(name)), name
        if name.startswith("ema_"):  # follows the new weights
            new = nets.get_parameter(name.removeprefix("ema_"))
            torch.testing.assert_close(p, 0.9 * old.get_parameter(name) + 0.1 * new)
    for stream, labels in (("bin", BATCH[1]), ("multi", BATCH[2])):
        with torch.no_grad():  # the keys of the new EMA networks
            keys = nets[f"ema_{stream}_projection"](nets["ema_encoder"](CLIPS))
        queue, before = nets[f"{stream}_queue"], old[f"{stream}_queue"]
        torch.testing.assert_close(queue.keys, torch.cat([before.keys, keys]))
        assert torch.equal(queue.labels, torch.cat([before.labels, labels]))

def test_every_flag_of_a_case_can_be_set_by_hand():
    found = separate_gradients(*case("--mode", "bin_contrastive", "--bin-ce", "grad", "--multi-ce",
                                     "--no-bin-contrast", "--multi-contrast"))
    assert found.keys() == {"bin_ce", "multi_ce", "multi_contrast"} and "encoder" in found["bin_ce"]

def test_an_encoder_that_no_loss_reaches_builds_no_graph():
    args, nets = case("--mode", "bin_contrastive", "--no-bin-contrast")
    assert not nets["encoder"](CLIPS).requires_grad and step(args, nets)

def test_a_mode_sets_the_papers_starting_weights_and_the_toy_starts_at_random():
    assert {mode: train.parse(["--mode", mode, "--data", "real"]).init for mode in TABLE} == {
        **dict.fromkeys(TABLE, "coclr"), "baseline": "kinetics400", "dfdc_winner": "imagenet"}
    assert {train.parse(["--mode", mode]).init for mode in TABLE} == {"random"}

def test_baseline_and_bin_ce_validate_with_batchnorm_statistics_of_the_same_age(tmp_path):
    torch.save(models.video.s3d().state_dict(), tmp_path / "kinetics.pt")
    for mode, init in (("baseline", tmp_path / "kinetics.pt"), ("bin_ce", "random")):
        _, nets = case("--mode", mode, "--init", str(init), "--width", "1")
        norms = [each for each in nets["encoder"].modules() if isinstance(each, nn.BatchNorm3d)]
        for norm in norms:
            nn.init.constant_(norm.running_mean, 1e6)
        nets["encoder"](CLIPS[:2])
        assert all(norm.running_mean.sub(0.9e6).abs().max() < 1e4 for norm in norms)

def test_a_loss_that_is_not_finite_stops_before_the_weights_change():
    args, nets = case("--mode", "bin_contrastive")
    nn.init.constant_(nets["bin_classifier"][-1].bias, float("inf"))
    before = copy.deepcopy(nets)
    with pytest.raises(FloatingPointError, match="bin_ce"):
        step(args, nets)
    assert all(map(torch.equal, nets.parameters(), before.parameters()))

def test_gradient_cosines_are_those_of_separate_backward_passes_and_touch_nothing():
    args, nets = case("--mode", "bin_ce_contrastive", "--multi-ce")
    losses, _ = train.compute_losses(nets, args, *BATCH)
    before = copy.deepcopy(nets.state_dict())
    found = train.gradient_cosines(losses, nets["encoder"])
    assert all(torch.equal(before[name], tensor) for name, tensor in nets.state_dict().items())
    assert all(p.grad is None for p in nets.parameters()) and len(found) == 3
    gradients = separate_gradients(args, nets)
    for (a, b), cosine in found.items():
        expected = torch.cosine_similarity(gradients[a]["encoder"], gradients[b]["encoder"], dim=0)
        assert cosine == pytest.approx(expected.item(), abs=1e-4)

def test_a_loss_that_reaches_the_encoder_alone_has_no_cosine():
    assert "cosine" not in str(step(*case("--mode", "bin_contrastive")))

def test_cosines_are_logged_once_per_epoch_without_a_second_forward(here, monkeypatch):
    calls = Mock()
    for name in ("compute_losses", "gradient_cosines"):
        calls.attach_mock(Mock(wraps=getattr(train, name)), name)
        monkeypatch.setattr(train, name, getattr(calls, name))
    train.main(["--mode", "bin_ce_multi_ce", *QUICK, "--out", "runs/cosines"])
    names = [name for name, _, _ in calls.mock_calls]
    assert names == 2 * ["compute_losses", "gradient_cosines", "compute_losses", "compute_losses"]
    assert all(abs(float(row["cosine_bin_ce_multi_ce"])) <= 1 for row in log("runs/cosines"))

def test_explain_prints_the_norms_of_each_loss_or_that_it_is_cut_and_the_cosine(capsys):
    args, nets = case("--mode", "bin_contrastive_multi_contrastive", filled=False)
    filled = copy.deepcopy(nets)
    train.explain(nets, args, [BATCH, BATCH])  # the first batch fills the queues
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if "L_" in line]
    train.enqueue_keys(filled, args, *BATCH)
    gradients = separate_gradients(args, filled)
    for (name, nets), (loss, head, *norms) in zip(gradients.items(), lines):
        assert (loss, head) == (f"L_{name}", HEAD[name]) and len(norms) == 2
        assert [float(norm) for norm in norms if norm != "cut"] == pytest.approx(
            [nets[net].norm().item() for net in (head, "encoder") if net in nets], rel=0.01)
    vectors = [gradients[name]["encoder"] for name in ("bin_contrast", "multi_contrast")]
    expected = torch.cosine_similarity(*vectors, dim=0).item()
    assert len(lines) == 4 and float(lines[3][-1]) == pytest.approx(expected, rel=0.01)

def test_explain_with_resume_asks_the_trained_networks_and_writes_nothing(
        finished, here, monkeypatch):
    before, explain = times("runs"), Mock(wraps=train.explain)
    monkeypatch.setattr(train, "explain", explain)
    train.main([*finished[2], "--workers", "0", "--explain", "--resume"])
    train.main([*QUICK, "--explain", "--out", "runs/asked"])
    trained = torch.load(finished[0] / "last.pt", weights_only=True)["nets"]
    asked = explain.call_args_list[0].args[0].named_parameters()
    assert all(torch.equal(p, trained[name]) for name, p in asked) and times("runs") == before

def test_a_run_keeps_its_settings_log_and_scores(finished):
    folder, printed, _ = finished
    config, results = (json.loads((folder / f"{name}.json").read_text())
                       for name in ("config", "results"))
    assert results.keys() == {"config", "protocol", "metrics", "seen", "videos", "unreadable"}
    assert " ".join(results["metrics"]) == (
        "accuracy accuracy_real accuracy_fake auc ap eer intervals")
    assert set(results["videos"][0]) == {"path", "class", "label", "score", "clips"}
    assert set(results["seen"]) == {"DF", "F2F", "FS"} and len(results["videos"]) == 20
    assert config == results["config"] and (config["holdout"], config["seed"]) == ("NT", 3)
    assert set(config["changed"]) == {"epochs", "batch_size", "size", "width", "queue_size"}
    assert evaluation.report(results) in printed
    cosines = [row["cosine_bin_contrast_multi_contrast"] for row in log(folder)]
    assert cosines[0] == "" and -1 <= float(cosines[1]) <= 1  # at first the queues are empty

def test_a_finished_run_says_so_and_trains_nothing(finished, here, capsys):
    folder, _, flags = finished
    before = times(folder)
    train.main([*flags, "--resume"])  # no SystemExit: status 0
    assert "--overwrite" in capsys.readouterr().out and times(folder) == before

def test_a_folder_with_other_settings_is_refused_and_the_difference_named(finished, refused, toy):
    sentence = refused(toy, train.main, *finished[2], "--lr", "0.5", "--resume")
    assert re.search(r"lr 0\.0005.*0\.5", sentence) and "momentum" not in sentence

@pytest.mark.parametrize("mode", ["bin_contrastive_multi_contrastive", "dfdc_winner"])
def test_a_stopped_run_is_refused_without_resume_and_with_it_ends_as_if_undisturbed(
        here, monkeypatch, mode):
    compute, draws, flags = train.compute_losses, [], ["--mode", mode, *QUICK, "--out"]
    def stopping(*parts):
        draws.append(torch.rand(1).item())
        if len(draws) == 11:  # in the second epoch of the second run
            raise KeyboardInterrupt
        return compute(*parts)
    monkeypatch.setattr(train, "compute_losses", stopping)
    train.main([*flags, f"runs/whole_{mode}"])
    assert len(set(draws)) == 6  # no two steps of dfdc_winner drop the same layers
    flags += [f"runs/stopped_{mode}", "--workers"]
    for workers in ("2", "0"):
        with pytest.raises(SystemExit, match="--resume"):
            train.main([*flags, workers])
    train.main([*flags, "0", "--resume"])
    logs, nets = [], []
    for folder in (f"runs/whole_{mode}", f"runs/stopped_{mode}"):
        logs.append([{**row, "seconds": ""} for row in log(folder)])
        nets.append(torch.load(f"{folder}/last.pt", weights_only=True)["nets"])
    assert logs[0] == logs[1] and nets[0].keys() == nets[1].keys()
    assert all(torch.equal(nets[0][name], nets[1][name]) for name in nets[0])

@pytest.mark.parametrize("aucs, accuracies, chosen", [
    ([0.8, 0.7], [0.6, 0.9], 1), ([0.8, 0.8], [0.9, 0.6], 2)])
def test_the_checkpoint_is_the_last_epoch_of_the_highest_auc(
        here, monkeypatch, aucs, accuracies, chosen):
    measure, scripted = evaluation.measure, zip(aucs, accuracies)
    def measured(*parts, **more):
        auc, accuracy = next(scripted, (0.5, 0.5))
        return measure(*parts, **more) | {"auc": auc, "accuracy": accuracy}
    monkeypatch.setattr(evaluation, "measure", measured)
    train.main([*QUICK, "--out", f"runs/chosen{chosen}"])
    assert torch.load(f"runs/chosen{chosen}/best.pt", weights_only=True)["epoch"] == chosen

def test_resume_where_nothing_was_saved_starts_the_run(here):
    train.main([*QUICK, "--epochs", "1", "--balance", "none", "--resume", "--out", "runs/fresh"])
    assert log("runs/fresh")[0]["step"] == "2"  # --balance none: 24 videos in batches of 12

def test_overwrite_removes_all_of_the_old_run_and_nothing_else(finished, here):
    own, old = {path.name for path in finished[0].iterdir()}, shutil.copytree(finished[0], "old")
    for name in ("notes.txt", "map.png", "results_best.json"):
        Path(old, name).write_text("old")
    train.main([*QUICK, "--epochs", "1", "--out", old, "--overwrite"])
    assert {path.name for path in Path(old).iterdir()} == own | {"notes.txt"} and len(log(old)) == 1

@pytest.mark.parametrize("name", ["config.json", "last.pt"])
def test_a_run_of_version_1_is_refused(finished, refused, toy, tmp_path, name):
    (tmp_path / "config.json").write_text('{"mode": "bin_ce"}')
    torch.save({"config": {"mode": "bin_ce"}, "encoder": {}}, tmp_path / "last.pt")
    if name == "last.pt":
        shutil.copy(finished[0] / "config.json", tmp_path)
    assert name in refused(toy, train.main, *finished[2], "--out", tmp_path, "--resume")

@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_video_stops_training_but_not_validation_and_test(
        toy, refused, tmp_path, capfd, workers):
    shutil.copytree(toy / "toy_ffpp", tmp_path / "toy_ffpp")
    for video in ("NeuralTextures/c23/videos/001_*", "Deepfakes/c23/videos/720_*",
                  "Deepfakes/c23/videos/953_*"):  # one of each split
        next(tmp_path.rglob(video)).write_bytes(b"")
    flags = [*QUICK, "--epochs", "1", "--workers", str(workers), "--holdout"]
    assert "001_" in refused(tmp_path, train.main, *flags, "FS")
    train.main([*flags, "NT", "--out", "run"])  # without NT in training; no SystemExit: status 0
    error = capfd.readouterr().err
    results = json.loads(Path("run/results.json").read_text())
    assert "720_" in error and "953_" in error and len(results["videos"]) == 19
    assert [Path(path).stem[:4] for path in results["unreadable"]] == ["953_"]

@pytest.mark.parametrize("flag, value", [
    ("--holdout", "Deepfakes"), ("--epoch", "3"), ("--frames", "7"), ("--size", "16"),
    ("--batch-size", "7"), ("--batch-size", "1000"), ("--queue-size", "0"), ("--momentum", "1.1"),
    ("--seed", "-1"), ("--lr", "inf"), ("--workers 0 --lr", "1e38"), ("--device", "meta"),
    ("--data", "no/such/folder"), ("--compression", "c40"), ("--init", "no.pt"),
    ("--crop", "no.json"), ("--mode dfdc_winner --init", "coclr")])
def test_a_mistake_is_one_sentence_that_names_the_flag_or_the_file(refused, toy, flag, value):
    sentence = refused(toy, train.main, *flag.split(), value, "--out", "runs/mistake")
    assert flag.split()[-1] in sentence or value in sentence

def test_help_fits_two_screens_and_names_every_flag(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        train.parse(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert sum(1 + len(line) // 81 for line in lines) <= 100
    named = {line.split()[0].strip(",-").replace("-", "_") for line in lines if "  --" in line[:4]}
    assert named == vars(train.parse([])).keys() - {"changed", "toy"}
