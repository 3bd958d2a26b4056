# SPDX-License-Identifier: MIT
"""torchrun does what one process does with the joined batch, but for BatchNorm's statistics."""

import json
import os
import subprocess
import sys
from unittest.mock import Mock

import pytest
import torch
from torch import distributed as dist
from torch import nn

import data
import eval as evaluation
import train
from tests.conftest import ROOT, TINY
from tests.test_train import BATCH, BOTH, case

FLAGS = [*TINY, "--epochs", "1", "--batch-size", "12", "--out", "runs/two"]


def one_step(rank=0, ranks=1):
    """BatchNorm in eval mode, a positive for every anchor: gradients, weights and queues."""
    args, nets = case("--mode", BOTH, "--bin-ce", "grad", filled=False)
    for module in nets.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight)  # outputs that BatchNorm's statistics fit
        if isinstance(module, nn.BatchNorm3d):
            module.eval()
    batch = [tensor.chunk(ranks)[rank] for tensor in BATCH]
    train.enqueue_keys(nets, args, *batch)
    optimizer = torch.optim.SGD([p for p in nets.parameters() if p.requires_grad], lr=0.1)
    args.ranks = ranks
    train.training_step(nets, args, optimizer, *batch)
    gradients = {f"gradient of {name}": p.grad for name, p in nets.named_parameters()}
    return nets.state_dict() | {name: p for name, p in gradients.items() if p is not None}


def process(flags):
    """One of torchrun's two processes: a run of train.py, then one_step on its half."""
    if os.environ["RANK"] == "1":
        forbidden = Mock(side_effect=AssertionError("only the first process does this"))
        data.replacing = train.replacing = evaluation.replacing = train.evaluate = forbidden
        train.test = forbidden
    train.main(flags)
    torch.save(one_step(dist.get_rank(), 2), f"{dist.get_rank()}.pt")


@pytest.fixture(scope="module")
def printed(toy):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    result = subprocess.run(
        [*command, __file__, *FLAGS],
        cwd=toy,
        text=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_two_processes_have_the_gradient_of_one_and_equal_weights_and_queues(toy, printed):
    alone = one_step()
    first = torch.load(toy / "0.pt")
    second = torch.load(toy / "1.pt")
    assert max(value.abs().max() for name, value in alone.items() if "gradient" in name) > 1e-3
    torch.testing.assert_close(first, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(second, first, rtol=0, atol=0)


def test_the_first_process_alone_scores_each_video_once_writes_and_prints(toy, printed):
    results = json.loads((toy / "runs/two/results.json").read_text())
    assert len({video["path"] for video in results["videos"]}) == len(results["videos"]) == 20
    assert printed.count(evaluation.report(results)) == 1


@pytest.mark.parametrize("ranks, batch", [(3, 16), (8, 8)])
def test_a_batch_that_cannot_be_shared_in_pairs_is_refused(toy, ranks, batch):
    videos = data.FFPP(toy / "toy_ffpp", "train", "DF")
    with pytest.raises(ValueError, match="--batch-size"):
        data.EpochBatches(videos, batch, ranks=ranks)


if __name__ == "__main__":
    process(sys.argv[1:])
