# SPDX-License-Identifier: MIT
import contextlib
import copy
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import DEFAULT, Mock

import pytest
import torch
from torch import nn

import train
from tests.conftest import ROOT, TINY

BOTH = "bin_contrastive_multi_contrastive"
TABLE = {  # the losses that reach the encoder; L_bin_ce exists in every case, if need be cut off
    "baseline": "bin_ce",
    "bin_ce": "bin_ce",
    "dfdc_winner": "bin_ce",
    "bin_contrastive": "bin_contrast",
    "bin_ce_contrastive": "bin_ce bin_contrast",
    "bin_ce_multi_ce": "bin_ce multi_ce",
    BOTH: "bin_contrast multi_contrast",
}
HEAD = {
    "bin_ce": "bin_classifier",
    "bin_contrast": "bin_projection",
    "multi_ce": "multi_classifier",
    "multi_contrast": "multi_projection",
}
CLIPS = torch.randint(256, (8, 3, 8, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
BATCH = CLIPS, torch.tensor([0, 1] * 4), torch.tensor([0, 1, 0, 2, 0, 3, 0, 1])
QUICK = [*TINY, "--batch-size", "12", "--workers", "0"]


def case(flags, filled=True):
    args = train.parse(f"--width 0.125 --queue-size 20 {flags}".split())
    torch.manual_seed(0)
    nets = train.build_networks(args, multi_classes=4).train()
    if filled:
        train.enqueue_keys(nets, args, *BATCH)
    return args, nets


def quick(*flags):
    """A run of seconds, 3 steps an epoch."""
    train.main([*QUICK, *map(str, flags)])


def step(args, nets):
    optimizer = torch.optim.AdamW(nets.parameters(), lr=1e-2)
    return train.training_step(nets, args, optimizer, *BATCH)


def separate_gradients(args, nets):
    """{loss: {module: gradient}} of the modules that it reaches, by a backward pass for each."""
    losses, _ = train.compute_losses(nets, args, *BATCH)
    found = {name: {} for name in losses}
    for name, loss in losses.items():
        nets.zero_grad()
        loss.backward(retain_graph=True)
        for net in nets:
            reached = [p.grad.flatten() for p in nets[net].parameters() if p.grad is not None]
            if reached:
                found[name][net] = torch.cat(reached)
    return found


def assert_equal(tensors, expected):
    torch.testing.assert_close({**tensors}, {**expected}, rtol=0, atol=0)


def times(folder):
    return {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*")}


@pytest.fixture
def unfinished(finished, tmp_path):
    """(folder, flags) of a run that stopped before its test."""
    folder = shutil.copytree(finished[0], tmp_path / "run")
    (folder / "results.json").unlink()
    return folder, [*finished[2][:-1], str(folder)]


@pytest.mark.parametrize("mode", TABLE)
def test_each_loss_alone_reaches_exactly_the_modules_of_the_papers_diagram(mode):
    found = separate_gradients(*case(f"--mode {mode}"))
    reaching = TABLE[mode].split()
    assert found.keys() == {"bin_ce", *reaching} and train.MODES.keys() == TABLE.keys()
    for loss, nets in found.items():
        assert nets.keys() == {HEAD[loss], *(["encoder"] if loss in reaching else [])}
        assert all(gradient.any() for gradient in nets.values())


def test_each_contrastive_stream_has_its_own_head_ema_head_and_queue_on_one_ema_encoder():
    names = "encoder bin_classifier bin_projection multi_projection bin_queue multi_queue "
    names += "ema_encoder ema_bin_projection ema_multi_projection"
    assert case(f"--mode {BOTH}")[1].keys() == {*names.split()}


def test_a_training_step_is_losses_then_weights_then_ema_then_keys():
    args, nets = case(f"--mode {BOTH} --momentum 0.9 --queue-size 24")
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
    flags = "--mode bin_contrastive --bin-ce grad --multi-ce --no-bin-contrast --multi-contrast"
    found = separate_gradients(*case(flags))
    assert found.keys() == {"bin_ce", "multi_ce", "multi_contrast"} and "encoder" in found["bin_ce"]


def test_a_mode_sets_the_papers_starting_weights_and_the_toy_starts_at_random():
    others = {"baseline": "kinetics400", "dfdc_winner": "imagenet"}
    for mode in TABLE:
        init = train.parse(["--mode", mode, "--data", "real"]).init
        assert (init, train.parse(["--mode", mode]).init) == (others.get(mode, "coclr"), "random")


def test_the_encoder_and_its_ema_start_from_the_weights_of_init(finished, here):
    _, nets = case("--init runs/first/best.pt", filled=False)
    for name in ("encoder", "ema_encoder"):
        assert_equal(nets[name].state_dict(), train.load("runs/first/best.pt")["encoder"])


def test_a_loss_that_is_not_finite_stops_before_the_weights_change():
    args, nets = case("--mode bin_contrastive")
    nn.init.constant_(nets["bin_classifier"][-1].bias, float("inf"))
    before = copy.deepcopy(nets)
    with pytest.raises(ValueError, match="L_bin_ce is nan: try a smaller --lr"):
        step(args, nets)
    assert all(map(torch.equal, nets.parameters(), before.parameters()))


def test_explain_measures_over_20_batches_what_separate_backward_passes_give(capsys, monkeypatch):
    # A queue of 8 holds the keys of BATCH, ever again.
    args, nets = case(f"--mode {BOTH} --queue-size 8 --batch-size 8")
    gradients = separate_gradients(args, nets)
    a, b = (gradients[loss]["encoder"] for loss in TABLE[BOTH].split())
    compute = Mock(wraps=train.compute_losses)
    monkeypatch.setattr(train, "compute_losses", compute)
    epoch = Mock(__iter__=lambda loader: iter([BATCH]))  # fewer than 20
    returned = train.explain(nets, args, epoch)

    cut, *values = re.findall(r"cut$|\S+(?= ± [^ ]+$)", capsys.readouterr().out, re.MULTILINE)
    expected = [a.norm().item(), b.norm().item(), torch.cosine_similarity(a, b, dim=0).item()]
    assert (cut, compute.call_count) == ("cut", 20)
    assert [*map(float, values)] == pytest.approx(expected, rel=0.01)
    (cosines,) = returned["cosines"].values()
    assert cosines == pytest.approx(20 * expected[2:])
    assert returned["norms"]["multi_contrast"] == pytest.approx(20 * expected[1:2])


def test_explain_asks_trained_networks_on_resume_and_keeps_only_that(finished, here, monkeypatch):
    before, explain = times("runs"), Mock(return_value={"norms": {}})
    monkeypatch.setattr(train, "explain", explain)
    quick("--explain", "--out", "runs/asked")
    train.main([*finished[2], "--explain", "--resume"])
    trained = train.load(finished[0] / "last.pt")["nets"]
    assert_equal(explain.call_args.args[0].state_dict(), trained)

    explained = finished[0] / "explain.json"
    assert json.loads(explained.read_text()) == {"norms": {}}
    explained.unlink()
    assert times("runs").keys() == before.keys()


def test_a_run_keeps_its_settings_metrics_and_scores(finished):
    config, results = (
        json.loads((finished[0] / f"{name}.json").read_text()) for name in ("config", "results")
    )
    assert config == results["config"] and (config["holdout"], config["seed"]) == ("NT", 3)
    assert {"accuracy", "auc", "intervals"} < results["metrics"].keys()
    assert results["seen"].keys() == {"DF", "F2F", "FS"} and len(results["videos"]) == 20


def test_a_run_on_still_clips_has_its_own_folder_and_no_score_without_motion(here):
    quick("--mode", "bin_ce", "--still")
    results = train.load("runs/bin_ce_still_DF_seed0/results.json")
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


@pytest.mark.parametrize("more", ["", "--resume", "--workers 0"])  # its place may change
def test_a_finished_run_prints_its_report_without_data(
    finished, tmp_path, monkeypatch, capsys, more
):
    before = times(finished[0])
    monkeypatch.chdir(tmp_path)
    train.main([*finished[2][:-1], str(finished[0]), *more.split()])  # no SystemExit: status 0
    printed = capsys.readouterr().out
    assert "gap to held-out" in printed and "to start again" in printed
    assert times(finished[0]) == before and not os.listdir()


def test_a_run_with_other_settings_is_refused_and_the_difference_named(
    finished, unfinished, refused, toy
):
    message = refused(toy, train.main, *finished[2], "--lr", "0.5")
    assert "results.json" in message and "(lr 0.001 there, 0.5 now)" in message
    message = refused(toy, train.main, *unfinished[1], "--resume", "--seed", "4")
    assert "last.pt" in message and "(seed 3 there, 4 now)" in message


def test_an_unfinished_run_needs_resume(unfinished, refused, toy):
    before = times(unfinished[0])
    assert "--resume continues it" in refused(toy, train.main, *unfinished[1])
    assert times(unfinished[0]) == before


def test_a_config_alone_is_no_run(here, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    quick("--epochs", 1, "--out", tmp_path)
    assert (tmp_path / "results.json").is_file()


@pytest.mark.parametrize("mode", [BOTH, "dfdc_winner"])
def test_a_run_that_was_stopped_and_resumed_ends_like_an_undisturbed_one(here, monkeypatch, mode):
    whole, stopped = Path("runs", f"{mode}_whole"), Path("runs", f"{mode}_stopped")
    quick("--mode", mode, "--out", whole)

    steps = [DEFAULT] * 4 + [KeyboardInterrupt] + [DEFAULT] * 3  # within the second epoch
    step = Mock(wraps=train.training_step, side_effect=steps)
    monkeypatch.setattr(train, "training_step", step)
    killed_before = ["log.csv", "best.pt"]  # of the last epoch
    whole_save = train.save

    def save(content, path):
        if step.call_count > 5 and path.name in killed_before:
            killed_before.remove(path.name)
            raise KeyboardInterrupt
        whole_save(content, path)

    monkeypatch.setattr(train, "save", save)
    for more in ([], ["--resume"], ["--resume"]):
        with pytest.raises(SystemExit, match="interrupted; --resume"):
            quick("--mode", mode, "--out", stopped, *more)
    quick("--mode", mode, "--out", stopped, "--resume")

    assert (stopped / "log.csv").read_bytes() == (whole / "log.csv").read_bytes()
    for name, content in (("best.pt", "encoder"), ("last.pt", "nets")):
        assert_equal(*(train.load(folder / name)[content] for folder in (stopped, whole)))
    videos, expected = (train.load(each / "results.json")["videos"] for each in (stopped, whole))
    assert videos == expected
    first, second = (step.mock_calls[i].args[3] for i in (0, 3))
    assert not torch.equal(first, second)  # each epoch draws its own clips


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signal")
def test_ctrl_c_ends_a_run_in_a_sentence_and_resume_goes_on(toy, tmp_path, monkeypatch):
    out = tmp_path / "a folder's ünïcode"
    flags = [*TINY, "--epochs", "5", "--batch-size", "12", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, ROOT / "train.py", *flags],
        cwd=toy,
        text=True,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    while process.poll() is None and not (out / "last.pt").is_file():
        time.sleep(0.02)
    while process.poll() is None:  # again, as Python loses one that arrives in a destructor
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the loader's worker, too
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(4)
    error = process.communicate()[1]
    assert process.returncode == 1 and "Traceback" not in error and "--resume" in error
    monkeypatch.chdir(toy)
    train.main([*flags, "--resume"])
    assert (out / "results.json").is_file()


class Malicious:
    def __reduce__(self):
        return open, ("created", "w")


@pytest.mark.parametrize("content", ["damaged", {"config": Malicious()}, {"config": {"mode": 1}}])
def test_a_last_checkpoint_that_is_not_one_is_named_and_its_code_never_run(
    unfinished, refused, toy, content
):
    torch.save(content, unfinished[0] / "last.pt")
    assert "last.pt" in refused(toy, train.main, *unfinished[1], "--resume")
    assert not (toy / "created").exists()


def test_resume_refuses_another_number_of_videos(unfinished, refused, toy, tmp_path):
    shutil.copytree(toy / "toy_ffpp", tmp_path / "toy_ffpp")
    next(tmp_path.rglob("Deepfakes/*/*/953_*")).unlink()
    flags = [*unfinished[1], "--resume", "--cache", toy / "cache"]
    assert "'DF': 3" in refused(tmp_path, train.main, *flags)


def test_the_best_checkpoint_is_of_the_last_epoch_of_the_highest_auc_and_is_tested(
    here, monkeypatch, tmp_path
):
    encoders = []
    aucs = [0.7, 0.8, 0.8, 0.7]

    def validate(nets, *rest):
        encoders.append(copy.deepcopy(nets["encoder"].state_dict()))
        return {"val_auc": aucs[len(encoders) - 1]}

    tested = Mock(wraps=train.test)
    monkeypatch.setattr(train, "validate", validate)
    monkeypatch.setattr(train, "test", tested)
    quick("--epochs", 4, "--out", tmp_path)
    assert_equal(train.load(tmp_path / "best.pt")["encoder"], encoders[2])
    assert_equal(tested.call_args.args[0].state_dict(), encoders[2])
    assert train.load(tmp_path / "results.json")["val_auc"] == 0.8


def test_validation_accuracy_counts_originals_and_fakes_alike(monkeypatch):
    scored = [{"label": label, "score": 0.9} for label in (0, 1, 1, 1)]
    monkeypatch.setattr(train, "evaluate", lambda *arguments: scored)
    args, nets = case("")
    assert train.validate(nets, args, None) == {"val_accuracy": 0.5, "val_auc": 0.5}


def test_a_broken_video_is_named_and_nothing_is_trained(toy, monkeypatch, tmp_path):
    shutil.copytree(toy / "toy_ffpp", tmp_path / "toy_ffpp")
    next(tmp_path.rglob("NeuralTextures/*/*/001_*")).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="001_.*cannot be read"):
        quick("--out", "run")
    assert os.listdir("run") == ["config.json"]


MISTAKES = {
    "--holdout Deepfakes": "--holdout",
    "--epoch 3": "--epoch",
    "--lr abc": "--lr",
    "--lr 0": "--lr",
    "--momentum 2": "--momentum",
    "--seed -1": "--seed",
    "--device gpu": "--device",
    "--frames 7": "--frames",
    "--size 16": "--size",
    "--mode dfdc_winner --init coclr": "--init",
    "--mode dfdc_winner --still": "--still",
    "--no-bin-contrast --bin-ce cut": "--bin-ce",
    "--batch-size 7": "--batch-size",
    "--batch-size 1000 --queue-size 1000": "--batch-size",
    "--queue-size 11": "--queue-size",
    "--data nowhere --init random": "nowhere",
    "--init x.pt": "x.pt",
    "--explain --resume": "last.pt",
    "--out toy_ffpp/TOY.txt/run --data nowhere": "TOY.txt",  # before anything is read
}


@pytest.mark.parametrize("flags", MISTAKES)
def test_a_mistake_is_one_sentence_that_names_the_flag_or_the_file(refused, toy, flags, tmp_path):
    out = ["--out", tmp_path / "run"]
    assert MISTAKES[flags] in refused(toy, train.main, *QUICK, *out, *flags.split())


def test_a_typed_flag_wins_over_the_toy_then_the_mode_then_the_default():
    winner = "--mode dfdc_winner"
    flags = f"{winner} --size 99", winner, f"{winner} --data real", "--data real"
    assert [train.parse(each.split()).size for each in flags] == [99, 50, 380, 128]


def test_on_the_toy_the_dfdc_winner_sees_as_many_frames_of_a_video_as_s3d():
    winner, s3d = (train.parse(["--mode", mode]) for mode in ("dfdc_winner", "bin_ce"))
    assert winner.frames == 1 and winner.clips == s3d.clips * s3d.frames


CASES = {
    "": "bin_contrastive_DF_seed0",
    "--mode bin_ce --holdout none --seed 7": "bin_ce_none_seed7",
    "--mode bin_ce --bin-ce grad --init random": "bin_ce_DF_seed0",
    "--mode bin_ce --still": "bin_ce_still_DF_seed0",
    "--mode bin_ce --multi-contrast": "bin_ce_multi_contrast_DF_seed0",
    "--no-bin-contrast --bin-ce grad": "bin_contrastive_bin_ce_grad_no_bin_contrast_DF_seed0",
    "--init weights/mine.pt": "bin_contrastive_mine_DF_seed0",
    "--mode baseline --data real --init coclr": "baseline_coclr_DF_seed0",
}


@pytest.mark.parametrize("flags", CASES)
def test_the_default_folder_is_the_mode_and_what_differs_from_it(flags):
    assert train.parse(flags.split()).out == f"runs/{CASES[flags]}"


def test_prepare_prepares_all_splits_and_classes_and_writes_nothing_to_out(here, tmp_path):
    quick("--prepare", "--cache", tmp_path, "--out", "runs/prepared")
    assert len([*tmp_path.rglob("*.npy")]) == 5 * (6 + 2 + 4) and not Path("runs/prepared").exists()
