# SPDX-License-Identifier: MIT
"""The README's statistics."""

import json
import random
import shutil

import numpy as np
import pytest

from data import MANIPULATIONS
from tests import results


def rows_of(case, heldout_aucs, validation_auc=1):
    """Rows of results.csv: these held-out AUCs in the order of hold-outs, then seeds."""
    keys = [(holdout, seed) for holdout in MANIPULATIONS for seed in range(5)]
    others = dict(validation_auc=validation_auc, seen_auc=1, still_auc=0.5, heldout_accuracy=0.5)
    return [
        dict(case=case, holdout=holdout, seed=seed, heldout_auc=auc, **others)
        for (holdout, seed), auc in zip(keys, heldout_aucs, strict=True)
    ]


AUCS = np.random.default_rng(1).uniform(0.5, 0.9, 20)
NOISE = np.tile([0.03, -0.03], 10)


@pytest.mark.parametrize(
    "others, text, answer",
    [
        (AUCS - 0.02, "+2.0 (+2.0 to +2.0)", "better"),
        (AUCS + 0.02, "-2.0 (-2.0 to -2.0)", "worse"),
        (AUCS + NOISE, "+0.0 (-1.2 to +1.2)", "no difference seen"),
    ],
)
def test_cases_are_compared_in_pairs_of_the_same_holdout_and_seed(others, text, answer):
    rows = rows_of("a", AUCS) + rows_of("b", others)
    random.Random(0).shuffle(rows)
    assert results.mean_and_interval(results.differences(rows, "a", "b")) == text
    assert results.answer(rows, "a", "b") == answer


def test_a_comparison_with_a_case_that_has_not_learned_stays_open():
    rows = rows_of("a", AUCS) + rows_of("b", AUCS - 0.3, validation_auc=0.7)
    assert results.answer(rows, "a", "b") == "open: `b` has not learned"
    assert results.answer(rows, "b", "a") == "open: `b` has not learned"
    for row in rows[20:30]:  # half of the runs of b
        row["validation_auc"] = 0.9
    assert results.answer(rows, "a", "b") == "better (10 runs have not learned)"


def test_a_table_shows_each_holdout_in_its_column(monkeypatch):
    monkeypatch.setattr(results, "CASES", {"a": "A"})
    *_, line = results.case_lines(rows_of("a", np.repeat([0.1, 0.2, 0.3, 0.4], 5)))
    assert "| 10.0 | 20.0 | 30.0 | 40.0 | 25.0 |" in line


def test_numbers_of_a_run_come_from_its_results_and_its_explain_json(finished, tmp_path):
    run = shutil.copytree(finished[0], tmp_path / "a")
    gradients = {
        "norms": {"bin_contrast": [1, 2], "multi_contrast": [3, 5]},
        "cosines": {"both": [0.5, -1]},
    }
    (run / "explain.json").write_text(json.dumps(gradients))
    saved = json.loads((run / "results.json").read_text())
    expected = {
        "validation_auc": saved["val_auc"],
        "seen_auc": np.mean([measured["auc"] for measured in saved["seen"].values()]),
        "heldout_auc": saved["metrics"]["auc"],
        "heldout_accuracy": saved["metrics"]["accuracy"],
        "still_auc": saved["still"]["auc"],
        "first_norm": 1.5,
        "second_norm": 4,
        "cosine": -0.25,
    }
    (row,) = results.read_runs([tmp_path])
    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert (row["holdout"], row["seed"]) == ("NT", 3)

    saved["config"]["epochs"] = 18
    (run / "results.json").write_text(json.dumps(saved))
    assert results.read_run(run / "results.json")["case"] == f"{row['case']}_longer"


def test_incomplete_runs_are_refused_and_replace_nothing(finished, tmp_path, monkeypatch):
    shutil.copytree(finished[0], tmp_path / "a")
    monkeypatch.setattr(results, "read_run", lambda path: rows_of("bin_ce", AUCS)[0])
    monkeypatch.setattr(results, "CSV", tmp_path / "results.csv")
    monkeypatch.setattr("sys.argv", ["results", str(tmp_path)])
    with pytest.raises(SystemExit, match="bin_ce: 1 runs, expected 4"):
        results.main()
    assert not results.CSV.exists()
