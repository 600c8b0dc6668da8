"""Transfer between synthetic tasks whose truth is known."""

import functools
import json
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from experiments.command_line.running import Provenance
from experiments.command_line.script import find_config_dir
from experiments.evaluation.statistics import Bootstrap
from experiments.labels.held_out import EvaluationRecorder
from experiments.reporting.numbers import format_tokens
from experiments.reporting.transfer import tabulate, write_transfer
from experiments.results.configured import check_seeds, make_predictor
from experiments.results.sources import Source, take_outcomes
from experiments.results.transfer import TransferPlan, compare_versions, draw_samples, transfer
from experiments.training.joining import join_labels
from experiments.training.trained import TrainingSettings
from experiments.transfer import main
from m3_backbone.outcomes.labels import Labels, read_labels
from predictor.calibration import Temperature
from predictor.classical.boosting import GradientBoosting
from predictor.classical.question_only import QuestionOnly
from tests.pages import check_downloads, check_structure, read_downloads
from tests.predictor.synthetic import KINDS, make_labels, write_labels


def rename(labels, words, data):
    """The same world in other words: each kind of question is told by another one."""
    question = [" ".join(words.get(word, word) for word in text.split()) for text in labels.inputs.question]
    outcomes = replace(
        labels.outcomes,
        question=np.array(question, dtype=object),
        fingerprints={**labels.outcomes.fingerprints, "data": data},
    )
    return Labels(inputs=replace(labels.inputs, question=question), outcomes=outcomes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`home`; `same`, other pictures of it; `swapped`, where the words for the kinds have changed places."""
    folder = tmp_path_factory.mktemp("labels")
    swapped = dict(zip(KINDS, [*KINDS[1:], KINDS[0]], strict=True))
    for number, (task, words) in enumerate({"home": {}, "same": {}, "swapped": swapped}.items()):
        sizes = {"train": 300, "calibration": 150, "test": 400}
        parts = {
            split: rename(make_labels(size, 10 * number + seed, split=split), words, data=task)
            for seed, (split, size) in enumerate(sizes.items())
        }
        write_labels(folder / task, parts)
    return folder


def read_records(folder):
    """Evaluations recorded below a folder, the oldest first."""
    (path,) = (folder / "evaluations").glob("*/*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def run(folder, tmp_path):
    def run(
        make_predictor=QuestionOnly,
        *,
        sources,
        calibrator=None,
        labels=folder,
        allow_small=False,
        seeds=None,
        **planned,
    ):
        sources = [source if isinstance(source, Source) else Source(source) for source in sources]
        return transfer(
            lambda seed: make_predictor(),
            TransferPlan(sources=sources, **{"num_recalibration": 100, **planned}),
            labels=labels,
            recorder=EvaluationRecorder(tmp_path / "evaluations", "test"),
            settings=TrainingSettings(seed=0, validation_fraction=0.2, calibrator=calibrator),
            seeds=seeds,
            bootstrap=Bootstrap(50),
            allow_small=allow_small,
        )

    return run


@pytest.mark.long
def test_what_is_alike_travels_and_what_is_not_does_not(run, folder, tmp_path):
    rows = run(sources=["home"], targets=["same", "swapped"])
    share = {(row.target, row.trained_on, row.priced_on): row.gap_share.value for row in rows}
    assert list(share) == [
        ("same", "home", "home"),
        ("same", "home", "100 of same"),
        ("same", "same", "same"),
        ("swapped", "home", "home"),
        ("swapped", "home", "100 of swapped"),
        ("swapped", "swapped", "swapped"),
    ]
    values = list(share.values())
    # The same world: as good as trained there. Words that mislead: far below, where training there works.
    assert values[0] == pytest.approx(values[2], abs=0.08) and values[2] > 0.15
    assert values[3] < 0 < 0.15 < values[5]

    (table,) = write_transfer(
        rows,
        tmp_path,
        predictor="<b>mine",
        backbone="toy",
        fingerprints={target: {"weights": "abc"} for target in ("same", "swapped")},
        provenance=Provenance("transfer", "a: 1", "today"),
    )
    assert "100 of swapped" in str(table)
    written = json.loads((tmp_path / "transfer.json").read_text())
    assert [row["gap_share"]["value"] for row in written] == pytest.approx(values)
    assert (tmp_path / "tables" / "transfer.csv").read_text() == table.to_csv()
    assert {path.name for path in tmp_path.glob("*.pdf")} == {
        *("same.pdf", "swapped.pdf"),
        *("same_flops.pdf", "swapped_flops.pdf"),
    }
    page = (tmp_path / "transfer.html").read_text(encoding="utf-8")
    assert "<b>mine" not in page and "&lt;b&gt;mine" in page
    (content,) = re.findall(r'id="chart-data">(.*?)</script>', page)
    check_structure(page)
    check_downloads(read_downloads(page))
    assert "One training (seed) of &lt;b&gt;mine" in page
    charts = json.loads(content)
    axes = [chart["layout"]["xaxis2"]["title"]["text"] for chart in charts]
    assert (
        axes
        == [
            "mean visual tokens per question",
            "mean GFLOPs of vision pass, prefill and predictor per question",
        ]
        * 2
    )
    for chart, target in zip(charts, ("same", "same", "swapped", "swapped"), strict=True):
        legend = [trace["name"] for trace in chart["data"] if "name" in trace]
        names = ["trained on home", f"trained on home, prices from 100 of {target}", f"trained on {target}"]
        assert legend[:3] == names
    assert len(read_records(tmp_path)) == 2


@pytest.mark.long
def test_every_way_keeps_its_own_budgets_and_every_target_its_own_files(run, folder, tmp_path):
    """Where a target's images cost more tokens than the sources' do, and whatever a target is called."""
    for name in ("dear.v1", "dear.v2", "set/a & b"):
        parts = {
            split: make_labels(size, 30 + size, split=split)
            for split, size in (("train", 60), ("calibration", 60), ("test", 60))
        }
        dear = {
            split: Labels(
                inputs=replace(part.inputs, visual_tokens=3 * part.inputs.visual_tokens),
                outcomes=replace(part.outcomes, visual_tokens=3 * part.outcomes.visual_tokens),
            )
            for split, part in parts.items()
        }
        write_labels(folder / name, dear)
    targets = ["dear.v1", "dear.v2", "set/a & b"]
    rows = run(sources=["home"], targets=targets, num_recalibration=50)
    write_transfer(
        rows,
        tmp_path,
        predictor="mine",
        backbone="toy",
        fingerprints={target: {} for target in targets},
        provenance=Provenance("transfer", "a: 1", "today"),
    )
    assert {path.name for path in tmp_path.glob("*.svg")} == {
        "dear.v1.svg",
        "dear.v2.svg",
        "set%2Fa%20%26%20b.svg",
        "dear.v1_flops.svg",
        "dear.v2_flops.svg",
        "set%2Fa%20%26%20b_flops.svg",
    }
    from_home, _, native = rows[:3]
    assert native.result.budgets[-1] == pytest.approx(3 * from_home.result.budgets[-1])
    page = (tmp_path / "transfer.html").read_text(encoding="utf-8")
    (content,) = re.findall(r'id="chart-data">(.*?)</script>', page)
    hovers = [
        text
        for trace in json.loads(content)[0]["data"]
        for text in trace.get("text", ())
        if text.startswith("<b>trained on dear.v1")
    ]
    dearest = format_tokens(native.result.budgets[-1])
    assert any(f"budget {dearest}, spends" in text for text in hovers)


@pytest.mark.parametrize(("sources", "targets"), [([], ["same"]), (["home"], []), (["home"], ["same"] * 2)])
def test_tasks_are_named_each_once(run, sources, targets):
    with pytest.raises(ValueError, match="must be distinct tasks"):
        run(sources=sources, targets=targets)


def test_several_sources_are_trained_on_together(run):
    """Both meanings of the words at once tell less than the right one and more than the wrong one."""
    rows = run(sources=["home", "swapped"], targets=["same"])
    wrong = run(sources=["swapped"], targets=["same"])
    assert rows[0].trained_on == "home + swapped"
    assert wrong[0].gap_share.value < rows[0].gap_share.value < rows[2].gap_share.value


def test_a_target_that_cannot_be_is_told_of_before_anything_is_trained(run):
    def train():
        raise AssertionError("nothing should be trained")

    with pytest.raises(ValueError, match="fewer than num_recalibration="):
        run(train, sources=["home"], targets=["same", "swapped"], num_recalibration=10_000)
    with pytest.raises((ValueError, OSError), match="nowhere"):
        run(train, sources=["home"], targets=["same", "nowhere"])


def test_all_there_are_recalibrate_where_that_is_allowed(run):
    rows = run(sources=["home"], targets=["same"], num_recalibration=10_000, allow_small=True)
    assert rows[1].priced_on == "600 of same"


def test_a_target_of_few_images_is_refused_before_anything_is_trained(folder, tmp_path, monkeypatch, capsys):
    sizes = {"train": 12, "calibration": 3, "test": 9}
    small = {split: make_labels(size, 50 + size, split=split) for split, size in sizes.items()}
    write_labels(tmp_path / "all" / "home", {split: make_labels(40, 60, split=split) for split in sizes})
    write_labels(tmp_path / "all" / "few", small)
    arguments = ["predictor=question_only", "sources=[home]", "targets=few", "num_resamples=20"]
    paths = [f"paths.all_labels={tmp_path / 'all'}", f"paths.outputs={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["transfer", *arguments, *paths])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    told = "few are about 12 train / 3 calibration / 9 test images; at least 8 of each are needed: label more"
    assert told in capsys.readouterr().err
    assert not (tmp_path / "evaluations").exists()


@pytest.mark.long
def test_a_calibrator_is_fitted_where_the_prices_are(run):
    """One temperature per scale moves scales against each other: other choices, much the same worth."""
    plain, fitted = (
        run(sources=["home"], targets=["same"], calibrator=each) for each in (None, Temperature())
    )
    assert [row.gap_share.value for row in plain] != [row.gap_share.value for row in fitted]
    for before, after in zip(plain, fitted, strict=True):
        assert after.gap_share.value == pytest.approx(before.gap_share.value, abs=0.1)


@pytest.mark.long
def test_a_change_of_the_predictor_is_another_evaluation(run, tmp_path):
    for penalty in (0.5, 0.5, 2.0):
        run(functools.partial(QuestionOnly, inverse_penalties=(penalty,)), sources=["home"], targets=["same"])
    first, second, third = [each["predictors"] for each in read_records(tmp_path)]
    assert first == second != third
    prices = {"home": ("home", "100 of same"), "same": ("same",)}
    assert set(first) == {
        f"question_only from {source}, prices from {priced}"
        for source, priced_on in prices.items()
        for priced in priced_on
    }
    # Another calibrator is another evaluation, too.
    run(QuestionOnly, sources=["home"], targets=["same"], calibrator=Temperature())
    run(QuestionOnly, sources=["home"], targets=["same"])
    calibrated, plain = [each["predictors"] for each in read_records(tmp_path)][-2:]
    assert not set(calibrated.values()) & set(plain.values())


def test_a_calibrator_needs_two_images_to_recalibrate_on(run, tmp_path):
    def train():
        raise AssertionError("nothing should be trained")

    with pytest.raises(ValueError, match="one image cannot be divided between a calibrator and prices"):
        run(train, sources=["home"], targets=["same"], num_recalibration=3, calibrator=Temperature())
    assert not (tmp_path / "evaluations").exists()


def test_samples_are_drawn_by_image(folder):
    image_id = np.array([f"image-{number}" for number in np.repeat(np.arange(50), 4)], dtype=object)
    rows = draw_samples(image_id, 10, seed=3)
    assert len(set(rows.tolist())) == 10 and (np.diff(rows) > 0).all()
    _, counts = np.unique(image_id[rows].astype(str), return_counts=True)
    assert sorted(counts) == [2, 4, 4]
    assert set(draw_samples(image_id, 30, seed=3)) > set(rows)
    with pytest.raises(ValueError, match="has 200 samples, fewer than num_recalibration=201"):
        draw_samples(image_id, 201, seed=0)
    with pytest.raises(ValueError, match="num_recalibration must be at least 1, got 0"):
        draw_samples(image_id, 0, seed=0)


def test_joined_labels_are_the_parts_one_after_the_other():
    first, second = make_labels(3, 0), make_labels(5, 1)
    second = rename(second, {}, data="other")
    joined = join_labels({"a": first, "b": second})
    assert len(joined) == len(first) + len(second)
    assert joined.outcomes.image_id[0] == f"a/{first.outcomes.image_id[0]}"
    assert joined.outcomes.fingerprints["data"] not in ("bb", "other")
    assert joined.inputs.question == first.inputs.question + second.inputs.question
    for row, (part, own) in {0: (first, 0), len(first) + 2: (second, 2)}.items():
        image, of_part = joined.inputs.image_row[row], part.inputs.image_row[own]
        np.testing.assert_array_equal(
            joined.inputs.visual[9].tokens[image], part.inputs.visual[9].tokens[of_part]
        )
        np.testing.assert_array_equal(joined.inputs.statistics[image], part.inputs.statistics[of_part])


def test_labels_of_another_backbone_are_not_joined():
    first, second = make_labels(3, 0), make_labels(3, 1)
    other = {**second.outcomes.fingerprints, "weights": "others"}
    second = Labels(inputs=second.inputs, outcomes=replace(second.outcomes, fingerprints=other))
    with pytest.raises(ValueError, match="labels of b were made with different weights"):
        join_labels({"a": first, "b": second})


def test_a_target_is_left_out_of_its_own_sources(run):
    rows = run(sources=["home", "swapped"], targets=["home", "swapped"], leave_one_out=True, native=False)
    assert [(row.target, row.trained_on) for row in rows] == [
        *[("home", "swapped")] * 2,
        *[("swapped", "home")] * 2,
    ]
    with pytest.raises(ValueError, match="leave_one_out=true leaves no source for home"):
        run(sources=["home"], targets=["home"], leave_one_out=True)


def test_the_rest_of_the_calibration_split_is_evaluated_without_a_record(run, tmp_path):
    rows = run(sources=["home"], targets=["swapped"], split="calibration", num_recalibration=100)
    assert [row.priced_on for row in rows] == ["home", "100 of swapped", "100 of swapped"]
    # 25 of 150 images with 4 questions each are those of the recalibration.
    assert {row.comparison.num_images for row in rows} == {125}
    assert rows[0].gap_share.value < 0 < rows[2].gap_share.value
    assert not (tmp_path / "evaluations").exists()


def test_several_seeds_are_averaged_in_one_evaluation(run, tmp_path):
    """Seeds divide train and validation differently; interval and mean cover both trainings."""
    settings = {"sources": ["home"], "targets": ["swapped"], "native": False}
    singles = [run(seeds=[seed], **settings)[0] for seed in (3, 4)]
    assert singles[0].gap_share.value != singles[1].gap_share.value
    before = len(read_records(tmp_path))
    both, _ = run(seeds=[3, 4], **settings)
    for name in ("gap_share", "to_mix"):
        mean = np.mean([getattr(row, name).value for row in singles])
        estimate = getattr(both, name)
        assert estimate.value == pytest.approx(mean) and estimate.low < mean < estimate.high
    (record,) = read_records(tmp_path)[before:]
    assert list(record["predictors"]) == [
        f"question_only from home, prices from {priced}, seed {seed}"
        for seed in (3, 4)
        for priced in ("home", "100 of swapped")
    ]
    assert "means over training seeds 3, 4" in tabulate([both]).caption


@pytest.mark.long
def test_labels_of_another_backbone_are_read_by_rank_of_scale(run, folder):
    """The same world at scales 2, 10 and 40 of another backbone: as good as trained at home."""
    for name, scales in (("other", (2, 10, 40)), ("short", (2, 10))):
        parts = {}
        for seed, split in enumerate(("train", "calibration", "test")):
            part = make_labels(200, 70 + seed, split=split)
            taken = slice(0, len(scales))
            inputs = replace(
                part.inputs,
                scales=scales,
                visual={},
                visual_tokens=np.tile(np.array(scales, dtype=np.int32), (len(part), 1)),
            )
            columns = {
                column: getattr(part.outcomes, column)[:, taken]
                for column in (
                    *("score", "nll", "reference_tokens", "confidence", "margin"),
                    *("prefill_flops", "vision_flops"),
                )
            }
            outcomes = replace(
                part.outcomes,
                scales=scales,
                answer=[row[taken] for row in part.outcomes.answer],
                visual_tokens=inputs.visual_tokens,
                fingerprints={**part.outcomes.fingerprints, "weights": name},
                **columns,
            )
            parts[split] = Labels(inputs=inputs, outcomes=outcomes)
        write_labels(folder.parent / name / "home", parts)
    labels = folder.parent / "mine"
    if not labels.exists():
        labels.symlink_to(folder)
    settings = {"targets": ["same"], "labels": labels, "native": False}
    own, foreign, both = (
        run(sources=sources, **settings)
        for sources in (["home"], [Source("home", "other")], ["home", Source("home", "other")])
    )
    assert foreign[0].trained_on == "home of other" and both[0].trained_on == "home + home of other"
    for rows in (foreign, both):
        assert rows[0].gap_share.value == pytest.approx(own[0].gap_share.value, abs=0.08)
    with pytest.raises(ValueError, match="mapped by rank, which needs as many of both"):
        run(sources=[Source("home", "short")], **settings)
    with pytest.raises(ValueError, match="gradient_boosting reads tokens of the backbone"):
        run(GradientBoosting, sources=[Source("home", "other")], **settings)


@pytest.mark.long
def test_versions_of_the_same_samples_are_compared(folder, run, tmp_path):
    """`again` is `home` with the same samples in words that mislead."""
    words = dict(zip(KINDS, [*KINDS[1:], KINDS[0]], strict=True))
    parts = {
        split: rename(make_labels(size, seed, split=split), words, data="again")
        for seed, (split, size) in enumerate({"train": 300, "calibration": 150, "test": 400}.items())
    }
    write_labels(folder / "again", parts)
    rows = run(sources=["home"], targets=["home", "again"], native=False)
    ((pair, stability),) = compare_versions(rows).items()
    assert pair == ("home", "again") and stability.num_images == 400
    # Every third of the questions is taken for another kind; the answers are as good as before.
    assert stability.same_scale.value < 0.7 and stability.lost_finest.value == 0
    assert (
        stability.lost.value == pytest.approx(stability.lost_by_choices.value) and stability.lost.value > 0.02
    )
    # As another wording of `home` it teaches both meanings of the words; without pairs nothing changes.
    home, again = (read_labels(folder / task, "train") for task in ("home", "again"))
    home = replace(home, outcomes=replace(home.outcomes, score=1 - home.outcomes.score))
    np.testing.assert_array_equal(take_outcomes(again, home).outcomes.score, 1 - again.outcomes.score)
    assert take_outcomes(again, read_labels(folder / "same", "train")) is again
    (augmented, _) = run(sources=["home", "again"], targets=["again"], outcomes_of="home", native=False)
    assert augmented.gap_share.value > rows[2].gap_share.value

    tables = write_transfer(
        rows,
        tmp_path / "out",
        predictor="mine",
        backbone="toy",
        fingerprints={target: {} for target in ("home", "again")},
        provenance=Provenance("transfer", "a: 1", "today"),
    )
    assert [table.name for table in tables] == ["transfer", "stability"]
    assert "again, 1,600 samples of home" in (tmp_path / "out" / "tables" / "stability.csv").read_text()
    assert "lost by changed choices" in (tmp_path / "out" / "transfer.html").read_text(encoding="utf-8")


@pytest.mark.long
def test_command_composes_all_that_it_reads(folder, tmp_path, monkeypatch, capsys):
    arguments = ["predictor=question_only", "sources=[home]", "targets=same", "num_resamples=20"]
    paths = [f"paths.all_labels={folder}", f"paths.outputs={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["transfer", *arguments, *paths, "seeds=[5,6]"])
    main()
    printed = capsys.readouterr().out
    assert "100 of same" in printed and "means over training seeds 5, 6" in " ".join(printed.split())
    (output,) = (tmp_path / "runs").iterdir()
    rows = json.loads((output / "transfer.json").read_text())
    assert [row["seeds"] for row in rows] == [[5, 6]] * 3
    page = (output / "transfer.html").read_text(encoding="utf-8")
    assert "The plots show training seed 5." in page and "2 trainings (seeds) of question_only" in page


def test_every_training_has_its_seed():
    with initialize_config_dir(str(find_config_dir()), version_base="1.3"):
        config = compose("transfer", ["predictor=mlp", "seed=3"])
        fixed = compose("transfer", ["predictor=mlp", "predictor.seed=7", "seeds=[0,1]"])
    assert list(config.seeds) == [3]
    trained = [make_predictor(config, seed).get_arguments()["seed"] for seed in (4, 5)]
    assert trained == [4, 5] and config.seed == 3
    with pytest.raises(ValueError, match=r"predictor\.seed=7 is the seed of every training"):
        check_seeds(fixed)
