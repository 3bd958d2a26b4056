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

PORTRAIT = cv2.imread(str(Path(__file__).parent / "fixtures/portrait.jpg"))
WALL = np.uint8(np.indices(PORTRAIT.shape)[1])  # shaded from left to right


@pytest.mark.parametrize(
    "labels, scores, right, auc, ap, eer",
    [  # AP as in scikit-learn
        ([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9], 1, 1, 1, 0),  # perfect
        ([0, 0, 1, 1], [0.9, 0.8, 0.2, 0.1], 0, 0, (1 / 3 + 2 / 4) / 2, 1),  # inverted
        ([0, 0, 1, 1], [0.5] * 4, 0.5, 0.5, 0.5, 0.5),  # constant
        (
            [0, 1, 0, 1, 1],
            [0.3, 0.3, 0.6, 0.6, 0.9],
            0.6,
            4 / 6,
            (1 + 2 / 3 + 3 / 5) / 3,
            0.4,
        ),  # ties
        ([0, 1, 1, 1], [0.7, 0.6, 0.8, 0.9], 0.75, 2 / 3, (1 + 1 + 3 / 4) / 3, 1 / 3),
    ],
)  # 3 to 1
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
    assert found["accuracy"] == pytest.approx([0.4735, 0.8006], abs=1e-4)  # 19 of 29
    assert found["accuracy_real"] == pytest.approx([0, 0.2775], abs=1e-4)  # 0 of 10
    assert found["accuracy_fake"] == pytest.approx([0.8318, 1], abs=1e-4)  # 19 of 19
    assert found["accuracy_real"][0] >= 0 and found["accuracy_fake"][1] <= 1


def test_bootstrap_intervals_cover_the_truth_about_as_often_as_they_say():
    rng, labels, many = np.random.default_rng(0), np.repeat([0, 1], 50), np.repeat([0, 1], 50_000)
    truth = evaluation.metrics(many, many + rng.normal(size=len(many)))
    covered = 0
    for _ in range(60):
        found = evaluation.intervals(labels, labels + rng.normal(size=len(labels)), draws=100)
        covered += found["auc"][0] <= truth["auc"] <= found["auc"][1]
    assert 45 <= covered < 60


class MeanColour(torch.nn.Module):
    def forward(self, clips):
        return clips.float().mean(dim=(2, 3, 4)) / 255


def fake_probabilities(head, clips):
    return head(MeanColour()(clips)).softmax(dim=1)[:, 1].tolist()


@pytest.mark.parametrize("clips, workers", [(5, 1), (17, 0)])
def test_every_readable_video_has_the_mean_over_its_clips_and_over_still_copies(
    toy, tmp_path, clips, workers
):
    dataset = FFPP(toy / "toy_ffpp", "test", "DF", frames=8, size=32, clips=clips)
    readable = [row for i, row in enumerate(zip(dataset.videos, dataset)) if i != 6]
    dataset.videos[6] = (tmp_path / "bad.mp4", *dataset.videos[6][1:])
    torch.manual_seed(0)
    head = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(3, 2))
    torch.nn.init.normal_(head[1].weight, std=20)  # so that the scores differ
    loader = evaluation.video_loader(dataset, workers)
    videos, unreadable = evaluation.evaluate(MeanColour(), head.train(), loader, still=True)

    assert [video["path"] for video in unreadable] == [str(tmp_path / "bad.mp4")]
    for ((path, name, _), item), video in zip(readable, videos, strict=True):
        assert (video["path"], video["class"], video["label"]) == (str(path), name, item[1])
        fake = fake_probabilities(head, item[0])
        assert [video["score"], *video["clips"]] == pytest.approx([np.mean(fake), *fake], abs=1e-5)
        still = item[0][:, :, [4] * 8]  # frame T // 2, T times
        expected = np.mean(fake_probabilities(head, still))
        assert video["still"] == pytest.approx(expected, abs=1e-5)


def test_results_without_motion_are_of_the_originals_and_held_out_fakes(finished):
    results = json.loads((finished[0] / "results.json").read_text())
    tested = [video for video in results["videos"] if video["class"] in ("original", "NT")]
    labels = [video["label"] for video in tested]
    assert results["still"] == evaluation.metrics(labels, [video["still"] for video in tested])
    aucs = []
    for name in ("DF", "F2F", "FS"):
        seen = [video for video in results["videos"] if video["class"] in ("original", name)]
        labels = [video["label"] for video in seen]
        aucs.append(evaluation.metrics(labels, [video["still"] for video in seen])["auc"])
    assert results["still_seen"] == pytest.approx(np.mean(aucs))


@pytest.mark.parametrize("val_auc, said", [(0.79, True), (0.81, False)])
def test_a_run_that_has_not_learned_says_so(finished, val_auc, said):
    results = json.loads((finished[0] / "results.json").read_text())
    report = evaluation.report({**results, "val_auc": val_auc})
    assert ("best validation AUC 79.0 %: this run has hardly learned" in report) == said


def test_the_report_says_the_gap_to_the_seen_manipulations_unless_none_is_held_out(finished):
    results = json.loads((finished[0] / "results.json").read_text())
    results["seen"] = {"DF": {"accuracy": 0.9, "auc": 0.97}, "FS": {"accuracy": 0.7, "auc": 0.83}}
    results["metrics"].update(accuracy=0.55, auc=0.7)
    report = " ".join(evaluation.report(results).split())
    assert "mean of the seen 80.0 %, AUC 90.0 %" in report
    assert "gap to held-out 25.0 points, AUC 20.0 points" in report
    results["seen"] = {}
    assert "gap" not in evaluation.report(results)


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
    bad, *_ = (tmp_path / "toy_ffpp/manipulated_sequences/NeuralTextures").rglob("953_*")
    bad.write_text("no video")
    status, out, err = score(tmp_path, "best.pt", "--pictures")
    results = json.loads((tmp_path / "results_best.json").read_text())
    assert status == 1 and bad.name in err and "TOY" in out and len(results["videos"]) == 19
    assert [video["path"] for video in results["unreadable"]] == [str(bad.relative_to(tmp_path))]
    assert cv2.imread(str(tmp_path / "mistakes.png")).std() > 5


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
    film(tmp_path / "few.avi", PORTRAIT, WALL, WALL)
    film(tmp_path / "wall.avi", WALL)
    film(tmp_path / "still.avi", PORTRAIT, shaken=False)
    flags = [tmp_path, "best.pt", "--clips", "6", "--video", "half.avi"]
    status, out, _ = score(*flags, "few.avi")
    words = ("3 of 6 clips \n", "fake score 0.", "not a verdict", "TOY", "2 of 6 clips (don't")
    assert status == 0 and all(word in out for word in words)
    scored = json.loads((tmp_path / "videos/scores.json").read_text())["videos"]
    assert ["doubt" in video for video in scored] == [False, True]
    status, out, err = score(*flags, "gone.avi", "wall.avi", "still.avi", ".")
    found = json.loads((tmp_path / "videos/scores.json").read_text())
    (video,) = found["videos"]
    assert status == 1 and video["path"] == "half.avi" and len(video["clips"]) == 3
    assert video["score"] == pytest.approx(np.mean(video["clips"]))
    assert cv2.imread(str(tmp_path / "videos/clips.png")).std() > 5
    reasons = ("no such file", "no clip shows a face", "do not change", "--real and --fake")
    for video, reason in zip(found["unreadable"], reasons, strict=True):
        assert reason in video["reason"] and video["reason"] in err
    assert score(tmp_path, "best.pt", "--video", "gone.avi")[0] == 1


def test_another_dataset_is_all_videos_below_two_folders(finished, score, tmp_path):
    film(tmp_path / "film.avi", PORTRAIT, WALL)
    for name in ("real/a.avi", "real/._a.avi", "real/masks/a.avi", "linked/b.M4V", "fake/c.wmv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(tmp_path / "film.avi", tmp_path / name)
    (tmp_path / "real/link").symlink_to(tmp_path / "linked")
    shutil.copy(finished[0] / "best.pt", tmp_path)
    flags = ["--real", "real", "linked2", "--fake", "fake", "--clips", "2"]
    (tmp_path / "linked2").mkdir()
    shutil.copy(tmp_path / "film.avi", tmp_path / "linked2/d.avi")
    status, out, err = score(tmp_path, "best.pt", *flags)
    found = json.loads((tmp_path / "results_fake.json").read_text())
    assert status == 0 and "3 originals, 1 fakes" in out and "without motion" in out
    rows = [(Path(v["path"]).name, v["label"], v["score"]) for v in found["videos"]]
    names, labels, scores = zip(*sorted(rows))
    assert names == ("a.avi", "b.M4V", "c.wmv", "d.avi") and labels == (0, 0, 1, 0)
    assert found["metrics"].items() >= evaluation.metrics(labels, scores).items()


def test_where_one_side_has_nothing_to_score_the_other_sides_scores_are_saved(
    finished, refused, tmp_path
):
    for name in ("real", "fake"):
        (tmp_path / name).mkdir()
    film(tmp_path / "real/a.avi", PORTRAIT)
    (tmp_path / "fake/b.avi").write_bytes(b"half a download")
    flags = [finished[0] / "best.pt", "--real", "real", "--fake", "fake", "--out", "."]
    assert "no fakes" in refused(tmp_path, evaluation.main, *flags)
    found = json.loads((tmp_path / "results_fake.json").read_text())
    assert len(found["videos"]) == len(found["unreadable"]) == 1


def test_images_and_the_same_video_twice_are_refused(tmp_path):
    (tmp_path / "c23").mkdir()
    (tmp_path / "c23/000.png").touch()
    with pytest.raises(FileNotFoundError, match="no video files"):
        evaluation.add_videos({}, [tmp_path], "fake", 1)
    (tmp_path / "c40").mkdir()
    for folder in ("c23", "c40"):
        (tmp_path / folder / "000.mp4").touch()
    with pytest.raises(ValueError, match="c23.*c40.*same video"):
        evaluation.add_videos({}, [tmp_path], "fake", 1)
    with pytest.raises(ValueError, match="same video"):
        evaluation.add_videos({}, [tmp_path / "c23"] * 2, "fake", 1)


def test_files_of_one_name_in_a_folder_and_one_below_it_are_two_videos(tmp_path):
    (tmp_path / "raw").mkdir()
    for path in (tmp_path / "x.mp4", tmp_path / "raw/x.mp4"):
        path.touch()
    videos = {}
    evaluation.add_videos(videos, [tmp_path], "fake", 1)
    assert len(videos) == 2


@pytest.mark.parametrize(
    "flags, named",
    [
        ("", "--table"),
        ("--table . best.pt", "--table"),
        ("best.pt --json", "--json"),
        ("best.pt --clips 0", "--clips"),
        ("best.pt --pictures --video a.mp4", "--pictures"),
        ("best.pt --real .", "--fake"),
        ("best.pt --video a.mp4 --real . --fake .", "--video"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(refused, tmp_path, flags, named):
    assert named in refused(tmp_path, evaluation.main, *flags.split())


def test_a_file_that_is_no_checkpoint_of_this_version_is_named(refused, tmp_path):
    torch.save({"config": {"mode": "bin_ce"}, "encoder": {}}, tmp_path / "version_1.pt")
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    (tmp_path / "results.json").write_text('{"config": {"format": 4}}')
    for name in ("version_1.pt", "other.pt", "nowhere.pt", "results.json"):
        assert name in refused(tmp_path, evaluation.main, name)


def fake_run(out, mode, holdout, accuracy, seed=0, cosines="", seen=(), videos=(), **settings):
    config = {"mode": mode, "holdout": holdout, "seed": seed, "format": 4, "toy": False}
    config["still"] = False
    config |= {"case": True, "place": {"data": str(out)}, "epochs": 30, "size": 128, **settings}
    out.mkdir(parents=True)
    results = {"config": config, "videos": videos}
    results["metrics"] = {"accuracy": accuracy, "auc": accuracy + 0.05}
    results["seen"] = {str(value): {"accuracy": value} for value in seen}
    results["still"] = {"auc": accuracy / 2}
    results["still_seen"] = 0.6
    results["val_auc"] = accuracy
    (out / "results.json").write_text(json.dumps(results))
    (out / "log.csv").write_text(f"epoch,cosine_a_b,loss,cosine_a_c\n{cosines}")


def cells(text, label):
    (row,) = (line for line in text.splitlines() if line.startswith(f"| {label} |"))
    return [cell.strip() for cell in row.split("|")[2:-1]]


def test_a_table_has_means_over_seeds_beside_the_papers_numbers(tmp_path):
    pairs = {"DF": (0.8, 0.9), "F2F": (0.7, 0.7), "FS": (0.6, 0.8), "NT": (0.56, 0.7)}
    for holdout, accuracies in pairs.items():
        for seed, accuracy in enumerate(accuracies):
            out = tmp_path / f"{holdout}{seed}"
            fake_run(out, "bin_ce", holdout, accuracy, seed, seen=(0.8, 0.9, 1))
    log = "1,9,9,9\n2,,9,0.5\n3,-0.1,9,0.2\n"  # the second half: epochs 2 and 3
    fake_run(tmp_path / "a", "bin_ce_contrastive", "DF", 0.771, cosines=log)
    fake_run(tmp_path / "b", "bin_ce_contrastive", "FS", 0.7, cosines="1,-0.2,9,\n")
    text, left_out = evaluation.table(tmp_path)
    assert not left_out and cells(text, "Binary CE") == [
        "85.0 ± 7.1 (2) [80.08]",
        "70.0 ± 0.0 (2) [73.44]",
        "70.0 ± 14.1 (2) [79.30]",
        "63.0 ± 9.9 (2) [75.78]",
        "72.0 [77.15]",
        "77.0",
        "18.0",
        "36.0",
        "60.0",
        "-",
        "5 of 8",
    ]
    first, *_, cosine, _ = cells(text, "Binary CE + Contrastive")
    assert first == "77.1 (1) [81.64]" and cosine == "0.10 ± 0.32"


@pytest.mark.parametrize(
    "name, value, mode",
    [("epochs", 2, "bin_ce"), ("size", 64, "baseline"), ("videos", [0], "bin_ce")],
)
def test_a_table_compares_what_a_mode_sets_within_its_row_and_the_rest_everywhere(
    tmp_path, name, value, mode
):
    fake_run(tmp_path / "first", "baseline", "DF", 0.8)
    fake_run(tmp_path / "second", "dfdc_winner", "DF", 0.8, size=380)
    evaluation.table(tmp_path)
    fake_run(tmp_path / "third", mode, "FS", 0.8, **{name: value})
    with pytest.raises(ValueError, match=f"(first.*third|third.*first).*{name}"):
        evaluation.table(tmp_path)


def test_runs_without_motion_have_their_own_row(tmp_path):
    fake_run(tmp_path / "moving", "bin_ce", "DF", 0.8)
    fake_run(tmp_path / "still", "bin_ce", "DF", 0.6, still=True)
    text, _ = evaluation.table(tmp_path)
    assert cells(text, "Binary CE")[0].startswith("80.0 (1)")
    assert cells(text, "Binary CE, still")[0].startswith("60.0 (1)")


def test_a_loss_set_by_hand_is_no_row_of_a_table(tmp_path):
    fake_run(tmp_path / "odd", "bin_ce", "DF", 0.8, case=False)
    with pytest.raises(ValueError, match="odd.*by hand"):
        evaluation.table(tmp_path)


def test_a_damaged_result_and_one_of_version_2_are_left_out_of_a_table_and_named(score, tmp_path):
    fake_run(tmp_path / "good", "bin_ce", "DF", 0.8)
    fake_run(tmp_path / "old", "bin_ce", "FS", 0.8, format=2)
    for name, content in (("half", '{"config"'), ("odd", '{"config": {"format": 4}}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(content)
    status, out, err = score(tmp_path, "--table", ".")
    assert status == 1 and "80.0 (1)" in out
    assert all(name in err for name in ("old", "half", "odd"))


def test_the_same_run_twice_is_refused_naming_both(refused, tmp_path):
    for name in ("first", "second"):
        fake_run(tmp_path / name, "bin_ce", "DF", 0.8)
    message = refused(tmp_path, evaluation.main, "--table", ".")
    assert "first" in message and "second" in message


def test_the_papers_point_of_comparison_goes_the_whole_way(toy, score, monkeypatch):
    monkeypatch.chdir(toy)
    train.main(
        "--mode dfdc_winner --holdout FS --epochs 1 --batch-size 12 --size 32 --clips 3 "
        "--out runs/winner".split()
    )
    assert score(toy, "runs/winner/best.pt")[0] == 0
    first = json.loads(Path("runs", "winner", "results.json").read_text())
    again = json.loads(Path("runs", "winner", "results_best.json").read_text())
    assert first["videos"] == again["videos"] and "still" not in first
    assert {len(video["clips"]) for video in first["videos"]} == {3}
