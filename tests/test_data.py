# SPDX-License-Identifier: MIT
import hashlib
import json
import os
import shutil
import sys
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import data
from data import FFPP, MANIPULATIONS, SPLITS, TEST, VAL, EpochSampler, UnreadableVideo, crop_frame, list_videos, make_toy, read_clip

H264 = Path(__file__).parent / "fixtures" / "h264_bframes.mp4"  # 60 frames, groups of 17 with up to three B-frames in a row
HOLDOUTS = (*MANIPULATIONS, "none")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """The names of the whole FF++, 5,000 empty files."""
    root = tmp_path_factory.mktemp("whole")
    for ids in SPLITS.values():
        for i, target in enumerate(ids):
            for folder, name in (("original_sequences/youtube", target),
                                 *((f"manipulated_sequences/{m}", f"{target}_{ids[i ^ 1]}") for m in MANIPULATIONS.values())):
                path = root / folder / "c23" / "videos" / f"{name}.mp4"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
    return root


@pytest.fixture
def in_toy(toy, monkeypatch):
    monkeypatch.chdir(toy)
    return "toy_ffpp"


def small(split, holdout="DF", **more):
    return FFPP("toy_ffpp", split, holdout, **{"frames": 8, "size": 32, "crop": "frame", **more})


# --- The splits ---

def test_the_splits_are_the_official_ones():
    assert {name: len(set(ids)) for name, ids in SPLITS.items()} == {"train": 720, "val": 140, "test": 140}
    assert not set(VAL) & set(TEST) and len({i for ids in SPLITS.values() for i in ids}) == 1000
    digest = lambda ids: hashlib.sha256(" ".join(sorted(ids)).encode()).hexdigest()[:16]  # of the published train.json, val.json, test.json
    assert [digest(SPLITS[s]) for s in ("train", "val", "test")] == ["dda8349aa6e28d4d", "c4d997e4b39e8efc", "75030e119e56b038"]


@pytest.mark.parametrize("holdout", HOLDOUTS)
def test_the_whole_dataset_has_the_papers_numbers_of_videos(tree, holdout):
    sizes = {split: len(FFPP(tree, split, holdout, crop="frame").videos) for split in SPLITS}
    assert sizes == ({"train": 3600, "val": 700, "test": 700} if holdout == "none" else {"train": 2880, "val": 560, "test": 280})


def test_the_pair_953_974_stands_for_ten_test_videos(tree):
    videos = [path.name for path, _, target in FFPP(tree, "test", "none", crop="frame").videos if target in ("953", "974")]
    assert sorted(videos) == sorted(["953.mp4", "974.mp4"] + ["953_974.mp4", "974_953.mp4"] * 4)


@pytest.mark.parametrize("holdout", MANIPULATIONS)
def test_the_held_out_manipulation_is_in_neither_training_nor_validation(tree, holdout):
    for split in ("train", "val"):
        videos = FFPP(tree, split, holdout, crop="frame").videos
        assert holdout not in {name for _, name, _ in videos}
        assert not any(MANIPULATIONS[holdout] in path.parts for path, _, _ in videos)
    assert {name for _, name, _ in FFPP(tree, "test", holdout, crop="frame").videos} == {"original", holdout}


def test_identities_never_cross_splits(tree):
    people = {}
    for split in SPLITS:
        people[split] = {i for path, _, _ in FFPP(tree, split, "none", crop="frame").videos for i in path.stem.split("_")}
    assert not people["train"] & people["val"] and not people["train"] & people["test"] and not people["val"] & people["test"]


def test_labels_follow_the_papers_numbering(tree):
    for split in SPLITS:
        videos = FFPP(tree, split, "F2F", crop="frame", classes=["original", *MANIPULATIONS] if split == "test" else None)
        expected = {"original": (0, 0), "DF": (1, 1), "F2F": (1, -1), "FS": (1, 2), "NT": (1, 3)}
        assert all(expected[name] == labels for (_, name, _), *labels_ in zip(videos.videos, videos.binary, videos.multi) for labels in [tuple(labels_)])


# --- What is on disk ---

def test_missing_videos_are_counted_and_an_empty_class_is_refused(tree, tmp_path):
    root = tmp_path / "with spaces and ü"
    shutil.copytree(tree, root)
    videos = sorted((root / "manipulated_sequences" / "FaceSwap" / "c23" / "videos").glob("*.mp4"))
    for path in videos[:7]:
        path.unlink()
    found = sum(FFPP(root, split, "DF", crop="frame", classes=["original", "FS"]).missing["FS"] for split in SPLITS)
    assert found == 7
    for path in videos[7:]:
        path.unlink()
    with pytest.raises(FileNotFoundError, match="FS.*expected"):
        FFPP(root, "train", "DF", crop="frame")


def test_a_tree_of_100_000_files_is_listed_without_opening_a_video_and_in_little_memory(tmp_path, monkeypatch):
    for folder in ("original_sequences/youtube", *(f"manipulated_sequences/{name}" for name in MANIPULATIONS.values())):
        videos = tmp_path / folder / "c23" / "videos"
        videos.mkdir(parents=True)
        for i in range(20_000):
            (videos / (f"{i:03d}.mp4" if "youtube" in folder else f"{i:03d}_{i + 1:03d}.mp4")).touch()
    monkeypatch.setattr(cv2, "VideoCapture", None)
    tracemalloc.start()
    parts = [FFPP(tmp_path, split, "DF", crop="frame") for split in SPLITS]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [len(part.videos) for part in parts] == [2880, 560, 280] and peak < 200e6


def test_a_wrong_folder_is_answered_with_the_layout(tmp_path):
    for wrong in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match="original_sequences/youtube/<c0|c23|c40>/videos"):
            list_videos(wrong)


def test_a_wrong_compression_is_answered_with_those_that_are_there(tree):
    with pytest.raises(FileNotFoundError, match="c40: .* has c23"):
        list_videos(tree, "c40")


def test_a_mistyped_holdout_is_refused(tree):
    with pytest.raises(ValueError, match="DF, F2F, FS, NT, none"):
        FFPP(tree, "train", "Deepfakes")


# --- Clips ---

def sequential(path):
    video, frames = cv2.VideoCapture(str(path)), []
    while (frame := video.read())[0]:
        frames.append(frame[1])
    return frames


def test_a_clip_read_by_seeking_equals_the_frames_of_a_sequential_decode():
    frames = sequential(H264)
    assert len(frames) == 60 and all((a != b).any() for a, b in zip(frames, frames[1:]))  # no two alike: an offset would show
    for start in range(53):
        for got, expected in zip(read_clip(H264, 8, start / 52), frames[start:start + 8], strict=True):
            assert np.array_equal(got, expected)


def test_a_folder_of_images_is_a_video_too(tmp_path):
    for i, frame in enumerate(sequential(H264)[:20]):
        cv2.imwrite(str(tmp_path / f"{i:04d}.png"), frame)
    for place in (0, 0.5, 1):
        start = round(place * 12)
        assert all(np.array_equal(a, b) for a, b in zip(read_clip(tmp_path, 8, place), sequential(H264)[start:start + 8], strict=True))


def test_a_short_video_runs_forwards_and_backwards(tmp_path):
    for i in range(4):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((32, 32, 3), i, np.uint8))
    assert [int(frame[0, 0, 0]) for frame in read_clip(tmp_path, 9, 0.3)] == [0, 1, 2, 3, 2, 1, 0, 1, 2]
    for extra in list(tmp_path.iterdir())[1:]:
        extra.unlink()
    assert len(read_clip(tmp_path, 9, 1)) == 9


def test_a_file_without_a_frame_raises_and_is_named(tmp_path):
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "empty").mkdir()
    for name in ("text.mp4", "empty", "gone.mp4"):
        with pytest.raises(UnreadableVideo, match=name):
            read_clip(tmp_path / name, 8, 0.5)


def test_items_have_the_shapes_types_and_labels_of_the_contract(in_toy):
    for split in SPLITS:
        videos = small(split)
        for index in range(len(videos)):
            clip, binary, multi, video = videos[index]
            assert clip.shape == (3, 8, 32, 32) and clip.dtype == torch.uint8 and clip.is_contiguous()
            assert binary == (videos.videos[video][1] != "original") and (multi == 0) == (binary == 0)


def test_an_original_and_its_manipulations_share_the_crop(in_toy, monkeypatch):
    used, current = {}, [None]
    videos = FFPP("toy_ffpp", "train", "none", frames=8, size=32)
    monkeypatch.setattr(data, "crop_frame", lambda frame, face, size: used.setdefault(current[0], set()).add(face) or crop_frame(frame, face, size))
    videos.faces = {target: (i, i, 20, 20) for i, target in enumerate(videos.faces)}
    for index, (_, _, current[0]) in enumerate(videos.videos):
        videos[index]
    assert len(used) == 6 and all(faces == {videos.faces[target]} for target, faces in used.items())


def test_the_crop_is_the_square_around_the_face_and_stays_in_the_picture():
    frame = np.arange(100 * 160 * 3, dtype=np.uint8).reshape(100, 160, 3)
    square = crop_frame(frame, (60, 30, 20, 20), 26)           # margin 1.3: 26 pixels around (70, 40), no resizing
    assert np.array_equal(square, frame[27:53, 57:83, ::-1])
    assert np.array_equal(crop_frame(frame, (150, 90, 20, 20), 26), frame[74:100, 134:160, ::-1])
    assert np.array_equal(crop_frame(frame, None, 100), frame[:, 30:130, ::-1])
    assert crop_frame(frame, (0, 0, 159, 99), 32).shape == (32, 32, 3)


def test_a_json_of_boxes_replaces_the_face_finder(in_toy, tmp_path):
    boxes = {target: [5, 6, 20, 22] for target in SPLITS["train"][:6]}
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    videos = small("train", crop=str(tmp_path / "boxes.json"), augment=False)
    clip = videos[0, 1][0]
    frames = [crop_frame(f, (5, 6, 20, 22), 32) for f in sequential(videos.videos[0][0])]
    assert any(np.array_equal(clip[:, 0].permute(1, 2, 0).numpy(), frame) for frame in frames)


def test_augmentation_treats_all_frames_of_a_clip_alike(in_toy):
    videos = small("train")
    still = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8).expand(8, -1, -1, -1)
    changed = 0
    for _ in range(20):
        out = videos.augment(still)
        assert torch.equal(out, out[:1].expand_as(out))
        changed += not torch.equal(out[0], still[0])
    assert changed > 15


def test_test_clips_are_evenly_spaced_and_the_same_each_time(in_toy):
    videos = small("test", clips=3)
    frames = [crop_frame(f, None, 32) for f in sequential(videos.videos[0][0])]
    starts = []
    for number in range(3):
        clip, _, _, video = videos[number]
        assert video == 0 and torch.equal(clip, videos[number][0])
        starts.append(next(i for i, f in enumerate(frames) if np.array_equal(clip[:, 0].permute(1, 2, 0).numpy(), f)))
    assert starts == [round(16 * place) for place in (1 / 6, 3 / 6, 5 / 6)]


def test_pixels_from_the_cache_equal_those_from_the_video(in_toy, tmp_path):
    for frames in (8, 32):  # 32: longer than the toy's videos
        for crop in ("face", "frame"):
            fresh, cached = (small("test", crop=crop, frames=frames, clips=3, cache=c) for c in (None, tmp_path / "cache"))
            for _ in range(2):  # written, then read
                assert all(torch.equal(fresh[i][0], cached[i][0]) for i in range(len(fresh)))
    for frames, start in ((8, 0.4), (60, 0)):
        assert torch.equal(data.load_clip(H264, None, frames, 40, start), data.load_clip(H264, None, frames, 40, start, tmp_path / "cache"))
    assert not [p for p in (tmp_path / "cache").iterdir() if p.suffix != ".rgb"]


def test_many_processes_may_fill_one_cache(in_toy, tmp_path):
    videos = lambda cache: FFPP(in_toy, "val", "DF", frames=8, size=32, clips=2, cache=cache)
    without = [clip for batch, _, _, _ in DataLoader(videos(None), 4) for clip in batch]
    loaders = [iter(DataLoader(videos(tmp_path), 4, num_workers=2)) for _ in range(2)]  # four processes, each video twice or more
    for batches in zip(*loaders):
        assert torch.equal(batches[0][0], batches[1][0])
    again = [clip for batch, _, _, _ in DataLoader(videos(tmp_path), 4) for clip in batch]
    assert all(torch.equal(a, b) for a, b in zip(without, again, strict=True))
    assert {path.suffix for path in tmp_path.iterdir()} == {".rgb"}


def test_a_broken_video_leaves_nothing_in_the_cache(tmp_path):
    (tmp_path / "x.mp4").write_bytes(b"garbage")
    assert data.load_clip(tmp_path / "x.mp4", None, 8, 32, 0.5, tmp_path / "cache") is None and not (tmp_path / "cache").exists()


# --- Order and randomness ---

@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_seed_fixes_every_clip_whatever_the_number_of_workers(in_toy, workers):
    def epoch(workers, seed, number):
        videos = small("train", crop="face")
        sampler = EpochSampler(videos, seed=seed)
        sampler.epoch = number
        return [torch.cat([part.flatten().long() for part in batch]) for batch in DataLoader(videos, 4, sampler=sampler, num_workers=workers)]
    first = epoch(0, 5, 1)
    assert all(torch.equal(a, b) for a, b in zip(first, epoch(workers, 5, 1), strict=True))
    if workers == 0:
        assert not all(torch.equal(a, b) for a, b in zip(first, epoch(0, 5, 2)))
        assert not all(torch.equal(a, b) for a, b in zip(first, epoch(0, 6, 1)))


def test_a_seeded_clip_leaves_the_global_random_state_as_it_was(in_toy):
    before = torch.get_rng_state()
    small("train")[3, 7]
    assert torch.equal(before, torch.get_rng_state())


def test_balanced_sampling_draws_each_fake_once_next_to_its_own_original(tree):
    videos = FFPP(tree, "train", "NT", crop="frame")
    order = [videos.videos[i] for i, _ in EpochSampler(videos)]
    assert len(order) == len(EpochSampler(videos)) == 4320
    for (_, fake, target), (_, original, same_target) in zip(order[::2], order[1::2]):
        assert fake != "original" == original and target == same_target
    assert len({path for path, name, _ in order if name != "original"}) == 2160


def test_unbalanced_sampling_draws_each_video_once(tree):
    videos = FFPP(tree, "train", "NT", crop="frame")
    assert sorted(i for i, _ in EpochSampler(videos, "none")) == list(range(2880))


# --- The toy ---

def test_the_toy_has_ffpps_layout_and_is_the_same_each_time(toy, tmp_path):
    make_toy(tmp_path / "again", identities=(6, 2, 4), processes=1)
    names = sorted(p.relative_to(toy / "toy_ffpp") for p in (toy / "toy_ffpp").rglob("*.mp4"))
    assert names == sorted(p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*.mp4")) and len(names) == 60
    for name in names[::7]:
        first, again = sequential(toy / "toy_ffpp" / name), sequential(tmp_path / "again" / name)
        assert len(first) == 24 and all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_an_interrupted_toy_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "ProcessPoolExecutor", lambda n: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        make_toy(tmp_path / "toy_ffpp")
    assert not list(tmp_path.iterdir())


def test_manipulations_change_the_face_and_leave_the_room_alone(in_toy):
    """Relative to the file's own brightness and contrast, what lies outside the head is the original's."""
    for name in MANIPULATIONS:
        videos = list_videos("toy_ffpp")
        for target in SPLITS["train"][:6]:
            level = lambda path: (lambda v: (v - v.mean((0, 1, 2))) / v.std())(np.stack(sequential(path)).astype(float).mean(0, keepdims=True))[0]
            change = np.abs(level(videos[name][target]) - level(videos["original"][target])).mean(-1)
            assert change[:6].mean() < 0.6 * change[20:50, 20:40].mean()


# --- Broken files ---

def test_a_broken_original_is_searched_again_once_it_can_be_read(toy, tmp_path):
    good = list_videos(toy / "toy_ffpp")["original"]["953"]
    (tmp_path / "953.mp4").write_bytes(b"half a download")
    assert data.find_faces({"953": tmp_path / "953.mp4"}, tmp_path / "faces.json") == {"953": None}
    assert json.loads((tmp_path / "faces.json").read_text()) == {}
    shutil.copy(good, tmp_path / "953.mp4")
    assert data.find_faces({"953": tmp_path / "953.mp4"}, tmp_path / "faces.json") == {"953": data.find_face(good)}
    assert "953" in json.loads((tmp_path / "faces.json").read_text())


def test_a_face_found_in_a_fake_gives_way_to_the_originals_once_that_is_there(toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(toy / "toy_ffpp", "toy_ffpp")
    original = list_videos("toy_ffpp")["original"]["974"]
    original.rename("elsewhere.mp4")
    boxes = {"974.mp4": (1, 2, 30, 30), "974_953.mp4": (5, 5, 20, 20)}  # by the file that is searched
    monkeypatch.setattr(data, "find_face", lambda path: boxes.get(path.name))
    assert FFPP("toy_ffpp", "test", "DF").faces["974"] == boxes["974_953.mp4"]
    Path("elsewhere.mp4").rename(original)
    assert FFPP("toy_ffpp", "test", "DF").faces["974"] == boxes["974.mp4"]


def test_no_face_box_comes_from_the_held_out_manipulation(toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(toy / "toy_ffpp", "toy_ffpp")
    target = data.SPLITS["train"][0]
    list_videos("toy_ffpp")["original"][target].unlink()
    searched = []
    monkeypatch.setattr(data, "find_face", lambda path: searched.append(str(path)) or (len(searched), 0, 30, 30))
    FFPP("toy_ffpp", "train", "DF")
    box = FFPP("toy_ffpp", "train", "NT").faces[target]  # a file of the same name as in NT was searched before: not this one
    assert "NeuralTextures" not in searched[box[0] - 1] and target in searched[box[0] - 1]


def test_found_faces_that_are_none_are_searched_again(toy, tmp_path):
    original = list_videos(toy / "toy_ffpp")["original"]["953"]
    for content in ("[]", '{"953": [1, 2]}', '{"953": "face"}', '{"953": [1, 2, "a", 4]}', '{"953": [NaN, 1, 5, 5]}', '{"953": {}}', "{"):
        (tmp_path / "faces.json").write_text(content)
        assert data.find_faces({"953": original}, tmp_path / "faces.json") == {"953": data.find_face(original)}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere file names are always text")
def test_a_file_name_that_is_no_text_is_unreadable_and_no_crash(toy, tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff.mp4"))
    shutil.copy(list_videos(toy / "toy_ffpp")["original"]["953"], path)
    assert data.load_clip(path, None, 8, 32, 0.5) is None and data.find_face(path) is None


def test_a_relative_name_with_a_colon_is_a_file(toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(list_videos(toy / "toy_ffpp")["original"]["953"], "a:b.mp4")
    assert data.load_clip("a:b.mp4", None, 8, 32, 0.5) is not None


@pytest.mark.parametrize("size", [0, 1000])
def test_a_damaged_file_of_the_cache_is_made_again(toy, tmp_path, size):
    read = lambda: data.load_clip(list_videos(toy / "toy_ffpp")["original"]["953"], None, 8, 32, 0.5, tmp_path)
    before = read()
    os.truncate(next(tmp_path.glob("*.rgb")), size)
    assert torch.equal(read(), before)


@pytest.fixture
def damaged(toy, tmp_path, monkeypatch):
    """A copy of the toy whose first seen manipulation of the first training id is no video at all."""
    shutil.copytree(toy / "toy_ffpp", tmp_path / "toy_ffpp")
    monkeypatch.chdir(tmp_path)
    videos = list_videos("toy_ffpp")
    for split in ("train", "test"):
        videos["F2F"][SPLITS[split][0]].write_bytes(b"garbage")
    return tmp_path


def test_a_broken_training_video_is_told_and_replaced_by_one_of_its_class(damaged):
    videos = small("train")
    broken = next(i for i, (_, name, target) in enumerate(videos.videos) if name == "F2F" and target == SPLITS["train"][0])
    clip, binary, multi, index = videos[broken, 5]
    assert index == -1 - broken and (binary, multi) == (1, 1) and clip.float().std() > 0
    assert torch.equal(clip, videos[broken, 5][0])


def test_a_broken_test_video_is_told_and_not_replaced(damaged):
    videos = small("test", "F2F", clips=2)
    broken = next(i for i, (_, name, target) in enumerate(videos.videos) if name == "F2F" and target == SPLITS["test"][0])
    clip, _, _, index = videos[2 * broken + 1]
    assert index == -1 - broken and clip.max() == 0
