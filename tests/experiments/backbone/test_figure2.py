"""The comparison of variants against hand-worked numbers, and the whole command at a tiny size."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from experiments.command_line.script import find_config_dir
from experiments.evaluation.fronts import ORACLES
from experiments.evaluation.statistics import Bootstrap
from experiments.evaluation.variants import NESTED, PER_SCALE, UNTRAINED, compare_variants, list_variants
from experiments.figure2 import main
from experiments.reporting.variants import tabulate_variants, to_csv, to_json, write_findings
from tests.experiments.evaluation.synthetic import SCALES, make_outcomes

VARIANTS = list_variants(SCALES, [[1, 9], [36, 144]])


def test_variants_are_those_of_the_paper():
    assert [variant.name for variant in VARIANTS] == [
        "nested", "spatial", "sequential", "only_144", "only_36", "only_9", "only_1",
    ]  # fmt: skip
    by_name = {variant.name: variant for variant in VARIANTS}
    assert by_name["nested"].scale_groups == [[1, 9], [36, 144]]
    assert by_name["only_36"].scale_groups == [[36]] and by_name["only_36"].scales == (36,)
    assert by_name["only_144"].scales == SCALES
    assert [by_name[name].pooling for name in ("nested", "spatial", "only_9")] == [
        "average", "spatial", "average",
    ]  # fmt: skip


def answered(shares):
    """Outcomes of 200 questions on 100 images, of which a share, the first ones, is right at each scale."""
    table = make_outcomes("test", 100, 2)
    right = np.arange(len(table))[:, None] < len(table) * np.array(shares)
    return replace(table, score=right.astype(np.float32))


@pytest.fixture(scope="module")
def comparison():
    shares = {
        "nested": (0.5, 0.6, 0.7, 0.8),
        "spatial": (0.25, 0.5, 0.6, 0.8),
        "sequential": (0.0, 0.25, 0.5, 0.8),
        "only_144": (0.1, 0.1, 0.2, 0.9),
        "only_36": (0, 0, 0.7, 0),
        "only_9": (0, 0.5, 0, 0),
        "only_1": (0.6, 0, 0, 0),
    }
    tables = {(name, 0): answered(values) for name, values in shares.items()}
    # In the second seed the nested model gets a tenth of the questions more right, everywhere.
    tables |= {
        (name, 1): answered([value + 0.1 * (name == NESTED) for value in values])
        for name, values in shares.items()
    }
    return compare_variants(VARIANTS, tables, (0, 1), bootstrap=Bootstrap(4000))


def test_accuracies_are_means_over_seeds_and_differences_belong_to_the_scale(comparison):
    nested, per_scale = comparison.of(NESTED), comparison.of(PER_SCALE)
    assert [round(float(row.accuracy.value), 6) for row in nested] == [0.55, 0.65, 0.75, 0.85]
    assert nested[0].per_seed == pytest.approx((0.5, 0.6))
    assert nested[0].spread == pytest.approx(0.1 / 2**0.5)
    assert [round(float(row.accuracy.value), 6) for row in per_scale] == [0.6, 0.5, 0.7, 0.9]
    assert [round(float(row.to_nested.value), 6) for row in per_scale] == [-0.05, 0.15, 0.05, -0.05]
    assert [round(float(row.accuracy.value), 6) for row in comparison.of(UNTRAINED)] == [0.1, 0.1, 0.2, 0.9]
    assert all(row.accuracy.low <= row.accuracy.value <= row.accuracy.high for row in comparison.rows)


def test_the_oracle_is_that_of_the_nested_model(comparison):
    authors, honest = (comparison.of(label)[0] for label in ORACLES.values())
    assert float(authors.accuracy.value) == float(honest.accuracy.value) == pytest.approx(0.85)
    # Of every 40 questions 20, 4, 4, 4 first become right at 1, 9, 36, 144 tokens, and 8 never; in the
    # second seed 24, 4, 4, 4 and 4.
    first = 20 * 1 + 4 * 9 + 4 * 36 + 4 * 144
    second = 24 * 1 + 4 * 9 + 4 * 36 + 4 * 144
    assert authors.visual_tokens == pytest.approx((first + 8 + second + 4) / 80)
    assert honest.visual_tokens == pytest.approx((first + 8 * 144 + second + 4 * 144) / 80)


def test_findings_say_what_was_found_whichever_way(comparison):
    nested, untrained, spatial, sequential, oracle = write_findings(comparison)
    # 55 less 60, 65 less 50, 75 less 70, 85 less 90.
    assert re.findall(r"([+-][\d.]+) \[[^]]*\] at (\d+)", nested) == [
        ("-5.0", "1"), ("+15.0", "9"), ("+5.0", "36"), ("-5.0", "144"),
    ]  # fmt: skip
    # One seed alone has it otherwise at 1, 36 and 144.
    assert nested.endswith("The nested model is better at 9; no difference is shown at 1, 36, 144.")
    assert untrained.endswith("Training is better at each of them.")
    # At the finest scale nothing is pooled.
    assert "at 36" in spatial and "at 144" not in spatial
    assert sequential.endswith("Averaging is better at each of them.")
    assert oracle.startswith("The oracle of the nested model scores 85.0")
    assert "2 seeds, 200 test questions on 100 images" in str(tabulate_variants(comparison))
    content = json.loads(json.dumps(to_json(comparison), allow_nan=False))
    assert content["rows"][0]["per_seed"] == pytest.approx([0.5, 0.6])
    header, *lines = to_csv(comparison).splitlines()
    assert header.endswith("sd_over_seeds,seed_0,seed_1") and len(lines) == len(comparison.rows)


@pytest.mark.parametrize(
    ("others", "verdict"),
    [
        ((1, 1, 1, 1), "The nested model is worse at each of them."),
        ((0.5, 0.6, 0.7, 0.8), "No difference is shown at any of them."),
        ((0.9, 0.2, 0.7, 0.8), "at 9; the nested model is worse at 1; no difference is shown at 36, 144."),
    ],
)
def test_verdicts_follow_the_corrected_p_values(others, verdict):
    shares = {variant.name: others for variant in VARIANTS} | {"nested": (0.5, 0.6, 0.7, 0.8)}
    tables = {(name, 0): answered(values) for name, values in shares.items()}
    nested, *_ = write_findings(compare_variants(VARIANTS, tables, (0,), bootstrap=Bootstrap(4000)))
    assert nested.endswith(verdict)


def test_p_values_at_the_floor_are_shown_as_below_it(comparison):
    """Four models beside the nested one at four scales each: 16 differences."""
    table = tabulate_variants(comparison)
    assert comparison.num_tests == 16
    # 2 / 4001 = 0.00049988, and 16 times as much.
    told = (
        "resamples resolve no p-value below 0.0005, and after Holm's correction for 16 tests none below 0.008"
    )
    assert table.caption.endswith(f"4,000 {told}")
    shown = {cell for *_, cell in table.rows}
    assert "< 0.008" in shown and "0.008" not in shown and "0.000" not in shown


def test_too_few_resamples_show_no_difference():
    """32 / 101 is above 0.05: what these resamples cannot tell is not called equal."""
    shares = {variant.name: (1, 1, 1, 1) for variant in VARIANTS} | {"nested": (0.5, 0.6, 0.7, 0.8)}
    tables = {(name, 0): answered(values) for name, values in shares.items()}
    nested, *_ = write_findings(compare_variants(VARIANTS, tables, (0,), bootstrap=Bootstrap(100)))
    assert nested.endswith("100 resamples are too few to show a difference at any of them.")


def test_a_seed_named_twice_is_refused_before_training(tmp_path, capsys):
    with initialize_config_dir(str(find_config_dir()), version_base="1.3"), pytest.raises(SystemExit):
        main(compose("figure2", [f"folder={tmp_path}", "seeds=[0,1,0]"]))
    assert "seeds=[0, 1, 0]: give each seed once" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_models_that_answered_other_questions_are_not_compared():
    tables = {(variant.name, 0): answered((0, 0, 0, 0)) for variant in VARIANTS}
    tables["only_9", 0] = tables["only_9", 0].select(slice(0, 10))
    with pytest.raises(ValueError, match="only_9 of seed 0 answered other questions than nested"):
        compare_variants(VARIANTS, tables, (0,), bootstrap=Bootstrap(10))


@pytest.mark.slow
def test_the_whole_command_at_a_tiny_size(tmp_path, capsys):
    overrides = [
        "image={image_size: 64, patch_size: 16}",
        "scenes.image_size=64",
        "test.image_size=64",
        "tower.shape={hidden_size: 32, num_layers: 1, num_heads: 2}",
        "decoder={hidden_size: 32, intermediate_size: 32, num_layers: 1, num_heads: 2}",
        "tower.training={num_pictures: 8, pictures_per_epoch: 8, batch_size: 4, num_workers: 0}",
        "model={num_pictures: 8, pictures_per_epoch: 8, batch_size: 4, num_workers: 0}",
        "model.scale_groups=[[1], [4, 16]]",
        *("start.num_pictures=8", "start.pictures_per_epoch=8"),
        "~task@others.easy_vqa",
        "model.share_of_others=0",
        "vocab_size=300",
        "num_images=4",
        "num_resamples=20",
        "trainer.enable_progress_bar=false",
        f"folder={tmp_path}",
        f"paths.evaluations={tmp_path / 'evaluations'}",
    ]
    with initialize_config_dir(str(find_config_dir()), version_base="1.3"):
        main(compose("figure2", [*overrides, "seeds=[0]"]))
    assert "1 seed, " in capsys.readouterr().out
    for kind in ("json", "md", "csv", "png", "pdf", "svg"):
        assert (tmp_path / f"figure2.{kind}").stat().st_size > 100
    trained = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/0/checkpoint/model.safetensors")}
    assert len(trained) == 6  # nested, two samplings, one per scale of 1, 4, 16
    # Once more, with one checkpoint cut short by a kill: only that one is written again.
    cut = tmp_path / "only_4" / "0" / "checkpoint"
    (cut / "m3_processor.json").unlink()
    with initialize_config_dir(str(find_config_dir()), version_base="1.3"):
        main(compose("figure2", [*overrides, "seeds=[0]"]))
    written = {path for path, before in trained.items() if path.stat().st_mtime_ns != before}
    assert written == {cut / "model.safetensors"}
    rows = json.loads((tmp_path / "figure2.json").read_text())["rows"]
    assert {len(row["per_seed"]) for row in rows} == {1}
    # Weights of another recipe are not mixed in.
    with initialize_config_dir(str(find_config_dir()), version_base="1.3"), pytest.raises(SystemExit):
        main(compose("figure2", [*overrides, "seeds=[0]", "start.learning_rate=1"]))
    assert "was trained with other settings of start, model" in capsys.readouterr().err
