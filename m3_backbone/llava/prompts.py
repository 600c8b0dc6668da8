"""Prompt templates: the text around a question, its image and its answer."""

from dataclasses import dataclass

IMAGE = "<image>"


@dataclass(frozen=True)
class PromptTemplate:
    """Prompt of a question about an image.

    `text` contains `<image>` and `{question}`. `later` is the text of the next question of a conversation,
    after the end token of the previous answer. `lead` is the text between the prompt and the answer.
    """

    name: str
    text: str
    later: str
    lead: str

    def format(self, question: str) -> str:
        """Return the whole prompt of a question, with `<image>` in place of the visual tokens."""
        return self.text.replace("{question}", without_image(question))

    def format_later(self, question: str) -> str:
        """Return the text of the next question, after the end token of the previous answer."""
        return self.later.replace("{question}", without_image(question))


def without_image(question: str) -> str:
    """Return the question. Raises ValueError if it contains `<image>`, the placeholder of the image."""
    if IMAGE in question:
        raise ValueError(
            f"the question contains {IMAGE!r}, the placeholder of the image: remove it: {question!r}"
        )
    return question


PROMPTS = {
    template.name: template
    for template in (
        PromptTemplate(
            name="vicuna_v1",
            text=(
                "A chat between a curious user and an artificial intelligence assistant. The assistant gives"
                " helpful, detailed, and polite answers to the user's questions."
                " USER: <image>\n{question} ASSISTANT:"
            ),
            later="USER: {question} ASSISTANT:",
            lead=" ",
        ),
        PromptTemplate(
            name="short",
            text="USER: <image>\n{question} ASSISTANT:",
            later="USER: {question} ASSISTANT:",
            lead=" ",
        ),
        PromptTemplate(name="plain", text="<image>\n{question}\n", later="{question}\n", lead=""),
    )
}


def prompt_template(name: str) -> PromptTemplate:
    """Return a template of `PROMPTS` by name. Raises ValueError that lists the names for an unknown one."""
    if name not in PROMPTS:
        raise ValueError(f"no prompt template {name!r}: choose one of {', '.join(PROMPTS)}")
    return PROMPTS[name]
