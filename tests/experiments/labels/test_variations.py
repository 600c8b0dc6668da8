"""Questions asked again in another way: what moves, and that a right answer stays one."""

import numpy as np
import pytest
from PIL import Image

from experiments.labels.labelling import label
from experiments.labels.resampled import ResampledFolder
from experiments.labels.resampling import DrawnAnswers, RotatedOptions, resample_answers
from experiments.tasks.base import Sample
from m3_backbone.llava.backbone import LlavaBackbone
from tests.experiments.tasks.question_files import make_task
from tests.held_out import read_outcomes

QUESTION = "Which one?\nA. a cat\nB. a dog\nC. \\1 {x}\nAnswer with the letter."


def make_sample(question=QUESTION, references=("B",), metric="multiple_choice_letter"):
    return Sample("1", "a", "mine", "test", question, references, metric)


def test_options_move_on_by_one_place_a_run_and_the_reference_with_them():
    variation, sample = RotatedOptions(), make_sample()
    assert variation.vary(sample, 9, 0) == variation.vary(sample, 1, 3)
    assert variation.vary(sample, 9, 0).question == QUESTION and variation.vary(sample, 9, 0).draw is None
    one, two = variation.vary(sample, 9, 1), variation.vary(sample, 9, 2)
    assert one.question == "Which one?\nA. a dog\nB. \\1 {x}\nC. a cat\nAnswer with the letter."
    assert two.question == "Which one?\nA. \\1 {x}\nB. a cat\nC. a dog\nAnswer with the letter."
    assert (one.references, two.references) == (("A",), ("C",))
    # Lines of a context that look like options stay where they are.
    context = "A. note\nB. note\nC. note\nD. note\n\n"
    assert variation.vary(make_sample(context + QUESTION), 9, 1).question == context + one.question


@pytest.mark.parametrize(
    ("sample", "num_runs", "suits"),
    [
        (make_sample(), 3, True),
        (make_sample(), 4, False),
        (make_sample(metric="exact"), 2, False),
        (make_sample("What is it?"), 2, False),
        (make_sample("Which?\nA. one\nC. three\nB. two"), 2, False),
        (make_sample("Which?\nA. one"), 2, False),
    ],
)
def test_questions_need_as_many_options_as_runs(sample, num_runs, suits):
    assert RotatedOptions().suits(sample, num_runs) == suits
    assert DrawnAnswers().suits(sample, num_runs)


def test_rotated_runs_of_a_real_model(tmp_path):
    """Run 0 is what was labelled; questions with fewer options than runs are left out."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (60, 40), "red").save(tmp_path / "images" / "a.png")
    rows = [
        {
            "question_id": number,
            "image": "a.png",
            "text": f"What is {number}?",
            "choices": choices,
            "answer": 0,
        }
        for number, choices in enumerate([["red", "blue"], ["red", "blue", "green"], ["a", "b", "c"]])
    ]
    task = make_task(
        tmp_path,
        rows,
        fractions={"test": 1.0},
        metric="multiple_choice_letter",
        fields={"choices": "choices"},
    )
    backbone = LlavaBackbone("tiny_m3", dtype="float32", device="cpu")
    labels = tmp_path / "labels"
    label(task=task, backbone=backbone, folder=labels, num_workers=0)
    test = read_outcomes(labels, "test")
    variation = RotatedOptions()
    folder = ResampledFolder(labels, test.fingerprints, variation.identity)
    with pytest.raises(ValueError, match="has 4 different variants"):
        resample_answers(backbone, task, test, folder, variation, num_images=None, num_runs=4)
    found = resample_answers(backbone, task, test, folder, variation, num_images=None, num_runs=3)
    assert [test.sample_id[row] for row in found.rows] == ["mine/1", "mine/2"]
    assert np.array_equal(found.score[0], test.score[found.rows])
    drawn = DrawnAnswers()
    with pytest.raises(ValueError, match=r"options=rotated, not temperature=1\.0, seed=0"):
        ResampledFolder(labels, test.fingerprints, drawn.identity).begin(test.sample_id)
