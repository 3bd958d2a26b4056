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

import train
from tests.conftest import TINY

BOTH = "bin_contrastive_multi_contrastive"
TABLE = {  # the losses that reach the encoder; L_bin_ce exists in every case, if need be cut off
    "baseline": ["bin_ce"],
    "bin_ce": ["bin_ce"],
    "dfdc_winner": ["bin_ce"],
    "bin_contrastive": ["bin_contrast"],
    "bin_ce_contrastive": ["bin_ce", "bin_contrast"],
    "bin_ce_multi_ce": ["bin_ce", "multi_ce"],
    BOTH: ["bin_contrast", "multi_contrast"],
}
HEAD = {
    "bin_ce": "bin_classifier",
    "bin_contrast": "bin_projection",
    "multi_ce": "multi_classifier",
    "multi_contrast": "multi_projection",
}
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
    return train.training_step(nets, args, optimizer, *BATCH)


def separate_gradients(args, nets):
    """{loss: {module: gradient}} of the modules that it reaches, by a backward pass for each."""
    losses, _ = train.compute_losses(nets, args, *BATCH)
    found = {}
    for name, loss in losses.items():
        nets.zero_grad()
        loss.backward(retain_graph=True)
        parts = {
            net: [p.grad.flatten() for p in nets[net].parameters() if p.grad is not None]
            for net in nets
        }
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
        "encoder",
        "bin_classifier",
        "bin_projection",
        "multi_projection",
        "ema_encoder",
        "ema_bin_projection",
        "ema_multi_projection",
        "bin_queue",
        "multi_queue",
    }


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
    found = separate_gradients(
        *case(
            "--mode",
            "bin_contrastive",
            "--bin-ce",
            "grad",
            "--multi-ce",
            "--no-bin-contrast",
            "--multi-contrast",
        )
    )
    assert found.keys() == {"bin_ce", "multi_ce", "multi_contrast"} and "encoder" in found["bin_ce"]


def test_a_mode_sets_the_papers_starting_weights_and_the_toy_starts_at_random():
    assert {mode: train.parse(["--mode", mode, "--data", "real"]).init for mode in TABLE} == {
        **dict.fromkeys(TABLE, "coclr"),
        "baseline": "kinetics400",
        "dfdc_winner": "imagenet",
    }
    assert {train.parse(["--mode", mode]).init for mode in TABLE} == {"random"}


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


def test_explain_prints_each_losss_norm_at_the_encoder_or_cut_and_the_cosine(capsys, monkeypatch):
    args, nets = case("--mode", BOTH)
    gradients = separate_gradients(args, nets)
    _, empty = case("--mode", BOTH, filled=False)
    monkeypatch.setattr(train, "EXPLAINED", 1)
    train.explain(empty, args, [BATCH, BATCH])  # the first is for the queues
    values = [line.split()[-1] for line in capsys.readouterr().out.splitlines()[2:]]

    a = gradients["bin_contrast"]["encoder"]
    b = gradients["multi_contrast"]["encoder"]
    expected = [a.norm().item(), b.norm().item(), torch.cosine_similarity(a, b, dim=0).item()]
    assert values[0] == "cut"
    assert [float(value) for value in values[1:]] == pytest.approx(expected, rel=0.01)


def test_explain_on_resume_asks_trained_networks_and_writes_nothing(finished, here, monkeypatch):
    before, explain = times("runs"), Mock(wraps=train.explain)
    monkeypatch.setattr(train, "explain", explain)
    train.main([*finished[2], "--workers", "0", "--explain", "--resume"])
    train.main([*QUICK, "--explain", "--out", "runs/asked"])
    trained = torch.load(finished[0] / "last.pt", weights_only=True)["nets"]
    asked = explain.call_args_list[0].args[0].named_parameters()
    assert all(torch.equal(p, trained[name]) for name, p in asked) and times("runs") == before


def test_a_run_keeps_its_settings_metrics_and_scores(finished):
    config = json.loads((finished[0] / "config.json").read_text())
    results = json.loads((finished[0] / "results.json").read_text())
    assert config == results["config"] and (config["holdout"], config["seed"]) == ("NT", 3)
    assert {"accuracy", "auc", "ap", "eer", "intervals"} < results["metrics"].keys()
    assert results["seen"].keys() == {"DF", "F2F", "FS"} and len(results["videos"]) == 20
    log = csv.DictReader((finished[0] / "log.csv").open())
    assert results["val_auc"] == max(float(row["val_auc"]) for row in log)


def test_a_run_on_still_clips_has_its_own_folder_and_no_score_without_motion(here):
    train.main(["--mode", "bin_ce", "--still", *QUICK])
    results = json.loads(Path("runs/bin_ce_still_DF_seed0/results.json").read_text())
    assert results["config"]["still"] and not {"still", "still_seen"} & results.keys()


def test_the_main_command_learns(whole_toy, monkeypatch, tmp_path):
    validate = train.validate

    def stop_when_learned(*arguments):
        row = validate(*arguments)
        if row["val_auc"] >= 0.95:
            raise KeyboardInterrupt
        return row

    monkeypatch.chdir(whole_toy)
    monkeypatch.setattr(train, "validate", stop_when_learned)
    with pytest.raises(SystemExit, match="interrupted"):
        train.main(["--mode", "bin_contrastive", "--holdout", "DF", "--out", str(tmp_path)])


def test_a_finished_run_prints_its_report_with_or_without_resume(finished, here, capsys):
    before = times(finished[0])
    for more in ([], ["--resume"], ["--workers", "0"]):  # the place of a run may change
        train.main([*finished[2], *more])  # no SystemExit: status 0
        printed = capsys.readouterr().out
        assert "gap to held-out" in printed and "to start again" in printed
    assert times(finished[0]) == before


def test_a_folder_with_other_settings_is_refused_and_the_difference_named(finished, refused, toy):
    message = refused(toy, train.main, *finished[2], "--lr", "0.5", "--resume")
    assert "lr 0.001 there, 0.5 now" in message


def test_a_saved_file_makes_a_run_and_a_config_alone_does_not(finished, refused, toy, tmp_path):
    shutil.copy(finished[0] / "config.json", tmp_path)
    flags = [*finished[2][:-1], tmp_path, "--workers", "0"]
    shutil.copy(finished[0] / "best.pt", tmp_path)
    assert "--resume continues it" in refused(toy, train.main, *flags)
    train.main([*map(str, flags), "--resume"])  # killed between its first two files: starts again
    last = torch.load(tmp_path / "last.pt", weights_only=True)
    assert last["log"] == torch.load(finished[0] / "last.pt", weights_only=True)["log"]


def test_resume_refuses_another_training_set_and_names_another_test_set(
    finished, refused, toy, tmp_path, capfd, monkeypatch
):
    shutil.copytree(toy / "toy_ffpp", tmp_path / "toy_ffpp")
    out = shutil.copytree(finished[0], tmp_path / "run")
    (out / "results.json").unlink()
    flags = [*finished[2][:-1], str(out), "--resume"]
    next(tmp_path.rglob("Deepfakes/*/*/953_*")).unlink()
    monkeypatch.chdir(tmp_path)
    train.main(flags)
    assert "test had" in capfd.readouterr().out
    (out / "results.json").unlink()
    next(tmp_path.rglob("Deepfakes/*/*/001_*")).unlink()
    assert "train had" in refused(tmp_path, train.main, *flags)


@pytest.mark.parametrize("mode", [BOTH, "dfdc_winner"])
def test_a_stopped_run_needs_resume_and_then_ends_as_if_undisturbed(here, monkeypatch, mode):
    compute = train.compute_losses
    draws = []

    def stopping(*arguments):
        draws.append(torch.rand(1).item())  # as EfficientNet, which drops layers at random
        if len(draws) == 5:  # in the second epoch
            raise KeyboardInterrupt
        return compute(*arguments)

    monkeypatch.setattr(train, "compute_losses", stopping)
    flags = ["--mode", mode, *QUICK]
    stopped = [*flags, "--out", f"runs/stopped_{mode}"]
    for start in (["--resume", "--workers", "2"], []):  # nothing to resume; then it is refused
        with pytest.raises(SystemExit, match="--resume"):
            train.main([*stopped, *start])
    train.main([*stopped, "--resume"])
    train.main([*flags, "--out", f"runs/whole_{mode}"])
    assert len(set(draws)) == 6  # each step draws its own, the same again after --resume

    first = torch.load(f"runs/stopped_{mode}/last.pt", weights_only=True)
    second = torch.load(f"runs/whole_{mode}/last.pt", weights_only=True)
    assert first["log"] == second["log"]
    assert all(torch.equal(first["nets"][name], p) for name, p in second["nets"].items())


def test_the_checkpoint_is_the_last_epoch_of_the_highest_auc(here, monkeypatch):
    validate = train.validate
    aucs = iter([0.7, 0.8, 0.8, 0.7])

    def scripted(*arguments):
        return {**validate(*arguments), "val_auc": next(aucs)}

    monkeypatch.setattr(train, "validate", scripted)
    train.main([*QUICK, "--epochs", "4", "--out", "runs/chosen"])
    assert torch.load("runs/chosen/best.pt", weights_only=True)["epoch"] == 3


def test_validation_accuracy_counts_originals_and_fakes_alike(here, monkeypatch):
    val = {"accuracy_real": 0.2, "accuracy_fake": 1.0, "auc": 0.5}
    monkeypatch.setattr(train, "evaluate", lambda *arguments: ([], []))
    monkeypatch.setattr(train, "measure", lambda videos: val)
    args, nets = case()
    assert train.validate(nets, args, None) == {"val_accuracy": 0.6, "val_auc": 0.5}


def test_a_run_of_version_1_is_refused(refused, toy, tmp_path):
    (tmp_path / "config.json").write_text('{"mode": "bin_contrastive"}')
    torch.save({"config": {"mode": "bin_contrastive"}, "encoder": {}}, tmp_path / "last.pt")
    assert "last.pt" in refused(toy, train.main, "--out", tmp_path, "--resume")


def test_an_unreadable_video_stops_training_and_is_named(toy, refused, tmp_path):
    shutil.copytree(toy / "toy_ffpp", tmp_path / "toy_ffpp")
    next(tmp_path.rglob("NeuralTextures/*/*/001_*")).write_bytes(b"")
    for workers in (0, 1):
        assert "001_" in refused(tmp_path, train.main, *QUICK, "--holdout=FS", "--workers", workers)


def test_a_test_without_scored_fakes_does_not_finish_the_run(toy, refused, tmp_path):
    shutil.copytree(toy / "toy_ffpp", tmp_path / "toy_ffpp")
    for path in tmp_path.rglob("NeuralTextures/*/*/*"):
        path.write_bytes(b"")
    assert "no fakes" in refused(tmp_path, train.main, *QUICK, "--holdout=NT")
    assert not list(tmp_path.rglob("results.json"))


@pytest.mark.parametrize(
    "flag, value",
    [
        ("--holdout", "Deepfakes"),
        ("--epoch", "3"),
        ("--frames", "7"),
        ("--size", "16"),
        ("--batch-size", "7"),
        ("--batch-size", "1000"),
        ("--workers 0 --batch-size 4 --lr", "1e9"),
        ("--explain", "--resume"),
        ("--data", "no/folder"),
        ("--init", "x.pt"),
        ("--mode dfdc_winner --init", "coclr"),
        ("--mode dfdc_winner", "--still"),
        ("--precision", "bf16"),
        ("--lr", "abc"),
        ("--no-bin-contrast --bin-ce", "cut"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_the_flag_or_the_file(refused, toy, flag, value):
    sentence = refused(toy, train.main, *flag.split(), value, "--out", "runs/mistake")
    assert flag.split()[-1] in sentence or value in sentence


def test_a_given_flag_wins_over_the_toy_then_the_mode_then_the_paper():
    real = ["--data", "real"]
    assert train.parse(["--lr", "0.5"]).lr == 0.5 and train.parse([]).lr == train.TOY["lr"]
    assert train.parse(["--mode", "dfdc_winner", *real]).size == 380
    assert train.parse(["--mode", "dfdc_winner"]).size == train.TOY["size"]
    args = vars(train.parse(["--mode", "bin_ce", *real]))
    assert {name: args[name] for name in train.DEFAULTS} == train.DEFAULTS
    assert train.parse(["--mode", "dfdc_winner"]).frames == 1
    assert train.parse(["--mode", "dfdc_winner", "--frames", "2"]).frames == 2


def test_help_names_every_flag_with_the_papers_value(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        train.parse(["--help"])
    text = capsys.readouterr().out
    for name in vars(train.parse([])).keys() - {"case", "toy", "rank", "ranks"}:
        assert f"  --{name.replace('_', '-')}" in text, name
    for name in ("crop", "frames", "size", "clips", "epochs", "lr", "queue_size", "momentum"):
        assert f"({train.DEFAULTS[name]})" in text, name
