# SPDX-License-Identifier: MIT
"""Draw the README's pictures into .github: `python -m tests.pictures`.

results.svg    AUC of each run in tests/results.csv, on seen and on held-out fakes
toy.png        an original and its fakes, and the shade of their faces over time
cases.svg      the six cases (Figure 2), from train.py's MODES
"""

import textwrap
from pathlib import Path

import cv2
import numpy as np

from data import MANIPULATIONS
from eval import LEARNED
from tests.results import CASES, read_csv
from tests.toy import FRAMES, SIZE, draw_identity
from train import MODES

FOLDER = Path(__file__).parents[1] / ".github"
STYLE = """<style>
text { font: 13px system-ui, "Segoe UI", "Noto Sans", Helvetica, Arial, sans-serif; fill: #1f2328 }
.title { font-weight: bold }
.mid { text-anchor: middle }
.end { text-anchor: end }
.soft { fill: #59636e }
.box { fill: #f6f8fa; stroke: #848d97 }
.line, .dash { fill: none; stroke: #848d97; stroke-width: 1.5 }
.dash { stroke-dasharray: 5 4 }
.ce, .contrast, .stop { fill: none; stroke-width: 3.5 }
.ce { stroke: #c2410c }
.contrast { stroke: #0969da }
.stop { stroke: #1f2328 }
.line-head { fill: #848d97 }
.ce-head { fill: #c2410c }
.contrast-head { fill: #0969da }
circle { fill-opacity: 0.6; stroke-width: 1.5 }
.failed { fill-opacity: 0 }
.DF { fill: #0072b2; stroke: #0072b2 }
.F2F { fill: #d55e00; stroke: #d55e00 }
.FS { fill: #009e73; stroke: #009e73 }
.NT { fill: #b8529b; stroke: #b8529b }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc }
.soft { fill: #a9b4c0 }
.box { fill: #161b22; stroke: #7d8590 }
.ce { stroke: #ff9a52 }
.contrast { stroke: #58a6ff }
.stop { stroke: #f0f6fc }
.ce-head { fill: #ff9a52 }
.contrast-head { fill: #58a6ff }
.DF { fill: #56b4e9; stroke: #56b4e9 }
.F2F { fill: #ff9a52; stroke: #ff9a52 }
.FS { fill: #3fcf9f; stroke: #3fcf9f }
.NT { fill: #e39bd0; stroke: #e39bd0 }
}
</style>"""


# --- SVG as text ---------------------------------------------------------------------------------


def svg(width, height, title, shapes):
    first = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
        f"<title>{title}</title>"
    )
    return "\n".join([first, STYLE, *shapes, "</svg>\n"])


def text(x, y, words, style=""):
    return f'<text x="{x:g}" y="{y:g}" class="{style}">{words}</text>'


def box(x, y, width, height):
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="4" class="box"/>'


def line(x1, y1, x2, y2, style="line"):
    return f'<path d="M{x1:g} {y1:g}L{x2:g} {y2:g}" class="{style}"/>'


def arrow(x1, x2, y, style="line"):
    """A horizontal arrow from x1 to x2: forward ("line") or a gradient ("ce", "contrast")."""
    size = 4 if style == "line" else 6
    base = x2 - 10 * np.sign(x2 - x1)  # where the arrowhead begins
    head = f'<path d="M{base:g} {y - size}L{x2:g} {y}L{base:g} {y + size}Z" class="{style}-head"/>'
    return line(x1, y, base, y, style) + head


# --- results.svg ---------------------------------------------------------------------------------

PLOT = 160  # side of a plot, in pixels
LOWEST = 20  # AUC in % at a plot's lower left corner


def draw_results(rows):
    """A plot per case, a dot per run: AUC on seen fakes (x) and on held-out fakes (y)."""
    shapes = [
        text(
            50,
            20,
            "TOY data, a dot per run: does the detector find a kind of fake it was not trained on?",
            "title",
        )
    ]
    for index, case in enumerate(CASES):
        x = 50 + 210 * (index % 4)
        y = 84 + 250 * (index // 4)
        shapes += draw_plot(x, y, case, [row for row in rows if row["case"] == case])

    y = 554
    shapes.append(text(50, y + 4, "held out:"))
    for index, name in enumerate(MANIPULATIONS):
        shapes.append(f'<circle cx="{124 + 56 * index}" cy="{y}" r="5" class="{name}"/>')
        shapes.append(text(134 + 56 * index, y + 4, name))
    shapes.append(f'<circle cx="400" cy="{y}" r="5" class="NT failed"/>')
    shapes.append(
        text(412, y + 4, f"has not learned: best validation AUC below {100 * LEARNED:.0f} %")
    )
    y += 26
    shapes += [line(50, y, 72, y, "dash"), text(80, y + 4, "held-out as good as seen")]
    shapes += [line(390, y, 412, y), text(420, y + 4, "50: guessing")]
    title = "TOY data: AUC in % on seen fakes (x) and on held-out fakes (y), a dot per run"
    return svg(890, 596, title, shapes)


def draw_plot(x, y, case, rows):
    """The plot of a case's runs, its upper left corner at (x, y)."""

    def across(auc):
        return x + PLOT * (100 * auc - LOWEST) / (100 - LOWEST)

    def up(auc):
        return y + PLOT * (100 - 100 * auc) / (100 - LOWEST)

    yield box(x, y, PLOT, PLOT)
    yield line(x, y + PLOT, x + PLOT, y, "dash")
    for tick in (LOWEST / 100, 0.5, 1):
        yield line(across(tick), y, across(tick), y + PLOT)
        yield line(x, up(tick), x + PLOT, up(tick))
        yield text(across(tick), y + PLOT + 16, f"{100 * tick:.0f}", "mid soft")
        yield text(x - 6, up(tick) + 4, f"{100 * tick:.0f}", "end soft")

    for index, words in enumerate(reversed(textwrap.wrap(CASES[case], 24))):
        yield text(x, y - 10 - 17 * index, words)
    yield text(x + PLOT / 2, y + PLOT + 32, "AUC seen, %", "mid soft")
    yield (
        f'<text transform="translate({x - 32} {y + PLOT // 2}) rotate(-90)" class="mid soft">'
        "AUC held-out, %</text>"
    )
    for row in rows:
        failed = " failed" if row["validation_auc"] < LEARNED else ""
        cx, cy = across(row["seen_auc"]), up(row["heldout_auc"])
        yield f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="4" class="{row["holdout"]}{failed}"/>'


# --- toy.png -------------------------------------------------------------------------------------

BLUE = (178, 114, 0)  # BGR
TILE = 3 * SIZE  # side of a frame in the picture, in pixels
SHOWN = 3  # frames per row
LABELS = {
    "original": "original",
    "DF": "DF: no grain",
    "F2F": "F2F: colour cast",
    "FS": "FS: bright seam",
    "NT": "NT: checkerboard",
}


def put_text(image, words, x, y):
    cv2.putText(image, words, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (0, 0, 0), 1, cv2.LINE_AA)


def draw_toy():
    """A row per class: its first frames, and the face's grey level in all frames."""
    rows = []
    for name, video in draw_identity("953", "974").items():
        label = np.full((TILE, 250, 3), 255, np.uint8)
        put_text(label, LABELS[name], 10, TILE // 2)
        frames = [
            cv2.resize(frame, (TILE, TILE), interpolation=cv2.INTER_NEAREST)
            for frame in video[:SHOWN]
        ]
        rows.append(np.concatenate([label, *frames, draw_curve(video)], axis=1))

    titles = np.full((50, rows[0].shape[1], 3), 255, np.uint8)
    put_text(titles, f"frames 1 to {SHOWN}", 250, 32)
    put_text(titles, f"shade of the face, {FRAMES} frames", 290 + SHOWN * TILE, 32)
    return np.concatenate([titles, *rows])


def draw_curve(video):
    """A curve of the mean grey level in the middle of each frame, where the face is."""
    middle = slice(SIZE // 2 - 8, SIZE // 2 + 8)
    grey = video[:, middle, middle].mean(axis=(1, 2, 3))  # (FRAMES,)
    image = np.full((TILE, 480, 3), 255, np.uint8)
    cv2.rectangle(image, (50, 15), (470, TILE - 15), (200, 200, 200), 1)
    put_text(image, "255", 6, 24)
    put_text(image, "0", 32, TILE - 12)
    x = np.linspace(65, 455, FRAMES)
    y = np.interp(grey, (0, 255), (TILE - 15, 15))
    points = np.stack([x, y], axis=1).astype(np.int32)
    cv2.polylines(image, [points], False, BLUE, 2, cv2.LINE_AA)
    for point in points.tolist():
        cv2.circle(image, point, 4, BLUE, -1, cv2.LINE_AA)
    return image


# --- cases.svg -----------------------------------------------------------------------------------


def streams(flags):
    """(head, loss, kind of gradient, whether it is cut) for each loss of a case."""
    yield "binary classifier", "L_bin_ce", "ce", flags["bin_ce"] == "cut"
    if flags.get("multi_ce"):
        yield "multi-class classifier", "L_multi_ce", "ce", False
    if flags.get("bin_contrast"):
        yield "binary projection", "L_bin_contrast", "contrast", False
    if flags.get("multi_contrast"):
        yield "multi-class projection", "L_multi_contrast", "contrast", False


def stream_height(kind, cut):
    return 74 if kind == "contrast" or cut else 60  # 74: a line of text stands below the boxes


def case_height(flags):
    return 66 + sum(stream_height(kind, cut) for _, _, kind, cut in streams(flags))


def draw_stream(y, head, loss, kind, cut):
    """The path from the embedding to a loss, and its gradient's path back."""
    yield arrow(168, 240, y - 9)
    yield box(240, y - 21, 100, 42)
    for shift, word in zip((-4, 13), head.split()):
        yield text(290, y + shift, word, "mid")
    yield arrow(340, 362, y - 9)
    yield box(362, y - 21, 144, 42)
    yield text(434, y + 4, loss, "mid title")

    yield arrow(362, 340, y + 9, kind)
    if cut:
        yield line(240, y + 9, 205, y + 9, kind)
        yield line(205, y, 205, y + 18, "stop")
        yield text(204, y + 34, "detach()", "mid title")
    else:
        yield arrow(240, 142, y + 9, kind)
    if kind == "contrast":
        yield line(434, y + 21, 434, y + 29)
        yield text(506, y + 41, "queue of keys from the EMA encoder", "end soft")


def draw_case(name, flags, height):
    """The panel of a case: from the clip to its losses."""
    yield box(0, 0, 520, height)
    yield text(14, 27, name, "title")
    start = {"coclr": "starts from CoCLR", "kinetics400": "starts from Kinetics-400"}
    yield text(506, 27, start[flags["init"]], "end soft")

    y = 72
    for head, loss, kind, cut in streams(flags):
        yield from draw_stream(y, head, loss, kind, cut)
        y += stream_height(kind, cut)
    bottom = y - 40  # lower edge of the encoder's box
    yield box(14, 48, 40, 30)
    yield text(34, 67, "clip", "mid")
    yield arrow(54, 70, 63)
    yield box(70, 48, 72, bottom - 48)
    yield text(106, (48 + bottom) / 2 + 4, "S3D", "mid title")
    yield arrow(142, 160, 63)
    yield f'<path d="M164 48V{bottom}" class="line" style="stroke-width:8"/>'
    yield text(164, bottom + 18, "embedding", "mid soft")


def draw_cases():
    """A panel per case, two in a row, and what the arrows mean."""
    shapes = []
    cases = [(name, flags) for name, flags in MODES.items() if name != "dfdc_winner"]
    top = 1
    for first in range(0, len(cases), 2):
        pair = cases[first : first + 2]
        height = max(case_height(flags) for _, flags in pair)
        for column, (name, flags) in enumerate(pair):
            shapes.append(f'<g transform="translate({1 + 540 * column} {top})">')
            shapes += [*draw_case(name, flags, height), "</g>"]
        top += height + 16

    y = top + 14
    shapes += [arrow(20, 60, y), text(70, y + 4, "forward")]
    shapes += [arrow(240, 190, y, "ce"), text(250, y + 4, "gradient of cross-entropy")]
    shapes += [arrow(530, 480, y, "contrast"), text(540, y + 4, "gradient of contrastive loss")]
    shapes += [line(800, y, 765, y, "ce"), line(765, y - 9, 765, y + 9, "stop")]
    shapes.append(text(810, y + 4, "detach(): the gradient stops here"))
    return svg(1062, top + 32, "The six cases: which losses train the encoder", shapes)


def main():
    (FOLDER / "results.svg").write_text(draw_results(read_csv()), encoding="utf-8", newline="\n")
    (FOLDER / "cases.svg").write_text(draw_cases(), encoding="utf-8", newline="\n")
    cv2.imwrite(str(FOLDER / "toy.png"), draw_toy(), [cv2.IMWRITE_PNG_COMPRESSION, 9])


if __name__ == "__main__":
    main()
