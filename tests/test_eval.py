# SPDX-License-Identifier: MIT
import json
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import eval as evaluation
from data import FFPP
from heads import Classifier
from s3d import S3D

H264 = Path(__file__).parent / "fixtures" / "h264_bframes.mp4"
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
    rows, unreadable, embeddings = evaluation.evaluate(encoder, classifier, videos, batch_size=5, workers=1, keep_embeddings=True)  # 24 clips: the last batch is not full
    assert encoder.training and classifier.training
    assert [row["path"] for row in rows] == [str(path) for path, _, _ in videos.videos] and len(rows) == 8
    assert not unreadable and embeddings.shape == (8, encoder.dim)
    assert all(len(row["clips"]) == 3 and row["score"] == pytest.approx(np.mean(row["clips"])) for row in rows)
    encoder.eval(), classifier.eval()
    with torch.no_grad():
        expected = [classifier(encoder(videos[i][0][None])).softmax(1)[0, 1].item() for i in range(24)]
    assert [p for row in rows for p in row["clips"]] == pytest.approx(expected, abs=1e-5)


def test_a_wrong_checkpoint_is_one_sentence(toy, refused, tmp_path):
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "empty.pt").touch()
    torch.save({"a": 1}, tmp_path / "other.pt")
    for name in ("text.pt", "empty.pt", "other.pt", "nowhere.pt"):
        assert name in refused(toy, evaluation.main, tmp_path / name)


# --- The commands on a finished run ---

def test_a_video_that_cannot_be_read_is_named_counted_and_tells_by_the_exit_status(finished, run, tmp_path):
    folder, _, _ = finished
    shutil.copytree(folder.parent.parent / "toy_ffpp", tmp_path / "toy_ffpp")
    bad = next((tmp_path / "toy_ffpp" / "manipulated_sequences" / "NeuralTextures" / "c23" / "videos").glob("953_*.mp4"))
    bad.write_text("no video")
    result = run(tmp_path, "eval.py", folder / "best.pt", "--out", "results.json")
    assert result.returncode != 0 and bad.name in result.stderr and "Traceback" not in result.stderr and "NOT SCORED" in result.stdout
    assert "TOY" in result.stdout
    (tmp_path / "toy_ffpp" / "TOY.txt").unlink()  # what was trained on the toy stays a toy
    assert "TOY" in run(tmp_path, "eval.py", folder / "best.pt", "--out", "results.json").stdout
    results = json.loads((tmp_path / "results.json").read_text())
    assert [Path(p).name for p in results["unreadable"]] == [bad.name] and len(results["videos"]) == 19


def test_pictures_are_written_next_to_the_checkpoint(finished, run, tmp_path):
    folder, _, _ = finished
    shutil.copytree(folder, tmp_path / "run")
    result = run(folder.parent.parent, "eval.py", tmp_path / "run" / "best.pt", "--pictures")
    assert result.returncode == 0, result.stderr
    for name in ("classes", "mistakes", "map"):
        assert cv2.imread(str(tmp_path / "run" / f"{name}.png")).std() > 5
    result = run(tmp_path, "eval.py", "--roc", "run", folder, "--out", "roc.png")
    assert result.returncode == 0 and cv2.imread(str(tmp_path / "roc.png")).std() > 5


def test_own_videos_get_scores_with_spread_timeline_picture_and_a_warning(finished, run, tmp_path):
    folder, _, _ = finished
    result = run(tmp_path, "eval.py", folder / "best.pt", "--video", H264, tmp_path / "gone.mp4", "--clips", "5")
    assert result.returncode != 0 and "gone.mp4" in result.stderr and "Traceback" not in result.stderr
    for words in ("fake score 0.", "spread over 5 clips", "NO FACE FOUND", "not a verdict", "TOY"):
        assert words in result.stdout, words
    assert cv2.imread(str(tmp_path / "video_scores" / "1_h264_bframes.png")) is not None
    result = run(tmp_path, "eval.py", folder / "best.pt", "--video", H264, "--clips", "5", "--json")
    video, = json.loads(result.stdout)["videos"]
    assert len(video["clips"]) == 5 and video["score"] == pytest.approx(np.mean(video["clips"])) and video["face"] is None


def test_another_crop_than_the_trained_one_is_refused(finished, refused, toy):
    folder, _, _ = finished
    assert "--crop frame" in refused(toy, evaluation.main, folder / "best.pt", "--crop", "frame")


@pytest.mark.parametrize("flags, named", [(["--json"], "--json"), (["--pictures", "--video", "a.mp4"], "--pictures"), (["--real", "."], "--fake"),
                                          (["--video", "a.mp4", "--table", "."], "exclude")])
def test_flags_that_would_do_nothing_are_refused(refused, toy, flags, named):
    assert named in refused(toy, evaluation.main, "best.pt", *flags)


def test_another_dataset_is_two_folders(finished, run, refused, toy, tmp_path):
    folder, _, _ = finished
    result = run(toy, "eval.py", folder / "best.pt", "--real", "toy_ffpp/original_sequences", "--fake", "toy_ffpp/manipulated_sequences/FaceSwap",
                 "--out", tmp_path / "new" / "other.json")
    assert result.returncode == 0, result.stderr
    assert "of 12 videos of toy_ffpp/original_sequences" in result.stdout  # faces found
    other = json.loads((tmp_path / "new" / "other.json").read_text())
    assert [sum(v["label"] == label for v in other["videos"]) for label in (0, 1)] == [12, 12] and 0 <= other["metrics"]["auc"] <= 1
    assert "holds no video" in refused(toy, evaluation.main, folder / "best.pt", "--real", tmp_path, "--fake", tmp_path)


def fake_run(folder, mode, holdout, seed, accuracy, data="somewhere", **changed):
    config = {"mode": mode, "holdout": holdout, "seed": seed, "data": data, "compression": "c23", "frames": 32, "size": 128, "crop": "face", **changed}
    videos = [{"path": f"{i}.mp4", "class": name, "label": int(name != "original"), "score": 0.5, "clips": [0.5]} for name in ("original", holdout) for i in range(140)]
    folder = folder / f"{mode}_{holdout}_{seed}_{data}_{len(changed)}"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"config": config, "protocol": {"clips": 4, "frames": config["frames"], "size": config["size"], "crop": "face"},
                                                    "metrics": {"accuracy": accuracy, "auc": accuracy}, "videos": videos}))


def test_the_table_averages_over_seeds_and_stands_beside_the_papers(tmp_path):
    for holdout, accuracies in {"DF": (0.80, 0.90), "F2F": (0.70, 0.70), "FS": (0.60, 0.80), "NT": (0.50, 0.70)}.items():
        for seed, accuracy in enumerate(accuracies):
            fake_run(tmp_path, "bin_ce", holdout, seed, accuracy)
    fake_run(tmp_path, "bin_contrastive", "DF", 0, 0.77)
    text = evaluation.table(tmp_path)
    row = lambda label: next(line for line in text.splitlines() if line.startswith(f"| {label} |"))
    assert row("Binary CE") == ("| Binary CE | 85.0 ± 7.1 (2) [80.08] | 70.0 ± 0.0 (2) [73.44] | 70.0 ± 14.1 (2) [79.30] | 60.0 ± 14.1 (2) [75.78] "
                                "| 71.2 [77.15] | 0.713 |")
    assert row("Binary Contrastive").startswith("| Binary Contrastive | 77.0 (1) [84.77] | – [68.36]") and row("DFDC Winner").count("–") == 6
    fake_run(tmp_path / "again", "bin_contrastive", "DF", 0, 0.77)  # the same seed is not a second run
    assert evaluation.table(tmp_path).endswith(text) and "only the first counts" in evaluation.table(tmp_path)
    for seed in (0, 1):  # the image model's settings are its own
        fake_run(tmp_path, "dfdc_winner", "DF", seed, 0.60, frames=1, size=380)
    assert "| DFDC Winner | 60.0 ± 0.0 (2) [85.71]" in evaluation.table(tmp_path) and evaluation.table(tmp_path).count("### ") == 1
    fake_run(tmp_path, "dfdc_winner", "DF", 2, 0.50, frames=1, size=300)  # two settings: tables of their own
    assert evaluation.table(tmp_path).count("### ") == 3
    assert "± 4.7 points" in text and "76.17 there, 76.37 by Table 2" in text and "75.98 there, 75.88 by Table 2" in text
    assert text.count("there,") == 2


def test_with_several_settings_the_image_model_joins_the_cases_that_share_the_rest(tmp_path):
    for epochs, accuracy in ((30, 0.60), (50, 0.50)):
        fake_run(tmp_path / str(epochs), "bin_ce", "DF", 0, 0.80, epochs=epochs)
        fake_run(tmp_path / str(epochs), "dfdc_winner", "DF", 0, accuracy, epochs=epochs, frames=1, size=380)
    first, second = evaluation.table(tmp_path).split("### ")[1:]
    assert "epochs 30" in first and "Winner | 60.0 (1)" in first and "epochs 50" in second and "Winner | 50.0 (1)" in second


def test_toys_and_other_settings_never_share_a_table(tmp_path):
    fake_run(tmp_path, "bin_ce", "DF", 0, 0.8)
    fake_run(tmp_path, "bin_ce", "DF", 0, 0.9, data="toy")
    fake_run(tmp_path, "bin_ce", "DF", 1, 0.7, frames=16)
    fake_run(tmp_path, "bin_ce", "DF", 2, 0.6, overrides="mult_ce True")
    text = evaluation.table(tmp_path)
    assert text.count("### ") == 3 and text.count("### TOY") == 1
    assert all(f"{accuracy:.1f} (1)" in text for accuracy in (80, 90, 70, 60)) and "Binary CE [mult_ce True]" in text


def test_scores_that_are_no_numbers_are_an_error_and_no_chance_level(finished, refused, toy, tmp_path):
    with pytest.raises(ValueError, match="not finite"):
        evaluation.metrics([0, 1], [0.5, float("nan")])
    folder, _, _ = finished
    checkpoint = torch.load(folder / "best.pt", weights_only=True)
    next(iter(checkpoint["bin_classifier"].values())).fill_(float("nan"))
    torch.save(checkpoint, tmp_path / "diverged.pt")
    assert "diverged" in refused(toy, evaluation.main, tmp_path / "diverged.pt")


def test_a_checkpoint_whose_settings_are_damaged_is_named(finished, refused, toy, tmp_path):
    folder, _, _ = finished
    checkpoint = torch.load(folder / "best.pt", weights_only=True)
    for name, value in (("clips", "x"), ("frames", -3), ("data_root", None), ("mode", "XX"), ("holdout", None)):
        torch.save({**checkpoint, "config": {**checkpoint["config"], name: value}}, tmp_path / "odd.pt")
        assert "odd.pt" in refused(toy, evaluation.main, tmp_path / "odd.pt")
        torch.save({**checkpoint, "config": {n: v for n, v in checkpoint["config"].items() if n != name}}, tmp_path / "odd.pt")
        assert "odd.pt" in refused(toy, evaluation.main, tmp_path / "odd.pt")


def test_two_datasets_never_share_a_table(tmp_path):
    fake_run(tmp_path, "bin_ce", "DF", 0, 0.9, data="one")
    fake_run(tmp_path, "bin_ce", "DF", 1, 0.5, data="another")
    assert "90.0 (1)" in evaluation.table(tmp_path) and "50.0 (1)" in evaluation.table(tmp_path)


def test_a_dataset_is_the_same_wherever_it_lies(tmp_path):
    for seed, data in enumerate(("FF", "elsewhere/FF", "FF/")):
        fake_run(tmp_path, "bin_ce", "DF", seed, 0.9, data=data)
    assert "90.0 ± 0.0 (3)" in evaluation.table(tmp_path)


def test_a_result_that_cannot_be_printed_is_saved_and_one_that_cannot_be_saved_is_printed(tmp_path, monkeypatch, capsys):
    class Gone:
        def write(self, text):
            raise BrokenPipeError
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", Gone())
        with pytest.raises(BrokenPipeError):
            evaluation.save_and_print({"a": 1}, tmp_path / "results.json", "the result")
    assert json.loads((tmp_path / "results.json").read_text()) == {"a": 1}
    with pytest.raises(OSError):
        evaluation.save_and_print({}, tmp_path / "nowhere" / "results.json", "the result")
    assert "the result" in capsys.readouterr().out


def test_only_what_memory_did_is_blamed_on_memory():
    killed = "DataLoader worker (pid(s) 12) exited unexpectedly"
    assert "--workers" in evaluation.resources(RuntimeError(killed)) and evaluation.resources(MemoryError())
    assert evaluation.resources(RuntimeError("Caught MemoryError in DataLoader worker process 0."))
    assert evaluation.resources(RuntimeError("Caught RuntimeError in DataLoader worker process 0.\nsizes must match")) is None


def test_videos_lie_in_a_folder_of_any_name_and_masks_are_none(tmp_path):
    for place in ("masks/real", "masks/real/masks"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "a.mp4").write_text("")
    assert evaluation.videos_in(tmp_path / "masks" / "real") == [tmp_path / "masks" / "real" / "a.mp4"]


@pytest.mark.parametrize("content", ["", "[]", "{}", "[" * 100000, '{"config": {"mode": "x"}}', '{"config": 3, "metrics": []}'])
def test_a_results_file_that_is_none_is_named(refused, tmp_path, content):
    (tmp_path / "results.json").write_text(content)
    for flag in ("--table", "--roc"):
        assert "results.json" in refused(tmp_path, evaluation.main, flag, tmp_path)


def test_the_point_of_comparison_goes_the_whole_way(run, toy):
    result = run(toy, "train.py", "--mode", "dfdc_winner", "--holdout", "FS", "--epochs", "1", "--batch-size", "4", "--size", "32", "--clips", "3", "--out", "runs/winner")
    assert result.returncode == 0, result.stderr
    assert len(json.loads((toy / "runs" / "winner" / "results.json").read_text())["videos"][0]["clips"]) == 3
