# SPDX-License-Identifier: MIT
import copy
import csv
import json
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

BOTH = "bin_contrastive_multi_contrastive"
TABLE = {  # the losses that reach the encoder; L_bin_ce exists in every case, if need be cut off
    "baseline": ["bin_ce"], "bin_ce": ["bin_ce"], "dfdc_winner": ["bin_ce"],
    "bin_contrastive": ["bin_contrast"], "bin_ce_contrastive": ["bin_ce", "bin_contrast"],
    "bin_ce_multi_ce": ["bin_ce", "multi_ce"], BOTH: ["bin_contrast", "multi_contrast"]}
HEAD = {"bin_ce": "bin_classifier", "bin_contrast": "bin_projection",
        "multi_ce": "multi_classifier", "multi_contrast": "multi_projection"}
CLIPS = torch.randint(256, (8, 3, 8, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
BATCH = CLIPS, torch.tensor([0, 1] * 4), torch.tensor([0, 1, 0, 2, 0, 3, 0, 1])
QUICK = [*TINY, "--batch-size", "12", "--workers", "0"]  # 3 steps an epoch

def case(*flags, filled=True):
    args = train.parse(["--width", "0.125", "--queue-size", "20", *flags])
    torch.manual_seed(0)
    nets = train.build_networks(args, multi_classes=4).train()
    if filled:
        train.enqueue_keys(nets, args, *BATCH)
    return args, nets

def step(args, nets):
    optimizer = torch.optim.AdamW([p for p in nets.parameters() if p.requires_grad], lr=1e-2)
    return train.training_step(nets, args, optimizer, torch.amp.GradScaler(enabled=False), *BATCH)

def separate_gradients(args, nets):
    """{loss: {module: gradient}} of the modules that it reaches, by a backward pass for each."""
    losses, _ = train.compute_losses(nets, args, *BATCH)
    found = {}
    for name, loss in losses.items():
        nets.zero_grad()
        loss.backward(retain_graph=True)
        parts = {net: [p.grad.flatten() for p in nets[net].parameters() if p.grad is not None]
                 for net in nets}
        found[name] = {net: torch.cat(each) for net, each in parts.items() if each}
    return found

def times(folder):
    return {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*")}

@pytest.mark.parametrize("mode", TABLE)
def test_each_loss_alone_reaches_exactly_the_modules_of_the_papers_diagram(mode):
    found = separate_gradients(*case("--mode", mode))
    assert found.keys() == {"bin_ce", *TABLE[mode]} and train.MODES.keys() == TABLE.keys()
    for loss, nets in found.items():
        assert nets.keys() == {HEAD[loss], *(["encoder"] if loss in TABLE[mode] else [])}
        assert all(gradient.any() for gradient in nets.values())

def test_each_contrastive_stream_has_its_own_head_ema_head_and_queue_on_one_ema_encoder():
    assert case("--mode", BOTH)[1].keys() == {
        "encoder", "bin_classifier", "bin_projection", "multi_projection", "ema_encoder",
        "ema_bin_projection", "ema_multi_projection", "bin_queue", "multi_queue"}

def test_a_training_step_is_losses_then_weights_then_ema_then_keys():
    args, nets = case("--mode", BOTH, "--momentum", "0.9", "--queue-size", "24")
    step(args, nets)  # from here on the EMA networks differ from the others
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
        norm = next(each for each in nets["encoder"].modules() if isinstance(each, nn.BatchNorm3d))
        nn.init.constant_(norm.running_mean, 1e6)
        nets["encoder"](CLIPS[:2])
        assert norm.running_mean.sub(0.9e6).abs().max() < 1e4  # a tenth is new, after one step

def test_a_loss_that_is_not_finite_stops_before_the_weights_change():
    args, nets = case("--mode", "bin_contrastive")
    nn.init.constant_(nets["bin_classifier"][-1].bias, float("inf"))
    before = copy.deepcopy(nets)
    with pytest.raises(FloatingPointError, match="bin_ce"):
        step(args, nets)
    assert all(map(torch.equal, nets.parameters(), before.parameters()))

def test_gradient_cosines_are_those_of_separate_backward_passes_and_touch_nothing():
    args, nets = case("--mode", "bin_contrastive", "--multi-ce", "--multi-contrast")
    losses, _ = train.compute_losses(nets, args, *BATCH)
    before = copy.deepcopy(nets.state_dict())
    found = train.gradient_cosines(losses, nets["encoder"])
    assert all(torch.equal(before[name], tensor) for name, tensor in nets.state_dict().items())
    assert all(p.grad is None for p in nets.parameters())
    assert len(found) == 3 and "bin_ce" not in str(found)  # that one is cut
    gradients = separate_gradients(args, nets)
    for (a, b), cosine in found.items():
        expected = torch.cosine_similarity(gradients[a]["encoder"], gradients[b]["encoder"], dim=0)
        assert cosine == pytest.approx(expected.item(), abs=1e-4)

def test_the_cosine_of_each_epochs_first_step_is_logged_and_empty_while_the_queues_are(finished):
    log = csv.DictReader((finished[0] / "log.csv").read_text().splitlines())
    first, second = (row["cosine_bin_contrast_multi_contrast"] for row in log)
    assert first == "" and 0 < abs(float(second)) <= 1

def test_explain_prints_the_norms_of_each_loss_or_that_it_is_cut_and_the_cosine(capsys):
    args, nets = case("--mode", BOTH)
    gradients = separate_gradients(args, nets)
    _, empty = case("--mode", BOTH, filled=False)
    train.explain(empty, args, [BATCH], batches=1)  # one more comes first, for the queues
    *rows, last = (line.split() for line in capsys.readouterr().out.splitlines() if "L_" in line)
    for (name, reached), (loss, head, *norms) in zip(gradients.items(), rows, strict=True):
        assert (loss, head) == (f"L_{name}", HEAD[name]) and len(norms) == 2
        assert [float(norm) for norm in norms if norm != "cut"] == pytest.approx(
            [reached[net].norm().item() for net in (head, "encoder") if net in reached], rel=0.01)
    a, b = (gradients[name]["encoder"] for name in ("bin_contrast", "multi_contrast"))
    assert float(last[-1]) == pytest.approx(torch.cosine_similarity(a, b, dim=0).item(), rel=0.01)

def test_explain_on_resume_asks_trained_networks_and_writes_nothing(finished, here, monkeypatch):
    before, explain = times("runs"), Mock(wraps=train.explain)
    monkeypatch.setattr(train, "explain", explain)
    train.main([*finished[2], "--workers", "0", "--explain", "--resume"])
    train.main([*QUICK, "--explain", "--out", "runs/asked"])
    trained = torch.load(finished[0] / "last.pt", weights_only=True)["nets"]
    asked = explain.call_args_list[0].args[0].named_parameters()
    assert all(torch.equal(p, trained[name]) for name, p in asked) and times("runs") == before

def test_a_run_keeps_its_settings_log_and_scores(finished):
    config, results = (json.loads((finished[0] / f"{name}.json").read_text())
                       for name in ("config", "results"))
    assert results.keys() == {"config", "protocol", "metrics", "seen", "videos", "unreadable",
                              "still"}
    assert {"accuracy", "auc", "ap", "eer", "intervals"} < results["metrics"].keys()
    assert set(results["videos"][0]) == {"path", "class", "label", "score", "clips",
                                         "still"}
    assert set(results["seen"]) == {"DF", "F2F", "FS"} and len(results["videos"]) == 20
    assert config == results["config"] and (config["holdout"], config["seed"]) == ("NT", 3)
    assert set(config["changed"]) == {"epochs", "batch_size", "size", "width", "queue_size"}

def test_a_finished_run_says_so_and_trains_nothing(finished, here, capsys):
    before = times(finished[0])
    train.main([*finished[2], "--resume"])  # no SystemExit: status 0
    assert "--overwrite" in capsys.readouterr().out and times(finished[0]) == before

def test_a_folder_with_other_settings_is_refused_and_the_difference_named(finished, refused, toy):
    assert "lr 0.001" in refused(toy, train.main, *finished[2], "--lr", "0.5", "--resume")

@pytest.mark.parametrize("mode", [BOTH, "dfdc_winner"])
def test_a_stopped_run_needs_resume_and_then_ends_as_if_undisturbed(here, monkeypatch, mode):
    compute, draws, last = train.compute_losses, [], []
    def stopping(*parts):
        draws.append(torch.rand(1).item())  # as EfficientNet, which drops layers at random
        if len(draws) == 5:  # in the second epoch
            raise KeyboardInterrupt
        return compute(*parts)
    monkeypatch.setattr(train, "compute_losses", stopping)
    flags = ["--mode", mode, *QUICK, "--out", f"runs/stopped_{mode}"]
    for start in (["--resume", "--workers", "2"], []):  # nothing to resume; then it is refused
        with pytest.raises(SystemExit, match="--resume"):
            train.main([*flags, *start])
    for how in ("--resume", "--overwrite"):
        train.main([*flags, how])
        last.append(torch.load(f"runs/stopped_{mode}/last.pt", weights_only=True))
        assert len(set(draws)) == 6  # each step draws its own, the same again after --resume
    assert last[0]["log"] == last[1]["log"]
    assert all(torch.equal(last[0]["nets"][name], p) for name, p in last[1]["nets"].items())

def test_the_checkpoint_is_the_last_epoch_of_the_highest_auc(here, monkeypatch):
    measure, scripted = evaluation.measure, [(0.7, 0.9), (0.8, 0.6), (0.8, 0.5)]
    def measured(*parts, **more):
        return measure(*parts, **more) | dict(zip(("auc", "accuracy"), scripted.pop(0)))
    monkeypatch.setattr(evaluation, "measure", measured)
    flags = [*QUICK, "--epochs", "4", "--out", "runs/chosen"]
    with pytest.raises(IndexError):  # as if it was killed in the fourth epoch
        train.main(flags)
    scripted += 5 * [(0.7, 0.9)]  # of the fourth epoch and of the test
    train.main([*flags, "--resume"])
    assert torch.load("runs/chosen/best.pt", weights_only=True)["epoch"] == 3

def test_overwrite_removes_all_of_the_old_run_and_nothing_else(finished, here):
    own, old = {path.name for path in finished[0].iterdir()}, shutil.copytree(finished[0], "old")
    for name in ("notes.txt", "map.png", "results_best.json"):
        Path(old, name).write_text("old")
    train.main([*QUICK, "--epochs", "1", "--balance", "none", "--out", old, "--overwrite"])
    assert {path.name for path in Path(old).iterdir()} == own | {"notes.txt"}
    log, = torch.load(Path(old, "last.pt"), weights_only=True)["log"]
    assert log["step"] == 2  # 24 videos, once each, in batches of 12

def test_a_run_of_version_1_is_refused(refused, toy, tmp_path):
    (tmp_path / "config.json").write_text('{"mode": "bin_contrastive"}')
    torch.save({"config": {"mode": "bin_contrastive"}, "encoder": {}}, tmp_path / "last.pt")
    assert "config.json" in refused(toy, train.main, "--out", tmp_path, "--resume")

def test_an_unreadable_video_stops_training_but_no_evaluation(toy, refused, tmp_path, capfd):
    shutil.copytree(toy / "toy_ffpp", tmp_path / "toy_ffpp")
    for video in ("NeuralTextures/*/*/001_*", "Deepfakes/*/*/720_*", "Deepfakes/*/*/953_*"):
        next(tmp_path.rglob(video)).write_bytes(b"")
    for workers in (0, 1):
        assert "001_" in refused(tmp_path, train.main, *QUICK, "--holdout=FS", "--workers", workers)
    train.main([*QUICK, "--epochs", "1", "--holdout=NT", "--out", "run"])  # no exit: status 0
    results, error = json.loads(Path("run/results.json").read_text()), capfd.readouterr().err
    assert "720_" in error and "953_" in error and len(results["videos"]) == 19
    assert [Path(path).stem[:4] for path in results["unreadable"]] == ["953_"]

@pytest.mark.parametrize("flag, value", [
    ("--holdout", "Deepfakes"), ("--epoch", "3"), ("--frames", "7"), ("--size", "16"),
    ("--batch-size", "7"), ("--batch-size", "1000"), ("--workers 0 --batch-size 4 --lr", "1e9"),
    ("--explain", "--resume"), ("--data", "no/folder"), ("--init", "x.pt"),
    ("--mode dfdc_winner --init", "coclr")])
def test_a_mistake_is_one_sentence_that_names_the_flag_or_the_file(refused, toy, flag, value):
    sentence = refused(toy, train.main, *flag.split(), value, "--out", "runs/mistake")
    assert flag.split()[-1] in sentence or value in sentence

def test_help_fits_two_screens_and_names_every_flag(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        train.parse(["--help", "--mode", "bin_ce", "--data", "FF"])
    lines = capsys.readouterr().out.splitlines()
    assert {"grad)", "30)"} <= set(" ".join(lines).split())  # the defaults of --mode and --data
    assert sum(1 + len(line) // 81 for line in lines) <= 100
    named = {line.split()[0].strip(",-").replace("-", "_") for line in lines if "  --" in line[:4]}
    assert named == vars(train.parse([])).keys() - {"changed", "toy", "rank", "ranks"}
