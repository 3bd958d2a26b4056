# SPDX-License-Identifier: MIT
"""FaceForensics++ with one manipulation held out (section 3.1), and a toy of it for machines without it.

    root/original_sequences/youtube/c23/videos/953.mp4            953, as filmed            label 0
    root/manipulated_sequences/Deepfakes/c23/videos/953_974.mp4   953 with the face of 974  label 1
    ...  FaceSwap likewise; Face2Face, NeuralTextures: 953 with the expression of 974

A folder of images c23/frames/953/ or c23/images/953/ is a video, too.

In `target_source` the footage is the target's; so the target's id decides the split and the face box (FF++'s words; the
paper's section 3.2 has them the other way round).
The official splits are pairs: the pair 953, 974 of the test split stands for ten videos, the originals 953 and
974 and, for each of the four manipulations, 953_974 and 974_953. The held-out manipulation is met in the test
split alone:

    train, val   originals + the seen manipulations     720 and 140 ids: 2,880 and 560 videos
    test         originals + the held-out manipulation  140 ids: 280 videos

To use it elsewhere, copy this file:

    from data import FFPP
    videos = FFPP("FaceForensics++", "test", holdout="DF", clips=4)
    clip, binary, multi, video = videos[0]     # clip: uint8 (3, T, H, W), RGB

`python data.py` renders the toy, prints what is in each split, and writes a picture of the five classes.
"""
import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections import deque
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # what cannot be read is told below, once and by name
import cv2
import numpy as np
import torch
from torch.utils.data import Dataset, Sampler
from torchvision.transforms import v2

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
cv2.setNumThreads(0)  # OpenCV's own threads and forked loader workers wait for each other forever

MANIPULATIONS = {"DF": "Deepfakes", "F2F": "Face2Face", "FS": "FaceSwap", "NT": "NeuralTextures"}
# The official val.json and test.json, pair after pair; the other 720 of the ids 000 to 999 are the training split.
VAL = """720 672 939 115 284 263 402 453 820 818 762 832 834 852 922 898 104 126 106 198 159 175 416 342 857 909 599 585
443 514 566 617 472 511 325 492 816 649 583 558 933 925 419 824 465 482 565 589 261 254 992 980 157 245 571 746
947 951 926 900 493 538 468 470 915 895 362 354 440 364 640 638 827 817 793 768 837 890 004 982 192 134 745 777
299 145 742 775 586 223 483 370 779 794 971 564 273 807 991 064 664 668 823 584 656 666 557 560 471 455 042 084
979 875 316 369 091 116 023 923 702 612 904 046 647 622 958 956 606 567 632 548 927 912 350 349 595 597 727 729""".split()
TEST = """953 974 012 026 078 955 623 630 919 015 367 371 847 906 529 633 418 507 227 169 389 480 821 812 670 661 158 379
423 421 352 319 579 701 488 399 695 422 288 321 705 707 306 278 865 739 995 233 755 759 467 462 314 347 741 731
970 973 634 660 494 445 706 479 186 170 176 190 380 358 214 255 454 527 425 485 388 308 384 932 035 036 257 420
924 917 114 102 732 691 550 452 280 249 842 714 625 650 024 073 044 945 896 128 862 047 607 683 517 521 682 669
138 142 552 851 376 381 000 003 048 029 724 725 608 675 386 154 220 219 801 855 161 141 949 868 880 135 429 404""".split()
SPLITS = {"train": sorted({f"{i:03d}" for i in range(1000)} - set(VAL) - set(TEST)), "val": VAL, "test": TEST}
VIDEO_ENDINGS, IMAGE_ENDINGS = {".mp4", ".avi", ".mov", ".mkv", ".webm"}, {".png", ".jpg", ".jpeg", ".bmp"}
FACE_FINDER = "haarcascade_frontalface_alt.xml", 1.1, 3  # OpenCV's cascade, its scale step, neighbours a face must have
LAYOUT = ("expected <data>/original_sequences/youtube/<c0|raw|c23|c40>/videos/000.mp4 and "
          "<data>/manipulated_sequences/<Deepfakes|Face2Face|FaceSwap|NeuralTextures>/<c0|raw|c23|c40>/videos/000_003.mp4 "
          "(or frames/000/*.png or images/000/*.png instead of videos/000.mp4)")


# --- Which videos there are ------------------------------------------------------------------------------------

def list_videos(root, compression="c23"):
    """{"original": {id: path}, "DF": {target id: path}, ...} of what is on disk; no video is opened.

    Raises FileNotFoundError, showing the layout, when root is no FF++ tree or lacks this compression.
    """
    root = Path(root)
    folders = {"original": root / "original_sequences" / "youtube"}
    folders |= {name: root / "manipulated_sequences" / folder for name, folder in MANIPULATIONS.items()}
    if not folders["original"].is_dir():
        raise FileNotFoundError(f"--data {root} holds no FaceForensics++: {LAYOUT}")
    if not any((folder / compression).is_dir() for folder in folders.values()):
        there = sorted({c.name for folder in folders.values() if folder.is_dir() for c in folder.iterdir() if c.is_dir()})
        raise FileNotFoundError(f"--compression {compression}: {root} has {', '.join(there) or 'none'}")
    videos = {}
    for name, folder in folders.items():
        videos[name] = {}
        for kind in ("frames", "images", "videos"):  # where several are there, the video files count
            if (folder / compression / kind).is_dir():
                for entry in os.scandir(folder / compression / kind):
                    path = Path(entry.path)
                    if path.suffix.lower() in VIDEO_ENDINGS if kind == "videos" else entry.is_dir():
                        videos[name][path.stem.split("_")[0]] = path
    return videos


class UnreadableVideo(ValueError):
    """Not one frame can be read from this file or folder."""


def read_clip(path, frames, place):
    """`frames` consecutive frames, BGR uint8 (H, W, 3) each: at place 0 the first ones, at 1 the last ones.

    Rule for videos shorter than a clip: they run forwards, backwards, forwards ... until it is full.
    Raises UnreadableVideo.
    """
    length, read = open_video(path)
    start = round(place * max(0, length - frames))
    clip = [frame for frame in read(start, frames) if frame is not None]
    if len(clip) < min(frames, length):  # the header promises more frames than there are: take the last readable ones
        clip = list(deque((frame for frame in read(0, start + frames) if frame is not None), maxlen=frames))
    if not clip:
        raise UnreadableVideo(f"{path}: not one frame can be read")
    return fill(clip, frames)


def fill(clip, frames):
    """The rule for short videos: forwards, backwards, forwards ... until there are `frames`."""
    there_and_back = [*range(len(clip)), *range(len(clip) - 2, 0, -1)]
    return [clip[there_and_back[i % len(there_and_back)]] for i in range(frames)]


def all_frames(path):
    """Every readable frame of a video, BGR, one after the other."""
    _, read = open_video(path)
    return (frame for frame in read(0, sys.maxsize) if frame is not None)


def open_video(path):
    """(number of frames as the header has it, function (start, count) -> those frames one after the other)."""
    path = Path(path)
    try:
        name = os.path.abspath(path)  # FFmpeg would take a leading "a:" for a protocol
        name.encode()
    except UnicodeEncodeError:  # OpenCV crashes on it
        raise UnreadableVideo(f"{str(path)!a}: its name is not valid text; rename it") from None
    if path.is_dir():
        images = [p for p in path.iterdir() if p.suffix.lower() in IMAGE_ENDINGS]
        images.sort(key=lambda image: (len(image.stem), image.stem))  # 2 before 10
        length, read = len(images), lambda start, count: (read_image(p) for p in images[start:start + count])
    else:
        # One thread each: the loader's workers are the parallelism.
        video = cv2.VideoCapture(name, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        length = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
        if length <= 0 and video.isOpened():  # streamed files do not know their length: count
            length = sum(1 for _ in iter(video.grab, False))
        read = lambda start, count: _decode(video, name, start, count)
    return length, read


def read_image(path):
    """BGR (H, W, 3), None when it is no image. (cv2.imread cannot open every path on Windows.)"""
    try:
        content = np.fromfile(path, np.uint8)
    except OSError:
        return None
    return cv2.imdecode(content, cv2.IMREAD_COLOR) if content.size else None


def _decode(video, name, start, count):
    """Frames start, start + 1, ... of a video file, one after the other; fewer where it ends."""
    video.set(cv2.CAP_PROP_POS_FRAMES, start)
    if round(video.get(cv2.CAP_PROP_POS_FRAMES)) != start:  # a container that cannot seek: walk there
        video.open(name, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        if not all(video.grab() for _ in range(start)):
            return
    for _ in range(count):
        ok, frame = video.read()
        if not ok:
            return
        yield frame


# --- The face ----------------------------------------------------------------------------------------------------

def crop_square(height, width, face, margin=1.3):
    """(left, top, side) of the square around the face box (x, y, w, h): `margin` times its larger side, moved into
    the picture; without a face (None) the centred square."""
    x, y, w, h = face or (0, 0, width, height)
    side = min(round(max(w, h) * margin) if face else height, height, width)
    return min(max(round(x + w / 2 - side / 2), 0), width - side), min(max(round(y + h / 2 - side / 2), 0), height - side), side


def crop_frame(frame, face, size):
    """BGR (H, W, 3) -> RGB (size, size, 3), what crop_square cuts out. Used for training, testing, and anything later."""
    left, top, side = crop_square(*frame.shape[:2], face)
    square = frame[top:top + side, left:left + side]
    square = cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_LINEAR)
    return square[..., ::-1]


def load_clip(path, face, frames, size, place, cache=None):
    """The clip (T, 3, size, size) uint8, RGB, of the frames at `place` (see read_clip) cropped to the face box (see
    crop_frame); None when the video cannot be read. With a folder `cache`, the whole video's crops are kept there as
    raw bytes the first time, and clips are slices of them ever after: the same pixels, without decoding. (But for a video
    whose header lies about its length: the cache knows how long it really is.)"""
    try:
        if cache:
            crops = cached_crops(path, face, size, cache)                                           # (frames, H, W, 3)
            start = round(place * max(0, len(crops) - frames))
            return torch.from_numpy(np.stack(fill(crops[start:start + frames], frames))).permute(0, 3, 1, 2)
        clip = np.stack([crop_frame(frame, face, size) for frame in read_clip(path, frames, place)])  # (T, H, W, 3)
    except (UnreadableVideo, OSError, cv2.error):
        return None
    return torch.from_numpy(clip).permute(0, 3, 1, 2)


def cached_crops(path, face, size, cache):
    """All frames of a video as they are cropped, memory-mapped from the cache. Raises UnreadableVideo, and ValueError when
    the cache cannot be written. The key holds path and time: copied elsewhere, a cache is made anew."""
    path = Path(path)
    state = path.stat()
    key = repr((str(path.resolve()), state.st_mtime_ns, state.st_size, face and tuple(face), size))
    file = Path(cache) / f"{path.stem}_{hashlib.sha1(key.encode()).hexdigest()}.rgb"
    if not file.is_file() or file.stat().st_size == 0 or file.stat().st_size % (3 * size * size):  # not there, or damaged
        crops = (crop_frame(frame, face, size).tobytes() for frame in all_frames(path))
        first = next(crops, None)
        if first is None:
            raise UnreadableVideo(f"{path}: not one frame can be read")
        temporary = file.with_suffix(f".{os.getpid()}")  # many processes may write the same file: the last rename wins
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as out:
                out.write(first)
                out.writelines(crops)
            temporary.replace(file)
        except OSError as error:
            raise ValueError(f"--cache {cache} cannot be written ({error.strerror}): make room, or leave --cache out") from None
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
    return np.memmap(file, np.uint8, "r").reshape(-1, size, size, 3)


def find_face(path):
    """The face (x, y, w, h) of which OpenCV's Haar cascade is surest in three frames; None when it sees none, when the
    video cannot be read, or when this OpenCV has no cascades (5.0 has not)."""
    if not hasattr(cv2, "CascadeClassifier"):
        return None
    cascade, step, neighbours = FACE_FINDER
    finder, found = cv2.CascadeClassifier(os.path.join(cv2.data.haarcascades, cascade)), []
    if finder.empty():
        return None
    for place in (0.5, 0.1, 0.9):
        try:
            gray = cv2.cvtColor(read_clip(path, 1, place)[0], cv2.COLOR_BGR2GRAY)
        except (UnreadableVideo, OSError, cv2.error):
            return None
        zoom = max(1, 200 // min(gray.shape))  # the cascade misses faces below some 50 pixels
        gray = cv2.resize(gray, None, fx=zoom, fy=zoom)
        faces, _, sureness = finder.detectMultiScale3(gray, step, neighbours, minSize=(50, 50), outputRejectLevels=True)
        found += [(float(sure), tuple(int(v) // zoom for v in face)) for face, sure in zip(faces, sureness)]
    return max(found)[1] if found else None


def find_faces(videos, file):
    """{name: face box or None} for {name: path of a video}, kept in the JSON `file` so that each is searched once."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        known = json.loads(file.read_text()) if file.is_file() else {}
        faces = {name: box for name, box in known.items() if box is None or is_box(box)}
    except (ValueError, TypeError, AttributeError):  # damaged: searched anew
        faces = {}
    missing = sorted(set(videos) - set(faces))
    if missing:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for done, (name, face) in enumerate(zip(missing, pool.map(find_face, [videos[name] for name in missing])), 1):
                faces[name] = face
                if done % 50 == 0 or done == len(missing):
                    print(f"finding faces: {done}/{len(missing)} videos", file=sys.stderr)
                    temporary = file.with_suffix(f".{os.getpid()}")
                    # None is kept only where a video was searched: a broken one may be downloaded again.
                    kept = {n: face for n, face in faces.items() if face or n not in videos or searchable(videos[n])}
                    temporary.write_text(json.dumps(kept))
                    temporary.replace(file)
    return faces


def searchable(path):
    return hasattr(cv2, "CascadeClassifier") and load_clip(path, None, 1, 8, 0.5) is not None


def is_box(box):
    """Four numbers x, y, width, height in pixels, as any picture can have them."""
    return len(box) == 4 and bool(np.isfinite(box).all()) and min(box[2:]) >= 1 and max(map(abs, box)) < 1e6


def read_boxes(file):
    """{target id: (x, y, w, h) or None} from a JSON file of your own. Raises ValueError, FileNotFoundError."""
    if not Path(file).is_file():
        raise FileNotFoundError(f"--crop {file}: expected face, frame or a JSON file of boxes")
    try:
        boxes = json.loads(Path(file).read_text(encoding="utf-8"))
        if any(isinstance(box, str) for box in boxes.values()):
            raise ValueError("a box is no text")
        boxes = {str(name): box and tuple(float(v) for v in box) for name, box in boxes.items()}
        if not all(box is None or is_box(box) for box in boxes.values()):
            raise ValueError("a box is not four numbers below a million, with a width and height of at least 1")
        return boxes
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"--crop {file}: expected a JSON object {{target id: [x, y, width, height] or null}}: "
                         f"{error}") from None


# --- The dataset -------------------------------------------------------------------------------------------------

class FFPP(Dataset):
    """The clips of one split: item i is (clip uint8 (3, T, H, W), binary label, multi label, video index).

    binary 0 = original, 1 = manipulated; multi 0 = original, 1..n = the seen manipulations in the order DF, F2F,
    FS, NT (-1: the held-out one, which has no class of its own). holdout: DF, F2F, FS, NT or none.

    train: one clip each time a video is drawn, at a random place, augmented. val, test: `clips` clips per video at evenly
    spaced places, item i = clip i % clips of video i // clips; the same each time. `classes` (of "original",
    "DF", ...) picks others than the split's own. crop: "face", "frame" (centred square) or a JSON file
    {target id: [x, y, w, h]} from a detector of your own. Found faces are kept in runs/faces_*.json.
    cache: a folder to keep the cropped videos in (see load_clip).
    """

    def __init__(self, root, split, holdout, compression="c23", frames=32, size=128, clips=1, crop="face",
                 classes=None, augment=True, cache=None):
        if holdout != "none" and holdout not in MANIPULATIONS:
            raise ValueError(f"holdout {holdout}: expected one of {', '.join(MANIPULATIONS)}, none")
        if split not in SPLITS:
            raise ValueError(f"split {split}: expected one of {', '.join(SPLITS)}")
        seen = [name for name in MANIPULATIONS if name != holdout]
        if classes is None:
            classes = ["original", *([holdout] if split == "test" and holdout != "none" else seen)]
        on_disk = list_videos(root, compression)
        self.frames, self.size, self.training, self.cache = frames, size, split == "train", cache
        self.clips = 1 if self.training else clips
        self.videos = [(on_disk[name][target], name, target)
                       for name in classes for target in SPLITS[split] if target in on_disk[name]]
        self.binary = [int(name != "original") for _, name, _ in self.videos]
        self.multi = [0 if name == "original" else seen.index(name) + 1 if name in seen else -1 for _, name, _ in self.videos]
        self.counts = {name: sum(n == name for _, n, _ in self.videos) for name in classes}
        self.missing = {name: len(SPLITS[split]) - count for name, count in self.counts.items()}
        empty = [name for name, count in self.counts.items() if count == 0]
        if empty:
            raise FileNotFoundError(f"{root} has no {compression} video of the {split} split for {', '.join(empty)}: {LAYOUT}")
        self.faces = {}
        if crop == "face":
            key = hashlib.sha1(repr((str(Path(root).resolve()), compression, FACE_FINDER)).encode()).hexdigest()[:8]
            # Searched in the original; where that is not on disk, in one of this split's fakes.
            searched = {target: on_disk["original"].get(target, path) for path, _, target in self.videos}
            name = lambda path: path.relative_to(root).as_posix()
            found = find_faces({name(path): path for path in searched.values()}, Path("runs") / f"faces_{key}.json")
            self.faces = {target: found[name(path)] for target, path in searched.items()}
        elif crop != "frame":
            self.faces = read_boxes(crop)
        self.augment = v2.Compose([
            v2.RandomResizedCrop(size, scale=(0.9, 1.0), ratio=(0.95, 1.05)),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
        ]) if self.training and augment else None

    def __len__(self):
        return len(self.videos) * self.clips

    def __getitem__(self, index):
        """index: a number or, as EpochSampler gives it, (number, seed): the seed then fixes all that is random.

        A video that cannot be read is marked by its index, which comes as -1 - index. The clip is then another one of
        the same class (train), so that the batch stays whole, or black (val, test, or where no other can be read).
        """
        index, seed = index if isinstance(index, tuple) else (index, None)
        video, number = divmod(index, self.clips)
        before = torch.get_rng_state()
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        place = torch.rand(()).item() if self.training else (number + 0.5) / self.clips
        clip, readable = self.load(video, place), True
        if clip is None:
            readable = False
            others = [i for i, multi in enumerate(self.multi) if multi == self.multi[video]] if self.training else []
            for other in (others[i] for i in torch.randperm(len(others))):
                clip = self.load(other, place)
                if clip is not None:
                    break
            else:
                clip = torch.zeros(self.frames, 3, self.size, self.size, dtype=torch.uint8)
        if self.augment:
            clip = self.augment(clip)  # v2 draws once and treats all frames alike
        if seed is not None:
            torch.set_rng_state(before)
        return clip.transpose(0, 1).contiguous(), self.binary[video], self.multi[video], video if readable else -1 - video

    def load(self, video, place):
        path, _, target = self.videos[video]
        return load_clip(path, self.faces.get(target), self.frames, self.size, place, self.cache)


class EpochSampler(Sampler):
    """The order of an epoch and a seed for each draw, from (seed, epoch) alone: the same for any number of workers.

    balance "binary": each manipulated video once, next to its own original; half of every batch is original.
    balance "none": each video once, 3 manipulated to 1 original.
    """

    def __init__(self, dataset, balance="binary", seed=0):
        self.dataset, self.balance, self.seed, self.epoch = dataset, balance, seed, 0

    def __len__(self):
        return 2 * sum(self.dataset.binary) if self.balance == "binary" else len(self.dataset)

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        shuffled = lambda rows: [rows[i] for i in torch.randperm(len(rows), generator=generator).tolist()]
        order = shuffled(range(len(self.dataset)))
        if self.balance == "binary":
            original = {target: i for i, (_, name, target) in enumerate(self.dataset.videos) if name == "original"}
            any_original = list(original.values())
            fakes = [i for i in order if self.dataset.binary[i]]
            order = [i for fake in fakes
                     for i in (fake, original.get(self.dataset.videos[fake][2], any_original[fake % len(any_original)]))]
        seeds = torch.randint(2 ** 62, (len(order),), generator=generator).tolist()
        return iter(zip(order, seeds))


# --- The toy -----------------------------------------------------------------------------------------------------
#
# Drawn talking heads. A manipulation puts another picture into a region of the face, as the real ones do, and leaves
# traces that all four share with different strength: the skin's grain is lost (resampling), the colour does not quite
# match, the region swims on the head from frame to frame.

TOY_FRAMES, TOY_SIZE, FACE = 24, 60, 64  # frames a video, pixels of a video and of the face before it is placed
#          region (x, y, rx, ry), softness of its edge, lost grain, colour mismatch, swimming in pixels
TRACES = {"DF": ((32, 38, 18, 21), 1.5, 0.80, 18, 0.2),    # the source's face with the target's expression
          "F2F": ((32, 46, 18, 16), 1.5, 0.85, 22, 0.3),   # the target's own face with the source's expression
          "FS": ((32, 38, 17, 20), 0.4, 0.55, 26, 0.3),    # the source's face, cut out and pasted
          "NT": ((32, 47, 17, 14), 1.5, 0.92, 24, 0.3)}    # the target's own mouth, re-rendered
Y, X = np.mgrid[:FACE, :FACE].astype(np.float32)


def ellipse(x, y, rx, ry, soft):
    """An elliptic mask in 0..1, (FACE, FACE, 1)."""
    inside = (((X - x) / rx) ** 2 + ((Y - y) / ry) ** 2 < 1).astype(np.float32)
    return cv2.GaussianBlur(inside, (0, 0), soft)[..., None]


def toy_person(target):
    """How the person with this id looks: the same in every video they are in."""
    rng = np.random.default_rng([7, int(target)])
    skin = rng.uniform(0.45, 1) * np.array([rng.uniform(105, 150), rng.uniform(140, 180), 225])  # BGR
    return dict(skin=skin, lips=skin * [0.7, 0.6, 0.9], hair=rng.uniform(15, 90) * np.array([0.6, rng.uniform(0.7, 1), 1.2]),
                iris=rng.uniform(30, 120, 3), width=rng.uniform(19, 24), eyes=rng.uniform(8.5, 11.5), eye=rng.uniform(3, 4.2),
                brow=rng.uniform(-10, 10), nose=rng.uniform(5, 9), mouth=rng.uniform(6.5, 10), fringe=rng.uniform(6, 14),
                grain=rng.uniform(40, 70) * cv2.GaussianBlur(rng.normal(0, 1, (FACE, FACE, 1)), (0, 0), 1.1)[..., None])


def draw_face(person, mouth, blink):
    """A face, float (FACE, FACE, 3); mouth 0 closed .. 1 open, blink 0 open .. 1 shut."""
    image = np.empty((FACE, FACE, 3), np.uint8)
    image[:] = person["hair"]

    def put(x, y, rx, ry, colour, angle=0):  # centre and radii in 1/16 pixel: motion stays smooth
        fixed = [max(1, int(v * 16)) for v in (x, y, rx, ry)]
        cv2.ellipse(image, tuple(fixed[:2]), tuple(fixed[2:]), angle, 0, 360, [float(c) for c in colour], -1, cv2.LINE_AA, 4)

    put(32, 36, person["width"], 26, person["skin"])
    put(32, 63, person["width"] * 0.8, 5, person["skin"] * 0.75)
    for side in (-1, 1):
        x, height = 32 + side * person["eyes"], max(0.1, 1 - blink)
        put(x, 30, person["eye"] * 1.3, person["eye"] * height, (245, 245, 245))
        put(x, 30, person["eye"] * 0.6, person["eye"] * 0.75 * height, person["iris"])
        put(x, 24, 5, 0.9, person["hair"] * 0.7, side * person["brow"])
    put(32, 36 + person["nose"] / 2, 1.6, person["nose"] / 2, person["skin"] * 0.82)
    put(32, 37 + person["nose"], 3, 1.2, person["skin"] * 0.7)
    put(32, 51, person["mouth"], 1.8 + mouth * 4, person["lips"])
    put(32, 51, person["mouth"] * 0.75, 0.3 + mouth * 3, person["lips"] * 0.3)
    put(32, person["fringe"], person["width"] * 1.05, 8, person["hair"])
    return image.astype(np.float32)


def is_toy(root):
    return (Path(root) / "TOY.txt").is_file()


def render_toy_identity(job):
    """Write the five videos that show `target`'s footage: the original and its four manipulations by `source`."""
    root, target, source = job
    cv2.setNumThreads(0)
    rng = np.random.default_rng([11, int(target)])
    me, other, t = toy_person(target), toy_person(source), np.arange(TOY_FRAMES)
    wave = lambda low, high: np.sin(t * rng.uniform(low, high) + rng.uniform(0, 6))
    talk, other_talk = np.abs(wave(0.5, 0.9) * wave(0.1, 0.3)), np.abs(wave(0.5, 0.9) * wave(0.1, 0.3))
    blink = np.clip(1.5 - np.abs(t - rng.integers(TOY_FRAMES)) / 1.5, 0, 1)
    sway = rng.uniform(0.4, 2.5)
    dx, dy, turn = sway * wave(0.1, 0.35), 0.6 * sway * wave(0.1, 0.35), rng.uniform(0, 6) * wave(0.1, 0.3)
    zoom, centre = rng.uniform(0.72, 0.82), TOY_SIZE / 2 + rng.uniform(-3, 3, 2)
    room = rng.uniform(80, 170, (rng.integers(2, 6), rng.integers(2, 6), 3)).astype(np.float32)
    room = cv2.resize(room, (TOY_SIZE, TOY_SIZE), interpolation=cv2.INTER_CUBIC)
    head, skin = ellipse(32, 34, 29, 30, 0.5), ellipse(32, 36, 21, 25, 1)
    side_light = rng.uniform(-0.5, 0.5) * (X[..., None] - 32)
    place = [cv2.getRotationMatrix2D((32, 32), turn[i], zoom)
             + [[0, 0, centre[0] + dx[i] - 32], [0, 0, centre[1] + dy[i] - 32]] for i in t]
    onto = lambda picture, i: cv2.warpAffine(picture, place[i], (TOY_SIZE, TOY_SIZE), borderMode=cv2.BORDER_REPLICATE)
    outline = [cv2.warpAffine(head, place[i], (TOY_SIZE, TOY_SIZE))[..., None] for i in t]

    for name in ("original", *TRACES):
        film = []
        if name != "original":
            region, soft, lost, mismatch, swimming = TRACES[name]
            mask = ellipse(*region, soft)
            tint = rng.choice([-1, 1]) * mismatch * rng.uniform(0.7, 1.3) + rng.normal(0, mismatch / 3, 3)
            shake = rng.normal(0, swimming, (TOY_FRAMES, 2))
        for i in t:
            face = draw_face(me, talk[i], blink[i]) + me["grain"] * skin
            if name != "original":
                new = {"DF": lambda: draw_face(other, talk[i], blink[i]) + other["grain"] * skin,
                       "FS": lambda: draw_face(other, 0.5, blink[i]) + other["grain"] * skin,
                       "F2F": lambda: draw_face(me, other_talk[i], blink[i]) + me["grain"] * skin,
                       "NT": lambda: draw_face(me, other_talk[i], blink[i]) + me["grain"] * skin}[name]()
                if name in ("DF", "FS"):
                    new += 0.8 * (me["skin"] - other["skin"])  # colour transfer, as far as it goes
                new = (1 - lost) * new + lost * cv2.GaussianBlur(new, (0, 0), 2.2) + tint
                swim = np.float32([[1, 0, shake[i, 0]], [0, 1, shake[i, 1]]])
                new = cv2.warpAffine(new, swim, (FACE, FACE), borderMode=cv2.BORDER_REPLICATE)
                where = cv2.warpAffine(mask, swim, (FACE, FACE))[..., None]
                face = where * new + (1 - where) * face
            film.append(outline[i] * onto(face + side_light, i) + (1 - outline[i]) * room)
        film = camera(np.stack(film), rng)
        place_in_ffpp = (f"original_sequences/youtube/c23/videos/{target}.mp4" if name == "original" else
                         f"manipulated_sequences/{MANIPULATIONS[name]}/c23/videos/{target}_{source}.mp4")
        file = str(Path(root) / place_in_ffpp)
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        writer = cv2.VideoWriter(file, cv2.VideoWriter_fourcc(*"mp4v"), 25, (TOY_SIZE, TOY_SIZE))
        if not writer.isOpened():
            raise OSError(f"{file} cannot be written (a full disk, or an OpenCV that cannot encode MPEG-4)")
        for frame in film:
            writer.write(frame)
        writer.release()


def camera(film, rng):
    """Blur, contrast, brightness, noise and flicker, drawn per FILE. Colour and contrast are levelled first and the
    noise fills up to a drawn sharpness, so that originals and manipulations hardly differ in such cheap statistics."""
    blur = rng.uniform(0.3, 0.7)
    film = np.stack([cv2.GaussianBlur(frame.astype(np.float32), (0, 0), blur) for frame in film])
    film = (film - film.mean((0, 1, 2))) / film.std()
    sharpness = np.mean([cv2.Laplacian(frame, cv2.CV_32F).var() for frame in film])
    noise = np.sqrt(max(0, rng.uniform(0.38, 0.62) - sharpness) / 20)  # white noise of variance v adds 20 v to it
    film = (film + noise * rng.normal(0, 1, film.shape)) * rng.uniform(35, 60) + rng.uniform(90, 150) + rng.normal(0, 8, 3)
    flicker = rng.uniform(0, 4) * rng.normal(0, 1, (len(film), 1, 1, 1))
    return (film + flicker).clip(0, 255).astype(np.uint8)


def make_toy(root, identities=(160, 24, 60), processes=None):
    """Render the toy FF++: the first `identities` ids of train, val and test, five videos each.

    Real video files in FF++'s own layout; the same files every time. Nothing of it is left after Ctrl-C or an error.
    """
    if any(count % 2 for count in identities):
        raise ValueError(f"identities come in pairs that swap faces, got {identities}")
    root = Path(root)
    temporary = root.with_name(f"{root.name}.{os.getpid()}.part")
    ids = [SPLITS[split][:count] for split, count in zip(("train", "val", "test"), identities)]
    jobs = [(str(temporary), target, group[i ^ 1]) for group in ids for i, target in enumerate(group)]  # pairs swap faces
    try:
        with ProcessPoolExecutor(processes or min(os.cpu_count(), 8)) as pool:
            for done, _ in enumerate(pool.map(render_toy_identity, jobs, chunksize=4), 1):
                if done % 20 == 0 or done == len(jobs):
                    print(f"rendering the toy FF++: {done}/{len(jobs)} identities", file=sys.stderr)
        (temporary / "TOY.txt").write_text("Drawn by make_toy in data.py: not FaceForensics++, and no number found on it "
                                           "says anything about it.\n")
        if not root.is_dir():  # another run may have been quicker
            temporary.replace(root)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def main():
    """The lesson: the splits in numbers, and one identity in all five classes as a picture."""
    root = Path("toy_ffpp")
    if not root.is_dir():
        make_toy(root)
    videos = list_videos(root)
    print("ids per class:", ", ".join(f"{name} {len(ids)}" for name, ids in SPLITS.items()))
    print(f"\nvideos in {root} (a toy) and in the whole FF++, with DF held out:")
    for split in SPLITS:
        part = FFPP(root, split, "DF", frames=8, size=48)
        whole = len(part.videos) + sum(part.missing.values())
        counts = "".join(f"{count:5} {name:9}" for name, count in part.counts.items())
        print(f"  {split:6}{counts}        together {len(part.videos)} of {whole}")
    clip, binary, multi, video = part[0]
    print(f"\nitem 0 of the test split: clip {tuple(clip.shape)} {clip.dtype}, binary {binary}, multi {multi}, "
          f"{part.videos[video][0]}")
    frame = lambda path, place: cv2.resize(read_clip(path, 1, place)[0], None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)
    rows = [np.concatenate([frame(videos[name][target], place) for name in ("original", *MANIPULATIONS)], axis=1)
            for target in SPLITS["test"][:2] for place in (0.2, 0.6)]
    sheet = Path("runs") / "toy_sheet.png"
    sheet.parent.mkdir(exist_ok=True)
    cv2.imwrite(str(sheet), np.concatenate(rows))
    print(f"\n{sheet}: the identities {' and '.join(SPLITS['test'][:2])}, from left to right original, "
          f"{', '.join(MANIPULATIONS)}")


if __name__ == "__main__":
    main()
