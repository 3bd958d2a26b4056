# SPDX-License-Identifier: MIT
"""FaceForensics++ with one manipulation held out (section 3.1): splits, reading, face crop.

A fake `target_source` is the target's video with the face (Deepfakes, FaceSwap) or the expression
(Face2Face, NeuralTextures) of the source; the paper's 3.2 has it the other way round. So the target
decides the split and where the face is. The official layout and Kaggle's flat copy of c23 are read:

    original_sequences/youtube/c23/videos/953.mp4             or    original/953.mp4
    manipulated_sequences/Deepfakes/c23/videos/953_974.mp4    or    Deepfakes/953_974.mp4

    train, val   720 and 140 ids    originals + 3 seen manipulations: 2,880 and 560 videos
    test         140 ids            originals + held-out: 280 videos, and 420 seen for comparison

A clip is `frames` consecutive frames around the face, resized once, to 9/8 of `size`. Training
takes one clip and a random size x size window, evaluation evenly spaced clips and the centre.

`python data.py` prints splits, labels and where clips lie; `python data.py FaceForensics++` checks
a dataset. To use it elsewhere, copy this file:

    from data import SPLITS, FFPP, find_faces, list_videos, read_video
    originals = list_videos("FaceForensics++")["original"]
    test_originals = {target: originals[target] for target in SPLITS["test"] if target in originals}
    faces = find_faces(test_originals, folder="runs")
    videos = FFPP("FaceForensics++", "test", "DF", frames=32, size=128, clips=4, faces=faces)
    clips, binary, multi = videos[0]                    # clips: uint8 (4, 3, 32, 128, 128), RGB
    clips = read_video("my.mp4", frames=32, size=128, clips=4)    # of any video

To train, give a DataLoader batch_sampler=EpochBatches(FFPP(..., "train", ...), 16), and set its
`epoch` before each epoch.
"""

import argparse
import contextlib
import functools
import hashlib
import json
import os
import signal
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import v2

# What cannot be read is reported by name below. OpenCV reads these when it is imported.
os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
import cv2  # noqa: E402

cv2.setNumThreads(0)  # OpenCV's threads can deadlock in a forked loader worker

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

COMPRESSIONS = ("c0", "raw", "c23", "c40")
ENDINGS = ".mp4 .avi .mov .mkv .webm .m4v .mpg .mpeg .wmv .flv .3gp .ts .mts .m2ts .ogv".split()
NO_IMAGES = "folders of images are not read: a clip needs consecutive frames"
LAYOUT = (
    "expected original_sequences/youtube/<c0|raw|c23|c40>/videos/000.mp4 or, in Kaggle's copy, "
    f"original/000.mp4 and Deepfakes/000_003.mp4; {NO_IMAGES}"
)
CANNOT_BE_READ = "cannot be read as a video"
NEVER_CHANGES = "the frames do not change: a picture, or interlaced video that OpenCV cannot decode"

MARGIN = 1.3 * 9 / 8  # side of the square that is read, in face sizes; the window shows 1.3
FACE_FRAMES = 15  # of an original are searched for its face
MOVES = 0.15  # face sizes by which the edges of a face may move: its box grows by up to 30 %
SEVERAL_CLIPS = 16  # whole videos are batched up to about this many clips


class UnreadableVideo(ValueError):
    """A video that cannot be read or scored. The message names the file and the reason."""


def progress(text, done, total):
    """A line on stderr, at most ten times, the last at the end."""
    if done * 10 // total > (done - 1) * 10 // total:  # another tenth is done
        print(f"{text}: {done}/{total}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def replacing(path):
    """A temporary path that becomes `path` at the end: nobody sees half a file. Raises OSError."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{os.urandom(4).hex()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def one_sentence(program, interrupted="interrupted"):
    """An error that the user can fix ends the program with one sentence, not a traceback."""
    sys.stdout.reconfigure(errors="backslashreplace")  # names that the terminal cannot show
    try:
        yield
    except (OSError, ValueError, FloatingPointError, torch.OutOfMemoryError) as error:
        text = str(error)
        if "DataLoader worker" in text:  # keep the last line of the worker's traceback
            text = text.splitlines()[-1].partition(": ")[2]
        sys.exit(f"{program}: {text}")
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):
            raise
        sys.exit(
            f"{program}: a process that reads videos was killed, probably for lack of (shared) "
            "memory: try --workers 0, or docker run --shm-size 8g"
        )
    except KeyboardInterrupt:
        sys.exit(f"{program}: {interrupted}")


# --- Which videos there are ----------------------------------------------------------------------


def is_video(path):
    return path.suffix.lower() in ENDINGS and not path.name.startswith(".")


def list_videos(root, compression="c23"):
    """{"original": {target id: path}, "DF": {...}, ...} of what is on disk; opens no video. Raises
    FileNotFoundError if root has no videos of this compression in either layout."""
    videos = {}
    for name in CLASSES:
        folder = Path(root, OFFICIAL[name], compression, "videos")
        if compression == "c23" and not folder.is_dir():
            folder = Path(root, KAGGLE[name])
        paths = [path for path in sorted(folder.glob("*")) if is_video(path)]
        videos[name] = {path.stem.split("_")[0]: path for path in paths}
    if not any(videos.values()):
        raise FileNotFoundError(f"no {compression} videos of FaceForensics++ in {root}: {LAYOUT}")
    return videos


def multi_labels(holdout):
    """Section 2.1.1: 0 is original, 1 to n are the seen manipulations; held out: -1."""
    seen = [name for name in CLASSES if name != holdout]
    labels = {name: label for label, name in enumerate(seen)}
    labels[holdout] = -1
    return labels


# --- Reading video -------------------------------------------------------------------------------


def open_video(path):
    if not os.path.isfile(path):
        raise UnreadableVideo(f"{path}: no such file (folders of videos: --real and --fake)")
    name = os.path.abspath(path)  # FFmpeg takes a leading "a:" for a protocol
    # One thread: the loader's workers are the parallelism.
    return cv2.VideoCapture(name, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])


def promised_frames(video):
    """The number of frames that the header promises. It may be wrong, 0 or negative."""
    return int(video.get(cv2.CAP_PROP_FRAME_COUNT))


def walk(video):
    """The remaining frames of an opened video, BGR uint8 (H, W, 3), with square pixels."""
    aspect = video.get(cv2.CAP_PROP_SAR_NUM) / max(1, video.get(cv2.CAP_PROP_SAR_DEN))
    stretch = aspect != 0 and abs(aspect - 1) > 0.01  # 0: unknown; 1280:1281 would only blur
    fx, fy = aspect, 1
    if video.get(cv2.CAP_PROP_ORIENTATION_META) % 180 == 90:  # OpenCV has turned the picture
        fx, fy = 1, aspect
    with contextlib.suppress(cv2.error):  # a damaged video ends here
        while True:
            success, frame = video.read()
            if not success:
                return
            yield cv2.resize(frame, None, fx=fx, fy=fy) if stretch else frame


def evenly(clips):
    """The relative positions of evenly spaced clips, in [0, 1)."""
    return [(i + 0.5) / clips for i in range(clips)]


def clip_starts(length, frames, positions):
    """The index of each clip's first frame in a video of `length` frames."""
    return [int(position * max(1, length - frames + 1)) for position in positions]


def fill(clip, frames):
    """A clip of `frames` frames; a shorter one stays on its last frame."""
    clip = list(clip)
    return clip + clip[-1:] * (frames - len(clip))


def changes(clip):
    """Whether any two frames differ."""
    return any(not np.array_equal(frame, clip[0]) for frame in clip)


def one_pass(path, length, frames, positions, crop):
    """Walk once through a video of, presumably, `length` frames. Returns the clips at these
    positions, each as crop([frame, ...]), the true number of frames, and whether any two differ."""
    ends = [start + min(frames, length) for start in clip_starts(length, frames, positions)]
    recent = deque(maxlen=frames)
    clips = []
    count = 0
    changing = False
    for frame in walk(open_video(path)):
        changing = changing or (count > 0 and not np.array_equal(frame, recent[-1]))
        recent.append(frame)
        count += 1
        for end in ends:
            if count == end:
                clips.append(crop(fill(recent, frames)))
    return clips, count, changing


def read_clips(path, frames, positions, crop):
    """The clips at these positions, in order, each as crop([frame, ...]). Raises UnreadableVideo,
    also if no two frames of the whole video differ."""
    length = promised_frames(open_video(path))
    clips, count, changing = one_pass(path, length, frames, positions, crop)
    if count not in (0, length):  # the header was wrong: once more, with the true length
        length = count
        clips, count, changing = one_pass(path, length, frames, positions, crop)
    if count == 0 or count != length:
        raise UnreadableVideo(f"{path}: {CANNOT_BE_READ}")
    if not changing:
        raise UnreadableVideo(f"{path}: {NEVER_CHANGES}")
    return clips


def read_clip(path, frames, position, crop):
    """One clip by seeking; where that fails, or shows no change, by a pass over the whole video."""
    video = open_video(path)
    length = promised_frames(video)
    start = clip_starts(length, frames, [position])[0]
    if start > 0:  # seeking to 0 lands later in some containers
        video.set(cv2.CAP_PROP_POS_FRAMES, start)
    if start <= 0 or round(video.get(cv2.CAP_PROP_POS_FRAMES)) == start:
        clip = list(islice(walk(video), frames))
        complete = len(clip) >= min(frames, length) > 0
        if complete and (frames == 1 or changes(clip)):
            return crop(fill(clip, frames))
    return read_clips(path, frames, [position], crop)[0]


def read_video(path, frames, size, clips, crop="face"):
    """Any video as evaluation sees it: evenly spaced clips, uint8 (N, 3, T, size, size), RGB.

    Unlike in FF++, the face is found in the middle frame of each clip, because people move and
    scenes change; crop="frame" takes the centre square. A clip that shows no face, or does not
    change, is left out: N <= `clips`. Raises UnreadableVideo if none is left, ValueError.
    """
    if crop not in ("face", "frame"):
        raise ValueError(f"crop must be face or frame, got {crop} (boxes are for FF++ only)")
    if min(frames, size, clips) < 1:
        raise ValueError(f"frames, size and clips must be positive: {frames}, {size}, {clips}")

    def crop_clip(clip):
        if frames > 1 and not changes(clip):
            return None
        face = None
        if crop == "face":
            face = largest(detect_faces(clip[frames // 2]))
            if face is None:
                return None
        return to_tensor([crop_frame(frame, face, size) for frame in clip])

    cropped = read_clips(path, frames, evenly(clips), crop_clip)
    kept = [clip for clip in cropped if clip is not None]
    if not kept:
        raise UnreadableVideo(f"{path}: no clip shows a {crop} that changes")
    return v2.functional.center_crop(torch.stack(kept), size)


# --- The face ------------------------------------------------------------------------------------


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


def to_tensor(crops):
    """T pictures (H, W, 3) -> a clip (3, T, H, W)."""
    return torch.from_numpy(np.stack(crops)).permute(3, 0, 1, 2)


def without_motion(clips):
    """Clips (..., T, H, W) that show their frame T // 2 all the time."""
    middle = clips.shape[-3] // 2
    return clips[..., middle : middle + 1, :, :].expand_as(clips)


def detect_faces(picture):
    """The faces [x, y, w, h] that OpenCV's Haar cascade sees in a picture, BGR (H, W, 3)."""
    cascade = cv2.CascadeClassifier()
    text = Path(cv2.data.haarcascades, "haarcascade_frontalface_alt.xml").read_text()
    # From memory, because OpenCV cannot open every path on Windows.
    storage = cv2.FileStorage(text, cv2.FILE_STORAGE_READ | cv2.FILE_STORAGE_MEMORY)
    cascade.read(storage.getFirstTopLevelNode())
    scale = 480 / min(picture.shape[:2])
    gray = cv2.resize(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), None, fx=scale, fy=scale)
    boxes = cascade.detectMultiScale(gray, 1.1, 4, minSize=(48, 48))
    return [[round(value / scale) for value in box] for box in boxes]


def largest(faces):
    """The largest face [x, y, w, h], because FF++ manipulates that one; None if there is none."""
    face = max(faces, key=lambda box: box[2] * box[3], default=None)
    return None if face is None else [int(value) for value in face]


def agreed_face(detections):
    """The face [x, y, w, h] or None of a video, from the faces in each of some pictures.

    The largest face on which two detections agree; if none do, the largest of all. Because people
    move, its box is the hull of all boxes whose edges lie near those of this face.
    """
    faces = [face for picture in detections for face in picture]
    agreed, _ = cv2.groupRectangles(faces, 1, 0.3)  # the mean box of each group of two or more
    face = largest(agreed) or largest(faces)
    if face is None:
        return None
    edges = np.array([[x, y, x + w, y + h] for x, y, w, h in [face, *faces]])
    near = edges[abs(edges - edges[0]).max(axis=1) <= MOVES * face[2]]
    left, top = near.min(axis=0)[:2].tolist()
    right, bottom = near.max(axis=0)[2:].tolist()
    return [left, top, right - left, bottom - top]


@functools.cache
def fingerprint(path):
    """A video's name and a hash of its size and content (eight pieces of 64 kB, from start to end):
    the same for a copy elsewhere, different for a replaced file."""
    size = path.stat().st_size
    digest = hashlib.sha1(str(size).encode())
    with open(path, "rb") as file:
        for piece in range(8):
            file.seek(piece * max(0, size - 2**16) // 7)
            digest.update(file.read(2**16))
    return f"{path.name!a} {digest.hexdigest()}"


def in_threads(function, items, doing):
    """function(item) for each item, in parallel."""
    with ThreadPoolExecutor(cpu_count()) as pool:
        for done, _ in enumerate(pool.map(function, items), 1):
            progress(f"{doing}, videos", done, len(items))


@contextlib.contextmanager
def kept_faces(folder):
    """The content of faces.json, {fingerprint of a video: face or None}, written at the end."""
    file = Path(folder, "faces.json")
    try:
        faces = dict(json.loads(file.read_text()))
    except Exception:  # not there yet, or damaged
        faces = {}
    before = len(faces)
    try:
        yield faces
    finally:
        if len(faces) > before:
            with replacing(file) as temporary:
                temporary.write_text(json.dumps(faces))


def inspect(path, faces=None):
    """One pass over a video: what is wrong with it, or "". Its face is added to `faces`."""
    promised = promised_frames(open_video(path))
    positions = evenly(FACE_FRAMES)
    pictures, count, changing = one_pass(path, promised, 1, positions, list)
    if count == 0:
        return CANNOT_BE_READ
    if not changing:
        return NEVER_CHANGES
    if faces is not None:
        if count != promised:
            pictures = read_clips(path, 1, positions, list)
        detections = [detect_faces(picture) for (picture,) in pictures]
        faces[fingerprint(path)] = agreed_face(detections)
        most = max(len(picture) for picture in detections)
        if most != 1:
            return f"original with {'several faces' if most else 'no face'}"
    return "ends before the length in its header" if count < 0.99 * promised else ""


def find_faces(videos, folder):
    """The faces of videos {name: path} as {name: face [x, y, w, h] or None}; videos that cannot be
    read are left out. `folder`/faces.json keeps the faces for the next time."""
    faces = {}
    with kept_faces(folder) as known:

        def look(name):
            path = videos[name]
            problem = "" if fingerprint(path) in known else inspect(path, known)
            if problem in (CANNOT_BE_READ, NEVER_CHANGES):
                print(f"no face is looked for in {path}: {problem}", file=sys.stderr)
            else:
                faces[name] = known[fingerprint(path)]

        in_threads(look, videos, "finding faces")
    return faces


def print_some(what, names):
    """How many there are, and the first five."""
    if names:
        print(f"{len(names)} videos {what}: {' '.join(sorted(names)[:5])}")


def read_boxes(file):
    """A JSON file of boxes as {target id: face [x, y, w, h] or None}. Raises ValueError."""
    try:
        boxes = json.loads(Path(file).read_text())
        faces = {target: box and [round(value) for value in box] for target, box in boxes.items()}
        if all(len(face) == 4 and min(face[2:]) > 0 for face in faces.values() if face):
            return faces
    except Exception:  # a damaged file can raise anything
        pass
    raise ValueError(
        f"--crop {file} is not face, frame or a JSON file of boxes in pixels like "
        '{"000": [x, y, width, height], "001": null}'
    )


# --- Datasets ------------------------------------------------------------------------------------


class FFPP(Dataset):
    """The videos of one split, with one manipulation held out (DF, F2F, FS, NT, or none).

    train      videos[index, seed] = (clip uint8 (3, T, H, W), binary, multi); its position, window,
               flip and colours follow from the seed
    val, test  videos[index] = (clips uint8 (N, 3, T, H, W), binary, multi), N = `clips`

    binary: 0 = original, 1 = manipulated; multi: see multi_labels. faces: {target id: [x, y, w, h]
    or None for the centred square}; targets that it lacks are unreadable; without faces, all are
    read in the centre. cache: a folder for cropped frames. still: all frames of a clip are its
    frame T // 2. Fakes without their original are left out. Attributes: videos [(path, class,
    target id)], binary, multi, counts {class: n}, missing {class: n}. Raises ValueError,
    FileNotFoundError; for an item, UnreadableVideo.
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
        faces=None,
        augment=True,
        cache=None,
        still=False,
    ):
        if holdout not in (*MANIPULATIONS, "none") or split not in SPLITS:
            raise ValueError(f"no such hold-out or split: {holdout}, {split}")
        self.frames = frames
        self.size = size
        self.shape = (clips, 3, frames, size, size)  # of an item, in evaluation
        self.training = split == "train"
        self.faces = dict.fromkeys(SPLITS[split]) if faces is None else faces
        self.cache = cache
        self.still = still

        self.videos = []
        self.counts = {}
        self.missing = {}
        on_disk = list_videos(root, compression)
        for name in CLASSES:
            if name == holdout and split != "test":
                continue  # the held-out manipulation appears in the test only
            targets = [t for t in SPLITS[split] if t in on_disk[name] and t in on_disk["original"]]
            if not targets:
                raise FileNotFoundError(f"{root} has no {split} videos for {name}: {LAYOUT}")
            self.videos += [(on_disk[name][target], name, target) for target in targets]
            self.counts[name] = len(targets)
            self.missing[name] = len(SPLITS[split]) - len(targets)

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
            clips = self.window(torch.stack(self.read(index, evenly(self.shape[0]))))
        if self.still:
            clips = without_motion(clips)
        return clips, self.binary[index], self.multi[index]

    def training_clip(self, index, seed):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would touch CUDA
            position = torch.rand(()).item()
            clip = self.read(index, [position])[0]
            clip = self.window(clip.transpose(0, 1))  # torchvision wants (T, 3, H, W)
        return clip.transpose(0, 1).contiguous()

    def read(self, index, positions):
        """The clips of a video at these positions, (3, T, H, W) each."""
        path, _, target = self.videos[index]
        if target not in self.faces:
            raise UnreadableVideo(f"{path}: the original {target} cannot be read")
        face = self.faces[target]

        def crop(clip):
            return to_tensor([crop_frame(frame, face, self.size) for frame in clip])

        if self.cache is not None:
            crops = cached_crops(path, face, self.size, self.cache)
            starts = clip_starts(len(crops), self.frames, positions)
            clips = [crops[start : start + self.frames] for start in starts]
            return [to_tensor(fill(clip, self.frames)) for clip in clips]
        if self.training:
            return [read_clip(path, self.frames, positions[0], crop)]
        return read_clips(path, self.frames, positions, crop)


def cached_crops(path, face, size, cache):
    """All frames of a video around the face, (frames, H, W, 3), from a file of the folder `cache`.
    Raises UnreadableVideo; OSError if the cache cannot be written."""
    key = hashlib.sha1(f"{fingerprint(path)} {face} {size} {MARGIN}".encode()).hexdigest()
    file = Path(cache, f"{path.stem}_{key}.npy")
    with contextlib.suppress(Exception):  # not there yet, or damaged
        return np.load(file, mmap_mode="r")

    crops = [crop_frame(frame, face, size) for frame in walk(open_video(path))]
    if not changes(crops):
        raise UnreadableVideo(f"{path}: {NEVER_CHANGES if crops else CANNOT_BE_READ}")
    with replacing(file) as temporary, open(temporary, "wb") as out:
        np.save(out, np.stack(crops))
    return np.load(file, mmap_mode="r")


class OwnVideos(Dataset):
    """Any videos [(path, class, label)], read with a training run's settings. Items (clips
    (N, 3, T, H, W), label): see read_video. Raises UnreadableVideo, and ValueError for a training
    with a file of boxes."""

    def __init__(self, videos, config, clips):
        self.videos = videos
        self.binary = [label for _, _, label in videos]
        self.config = config
        self.shape = (clips, 3, config["frames"], config["size"], config["size"])

    def __getitem__(self, index):
        clips, _, frames, size, _ = self.shape
        path, _, label = self.videos[index]
        read = read_video(path, frames, size, clips, self.config["crop"])
        if self.config["still"]:
            read = without_motion(read)
        return read, label


class WholeVideos(Dataset):
    """FFPP or OwnVideos for evaluation. Items (clips (N, 3, T, H, W), reason): a video that cannot
    be read has blank clips and a reason, others the reason ""."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset.videos)

    def __getitem__(self, index):
        try:
            return self.dataset[index][0], ""
        except UnreadableVideo as error:
            return torch.zeros(self.dataset.shape).byte(), str(error)


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


# --- From settings to loaders --------------------------------------------------------------------


def face_boxes(config, split):
    """--crop of a training as {target id: face [x, y, w, h] or None}, without the originals that
    cannot be read; None for the centre of all. Raises UnreadableVideo, if one is for training."""
    if config["crop"] == "frame":
        return None
    place = config["place"]
    originals = list_videos(place["data"], config["compression"])["original"]
    videos = {target: originals[target] for target in SPLITS[split] if target in originals}
    if config["crop"] == "face":
        faces = find_faces(videos, place["cache"] or "runs")
    else:
        boxes = read_boxes(config["crop"])
        faces = {target: boxes.get(target) for target in videos}
    unreadable = videos.keys() - faces
    if unreadable and split == "train":
        raise UnreadableVideo(f"{videos[min(unreadable)]} cannot be read")
    print_some("without a face (the centre is read)", [name for name in faces if not faces[name]])
    return faces


def make_dataset(config, split):
    """FFPP with the settings of train.py. Raises FileNotFoundError, ValueError."""
    names = "holdout compression frames size clips still".split()
    options = {name: config[name] for name in names}
    place = config["place"]
    faces = face_boxes(config, split)
    return FFPP(place["data"], split, faces=faces, cache=place["cache"], **options)


class InterruptibleLoader(DataLoader):
    """Ctrl-C is for the main process: workers inherit that it is blocked while they are started."""

    def __iter__(self):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        iterator = super().__iter__()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # a delayed Ctrl-C comes now
        return iterator


def quiet(worker):
    """After Ctrl-C, a thread of a worker may print a traceback: silence it."""
    sys.excepthook = lambda *error: None


def make_loader(dataset, workers, **options):
    loader = InterruptibleLoader if hasattr(signal, "pthread_sigmask") else DataLoader  # Windows
    return loader(
        dataset,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=quiet,
        **options,
    )


def video_loader(videos, workers):
    """Batches of V whole videos for evaluation: (clips (V, N, 3, T, H, W), reasons). OwnVideos come
    one at a time, because their N differs."""
    batch_size = 1
    if isinstance(videos, FFPP):
        batch_size = max(1, SEVERAL_CLIPS // videos.shape[0])
    return make_loader(WholeVideos(videos), workers, batch_size=batch_size)


def cpu_count():
    """The CPUs that this process may use, where Python knows them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


# --- python data.py ------------------------------------------------------------------------------


def check(root, folder):
    """Read every video of FF++ below root once, whole, and print what is wrong, by name. The faces
    of the originals are kept in `folder`. True if every video can be read and changes."""
    originals = []
    paths = []
    for compression in COMPRESSIONS:
        with contextlib.suppress(FileNotFoundError):
            for name, videos in list_videos(root, compression).items():
                print(f"{compression} {name}: {len(videos)} videos")
                print_some("missing", IDS - videos.keys())
                paths += videos.values()
                if name == "original":
                    originals += videos.values()
    if not paths:
        list_videos(root)  # raises

    problems = {}
    with kept_faces(folder) as known:

        def look(path):
            problem = inspect(path, known if path in originals else None)
            if problem:
                problems.setdefault(problem, []).append(path)

        in_threads(look, paths, "checked")

    for problem, paths in sorted(problems.items()):
        print(f"\n{problem}: {len(paths)}", *sorted(paths), sep="\n  ")
    return CANNOT_BE_READ not in problems and NEVER_CHANGES not in problems


def lesson():
    """Splits, labels, and where clips lie in a video."""
    for split, ids in SPLITS.items():
        print(f"{split:6}{len(ids):4} ids: {' '.join(ids[:8])} ...")
    print(f"labels with FS held out: {multi_labels('FS')}")
    print(f"4 clips of 32 frames in 90 frames start at frames {clip_starts(90, 32, evenly(4))}")


def main(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", help="of FaceForensics++, to check: reads all videos")
    parser.add_argument("--cache", default="runs", help="where train.py will look for face boxes")
    args = parser.parse_args(argv)
    if args.folder is None:
        return lesson()
    with one_sentence("data.py"):
        sys.exit(0 if check(args.folder, args.cache) else 1)


if __name__ == "__main__":
    main()
