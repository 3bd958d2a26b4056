# SPDX-License-Identifier: MIT
"""What sits on the embedding: classifiers and projection heads (section 2.1).

    Classifier       "A 3 layer MLP was used to classify the embedding vector produced by the S3D", one per
                     stream: 2 classes in the binary stream, 1 + seen manipulations in the multi-class stream.
    ProjectionHead   "Inspired by MoCo v2, we use an MLP head after the encoder wherever L_contrast is
                     involved", one per contrastive stream; thrown away after training.

To use them elsewhere, copy this file:

    import torch
    from heads import Classifier, ProjectionHead
    embedding = torch.randn(4, 1024)
    logits = Classifier(1024, classes=2)(embedding)     # (4, 2)
    z = ProjectionHead(1024)(embedding)                 # (4, 128), each row of length 1

`python heads.py` prints both with their shapes.
"""
import torch
from torch import nn
from torch.nn import functional as F


class Classifier(nn.Module):
    """embedding (B, dim) -> logits (B, classes), through two hidden layers of dim / 2."""

    def __init__(self, dim, classes):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(dim, dim // 2), nn.ReLU(),
            nn.Linear(dim // 2, dim // 2), nn.ReLU(),
            nn.Linear(dim // 2, classes))

    def forward(self, embedding):
        return self.layers(embedding)


class ProjectionHead(nn.Module):
    """embedding (B, dim) -> z (B, out), L2-normalised, so that the dot product of Eq. 1 is a cosine."""

    def __init__(self, dim, out=128):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, out))  # MoCo v2's MLP

    def forward(self, embedding):
        z = self.layers(embedding)
        # In float32 at least: bfloat16 rounds by up to 0.4 %, which exp(z / 0.07) in Eq. 1 makes 6 %.
        return F.normalize(z.to(torch.promote_types(z.dtype, torch.float32)), dim=1)


def main():
    """The lesson: the heads' shapes and sizes on four embeddings."""
    torch.manual_seed(0)
    embedding = torch.randn(4, 1024)
    print(f"embedding {tuple(embedding.shape)}")
    for name, head in (("binary classifier", Classifier(1024, 2)), ("multi-class classifier", Classifier(1024, 4)),
                       ("projection head", ProjectionHead(1024))):
        print(f"\n{name}: {tuple(head(embedding).shape)}, {sum(p.numel() for p in head.parameters()):,} parameters")
        for layer in head.layers:
            print("   ", layer)
    print("\nlengths of z:", ProjectionHead(1024)(embedding).norm(dim=1).tolist())


if __name__ == "__main__":
    main()
