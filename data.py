# SPDX-License-Identifier: MIT
"""FaceForensics++ with one manipulation held out (section 3.1): which videos, their crops, clips.

A fake `target_source` is the target's video with the face (Deepfakes, FaceSwap) or the expression
(Face2Face, NeuralTextures) of the source; the paper's 3.2 has it the other way round. So the target
decides the split and where the face is. The official layout and Kaggle's flat copy of c23 are read:

    original_sequences/youtube/c23/videos/953.mp4             or    original/953.mp4
    manipulated_sequences/Deepfakes/c23/videos/953_974.mp4    or    Deepfakes/953_974.mp4

    train, val   720 and 140 ids    originals + 3 seen manipulations: 2,880 and 560 videos
    test         140 ids            originals + held-out: 280 videos, and 420 seen for comparison

Before training, `prepare` decodes every video and keeps the square around its face, resized to 9/8
of `size`, as an array on disk. `FFPP` cuts clips of consecutive frames from these arrays: for
training one clip and a random window, for evaluation evenly spaced clips and the centre.

`python data.py` prints splits, labels and where clips lie. To use it elsewhere, copy this file:

    from data import SPLITS, FFPP, prepare, read_video
    prepare("FaceForensics++", ids=SPLITS["test"], size=128, cache="cache")
    videos = FFPP("FaceForensics++", "test", "DF", frames=32, size=128, clips=4, cache="cache")
    clips, binary, multi = videos[0]                    # clips: uint8 (4, 3, 32, 128, 128), RGB
    clips = read_video("my.mp4", frames=32, size=128, clips=4)    # of any video

To train, give a DataLoader batch_sampler=EpochBatches(FFPP(..., "train", ...), 16), and set its
`epoch` before each epoch.
"""

import contextlib
import os
import re
import signal
import sys
import threading
import uuid
import zlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler
from torchvision.transforms import v2

# What cannot be read is reported by name below. OpenCV reads these when it is imported.
os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
import cv2  # noqa: E402

cv2.setNumThreads(0)  # the threads of `prepare` are the parallelism

MANIPULATIONS = {"DF": "Deepfakes", "F2F": "Face2Face", "FS": "FaceSwap", "NT": "NeuralTextures"}
CLASSES = ("original", *MANIPULATIONS)
KAGGLE = {"original": "original", **MANIPULATIONS}
OFFICIAL = {name: f"manipulated_sequences/{folder}" for name, folder in MANIPULATIONS.items()}
OFFICIAL["original"] = "original_sequences/youtube"

IDS = {f"{number:03d}" for number in range(1000)}
# The official val.json and test.json, pair by pair; the other 720 ids are the training split.
VAL = """720 672 939 115 284 263 402 453 820 818 762 832 834 852 922 898 104 126 106 198 159 175 416
342 857 909 599 585 443 514 566 617 472 511 325 492 816 649 583 558 933 925 419 824 465 482 565 589
261 254 992 980 157 245 571 746 947 951 926 900 493 538 468 470 915 895 362 354 440 364 640 638 827
817 793 768 837 890 004 982 192 134 745 777 299 145 742 775 586 223 483 370 779 794 971 564 273 807
991 064 664 668 823 584 656 666 557 560 471 455 042 084 979 875 316 369 091 116 023 923 702 612 904
046 647 622 958 956 606 567 632 548 927 912 350 349 595 597 727 729""".split()
TEST = """953 974 012 026 078 955 623 630 919 015 367 371 847 906 529 633 418 507 227 169 389 480
821 812 670 661 158 379 423 421 352 319 579 701 488 399 695 422 288 321 705 707 306 278 865 739 995
233 755 759 467 462 314 347 741 731 970 973 634 660 494 445 706 479 186 170 176 190 380 358 214 255
454 527 425 485 388 308 384 932 035 036 257 420 924 917 114 102 732 691 550 452 280 249 842 714 625
650 024 073 044 945 896 128 862 047 607 683 517 521 682 669 138 142 552 851 376 381 000 003 048 029
724 725 608 675 386 154 220 219 801 855 161 141 949 868 880 135 429 404""".split()
SPLITS = {
    "train": sorted(IDS - set(VAL) - set(TEST)),
    "val": VAL,
    "test": TEST,
}

ENDINGS = ".mp4 .avi .mov .mkv .webm .m4v .mpg .mpeg .wmv .flv .3gp .ts .mts .m2ts .ogv".split()
NO_IMAGES = "folders of images are not read: a clip needs consecutive frames"
LAYOUT = (
    "expected original_sequences/youtube/<c0|raw|c23|c40>/videos/000.mp4 or, in Kaggle's copy, "
    f"original/000.mp4 and Deepfakes/000_003.mp4; {NO_IMAGES}"
)

CROPS_VERSION = 1  # raise it whenever the pixels of crops change
MARGIN = 1.3 * 9 / 8  # side of the square that is kept, in face sizes; the window shows 1.3
FACE_FRAMES = 15  # of an original are searched for its face
MOVES = 0.15  # face sizes by which the edges of a face may move: its box grows by up to 30 %
SINGLE_FRAMES = 64  # of a video are kept for an encoder of single frames


def progress(text, done, total):
    """A line on stderr, at most ten times, the last at the end."""
    if done * 10 // total > (done - 1) * 10 // total:  # another tenth is done
        print(f"{text}: {done}/{total}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def replacing(path):
    """A temporary path that becomes `path` at the end: nobody sees half a file. Raises OSError."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def is_toy(path):
    """Whether a file or folder is, or lies in, the toy that train.py draws."""
    path = Path(path).resolve()
    return any(Path(folder, "TOY.txt").is_file() for folder in (path, *path.parents))


def cpu_count():
    """The CPUs that this process may use, where Python knows them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


# --- Which videos there are ----------------------------------------------------------------------


def is_video(path):
    return path.suffix.lower() in ENDINGS and not path.name.startswith(".") and path.is_file()


def list_videos(root, compression="c23"):
    """{"original": {target id: path}, "DF": {...}, ...} of what is on disk; opens no video. Raises
    FileNotFoundError if root has no videos of this compression in either layout, ValueError for two
    videos of one class and target."""
    videos = {}
    for name in CLASSES:
        folder = Path(root, OFFICIAL[name], compression, "videos")
        if compression == "c23" and not folder.is_dir():
            folder = Path(root, KAGGLE[name])
        stem = "[0-9]{3}" if name == "original" else "[0-9]{3}_[0-9]{3}"
        paths = [path for path in sorted(folder.glob("*")) if re.fullmatch(stem, path.stem)]
        paths = [path for path in paths if is_video(path)]
        videos[name] = {path.stem[:3]: path for path in paths}
        if len(videos[name]) < len(paths):
            raise ValueError(f"{folder} has two videos of one target")
    if not any(videos.values()):
        raise FileNotFoundError(f"no {compression} videos of FaceForensics++ in {root}: {LAYOUT}")
    return videos


def multi_labels(holdout):
    """Section 2.1.1: 0 is original, 1 to n are the seen manipulations; held out: -1."""
    seen = [name for name in CLASSES if name != holdout]
    labels = {name: label for label, name in enumerate(seen)}
    labels[holdout] = -1
    return labels


# --- Clips ---------------------------------------------------------------------------------------


def clip_starts(length, frames, positions):
    """The index of each clip's first frame in a video of `length` frames; positions: in [0, 1)."""
    return [int(position * max(1, length - frames + 1)) for position in positions]


def evenly(clips):
    """The positions of evenly spaced clips."""
    return [(i + 0.5) / clips for i in range(clips)]


def without_motion(clips):
    """Clips (..., T, H, W) that show their frame T // 2 all the time."""
    middle = clips.shape[-3] // 2
    return clips[..., middle : middle + 1, :, :].expand_as(clips)


def cut_clip(pictures, start, frames):
    """(n, H, W, 3) -> a clip uint8 (3, T, H, W). A short video stays on its last frame."""
    places = np.arange(start, start + frames).clip(max=len(pictures) - 1)
    return torch.from_numpy(pictures[places]).permute(3, 0, 1, 2)


# --- Frames and faces ----------------------------------------------------------------------------


def open_video(path):
    """OpenCV's reader. Raises ValueError for a name at which OpenCV would crash."""
    name = os.path.abspath(path)  # FFmpeg takes a leading "a:" for a protocol
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{path}: its name or folder is not UTF-8, rename it") from None
    # One thread each, because many videos are read at once.
    return cv2.VideoCapture(name, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])


def read_frames(path):
    """The frames of a video, BGR uint8 (H, W, 3). Raises ValueError, which names the video, if
    OpenCV cannot read it correctly, or at the end if no frame differed from the first."""
    video = open_video(path)
    aspect = video.get(cv2.CAP_PROP_SAR_NUM) / max(1, video.get(cv2.CAP_PROP_SAR_DEN))
    if aspect != 0 and abs(aspect - 1) > 0.01:  # 0: unknown
        raise ValueError(f"{path}: its pixels are not square, convert it")

    first = None
    changes = False
    with contextlib.suppress(cv2.error):  # the video ends where it cannot be decoded any further
        while True:
            success, frame = video.read()
            if not success:
                break
            if first is None:
                first = frame
            changes = changes or not np.array_equal(frame, first)
            yield frame

    if first is None:
        raise ValueError(f"{path} is missing or cannot be read as a video")
    if not changes:
        raise ValueError(
            f"{path}: its frames do not change (a picture, or interlaced video: convert it)"
        )


def detect_faces(picture):
    """The faces [x, y, w, h] that OpenCV's Haar cascade sees in a picture, BGR (H, W, 3)."""
    cascade = cv2.CascadeClassifier()  # one each, because threads must not share it
    text = Path(cv2.data.haarcascades, "haarcascade_frontalface_alt.xml").read_text()
    # From memory, because OpenCV cannot open every path on Windows.
    storage = cv2.FileStorage(text, cv2.FILE_STORAGE_READ | cv2.FILE_STORAGE_MEMORY)
    cascade.read(storage.getFirstTopLevelNode())
    scale = 480 / min(picture.shape[:2])
    gray = cv2.resize(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), None, fx=scale, fy=scale)
    boxes = cascade.detectMultiScale(gray, 1.1, 4, minSize=(48, 48))
    return [[round(value / scale) for value in box] for box in boxes]


def largest(faces):
    """The largest face [x, y, w, h] (FF++ manipulates that one); None if there is none."""
    return max(faces, key=lambda face: face[2] * face[3], default=None)


def agreed_face(detections):
    """The face [x, y, w, h] or None of a video, from the faces in each of some pictures.

    The largest face on which two detections agree; if none do, the largest of all. Because people
    move, its box grows to hold all detections whose edges lie near its own.
    """
    faces = [face for picture in detections for face in picture]
    agreed, _ = cv2.groupRectangles(faces, 1, 0.3)  # the mean box of each group of two or more
    face = largest(agreed if len(agreed) else faces)
    if face is None:
        return None

    corners = np.array([[x, y, x + w, y + h] for x, y, w, h in [face, *faces]])
    near = corners[abs(corners - corners[0]).max(axis=1) <= MOVES * face[2]]
    left, top = near[:, :2].min(axis=0).tolist()
    right, bottom = near[:, 2:].max(axis=0).tolist()
    return [left, top, right - left, bottom - top]


def crop_frame(frame, face, size):
    """BGR (H, W, 3) -> RGB: the square around a face [x, y, w, h], or in the centre for None, with
    9/8 of `size` pixels."""
    height, width = frame.shape[:2]
    x, y, w, h = face or (0, 0, width, height)
    side = min(round(max(w, h) * MARGIN), height, width)
    left = min(max(round(x + w / 2 - side / 2), 0), width - side)
    top = min(max(round(y + h / 2 - side / 2), 0), height - side)
    window = frame[top : top + side, left : left + side]

    size = round(size * 9 / 8)
    method = cv2.INTER_AREA if side > size else cv2.INTER_LINEAR
    return cv2.resize(window, (size, size), interpolation=method)[..., ::-1]


# --- Videos become arrays ------------------------------------------------------------------------


def fingerprint(path):
    """A file's size and a checksum of its start: another file of its name hardly has the same."""
    try:
        with open(path, "rb") as file:
            return f"{path.stat().st_size}-{zlib.crc32(file.read(2**16)):08x}"
    except OSError:  # `read_frames` will name it
        return "unreadable"


def list_crops(root, compression, crop, size, cache, ids, frames):
    """[(path of a video, class, target id, file of its crops)], originals first, of the videos on
    disk whose original is there, too. A file's name holds all that decides its content."""
    if crop not in ("face", "frame"):
        raise ValueError(f"crop must be face or frame, got {crop}")
    videos = list_videos(root, compression)
    originals = videos["original"]
    single = "_single" if frames == 1 else ""
    folder = Path(cache, f"v{CROPS_VERSION}_{crop}_{size}{single}")

    crops = []
    for name in CLASSES:
        for target in ids:
            if target in originals and target in videos[name]:
                path = videos[name][target]
                mark = fingerprint(path)
                if name != "original":  # a fake is cropped by its original's box
                    mark += f"_{fingerprint(originals[target])}"
                file = folder / path.relative_to(root).with_name(f"{path.stem}_{mark}.npy")
                crops.append((path, name, target, file))
    return crops


def prepare(root, compression="c23", crop="face", size=128, cache="cache", ids=None, frames=32):
    """Decode the videos of these ids (None: all) and write their crops, uint8 (n, H, W, 3), RGB,
    below `cache`, for FFPP. What is there is kept, so it can be interrupted and started again.

    crop: "face" (the original's box, also for its fakes: the crop must not tell real from fake), or
    "frame" (the centre). frames: 1 keeps 64 evenly spaced frames of each video, otherwise all.
    Raises OSError, and once all other identities are prepared, ValueError with the list of broken
    videos. The fakes of a broken original are not prepared.
    """
    identities = {}  # an original and its fakes
    ids = sorted(IDS) if ids is None else ids
    for path, _, target, file in list_crops(root, compression, crop, size, cache, ids, frames):
        identities.setdefault(target, []).append((path, file))
    unprepared = [
        videos for videos in identities.values() if not all(file.is_file() for _, file in videos)
    ]

    broken = []
    stop = threading.Event()
    pool = ThreadPoolExecutor(cpu_count())  # of threads, because OpenCV lets them run in parallel
    try:
        jobs = [
            pool.submit(prepare_identity, videos, crop, size, frames, stop) for videos in unprepared
        ]
        for done, job in enumerate(as_completed(jobs), 1):
            broken += job.result()
            progress("preparing videos, identities", done, len(jobs))
    finally:  # after Ctrl-C or on a full disk, running threads finish their current video
        stop.set()
        pool.shutdown(cancel_futures=True)
    if broken:
        lines = [f"broken videos, delete or replace them ({len(broken)}):", *sorted(broken)]
        raise ValueError("\n  ".join(lines))


def prepare_identity(videos, crop, size, frames, stop):
    """Write the crops of an original and its fakes [(path, file), ...]; returns what is wrong with
    those that are broken."""
    original, _ = videos[0]
    try:
        face, shape = find_face(original, crop)
    except ValueError as error:
        return [str(error)]

    broken = []
    for path, file in videos:
        if stop.is_set() or file.is_file():
            continue
        try:
            crops = crop_video(path, face, shape, size, frames)
        except ValueError as error:
            broken.append(str(error))
            if path == original:
                break
            continue
        with replacing(file) as temporary, open(temporary, "wb") as out:
            np.save(out, crops)
    return broken


def find_face(original, crop):
    """(face, or None for the centre; shape of a picture) of an original. Raises ValueError."""
    if crop == "frame":
        return None, next(read_frames(original)).shape

    shapes = [frame.shape for frame in read_frames(original)]
    places = clip_starts(len(shapes), 1, evenly(FACE_FRAMES))
    detections = []
    for place, frame in enumerate(read_frames(original)):
        if place in places:
            detections.append(detect_faces(frame))
    face = agreed_face(detections)
    if face is None:
        print(f"no face in {original}: its centre is taken", file=sys.stderr)
    return face, shapes[0]


def crop_video(path, face, shape, size, frames):
    """The crops of a video, uint8 (n, H, W, 3), RGB. Raises ValueError."""
    kept = None  # all
    if frames == 1:
        count = sum(1 for _ in read_frames(path))
        kept = clip_starts(count, 1, evenly(SINGLE_FRAMES))

    crops = []
    for place, frame in enumerate(read_frames(path)):
        if frame.shape != shape:  # the original's box would mark the class
            raise ValueError(
                f"{path}: its picture is of another size than its original's, or changes"
            )
        if kept is None or place in kept:
            crops.append(crop_frame(frame, face, size))

    promised = open_video(path).get(cv2.CAP_PROP_FRAME_COUNT)
    if place + 1 < 0.9 * promised:
        raise ValueError(f"{path}: only {place + 1} of its {promised:.0f} frames can be decoded")
    return np.stack(crops)


# --- Datasets ------------------------------------------------------------------------------------


class FFPP(Dataset):
    """The prepared videos of one split, with one manipulation held out (DF, F2F, FS, NT, or none).

    train      videos[index, seed] = (clip uint8 (3, T, H, W), binary, multi); its position, window,
               flip and colours follow from the seed
    val, test  videos[index] = (clips uint8 (N, 3, T, H, W), binary, multi), N = `clips`

    binary: 0 = original, 1 = manipulated; multi: see multi_labels. still: all frames of a clip are
    its frame T // 2. augment=False: training clips show the centre, too. Attributes: videos [(path
    of the video, class, target id)], binary, multi, counts {class: n}, missing {class: n}; a fake
    without its original counts as missing. Raises ValueError; FileNotFoundError, also for a video
    that is not prepared.
    """

    def __init__(
        self,
        root,
        split,
        holdout,
        compression="c23",
        frames=32,
        size=128,
        clips=4,
        crop="face",
        cache="cache",
        still=False,
        augment=True,
    ):
        if holdout not in (*MANIPULATIONS, "none") or split not in SPLITS:
            raise ValueError(f"no such hold-out or split: {holdout}, {split}")
        self.frames = frames
        self.clips = clips
        self.still = still
        self.training = split == "train"

        self.videos = []
        self.files = []
        crops = list_crops(root, compression, crop, size, cache, SPLITS[split], frames)
        for path, name, target, file in crops:
            if name == holdout and split != "test":
                continue  # the held-out manipulation (label -1) appears in the test only
            if not file.is_file():
                raise FileNotFoundError(f"{path} is not prepared: call data.prepare first")
            self.videos.append((path, name, target))
            self.files.append(file)

        names = [name for _, name, _ in self.videos]
        expected = [name for name in CLASSES if name != holdout or split == "test"]
        self.counts = {name: names.count(name) for name in expected}
        self.missing = {name: len(SPLITS[split]) - self.counts[name] for name in expected}
        for name in expected:
            if self.counts[name] == 0:
                raise FileNotFoundError(f"{root} has no {split} videos for {name}: {LAYOUT}")

        labels = multi_labels(holdout)
        self.binary = [int(name != "original") for _, name, _ in self.videos]
        self.multi = [labels[name] for _, name, _ in self.videos]

        self.window = v2.CenterCrop(size)
        if augment and self.training:  # drawn once per clip, the same for all its frames
            self.window = v2.Compose(
                [v2.RandomCrop(size), v2.RandomHorizontalFlip(), v2.ColorJitter(0.2, 0.2, 0.2)]
            )

    def __len__(self):
        return len(self.videos)

    def __getitem__(self, index):
        if self.training:
            index, seed = index
            clips = self.training_clip(index, seed)
        else:
            clips = self.window(torch.stack(self.cut(index, evenly(self.clips))))
        if self.still:
            clips = without_motion(clips)
        return clips, self.binary[index], self.multi[index]

    def training_clip(self, index, seed):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would touch CUDA
            position = torch.rand(()).item()
            (clip,) = self.cut(index, [position])
            clip = self.window(clip.transpose(0, 1))  # torchvision wants (T, 3, H, W)
        return clip.transpose(0, 1).contiguous()

    def cut(self, index, positions):
        """The clips of a video at these positions, (3, T, H, W) each."""
        crops = np.load(self.files[index], mmap_mode="r")
        starts = clip_starts(len(crops), self.frames, positions)
        return [cut_clip(crops, start, self.frames) for start in starts]


class EpochBatches(Sampler):
    """The batches of an epoch, [(index, seed), ...] each; `seed` and `epoch` alone decide them.

    Every fake comes once, next to its own original. Each rank of torchrun gets its share of every
    batch, in whole pairs. An incomplete batch at the end is dropped. Raises ValueError.
    """

    def __init__(self, dataset, batch_size, seed=0, rank=0, ranks=1):
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.rank = rank
        self.ranks = ranks
        if len(self) == 0 or batch_size % (2 * ranks):
            raise ValueError(f"--batch-size {batch_size}: too large, or no multiple of {2 * ranks}")

    def __len__(self):
        return 2 * sum(self.dataset.binary) // self.batch_size

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.dataset), generator=generator).tolist()

        # Each fake, followed by the original with the same target.
        videos = self.dataset.videos
        fakes = [index for index in order if self.dataset.binary[index]]
        originals = {videos[index][2]: index for index in order if not self.dataset.binary[index]}
        indices = []
        for fake in fakes:
            indices += [fake, originals[videos[fake][2]]]
        seeds = torch.randint(2**62, (len(indices),), generator=generator).tolist()
        draws = list(zip(indices, seeds))

        share = self.batch_size // self.ranks
        for batch in range(len(self)):
            start = batch * self.batch_size + self.rank * share
            yield draws[start : start + share]


def ignore_ctrl_c(worker):
    """A DataLoader's worker_init_fn: Ctrl-C is for the main process, which ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def open_splits(settings, splits):
    """{split: FFPP} with these settings of train.py; decodes what is not in the cache yet. Raises
    OSError, ValueError."""
    root = settings["data"]
    ids = [target for split in splits for target in SPLITS[split]]
    shared = {name: settings[name] for name in "compression crop size cache frames".split()}
    prepare(root, ids=ids, **shared)

    holdout = settings["holdout"]
    shared |= {"clips": settings["clips"], "still": settings["still"]}
    return {split: FFPP(root, split, holdout, **shared) for split in splits}


# --- Your own videos -----------------------------------------------------------------------------


def read_video(path, frames, size, clips, crop="face"):
    """Any video as evaluation sees it: evenly spaced clips, uint8 (N, 3, T, size, size), RGB.

    Unlike in FF++, the face is found in the middle frame of each clip, because people move and
    scenes change; crop="frame" takes the centre square. N is less than `clips` where clips show no
    face, or would start at the same frame. Raises ValueError, also if no clip is left.
    """
    if crop not in ("face", "frame"):
        raise ValueError(f"crop must be face or frame, got {crop}")
    count = sum(1 for _ in read_frames(path))
    starts = clip_starts(count, frames, evenly(clips))
    length = min(frames, count)

    cropped = []
    recent = deque(maxlen=length)
    for place, frame in enumerate(read_frames(path)):
        recent.append(frame)
        if place - length + 1 not in starts:
            continue
        face = None
        if crop == "face":
            face = largest(detect_faces(recent[length // 2]))
            if face is None:
                continue
        pictures = np.stack([crop_frame(picture, face, size) for picture in recent])
        cropped.append(cut_clip(pictures, 0, frames))

    if not cropped:
        raise ValueError(f"{path}: no clip shows a face")
    return v2.functional.center_crop(torch.stack(cropped), size)


def main():
    """The lesson: splits, labels, and where clips lie in a video."""
    for split, ids in SPLITS.items():
        print(f"{split:6}{len(ids):4} ids: {' '.join(ids[:8])} ...")
    print(f"labels with FS held out: {multi_labels('FS')}")
    print(f"4 clips of 32 frames in 90 frames start at frames {clip_starts(90, 32, evenly(4))}")


if __name__ == "__main__":
    main()
