"""Self-asking: whether the model says that it can answer a question from what it sees."""

from collections.abc import Sequence

import numpy as np

from m3_backbone.backbone import Backbone, EncodedImage

PLACEHOLDER = "{question}"
# Spellings of the two answers; the likelier spelling of each counts.
_YES, _NO = ("yes", "Yes"), ("no", "No")


def check_prompt(prompt: str) -> None:
    """Raise ValueError for a prompt without `{question}`, for which the question is put in."""
    if PLACEHOLDER not in prompt:
        raise ValueError(f"self_asking_prompt={prompt}: write {PLACEHOLDER} where the question is put in")


def check_asking(backbone: Backbone, question: str, prompt: str) -> None:
    """Raise ValueError if the model cannot be asked about this question at its coarsest scale."""
    backbone.check_question(prompt.replace(PLACEHOLDER, question), (*_YES, *_NO), backbone.scales[0])


def ask_whether(
    backbone: Backbone, encoded: Sequence[EncodedImage], questions: Sequence[str], prompt: str
) -> np.ndarray:
    """Log-odds, float32 `[num_questions]`, of the answer yes against no to `prompt` about each question.

    The model sees encoded[i] at the coarsest scale; yes and no end with the end token. Models know to some
    extent what they know (Kadavath et al., arXiv 2207.05221), if they are large or trained for it. Raises
    ValueError if a likelihood is not finite.
    """
    asked = [prompt.replace(PLACEHOLDER, question) for question in questions]
    # In one call, so that both answers share the tokens of the image and the prompt.
    answers = backbone.answer(
        [*encoded, *encoded],
        [*asked, *asked],
        backbone.scales[0],
        references=[*[_YES] * len(asked), *[_NO] * len(asked)],
    )
    log_likelihoods = []
    for answer in answers:
        answer.check_finite()
        assert answer.nll is not None and answer.reference_tokens is not None
        log_likelihoods.append(-answer.nll * answer.reference_tokens)
    yes, no = np.array(log_likelihoods, dtype=np.float32).reshape(2, len(asked))
    return yes - no


def count_asking_flops(backbone: Backbone, image_size: tuple[int, int], question: str, prompt: str) -> int:
    """Floating-point operations of asking: a prefill of the coarsest scale, and one further token."""
    asked = prompt.replace(PLACEHOLDER, question)
    return backbone.prefill_flops(image_size, asked, backbone.scales[0]) + backbone.decode_flops_per_token()
