# SPDX-License-Identifier: MIT
"""torchrun does what one process does with the joined batch, but for BatchNorm's statistics."""

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

FLAGS = [*TINY, *"--epochs 1 --batch-size 12 --out runs/two".split()]


def one_step(rank=0, ranks=1):
    """BatchNorm in eval mode, a positive for every anchor: gradients, weights and queues."""
    args, nets = case(f"--mode {BOTH} --bin-ce grad", filled=False)
    for module in nets.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight)  # outputs that BatchNorm's statistics fit
        if isinstance(module, nn.BatchNorm3d):
            module.eval()
    batch = [tensor.chunk(ranks)[rank] for tensor in BATCH]
    train.enqueue_keys(nets, args, *batch)
    args.ranks = ranks
    train.training_step(nets, args, torch.optim.SGD(nets.parameters(), lr=0.1), *batch)
    gradients = {f"gradient of {name}": p.grad for name, p in nets.named_parameters()}
    return nets.state_dict() | {name: p for name, p in gradients.items() if p is not None}


def process(flags):
    """One of torchrun's two processes: a run of train.py, then one_step on its half. Saves what
    one_step returns, and the first clips of the run."""
    if os.environ["RANK"] == "1":
        forbidden = Mock(side_effect=AssertionError("only the first process does this"))
        data.replacing = evaluation.replacing = train.evaluate = train.test = forbidden
    train.training_step = step = Mock(wraps=train.training_step)
    train.main(flags)
    clips = step.mock_calls[0].args[3]
    torch.save((one_step(dist.get_rank(), 2), clips), f"{dist.get_rank()}.pt")


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
    (first, _), (second, _) = torch.load(toy / "0.pt"), torch.load(toy / "1.pt")
    assert max(value.abs().max() for name, value in alone.items() if "gradient" in name) > 1e-3
    torch.testing.assert_close(first, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(second, first, rtol=0, atol=0)


def test_each_process_trains_on_its_own_half_of_a_batch(toy, printed):
    (_, first), (_, second) = torch.load(toy / "0.pt"), torch.load(toy / "1.pt")
    assert len(first) == len(second) == 6 and not torch.equal(first, second)


def test_the_first_process_alone_scores_each_video_once_writes_and_prints(toy, printed):
    results = train.load(toy / "runs/two/results.json")
    assert len({video["path"] for video in results["videos"]}) == len(results["videos"]) == 20
    assert printed.count(evaluation.report(results)) == 1


@pytest.mark.parametrize("ranks, batch", [(3, 16), (8, 8)])
def test_a_batch_that_cannot_be_shared_in_pairs_is_refused(ranks, batch):
    with pytest.raises(ValueError, match="--batch-size"):
        data.EpochBatches(Mock(binary=[1] * 99), batch, ranks=ranks)


if __name__ == "__main__":
    process(sys.argv[1:])
