# SPDX-License-Identifier: MIT
"""A toy FaceForensics++ for machines without the dataset: drawn talking heads, as real video files.

It asks the paper's question in the smallest world that has a known answer. Every fake has two
traces, and a detector may rely on either:

    its own      visible in each single frame, and of another kind for each manipulation: Deepfakes
                 lose their grain, Face2Face has a colour cast, FaceSwap a bright seam,
                 NeuralTextures a checkerboard. It says little about the held-out manipulation.
    the shared   visible only in time: an original's face has one shade per video; a fake, whose
                 frames are generated one by one, has a shade that changes from frame to frame.
                 Some fakes hardly show it. The shade of a single frame has the same distribution in
                 all five classes.

Everything else is alike: the five videos of an identity show the same scene, and what the camera
adds is drawn per file, whatever the class.
"""

import os
import signal
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from data import MANIPULATIONS, SPLITS

TOY_VERSION = "6"  # raise it whenever the pixels change: a toy of another version is replaced
FIRST_LINE = f"toy version {TOY_VERSION}"
NOTE = "It is drawn, not FaceForensics++: no number found on it says anything about real deepfakes."

FRAMES = 16  # of a video
SIZE = 56  # pixels of a video's side
FACE = 64  # pixels of the side of a face as drawn
Y, X = np.mgrid[:FACE, :FACE].astype(np.float32)

# The shared trace. rho is the part of the shade's variance that is drawn anew in every frame.
SHADE = 60  # standard deviation of the shade, in grey levels
SHADE_COLOUR = 0.3  # standard deviation of each channel's own shade, as a part of SHADE
SHADE_RADII = (14, 24)  # of its ellipse, in pixels of the drawn face
RHO = (0.5, 1)  # of a fake; 0 in an original
# Most fakes show it plainly, so that every training run finds it; some hide it, so that no detector
# finds all.
HIDING = 0.2  # part of the fakes
HIDDEN = 0.05  # times rho

# The own traces; each video multiplies them by a number drawn from STRENGTH.
STRENGTH = (0.5, 1.2)
BLUR = 3  # DF: standard deviation of the blur that takes the grain, in pixels
CAST = 60  # F2F: grey levels, green against the two other channels
SEAM = 120  # FS: grey levels just inside the border of the region
CHECKER = 60  # NT: grey levels, of squares of 3 x 3 pixels
REGIONS = {  # the ellipse (x, y, rx, ry) that a manipulation replaces, in pixels of the drawn face
    "DF": (32, 38, 18, 21),
    "F2F": (32, 46, 18, 16),
    "FS": (32, 38, 17, 20),
    "NT": (32, 47, 17, 14),
}

SHAPES = {  # how people differ: the ranges of their measures, in pixels or degrees
    "width": (19, 24),
    "eyes": (8.5, 11.5),
    "eye": (3, 4.2),
    "brow": (-10, 10),
    "nose": (5, 9),
    "mouth": (6.5, 10),
    "fringe": (6, 14),
}


def ellipse(x, y, rx, ry, soft):
    """An elliptic mask in 0..1, (FACE, FACE, 1), whose edge is blurred by `soft` pixels."""
    inside = (((X - x) / rx) ** 2 + ((Y - y) / ry) ** 2 < 1).astype(np.float32)
    return cv2.GaussianBlur(inside, (0, 0), soft)[..., None]


def draw_person(target):
    """How the person with this id looks: the same in every video they are in. Colours are BGR."""
    rng = np.random.default_rng([7, int(target)])
    person = {part: rng.uniform(*limits) for part, limits in SHAPES.items()}
    skin = rng.uniform(0.45, 1) * np.array([rng.uniform(105, 150), rng.uniform(140, 180), 225])
    person["skin"] = skin
    person["lips"] = skin * [0.7, 0.6, 0.9]
    person["iris"] = rng.uniform(30, 120, 3)
    person["hair"] = rng.uniform(15, 90) * np.array([0.6, rng.uniform(0.7, 1), 1.2])
    grain = cv2.GaussianBlur(rng.normal(0, 1, (FACE, FACE)), (0, 0), 1.1)[..., None]
    person["grain"] = np.float32(rng.uniform(40, 70) * grain * ellipse(32, 36, 21, 25, 1))
    return person


def draw_face(person, mouth, blink):
    """A face, float32 (FACE, FACE, 3); mouth 0 closed .. 1 open, blink 0 open .. 1 shut."""
    image = np.empty((FACE, FACE, 3), np.uint8)
    image[:] = person["hair"]

    def put(x, y, rx, ry, colour, angle=0):
        x, y, rx, ry = [max(1, int(16 * v)) for v in (x, y, rx, ry)]  # smooth: 1/16 pixels
        cv2.ellipse(image, (x, y), (rx, ry), angle, 0, 360, colour.tolist(), -1, cv2.LINE_AA, 4)

    skin, width, eye, nose = person["skin"], person["width"], person["eye"], person["nose"]
    put(32, 36, width, 26, skin)
    put(32, 63, width * 0.8, 5, skin * 0.75)

    lid = max(0.1, 1 - blink)
    for side in (-1, 1):
        x = 32 + side * person["eyes"]
        put(x, 30, eye * 1.3, eye * lid, np.full(3, 245))
        put(x, 30, eye * 0.6, eye * 0.75 * lid, person["iris"])
        put(x, 24, 5, 0.9, person["hair"] * 0.7, side * person["brow"])

    put(32, 36 + nose / 2, 1.6, nose / 2, skin * 0.82)
    put(32, 37 + nose, 3, 1.2, skin * 0.7)
    put(32, 51, person["mouth"], 1.8 + mouth * 4, person["lips"])
    put(32, 51, person["mouth"] * 0.75, 0.3 + mouth * 3, person["lips"] * 0.3)
    put(32, person["fringe"], width * 1.05, 8, person["hair"])
    return image + person["grain"]


def wave(rng, low, high):
    """A motion between -1 and 1 of random pace and phase, one value per frame."""
    return np.sin(np.arange(FRAMES) * rng.uniform(low, high) + rng.uniform(0, 6))


def move_head(rng):
    """Where the head is: for each frame the matrix (2, 3) from face pixels to video pixels."""
    sway = rng.uniform(0.1, 0.8)
    zoom = rng.uniform(0.68, 0.76)
    turn = rng.uniform(0, 3)
    centre = SIZE / 2 + rng.uniform(-2.7, 2.7, 2)

    matrices = [cv2.getRotationMatrix2D((32, 32), turn * way, zoom) for way in wave(rng, 0.1, 0.3)]
    shifts = np.stack([sway * wave(rng, 0.1, 0.35), 0.6 * sway * wave(rng, 0.1, 0.35)], axis=1)
    for matrix, shift in zip(matrices, shifts):
        matrix[:, 2] += centre + shift - 32
    return matrices


def draw_shade(rng, name):
    """The shared trace of a video of this class, (FRAMES, FACE, FACE, 3): to be added to the faces.

    An ellipse anywhere on the face gets an offset. A part rho of its variance is drawn in every
    frame, the rest once per video; square roots make the variance of a single frame SHADE ** 2,
    whatever rho. So one frame tells nothing about rho.
    """
    mask = ellipse(*rng.uniform(24, 40, 2), *rng.uniform(*SHADE_RADII, 2), soft=3)
    rho = rng.uniform(*RHO)
    if rng.random() < HIDING:
        rho *= HIDDEN
    if name == "original":
        rho = 0

    once = rng.normal(size=(1, 4))  # common to the channels, and for each of the three
    anew = rng.normal(size=(FRAMES, 4))
    drawn = np.sqrt(1 - rho) * once + np.sqrt(rho) * anew
    offsets = SHADE * (drawn[:, :1] + SHADE_COLOUR * drawn[:, 1:])
    return np.float32(offsets[:, None, None] * mask)


def add_own_trace(faces, name, rng):
    """What this manipulation leaves in every frame of faces (FRAMES, FACE, FACE, 3)."""
    strength = rng.uniform(*STRENGTH)
    sign = rng.choice([-1, 1])
    if name == "DF":
        blurred = np.stack([cv2.GaussianBlur(face, (0, 0), BLUR) for face in faces])
        return faces + strength * (blurred - faces)
    if name == "F2F":
        return faces + strength * sign * CAST * np.float32([-1, 1, -1])
    if name == "FS":
        x, y, rx, ry = REGIONS[name]
        mask = ellipse(x, y, rx - 2, ry - 2, soft=1)  # just inside the region
        return faces + strength * SEAM * 4 * mask * (1 - mask)
    squares = 2 * ((X // 3 + Y // 3) % 2) - 1
    return faces + strength * CHECKER * squares[..., None]


def manipulate(faces, donors, name, rng):
    """Put this manipulation's region of each donor's picture into each face, with its own trace."""
    donors = add_own_trace(np.stack(donors), name, rng)
    mask = ellipse(*REGIONS[name], soft=0.4 if name == "FS" else 1.5)  # FS is cut out and pasted
    return mask * donors + (1 - mask) * np.stack(faces)


def camera(film, rng):
    """Blur, noise, contrast, brightness and flicker, drawn per file: (FRAMES, SIZE, SIZE, 3) of
    standard deviation 1 -> uint8."""
    blur = rng.uniform(0.3, 0.6)
    film = np.stack([cv2.GaussianBlur(frame, (0, 0), blur) for frame in film])
    film = film + rng.uniform(0.04, 0.1) * rng.standard_normal(film.shape, np.float32)
    brightness = rng.uniform(100, 140) + rng.normal(0, 6, 3)
    flicker = rng.uniform(0, 1.5) * rng.normal(0, 1, (FRAMES, 1, 1, 1))
    film = film * rng.uniform(38, 55) + np.float32(brightness + flicker)
    return film.clip(0, 255).astype(np.uint8)


def write_video(path, film):
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 25, (SIZE, SIZE))
    if not writer.isOpened():
        raise OSError(f"{path} cannot be written: a full disk, or an OpenCV without MPEG-4?")
    for frame in film:
        writer.write(frame)
    writer.release()


def draw_faces(target, source, rng):
    """The target's faces, and for each manipulation the pictures that it takes its region from."""
    me = draw_person(target)
    other = draw_person(source)
    talk = np.abs(wave(rng, 0.5, 0.9) * wave(rng, 0.1, 0.3))
    other_talk = np.abs(wave(rng, 0.5, 0.9) * wave(rng, 0.1, 0.3))
    blink = np.clip(1.5 - np.abs(np.arange(FRAMES) - rng.integers(FRAMES)) / 1.5, 0, 1)

    faces = [draw_face(me, *pose) for pose in zip(talk, blink)]
    reenacted = [draw_face(me, *pose) for pose in zip(other_talk, blink)]
    transfer = np.float32(0.8 * (me["skin"] - other["skin"]))  # a swap adapts colours, not fully
    swapped = [draw_face(other, *pose) + transfer for pose in zip(talk, blink)]
    pasted = [draw_face(other, 0.5, shut) + transfer for shut in blink]
    return faces, {"DF": swapped, "F2F": reenacted, "FS": pasted, "NT": reenacted}


def draw_identity(target, source):
    """The five videos with `target`'s footage: {class: uint8 (FRAMES, SIZE, SIZE, 3), BGR}."""
    rng = np.random.default_rng([11, int(target)])
    faces, donors = draw_faces(target, source, rng)
    films = {"original": np.stack(faces)}
    for name in MANIPULATIONS:
        films[name] = manipulate(faces, donors[name], name, rng)

    # The scene: where the head is, a room behind it, light from one side.
    matrices = move_head(rng)
    outline = ellipse(32, 34, 29, 30, 0.5)
    heads = np.stack([cv2.warpAffine(outline, matrix, (SIZE, SIZE)) for matrix in matrices])
    room = rng.uniform(80, 170, (rng.integers(2, 6), rng.integers(2, 6), 3)).astype(np.float32)
    room = cv2.resize(room, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    light = rng.uniform(-0.5, 0.5) * (X[..., None] - 32)

    def place(faces):
        """Faces (FRAMES, FACE, FACE, 3) in the room, (FRAMES, SIZE, SIZE, 3)."""
        placed = [
            cv2.warpAffine(face, matrix, (SIZE, SIZE), borderMode=cv2.BORDER_REPLICATE)
            for face, matrix in zip(faces, matrices)
        ]
        return heads[..., None] * np.stack(placed) + (1 - heads[..., None]) * room

    # One scale for all five: a manipulated face must not shift the colours of the room.
    plain = place(films["original"] + light)
    mean, std = plain.mean((0, 1, 2)), plain.std()
    videos = {}
    for name, film in films.items():
        film = place(film + light + draw_shade(rng, name))
        videos[name] = camera((film - mean) / std, rng)
    return videos


def write_identity(job):
    root, target, source = job
    for name, video in draw_identity(target, source).items():
        if name == "original":
            path = f"original_sequences/youtube/c23/videos/{target}.mp4"
        else:
            path = f"manipulated_sequences/{MANIPULATIONS[name]}/c23/videos/{target}_{source}.mp4"
        write_video(root / path, video)


def must_draw(root):
    """False if root holds this version of the toy already. Refuses a folder that is not the toy."""
    note = root / "TOY.txt"
    if note.is_file():
        return note.read_text(errors="replace").split("\n")[0] != FIRST_LINE
    if root.exists() and any(root.iterdir()):
        raise FileExistsError(f"{root} is not the toy (it has no TOY.txt): move it away")
    return True


def make_toy(root, identities=(160, 24, 60), processes=None):
    """Draw the first ids of train, val and test (even numbers: pairs swap faces), always alike.

    Does nothing if root holds this version of the toy already, and replaces another version.
    """
    root = Path(root)
    if not must_draw(root):
        return

    ids = [SPLITS[split][:count] for split, count in zip(("train", "val", "test"), identities)]
    temporary = tempfile.TemporaryDirectory(
        prefix=f"{root.name}.{os.getpid()}.",
        suffix=".part",
        dir=root.parent,
        ignore_cleanup_errors=True,
    )
    with temporary as folder:  # gone after Ctrl-C or an error, too
        new = Path(folder) / "new"
        jobs = [(new, group[i], group[i ^ 1]) for group in ids for i in range(len(group))]
        count = processes or min(os.cpu_count(), 8)
        # Ctrl-C is for the main process: workers that took it, too, could hang at the end.
        ignore = (signal.SIGINT, signal.SIG_IGN)
        with ProcessPoolExecutor(count, initializer=signal.signal, initargs=ignore) as pool:
            for done, _ in enumerate(pool.map(write_identity, jobs, chunksize=4), 1):
                if done % 20 == 0 or done == len(jobs):
                    print(f"drawing the toy FF++: {done}/{len(jobs)} identities", file=sys.stderr)
        (new / "TOY.txt").write_text(f"{FIRST_LINE}\n{NOTE}\n")

        if must_draw(root):  # another process may have been quicker
            if root.exists():
                root.replace(Path(folder) / "old")
            new.replace(root)
