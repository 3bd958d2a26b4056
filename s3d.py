# SPDX-License-Identifier: MIT
"""S3D, the video encoder of the paper (section 2.1, "Encoder"), and the frame encoder beside it.

S3D (Xie et al., ECCV 2018) is an Inception network for video. Each k x k x k convolution is split
into (1, k, k), which sees one frame, and (k, 1, 1), which sees one pixel through time. Pooling and
averaging turn a clip into one vector: the embedding, the input of all heads.

    clip       (B, 3, T, H, W)  RGB, uint8 in 0..255 or float in 0..1; T >= 5, H and W >= 17
    embedding  (B, dim)         dim = 1024 at width 1

The mean and std of the input, BatchNorm's eps and `repeat_ends` are buffers: they belong to the
weights, and are saved and loaded with them.

`python s3d.py` prints each layer's shape and cost. To use it elsewhere, copy this file:

    import torch
    from s3d import S3D, load_pretrained
    encoder = S3D()
    # load_pretrained(encoder, "kinetics400")     # or "coclr", or the path of a checkpoint
    clip = torch.randint(0, 256, (2, 3, 16, 64, 64), dtype=torch.uint8)
    embedding = encoder(clip)                     # (2, 1024)
"""

from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and std of CoCLR's input
KINETICS = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)  # of torchvision's S3D
MIN_FRAMES, MIN_SIZE = 5, 17  # smaller clips vanish in the pooling; train on 8 frames or more


class ConvBNReLU(nn.Sequential):
    def __init__(self, inputs, outputs, kernel, stride=(1, 1, 1)):
        padding = tuple(k // 2 for k in kernel)
        super().__init__(
            nn.Conv3d(inputs, outputs, kernel, stride, padding, bias=False),
            nn.BatchNorm3d(outputs),
            nn.ReLU(inplace=True),
        )


class Separable(nn.Sequential):
    """The S in S3D: a k x k x k convolution as space, then time."""

    def __init__(self, inputs, outputs, k, stride=1):
        super().__init__(
            ConvBNReLU(inputs, outputs, (1, k, k), (1, stride, stride)),
            ConvBNReLU(outputs, outputs, (k, 1, 1), (stride, 1, 1)),
        )


class Inception(nn.Module):
    """Four views of the same input, joined along the channels: 1x1, two separable 3x3x3, pooled."""

    def __init__(self, inputs, b0, b1_mid, b1, b2_mid, b2, b3):
        super().__init__()
        one = (1, 1, 1)
        pool = nn.MaxPool3d(3, stride=1, padding=1)
        self.branch0 = ConvBNReLU(inputs, b0, one)
        self.branch1 = nn.Sequential(ConvBNReLU(inputs, b1_mid, one), Separable(b1_mid, b1, 3))
        self.branch2 = nn.Sequential(ConvBNReLU(inputs, b2_mid, one), Separable(b2_mid, b2, 3))
        self.branch3 = nn.Sequential(pool, ConvBNReLU(inputs, b3, one))
        self.outputs = b0 + b1 + b2 + b3

    def forward(self, x):
        return torch.cat(
            [self.branch0(x), self.branch1(x), self.branch2(x), self.branch3(x)], dim=1
        )


class S3D(nn.Module):
    """The encoder. `width` scales every channel count (1.0: the paper's S3D, 7.9 M parameters).

    repeat_ends: beyond a clip's ends, convolutions over time see its first and last frame repeated.
    Otherwise they see zeros, as pre-trained weights expect.
    """

    def __init__(self, width=1.0, repeat_ends=False):
        super().__init__()

        def scaled(channels):
            return max(1, round(channels * width))

        c64 = scaled(64)
        c192 = scaled(192)
        # fmt: off
        layers = {                                                # for a clip of 32 x 128 x 128:
            "conv_1a": Separable(3, c64, 7, stride=2),                          # 64 x 16 x 64 x 64
            "pool_2a": nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),           # 64 x 16 x 32 x 32
            "conv_2b": ConvBNReLU(c64, c64, (1, 1, 1)),                         # 64
            "conv_2c": Separable(c64, c192, 3),                                 # 192
            "pool_3a": nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),           # 192 x 16 x 16 x 16
            "mixed_3b": (64, 96, 128, 16, 32, 32),                              # 256
            "mixed_3c": (128, 128, 192, 32, 96, 64),                            # 480
            "pool_4a": nn.MaxPool3d(3, 2, 1),                                   # 480 x 8 x 8 x 8
            "mixed_4b": (192, 96, 208, 16, 48, 64),                             # 512
            "mixed_4c": (160, 112, 224, 24, 64, 64),                            # 512
            "mixed_4d": (128, 128, 256, 24, 64, 64),                            # 512
            "mixed_4e": (112, 144, 288, 32, 64, 64),                            # 528
            "mixed_4f": (256, 160, 320, 32, 128, 128),                          # 832
            "pool_5a": nn.MaxPool3d(2, 2),                                      # 832 x 4 x 4 x 4
            "mixed_5b": (256, 160, 320, 32, 128, 128),                          # 832
            "mixed_5c": (384, 192, 384, 48, 128, 128),                          # 1024
        }
        # fmt: on
        self.layers = nn.Sequential()
        inputs = c192
        for name, layer in layers.items():
            if name.startswith("mixed"):
                layer = Inception(inputs, *map(scaled, layer))
                inputs = layer.outputs
            self.layers.add_module(name, layer)
        self.dim = inputs

        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.normal_(module.weight, std=0.01)  # as in CoCLR and torchvision
        register_statistics(self)
        self.register_buffer("eps", torch.tensor(1e-5))
        self.register_buffer("repeat_ends", torch.tensor(repeat_ends))
        self.register_load_state_dict_post_hook(S3D.apply_buffers)
        self.apply_buffers()

    def apply_buffers(self, incompatible_keys=None):
        """Set eps and repeat_ends in the layers, at first and after weights were loaded: they are
        part of the function that the weights were trained for."""
        for module in self.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.eps = round(self.eps.item(), 9)  # 1e-5, not float32's 9.99999975e-06
            # The first convolution spans 7 frames. In a short clip most of its windows reach beyond
            # the ends; zeros there are a stronger change than any in the clip, and drown it.
            if isinstance(module, nn.Conv3d) and module.kernel_size[0] > 1:
                module.padding_mode = "replicate" if self.repeat_ends else "zeros"

    def forward(self, clip):
        """clip (B, 3, T, H, W), uint8 or float in [0, 1]  ->  embedding (B, dim). Raises ValueError
        for a clip of another shape or type, or one too small for the poolings."""
        shape = tuple(clip.shape)
        if clip.ndim != 5 or shape[1] != 3 or shape[2] < MIN_FRAMES or min(shape[3:]) < MIN_SIZE:
            raise ValueError(
                f"S3D takes clips (B, 3, T, H, W) of at least {MIN_FRAMES} frames of "
                f"{MIN_SIZE} x {MIN_SIZE} pixels, got {shape}"
            )
        x = normalise(clip, self.mean, self.std)
        if not self.training:
            # Half the time on a CPU; for training, train.py stores the weights like this.
            x = x.contiguous(memory_format=torch.channels_last_3d)
        x = self.layers(x)  # (B, dim, T/8, H/32, W/32), bfloat16 under autocast
        return x.mean(dim=(2, 3, 4), dtype=self.mean.dtype)


def register_statistics(encoder):
    """The mean and std of the input, ImageNet's until other weights are loaded."""
    mean, std = torch.tensor(IMAGENET).view(2, 1, 3, 1, 1, 1)  # (1, 3, 1, 1, 1) each
    encoder.register_buffer("mean", mean)
    encoder.register_buffer("std", std)


def normalise(clip, mean, std):
    """uint8 in 0..255 or float in 0..1 -> (clip in 0..1 - mean) / std. Raises ValueError."""
    if clip.dtype == torch.uint8:
        clip = clip.to(mean.dtype) / 255
    elif not clip.is_floating_point() or clip.numel() and clip.max() > 1:
        raise ValueError("S3D and FrameEncoder take uint8 in 0..255 or float in 0..1")
    return (clip.to(mean.dtype) - mean) / std


class FrameEncoder(nn.Module):
    """EfficientNet on single frames: the paper's point of comparison, the DFDC winner's model. B7,
    or B0 at a width below 1 (for the toy). Clips as for S3D; the embedding is the mean over frames.
    pretrained: torchvision's supervised ImageNet weights (the paper: Noisy Student)."""

    def __init__(self, width=1.0, pretrained=False):
        super().__init__()
        network = models.efficientnet_b7() if width >= 1 else models.efficientnet_b0()
        if pretrained:
            weights = models.EfficientNet_B7_Weights
            if width < 1:
                weights = models.EfficientNet_B0_Weights
            network.load_state_dict(read_checkpoint(weights.IMAGENET1K_V1.url))
        self.layers = network.features
        self.dim = network.classifier[1].in_features
        register_statistics(self)

    def forward(self, clip):
        frames = normalise(clip, self.mean, self.std).transpose(1, 2).flatten(0, 1)
        embeddings = self.layers(frames).mean(dim=(2, 3), dtype=self.mean.dtype)  # (B * T, dim)
        return embeddings.unflatten(0, (len(clip), -1)).mean(dim=1)  # (B, dim)


URLS = {
    "kinetics400": models.video.S3D_Weights.KINETICS400_V1.url,
    "coclr": "http://www.robots.ox.ac.uk/~htd/coclr/CoCLR-k400-rgb-128-s3d.pth.tar",
}
FORMATS = {  # what keys start with: (mean and std of the input, BatchNorm's eps)
    "encoder_q.0.": (IMAGENET, 1e-5),  # CoCLR's pre-training
    "backbone.": (IMAGENET, 1e-5),  # CoCLR's classifier
    "features.": (KINETICS, 1e-3),  # torchvision
}
# CoCLR's names and ours, replaced in this order; conv1, bn1 and conv2, bn2 are the two halves of a
# separable convolution
COCLR_NAMES = {
    "branch0.0.conv": "branch0.conv",
    "branch0.0.bn": "branch0.bn",
    "conv1.": "0.0.",
    "bn1.": "0.1.",
    "conv2.": "1.0.",
    "bn2.": "1.1.",
    "conv.": "0.",
    "bn.": "1.",
}


def load_pretrained(model, source):
    """Load pre-trained weights into an S3D: "kinetics400" (torchvision's supervised ones, for the
    paper's Baseline), "coclr" (self-supervised, for its other cases), or the path of a CoCLR
    checkpoint, a torchvision S3D or a checkpoint of train.py.

    Their input's mean and std, BatchNorm's eps and `repeat_ends` are loaded, too. Raises
    FileNotFoundError, ValueError (unsafe file, other names or shapes than the model's); the model
    is then unchanged.
    """
    checkpoint = read_checkpoint(URLS.get(source, source))
    for key in ("encoder", "state_dict"):  # train.py's checkpoints; CoCLR's
        if isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
    tensors = {str(key).removeprefix("module."): value for key, value in checkpoint.items()}
    layers = [name for name, _ in model.layers.named_children()]

    weights = tensors  # an S3D of this file names them as they are
    for prefix, (statistics, eps) in FORMATS.items():
        theirs = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        # CoCLR saves every tensor twice, the second time below block1 ... block5.
        theirs = {key: value for key, value in theirs.items() if not key.startswith("block")}
        if theirs:
            weights = {own_name(key, layers): value for key, value in theirs.items()}
            weights["mean"], weights["std"] = torch.tensor(statistics).view(2, 1, 3, 1, 1, 1)
            weights["eps"] = torch.tensor(eps)
            weights["repeat_ends"] = torch.tensor(False)

    needed = model.state_dict()
    for name in sorted(weights.keys() | needed.keys()):
        there = getattr(weights.get(name), "shape", "missing")
        here = getattr(needed.get(name), "shape", "missing")
        if there != here:
            raise ValueError(
                f"{source} does not fit this S3D, nothing was loaded: {name} is {there} in the "
                f"file, {here} in the model"
            )
    model.load_state_dict(weights)
    print(f"S3D: loaded {source}")


def own_name(key, layers):
    """The name in S3D of a tensor of CoCLR or torchvision; layers: the names of S3D's layers."""
    layer, _, rest = key.partition(".")
    if layer.isdigit() and int(layer) < len(layers):  # torchvision numbers them in the same order
        layer = layers[int(layer)]
    for theirs, ours in COCLR_NAMES.items():
        rest = rest.replace(theirs, ours)
    return f"layers.{layer.lower()}.{rest}"


def read_checkpoint(source):
    """The dictionary at a URL (downloaded once) or a path. Raises FileNotFoundError, ValueError."""
    if not str(source).startswith("http"):
        file = Path(source)
        advice = "give the path of a checkpoint"
    else:
        file = Path(torch.hub.get_dir(), "checkpoints", Path(source).name)
        advice = f"download {source} and put it there"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            if not file.is_file():
                torch.hub.download_url_to_file(source, file)
        except OSError as error:
            advice += f" ({error})"

    if not file.is_file():
        raise FileNotFoundError(f"there are no weights at {file}: {advice}")
    try:
        return dict(torch.load(file, map_location="cpu", weights_only=True))
    except Exception:  # a damaged file can raise anything
        raise ValueError(
            f"{file} cannot be loaded as tensors and plain values: if it is a damaged download, "
            "delete it"
        ) from None


def main():
    """The lesson: what each layer outputs, holds and costs for the paper's clip."""
    model = S3D().eval()
    clip = torch.zeros(1, 3, 32, 128, 128, dtype=torch.uint8)
    print(f"{'layer':10}{'channels x T x H x W':>24}{'parameters':>13}{'GFLOP':>9}")
    x = normalise(clip, model.mean, model.std)
    for name, layer in [*model.layers.named_children(), ("together", model)]:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            x = layer(clip if layer is model else x)
        shape = " x ".join(map(str, x.shape[1:]))
        parameters = sum(p.numel() for p in layer.parameters())
        print(f"{name:10}{shape:>24}{parameters:13,}{counter.get_total_flops() / 1e9:9.2f}")


if __name__ == "__main__":
    main()
