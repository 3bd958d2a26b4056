# SPDX-License-Identifier: MIT
import copy
import re
from unittest.mock import Mock

import pytest
import torch
from torch import nn
from torchvision.models.video import s3d as torchvision_s3d

from s3d import S3D, URLS, FrameEncoder, load_pretrained

IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
KINETICS = [0.43216, 0.394666, 0.37645], [0.22803, 0.22145, 0.216989]
# torchvision's number of a layer, and CoCLR's two names for it
COCLR = """0 Conv_1a block1.0, 2 Conv_2b block2.1, 3 Conv_2c block2.2, 5 Mixed_3b block3.1,
6 Mixed_3c block3.2, 8 Mixed_4b block4.1, 9 Mixed_4c block4.2, 10 Mixed_4d block4.3,
11 Mixed_4e block4.4, 12 Mixed_4f block4.5, 14 Mixed_5b block5.1, 15 Mixed_5c block5.2"""
UNITS = {"0": "conv", "1": "bn", "0.0": "conv1", "0.1": "bn1", "1.0": "conv2", "1.1": "bn2"}


@pytest.fixture(scope="module")
def theirs():
    """torchvision's S3D, as after training: no two layers alike."""
    model = torchvision_s3d(weights=None)
    for tensor in model.state_dict().values():
        if tensor.ndim == 1:
            tensor.uniform_(0.5, 1.5)
        if tensor.ndim == 5:
            nn.init.kaiming_normal_(tensor)
    return model


def coclr_state(theirs, prefix):
    """The weights under CoCLR's names, each tensor twice."""
    layers = {number: names for number, *names in map(str.split, COCLR.split(","))}
    state = {}
    for key, value in theirs.features.state_dict().items():
        number, rest = key.replace("branch0.", "branch0.0.").split(".", 1)
        branch, unit, tensor = re.fullmatch(r"(branch\d\.\d\.)?(.*)\.(\w+)", rest).groups("")
        for name in layers[number]:
            state[f"{prefix}{name}.{branch}{UNITS[unit]}.{tensor}"] = value
    return state


def load(model, checkpoint, folder):
    torch.save(checkpoint, folder / "checkpoint.pt")
    load_pretrained(model, folder / "checkpoint.pt")
    return model


def assert_equal(model, expected):
    torch.testing.assert_close(
        [*model.state_dict().values()], [*expected.state_dict().values()], rtol=0, atol=0
    )


def assert_settings(model, statistics, eps):
    both = torch.stack([model.mean, model.std])
    torch.testing.assert_close(both.view(2, 3), torch.tensor(statistics))
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm3d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(eps, 0.1)}


@pytest.mark.parametrize("width, dim, shape", [(1, 1024, (5, 17, 17)), (0.1, 102, (9, 40, 56))])
def test_clips_of_5_frames_of_17_pixels_or_more_become_one_vector_at_any_width(width, dim, shape):
    encoder = S3D(width).eval()
    assert encoder(torch.rand(2, 3, *shape)).shape == (2, encoder.dim) == (2, dim)


@pytest.mark.parametrize("shape", ["1 3 4 32 32", "1 3 8 16 32", "1 3 8 32 16", "3 8 32 32"])
def test_a_clip_too_small_or_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match="S3D takes clips"):
        S3D(0.25)(torch.zeros([*map(int, shape.split())]))


@pytest.mark.parametrize("network", [S3D, FrameEncoder])
def test_uint8_and_float_clips_are_the_same_clip_and_others_are_refused(network):
    encoder = network(0.25).eval()
    clip = torch.randint(256, (2, 3, 8, 32, 32)).byte()
    difference = encoder(clip.double() / 255) - encoder(clip)
    assert difference.norm() < 1e-4 * encoder(clip).norm()  # of fresh networks, about 1e-14
    for wrong in (clip.long(), clip.float()):
        with pytest.raises(ValueError, match="0..255"):
            encoder(wrong)


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


@pytest.mark.parametrize("module", ["", "module."])
@pytest.mark.parametrize("prefix", ["encoder_q.0.", "backbone."])
def test_coclr_checkpoints_load_under_all_their_names(theirs, tmp_path, prefix, module):
    others = "encoder_q.2.weight encoder_k.0.Conv_1a.conv1.weight queue final_fc.1.weight".split()
    state = {module + name: torch.zeros(1) for name in others}
    state |= coclr_state(theirs, module + prefix)
    ours = load(S3D(), {"state_dict": state, "epoch": 3}, tmp_path)
    assert_equal(ours.layers, theirs.features)
    assert_settings(ours, IMAGENET, eps=1e-5)


@pytest.mark.parametrize("repeat_ends", [True, False])
def test_a_clip_without_motion_shows_no_change_at_its_ends_where_they_are_repeated(repeat_ends):
    clip = torch.rand(1, 3, 1, 32, 32).expand(1, 3, 8, 32, 32)
    over_time = S3D(0.1, repeat_ends).eval().layers.conv_1a(clip)  # (1, 6, 4, 16, 16)
    assert (over_time.std(dim=2).max() < 1e-6 * over_time.max()) == repeat_ends


def test_what_lies_beyond_a_clips_ends_travels_with_the_weights():
    trained, loaded = S3D(0.1, repeat_ends=True).eval(), S3D(0.1).eval()
    loaded.load_state_dict(trained.state_dict())
    clip = torch.rand(1, 3, 8, 32, 32)
    torch.testing.assert_close(loaded(clip), trained(clip), rtol=1e-4, atol=0)


def test_eps_and_input_statistics_travel_with_the_weights_and_momentum_stays(theirs, tmp_path):
    first = load(S3D(), theirs.state_dict(), tmp_path)
    second = load(S3D(), {"encoder": first.state_dict(), "epoch": 1}, tmp_path)
    assert_equal(first, second)
    for model in (first, second):
        assert_settings(model, KINETICS, eps=1e-3)


OTHERS = {
    "Mixed_3b.gating_b0.fc.weight": torch.zeros(64, 64),  # the self-gating of CoCLR's s3dg
    "Conv_1a.bn2.bias": torch.zeros(3),
    "Mixed_4b.branch1.1.conv1.weight": None,  # missing
}


@pytest.mark.parametrize("key", OTHERS)
def test_another_networks_weights_are_refused_and_nothing_is_loaded(theirs, tmp_path, key):
    state = coclr_state(theirs, "") | {key: OTHERS[key]}
    state = {f"backbone.{name}": value for name, value in state.items() if value is not None}
    model = S3D()
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match=key.split(".")[0].lower()):
        load(model, state, tmp_path)
    assert_equal(model, before)


class Malicious:
    def __reduce__(self):
        return open, ("created", "w")


@pytest.mark.parametrize("content", [{"weights": torch.zeros(2)}, [1, 2], {"a": Malicious()}])
def test_what_is_not_a_checkpoint_is_named_and_its_code_is_not_run(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="checkpoint.pt"):
        load(S3D(0.1), content, tmp_path)
    assert not (tmp_path / "created").exists()


@pytest.fixture
def downloads(monkeypatch, tmp_path):
    """torch's folder of downloads, without a network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", Mock(side_effect=OSError("no network")))
    return tmp_path / "hub/checkpoints"


@pytest.mark.parametrize("source", ["coclr", "kinetics400"])
def test_without_network_the_url_and_the_place_for_the_file_are_named(downloads, source):
    with pytest.raises(FileNotFoundError, match=URLS[source]) as error:
        load_pretrained(S3D(0.1), source)
    assert str(downloads) in str(error.value)


def test_a_damaged_download_is_named_with_the_advice_to_delete_it(downloads):
    file = downloads / "CoCLR-k400-rgb-128-s3d.pth.tar"
    downloads.mkdir(parents=True)
    file.write_text("half a download")
    with pytest.raises(ValueError, match="delete it") as error:
        load_pretrained(S3D(0.1), "coclr")
    assert str(file) in str(error.value)


def test_the_frame_encoder_is_efficientnet_b7_and_takes_the_mean_over_frames():
    assert sum(p.numel() for p in FrameEncoder().parameters()) == 63_786_960
    encoder, clip = FrameEncoder(0.25).eval(), torch.rand(2, 3, 4, 64, 64)
    difference = sum(encoder(clip[:, :, [t]]) for t in range(4)) / 4 - encoder(clip)
    assert difference.norm() < 1e-4 * encoder(clip).norm()
