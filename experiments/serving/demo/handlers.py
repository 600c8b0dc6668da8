"""What the page calls: values of a form in, HTML out. Every value may come from a stranger."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from experiments.serving.adaptive import describe_escalation, describe_point
from experiments.serving.demo.rendering import render, render_answers, render_views
from experiments.serving.demo.trial import Trial, try_scales
from experiments.serving.demo.uploads import read_upload
from experiments.serving.errors import RequestError, refuse
from experiments.serving.limits import Limits, check_question_text
from predictor.adaptive.model import AdaptiveVLM

log = logging.getLogger(__name__)

BUDGET, PRICE = "budget", "price"
MAX_PRICE = 1.0  # the whole score for one answer at the finest scale
_MAX_MESSAGE = 300

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Terms:
    """How the scale is chosen: the name of an operating point, `budget` or `price`, and their values.

    `budget` is in mean visual tokens, `price` in units of score for one answer at the finest scale.
    """

    mode: object
    budget: object
    price: object
    escalates: object


class Demo:
    """Answers the page's calls with an adaptive model.

    A call that cannot be answered gives a message in place of the answer, whatever its values are; errors of
    the program are logged, and the message does not show them.

    Args:
        model: the adaptive model.
        limits: sizes of files, pictures and questions.
        folder: folder of uploaded files; others are not read.
    """

    def __init__(self, model: AdaptiveVLM, limits: Limits, folder: Path) -> None:
        self.model, self.limits, self.folder = model, limits, folder

    @property
    def modes(self) -> list[str]:
        """Names of the operating points, then `budget` and `price`."""
        return ["default", *self.model.prices.named, BUDGET, PRICE]

    @property
    def budgets(self) -> tuple[float, float]:
        """Smallest and largest budget that changes the choice, in mean visual tokens."""
        costs = [point.cost for point in self.model.prices.points]
        return math.ceil(min(costs) * 10) / 10, math.ceil(max(costs) * 10) / 10

    def ask(self, picture: object, question: object, terms: Terms) -> tuple[Trial | None, str, str]:
        """Return the trial of a question about an uploaded picture, its answers and its views as HTML."""

        def work() -> tuple[Trial | None, str, str]:
            text = self._read_question(question)
            image = read_upload(picture, self.folder, self.limits)
            trial = try_scales(self.model, image, text)
            return trial, self._render(trial, terms), render_views(self.model.backbone, image)

        return _answer(work, lambda message: (None, message, ""))

    def choose(self, trial: Trial | None, terms: Terms) -> str:
        """Return the answers of a trial as HTML, with the choice on other terms; empty without a trial."""
        if trial is None:
            return ""
        return _answer(lambda: self._render(trial, terms), lambda message: message)

    def _read_question(self, question: object) -> str:
        if not isinstance(question, str):
            raise refuse("the question is not a text: ask something")
        return check_question_text(question.strip(), self.limits)

    def _render(self, trial: Trial, terms: Terms) -> str:
        """Return the answers as HTML. Raises ValueError for terms that the model does not have."""
        name, budget, price = self._read_terms(terms)
        if not isinstance(terms.escalates, bool):
            raise refuse("escalate is yes or no")
        if terms.escalates:
            hybrid = self.model.find_hybrid(price=price, budget=budget, point=name)
            chosen = trial.escalate(hybrid)
            return render_answers(trial, chosen, describe_escalation(hybrid, chosen), shows_path=True)
        point = self.model.prices.find(price=price, budget=budget, name=name)
        chosen = trial.choose(point)
        return render_answers(trial, chosen, describe_point(point, chosen.choice))

    def _read_terms(self, terms: Terms) -> tuple[str | None, float | None, float | None]:
        """Return name, budget and price, of which one is given. Raises RequestError for anything else."""
        if terms.mode not in self.modes:
            raise refuse(f"no such operating point: choose one of {', '.join(self.modes)}")
        if terms.mode == BUDGET:
            return None, _read_number("budget", terms.budget, *self.budgets), None
        if terms.mode == PRICE:
            return None, None, _read_number("price", terms.price, 0.0, MAX_PRICE)
        return str(terms.mode), None, None


def _read_number(name: str, value: object, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise refuse(f"the {name} must be a number from {low:g} to {high:g}")  # nan is not, either
    return float(value)


def _answer(work: Callable[[], Result], fail: Callable[[str], Result]) -> Result:
    """Return the result of `work`, or `fail` of a message as HTML."""
    try:
        return work()
    except (ValueError, OSError) as error:
        message = error.message if isinstance(error, RequestError) else str(error)
        if isinstance(error, OSError) and not isinstance(error, ValueError):  # has paths of this machine
            log.exception("a file could not be read")
            message = "the picture cannot be read: upload it again"
        return fail(render("error", message=message[:_MAX_MESSAGE]))
    except Exception:
        log.exception("a question could not be answered")
        return fail(render("error", message="Internal error: see the log of the server."))
