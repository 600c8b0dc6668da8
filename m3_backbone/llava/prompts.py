"""How a question is put to the model, and how the answer follows."""

from dataclasses import dataclass

IMAGE = "<image>"


@dataclass(frozen=True)
class PromptTemplate:
    """`text` holds `<image>` and `{question}`; `lead` stands between the prompt and the answer.

    `later` is how a conversation goes on with its next question, after the end token of the answer before.
    """

    name: str
    text: str
    later: str
    lead: str

    def format(self, question: str) -> str:
        """The whole prompt, `<image>` in the place of the visual tokens."""
        return self.text.replace("{question}", without_image(question))

    def format_later(self, question: str) -> str:
        """What follows the end token of the last answer."""
        return self.later.replace("{question}", without_image(question))


def without_image(question: str) -> str:
    """The question itself; ValueError where it holds the mark that stands for the image."""
    if IMAGE in question:
        raise ValueError(f"the question holds {IMAGE!r}, the mark of the image, take it out: {question!r}")
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
    """The template of that name; ValueError, naming those that there are, for another."""
    if name not in PROMPTS:
        raise ValueError(f"no prompt template {name!r}: choose one of {', '.join(PROMPTS)}")
    return PROMPTS[name]
