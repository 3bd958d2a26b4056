# SPDX-License-Identifier: MIT
import torch
from torch import nn

from heads import Classifier, ProjectionHead


def test_the_classifier_is_a_three_layer_mlp():
    classifier = Classifier(64, 4)
    assert classifier(torch.randn(5, 64)).shape == (5, 4)
    assert sum(isinstance(m, nn.Linear) for m in classifier.modules()) == 3


def test_projections_have_length_one_also_in_half_precision():
    head = ProjectionHead(64, out=16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = head(100 * torch.randn(5, 64))
    assert z.shape == (5, 16) and z.dtype == torch.float32
    torch.testing.assert_close(z.norm(dim=1), torch.ones(5))
    assert head.double()(torch.randn(5, 64).double()).dtype == torch.float64
