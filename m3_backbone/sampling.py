"""Answers drawn at random: what a backbone might as well have said."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image

from m3_backbone.llava import LlavaBackbone


@torch.no_grad()
def draw_answers(
    backbone: LlavaBackbone,
    questions: Sequence[tuple[Image.Image, str]],
    token_scale: int,
    *,
    num_runs: int,
    temperature: float = 1.0,
    batch_size: int = 32,
    seed: int = 0,
) -> Iterator[list[str]]:
    """`num_runs` answers to each (image, question), drawn from the whole distribution at a temperature.

    The same seed, batch size and device give the same answers. Raises ValueError for a temperature of 0 or
    less: greedy answers are `LlavaBackbone.answer`'s.
    """
    if not temperature > 0:
        raise ValueError(f"answers are drawn at a temperature above 0, not {temperature}")
    backbone.ladder.check(token_scale)
    processor = backbone.processor
    model: Any = backbone.model
    for start in range(0, len(questions), batch_size):
        batch = questions[start : start + batch_size]
        prompts = [processor.template.format(question) for _, question in batch]
        made = processor([image for image, _ in batch], prompts, token_scale)
        inputs = {name: each.to(model.device) for name, each in made.items()}
        with torch.random.fork_rng():
            torch.manual_seed(hash((seed, token_scale, start)) & 0xFFFFFFFF)
            output = model.generate(
                **inputs,
                token_scale=token_scale,
                do_sample=True,
                temperature=temperature,
                top_k=0,
                top_p=1.0,
                num_return_sequences=num_runs,
                max_new_tokens=backbone.max_new_tokens,
            )
        texts = [processor.decode(ids) for ids in output[:, inputs["input_ids"].shape[1] :].tolist()]
        yield from (texts[row : row + num_runs] for row in range(0, len(texts), num_runs))
