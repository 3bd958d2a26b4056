# SPDX-License-Identifier: MIT
import copy

import pytest
import torch
from torch import nn
from torchvision.models.video import s3d as torchvision_s3d

from s3d import BLOCKS, IMAGENET_MEAN_STD, KINETICS_MEAN_STD, MIN_FRAMES, MIN_SIZE, S3D, load_pretrained


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    model = torchvision_s3d(weights=None)
    for module in model.modules():  # weights and statistics as after training: no two layers alike
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.weight, 0.5, 1.5), nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1), nn.init.uniform_(module.running_var, 0.5, 1.5)
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight)
    return model


def coclr_state(model, prefix):
    """The same weights as CoCLR's S3D names them: every tensor twice, as Conv_1a... and as block1.0..."""
    blocks, state = {"conv_1a": "block1.0", "conv_2b": "block2.1", "conv_2c": "block2.2"}, {}
    for i, name in enumerate(BLOCKS):
        stage = int(name[-2])
        blocks[name] = f"block{stage}.{[n for n in BLOCKS if n[-2] == str(stage)].index(name)}"
    for key, value in model.layers.state_dict().items():
        layer, rest = key.split(".", 1)
        parts = rest.split(".")
        ends = {2: lambda a, b: [("conv", "bn")[int(a)], b], 3: lambda u, a, b: [("conv", "bn")[int(a)] + str(int(u) + 1), b]}
        if layer.startswith("conv"):
            tail = ends[len(parts)](*parts)
        else:  # branch0.<conv|bn>, branch1.0.<conv|bn>, branch1.1.<0|1>.<conv|bn>, branch3.1.<conv|bn>; CoCLR's branch0 is a Sequential of one
            branch, inner = parts[0], parts[1:]
            tail = [branch, "0", *ends[2](*inner)] if branch == "branch0" else [branch, inner[0], *ends[len(inner) - 1](*inner[1:])]
        for name in (layer.capitalize(), blocks[layer]):
            state[f"{prefix}{name}.{'.'.join(tail)}"] = value
    return state


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.layers.state_dict().values(), b.layers.state_dict().values()))


@pytest.mark.parametrize("t, size", [(8, 64), (16, 96), (32, 128), (64, 224)])
def test_a_clip_becomes_one_vector_of_1024(t, size):
    with torch.no_grad():
        assert S3D().eval()(torch.zeros(1, 3, t, size, size, dtype=torch.uint8)).shape == (1, 1024)


def test_the_smallest_clip_that_survives_the_poolings():
    model = S3D(0.1).eval()
    model(torch.zeros(1, 3, MIN_FRAMES, MIN_SIZE, MIN_SIZE))
    for t, size in ((MIN_FRAMES - 1, MIN_SIZE), (MIN_FRAMES, MIN_SIZE - 1)):
        with pytest.raises(ValueError, match="at least"):
            model(torch.zeros(1, 3, t, size, size))
        with pytest.raises(RuntimeError):  # the limits are not stricter than the network itself
            model.layers(torch.zeros(1, 3, t, size, size))


def test_the_parameters_are_those_of_torchvisions_features(theirs):
    assert sum(p.numel() for p in S3D().parameters()) == sum(p.numel() for p in theirs.features.parameters()) == 7_910_048
    assert S3D(0.5).dim == 512 and S3D(0.25).dim == 256


@pytest.mark.parametrize("training", [False, True])
def test_with_the_same_weights_the_features_equal_torchvisions(theirs, tmp_path, training):
    torch.save(theirs.state_dict(), tmp_path / "s3d.pth")
    ours, theirs = S3D(), copy.deepcopy(theirs)
    load_pretrained(ours, tmp_path / "s3d.pth")
    clip = torch.randint(0, 256, (2, 3, 16, 64, 64), dtype=torch.uint8)
    mean, std = ours.mean.clone(), ours.std.clone()
    assert mean.flatten().tolist() == pytest.approx(KINETICS_MEAN_STD[0]) and std.flatten().tolist() == pytest.approx(KINETICS_MEAN_STD[1])
    expected = lambda: theirs.features((clip.to(theirs.features[0][0][0].weight.dtype) / 255 - mean) / std).mean(dim=(2, 3, 4))
    ours.train(training), theirs.train(training)
    with torch.no_grad():
        if training:  # in float32 and one layout the two do the very same operations
            torch.testing.assert_close(ours(clip), expected(), atol=1e-5, rtol=0)
        ours.double().to(memory_format=torch.channels_last_3d), theirs.double()
        torch.testing.assert_close(ours(clip), expected(), atol=1e-5, rtol=0)
    for (_, a), (_, b) in zip(ours.layers.named_buffers(), theirs.features.named_buffers()):  # also what training leaves behind
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_uint8_and_float_clips_are_the_same_clip():
    model, clip = S3D(0.1).eval(), torch.randint(0, 256, (2, 3, 8, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(model(clip), model(clip / 255))


@pytest.mark.parametrize("clip", [torch.zeros(3, 8, 32, 32), torch.zeros(1, 8, 3, 32, 32), torch.zeros(1, 3, 8, 32, 32, dtype=torch.int64)])
def test_a_clip_of_another_shape_or_type_raises_a_value_error(clip):
    with pytest.raises(ValueError, match="S3D takes"):
        S3D(0.1)(clip)


@pytest.mark.parametrize("prefix, wrap, extra", [
    ("module.encoder_q.0.", True, ["module.encoder_q.2.weight", "module.encoder_k.0.Conv_1a.conv1.weight", "module.queue", "module.sampler.0.x"]),
    ("encoder_q.0.", True, ["queue_ptr"]), ("module.backbone.", True, ["module.final_fc.1.weight"]), ("backbone.", False, [])])
def test_coclr_checkpoints_load_under_all_their_names(tmp_path, prefix, wrap, extra, capsys):
    source, target = S3D(), S3D()
    target.mean.zero_()
    state = {**{key: torch.zeros(1) for key in extra}, **coclr_state(source, prefix)}
    torch.save({"epoch": 3, "state_dict": state} if wrap else state, tmp_path / "coclr.pth.tar")
    load_pretrained(target, tmp_path / "coclr.pth.tar")
    assert same(source, target) and target.mean.flatten().tolist() == pytest.approx(IMAGENET_MEAN_STD[0])
    assert target.layers.conv_1a[0][1].eps == 1e-5 and target.layers.conv_1a[0][1].momentum == 0.1
    assert "CoCLR" in capsys.readouterr().out


def test_an_own_checkpoint_brings_batchnorm_settings_and_input_statistics_along(theirs, tmp_path):
    torch.save(theirs.state_dict(), tmp_path / "kinetics.pth")
    first, second = S3D(), S3D()
    load_pretrained(first, tmp_path / "kinetics.pth")
    torch.save({"encoder": first.state_dict(), "epoch": 1}, tmp_path / "best.pt")
    load_pretrained(second, tmp_path / "best.pt")
    assert same(first, second) and torch.equal(first.mean, second.mean)
    for module in second.modules():
        if isinstance(module, nn.BatchNorm3d):
            assert (module.eps, module.momentum) == pytest.approx((1e-3, 0.001))


@pytest.mark.parametrize("spoil, named", [
    (lambda s: s.pop("features.8.branch1.1.0.0.weight"), "mixed_4b.branch1.1.0.0.weight"),
    (lambda s: s.update({"features.0.1.1.bias": torch.zeros(3)}), "conv_1a.1.1.bias")])
def test_a_missing_or_misshapen_tensor_is_named_and_nothing_is_loaded(theirs, tmp_path, spoil, named):
    state, model = dict(theirs.state_dict()), S3D()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    spoil(state)
    torch.save(state, tmp_path / "spoilt.pth")
    with pytest.raises(ValueError, match=named):
        load_pretrained(model, tmp_path / "spoilt.pth")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_files_that_are_no_checkpoint_raise_one_sentence(tmp_path):
    (tmp_path / "text.pt").write_text("hello")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    for name in ("text.pt", "other.pt", "list.pt"):
        with pytest.raises(ValueError, match=name):
            load_pretrained(S3D(0.1), tmp_path / name)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_pretrained(S3D(0.1), tmp_path / "nowhere.pt")


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    torch.save({"state_dict": Malicious(str(tmp_path / "created"))}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="safely"):
        load_pretrained(S3D(0.1), tmp_path / "evil.pt")
    assert not (tmp_path / "created").exists()


@pytest.mark.parametrize("source", ["kinetics400", "coclr"])
def test_without_network_one_sentence_names_the_url_and_the_place(source, monkeypatch, tmp_path):
    def no_network(*args, **kwargs):
        raise OSError("no network")
    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="could not download http.*checkpoints"):
        load_pretrained(S3D(), source)


def test_a_model_can_be_pickled_and_takes_any_float(tmp_path):
    model = S3D(0.1).eval()
    torch.save(model, tmp_path / "model.pt")
    clip = torch.rand(1, 3, 8, 32, 32, dtype=torch.float64)
    assert torch.equal(torch.load(tmp_path / "model.pt", weights_only=False)(clip), model(clip.float()))
