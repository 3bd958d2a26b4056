# SPDX-License-Identifier: MIT
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import eval as evaluation
import train
from data import FFPP
from s3d import S3D

PORTRAIT = cv2.imread(str(Path(__file__).parent / "fixtures" / "portrait.jpg"))
WALL = np.uint8(np.indices(PORTRAIT.shape)[1])  # shaded from left to right

@pytest.mark.parametrize("labels, scores, right, auc, ap, eer", [  # AP as in scikit-learn
    ([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9], 1, 1, 1, 0),                          # perfect
    ([0, 0, 1, 1], [0.9, 0.8, 0.2, 0.1], 0, 0, (1 / 3 + 2 / 4) / 2, 1),        # inverted
    ([0, 0, 1, 1], [0.5] * 4, 0.5, 0.5, 0.5, 0.5),                             # constant
    ([0, 1, 0, 1, 1], [0.3, 0.3, 0.6, 0.6, 0.9], 0.6, 4 / 6, (1 + 2 / 3 + 3 / 5) / 3, 0.4),  # ties
    ([0, 1, 1, 1], [0.7, 0.6, 0.8, 0.9], 0.75, 2 / 3, (1 + 1 + 3 / 4) / 3, 1 / 3)])         # 3 to 1
def test_metrics_are_those_worked_out_by_hand(labels, scores, right, auc, ap, eer):
    found = map(evaluation.metrics(labels, scores).get, ("accuracy", "auc", "ap", "eer"))
    assert tuple(found) == pytest.approx((right, auc, ap, eer))

def test_accuracies_of_originals_and_fakes_are_separate_and_a_score_of_one_half_is_no_fake():
    found = evaluation.metrics([0, 0, 0, 1, 1], [0.1, 0.5, 0.9, 0.8, 0.5])
    assert (found["accuracy_real"], found["accuracy_fake"]) == (2 / 3, 1 / 2)

@pytest.mark.parametrize("labels, score", [([0, 0], 0.2), ([1, 1], 0.2), ([0, 1], float("nan"))])
def test_one_class_alone_and_a_score_that_is_no_number_are_errors(labels, score):
    with pytest.raises(ValueError):
        evaluation.metrics(labels, [0.1, score])

def test_accuracies_have_wilsons_interval_within_0_and_1_and_never_of_length_0():
    found = evaluation.intervals([0] * 10 + [1] * 19, [0.9] * 29, draws=2)
    assert found["accuracy"] == pytest.approx([0.4735, 0.8006], abs=1e-4)       # 19 of 29
    assert found["accuracy_real"] == pytest.approx([0, 0.2775], abs=1e-4)       # 0 of 10
    assert found["accuracy_fake"] == pytest.approx([0.8318, 1], abs=1e-4)       # 19 of 19
    assert found["accuracy_real"][0] >= 0 and found["accuracy_fake"][1] <= 1

def test_bootstrap_intervals_cover_the_truth_about_as_often_as_they_say():
    rng, labels, many = np.random.default_rng(0), np.repeat([0, 1], 50), np.repeat([0, 1], 50_000)
    truth = evaluation.metrics(many, many + rng.normal(size=len(many)))
    covered = dict.fromkeys(("auc", "ap", "eer"), 0)
    for _ in range(60):
        found = evaluation.intervals(labels, labels + rng.normal(size=len(labels)), draws=100)
        for name in covered:
            covered[name] += found[name][0] <= truth[name] <= found[name][1]
    assert all(45 <= count < 60 for count in covered.values()), covered

def test_the_folded_encoder_of_a_checkpoint_gives_the_same_embeddings(finished, tmp_path):
    checkpoint = torch.load(finished[0] / "best.pt", weights_only=True)
    checkpoint["encoder"]["eps"].fill_(1e-3)
    torch.save(checkpoint, tmp_path / "best.pt")
    folded, _, config = evaluation.load_checkpoint(tmp_path / "best.pt")
    assert not any(isinstance(module, torch.nn.BatchNorm3d) for module in folded.modules())
    encoder, clips = S3D(config["width"]).eval(), torch.rand(2, 3, 8, 32, 32)
    encoder.load_state_dict(checkpoint["encoder"])
    with torch.no_grad():
        expected = encoder(clips)
        assert (folded(clips) - expected).abs().max() < 1e-5 * expected.abs().max()

class MeanColour(torch.nn.Module):
    def forward(self, clips):
        return clips.float().mean(dim=(2, 3, 4)) / 255

@pytest.mark.parametrize("clips, workers", [(5, 1), (17, 0)])
def test_every_readable_video_has_the_mean_over_its_clips(toy, tmp_path, clips, workers):
    dataset = FFPP(toy / "toy_ffpp", "test", "DF", frames=8, size=32, clips=clips)
    readable = [row for i, row in enumerate(zip(dataset.videos, dataset)) if i != 6]
    dataset.videos[6] = (tmp_path / "bad.mp4", *dataset.videos[6][1:])
    torch.manual_seed(0)
    encoder, head = MeanColour(), torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(3, 2))
    torch.nn.init.normal_(head[1].weight, std=20)  # so that the scores differ
    videos, unreadable, embeddings = evaluation.evaluate(
        encoder, head.train(), evaluation.video_loader(dataset, workers))
    assert list(unreadable) == [str(tmp_path / "bad.mp4")]
    for (row, item), video, embedding in zip(readable, videos, embeddings, strict=True):
        fake = head(encoder(item[0])).softmax(dim=1)[:, 1].tolist()
        assert (video["path"], video["class"], video["label"]) == (str(row[0]), row[1], item[1])
        assert [video["score"], *video["clips"]] == pytest.approx([np.mean(fake), *fake], abs=1e-5)
        assert embedding == pytest.approx(encoder(item[0]).mean(dim=0).numpy(), abs=1e-5)

@pytest.fixture
def score(capfd, monkeypatch):
    def score(folder, *flags):
        monkeypatch.chdir(folder)
        with pytest.raises(SystemExit) as stop:
            evaluation.main([*map(str, flags)])
        return stop.value.code, *capfd.readouterr()  # exit status, stdout, stderr
    return score

def test_an_unreadable_video_is_only_listed_and_pictures_show_the_rest(finished, score, tmp_path):
    shutil.copy(finished[0] / "best.pt", tmp_path)
    shutil.copytree(finished[0].parents[1] / "toy_ffpp", tmp_path / "toy_ffpp")
    bad, *_ = (tmp_path / "toy_ffpp" / "manipulated_sequences" / "NeuralTextures").rglob("953_*")
    bad.write_text("no video")
    status, out, err = score(tmp_path, "best.pt", "--pictures")
    results = json.loads((tmp_path / "results_best.json").read_text())
    assert status == 1 and bad.name in err and "TOY" in out and len(results["videos"]) == 19
    assert results["unreadable"] == [str(bad.relative_to(tmp_path))]
    for name in ("classes.png", "mistakes.png", "map.png", "roc.png"):
        assert cv2.imread(str(tmp_path / name)).std() > 5

def film(path, *pictures, shaken=True):  # 32 frames of each
    codec, size = cv2.VideoWriter_fourcc(*"MJPG"), PORTRAIT.shape[:2]
    out = cv2.VideoWriter(str(path), cv2.CAP_OPENCV_MJPEG, codec, 25, size)
    for number in range(32 * len(pictures)):
        out.write(np.roll(pictures[number // 32], shaken * (number % 3), axis=1))
    out.release()

def test_own_videos_are_scored_where_they_show_a_moving_face(finished, score, tmp_path):
    checkpoint = torch.load(finished[0] / "best.pt", weights_only=True)
    checkpoint["config"]["crop"] = "face"
    torch.save(checkpoint, tmp_path / "best.pt")
    film(tmp_path / "half.avi", PORTRAIT, WALL)
    film(tmp_path / "wall.avi", WALL)
    film(tmp_path / "still.avi", PORTRAIT, shaken=False)
    flags = [tmp_path, "best.pt", "--clips", "4", "--video", "half.avi"]
    status, out, _ = score(*flags)
    words = "face in 2 of 4 clips", "fake score 0.", "spread", "not a verdict", "TOY"
    assert status == 0 and all(word in out for word in words)
    status, out, err = score(*flags, "gone.avi", "wall.avi", "still.avi", "--json")
    found = json.loads(out)
    video, = found["videos"]
    assert status == 1 and video["path"] == "half.avi" and len(video["clips"]) == 2
    assert video["score"] == pytest.approx(np.mean(video["clips"]))
    assert video["spread"] == pytest.approx(np.std(video["clips"]))
    assert cv2.imread(str(tmp_path / video["picture"])).std() > 5
    assert found["unreadable"] == ["gone.avi", "wall.avi", "still.avi"]
    for name, reason in zip(found["unreadable"], ("cannot be read", "no face", "do not change")):
        assert any(name in line and reason in line for line in err.splitlines())

def test_another_dataset_is_all_videos_below_two_folders(finished, score, tmp_path):
    film(tmp_path / "film.avi", PORTRAIT, WALL)
    for name in ("real/a.avi", "real/._a.avi", "real/masks/a.avi", "linked/b.M4V", "fake/c.wmv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(tmp_path / "film.avi", tmp_path / name)
    (tmp_path / "real" / "link").symlink_to(tmp_path / "linked")
    shutil.copy(finished[0] / "best.pt", tmp_path)
    status, out, err = score(tmp_path, "best.pt", "--real", "real", "--fake", "fake")
    found = json.loads((tmp_path / "results_folders.json").read_text())
    assert status == 0 and "real: 2 videos" in err and "fake: 1 videos" in err and "AUC" in out
    rows = [(Path(v["path"]).name, v["label"], v["score"]) for v in found["videos"]]
    names, labels, scores = zip(*sorted(rows))
    assert names == ("a.avi", "b.M4V", "c.wmv") and labels == (0, 0, 1)
    assert found["metrics"].items() >= evaluation.metrics(labels, scores).items()

@pytest.mark.parametrize("files", [["c23/000.png"], ["c23/000.mp4", "c40/000.mp4"]])
def test_images_and_the_same_video_twice_are_refused(finished, refused, tmp_path, files):
    for path in (tmp_path / "folder" / name for name in files):
        path.parent.mkdir(parents=True)
        path.touch()
    flags = [finished[0] / "best.pt", "--real", "folder", "--fake", "folder"]
    message = refused(tmp_path, evaluation.main, *flags)
    assert "folder" in message if len(files) == 1 else all(map(message.count, ("c23", "c40")))

@pytest.mark.parametrize("flags, named", [
    ("", "--table"), ("--table . best.pt", "--table"), ("best.pt --json", "--json"),
    ("best.pt --pictures --video a.mp4", "--pictures"), ("best.pt --real .", "--fake"),
    ("best.pt --video a.mp4 --real . --fake .", "--video"), ("best.pt --video .", "--real")])
def test_flags_that_do_not_go_together_are_refused(refused, tmp_path, flags, named):
    assert named in refused(tmp_path, evaluation.main, *flags.split())

def test_a_file_that_is_no_checkpoint_of_this_version_is_named(refused, tmp_path):
    torch.save({"config": {"mode": "bin_ce"}, "encoder": {}}, tmp_path / "version_1.pt")
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    for name in ("version_1.pt", "other.pt", "nowhere.pt"):
        assert name in refused(tmp_path, evaluation.main, name)

def fake_run(out, mode, holdout, accuracy, seed=0, data="FF", cosines="", **changed):
    config = {"format": 2, "mode": mode, "holdout": holdout, "seed": seed, "data": data,
              "toy": data == "toy_ffpp", "changed": changed}
    out.mkdir(parents=True)
    results = {"config": config, "metrics": {"accuracy": accuracy, "auc": accuracy + 0.05}}
    (out / "results.json").write_text(json.dumps(results))
    (out / "log.csv").write_text(f"epoch,cosine_a_b,loss,cosine_a_c\n{cosines}")

def cells(text, label):
    row, = (line for line in text.splitlines() if line.startswith(f"| {label} |"))
    return [cell.strip() for cell in row.split("|")[2:-1]]

def test_a_table_has_means_over_seeds_beside_the_papers_numbers(tmp_path):
    pairs = {"DF": (0.8, 0.9), "F2F": (0.7, 0.7), "FS": (0.6, 0.8), "NT": (0.56, 0.7)}
    for holdout, accuracies in pairs.items():
        for seed, accuracy in enumerate(accuracies):
            fake_run(tmp_path / f"{holdout}{seed}", "bin_ce", holdout, accuracy, seed)
    fake_run(tmp_path / "a", "bin_ce_contrastive", "DF", 0.771, cosines="1,,9,0.5\n2,-0.1,9,0.2\n")
    fake_run(tmp_path / "b", "bin_ce_contrastive", "FS", 0.7, cosines="1,-0.2,9,\n")
    text = evaluation.table(tmp_path)
    assert cells(text, "Binary CE")[:6] == [
        "85.0 ± 7.1 (2) [80.08]", "70.0 ± 0.0 (2) [73.44]", "70.0 ± 14.1 (2) [79.30]",
        "63.0 ± 9.9 (2) [75.78]", "72.0 [77.15]", "77.0"]
    first, *_, cosine = cells(text, "Binary CE + Contrastive")
    assert first == "77.1 (1) [81.64]" and cosine == "0.15 ± 0.49, 0.05 ± 0.21"

def test_datasets_have_their_own_tables_and_changed_settings_their_own_rows(tmp_path):
    for data in ("FF", "other", "toy_ffpp"):
        fake_run(tmp_path / data, "bin_ce", "DF", 0.8, data=data)
        fake_run(tmp_path / data / "changed", "bin_ce", "DF", 0.6, data=data, epochs=2)
    tables = evaluation.table(tmp_path).split("### ")[1:]
    assert ["TOY" in text for text in tables] == [False, False, True]
    for text, paper in zip(tables, (" [80.08]", " [80.08]", "")):
        assert cells(text, "Binary CE")[0] == "80.0 (1)" + paper
        assert cells(text, "Binary CE [epochs 2]")[0] == "60.0 (1)"

def test_the_same_run_twice_is_refused_naming_both(refused, tmp_path):
    for name in ("first", "second"):
        fake_run(tmp_path / name, "bin_ce", "DF", 0.8)
    message = refused(tmp_path, evaluation.main, "--table", ".")
    assert "first" in message and "second" in message

def test_the_papers_point_of_comparison_goes_the_whole_way(toy, score, monkeypatch):
    monkeypatch.chdir(toy)
    train.main("--mode dfdc_winner --holdout FS --epochs 1 --batch-size 12 --size 32 --clips 3 "
               "--out runs/winner".split())
    assert score(toy, "runs/winner/best.pt")[0] == 0
    first, again = (json.loads(Path("runs", "winner", name).read_text())["videos"]
                    for name in ("results.json", "results_best.json"))
    assert first == again and {len(video["clips"]) for video in first} == {3}
