# SPDX-License-Identifier: MIT
import functools
import hashlib
import os
import runpy
import shutil
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import data
from data import FFPP, MANIPULATIONS, SPLITS, EpochBatches, UnreadableVideo, read_video

H264 = Path(__file__).parent / "fixtures/h264_bframes.mp4"  # 112 x 80, up to 3 B-frames in a row
KAGGLE = {"original": "original", **MANIPULATIONS}
OFFICIAL = {name: f"manipulated_sequences/{folder}/c23/videos" for name, folder in KAGGLE.items()}
OFFICIAL["original"] = "original_sequences/youtube/c23/videos"
MULTI = {
    "DF": (0, -1, 1, 2, 3),
    "F2F": (0, 1, -1, 2, 3),
    "FS": (0, 1, 2, -1, 3),
    "NT": (0, 1, 2, 3, -1),
    "none": (0, 1, 2, 3, 4),
}  # of original, DF, F2F, FS, NT


@pytest.fixture(scope="module", params=[OFFICIAL, KAGGLE], ids=["official", "kaggle"])
def tree(request, tmp_path_factory):
    """The names of the whole FF++, 5,000 empty files, beside a folder that is not part of it."""
    root = tmp_path_factory.mktemp("tree")
    unknown = request.param["DF"].replace("Deepfakes", "FaceShifter")
    for folder in (*request.param.values(), unknown):
        (root / folder).mkdir(parents=True)
        for ids in SPLITS.values():
            for index, target in enumerate(ids):
                source = "" if "original" in folder else f"_{ids[index ^ 1]}"
                (root / folder / f"{target}{source}.mp4").touch()
    return root


def changing(count):
    """Pictures of 48 x 36 that become brighter."""
    noise = np.random.default_rng(0).integers(0, 120, (6, 8, 3), dtype=np.uint8)
    return [cv2.resize(noise, (48, 36)) + np.uint8(2 * number) for number in range(count)]


def write(path, pictures, codec="FFV1"):
    out = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 25, pictures[0].shape[1::-1])
    for picture in pictures:
        out.write(picture)
    out.release()
    return path


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A folder of videos, most of them with a wrong header."""
    folder = tmp_path_factory.mktemp("odd")
    whole = write(folder / "whole.mkv", changing(60)).read_bytes()
    (folder / "cut.mkv").write_bytes(whole[: len(whole) * 6 // 10])
    write(folder / "few.mpg", changing(60), "MPG1")  # OpenCV 4.14 promises 56
    write(folder / "short.mkv", changing(5))
    for name in ("whole", "cut", "short"):  # the element Duration becomes a Void
        content = (folder / f"{name}.mkv").read_bytes().replace(b"\x44\x89\x88", b"\xec\x89\x00", 1)
        (folder / f"{name}_endless.mkv").write_bytes(content)
    return folder


@functools.cache
def sequential(path):
    """All frames, as OpenCV reads them one after the other."""
    return [frame for _, frame in iter(cv2.VideoCapture(str(path)).read, (False, None))]


def numbers(clip, path):
    """Which frames a clip (3, T, H, W) shows, unresized: its size is 8/9 of the video's height."""
    size, (height, width, _) = clip.shape[-1], sequential(path)[0].shape
    rows, columns = [slice((n - size) // 2, (n - size) // 2 + size) for n in (height, width)]
    known = {f[rows, columns, ::-1].tobytes(): number for number, f in enumerate(sequential(path))}
    return [known.get(picture.numpy().tobytes()) for picture in clip.permute(1, 2, 3, 0)]


def five_times(root, video, split="train", **more):
    """FFPP whose only identity shows this video in each of the five classes."""
    for folder in KAGGLE.values():
        (root / folder).mkdir(exist_ok=True)
        shutil.copy2(video, root / folder / f"{SPLITS[split][0]}{video.suffix}")
    return FFPP(root, split, "none", **{"frames": 8, "size": 32, "clips": 3, **more})


def scene(*faces):
    """A grey picture with portraits (side, left, top)."""
    picture = np.full((180, 300, 3), 128, np.uint8)
    for side, left, top in faces:
        portrait = cv2.imread(str(H264.with_name("portrait.jpg")))
        picture[top : top + side, left : left + side] = cv2.resize(portrait, (side, side))
    return picture


def test_the_splits_are_the_official_ones():
    digests = [
        hashlib.sha256(" ".join(sorted(SPLITS[split])).encode()).hexdigest()[:16]
        for split in ("train", "val", "test")
    ]  # of the published train.json, ...
    assert digests == ["dda8349aa6e28d4d", "c4d997e4b39e8efc", "75030e119e56b038"]


@pytest.mark.parametrize("holdout", MULTI)
def test_the_held_out_manipulation_is_in_the_test_split_only_and_has_no_label(tree, holdout):
    for split, ids in {"train": 720, "val": 140, "test": 140}.items():
        videos, labels = FFPP(tree, split, holdout), dict(zip(KAGGLE, MULTI[holdout]))
        classes = [name for name in KAGGLE if split == "test" or name != holdout]
        assert videos.counts == dict.fromkeys(classes, ids) and not any(videos.missing.values())
        assert len(videos) == len({path for path, _, _ in videos.videos}) == ids * len(classes)
        for (path, name, target), *y in zip(videos.videos, videos.binary, videos.multi):
            assert KAGGLE[name] in path.as_posix() and y == [name != "original", labels[name]]
            assert path.stem.startswith(target) and set(path.stem.split("_")) <= set(SPLITS[split])


def test_missing_videos_are_counted_and_fakes_without_their_original_left_out(tree, tmp_path):
    root = shutil.copytree(tree, tmp_path / "with spaces and ü", copy_function=os.link)
    videos = data.list_videos(root)
    videos["FS"].pop(SPLITS["val"][0]).unlink()
    videos["original"].pop(SPLITS["val"][1]).unlink()
    found = FFPP(root, "val", "DF")
    assert found.missing == {"original": 1, "F2F": 1, "FS": 2, "NT": 1}
    assert found.counts["FS"] == 138 == sum(name == "FS" for _, name, _ in found.videos)


def test_a_folder_without_videos_of_ffpp_is_refused_with_the_layout(tree, tmp_path):
    for folder in ("original/000", "original_sequences/youtube/c23/frames/000"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "0000.png").touch()  # DeepfakeBench's samples
    for root, compression in ((tmp_path, "c23"), (tmp_path / "no", "c23"), (tree, "c40")):
        with pytest.raises(FileNotFoundError) as error:
            FFPP(root, "train", "DF", compression)
        for part in (str(root), compression, "original_sequences/youtube", "original/", "images"):
            assert part in str(error.value) and "\n" not in str(error.value)


def test_import_lesson_and_construction_write_no_files(tree, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["data.py"])
    names = runpy.run_path(data.__file__, run_name="__main__")
    names["FFPP"](tree, "train", "DF", cache=tmp_path / "cache")
    assert "720" in capsys.readouterr().out and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name, frames",
    [(H264, 50), ("whole.mkv", 50), ("whole_endless.mkv", 50), ("few.mpg", 50), ("cut.mkv", 30)],
)
def test_training_clips_start_anywhere_and_equal_a_sequential_decode(odd, name, frames, tmp_path):
    size = len(sequential(odd / name)[0]) * 8 // 9
    for cache in (None, tmp_path / "cache"):
        more = {"frames": frames, "size": size, "augment": False, "cache": cache}
        videos = five_times(tmp_path, odd / name, **more)
        clips = [numbers(videos[0, seed][0], odd / name) for seed in range(80)]
        last = max(clip[0] for clip in clips)
        assert {clip[0] for clip in clips} == set(range(last + 1))
        assert all(clip == list(range(clip[0], clip[0] + frames)) for clip in clips)
        assert name == "few.mpg" or last == len(sequential(odd / name)) - frames


@pytest.mark.parametrize("name", ["whole", "cut", "whole_endless", "cut_endless", "few"])
def test_evaluation_clips_lie_evenly_over_the_frames_that_exist(odd, name, tmp_path, monkeypatch):
    path, opened, capture = next(odd.glob(f"{name}.*")), [], cv2.VideoCapture
    length = len(sequential(path))
    monkeypatch.setattr(cv2, "VideoCapture", lambda *how: opened.append(how) or capture(*how))
    clips, binary, multi = five_times(tmp_path, path, "test")[1]
    assert len(opened) <= 3  # one look at the header and at most two passes
    starts = [int((i + 0.5) / 3 * (length - 7)) for i in range(3)]
    assert [numbers(clip, path) for clip in clips] == [[*range(s, s + 8)] for s in starts]
    assert (clips.shape, clips.dtype, binary, multi) == ((3, 3, 8, 32, 32), torch.uint8, 1, 1)
    cached = five_times(tmp_path, path, "test", cache=tmp_path / "cache")
    assert torch.equal(cached[1][0], clips)
    assert torch.equal(read_video(path, 8, 32, clips=3, crop="frame"), clips)


@pytest.mark.parametrize("name", ["short.mkv", "short_endless.mkv"])
def test_a_short_video_stays_on_its_last_frame(odd, tmp_path, name):
    for cache in (None, tmp_path / "cache"):
        clips = five_times(tmp_path, odd / name, "test", cache=cache)[0][0]
        assert [numbers(clip, odd / name) for clip in clips] == [[0, 1, 2, 3, 4, 4, 4, 4]] * 3


def test_augmentation_is_drawn_once_per_clip(tmp_path):
    dark_then_bright = changing(1) * 12 + [changing(1)[0] + np.uint8(1)]
    videos = five_times(tmp_path, write(tmp_path / "still.mkv", dark_then_bright))
    clips = [videos[0, seed][0][:, :7] for seed in range(12)]
    steady = [clip for clip in clips if torch.equal(clip, clip[:, :1].expand_as(clip))]
    assert len(steady) >= 10 and len({clip.float().mean().item() for clip in clips}) == 12


def test_training_windows_are_cut_from_frames_that_were_resized_once(odd, tmp_path, monkeypatch):
    monkeypatch.setattr(data.v2, "ColorJitter", lambda *_: torch.nn.Identity())
    videos, cut = five_times(tmp_path, odd / "whole.mkv"), []
    frames = np.stack(sequential(odd / "whole.mkv"))[:, :, 6:42, ::-1]  # 36 x 36: 9/8 of 32
    windows = np.lib.stride_tricks.sliding_window_view(frames, (32, 32), axis=(1, 2))
    for seed, step in product(range(20), (1, -1)):
        first = videos[0, seed][0][:, 0].numpy()[..., ::step]  # or its mirror image
        cut += [(step, *place) for _, *place in np.argwhere((windows == first).all((3, 4, 5)))]
    assert len(cut) == 20 and {step for step, _, _ in cut} == {1, -1}
    assert {top for _, top, _ in cut} == {left for _, _, left in cut} == set(range(5))


@pytest.mark.parametrize("face, top, left", [((30, 4, 12, 12), 1, 27), ((40, 30, 9, 12), 18, 30)])
def test_all_videos_of_an_identity_show_the_square_around_one_face(odd, tmp_path, face, top, left):
    faces = {SPLITS["test"][0]: face, SPLITS["test"][1]: (0, 0, 12, 12)}
    videos = five_times(tmp_path, odd / "whole.mkv", "test", size=16, faces=faces)
    expected = sequential(odd / "whole.mkv")[8][top + 1 : top + 17, left + 1 : left + 17, ::-1]
    assert all(np.array_equal(videos[i][0][0, :, 0].permute(1, 2, 0), expected) for i in range(5))


def test_the_cache_tells_sizes_faces_and_replaced_files_apart(odd, tmp_path):
    whole, face = odd / "whole.mkv", {SPLITS["test"][0]: (4, 4, 20, 20)}
    for video, size, faces in product((whole, odd / "cut.mkv"), (32, 40), (None, face)):
        data.fingerprint.cache_clear()  # a process does not expect that a video is replaced
        fresh, cached = [
            five_times(tmp_path, video, "test", size=size, faces=faces, cache=cache)[0]
            for cache in (None, tmp_path / "cache")
        ]
        assert torch.equal(fresh[0], cached[0])


def test_with_a_full_cache_nothing_is_decoded(odd, tmp_path, monkeypatch):
    videos = five_times(tmp_path, odd / "whole.mkv", "test", cache=tmp_path / "cache")
    expected = videos[0][0]
    monkeypatch.setattr(cv2, "VideoCapture", None)
    assert torch.equal(videos[0][0], expected)


def test_an_unreadable_video_is_named_and_leaves_nothing_in_the_cache(tmp_path):
    (tmp_path / "half.mp4").write_bytes(b"half a download")
    for split, cache in product(("train", "test"), (None, tmp_path / "cache")):
        videos = five_times(tmp_path, tmp_path / "half.mp4", split, cache=cache)
        with pytest.raises(UnreadableVideo, match=f"{SPLITS[split][0]}.mp4"):
            videos[(0, 1) if split == "train" else 0]
    assert not list(tmp_path.glob("cache/*"))


def test_a_seed_decides_an_item_and_leaves_the_random_state_alone(odd, tmp_path):
    videos = five_times(tmp_path, odd / "whole.mkv")
    before = torch.get_rng_state()
    assert torch.equal(videos[0, 1][0], videos[0, 1][0])
    assert not torch.equal(videos[0, 1][0], videos[0, 2][0])
    assert torch.equal(before, torch.get_rng_state())


def test_each_fake_comes_once_per_epoch_next_to_its_own_original(tree):
    videos = FFPP(tree, "train", "NT")
    batches = EpochBatches(videos, 14, seed=1)
    epochs = []
    for batches.epoch in (0, 1, 0):
        epochs.append([draw for batch in batches for draw in batch])
        targets = [videos.videos[index][2] for index, _ in epochs[-1]]
        assert targets[::2] == targets[1::2] and len(batches) == 308
        assert [videos.binary[index] for index, _ in epochs[-1]] == [1, 0] * 2156  # 2160 fakes
        assert len({index for index, _ in epochs[-1][::2]}) == 2156
    assert epochs[0] == epochs[2] != epochs[1]


def test_the_shares_of_the_ranks_are_whole_pairs_that_join_to_one_batch(tree):
    videos = FFPP(tree, "train", "NT")
    shares = [list(EpochBatches(videos, 16, 3, rank, ranks=4)) for rank in range(4)]
    for batch, *parts in zip(EpochBatches(videos, 16, 3), *shares, strict=True):
        assert batch == [draw for part in parts for draw in part]
        for part in parts:
            assert [videos.binary[index] for index, _ in part] == [1, 0, 1, 0]


def test_own_videos_get_the_face_in_the_middle_of_each_clip(tmp_path):
    left, empty, right = scene((120, 10, 20)), scene(), scene((120, 170, 20))
    pictures = [empty] * 4 + [left] * 3 + [empty] * 4 + [right] * 4 + [empty] * 3
    pictures = [np.maximum(picture, 3 * number) for number, picture in enumerate(pictures)]
    walk = write(tmp_path / "walk.mkv", pictures)
    clips = read_video(walk, 6, 32, clips=3)  # of frames 2 to 7, 6 to 11 and 10 to 15
    assert clips.shape == (2, 3, 6, 32, 32)  # the middle one shows no face
    assert (clips[:, :, 3].float().std(dim=(1, 2, 3)) > 20).all()  # the wall is grey


def test_clips_that_do_not_change_are_left_out(tmp_path):
    write(tmp_path / "half.mkv", changing(1) * 8 + changing(8))
    clips = read_video(tmp_path / "half.mkv", 8, 32, clips=4, crop="frame")
    assert len(clips) == 3 and all(map(data.changes, clips.transpose(1, 2)))


@pytest.mark.parametrize("frames", [1, 8])
def test_a_video_that_never_changes_is_unreadable_everywhere(tmp_path, frames):
    still = write(tmp_path / "still.mkv", changing(1) * 16)
    with pytest.raises(UnreadableVideo, match="still.mkv.*do not change"):
        read_video(still, frames, 32, clips=4, crop="frame")
    for split, cache in product(("train", "test"), (None, tmp_path / "cache")):
        videos = five_times(tmp_path, still, split, frames=8, cache=cache)
        with pytest.raises(UnreadableVideo, match=f"{SPLITS[split][0]}.mkv.*do not change"):
            videos[(0, 1) if split == "train" else 0]


def test_a_clip_that_does_not_change_is_trained_on_if_its_video_does(tmp_path):
    late = write(tmp_path / "late.mkv", changing(1) * 30 + changing(2))
    videos = five_times(tmp_path, late, augment=False)
    assert any(not data.changes(videos[0, seed][0].transpose(0, 1)) for seed in range(9))


def test_the_largest_face_that_several_pictures_agree_on_is_chosen():
    alone = data.detect_faces(scene((80, 200, 20)))
    both = data.detect_faces(scene((180, 0, 0), (80, 200, 20)))  # surer of the smaller one
    for detections in ([both], [both] * 2, [alone, both, both]):
        left, _, width, _ = data.agreed_face(detections)
        assert left < 100 and width > 60
    assert data.agreed_face([alone, alone, both])[0] > 200
    assert data.agreed_face([[], []]) is None


def test_a_face_box_is_the_hull_of_a_moving_face_and_no_others():
    moving = [[[x, 50, 100, 100], [5, 5, 30, 30]] for x in (100, 105, 110, 100, 105)]
    assert data.agreed_face([*moving, [[300, 50, 100, 100]]]) == [100, 50, 110, 100]


def test_face_boxes_are_found_again_for_a_copy_and_not_for_a_replaced_video(tmp_path, monkeypatch):
    videos = {name: tmp_path / f"{name}.mkv" for name in ("one", "two", "broken")}
    write(videos["one"], [scene((120, 10, 20)), scene((120, 12, 20))] * 8)
    write(videos["two"], [scene((150, 10, 20), (90, 190, 20)), scene((150, 12, 20))] * 8)
    videos["broken"].write_bytes(b"half a download")
    first = data.find_faces(videos, tmp_path)
    assert first.keys() == {"one", "two"} and first["one"][0] < 75 and first["two"][0] < 75

    monkeypatch.setattr(data, "agreed_face", lambda detections: [len(detections), 0, 9, 9])
    (tmp_path / "copy").mkdir()
    copy = Path(shutil.copy(videos["one"], tmp_path / "copy"))
    assert data.find_faces({"one": copy}, tmp_path)["one"] == first["one"]

    write(videos["one"], [scene(), scene((20, 10, 20))] * 8)
    data.fingerprint.cache_clear()
    second = data.find_faces({name: videos[name] for name in first}, tmp_path)
    assert second == {"one": [15, 0, 9, 9], "two": first["two"]}


@pytest.mark.parametrize("damage", [0, 100, 1000])
def test_a_damaged_cache_file_is_made_again(odd, tmp_path, damage):
    videos = five_times(tmp_path, odd / "whole.mkv", "test", cache=tmp_path / "cache")
    expected = videos[0][0]
    file = next((tmp_path / "cache").iterdir())
    file.write_bytes(file.read_bytes()[:damage])  # empty, half a header, half the data
    assert torch.equal(videos[0][0], expected)


def test_the_fakes_of_an_unreadable_original_are_unreadable_and_training_does_not_start(tmp_path):
    place = {"data": tmp_path, "cache": None}
    config = {"crop": "face", "place": place, "compression": "c23", "holdout": "DF"}
    config |= {"frames": 8, "size": 32, "clips": 2, "still": False}
    for folder in KAGGLE.values():
        (tmp_path / folder).mkdir()
        for split in ("train", "test"):
            write(tmp_path / folder / f"{SPLITS[split][0]}.avi", changing(20), "MJPG")
            (tmp_path / "original" / f"{SPLITS[split][0]}.avi").write_bytes(b"half")
    with pytest.raises(UnreadableVideo, match="original.001.avi"):
        data.make_dataset(config, "train")
    for item in data.WholeVideos(data.make_dataset(config, "test")):
        assert SPLITS["test"][0] in item[1]


@pytest.mark.parametrize("turn, shape", [(0, (480, 480, 3)), (90, (640, 360, 3))])
def test_pixels_are_made_square_also_in_a_turned_picture(turn, shape):
    class Capture:
        properties = {cv2.CAP_PROP_SAR_NUM: 4, cv2.CAP_PROP_SAR_DEN: 3}
        properties[cv2.CAP_PROP_ORIENTATION_META] = turn
        frames = [np.zeros((480, 360, 3), np.uint8)]  # as OpenCV gives it, turned already

        def get(self, name):
            return self.properties[name]

        def read(self):
            return (True, self.frames.pop()) if self.frames else (False, None)

    assert [frame.shape for frame in data.walk(Capture())] == [shape]


def check(folder, capsys):
    """(status, {heading: names}) of `python data.py folder`."""
    with pytest.raises(SystemExit) as stop:
        data.main([str(folder), "--cache", str(folder)])
    headings = {}
    for part in capsys.readouterr().out.split("\n\n")[1:]:
        heading, *paths = part.splitlines()
        headings[heading.rpartition(":")[0]] = {Path(path.strip()).stem for path in paths}
    return stop.value.code, headings


def test_the_check_names_what_is_wrong_with_a_dataset_and_keeps_the_faces(odd, tmp_path, capsys):
    for folder in ("original", "Deepfakes"):
        (tmp_path / folder).mkdir()
    good = [scene((120, 10, 20)), scene((120, 12, 20))] * 10
    write(tmp_path / "original/000.avi", good, "MJPG")
    assert check(tmp_path, capsys) == (0, {})

    kept = data.find_faces({"000": tmp_path / "original/000.avi"}, tmp_path)
    assert (tmp_path / "faces.json").read_text().count("000.avi") == 1 and kept["000"][0] < 75
    write(tmp_path / "original/001.avi", changing(20), "MJPG")
    write(tmp_path / "original/002.avi", [scene((90, 9, 20), (90, 190, 20)), scene()] * 9, "MJPG")
    write(tmp_path / "Deepfakes/003.mkv", changing(1) * 16)
    shutil.copy(odd / "cut.mkv", tmp_path / "Deepfakes/004.mkv")
    (tmp_path / "Deepfakes/005.mp4").write_bytes(b"half a download")
    status, headings = check(tmp_path, capsys)
    assert status == 1 and headings == {
        "original with no face": {"001"},
        "original with several faces": {"002"},
        data.NEVER_CHANGES: {"003"},
        "ends before the length in its header": {"004"},
        data.CANNOT_BE_READ: {"005"},
    }


@pytest.mark.parametrize("wrong", [{"crop": "centre"}, {"frames": 0}, {"size": 0}, {"clips": 0}])
def test_impossible_arguments_of_read_video_are_value_errors(wrong):
    with pytest.raises(ValueError):
        read_video(H264, **{"frames": 8, "size": 32, "clips": 2, "crop": "frame", **wrong})


def test_still_clips_show_their_middle_frame_all_the_time(toy):
    settings = {"frames": 8, "size": 32, "augment": False}
    for split, item in (("train", (0, 7)), ("test", 0)):
        moving = FFPP(toy / "toy_ffpp", split, "DF", **settings)[item][0]
        still = FFPP(toy / "toy_ffpp", split, "DF", still=True, **settings)[item][0]
        assert torch.equal(still, moving[..., [4] * 8, :, :])
