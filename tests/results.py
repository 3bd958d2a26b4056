# SPDX-License-Identifier: MIT
"""Print the README's tables of results on the toy, with 95 % intervals.

    python -m tests.results runs/toy runs/toy_longer    # reads the runs, writes tests/results.csv
    python -m tests.results                             # reads tests/results.csv

Two cases are compared over pairs of runs with the same hold-out and seed.
"""

import csv
import json
import sys
from pathlib import Path

import numpy as np

from data import MANIPULATIONS
from eval import LEARNED, PAPER, load, save, seen_and_gap, table
from train import TOY

CSV = Path(__file__).with_name("results.csv")
CASES = {  # in the order of the tables; `baseline` equals `bin_ce` on the toy
    "bin_ce": "Binary CE",
    "bin_contrastive": "Binary Contrastive",
    "bin_ce_contrastive": "Binary CE + Contrastive",
    "bin_ce_multi_ce": "Binary CE + Multi CE",
    "bin_contrastive_multi_contrastive": "Binary Contrastive + Multi Contrastive",
    "dfdc_winner": "DFDC Winner (sees single frames)",
    "bin_ce_still": "Binary CE, trained and tested without motion",
    "bin_ce_still_longer": "The same, in three times the epochs",
}
QUESTIONS = [  # (case, the case to compare it with, the paper's words in 3.2 or 4)
    ("bin_ce_multi_ce", "bin_ce", '"Yes in certain cases, but narrowly"'),
    (
        "bin_contrastive_multi_contrastive",
        "bin_contrastive",
        '"significantly degrades the results"',
    ),
    ("bin_ce_contrastive", "bin_ce", '"worse than training with a single type of loss"'),
    ("bin_ce_contrastive", "bin_contrastive", "the same"),
    ("bin_contrastive", "bin_ce", 'better "on Deepfakes and FaceSwap", worse "on the other two"'),
    ("bin_ce", "dfdc_winner", 'video "greatly helps in generalizability"'),
    ("bin_ce", "bin_ce_still", "-"),
    ("bin_ce", "bin_ce_still_longer", "-"),
]
TWO_LOSSES = {  # {case: the two losses that reach the encoder}
    "bin_ce_contrastive": ("bin_ce", "bin_contrast"),
    "bin_ce_multi_ce": ("bin_ce", "multi_ce"),
    "bin_contrastive_multi_contrastive": ("bin_contrast", "multi_contrast"),
}
DRAWS = 10_000  # bootstrap samples


# --- The runs ------------------------------------------------------------------------------------


def read_run(path):
    """A run's row of results.csv, from its results.json and, for two losses, its explain.json."""
    results = load(path)
    config = results["config"]
    longer = "_longer" if config["epochs"] == 3 * TOY["epochs"] else ""
    row = {"case": config["case"] + longer, "holdout": config["holdout"], "seed": config["seed"]}
    row["validation_auc"] = results["val_auc"]
    row["seen_auc"] = seen_and_gap(results, "auc")[0]
    row["heldout_auc"] = results["metrics"]["auc"]
    row["heldout_accuracy"] = results["metrics"]["accuracy"]
    row["still_auc"] = results["still"]["auc"] if "still" in results else np.nan

    row.update(cosine=np.nan, first_norm=np.nan, second_norm=np.nan)
    if row["case"] in TWO_LOSSES:
        explained = json.loads(path.with_name("explain.json").read_text())
        first, second = TWO_LOSSES[row["case"]]
        row["first_norm"] = float(np.mean(explained["norms"][first]))
        row["second_norm"] = float(np.mean(explained["norms"][second]))
        (cosines,) = explained["cosines"].values()
        row["cosine"] = float(np.mean(cosines))
    # Five digits, so that the file stays readable
    return {name: float(f"{x:.5g}") if isinstance(x, float) else x for name, x in row.items()}


def read_runs(folders):
    """The rows of all runs in these folders. Raises OSError, ValueError."""
    rows = []
    for folder in folders:
        _, left_out = table(folder)  # refuses runs that cannot be compared
        if left_out:
            raise ValueError(left_out[0])
        rows += [read_run(path) for path in sorted(Path(folder).glob("*/results.json"))]
    return rows


def check(rows):
    """Raises ValueError unless every case has one run for each hold-out and seed."""
    seeds = sorted({row["seed"] for row in rows})
    expected = [(holdout, seed) for holdout in MANIPULATIONS for seed in seeds]
    for case in CASES:
        pairs = [(row["holdout"], row["seed"]) for row in rows if row["case"] == case]
        if sorted(pairs) != sorted(expected):
            number = f"{len(pairs)} runs, expected {len(expected)}"
            raise ValueError(f"{case}: {number}, one for each hold-out and seed")


def read_csv():
    """The rows of results.csv, checked."""
    with open(CSV, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        for name in row.keys() - {"case", "holdout"}:
            row[name] = float(row[name])
    check(rows)
    return rows


def column(rows, case, name, holdouts=tuple(MANIPULATIONS)):
    """A column of a case's runs with these hold-outs, (N,). Sorted by hold-out and seed, so that
    the columns of two cases pair up."""
    runs = [row for row in rows if row["case"] == case and row["holdout"] in holdouts]
    runs.sort(key=lambda row: (row["holdout"], row["seed"]))
    return np.array([row[name] for row in runs])


# --- The tables ----------------------------------------------------------------------------------


def interval(numbers):
    """The 95 % bootstrap interval of the mean of numbers (N,)."""
    drawn = np.random.default_rng(0).choice(numbers, (DRAWS, len(numbers)))
    return np.percentile(drawn.mean(axis=1), [2.5, 97.5])


def mean_and_interval(numbers, digits=1):
    texts = []
    for x in (numbers.mean(), *interval(numbers)):
        texts.append(f"{round(x, digits) + 0:+.{digits}f}")  # -0.0 + 0 is 0.0
    mean, low, high = texts
    return f"{mean} ({low} to {high})"


def differences(rows, case, other, name="heldout_auc"):
    """The numbers of a case minus another's, in points, (N,)."""
    return 100 * (column(rows, case, name) - column(rows, other, name))


def answer(rows, case, other):
    """What the toy says about held-out AUC; open if most runs of a case have not learned."""
    unlearned = 0
    for name in (case, other):
        failed = column(rows, name, "validation_auc") < LEARNED
        if failed.mean() > 0.5:
            return f"open: `{name}` has not learned"
        unlearned += failed.sum()

    low, high = interval(differences(rows, case, other)).round(1)  # as printed
    verdict = "no difference seen"
    if low > 0:
        verdict = "better"
    if high < 0:
        verdict = "worse"
    return f"{verdict} ({unlearned} runs have not learned)" if unlearned else verdict


def question_lines(rows):
    toy = "toy: accuracy | toy: AUC (95 % interval) | toy: answer"
    yield f"| comparison | paper: accuracy | paper: words | {toy} |"
    yield "|---|---|---|---|---|---|"
    for case, other, words in QUESTIONS:
        paper = "-"
        if case in PAPER and other in PAPER:
            paper = f"{np.mean(PAPER[case][1:5]) - np.mean(PAPER[other][1:5]):+.1f}"  # Table 2
        accuracy = differences(rows, case, other, "heldout_accuracy").mean()
        auc = mean_and_interval(differences(rows, case, other))
        yield (
            f"| `{case}` minus `{other}` | {paper} | {words} | {accuracy:+.1f} | {auc} | "
            f"{answer(rows, case, other)} |"
        )


def case_lines(rows):
    yield (
        f"| case | seen | held-out: {' | '.join(MANIPULATIONS)} | mean | accuracy | "
        "seen minus held-out (95 % interval) | without motion | not learned |"
    )
    yield "|---" * 11 + "|"
    for case in CASES:
        seen = 100 * column(rows, case, "seen_auc")
        heldout = 100 * column(rows, case, "heldout_auc")
        means = [seen.mean()]
        for holdout in MANIPULATIONS:
            means.append(100 * column(rows, case, "heldout_auc", [holdout]).mean())
        means += [heldout.mean(), 100 * column(rows, case, "heldout_accuracy").mean()]

        paused = 100 * column(rows, case, "still_auc").mean()  # nan: single frames or still clips
        still = "-" if np.isnan(paused) else f"{paused:.1f}"
        failed = (column(rows, case, "validation_auc") < LEARNED).sum()
        yield (
            f"| `{case}` | {' | '.join(f'{mean:.1f}' for mean in means)} | "
            f"{mean_and_interval(seen - heldout)} | {still} | {failed} of {len(seen)} |"
        )


def gradient_lines(rows):
    yield "| case | cosine (95 % interval) | runs below 0 | median norms |"
    yield "|---|---|---|---|"
    for case, (first, second) in TWO_LOSSES.items():
        cosines = column(rows, case, "cosine")
        first_norm = np.median(column(rows, case, "first_norm"))
        second_norm = np.median(column(rows, case, "second_norm"))
        yield (
            f"| `{case}` | {mean_and_interval(cosines, 2)} | "
            f"{(cosines < 0).sum()} of {len(cosines)} | "
            f"L_{first} {first_norm:.3g}, L_{second} {second_norm:.3g} |"
        )


def control_line(rows):
    """The runs without motion that have learned the seen manipulations: do they find the other?"""
    case = "bin_ce_still_longer"
    runs = [row for row in rows if row["case"] == case]
    learned = [row for row in runs if row["validation_auc"] >= LEARNED]
    seen = []
    heldout = []
    for holdout in MANIPULATIONS:  # each counts the same, however many of its runs have learned
        seen.append(100 * column(learned, case, "seen_auc", [holdout]).mean())
        heldout.append(100 * column(learned, case, "heldout_auc", [holdout]).mean())
    aucs = f"AUC {np.mean(seen):.1f} on seen, {np.mean(heldout):.1f} on held-out fakes"
    epochs = 3 * TOY["epochs"]
    return f"of {len(runs)} `{case}` runs ({epochs} epochs), {len(learned)} have learned: {aucs}"


def main():
    try:
        if len(sys.argv) > 1:
            rows = read_runs(sys.argv[1:])
            check(rows)
            save(rows, CSV)
        rows = read_csv()
    except (OSError, ValueError) as error:
        sys.exit(f"results.py: {error}")
    for lines in (question_lines, case_lines, gradient_lines):
        print("\n".join(lines(rows)), end="\n\n")
    print(control_line(rows))


if __name__ == "__main__":
    main()
