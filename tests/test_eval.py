# SPDX-License-Identifier: MIT
import json

import numpy as np
import pytest
import torch

import eval as evaluation
from data import FFPP
from heads import Classifier
from s3d import S3D

# (labels, scores) -> accuracy, AUC, average precision, EER: worked out by hand; AUC and AP as scikit-learn defines them
CASES = {
    "perfect": ([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9], 1.0, 1.0, 1.0, 0.0),
    "inverted": ([0, 0, 1, 1], [0.9, 0.8, 0.2, 0.1], 0.0, 0.0, 1 / 2 * 1 / 3 + 1 / 2 * 2 / 4, 1.0),
    "constant": ([0, 0, 1, 1], [0.5] * 4, 0.5, 0.5, 0.5, 0.5),
    "one slip": ([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], 0.75, 0.75, 1 / 2 * 1 + 1 / 2 * 2 / 3, 0.5),
    "ties": ([0, 1, 0, 1, 1], [0.3, 0.3, 0.6, 0.6, 0.9], 3 / 5, (0.5 + 1 + 1 + 0 + 0.5 + 1) / 6, 1 / 3 * 1 + 1 / 3 * 2 / 3 + 1 / 3 * 3 / 5, 0.4),
    "3 to 1": ([0, 1, 1, 1], [0.7, 0.6, 0.8, 0.9], 0.75, 2 / 3, 1 / 3 + 1 / 3 + 1 / 3 * 3 / 4, 1 / 3),
}


@pytest.mark.parametrize("name", CASES)
def test_metrics_on_cases_worked_out_by_hand(name):
    labels, scores, accuracy, auc, ap, eer = CASES[name]
    found = evaluation.metrics(labels, scores)
    assert (found["accuracy"], found["auc"], found["ap"]) == pytest.approx((accuracy, auc, ap))
    assert found["eer"] == pytest.approx(eer)


def test_per_class_accuracies_are_those_of_each_class():
    found = evaluation.metrics([0, 0, 0, 1, 1], [0.1, 0.2, 0.9, 0.8, 0.3])
    assert (found["accuracy_real"], found["accuracy_fake"]) == (2 / 3, 1 / 2)


def test_auc_is_the_share_of_pairs_in_the_right_order():
    rng = np.random.default_rng(0)
    for _ in range(20):
        labels, scores = rng.integers(0, 2, 40), rng.integers(0, 9, 40) / 8
        pairs = [(f > o) + (f == o) / 2 for f in scores[labels == 1] for o in scores[labels == 0]]
        assert evaluation.auc(labels, scores) == pytest.approx(np.mean(pairs))


def test_one_class_alone_is_an_error():
    for labels in ([0, 0], [1, 1]):
        with pytest.raises(ValueError, match="originals and fakes"):
            evaluation.metrics(labels, [0.1, 0.2])


def test_bootstrap_intervals_cover_the_truth_about_as_often_as_they_say():
    rng, hits = np.random.default_rng(0), 0
    labels = np.repeat([0, 1], 60)
    for i in range(100):  # right with probability 0.8
        scores = np.where(rng.random(120) < 0.8, labels, 1 - labels) * 0.8 + 0.1
        low, high = evaluation.intervals(labels, scores, draws=200, seed=i)["accuracy"]
        hits += low <= 0.8 <= high
    assert 85 <= hits <= 100


def test_every_video_is_scored_once_from_all_its_clips(toy, monkeypatch):
    monkeypatch.chdir(toy)
    torch.manual_seed(0)
    encoder, videos = S3D(0.1), FFPP("toy_ffpp", "test", "DF", frames=8, size=32, clips=3, crop="frame")
    classifier = Classifier(encoder.dim, 2)
    encoder.train()
    rows, unreadable, embeddings = evaluation.evaluate(encoder, classifier, videos, batch_size=5, workers=1)  # 24 clips: the last batch is not full
    assert encoder.training and classifier.training
    assert [row["path"] for row in rows] == [str(path) for path, _, _ in videos.videos] and len(rows) == 8
    assert not unreadable and embeddings.shape == (8, encoder.dim)
    assert all(len(row["clips"]) == 3 and row["score"] == pytest.approx(np.mean(row["clips"])) for row in rows)
    encoder.eval(), classifier.eval()
    with torch.no_grad():
        expected = [classifier(encoder(videos[i][0][None])).softmax(1)[0, 1].item() for i in range(24)]
    assert [p for row in rows for p in row["clips"]] == pytest.approx(expected, abs=1e-5)


def test_a_wrong_checkpoint_is_one_sentence(toy, run, tmp_path):
    (tmp_path / "text.pt").write_text("hello")
    torch.save({"a": 1}, tmp_path / "other.pt")
    for name in ("text.pt", "other.pt", "nowhere.pt"):
        result = run(toy, "eval.py", tmp_path / name)
        assert result.returncode != 0 and name in result.stderr and "Traceback" not in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
