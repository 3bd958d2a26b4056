# SPDX-License-Identifier: MIT
import torch
from torch import nn

from heads import Classifier, ProjectionHead


def test_the_classifier_is_a_three_layer_mlp_with_relus_in_between():
    classifier = Classifier(64, 4)
    layers = [type(module) for module in classifier.modules() if not list(module.children())]
    assert layers == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert classifier(torch.randn(5, 64)).shape == (5, 4)


def test_a_projection_head_is_not_linear():
    embeddings = torch.linspace(-3, 3, 20)[:, None] * torch.randn(64) + torch.randn(64)  # a line
    assert torch.linalg.matrix_rank(ProjectionHead(64)(embeddings)) > 2  # a linear head: a plane


def test_projections_have_length_one_also_in_half_precision_and_float64_stays():
    head = ProjectionHead(64, out=16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(head(100 * torch.randn(5, 64)).norm(dim=1), torch.ones(5))
    assert head.double()(torch.randn(5, 64).double()).dtype == torch.float64
