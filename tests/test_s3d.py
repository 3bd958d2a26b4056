# SPDX-License-Identifier: MIT
import copy
import re

import pytest
import torch
from torchvision.models.video import s3d as torchvision_s3d

from s3d import S3D, FrameEncoder, load_pretrained

IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
KINETICS = [0.43216, 0.394666, 0.37645], [0.22803, 0.22145, 0.216989]


@pytest.fixture(scope="module")
def theirs():
    """torchvision's S3D, as after training: no two layers alike."""
    model = torchvision_s3d(weights=None)
    for tensor in model.state_dict().values():
        if tensor.ndim == 1:
            tensor.uniform_(0.5, 1.5)
        if tensor.ndim == 5:
            torch.nn.init.kaiming_normal_(tensor)
    return model


def coclr_state(theirs, prefix):
    """The weights under CoCLR's names: each tensor twice, below Conv_1a and below block1.0."""
    names = dict(
        zip(
            "0 2 3 5 6 8 9 10 11 12 14 15".split(),
            (
                "Conv_1a block1.0",
                "Conv_2b block2.1",
                "Conv_2c block2.2",
                "Mixed_3b block3.1",
                "Mixed_3c block3.2",
                "Mixed_4b block4.1",
                "Mixed_4c block4.2",
                "Mixed_4d block4.3",
                "Mixed_4e block4.4",
                "Mixed_4f block4.5",
                "Mixed_5b block5.1",
                "Mixed_5c block5.2",
            ),
        )
    )
    units = {"0": "conv", "1": "bn", "0.0": "conv1", "0.1": "bn1", "1.0": "conv2", "1.1": "bn2"}
    state = {}
    for key, value in theirs.features.state_dict().items():
        layer, rest = key.replace("branch0.", "branch0.0.").split(".", 1)
        branch, unit, tensor = re.fullmatch(r"(branch\d\.\d\.)?(.*)\.(\w+)", rest).groups("")
        for name in names[layer].split():
            state[f"{prefix}{name}.{branch}{units[unit]}.{tensor}"] = value
    return state


def load(model, checkpoint, folder):
    torch.save(checkpoint, folder / "checkpoint.pt")
    load_pretrained(model, folder / "checkpoint.pt")
    return model


def same(a, b):
    return all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))


def check_settings(model, statistics, eps):
    both = torch.stack([model.mean, model.std])
    torch.testing.assert_close(both.flatten(), torch.tensor(statistics).flatten())
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm3d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(eps, 0.1)}


@pytest.mark.parametrize(
    "width, dim, shape",
    [(1.0, 1024, (5, 17, 17)), (0.5, 512, (9, 40, 56)), (0.1, 102, (8, 32, 32))],
)
def test_clips_of_5_frames_of_17_pixels_or_more_become_one_vector_at_any_width(width, dim, shape):
    encoder = S3D(width).eval()
    assert encoder(torch.rand(2, 3, *shape)).shape == (2, encoder.dim) == (2, dim)


@pytest.mark.parametrize(
    "clip",
    [
        torch.zeros(1, 3, 4, 32, 32),
        torch.zeros(1, 3, 8, 16, 32),
        torch.zeros(1, 3, 8, 32, 16),
        torch.zeros(3, 8, 32, 32),
        torch.zeros(1, 8, 3, 32, 32),
        torch.zeros(1, 3, 8, 32, 32).long(),
    ],
)
def test_a_clip_too_small_or_of_another_shape_or_type_raises_a_value_error(clip):
    with pytest.raises(ValueError, match="S3D"):
        S3D(0.25)(clip)


def test_uint8_and_float_clips_are_the_same_clip():
    clip = torch.randint(256, (2, 3, 8, 32, 32)).byte()
    for encoder in (S3D(0.25).eval(), FrameEncoder(0.25).eval()):
        difference = encoder(clip.double() / 255) - encoder(clip)
        assert difference.norm() < 1e-4 * encoder(clip).norm()  # of fresh networks, about 1e-14


@pytest.mark.parametrize("training", [False, True])
def test_with_the_same_weights_s3d_equals_torchvisions(theirs, tmp_path, training):
    ours = load(S3D(repeat_ends=True), theirs.state_dict(), tmp_path).double().train(training)
    features = copy.deepcopy(theirs.features).double().train(training)
    for module in features.modules():
        module.momentum = 0.1
    clip = torch.randint(256, (2, 3, 8, 64, 64)).byte()
    expected = features((clip.double() / 255 - ours.mean) / ours.std).mean(dim=(2, 3, 4))
    torch.testing.assert_close(ours(clip), expected)
    torch.testing.assert_close([*ours.layers.buffers()], [*features.buffers()])  # also statistics
    assert sum(p.numel() for p in ours.parameters()) == 7_910_048


@pytest.mark.parametrize(
    "prefix", ["encoder_q.0.", "backbone.", "module.encoder_q.0.", "module.backbone."]
)
def test_coclr_checkpoints_load_under_all_their_names(theirs, tmp_path, prefix):
    others = dict.fromkeys(
        (
            "encoder_q.2.weight",
            "module.encoder_k.0.Conv_1a.conv1.weight",
            "module.queue",
            "final_fc.1.weight",
        ),
        torch.zeros(1),
    )
    ours = load(S3D(), {"state_dict": others | coclr_state(theirs, prefix), "epoch": 3}, tmp_path)
    assert same(ours.layers, theirs.features)
    check_settings(ours, IMAGENET, eps=1e-5)


@pytest.mark.parametrize("repeat_ends", [True, False])
def test_a_clip_without_motion_shows_no_change_at_its_ends_where_they_are_repeated(repeat_ends):
    clip = torch.rand(1, 3, 1, 32, 32).expand(1, 3, 8, 32, 32)
    over_time = S3D(0.1, repeat_ends).eval().layers.conv_1a(clip)  # (1, 6, 4, 16, 16)
    assert (over_time.std(dim=2).max() < 1e-6 * over_time.max()) == repeat_ends


def test_what_lies_beyond_a_clips_ends_travels_with_the_weights():
    trained, loaded = S3D(0.1, repeat_ends=True).eval(), S3D(0.1).eval()
    clip = torch.rand(1, 3, 8, 32, 32)
    loaded.load_state_dict(trained.state_dict())
    torch.testing.assert_close(loaded(clip), trained(clip))


def test_eps_and_input_statistics_travel_with_the_weights_and_momentum_stays(theirs, tmp_path):
    first = load(S3D(), theirs.features.state_dict(prefix="features."), tmp_path)
    second = load(S3D(), {"encoder": first.state_dict(), "epoch": 1}, tmp_path)
    third = S3D()
    third.load_state_dict(torch.load(tmp_path / "checkpoint.pt")["encoder"])
    for model in (first, second, third):
        assert same(model, first)
        check_settings(model, KINETICS, eps=1e-3)


@pytest.mark.parametrize(
    "key, tensor",
    [
        ("Mixed_3b.gating_b0.fc.weight", torch.zeros(64, 64)),  # the self-gating of CoCLR's s3dg
        ("Mixed_4b.branch1.1.conv1.weight", None),
        ("Conv_1a.bn2.bias", torch.zeros(3)),
    ],
)
def test_another_networks_weights_are_refused_and_nothing_is_loaded(theirs, tmp_path, key, tensor):
    state, model = coclr_state(theirs, "encoder_q.0."), S3D()
    state[f"encoder_q.0.{key}"] = tensor
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match=key.split(".")[0].lower()):
        load(model, {name: t for name, t in state.items() if t is not None}, tmp_path)
    assert same(model, before)


class Malicious:
    def __reduce__(self):
        return open, ("created", "w")


def test_what_is_not_a_checkpoint_is_refused_and_its_code_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for content in ({"weights": torch.zeros(2)}, [1, 2], {"state_dict": Malicious()}):
        with pytest.raises(ValueError, match="checkpoint.pt"):
            load(S3D(0.1), content, tmp_path)
    assert not (tmp_path / "created").exists()
    (tmp_path / "text.pt").write_text("hello")
    for name, error in (("text.pt", ValueError), ("nowhere.pt", FileNotFoundError)):
        with pytest.raises(error, match=name):
            load_pretrained(S3D(0.1), name)


def test_without_network_one_sentence_names_the_url_and_the_folder(monkeypatch, tmp_path):
    def no_network(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for download in (lambda: load_pretrained(S3D(0.1), "coclr"), lambda: FrameEncoder(0.1, True)):
        with pytest.raises(FileNotFoundError, match="http") as error:
            download()
        assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_the_frame_encoder_is_efficientnet_b7_and_takes_the_mean_over_frames():
    assert sum(p.numel() for p in FrameEncoder().parameters()) == 63_786_960
    encoder, clip = FrameEncoder(0.25).eval(), torch.rand(2, 3, 4, 64, 64)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in IMAGENET)
    frames = [encoder.layers((clip[:, :, t] - mean) / std).mean(dim=(2, 3)) for t in range(4)]
    assert (encoder(clip) - sum(frames) / 4).norm() < 1e-4 * encoder(clip).norm()
