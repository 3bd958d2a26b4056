# SPDX-License-Identifier: MIT
"""Several processes, and gradients summed over several parts of a batch, do what one process does with the whole batch."""
import argparse
import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import eval as evaluation
import train
from conftest import ROOT, TINY
from data import FFPP, EpochSampler

TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def one_step(folder, accumulate=1):
    """One training_step on (a share of) eight fixed clips, BatchNorm in eval mode: gradients, and everything afterwards."""
    rank, ranks = evaluation.world()
    args = train.parse(["--mode", "bin_contrastive_multi_contrastive", "--bin-ce", "grad", "--width", "0.125", "--queue-size", "20", "--batch-size", "8"])
    torch.manual_seed(0)
    nets = train.build_networks(args, multi_classes=4)
    for module in nets.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight)  # activations of size 1, so that BatchNorm's initial statistics fit
        if isinstance(module, nn.BatchNorm3d):
            module.eval()
    train.move_ema(nets, argparse.Namespace(**{**vars(args), "momentum": 0}))
    clip, y_bin, y_mult = torch.randint(0, 256, (8, 3, 8, 32, 32), dtype=torch.uint8), torch.tensor([0, 1] * 4), torch.tensor([0, 1, 0, 2, 0, 3, 0, 1])
    keys = nn.functional.normalize(torch.randn(12, 128), dim=1)
    with torch.no_grad():
        for queue, labels in ((nets["bin_queue"], torch.arange(12) % 2), (nets["mult_queue"], torch.arange(12) % 4)):
            queue.slots[:12], queue.slot_labels[:12], queue.enqueued[...] = keys, labels, 12
    trained = {name: net for name, net in nets.items() if any(p.requires_grad for p in net.parameters())}
    parallel = {name: DistributedDataParallel(net, broadcast_buffers=False) for name, net in trained.items()} if ranks > 1 else {}
    optimizer = torch.optim.SGD([p for p in nets.parameters() if p.requires_grad], lr=0.1)
    parts = [tuple(tensor.chunk(accumulate * ranks)[part * ranks + rank] for tensor in (clip, y_bin, y_mult)) for part in range(accumulate)]
    train.training_step(nets, parallel, args, parts, optimizer, torch.amp.GradScaler("cpu", enabled=False))
    gradients = {name: p.grad for name, p in nets.named_parameters() if p.requires_grad}
    torch.save({"gradients": gradients, "state": nets.state_dict()}, f"{folder}/{rank}.pt")


def load(path):
    return torch.load(path, weights_only=True)


def test_two_processes_have_the_gradient_of_one_with_the_joined_batch_and_equal_parameters_and_queues(tmp_path):
    one_step(tmp_path)
    alone = load(tmp_path / "0.pt")
    result = subprocess.run([*TWO, __file__, str(tmp_path), "2"], capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert result.returncode == 0, result.stderr
    first, second = load(tmp_path / "0.pt"), load(tmp_path / "1.pt")
    assert any(gradient.abs().max() > 1e-3 for name, gradient in alone["gradients"].items() if name.startswith("encoder"))
    for name, gradient in alone["gradients"].items():
        assert torch.equal(first["gradients"][name], second["gradients"][name])
        torch.testing.assert_close(first["gradients"][name], gradient, rtol=1e-4, atol=1e-6)
    for name, value in alone["state"].items():
        assert torch.equal(first["state"][name], second["state"][name]), name
        torch.testing.assert_close(first["state"][name], value, rtol=1e-4, atol=1e-5)  # the queue's keys in the same order, too


def test_an_accumulated_batch_has_the_gradient_of_the_whole_one(tmp_path):
    one_step(tmp_path)
    whole = load(tmp_path / "0.pt")
    one_step(tmp_path, accumulate=4)
    parts = load(tmp_path / "0.pt")
    for kind in whole:
        for name, value in whole[kind].items():
            torch.testing.assert_close(parts[kind][name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("accumulate, ranks", [(1, 1), (1, 2), (2, 2), (4, 1)])
def test_batches_are_dealt_out_without_repeats_and_join_to_those_of_one_process(toy, monkeypatch, accumulate, ranks):
    monkeypatch.chdir(toy)
    sampler = EpochSampler(FFPP("toy_ffpp", "train", "DF", frames=8, size=32), seed=1)
    args = train.parse(["--batch-size", "16", "--accumulate", "1"])
    whole = list(train.DealtBatches(sampler, args, 0, 1))
    args.accumulate = accumulate
    dealt = [list(train.DealtBatches(sampler, args, rank, ranks)) for rank in range(ranks)]
    assert {len(batch) for share in dealt for batch in share} == {16 // accumulate // ranks}
    joined = [[draw for share in dealt for draw in share[i]] for i in range(len(dealt[0]))]
    assert sum(joined, []) == sum(whole, []) and len(dealt[0]) == len(train.DealtBatches(sampler, args, 0, ranks))


def test_torchrun_trains_and_scores_every_video_once(toy):
    flags = ["--mode", "bin_contrastive", "--holdout", "NT", *TINY, "--batch-size", "8", "--accumulate", "2", "--out", "runs/two"]
    result = subprocess.run([*TWO, str(ROOT / "train.py"), *flags], cwd=toy, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    results = json.loads((toy / "runs" / "two" / "results.json").read_text())
    paths = [video["path"] for video in results["videos"]]
    assert len(paths) == len(set(paths)) == 20 and all(len(video["clips"]) == 2 for video in results["videos"])
    assert result.stdout.count("test of the checkpoint chosen on validation") == 1 and "2 processes" in result.stdout
    assert len((toy / "runs" / "two" / "log.csv").read_text().splitlines()) == 3
    again = subprocess.run([sys.executable, str(ROOT / "eval.py"), "runs/two/best.pt", "--out", "runs/two_again.json"], cwd=toy, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    for one, two in zip(json.loads((toy / "runs" / "two_again.json").read_text())["videos"], results["videos"], strict=True):
        assert one["path"] == two["path"] and one["score"] == pytest.approx(two["score"], abs=1e-5)


def test_processes_that_cannot_share_the_batch_are_refused(monkeypatch, refused, toy):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert "3 processes" in refused(toy, train.main, "--batch-size", "16")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert "at least 2" in refused(toy, train.main, "--batch-size", "8")


def test_a_process_that_fails_does_not_wait_for_the_others(monkeypatch, refused, toy):
    left = []
    monkeypatch.setattr(train, "join_processes", lambda device: None)
    monkeypatch.setattr(evaluation, "world", lambda: (0, 2))
    monkeypatch.setattr(evaluation, "from_all_ranks", lambda value: [value])
    monkeypatch.setattr(train.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(train.dist, "destroy_process_group", lambda: left.append("waited"))  # with NCCL: until the others come
    def fails(args):
        raise ValueError("it failed")
    monkeypatch.setattr(train, "train", fails)
    assert "it failed" in refused(toy, train.main, "--out", "runs/none") and not left
    monkeypatch.setattr(train, "train", lambda args: None)
    train.main(["--out", "runs/none"])
    assert left == ["waited"]


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    one_step(sys.argv[1], int(sys.argv[2]))
    torch.distributed.destroy_process_group()
