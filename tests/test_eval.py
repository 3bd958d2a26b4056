# SPDX-License-Identifier: MIT
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import eval as evaluation
import train

PORTRAIT = cv2.imread(str(Path(__file__).parent / "fixtures/portrait.jpg"))
WALL = np.uint8(np.indices(PORTRAIT.shape)[1])  # shaded from left to right


def trained(folder, mode):
    """The folder of a run of three steps, whose BatchNorm keeps up: else all scores are equal."""
    build = train.build_networks

    def build_networks(*args):
        nets = build(*args)
        for module in nets.modules():
            module.momentum = 1
        return nets

    flags = "--holdout NT --epochs 1 --batch-size 12 --size 32 --clips 3 --out".split()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(train, "build_networks", build_networks)
        train.main(["--mode", mode, *flags, mode])
    return folder / mode


@pytest.fixture(scope="module")
def detector(toy):
    return trained(toy, "bin_ce")


def saved(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.fixture
def score(capfd, monkeypatch):
    def score(folder, *flags):
        monkeypatch.chdir(folder)
        with pytest.raises(SystemExit) as stop:
            evaluation.main([str(flag) for flag in flags])
        return stop.value.code, *capfd.readouterr()  # exit status, stdout, stderr

    return score


# --- Metrics -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "originals, fakes, accuracy, on_originals, on_fakes, auc",
    [
        ([0.1, 0.2], [0.8, 0.9], 1, 1, 1, 1),
        ([0.9, 0.8], [0.2, 0.1], 0, 0, 0, 0),
        ([0.5, 0.5], [0.5, 0.5], 1 / 2, 1, 0, 1 / 2),  # a score of 0.5 is no fake
        ([0.3, 0.6], [0.3, 0.6, 0.9], 3 / 5, 1 / 2, 2 / 3, 4 / 6),  # ties
    ],
)
def test_metrics_are_those_worked_out_by_hand(
    originals, fakes, accuracy, on_originals, on_fakes, auc
):
    labels = [0] * len(originals) + [1] * len(fakes)
    measured = evaluation.metrics(labels, originals + fakes)
    assert list(measured.values()) == pytest.approx([accuracy, on_originals, on_fakes, auc])


def test_auc_is_the_share_of_pairs_in_the_right_order_where_ties_count_half():
    originals, fakes = np.split(np.random.default_rng(0).integers(10, size=80), [50])
    higher = fakes > originals[:, None]
    tied = fakes == originals[:, None]
    assert evaluation.auc(originals, fakes) == pytest.approx((higher + tied / 2).mean())


@pytest.mark.parametrize("labels, score", [([0, 0], 0.2), ([1, 1], 0.2), ([0, 1], float("nan"))])
def test_one_class_alone_and_a_score_that_is_not_finite_are_errors(labels, score):
    with pytest.raises(ValueError):
        evaluation.metrics(labels, [0.1, score])


@pytest.mark.parametrize(
    "right, n, low, high", [(19, 29, 0.4735, 0.8006), (0, 10, 0, 0.2775), (19, 19, 0.8318, 1)]
)
def test_accuracies_have_wilsons_interval_within_0_and_1(right, n, low, high):
    found = evaluation.wilson(right / n, n)
    assert found == pytest.approx([low, high], abs=1e-4) and 0 <= found[0] and found[1] <= 1


# --- Scores and results --------------------------------------------------------------------------


class Videos(list):
    """As FFPP has them, of random pixels."""

    videos = [(Path(f"{number}.mp4"), "original", "000") for number in range(6)]
    binary = [0, 1] * 3


def test_every_video_has_the_mean_over_its_clips_and_over_still_copies_of_them():
    clips = torch.rand(6, 5, 3, 8, 2, 2)
    classifier = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(96, 2))
    dataset = Videos((each, 0, 0) for each in clips)
    scored = evaluation.evaluate(torch.nn.Flatten(), classifier.train(), dataset, still=True)

    moving, still = (
        classifier(each.flatten(2)).softmax(dim=2)[..., 1].tolist()
        for each in (clips, clips[:, :, :, [4] * 8])  # frame T // 2, T times
    )
    for number, video in enumerate(scored):
        assert (video["path"], video["label"]) == (f"{number}.mp4", number % 2)
        numbers = [*video["clips"], video["score"], video["still"]]
        expected = [*moving[number], np.mean(moving[number]), np.mean(still[number])]
        assert numbers == pytest.approx(expected, abs=1e-5)
    assert len(scored) == 6


def scored(name, score, still=0.5):
    label = int(name != "original")
    return {"path": name, "class": name, "label": label, "score": score, "still": still}


SCORED = [
    scored("original", 0.2, 0.6),
    scored("original", 0.6, 0.4),
    scored("DF", 0.9),
    scored("FS", 0.4, 0.7),
    scored("NT", 0.1),
]


def summarise(**settings):
    config = dict(case="bin_ce", holdout="DF", data="x", frames=8, still=False, toy=False)
    return evaluation.summarise(SCORED, config | settings)


def test_the_test_is_of_originals_and_held_out_fakes_and_each_seen_manipulation_has_its_own():
    results = summarise()
    held_out, seen = results["metrics"], results["seen"]
    assert (held_out["accuracy"], held_out["auc"]) == (2 / 3, 1)
    assert {name: each["auc"] for name, each in seen.items()} == {"FS": 0.5, "NT": 0}


def test_results_without_motion_are_of_held_out_and_of_seen_fakes():
    results = summarise()
    assert (results["still"]["auc"], results["still_seen"]) == (0.5, 0.75)


@pytest.mark.parametrize("settings", [dict(still=True), dict(frames=1)])
def test_still_clips_and_single_frames_have_no_result_without_motion(settings):
    assert not {"still", "still_seen"} & summarise(**settings).keys()


def test_the_report_has_the_seen_mean_the_gap_and_the_test_without_motion():
    text = " ".join(evaluation.report(summarise()).split())
    assert "mean of the seen 33.3 %, AUC 25.0 %" in text
    assert "gap to held-out -33.3 points, AUC -75.0 points" in text
    assert "without motion AUC 50.0 % held-out, 75.0 % mean of the seen" in text


def test_the_report_has_no_gap_where_nothing_is_held_out():
    assert "gap" not in evaluation.report(summarise(holdout="none"))


@pytest.mark.parametrize("val_auc, said", [(0.79, True), (0.81, False)])
def test_a_run_that_has_hardly_learned_says_so(val_auc, said):
    report = evaluation.report({**summarise(), "val_auc": val_auc})
    assert ("hardly learned" in report) == said


@pytest.mark.parametrize("mode", ["bin_ce", "dfdc_winner"])
def test_the_test_of_a_trained_run_gives_its_scores_again(toy, detector, score, mode):
    run = detector if mode == "bin_ce" else trained(toy, mode)
    status, out, _ = score(toy, run / "best.pt")
    first, again = (
        {video["path"]: video["score"] for video in saved(folder)["videos"]}
        for folder in (run, run / "test")
    )
    assert status == 0 and "TOY" in out and again == pytest.approx(first, abs=1e-6)
    assert len(set(first.values())) == 20


def test_results_that_are_there_are_refused_before_anything_is_read(refused, tmp_path):
    (tmp_path / "results.json").touch()
    assert "holds results already" in refused(tmp_path, evaluation.main, "no.pt", "--out", ".")


# --- Pictures ------------------------------------------------------------------------------------


def test_mistakes_are_of_the_test_the_worst_first():
    mistakes = evaluation.worst_mistakes(summarise())
    assert [video["score"] for video in mistakes] == [0.6, 0.2, 0.9]


def test_a_row_of_a_picture_has_the_middle_frame_of_each_clip_and_is_named(tmp_path, capsys):
    clips = torch.zeros(2, 3, 8, 20, 20, dtype=torch.uint8)
    clips[1, 0, 4] = 255  # red
    evaluation.save_pictures([(SCORED[2], clips)], tmp_path / "a.png")
    assert cv2.imread(str(tmp_path / "a.png"))[16, [16, 42]].tolist() == [[0, 0, 0], [0, 0, 255]]
    assert capsys.readouterr().out.endswith("fake score 0.900  DF\n")


def test_pictures_of_a_test_are_of_its_mistakes(toy, detector, score, tmp_path):
    score(toy, detector / "best.pt", "--pictures", "--out", tmp_path)
    assert cv2.imread(str(tmp_path / "mistakes.png")).shape == (8 * 38 + 6, 3 * 38 + 6, 3)


# --- Your own videos -----------------------------------------------------------------------------


def film(path, *pictures):
    """32 frames of each picture, which trembles."""
    path.parent.mkdir(exist_ok=True)
    codec = cv2.VideoWriter_fourcc(*"MJPG")
    out = cv2.VideoWriter(str(path), cv2.CAP_OPENCV_MJPEG, codec, 25, PORTRAIT.shape[:2])
    for number in range(32 * len(pictures)):
        out.write(np.roll(pictures[number // 32], number % 3, axis=1))
    out.release()


@pytest.fixture
def own(detector, tmp_path):
    """A folder with a detector that looks for faces, and with videos for it."""
    checkpoint = torch.load(detector / "best.pt", weights_only=True)
    checkpoint["config"] |= {"crop": "face", "toy": False}
    torch.save(checkpoint, tmp_path / "best.pt")
    film(tmp_path / "real/half.avi", PORTRAIT, WALL)
    film(tmp_path / "fake/wall.avi", WALL)
    (tmp_path / "fake/broken.mp4").write_text("no video")
    return tmp_path


def test_clips_without_a_face_have_no_part_in_a_videos_score_and_picture(own, score):
    flags = ["--video", "real/half.avi", "--clips", 6, "--pictures"]
    status, out, _ = score(own, "best.pt", *flags)
    out_folder = own / "half"  # named after the first video
    (video,) = saved(out_folder)["videos"]
    assert len(video["clips"]) == 3 and video["score"] == pytest.approx(np.mean(video["clips"]))
    assert f"fake score {video['score']:.3f}, from 3 of 6 clips" in out and status == 0
    assert "TOY" not in out
    assert cv2.imread(str(out_folder / "clips.png")).shape == (38 + 6, 3 * 38 + 6, 3)


def test_videos_that_cannot_be_scored_are_named_and_listed_with_status_1(own, score):
    names = ["fake/wall.avi", "fake/broken.mp4", "nowhere.mp4"]
    status, _, err = score(own, "best.pt", "--video", *names, "real/half.avi", "--out", ".")
    assert [video["path"] for video in saved(own)["unreadable"]] == names
    assert status == 1 and len(saved(own)["videos"]) == 1 and all(name in err for name in names)


@pytest.mark.parametrize("toy_trained", [True, False])
def test_scores_say_toy_if_the_detector_was_trained_or_tested_on_one(
    own, score, detector, toy_trained
):
    checkpoint = own / "best.pt"
    if toy_trained:
        checkpoint = detector / "best.pt"
    else:
        (own / "TOY.txt").touch()
    assert "TOY" in score(own, checkpoint, "--video", "real/half.avi", "--out", ".")[1]


def test_a_detector_of_still_clips_sees_own_videos_without_motion(own):
    config = dict(frames=8, size=32, clips=2, crop="frame", still=True)
    clips = evaluation.read_own_video(own / "real/half.avi", config)
    assert (clips == clips[:, :, :1]).all()


def test_another_dataset_is_the_videos_of_two_folders(own, score, monkeypatch):
    monkeypatch.setattr(evaluation, "worst_mistakes", lambda results: results["videos"][::-1])
    film(own / "films/b.avi", PORTRAIT)
    flags = "--real real --fake films --pictures --out .".split()
    status, out, _ = score(own, "best.pt", *flags)
    videos = saved(own)["videos"]
    names = [(Path(video["path"]).name, video["label"]) for video in videos]
    assert names == [("half.avi", 0), ("b.avi", 1)]
    assert status == 0 and "1 originals, 1 fakes" in out and "TOY" not in out
    first, second = out.split("from the top:\n")[1].splitlines()[:2]
    assert first.endswith("b.avi") and second.endswith("half.avi")


def test_where_one_side_has_nothing_to_score_the_other_sides_scores_are_kept(own, score):
    status, out, _ = score(own, "best.pt", "--real", "real", "--fake", "fake")
    (video,) = saved(own / "fake")["videos"]  # the folder is named after that of the fakes
    assert status == 1 and f"half.avi: fake score {video['score']:.3f}" in out


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_folders_are_searched_through_links_but_hidden_ones_and_masks_are_not(tmp_path):
    for name in ("real/a.mp4", "real/.b.mp4", "real/.Trash/c.mp4", "real/masks/d.mp4", "e/f.M4V"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "real/link").symlink_to(tmp_path / "e")
    videos = evaluation.videos_below([tmp_path / "real"])
    assert [video.name for video in videos] == ["a.mp4", "f.M4V"]


@pytest.mark.parametrize(
    "real, reason", [("fake/../real", "half.avi is below"), ("fake/half", "not a folder")]
)
def test_folders_without_videos_or_under_both_labels_are_refused(own, refused, real, reason):
    flags = ["best.pt", "--real", real, "--fake", "real", "--out", "new"]
    assert reason in refused(own, evaluation.main, *flags)


# --- Tables 2 and 3 ------------------------------------------------------------------------------


def fake_run(out, case, holdout, accuracy=0.8, seed=0, video="a", **settings):
    config = dict(format=evaluation.FORMAT, toy=False, epochs=30, out=str(out))
    results = {
        "config": config | dict(case=case, holdout=holdout, seed=seed) | settings,
        "metrics": {"accuracy": accuracy, "auc": accuracy + 0.05},
        "seen": {"F2F": {"accuracy": 0.8}, "FS": {"accuracy": 1}},
        "still": {"auc": accuracy / 2},
        "still_seen": 0.6,
        "videos": [{"class": "DF", "path": video}],
        "val_auc": accuracy,
    }
    evaluation.save(results, out / "results.json")


def cells(text):
    """{name of a row: its cells}"""
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {row[0][2:]: [cell.removesuffix(" |") for cell in row[1:]] for row in rows[1:]}


def test_a_table_has_means_over_seeds_and_hold_outs_beside_the_papers_numbers(tmp_path):
    pairs = {"DF": (0.8, 0.9), "F2F": (0.7, 0.7), "FS": (0.6, 0.8), "NT": (0.63,)}
    for holdout, accuracies in pairs.items():
        for seed, accuracy in enumerate(accuracies):
            fake_run(tmp_path / f"{holdout}{seed}", "bin_ce", holdout, accuracy, seed)
    assert cells(evaluation.table(tmp_path)[0])["Binary CE"] == [
        "85.0 ± 7.1 (2) [80.08]",
        "70.0 ± 0.0 (2) [73.44]",
        "70.0 ± 14.1 (2) [79.30]",
        "63.0 (1) [75.78]",
        "72.0 [77.15]",  # average
        "77.0",  # AUC
        "90.0",  # seen
        "18.0",  # gap
        "36.0",  # still
        "60.0",  # still, seen
        "4 of 7",  # not learned
    ]


def test_rows_are_the_papers_in_its_order_then_cases_that_were_added(tmp_path):
    for case in ("bin_ce_still", "dfdc_winner", "a_new_loss", "bin_ce"):
        fake_run(tmp_path / case, case, "DF", size=len(case))  # rows may differ in their settings
    text, _ = evaluation.table(tmp_path)
    assert text.endswith("Other settings that differ between rows: size")
    assert list(cells(text)) == ["Binary CE", "DFDC Winner", "a_new_loss", "bin_ce_still"]


def test_a_table_of_the_toy_says_so_and_has_no_numbers_of_the_paper(tmp_path):
    fake_run(tmp_path / "toy", "bin_ce", "DF", toy=True)
    text, _ = evaluation.table(tmp_path)
    assert "TOY" in text and cells(text)["Binary CE"][:2] == ["80.0 (1)", "- (0)"]


@pytest.mark.parametrize(
    "changes, reason",
    [
        (dict(holdout="DF"), "keep one"),
        (dict(epochs=2), "epochs"),
        (dict(case="baseline", video="b"), "different videos"),
        (dict(case="baseline", toy=True), "different videos"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused_naming_both(refused, tmp_path, changes, reason):
    fake_run(tmp_path / "first", "bin_ce", "DF")
    fake_run(tmp_path / "second", **dict(case="bin_ce", holdout="FS") | changes)
    message = refused(tmp_path, evaluation.main, "--table", ".")
    assert all(word in message for word in ("first", "second", reason))


def test_what_does_not_fit_in_a_table_is_left_out_and_named(score, tmp_path):
    fake_run(tmp_path / "good", "bin_ce", "DF")
    fake_run(tmp_path / "nothing_held_out", "bin_ce", "none")
    fake_run(tmp_path / "old", "bin_ce", "FS", format=4)
    fake_run(tmp_path / "half", "bin_ce", "NT")
    (tmp_path / "half/results.json").write_text('{"config"')
    status, out, err = score(tmp_path, "--table", ".")
    assert status == 1 and cells(out)["Binary CE"][0] == "80.0 (1) [80.08]"
    assert all(name in err for name in ("nothing_held_out", "old", "half")) and "good" not in err


# --- Flags and files -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags, named",
    [
        ("", "--table"),
        ("--table . best.pt", "--table"),
        ("best.pt --clips 0", "--clips"),
        ("best.pt --real .", "--fake"),
        ("best.pt --video a.mp4 --real . --fake .", "--video"),
        ("best.pt --video a.mp4 --data .", "--data"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(refused, tmp_path, flags, named):
    assert named in refused(tmp_path, evaluation.main, *flags.split())


def test_a_file_that_is_no_checkpoint_of_this_version_is_named(refused, tmp_path):
    torch.save({"config": {"format": 4}, "encoder": {}}, tmp_path / "old.pt")
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    fake_run(tmp_path / "run", "bin_ce", "DF")
    for name in ("old.pt", "other.pt", "nowhere.pt", "run/results.json"):
        assert name in refused(tmp_path, evaluation.main, name, "--out", "new")


class Malicious:
    def __reduce__(self):
        return open, ("created", "w")


def test_code_in_a_checkpoint_is_never_run(refused, tmp_path):
    torch.save({"config": Malicious()}, tmp_path / "best.pt")
    assert "best.pt" in refused(tmp_path, evaluation.main, "best.pt")
    assert os.listdir(tmp_path) == ["best.pt"]


def test_a_file_is_saved_whole_or_not_at_all(tmp_path):
    evaluation.save([{"epoch": 7}], tmp_path / "log.csv")
    with pytest.raises(ValueError):
        evaluation.save([{"epoch": 1}, {"no such column": 2}], tmp_path / "log.csv")
    assert (tmp_path / "log.csv").read_text() == "epoch\n7\n"
    assert os.listdir(tmp_path) == ["log.csv"]


def test_a_full_disk_is_named_with_the_file(tmp_path, monkeypatch):
    def fail(*args):
        raise RuntimeError("PytorchStreamWriter failed writing file: file write failed")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="last.pt"):
        evaluation.save({}, tmp_path / "last.pt")
