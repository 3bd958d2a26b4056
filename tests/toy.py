# SPDX-License-Identifier: MIT
"""A toy FaceForensics++ for machines without the dataset: drawn talking heads, as real video files.

A manipulation puts another picture into a region of the face. It leaves three traces, in different
strength: the skin loses its grain, the colour does not quite match, and the region moves on the
head. The room must not tell the classes apart: the five videos of an identity share one
normalisation, and what the camera adds to the room is drawn per file, whatever the class.
"""
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from data import MANIPULATIONS, SPLITS

TOY_VERSION = "2"  # raise it whenever the pixels change: a toy of another version is replaced
FIRST_LINE = f"toy version {TOY_VERSION}"
NOTE = "It is drawn, not FaceForensics++: no number found on it says anything about real deepfakes."
FRAMES, SIZE, FACE = 24, 60, 64  # frames of a video, pixels of a video, pixels of a face as drawn
# Region (x, y, rx, ry), softness of its edge, lost grain, colour mismatch, motion in pixels.
TRACES = {
    "DF": ((32, 38, 18, 21), 1.5, 0.80, 18, 0.2),  # the source's face, the target's expression
    "F2F": ((32, 46, 18, 16), 1.5, 0.85, 22, 0.3),  # the target's face, the source's expression
    "FS": ((32, 38, 17, 20), 0.4, 0.55, 26, 0.3),  # the source's face, cut out and pasted
    "NT": ((32, 47, 17, 14), 1.5, 0.92, 24, 0.3)}  # the target's mouth, re-rendered
SHAPES = {"width": (19, 24), "eyes": (8.5, 11.5), "eye": (3, 4.2), "brow": (-10, 10),
          "nose": (5, 9), "mouth": (6.5, 10), "fringe": (6, 14)}
Y, X = np.mgrid[:FACE, :FACE].astype(np.float32)

def ellipse(x, y, rx, ry, soft):
    """An elliptic mask in 0..1, (FACE, FACE, 1)."""
    inside = (((X - x) / rx) ** 2 + ((Y - y) / ry) ** 2 < 1).astype(np.float32)
    return cv2.GaussianBlur(inside, (0, 0), soft)[..., None]

def draw_person(target):
    """How the person with this id looks: the same in every video they are in. Colours are BGR."""
    rng = np.random.default_rng([7, int(target)])
    person = {part: rng.uniform(*limits) for part, limits in SHAPES.items()}
    skin = rng.uniform(0.45, 1) * np.array([rng.uniform(105, 150), rng.uniform(140, 180), 225])
    person |= {"skin": skin, "lips": skin * [0.7, 0.6, 0.9], "iris": rng.uniform(30, 120, 3)}
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
    sway, zoom, turn = rng.uniform(0.4, 2.5), rng.uniform(0.72, 0.82), rng.uniform(0, 6)
    centre = SIZE / 2 + rng.uniform(-3, 3, 2)
    places = [cv2.getRotationMatrix2D((32, 32), turn * way, zoom) for way in wave(rng, 0.1, 0.3)]
    shifts = np.stack([sway * wave(rng, 0.1, 0.35), 0.6 * sway * wave(rng, 0.1, 0.35)], axis=1)
    for place, shift in zip(places, shifts):
        place[:, 2] += centre + shift - 32
    return places

def manipulate(faces, donors, rng, region, soft, lost, mismatch, motion):
    """Put a region of each donor's picture into each face, with the traces that this leaves."""
    mask = ellipse(*region, soft)
    tint = rng.choice([-1, 1]) * rng.uniform(0.7, 1.3) + rng.normal(0, 1 / 3, 3)
    tint = np.float32(mismatch * tint)
    manipulated = []
    for face, donor, (dx, dy) in zip(faces, donors, rng.normal(0, motion, (FRAMES, 2))):
        donor = (1 - lost) * donor + lost * cv2.GaussianBlur(donor, (0, 0), 2.2) + tint
        shift = np.float32([[1, 0, dx], [0, 1, dy]])
        donor = cv2.warpAffine(donor, shift, (FACE, FACE), borderMode=cv2.BORDER_REPLICATE)
        where = cv2.warpAffine(mask, shift, (FACE, FACE))[..., None]
        manipulated.append(where * donor + (1 - where) * face)
    return manipulated

def sharpness(film, heads):
    """The variance of the Laplacian inside the head (the Laplacian's mean is about 0)."""
    laplacian = np.stack([cv2.Laplacian(frame, cv2.CV_32F) for frame in film])
    return (heads * laplacian**2).sum() / heads.sum() / 3  # three channels

def camera(film, original, heads, rng):
    """Blur, noise, contrast, brightness and flicker, drawn per file; uint8."""
    blur = rng.uniform(0.3, 0.7)
    film = np.stack([cv2.GaussianBlur(frame, (0, 0), blur) for frame in film])
    original = np.stack([cv2.GaussianBlur(frame, (0, 0), blur) for frame in original])
    lost = max(0, sharpness(original, heads) - sharpness(film, heads))
    # Noise makes up for the sharpness that a manipulated head lost with its grain (a variance of v
    # adds 20 v to the Laplacian's). It stays inside the head, or the room would show the class.
    head_noise = (rng.uniform(0.03, 0.12) ** 2 + float(lost) / 20) ** 0.5
    noise = heads * head_noise + (1 - heads) * rng.uniform(0.04, 0.14)
    film = film + noise * rng.standard_normal(film.shape, np.float32)
    brightness = rng.uniform(90, 150) + rng.normal(0, 8, 3)
    brightness = brightness + rng.uniform(0, 4) * rng.normal(0, 1, (FRAMES, 1, 1, 1))  # flicker
    film = film * rng.uniform(35, 60) + np.float32(brightness)
    return film.clip(0, 255).astype(np.uint8)

def write_video(path, film):
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 25, (SIZE, SIZE))
    if not writer.isOpened():
        raise OSError(f"{path} cannot be written: a full disk, or an OpenCV without MPEG-4?")
    for frame in film:
        writer.write(frame)
    writer.release()

def render_identity(job):
    """Write the five videos with `target`'s footage: the original and its four manipulations."""
    root, target, source = job
    rng = np.random.default_rng([11, int(target)])
    me, other = draw_person(target), draw_person(source)
    talk = np.abs(wave(rng, 0.5, 0.9) * wave(rng, 0.1, 0.3))
    other_talk = np.abs(wave(rng, 0.5, 0.9) * wave(rng, 0.1, 0.3))
    blink = np.clip(1.5 - np.abs(np.arange(FRAMES) - rng.integers(FRAMES)) / 1.5, 0, 1)
    faces = [draw_face(me, *pose) for pose in zip(talk, blink)]
    reenacted = [draw_face(me, *pose) for pose in zip(other_talk, blink)]
    transfer = np.float32(0.8 * (me["skin"] - other["skin"]))  # a swap adapts colours, not fully
    swapped = [draw_face(other, *pose) + transfer for pose in zip(talk, blink)]
    pasted = [draw_face(other, 0.5, shut) + transfer for shut in blink]
    donors = {"DF": swapped, "F2F": reenacted, "FS": pasted, "NT": reenacted}

    places, outline = move_head(rng), ellipse(32, 34, 29, 30, 0.5)
    heads = np.stack([cv2.warpAffine(outline, place, (SIZE, SIZE)) for place in places])[..., None]
    room = rng.uniform(80, 170, (rng.integers(2, 6), rng.integers(2, 6), 3)).astype(np.float32)
    room = cv2.resize(room, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    light = rng.uniform(-0.5, 0.5) * (X[..., None] - 32)

    def film(faces):  # (FRAMES, SIZE, SIZE, 3)
        faces = [cv2.warpAffine(face + light, place, (SIZE, SIZE), borderMode=cv2.BORDER_REPLICATE)
                 for face, place in zip(faces, places)]
        return heads * faces + (1 - heads) * room

    original = film(faces)
    # Statistics of its own would let a manipulated face shift the colours of the room.
    mean, std = original.mean((0, 1, 2)), original.std()
    original = (original - mean) / std
    videos = {f"original_sequences/youtube/c23/videos/{target}.mp4": original}
    for name, folder in MANIPULATIONS.items():
        path = f"manipulated_sequences/{folder}/c23/videos/{target}_{source}.mp4"
        videos[path] = (film(manipulate(faces, donors[name], rng, *TRACES[name])) - mean) / std
    for path, video in videos.items():
        write_video(root / path, camera(video, original, heads, rng))

def must_render(root):
    """False if root holds this version of the toy already. Refuses a folder that is not the toy."""
    note = root / "TOY.txt"
    if note.is_file():
        return note.read_text(errors="replace").split("\n")[0] != FIRST_LINE
    if root.exists() and any(root.iterdir()):
        raise FileExistsError(f"{root} is not the toy (it has no TOY.txt): move it away")
    return True

def make_toy(root, identities=(160, 24, 60), processes=None):
    """Render the first ids of train, val and test (even numbers: pairs swap faces), always alike.

    Does nothing if root holds this version of the toy already, and replaces another version.
    """
    root = Path(root)
    if not must_render(root):
        return
    ids = [SPLITS[split][:count] for split, count in zip(("train", "val", "test"), identities)]
    temporary = tempfile.TemporaryDirectory(
        prefix=f"{root.name}.{os.getpid()}.", suffix=".part", dir=root.parent,
        ignore_cleanup_errors=True)
    with temporary as folder:  # gone after Ctrl-C or an error, too
        new = Path(folder) / "new"
        jobs = [(new, group[i], group[i ^ 1]) for group in ids for i in range(len(group))]
        with ProcessPoolExecutor(processes or min(os.cpu_count(), 8)) as pool:
            for done, _ in enumerate(pool.map(render_identity, jobs, chunksize=4), 1):
                if done % 20 == 0 or done == len(jobs):
                    print(f"rendering the toy FF++: {done}/{len(jobs)} identities", file=sys.stderr)
        (new / "TOY.txt").write_text(f"{FIRST_LINE}\n{NOTE}\n")
        if must_render(root):  # another process may have been quicker
            if root.exists():
                root.replace(Path(folder) / "old")
            new.replace(root)
