# SPDX-License-Identifier: MIT
import hashlib
import itertools
import os
import shutil
import signal
import sys
import time
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import data
from data import CLASSES, FFPP, MANIPULATIONS, SPLITS, EpochBatches, prepare, read_video

H264 = Path(__file__).parent / "fixtures/h264_bframes.mp4"  # 60 frames, 112 x 80, B-frames
KAGGLE = {"original": "original", **MANIPULATIONS}
SETTINGS = {"crop": "frame", "size": 32}
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs fork, or odd names")


def decode(path):
    """All frames, as OpenCV reads them one after the other."""
    return [frame for _, frame in iter(cv2.VideoCapture(str(path)).read, (False, None))]


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


def scene(left=None):
    """A grey picture, with a portrait."""
    picture = np.full((180, 300, 3), 128, np.uint8)
    if left is not None:
        portrait = cv2.imread(str(H264.with_name("portrait.jpg")))
        picture[20:140, left : left + 120] = cv2.resize(portrait, (120, 120))
    return picture


def identity(root, video, target="953"):
    """The five videos of an id in Kaggle's layout: copies of one video."""
    for folder in KAGGLE.values():
        (root / folder).mkdir(parents=True, exist_ok=True)
        stem = target if folder == "original" else f"{target}_974"
        shutil.copy(video, root / folder / f"{stem}.mp4")
    return root


def contents(cache):
    """{name: content} of all crops."""
    return {str(file.relative_to(cache)): file.read_bytes() for file in cache.rglob("*.npy")}


@pytest.fixture(scope="module")
def cache(toy, tmp_path_factory):
    """The prepared videos of the toy."""
    cache = tmp_path_factory.mktemp("cache")
    prepare(toy / "toy_ffpp", cache=cache, **SETTINGS)
    return cache


@pytest.fixture(scope="module")
def videos(toy, cache):
    """videos(split, holdout, ...) are FFPP of the toy: 16 frames, clips of 8."""
    return partial(FFPP, toy / "toy_ffpp", cache=cache, frames=8, clips=3, **SETTINGS)


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """[(reason, a video that is broken for it)]"""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "empty").touch()
    (folder / "half").write_bytes(b"half a download")
    wide = write(folder / "wide.mpg", changing(9), "MPG1")
    header = b"\x03\0\x24\x13"  # 48 x 36, square pixels, 25 Hz
    wide.write_bytes(wide.read_bytes().replace(header, b"\x03\0\x24\x83", 1))
    return [
        ("cannot be read as a video", folder / "empty"),
        ("cannot be read as a video", folder / "half"),
        ("its frames do not change", write(folder / "still.mkv", decode(H264)[:1] * 9)),
        ("its pixels are not square", wide),
    ]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """A video of which the second half is missing."""
    path = write(tmp_path_factory.mktemp("damaged") / "damaged.mkv", decode(H264))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


@pytest.fixture
def opened(monkeypatch):
    """The videos that are opened from now on."""
    opened = []
    capture = cv2.VideoCapture

    def open_video(name, *how):
        opened.append(name)
        return capture(name, *how)

    monkeypatch.setattr(cv2, "VideoCapture", open_video)
    return opened


# --- Which videos there are ----------------------------------------------------------------------


def test_the_splits_are_the_official_ones():
    digests = [
        hashlib.sha256(" ".join(sorted(SPLITS[split])).encode()).hexdigest()[:16]
        for split in ("train", "val", "test")
    ]  # of the published train.json, ...
    assert digests == ["dda8349aa6e28d4d", "c4d997e4b39e8efc", "75030e119e56b038"]


def test_the_held_out_manipulation_is_in_the_test_split_only_and_has_no_label(videos):
    labels = {"original": 0, "DF": 1, "F2F": -1, "FS": 2, "NT": 3}
    for split, ids in {"train": 6, "val": 2, "test": 4}.items():
        found = videos(split, "F2F")
        classes = [name for name in CLASSES if split == "test" or name != "F2F"]
        assert found.counts == dict.fromkeys(classes, ids) and len(found) == ids * len(classes)
        for (path, name, target), *y in zip(found.videos, found.binary, found.multi):
            assert y == [name != "original", labels[name]]
            assert KAGGLE[name] in str(path) and path.stem.startswith(target)


def test_a_missing_video_and_a_fake_without_its_original_are_counted_not_prepared(tmp_path):
    for target in SPLITS["test"][:5]:
        identity(tmp_path, H264, target)
    (tmp_path / "original/953.mp4").unlink()
    missing, link, folder = [tmp_path / f"Deepfakes/{t}_974.mp4" for t in SPLITS["test"][1:4]]
    for path in (missing, link, folder):
        path.unlink()
    shutil.copy(H264, missing.with_name("974.mp4"))  # an original does not count as a fake
    folder.mkdir()
    if os.name != "nt":
        link.symlink_to("nowhere")

    prepare(tmp_path, cache=tmp_path, **SETTINGS)
    found = FFPP(tmp_path, "test", "none", cache=tmp_path, **SETTINGS)
    assert found.counts == {"original": 4, "DF": 1, "F2F": 4, "FS": 4, "NT": 4}
    assert found.missing["DF"] == 139 and len(contents(tmp_path)) == len(found) == 17


def test_a_folder_without_videos_is_refused_with_the_layout(tmp_path):
    for function in (prepare, partial(FFPP, split="train", holdout="DF")):
        with pytest.raises(FileNotFoundError, match="no c23 .* original_sequences/.* original/000"):
            function(tmp_path)


def test_an_unprepared_video_is_refused(toy, tmp_path):
    with pytest.raises(FileNotFoundError, match="953.mp4 is not prepared"):
        FFPP(toy / "toy_ffpp", "test", "DF", cache=tmp_path)


@pytest.mark.parametrize(
    "function",
    [
        prepare,
        partial(FFPP, split="test", holdout="DF"),
        partial(read_video, frames=8, size=32, clips=3),
    ],
)
def test_a_wrong_crop_is_refused(toy, function):
    with pytest.raises(ValueError, match="crop must be face or frame"):
        function(toy / "toy_ffpp", crop="centre")


def test_what_lies_in_the_toy_is_known(toy, tmp_path):
    assert data.is_toy(toy / "toy_ffpp/original_sequences") and not data.is_toy(tmp_path)


# --- Preparing -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "faces, top, left, side", [([[40, 16, 48, 48]], 5, 29, 70), ([], 0, 16, 80)]
)
def test_crops_show_an_identitys_frames_around_the_face_of_its_original_or_the_centre(
    tmp_path, monkeypatch, capsys, faces, top, left, side
):
    detections = iter([faces] * 15 + [[[0, 0, 20, 20]]] * 60)
    monkeypatch.setattr(data, "detect_faces", lambda picture: next(detections))
    prepare(identity(tmp_path, H264), size=32, cache=tmp_path)
    windows = [frame[top : top + side, left : left + side] for frame in decode(H264)]
    expected = [cv2.resize(w, (36, 36), interpolation=cv2.INTER_AREA)[..., ::-1] for w in windows]
    files = list(tmp_path.rglob("*.npy"))
    assert len(files) == 5 and all(np.array_equal(np.load(file), expected) for file in files)
    assert ("no face in" in capsys.readouterr().err) == (faces == [])


def test_the_largest_face_on_which_two_pictures_agree_is_chosen():
    small, large, once = [10, 10, 40, 40], [80, 10, 60, 60], [0, 0, 150, 150]
    assert data.agreed_face([[small, large, once], [small, large]]) == large
    assert data.agreed_face([[small], [large]]) == large
    assert data.agreed_face([[], []]) is None


def test_a_face_box_is_the_hull_of_a_moving_face_and_no_others():
    moving = [[[x, 50, 100, 100], [5, 5, 30, 30]] for x in (100, 105, 110, 100, 105)]
    assert data.agreed_face([*moving, [[300, 50, 100, 100]]]) == [100, 50, 110, 100]


def test_for_single_frames_64_evenly_spaced_ones_are_kept(tmp_path):
    video = write(tmp_path / "video.mkv", changing(100))
    prepare(identity(tmp_path, video), cache=tmp_path, frames=1, **SETTINGS)
    pictures = [data.crop_frame(frame, None, 32) for frame in decode(video)]
    expected = [pictures[int((i + 0.5) / 64 * 100)] for i in range(64)]
    assert np.array_equal(np.load(next(tmp_path.rglob("*.npy"))), expected)


def test_the_name_of_crops_holds_all_that_decides_them(tmp_path):
    identity(tmp_path, H264)

    def name(crop="face", size=64, frames=32):
        crops = data.list_crops(tmp_path, "c23", crop, size, "cache", ["953"], frames)
        return next(file for _, name, _, file in crops if name == "DF")

    names = {name(), name(crop="frame"), name(size=65), name(frames=1)}
    for path in ("original/953.mp4", "Deepfakes/953_974.mp4"):
        for content in (b"other", b"bytes", b"longer"):
            (tmp_path / path).write_bytes(content)
            names.add(name())
    assert len(names) == 10


def test_what_is_there_is_kept_and_only_the_rest_decoded(tmp_path, opened):
    prepare(identity(tmp_path, H264), cache=tmp_path, **SETTINGS)
    next(tmp_path.rglob("Deepfakes/*.npy")).unlink()
    opened.clear()
    prepare(tmp_path, cache=tmp_path, **SETTINGS)
    assert {Path(path).parent.name for path in opened} == {"original", "Deepfakes"}
    opened.clear()
    prepare(tmp_path, cache=tmp_path, **SETTINGS)
    assert not opened and len(contents(tmp_path)) == 5


def test_broken_videos_are_listed_once_all_others_are_prepared(tmp_path, broken, damaged):
    small = write(tmp_path / "small.mkv", changing(9))
    cases = [*broken, ("its picture is of another size", small), ("can be decoded", damaged)]
    for number, (_, video) in enumerate(cases):
        root = identity(tmp_path, H264, f"00{number}")
        shutil.copy(video, root / f"Deepfakes/00{number}_974.mp4")
    with pytest.raises(ValueError) as error:
        prepare(tmp_path, cache=tmp_path, **SETTINGS)
    lines = str(error.value).splitlines()[1:]
    for number, (line, (reason, _)) in enumerate(zip(lines, cases, strict=True)):
        assert f"00{number}_974.mp4" in line and reason in line
    assert len(contents(tmp_path)) == 4 * len(cases)


def test_the_fakes_of_a_broken_original_are_neither_prepared_nor_read(
    tmp_path, broken, damaged, opened
):
    videos = [damaged, *[path for _, path in broken]]
    for number, video in enumerate(videos):
        shutil.copy(video, identity(tmp_path, H264, f"00{number}") / f"original/00{number}.mp4")
    opened.clear()
    with pytest.raises(ValueError, match=r"replace them \(5\)"):
        prepare(tmp_path, cache=tmp_path, **SETTINGS)
    assert len(set(opened)) == len(videos) and not contents(tmp_path)


@LINUX
def test_a_name_that_is_not_utf_8_is_refused_and_crashes_nothing(tmp_path):
    root = identity(tmp_path / os.fsdecode(b"\xff"), H264)
    with pytest.raises(ValueError, match="953.mp4: its name or folder is not UTF-8"):
        prepare(root, cache=tmp_path, **SETTINGS)


@pytest.mark.skipif(getattr(os, "geteuid", int)() == 0, reason="root and Windows may read it")
def test_a_video_without_permission_is_listed(tmp_path):
    (identity(tmp_path, H264) / "Deepfakes/953_974.mp4").chmod(0)
    with pytest.raises(ValueError, match="953_974.mp4 .*cannot be read"):
        prepare(tmp_path, cache=tmp_path, **SETTINGS)


# --- What happens meanwhile ----------------------------------------------------------------------


def meet(fault):
    """np.save from now on: takes its time, and the third call writes half a file into a fault."""
    whole = np.save
    calls = itertools.count(1)

    def save(out, crops):
        time.sleep(0.2)
        if next(calls) == 3:
            out.write(b"half")
            out.flush()
            fault()
            out.seek(0)
        whole(out, crops)

    return save


def full_disk():
    raise OSError(28, "No space left on device")


def ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def kill_9():
    os.kill(os.getpid(), signal.SIGKILL)


def prepare_until_killed(*args):
    np.save = meet(kill_9)
    prepare(*args)


@pytest.mark.parametrize(
    "fault, sentence",
    [
        (full_disk, r"\.npy cannot be written: No space left on device"),
        pytest.param(
            ctrl_c, "^$", marks=pytest.mark.skipif(os.name == "nt", reason="no such signal")
        ),
    ],
)
def test_a_fault_ends_it_soon_and_keeps_what_is_whole(
    toy, cache, tmp_path, monkeypatch, opened, fault, sentence
):
    monkeypatch.setattr(data, "cpu_count", lambda: 2)
    monkeypatch.setattr(np, "save", meet(fault))
    with pytest.raises((OSError, KeyboardInterrupt), match=sentence):
        prepare(toy / "toy_ffpp", cache=tmp_path, **SETTINGS)
    assert len(set(opened)) < 10 and not list(tmp_path.rglob("*.part"))
    assert contents(tmp_path) and contents(tmp_path).items() <= contents(cache).items()


def test_a_cache_that_cannot_be_written_is_named(toy):
    with pytest.raises(OSError, match="TOY.txt.* cannot be written"):
        prepare(toy / "toy_ffpp", cache=toy / "toy_ffpp/TOY.txt", **SETTINGS)


@LINUX
def test_after_kill_9_it_goes_on_with_what_is_whole(toy, cache, tmp_path):
    args = (toy / "toy_ffpp", "c23", "frame", 32, tmp_path)
    process = get_context("fork").Process(target=prepare_until_killed, args=args)
    process.start()
    process.join(60)
    kept = contents(tmp_path)
    assert process.exitcode == -signal.SIGKILL
    assert kept and kept.items() <= contents(cache).items()
    prepare(*args)
    assert contents(tmp_path) == contents(cache)


def prepare_together(barrier, *args):
    barrier.wait()
    prepare(*args)


@LINUX
def test_two_processes_may_prepare_into_one_cache(toy, cache, tmp_path):
    fork = get_context("fork")
    args = (fork.Barrier(2), toy / "toy_ffpp", "c23", "frame", 32, tmp_path)
    processes = [fork.Process(target=prepare_together, args=args) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert contents(tmp_path) == contents(cache)


# --- Clips ---------------------------------------------------------------------------------------


def centre(crops):
    """The window (3, n, 32, 32) of crops (n, 36, 36, 3)."""
    return np.load(crops)[:, 2:34, 2:34].transpose(3, 0, 1, 2)


def test_evaluation_clips_lie_evenly_and_show_the_centre(videos):
    found = videos("test", "DF")
    clips, binary, multi = found[4]
    expected = [centre(found.files[4])[:, start : start + 8] for start in (1, 4, 7)]  # of 0 to 8
    assert np.array_equal(clips, expected) and (binary, multi) == (1, -1)


def test_a_short_video_stays_on_its_last_frame(videos):
    short = videos("test", "DF", frames=20)[0][0]
    assert torch.equal(short[:, :, 15:], short[:, :, 15:16].expand(-1, -1, 5, -1, -1))
    assert not torch.equal(short[:, :, 14], short[:, :, 15])


def test_training_clips_start_anywhere(videos):
    found = videos("train", "DF", augment=False)
    known = [centre(found.files[0])[:, start : start + 8].tobytes() for start in range(9)]
    starts = {known.index(found[0, seed][0].numpy().tobytes()) for seed in range(80)}
    assert starts == set(range(9))


def test_a_seed_decides_an_item_and_leaves_the_random_state_alone(videos):
    found = videos("train", "DF")
    before = torch.get_rng_state()
    assert torch.equal(found[0, 1][0], found[0, 1][0])
    assert not torch.equal(found[0, 1][0], found[0, 2][0])
    assert torch.equal(before, torch.get_rng_state())


def test_augmentation_is_drawn_once_per_clip(videos):
    clips = [videos("train", "DF", frames=40)[0, seed][0][:, 15:] for seed in range(12)]
    assert all(torch.equal(clip, clip[:, :1].expand_as(clip)) for clip in clips)
    assert len({clip.float().mean().item() for clip in clips}) == 12


def test_still_clips_show_their_middle_frame_all_the_time(videos):
    for split, item in (("train", (0, 7)), ("test", 0)):
        moving = videos(split, "DF")[item][0]
        still = videos(split, "DF", still=True)[item][0]
        assert torch.equal(still, moving[..., [4] * 8, :, :])


def test_each_fake_comes_once_per_epoch_next_to_its_own_original(videos):
    found = videos("train", "NT")
    indices = [index for batch in EpochBatches(found, 4) for index, _ in batch]
    assert sorted(indices[::2]) == [index for index, fake in enumerate(found.binary) if fake]
    for fake, original in zip(indices[::2], indices[1::2]):
        assert found.videos[original][1:] == ("original", found.videos[fake][2])


def test_seed_and_epoch_decide_the_batches(videos):
    batches = EpochBatches(videos("train", "NT"), 4, seed=1)
    epochs = []
    for batches.epoch in (0, 1, 0):
        epochs.append(list(batches))
    assert epochs[0] == epochs[2] != epochs[1]


def test_the_shares_of_the_ranks_are_whole_pairs_that_join_to_one_batch(videos):
    found = videos("train", "NT")
    shares = [list(EpochBatches(found, 8, 3, rank, ranks=2)) for rank in range(2)]
    for batch, *parts in zip(EpochBatches(found, 8, 3), *shares, strict=True):
        assert batch == parts[0] + parts[1]
        assert [found.binary[index] for index, _ in parts[1]] == [1, 0, 1, 0]


@pytest.mark.parametrize("batch_size, ranks", [(7, 1), (6, 2), (38, 1)])
def test_a_batch_that_cannot_be_shared_or_filled_is_refused(videos, batch_size, ranks):
    with pytest.raises(ValueError, match="--batch-size"):
        EpochBatches(videos("train", "NT"), batch_size, ranks=ranks)


# --- Your own videos -----------------------------------------------------------------------------


def test_own_videos_get_the_face_in_the_middle_of_each_clip(tmp_path):
    left, empty, right = scene(10), scene(), scene(170)
    pictures = [empty] * 4 + [left] * 3 + [empty] * 4 + [right] * 4 + [empty] * 3
    pictures = [np.maximum(picture, 3 * number) for number, picture in enumerate(pictures)]
    clips = read_video(write(tmp_path / "walk.mkv", pictures), 6, 32, clips=3)
    assert clips.shape == (2, 3, 6, 32, 32)  # of frames 2 to 7 and 10 to 15; 6 to 11: no face
    assert (clips[:, :, 3].float().std(dim=(1, 2, 3)) > 20).all()  # the wall is grey


def test_a_video_without_a_face_is_refused(tmp_path):
    walls = write(tmp_path / "walls.mkv", [scene(), scene() + np.uint8(9)])
    with pytest.raises(ValueError, match="walls.mkv: no clip shows a face"):
        read_video(walls, 1, 32, clips=2)


def test_own_videos_are_read_as_evaluation_reads_ffpp(toy, videos):
    path = data.list_videos(toy / "toy_ffpp")["original"]["953"]
    assert torch.equal(read_video(path, 8, clips=3, **SETTINGS), videos("test", "DF")[0][0])


def test_no_two_clips_of_an_own_video_start_at_the_same_frame():
    for frames, clips in ((59, 2), (60, 1), (99, 1)):
        assert len(read_video(H264, frames, clips=8, **SETTINGS)) == clips


def test_an_own_video_that_is_broken_is_refused_with_the_reason(broken):
    for reason, path in broken:
        with pytest.raises(ValueError, match=f"{path.name}.*{reason}"):
            read_video(path, 8, clips=3, **SETTINGS)
