# SPDX-License-Identifier: MIT
"""S3D, the video encoder of the paper (section 2.1, "Encoder").

An Inception network whose k x k x k convolutions are each split in two: first (1, k, k), which looks
at one frame, then (k, 1, 1), which looks at one pixel through time (Xie et al., ECCV 2018,
"Rethinking Spatiotemporal Feature Learning"). Four poolings and one average later a clip has become
one vector: the embedding that every head of the paper sits on.

    clip       (B, 3, T, H, W)  RGB, uint8 in 0..255 or float in 0..1; T >= 5, H and W >= 17
    embedding  (B, dim)         dim = 1024 at width 1

Normalisation happens inside the encoder: mean and std are buffers, so weights and the preprocessing
they were trained with are saved, loaded and copied together.

To use it elsewhere, copy this file:

    import torch
    from s3d import S3D, load_pretrained
    encoder = S3D()
    # load_pretrained(encoder, "kinetics400")     # or "coclr", or the path of a checkpoint
    clip = torch.randint(0, 256, (2, 3, 16, 64, 64), dtype=torch.uint8)
    embedding = encoder(clip)                     # (2, 1024)

`python s3d.py` prints the layer table: shapes, parameters and operations.
"""
import pickle
from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

IMAGENET_MEAN_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)                # what CoCLR was trained with
KINETICS_MEAN_STD = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)  # torchvision's video models
COCLR_URL = "http://www.robots.ox.ac.uk/~htd/coclr/CoCLR-k400-rgb-128-s3d.pth.tar"
PYTORCH_BATCHNORM, TORCHVISION_BATCHNORM = (1e-5, 0.1), (1e-3, 0.001)           # eps, momentum
MIN_FRAMES, MIN_SIZE = 5, 17  # below this the poolings leave nothing to average


class ConvBNReLU(nn.Sequential):
    """Convolution, BatchNorm, ReLU. At test time, where BatchNorm is a fixed scale and shift per channel, the
    convolution carries both: the same output with one pass over memory less."""

    def __init__(self, inputs, outputs, kernel, stride=(1, 1, 1)):
        padding = tuple(k // 2 for k in kernel)
        super().__init__(nn.Conv3d(inputs, outputs, kernel, stride, padding, bias=False),
                         nn.BatchNorm3d(outputs), nn.ReLU(inplace=True))

    def forward(self, x):
        conv, batchnorm, relu = self
        if batchnorm.training:
            return super().forward(x)
        scale = batchnorm.weight * torch.rsqrt(batchnorm.running_var + batchnorm.eps)  # (outputs,)
        shift = batchnorm.bias - batchnorm.running_mean * scale
        return relu(F.conv3d(x, conv.weight * scale.view(-1, 1, 1, 1, 1), shift, conv.stride, conv.padding))


def separable(inputs, outputs, k, stride=1):
    """The S in S3D: a k x k x k convolution as space, then time."""
    return nn.Sequential(ConvBNReLU(inputs, outputs, (1, k, k), (1, stride, stride)),
                         ConvBNReLU(outputs, outputs, (k, 1, 1), (stride, 1, 1)))


class Inception(nn.Module):
    """Four views of the same input, joined along the channels: 1x1, two separable 3x3x3, pooled."""

    def __init__(self, inputs, b0, b1_mid, b1, b2_mid, b2, b3):
        super().__init__()
        one = (1, 1, 1)
        self.branch0 = ConvBNReLU(inputs, b0, one)
        self.branch1 = nn.Sequential(ConvBNReLU(inputs, b1_mid, one), separable(b1_mid, b1, 3))
        self.branch2 = nn.Sequential(ConvBNReLU(inputs, b2_mid, one), separable(b2_mid, b2, 3))
        self.branch3 = nn.Sequential(nn.MaxPool3d(3, stride=1, padding=1), ConvBNReLU(inputs, b3, one))

    def forward(self, x):
        return torch.cat([self.branch0(x), self.branch1(x), self.branch2(x), self.branch3(x)], dim=1)


# Blocks 3 to 5. A pooling: kernel, stride, padding. An Inception block: channels of b0, b1_mid, b1, b2_mid, b2, b3.
BLOCKS = OrderedDict(                                # output for a clip of 32 x 128 x 128
    pool_3a=((1, 3, 3), (1, 2, 2), (0, 1, 1)),       # 192 x 16 x 16 x 16
    mixed_3b=(64, 96, 128, 16, 32, 32),              # 256
    mixed_3c=(128, 128, 192, 32, 96, 64),            # 480
    pool_4a=(3, 2, 1),                               # 480 x 8 x 8 x 8
    mixed_4b=(192, 96, 208, 16, 48, 64),             # 512
    mixed_4c=(160, 112, 224, 24, 64, 64),            # 512
    mixed_4d=(128, 128, 256, 24, 64, 64),            # 512
    mixed_4e=(112, 144, 288, 32, 64, 64),            # 528
    mixed_4f=(256, 160, 320, 32, 128, 128),          # 832
    pool_5a=(2, 2, 0),                               # 832 x 4 x 4 x 4
    mixed_5b=(256, 160, 320, 32, 128, 128),          # 832
    mixed_5c=(384, 192, 384, 48, 128, 128),          # 1024
)
LAYER_NAMES = ["conv_1a", "pool_2a", "conv_2b", "conv_2c", *BLOCKS]


class S3D(nn.Module):
    """The encoder. `width` scales every channel count (1.0: the paper's S3D, 7.9 M parameters)."""

    def __init__(self, width=1.0):
        super().__init__()
        scaled = lambda channels: max(1, round(channels * width))
        c64, c192 = scaled(64), scaled(192)
        layers = OrderedDict(                                                # the names are the S3D paper's
            conv_1a=separable(3, c64, 7, stride=2),                          # 64 x 16 x 64 x 64
            pool_2a=nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),           # 64 x 16 x 32 x 32
            conv_2b=ConvBNReLU(c64, c64, (1, 1, 1)),
            conv_2c=separable(c64, c192, 3),                                 # 192 x 16 x 32 x 32
        )
        channels = c192
        for name, numbers in BLOCKS.items():
            if name.startswith("pool"):
                layers[name] = nn.MaxPool3d(*numbers)
            else:
                b0, b1_mid, b1, b2_mid, b2, b3 = map(scaled, numbers)
                layers[name] = Inception(channels, b0, b1_mid, b1, b2_mid, b2, b3)
                channels = b0 + b1 + b2 + b3
        self.layers = nn.Sequential(layers)
        self.dim = channels                                                  # 1024
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.normal_(module.weight, std=0.01)  # as CoCLR and torchvision; BatchNorm sets the scale
        # What must travel with the weights, as buffers: the input statistics and BatchNorm's (eps, momentum).
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN_STD[0]).view(1, 3, 1, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_MEAN_STD[1]).view(1, 3, 1, 1, 1))
        self.register_buffer("batchnorm", torch.tensor(PYTORCH_BATCHNORM))
        self.register_load_state_dict_post_hook(S3D.apply_batchnorm_settings)

    def apply_batchnorm_settings(self, incompatible_keys):
        eps, momentum = (float(f"{value:.6g}") for value in self.batchnorm.tolist())  # 1e-5, not float32's 9.9999997e-6
        for module in self.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.eps, module.momentum = eps, momentum

    def forward(self, clip):
        """clip (B, 3, T, H, W), uint8 or float in [0, 1]  ->  embedding (B, dim).

        Raises ValueError for a clip of another shape or type, or too small for the poolings.
        """
        if clip.ndim != 5 or clip.shape[1] != 3:
            raise ValueError(f"S3D takes clips of shape (B, 3, T, H, W), got {tuple(clip.shape)}")
        if clip.shape[2] < MIN_FRAMES or min(clip.shape[3:]) < MIN_SIZE:
            raise ValueError(f"S3D needs at least {MIN_FRAMES} frames of {MIN_SIZE} x {MIN_SIZE} pixels, "
                             f"got {clip.shape[2]} of {clip.shape[3]} x {clip.shape[4]}")
        if clip.dtype != torch.uint8 and not clip.is_floating_point():
            raise ValueError(f"S3D takes uint8 clips in 0..255 or float clips in 0..1, got {clip.dtype}")
        if not self.training:  # channels innermost in memory: about half the time on a CPU
            clip = clip.contiguous(memory_format=torch.channels_last_3d)
        # In training the layout is that of the weights. With model.to(memory_format=torch.channels_last_3d) it is faster;
        # in the default one every operation is the very one of torchvision's S3D, to the last bit.
        clip = clip.to(self.mean.dtype).div_(255) if clip.dtype == torch.uint8 else clip.to(self.mean.dtype)
        x = (clip - self.mean).div_(self.std)
        return self.layers(x).mean(dim=(2, 3, 4))  # (B, dim, T/8, H/32, W/32) -> (B, dim)


def load_pretrained(model, source):
    """Put pre-trained weights into an S3D of width 1 (an own checkpoint: of the width it was saved with).

    source  "kinetics400"  torchvision's supervised weights, downloaded once (the paper's Baseline)
            "coclr"        CoCLR's self-supervised weights, downloaded once (the paper's other cases)
            a path         a CoCLR checkpoint (pre-training or fine-tuned classifier), a torchvision S3D,
                           or a checkpoint of train.py; which of them, its keys tell

    Also sets what these weights were trained with: BatchNorm's eps and momentum, the input's mean and
    std. Prints what was loaded and what was left aside. Files are read as data only (weights_only).

    Raises FileNotFoundError for a path or URL that cannot be had, and ValueError for a file that is no
    checkpoint, has no S3D in it, or lacks a tensor or holds one of another shape; the model is then as
    it was: half-loaded weights train, and nobody notices.
    """
    checkpoint = _read_checkpoint(source)
    for inner in ("encoder", "state_dict"):  # train.py's checkpoints; CoCLR's
        if isinstance(checkpoint.get(inner), dict):
            checkpoint = checkpoint[inner]
    found = {str(key).removeprefix("module."): value for key, value in checkpoint.items()}
    has = lambda prefix: any(key.startswith(prefix) for key in found)
    origin, prefix, statistics, batchnorm = (
        ("CoCLR pre-training", "encoder_q.0.", IMAGENET_MEAN_STD, PYTORCH_BATCHNORM) if has("encoder_q.0.") else
        ("fine-tuned CoCLR classifier", "backbone.", IMAGENET_MEAN_STD, PYTORCH_BATCHNORM) if has("backbone.") else
        ("torchvision S3D", "features.", KINETICS_MEAN_STD, TORCHVISION_BATCHNORM) if has("features.") else
        ("own S3D", "", None, None) if has("layers.") else (None,) * 4)
    if origin is None:
        raise ValueError(f"{source} holds no S3D: expected keys that start with encoder_q.0. or backbone. (CoCLR), "
                         f"features. (torchvision) or layers. (this project), found {list(found)[:3]}")
    weights, ignored = {}, set()
    for key, value in found.items():
        name = _own_name(key.removeprefix(prefix)) if key.startswith(prefix) else None
        if name:
            weights[name] = value
        elif not key.startswith(f"{prefix}block"):  # block1 ... block5: the second name that CoCLR gives every tensor
            ignored.add(".".join(key.split(".")[:2]))
    if statistics:
        weights["mean"], weights["std"] = (torch.tensor(s).view(1, 3, 1, 1, 1) for s in statistics)
        weights["batchnorm"] = torch.tensor(batchnorm)
    for name, own in model.state_dict().items():
        if name not in weights:
            raise ValueError(f"{source} ({origin}) lacks the tensor {name}; nothing was loaded")
        if not isinstance(weights[name], torch.Tensor) or weights[name].shape != own.shape:
            raise ValueError(f"{source} ({origin}): {name} has shape {tuple(getattr(weights[name], 'shape', ()))}, "
                             f"this S3D needs {tuple(own.shape)}; nothing was loaded")
    model.load_state_dict(weights)
    print(f"S3D: loaded {len(weights)} tensors from {source} ({origin}); "
          f"left aside: {', '.join(sorted(ignored)) or 'nothing'}")


def _own_name(key):
    """The name here of one tensor of a CoCLR, torchvision or own S3D; None for what is no part of it."""
    layer, _, rest = key.partition(".")
    if layer == "layers" or key in ("mean", "std", "batchnorm"):
        return key
    if layer.isdigit() and int(layer) < len(LAYER_NAMES):  # torchvision numbers the layers in the same order
        return f"layers.{LAYER_NAMES[int(layer)]}.{rest}"
    if layer.lower() in LAYER_NAMES:  # CoCLR names conv1, bn1, conv2, bn2 (or conv, bn) what is 0.0, 0.1, 1.0, 1.1 here
        rest = rest.replace("branch0.0.", "branch0.")
        for theirs, ours in (("conv1", "0.0"), ("bn1", "0.1"), ("conv2", "1.0"), ("bn2", "1.1"), ("conv", "0"), ("bn", "1")):
            rest = rest.replace(f"{theirs}.", f"{ours}.")
        return f"layers.{layer.lower()}.{rest}"
    return None


def _read_checkpoint(source):
    try:
        if source == "kinetics400":
            from torchvision.models.video import S3D_Weights
            return S3D_Weights.KINETICS400_V1.get_state_dict(progress=True, check_hash=True)
        if source == "coclr":
            return torch.hub.load_state_dict_from_url(COCLR_URL, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:  # no network (an OSError), or a broken download
        url = COCLR_URL if source == "coclr" else S3D_Weights.KINETICS400_V1.url
        raise FileNotFoundError(f"could not download {url} ({error}): fetch it on another machine and put it into "
                                f"{Path(torch.hub.get_dir()) / 'checkpoints'}, or name the file itself") from None
    if not Path(source).is_file():
        raise FileNotFoundError(f"no pre-trained weights at {source}: expected kinetics400, coclr or the path of a checkpoint")
    try:
        checkpoint = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(f"{source} is no checkpoint that can be read safely, as tensors and plain values "
                         f"only ({type(error).__name__})") from None
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{source} is no checkpoint: expected a dictionary of tensors, found {type(checkpoint).__name__}")
    return checkpoint


def main():
    """The lesson: what each layer puts out, holds and costs, for the paper's clip."""
    model = S3D().eval()
    clip = torch.zeros(1, 3, 32, 128, 128, dtype=torch.uint8)
    rows, operations = [], {}

    def count(module, inputs, output):  # a multiplication and an addition are two operations
        operations[module] = 2 * module[0].weight[0].numel() * output.numel()

    def row(name):
        def hook(module, inputs, output):
            flop = sum(operations.get(part, 0) for part in module.modules())
            rows.append((name, tuple(output.shape[1:]), sum(p.numel() for p in module.parameters()), flop))
        return hook

    for module in model.modules():
        if isinstance(module, ConvBNReLU):
            module.register_forward_hook(count)
    for name, layer in model.layers.named_children():
        layer.register_forward_hook(row(name))
    with torch.no_grad():
        embedding = model(clip)
    print(f"clip {tuple(clip.shape)}, {clip.dtype}\n\n{'layer':10}{'channels x T x H x W':>24}{'parameters':>13}{'GFLOP':>9}")
    for name, shape, parameters, flop in rows:
        print(f"{name:10}{' x '.join(map(str, shape)):>24}{parameters:13,}{flop / 1e9:9.2f}")
    print(f"{'together':34}{sum(r[2] for r in rows):13,}{sum(r[3] for r in rows) / 1e9:9.2f}")
    print(f"\nmean over T, H, W: embedding {tuple(embedding.shape)}")


if __name__ == "__main__":
    main()
