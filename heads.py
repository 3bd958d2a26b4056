# SPDX-License-Identifier: MIT
"""The heads on the embedding: classifiers and projection heads (section 2.1).

    Classifier       "A 3 layer MLP was used to classify the embedding vector": one per stream,
                     with 2 classes (binary) or 1 + the seen manipulations (multi-class)
    ProjectionHead   "Inspired by MoCo v2, we use an MLP head after the encoder wherever
                     L_contrast is involved": one per contrastive stream, only for training

`python heads.py` prints both. To use them elsewhere, copy this file:

    import torch
    from heads import Classifier, ProjectionHead
    embedding = torch.randn(4, 1024)
    logits = Classifier(1024, classes=2)(embedding)     # (4, 2)
    z = ProjectionHead(1024)(embedding)                 # (4, 128), rows of unit length
"""

import torch
from torch import nn
from torch.nn import functional as F


class Classifier(nn.Sequential):
    """embedding (B, dim) -> logits (B, classes)"""

    def __init__(self, dim, classes):
        super().__init__(
            nn.Linear(dim, dim // 2),
            nn.ReLU(),
            nn.Linear(dim // 2, dim // 2),
            nn.ReLU(),
            nn.Linear(dim // 2, classes),
        )


class ProjectionHead(nn.Module):
    """embedding (B, dim) -> z (B, out), L2-normalised: Equation 1's dot product is a cosine."""

    def __init__(self, dim, out=128):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, out))

    def forward(self, embedding):
        return F.normalize(self.layers(embedding), dim=1)


def main():
    """The lesson: layers and shapes."""
    embedding = torch.randn(4, 1024)
    for head in (Classifier(1024, classes=2), ProjectionHead(1024)):
        print(f"{tuple(embedding.shape)} -> {head} -> {tuple(head(embedding).shape)}\n")


if __name__ == "__main__":
    main()
