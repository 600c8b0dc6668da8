"""Questions between prefill and answer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from m3_backbone.backbone import Answer
from m3_backbone.decoding.decoding import Decoder, DecoderState, StartedAnswers, Watch, renumber


@dataclass(frozen=True, eq=False)
class Prefilled:
    """Questions after their prefill (`m3_backbone.backbone.PrefilledQuestions`).

    `place_of` maps the number of a question to its batch and its row there.
    """

    decoder: Decoder
    batches: Sequence[StartedAnswers]
    place_of: Mapping[int, tuple[int, int]]
    decode_text: Callable[[Sequence[int]], str]

    @property
    def states(self) -> list[DecoderState]:
        states = [batch.states for batch in self.batches]
        return [states[batch][row] for _, (batch, row) in sorted(self.place_of.items())]

    def answer(
        self, numbers: Sequence[int], num_tokens: int | None = None, watch: Watch | None = None
    ) -> list[Answer]:
        answers: dict[int, Answer] = {}
        for batch, started in enumerate(self.batches):
            rows = {
                number: row for number in numbers for place, row in [self.place_of[number]] if place == batch
            }
            numbers_of = {row: number for number, row in rows.items()}
            decoded = self.decoder.finish(
                started, list(rows.values()), num_tokens, renumber(watch, numbers_of)
            )
            answers |= {
                number: Answer(self.decode_text(result.token_ids), **vars(result))
                for number, result in zip(rows, decoded, strict=True)
            }
        return [answers[number] for number in numbers]
