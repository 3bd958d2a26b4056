# SPDX-License-Identifier: MIT
"""FaceForensics++ with one manipulation held out (section 3.1): splits, reading, face crop.

A fake `target_source` is the target's video with the face (Deepfakes, FaceSwap) or the expression
(Face2Face, NeuralTextures) of the source; the paper's 3.2 has it the other way round. So the target
decides the split and where the face is. The official layout is read, and Kaggle's flat copy of c23:

    original_sequences/youtube/c23/videos/953.mp4             or    original/953.mp4
    manipulated_sequences/Deepfakes/c23/videos/953_974.mp4    or    Deepfakes/953_974.mp4

    train, val   720 and 140 ids    original + 3 seen manipulations: 2,880 and 560 videos
    test         140 ids            original + held-out: 280 videos, and 420 seen for comparison

A clip is `frames` consecutive frames around the face, resized once, to 9/8 of `size`. Training
takes one clip and a random size x size window, evaluation evenly spaced clips and the centre.

`python data.py` prints splits, labels and the places of clips. To use it elsewhere, copy this file:

    from data import FFPP, read_video
    videos = FFPP("FaceForensics++", "test", holdout="DF", frames=32, size=128, clips=4)
    clips, binary, multi = videos[0]                    # clips: uint8 (4, 3, 32, 128, 128), RGB
    clips, faces = read_video("my.mp4", frames=32, size=128, clips=4)    # of any video

To train, give a DataLoader batch_sampler=EpochBatches(FFPP(..., "train", ...), 16), and set its
`epoch` before each epoch.
"""
import contextlib
import hashlib
import json
import os
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")  # what cannot be read is reported by name below
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
import cv2
import numpy as np
import torch
from torch.utils.data import Dataset, Sampler
from torchvision.transforms import v2

cv2.setNumThreads(0)  # OpenCV's threads can deadlock in a forked loader worker

MANIPULATIONS = {"DF": "Deepfakes", "F2F": "Face2Face", "FS": "FaceSwap", "NT": "NeuralTextures"}
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
SPLITS = {"train": sorted({f"{i:03d}" for i in range(1000)} - set(VAL) - set(TEST)),
          "val": VAL, "test": TEST}
VIDEO_ENDINGS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv",
                 ".3gp", ".ts", ".mts", ".m2ts", ".ogv")
LAYOUT = ("expected original_sequences/youtube/<c0|raw|c23|c40>/videos/000.mp4 or, in Kaggle's copy"
          ", original/000.mp4 and Deepfakes/000_003.mp4; folders of images are not read, as they "
          "sample the frames and a clip needs consecutive ones")
MARGIN = 1.3 * 9 / 8  # side of the square that is read, in face sizes; the window shows 1.3

class UnreadableVideo(ValueError):
    """A video that cannot be read or scored. The message names the file and the reason."""

@contextlib.contextmanager
def replacing(path):
    """A temporary path that becomes `path` at the end: nobody sees half a file. Raises OSError."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{os.urandom(4).hex()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # RuntimeError: torch.save on a full disk
        raise OSError(f"{path} could not be written: {str(error).partition(chr(10))[0]}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()

def is_video(path):
    return path.suffix.lower() in VIDEO_ENDINGS and not path.name.startswith(".")

def list_videos(root, compression="c23"):
    """{"original": {target id: path}, "DF": {...}, ...} of what is on disk; opens no video. Raises
    FileNotFoundError if root has no videos of this compression in either layout."""
    folders = {"original": "original", **MANIPULATIONS}
    if compression != "c23" or not Path(root, "original").is_dir():  # not Kaggle's copy
        folders = {name: f"manipulated_sequences/{folder}/{compression}/videos"
                   for name, folder in MANIPULATIONS.items()}
        folders["original"] = f"original_sequences/youtube/{compression}/videos"
    videos = {}
    for name, folder in folders.items():
        paths = Path(root, folder).iterdir() if Path(root, folder).is_dir() else ()
        videos[name] = {path.stem.split("_")[0]: path for path in sorted(paths) if is_video(path)}
    if not any(videos.values()):
        raise FileNotFoundError(f"no {compression} videos of FaceForensics++ in {root}: {LAYOUT}")
    return videos

def multi_labels(holdout):
    """Section 2.1.1: 0 is original, 1 to n are the seen manipulations; held out: -1."""
    seen = [name for name in MANIPULATIONS if name != holdout]
    return {"original": 0, **{name: i for i, name in enumerate(seen, 1)}, holdout: -1}

def open_video(path):
    name = os.path.abspath(path)  # FFmpeg takes a leading "a:" for a protocol
    if name.encode(errors="ignore").decode() != name:  # OpenCV would crash
        raise UnreadableVideo(f"{name!a}: the file's name is not valid text; rename it")
    # One thread: the loader's workers are the parallelism.
    return cv2.VideoCapture(name, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])

def frames_of(video):
    """The remaining frames, BGR uint8 (H, W, 3), with square pixels."""
    aspect = video.get(cv2.CAP_PROP_SAR_NUM) / max(1, video.get(cv2.CAP_PROP_SAR_DEN))
    with contextlib.suppress(cv2.error):  # a damaged video ends here
        while (read := video.read())[0]:
            wrong = aspect and abs(aspect - 1) > 0.01  # 0: unknown; 1280:1281 would only blur
            yield cv2.resize(read[1], None, fx=aspect, fy=1) if wrong else read[1]

def clip_starts(length, frames, places):
    """The index of each clip's first frame in a video of `length` frames; places are in [0, 1)."""
    return [int(place * max(1, length - frames + 1)) for place in places]

def evenly(clips):
    """The places of `clips` evenly spaced clips."""
    return [(i + 0.5) / clips for i in range(clips)]

def fill(clip, frames):
    """A clip of `frames` frames; a shorter one runs forwards, backwards, forwards ..."""
    order = [*range(len(clip)), *range(len(clip) - 2, 0, -1)]
    return [clip[order[i % len(order)]] for i in range(frames)]

def read_clips(path, frames, places, finish=list, prepare=np.asarray):
    """The clips at `places` in one forward pass: [finish([prepare(frame), ...]), ...], so that only
    prepared frames (crops) are held. Where the header's number of frames is wrong, a second pass
    uses the true one. Raises UnreadableVideo."""
    length = int(open_video(path).get(cv2.CAP_PROP_FRAME_COUNT))
    for _ in range(2):
        ends = [start + min(frames, length) for start in clip_starts(length, frames, places)]
        recent, clips, count = deque(maxlen=frames), [], 0
        for count, frame in enumerate(frames_of(open_video(path)), 1):
            recent.append(prepare(frame))
            while len(clips) < len(ends) and count == ends[len(clips)]:
                clips.append(finish(fill(recent, frames)))
        if count and count == length:
            return clips
        length = count
    raise UnreadableVideo(f"{path}: cannot be read as a video")

def read_clip(path, frames, place):
    """One clip, a list of frames, by seeking; where that fails, by a forward pass."""
    video = open_video(path)
    length = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    start, = clip_starts(length, frames, [place])
    if start:  # seeking to 0 lands later in some containers
        video.set(cv2.CAP_PROP_POS_FRAMES, start)
    if not start or round(video.get(cv2.CAP_PROP_POS_FRAMES)) == start:
        clip = list(islice(frames_of(video), frames))
        if clip and len(clip) >= min(frames, length) > 0:
            return fill(clip, frames)
    return read_clips(path, frames, [place])[0]

def read_video(path, frames, size, clips, crop="face"):
    """Any video as evaluation sees it: (clips uint8 (N, 3, T, size, size), RGB; faces).

    The face is found in the middle frame of each clip, because people move and scenes change;
    crop="frame" takes the centre square. `faces` has an entry per place: the box (x, y, w, h), or
    the reason why this clip is left out. Raises UnreadableVideo if all are.
    """
    def finish(clip):
        height, width = clip[0].shape[:2]
        face = (0, 0, width, height) if crop == "frame" else find_face([clip[frames // 2]])[0]
        if face is None:
            return "no face was found", None
        if frames > 1 and all(np.array_equal(frame, clip[0]) for frame in clip):
            return ("the frames do not change: a still picture, or interlaced video that OpenCV "
                    "cannot decode"), None
        return face, to_tensor(crop_frame(frame, face, size) for frame in clip)

    found = read_clips(path, frames, evenly(clips), finish)
    pixels = [clip for _, clip in found if clip is not None]
    if not pixels:
        raise UnreadableVideo(f"{path}: {found[0][0]}")
    return v2.functional.center_crop(torch.stack(pixels), size), [face for face, _ in found]

def square(height, width, face):
    """(left, top, side) of the square around a face (x, y, w, h), or in the centre for None."""
    x, y, w, h = face or (0, 0, width, height)
    side = min(round(max(w, h) * MARGIN), height, width)
    left = min(max(round(x + w / 2 - side / 2), 0), width - side)
    top = min(max(round(y + h / 2 - side / 2), 0), height - side)
    return left, top, side

def crop_frame(frame, face, size):
    """BGR (H, W, 3) -> RGB, the square around the face at 9/8 of `size` pixels."""
    left, top, side = square(*frame.shape[:2], face)
    size = round(size * 9 / 8)
    method = cv2.INTER_AREA if side > size else cv2.INTER_LINEAR
    pixels = cv2.resize(frame[top:top + side, left:left + side], (size, size), interpolation=method)
    return pixels[..., ::-1]

def to_tensor(crops):
    """T pictures (H, W, 3) -> a clip (3, T, H, W)."""
    return torch.from_numpy(np.stack(list(crops))).permute(3, 0, 1, 2)

def find_face(pictures):
    """(the largest face (x, y, w, h) or None, number of faces) in pictures of one video. Faces that
    OpenCV's Haar cascade sees in several pictures win over others."""
    cascade = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_alt.xml")
    faces, most = [], 0
    for picture in pictures:
        scale = 480 / min(picture.shape[:2])
        gray = cv2.resize(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), None, fx=scale, fy=scale)
        found = cascade.detectMultiScale(gray, 1.1, 4, minSize=(48, 48))
        faces += [[round(v / scale) for v in box] for box in found]
        most = max(most, len(found))
    agreed, _ = cv2.groupRectangles(faces, 1, 0.3)  # the mean box of each group of two or more
    largest = max([*agreed] or faces, key=lambda box: box[2] * box[3], default=None)
    return largest if largest is None else tuple(map(int, largest)), most

def find_faces(videos, file):
    """{name: face (x, y, w, h) or None} of videos {name: path}, from five frames of each. The JSON
    file keeps each face with the state of its video (path, size, time)."""
    known, keys = {}, {}
    with contextlib.suppress(OSError, ValueError, TypeError):  # not there yet, or damaged
        known = dict(json.loads(file.read_text(encoding="utf-8")))
    for name, path in videos.items():
        keys[name] = str((str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns))

    def search(name):
        with contextlib.suppress(UnreadableVideo):  # not kept: it may be downloaded again
            clips = read_clips(videos[name], 1, evenly(5))
            known[keys[name]] = find_face([picture for picture, in clips])

    missing = [name for name in videos if keys[name] not in known]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, _ in enumerate(pool.map(search, missing), 1):
            if done % 50 == 0 or done == len(missing):
                print(f"finding faces: {done}/{len(missing)} videos", file=sys.stderr)
                with replacing(file) as temporary:
                    temporary.write_text(json.dumps(known.copy()), encoding="utf-8")
    found = {name: known.get(key, (None, 0)) for name, key in keys.items()}
    numbers = [number for _, number in found.values()]
    print(f"faces: {numbers.count(0)} of {len(numbers)} videos without one (the centre is read), "
          f"{sum(n > 1 for n in numbers)} with several (the largest is read)")
    return {name: face and tuple(face) for name, (face, _) in found.items()}

class FFPP(Dataset):
    """The videos of one split, with one manipulation held out (DF, F2F, FS, NT, or none).

    train      videos[index, seed] = (clip uint8 (3, T, H, W), binary, multi); its place, window,
               flip and colours follow from the seed
    val, test  videos[index] = (clips uint8 (N, 3, T, H, W), binary, multi), N = `clips`

    binary: 0 = original, 1 = manipulated; multi: see multi_labels. faces: {target id: (x, y, w,
    h)}; without a box, the centred square is read. cache: a folder for cropped frames. Fakes
    without their original are left out. Attributes: videos [(path, class, target id)], binary,
    multi, counts, missing {class: n}. Raises ValueError, FileNotFoundError, UnreadableVideo."""

    def __init__(self, root, split, holdout, compression="c23", frames=32, size=128, clips=4,
                 faces=None, augment=True, cache=None):
        if holdout not in (*MANIPULATIONS, "none") or split not in SPLITS:
            raise ValueError(f"holdout {holdout}, split {split}: expected one of "
                             f"{', '.join(MANIPULATIONS)}, none and one of {', '.join(SPLITS)}")
        self.frames, self.size, self.clips, self.training = frames, size, clips, split == "train"
        self.faces, self.cache = faces or {}, cache
        self.videos, self.counts, self.missing = [], {}, {}
        labels, on_disk = multi_labels(holdout), list_videos(root, compression)
        for name in ("original", *MANIPULATIONS):
            if name == holdout and split != "test":
                continue
            targets = [t for t in SPLITS[split] if t in on_disk[name] and t in on_disk["original"]]
            if not targets:
                raise FileNotFoundError(f"{root} has no {split} videos for {name}: {LAYOUT}")
            self.videos += [(on_disk[name][target], name, target) for target in targets]
            self.counts[name], self.missing[name] = len(targets), len(SPLITS[split]) - len(targets)
        self.binary = [int(name != "original") for _, name, _ in self.videos]
        self.multi = [labels[name] for _, name, _ in self.videos]
        self.window = v2.CenterCrop(size)
        if augment and self.training:  # drawn once per clip, the same for all its frames
            self.window = v2.Compose([v2.RandomCrop(size), v2.RandomHorizontalFlip(),
                                      v2.ColorJitter(0.2, 0.2, 0.2)])

    def __len__(self):
        return len(self.videos)

    def __getitem__(self, index):
        if not self.training:
            clips = self.window(torch.stack(self.read(index, evenly(self.clips))))
            return clips, self.binary[index], self.multi[index]
        index, seed = index
        before = torch.get_rng_state()
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would touch CUDA in a worker
        clip, = self.read(index, [torch.rand(()).item()])
        clip = self.window(clip.transpose(0, 1)).transpose(0, 1)  # torchvision wants (T, 3, H, W)
        torch.set_rng_state(before)
        return clip.contiguous(), self.binary[index], self.multi[index]

    def read(self, index, places):
        """The clips of a video at these places, (3, T, H, W) each."""
        path, _, target = self.videos[index]
        crop = partial(crop_frame, face=self.faces.get(target), size=self.size)
        if self.cache:
            crops = cached_crops(path, crop, self.cache)
            starts = clip_starts(len(crops), self.frames, places)
            return [to_tensor(fill(crops[s:s + self.frames], self.frames)) for s in starts]
        if self.training:
            return [to_tensor(map(crop, read_clip(path, self.frames, *places)))]
        return read_clips(path, self.frames, places, prepare=crop, finish=to_tensor)

def cached_crops(path, crop, cache):
    """crop(frame) of all frames, (frames, H, W, 3), from a file named after video, face, size and
    MARGIN. Raises UnreadableVideo; OSError if the cache cannot be written."""
    state = str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns
    key = hashlib.sha1(repr((state, crop.keywords, MARGIN)).encode()).hexdigest()
    file = Path(cache, f"{path.stem}_{key}.npy")
    if not file.is_file():
        crops = [crop(frame) for frame in frames_of(open_video(path))]
        if not crops:
            raise UnreadableVideo(f"{path}: cannot be read as a video")
        with replacing(file) as temporary, open(temporary, "wb") as out:
            np.save(out, np.stack(crops))
    return np.load(file, mmap_mode="r")

class EpochBatches(Sampler):
    """The batches of an epoch, [(index, seed), ...] each; `seed` and `epoch` alone decide them.

    balance "binary": every fake once, next to its own original; "none": every video once. Each rank
    gets its share of every batch, in whole pairs. An incomplete batch at the end is dropped.
    """

    def __init__(self, dataset, batch_size, balance="binary", seed=0, rank=0, ranks=1):
        self.dataset, self.batch_size, self.seed, self.epoch = dataset, batch_size, seed, 0
        self.balance, self.rank, self.ranks = balance, rank, ranks
        self.clips = 2 * sum(dataset.binary) if balance == "binary" else len(dataset)
        if self.clips < batch_size or batch_size % (2 * ranks):
            raise ValueError(f"--batch-size {batch_size}: expected a multiple of {2 * ranks}, at "
                             f"most the {self.clips} clips of an epoch")

    def __len__(self):
        return self.clips // self.batch_size

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.dataset), generator=generator).tolist()
        if self.balance == "binary":
            videos = self.dataset.videos
            originals = {videos[i][2]: i for i in order if not self.dataset.binary[i]}
            fakes = [i for i in order if self.dataset.binary[i]]
            order = [i for fake in fakes for i in (fake, originals[videos[fake][2]])]
        seeds = torch.randint(2 ** 62, (len(order),), generator=generator).tolist()
        draws, share = list(zip(order, seeds)), self.batch_size // self.ranks
        for batch in range(len(self)):
            start = batch * self.batch_size + self.rank * share
            yield draws[start:start + share]

def main():
    """The lesson: splits, labels, and how clips lie in a video."""
    for split, ids in SPLITS.items():
        print(f"{split:6}{len(ids):4} ids: {' '.join(ids[:8])} ...")
    print(f"labels with FS held out: {multi_labels('FS')}\n4 clips (#) of 32 frames in 90 frames:")
    for start in clip_starts(90, 32, evenly(4)):
        print((" " * start + "#" * 32).ljust(90) + "|")

if __name__ == "__main__":
    main()
