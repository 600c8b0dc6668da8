"""Pictures on offer are training pictures."""

import json

from PIL import Image

from experiments.serving.demo.examples import find_offer
from experiments.tasks.llava_jsonl import LlavaJsonl
from experiments.tasks.scenes import Scenes


def test_offered_pictures_are_training_pictures_with_questions_of_many_types():
    task = Scenes(num_images={"train": 60, "calibration": 5, "test": 5})
    offer = find_offer(task, 6)
    samples = list(task.samples("train"))
    by_image = {sample.image_id for sample in samples}
    assert len(offer.examples) == 6
    for example, image_id in zip(offer.examples, sorted(by_image), strict=False):
        assert example.image.tobytes() == task.image(image_id).tobytes()
        (kind,) = {
            sample.attributes["kind"]
            for sample in samples
            if (sample.image_id, sample.question) == (image_id, example.question)
        }
        assert offer.questions[kind]
    assert len({example.question for example in offer.examples}) == 6
    assert list(offer.questions) == sorted(offer.questions) and len(offer.questions) > 5


def test_pictures_that_cannot_be_read_are_left_out(tmp_path):
    rows = [{"question_id": i, "image": f"{i}.png", "text": f"What {i}?", "answer": "red"} for i in range(30)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for number in range(0, 30, 2):
        Image.new("RGB", (9, 9)).save(tmp_path / f"{number}.png")
    task = LlavaJsonl(name="mine", questions=str(tmp_path / "q.jsonl"), images=str(tmp_path), metric="exact")
    offer = find_offer(task, 4)
    assert len(offer.examples) == 4
    assert all(int(example.question[5:-1]) % 2 == 0 for example in offer.examples)
