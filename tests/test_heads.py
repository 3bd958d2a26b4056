# SPDX-License-Identifier: MIT
import torch
from torch import nn

from heads import Classifier, ProjectionHead


def test_the_classifier_is_a_three_layer_mlp_with_relus_in_between():
    classifier = Classifier(64, 4)
    assert [*map(type, classifier)] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert classifier(torch.randn(5, 64)).shape == (5, 4)


def test_projections_have_length_one_and_are_not_linear():
    line = torch.linspace(-3, 3, 20)[:, None] * torch.randn(64) + torch.randn(64)
    z = ProjectionHead(64)(line)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(20))
    assert torch.linalg.matrix_rank(z) > 2  # a linear head would give a plane
