"""Cost measures: visual tokens, FLOPs and milliseconds of an answer, with the overhead of the predictor.

A cost has named parts:

    vision      the vision pass
    prefill     the decoder on the whole prompt, until the first token of the answer
    decode      the decoder on the further tokens of the answer
    predictor   the overhead: features, question encoder and estimates of the policy that chooses the scale

Visual tokens are the usual measure in the literature; a predictor adds none unless the decoder runs for
it. FLOPs are vision + prefill + predictor, by formula (`m3_backbone.costs`). They are counted up to the first
token of the answer, as answers differ in length. Milliseconds are vision + prefill + decode + predictor, all
measured in one process on one machine (`experiments.latency`) with a few images. Tokens are no proxy for
latency: a decoder takes about as long for one visual token as for a hundred.

The family of the backbone (`m3_backbone.ladder`) says what is paid once. Let V(s) be the vision pass and P(s)
the prefill of an answer at scale s by itself, and 1 the coarsest scale. The scales a, ..., b that are tried
in turn on a sample cost

    pooled        V(1) + P(a) + ... + P(b)                   one vision pass serves all scales
    thumbnail     V(a) + P(a) + ... + V(b) + P(b) - (b - a) V(1)
                                                             each V(s) includes V(1), which is paid once
    native        V(a) + P(a) + ... + V(b) + P(b)            each scale has a vision pass of its own

Every scale has a prefill of its own in all families. A scale that coincides with the next coarser one on a
sample costs nothing more, because it is not answered again.

A predictor that reads visual tokens or statistics of them needs the vision pass of the coarsest scale. For a
native backbone this pass is sunk: V(1) is added to every answer of its policy (`VISION_FOR_PREDICTOR`),
except if the first scale tried is, or coincides with, the coarsest one, which uses the same pass. In the
other families every answer includes V(1) already. Visual tokens are not affected.

A predictor that reads the state of the decoder after the coarsest scale needs the prefill of that scale too.
Its visual tokens, its FLOPs P(1) or its milliseconds are added in the same way in every family
(`PREFILL_FOR_PREDICTOR`): an answer at the coarsest scale is decoded from the same prefill.

A predictor that reads self-asking needs a prefill of the coarsest scale with a prompt of its own, and one
token more. Their visual tokens and FLOPs are part of its overhead at every scale: no answer is decoded from
them.

A new cost measure is a function that returns a `CostMeasure`, and a line in `list_cost_measures`.
"""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from operator import add

import numpy as np

from m3_backbone.ladder import Family, find_coarsest
from m3_backbone.outcomes.labels import Inputs
from m3_backbone.outcomes.table import OutcomeTable
from predictor.base import ScalePredictor
from predictor.policy.front import Floats

log = logging.getLogger(__name__)

# Function from a table to the cost of every sample at every scale, `[num_samples, num_scales]`.
CostOf = Callable[[OutcomeTable], Floats]

VISION, PREFILL, PREFILL_AND_DECODE = "vision", "prefill", "prefill and decode"
VISION_FOR_PREDICTOR, PREFILL_FOR_PREDICTOR = "vision for predictor", "prefill for predictor"

# Second seed of the random numbers that resample images, so that they are independent of the test images.
_STREAM = 0x71E5


@dataclass(frozen=True, eq=False)
class TimingMeans:
    """Mean milliseconds under each of R resamples.

    `cost` `[R, num_scales]` is the time of a whole answer at each scale, the vision pass included. `shared`
    `[R]` is the part of it that is paid once however many scales are tried. `overhead` `[R]`, by name, is the
    overhead of each predictor. `sunk` `[R]`, by name, is the vision pass or the prefill of the coarsest
    scale, or both, for the predictors that need them beside those of the chosen scale.
    """

    cost: Floats
    shared: Floats
    overhead: Mapping[str, Floats]
    sunk: Mapping[str, Floats] = field(default_factory=dict)

    def __getitem__(self, resamples: slice) -> "TimingMeans":
        """Return the means under some of the resamples."""
        overhead, sunk = (
            {name: milliseconds[resamples] for name, milliseconds in part.items()}
            for part in (self.overhead, self.sunk)
        )
        return TimingMeans(self.cost[resamples], self.shared[resamples], overhead, sunk)

    def cost_of_policy(self, tried: Sequence[Floats], begin: Floats, name: str | None) -> Floats:
        """Return the mean milliseconds of a policy at its operating points, `[R, num_points]`.

        `tried` holds for each scale the share of the samples that try it, `begin` the share of those whose
        first scale is or coincides with the coarsest one, each `[R, num_points]`. `name` is the
        predictor whose overhead is added to every answer, if any. The cost is the vision pass and the
        overhead, once, plus the sum over scales of the share times prefill and decoding. What is sunk
        is added for the samples that begin with another scale.
        """
        shared = self.shared
        if name is not None and name in self.overhead:
            shared = shared + self.overhead[name]
        total = np.repeat(shared[:, None], tried[0].shape[1], axis=1)
        for scale, share in enumerate(tried):
            total += share * (self.cost[:, scale] - self.shared)[:, None]
        if name is not None and name in self.sunk:
            total += (1 - begin) * self.sunk[name][:, None]
        return total


@dataclass(frozen=True, eq=False)
class Timings:
    """Milliseconds per answer of each timed image, averaged over rounds.

    `vision` is the time of the vision pass: `[num_images]` if one serves all scales, otherwise `[num_images,
    num_scales]`. `answer` `[num_images, num_scales]` is that of prefill and decoding, `overhead`
    `[num_images]`, by name, of each predictor. `vision_readers` are the names of the predictors that need the
    vision pass of the coarsest scale, `state_readers` those that need its prefill, which takes `prefill`
    `[num_images]`. If long answers were timed, `first_token` and `per_token` `[num_images, num_scales]` are
    the times of the prefill and of each further token. `family` is that of the backbone; where one vision
    pass serves all scales, it is pooled in any case. With a `batch_size` above 1, an array row stands for a
    batch of that many images and holds the time per image. Each row was timed in `num_rounds` rounds.
    `machine` describes the machine, its number of threads and the type of the weights.
    """

    vision: Floats
    answer: Floats
    overhead: Mapping[str, Floats]
    batch_size: int = 1
    num_rounds: int = 1
    machine: str = ""
    vision_readers: Collection[str] = ()
    state_readers: Collection[str] = ()
    prefill: Floats | None = None
    first_token: Floats | None = None
    per_token: Floats | None = None
    family: Family = "native"

    def with_length(self, num_output: int) -> "Timings":
        """Return the timings of answers of `num_output` tokens, from those of long answers.

        They are linear in the length: the prefill, and `num_output - 1` further tokens. Raises ValueError if
        long answers were not timed.
        """
        if self.first_token is None or self.per_token is None:
            raise ValueError(
                "the timings have no long answers: run `tokenscale latency latency.output_tokens=30` with "
                "the same settings"
            )
        return replace(self, answer=self.first_token + (num_output - 1) * self.per_token)

    def family_fits(self, family: Family) -> bool:
        """Return whether a vision pass was timed for each scale exactly if each scale needs its own.

        Logs a warning if not: the timings are those of an earlier version.
        """
        fits = (self.vision.ndim == 1) == (family == "pooled")
        if not fits:
            log.warning(
                "the timings are those of an earlier version, so costs in milliseconds are left out: run "
                "`tokenscale latency latency.overwrite=true` with the same settings"
            )
        return fits

    @property
    def num_pictures(self) -> int:
        """Number of timed images."""
        return len(self.vision) * self.batch_size

    def describe(self) -> dict[str, int | str]:
        """Return the numbers of images and rounds, the batch size and the machine, for JSON."""
        return {
            "num_pictures": self.num_pictures,
            "num_rounds": self.num_rounds,
            "batch_size": self.batch_size,
            "machine": self.machine,
        }

    def means(self) -> TimingMeans:
        """Return the means over all images, R = 1; unlike medians, means of parts add up to the total."""
        return self._weigh(np.full((1, len(self.vision)), 1 / len(self.vision)))

    def mean_vision(self) -> Floats:
        """Return the mean time of the vision pass of each scale, `[num_scales]`."""
        means = self.means()
        if self.vision.ndim == 1:
            return np.full(means.cost.shape[1], means.shared[0])
        return self.vision.mean(axis=0)

    def resample(self, num_resamples: int, seed: int) -> TimingMeans:
        """Return the means under `num_resamples` resamples of the images.

        All parts use the same resamples, so that noise common to two parts cancels in their difference.
        """
        number = len(self.vision)
        random = np.random.default_rng([seed, _STREAM])
        counts = random.multinomial(number, np.full(number, 1 / number), size=num_resamples)
        return self._weigh(counts / number)

    def bound(
        self, num_resamples: int, seed: int, confidence: float = 0.95
    ) -> tuple[TimingMeans, TimingMeans]:
        """Return the lower and upper ends of percentile intervals of the means, each R = 1."""
        means = self.resample(num_resamples, seed)

        def quantile(level: float) -> TimingMeans:
            overhead = {
                name: np.quantile(milliseconds, [level]) for name, milliseconds in means.overhead.items()
            }
            cost = np.quantile(means.cost, [level], axis=0)
            sunk = {name: np.quantile(milliseconds, [level]) for name, milliseconds in means.sunk.items()}
            return TimingMeans(cost, np.quantile(means.shared, [level]), overhead, sunk)

        return quantile((1 - confidence) / 2), quantile((1 + confidence) / 2)

    def with_names(
        self,
        trained: Mapping[str, str],
        vision_readers: Collection[str] = (),
        state_readers: Collection[str] = (),
        family: Family = "native",
    ) -> "Timings":
        """Return the timings with overheads by policy.

        `trained` maps each policy to its predictor; `vision_readers` and `state_readers` are predictors.
        `family` is that of the labels.
        """
        overhead = {name: self.overhead[source] for name, source in trained.items()}
        of_vision, of_states = (
            [name for name, source in trained.items() if source in readers]
            for readers in (vision_readers, state_readers)
        )
        return replace(
            self, overhead=overhead, vision_readers=of_vision, state_readers=of_states, family=family
        )

    def _weigh(self, weights: Floats) -> TimingMeans:
        """Return the means under weights of the images `[R, num_images]`, which sum to 1."""
        vision, answer = weights @ self.vision, weights @ self.answer
        overhead = {name: weights @ milliseconds for name, milliseconds in self.overhead.items()}
        is_pooled = self.vision.ndim == 1
        is_native = not is_pooled and self.family == "native"
        sunk = dict.fromkeys(self.vision_readers, vision[:, 0]) if is_native else {}
        if self.prefill is not None:
            prefill = weights @ self.prefill
            sunk |= {name: sunk.get(name, 0.0) + prefill for name in self.state_readers}
        if is_pooled:
            return TimingMeans(vision[:, None] + answer, vision, overhead, sunk)
        # The vision pass of a thumbnail is part of that of every scale.
        shared = np.zeros(len(weights)) if is_native else vision[:, 0]
        return TimingMeans(vision + answer, shared, overhead, sunk)


@dataclass(frozen=True)
class Part:
    """A named part of a cost; `of` returns it for every sample and scale, `[num_samples, num_scales]`.

    With `is_shared`, the part is the vision pass: what the tried scales share of it follows from the
    family of the backbone.
    """

    name: str
    of: CostOf
    is_shared: bool = False


@dataclass(frozen=True, eq=False)
class CostMeasure:
    """Cost of an answer: the sum of its `parts`, plus the `overhead` of the predictor.

    `overhead`, by name of a policy, is added to every answer; a policy without an entry adds nothing.
    `vision_readers` are the names of the policies whose predictor needs the vision pass of the coarsest
    scale, `state_readers` those whose predictor needs its prefill, which costs `coarsest_prefill`
    `[num_samples]`. If costs are measured times, `timings` are the timed images whose means they are.
    `noun` is what tables call the costs of the first measure of a comparison.
    """

    key: str
    unit: str
    label: str
    parts: Sequence[Part]
    overhead: Mapping[str, float] = field(default_factory=dict)
    vision_readers: Collection[str] = ()
    timings: Timings | None = None
    state_readers: Collection[str] = ()
    coarsest_prefill: Callable[[OutcomeTable], Floats] | None = None
    noun: str = "visual tokens"

    def of(self, table: OutcomeTable, policy: str | None = None) -> Floats:
        """Return the cost of every sample at every scale without overhead, `[num_samples, num_scales]`.

        What the predictor of `policy` needs is included, if it is sunk (`sunk_of`).
        """
        cost = reduce(add, (part.of(table) for part in self.parts))
        return cost + self.sunk_of(table, policy) if self.has_sunk(table, policy) else cost

    def shared_of(self, table: OutcomeTable, policy: str | None = None) -> Floats:
        """Return the part of `of` that is paid once however many scales are tried, `[num_samples]`.

        It is the vision pass of the coarsest scale. For a native backbone it is 0, unless the pass is sunk. A
        sunk prefill is added.
        """
        is_shared = table.family != "native" or policy in self.vision_readers
        vision = self._coarsest_vision(table) if is_shared else np.zeros(len(table))
        return vision + self.prefill_of(table, policy)

    def has_sunk(self, table: OutcomeTable, policy: str | None) -> bool:
        """Return whether what the predictor of `policy` needs may add to the cost of an answer."""
        return policy in self.state_readers or (table.family == "native" and policy in self.vision_readers)

    def sunk_of(self, table: OutcomeTable, policy: str | None) -> Floats:
        """Return what the predictor of `policy` adds to an answer, `[num_samples, num_scales]`.

        It is the vision pass of the coarsest scale, if not every answer includes it, and the prefill of that
        scale, if the predictor reads the state of the decoder. At all scales that coincide with the coarsest
        one it is 0.
        """
        needed = self.prefill_of(table, policy)
        if table.family == "native" and policy in self.vision_readers:
            needed = needed + self._coarsest_vision(table)
        return _beyond_coarsest(table, needed)

    def prefill_of(self, table: OutcomeTable, policy: str | None) -> Floats:
        """Return the prefill of the coarsest scale for the predictor of `policy`, `[num_samples]`.

        It is 0 for a predictor that does not read the state of the decoder.
        """
        if self.coarsest_prefill is None or policy not in self.state_readers:
            return np.zeros(len(table))
        return self.coarsest_prefill(table)

    def _coarsest_vision(self, table: OutcomeTable) -> Floats:
        """Return the cost of the vision pass of the coarsest scale, `[num_samples]`."""
        return sum((part.of(table)[:, 0] for part in self.parts if part.is_shared), np.zeros(len(table)))

    def overhead_of(self, policy: str) -> float:
        """Return the cost that choosing the scale adds to every answer of a policy."""
        return self.overhead.get(policy, 0.0)

    def mean_parts(self, table: OutcomeTable) -> dict[str, Floats]:
        """Return the mean of each part over the samples, `[num_scales]`, by name of the part.

        The sunk vision pass and the sunk prefill for predictors are included if a policy pays them.
        """
        parts = {part.name: part.of(table).mean(axis=0) for part in self.parts}
        if table.family == "native" and self.vision_readers:
            vision = _beyond_coarsest(table, self._coarsest_vision(table))
            parts[VISION_FOR_PREDICTOR] = vision.mean(axis=0)
        for policy in list(self.state_readers)[:1]:
            prefill = _beyond_coarsest(table, self.prefill_of(table, policy))
            parts[PREFILL_FOR_PREDICTOR] = prefill.mean(axis=0)
        return parts


def _beyond_coarsest(table: OutcomeTable, cost: Floats) -> Floats:
    """Return a cost per sample at all scales that do not coincide with the coarsest one, and 0 there."""
    return np.where(find_coarsest(table.visual_tokens) > 0, cost[:, None], 0.0)


def _visual_tokens(table: OutcomeTable) -> Floats:
    return table.cost


def _vision_gflops(table: OutcomeTable) -> Floats:
    assert table.vision_flops is not None, "list_cost_measures omits FLOPs if they are not recorded"
    return table.vision_flops / 1e9


def _prefill_gflops(table: OutcomeTable) -> Floats:
    return table.prefill_flops / 1e9


def take_coarsest(of: CostOf, table: OutcomeTable) -> Floats:
    """Return a cost at the coarsest scale, `[num_samples]`."""
    return of(table)[:, 0]


TOKENS = CostMeasure(
    "tokens",
    "tokens",
    "mean visual tokens per question",
    [Part("visual tokens", _visual_tokens)],
    coarsest_prefill=partial(take_coarsest, _visual_tokens),
)


def count_costs(name: str) -> CostMeasure:
    """Return the cost measure whose costs have this noun: `TOKENS`, or that of imported outcomes."""
    if name == TOKENS.noun:
        return TOKENS
    label = f"mean {name} per question"
    return replace(TOKENS, unit=name, label=label, parts=[Part(name, _visual_tokens)], noun=name)


def count_flops(
    overhead: Mapping[str, float],
    vision_readers: Collection[str] = (),
    state_readers: Collection[str] = (),
) -> CostMeasure:
    """Return the cost measure in FLOPs; `overhead` is the GFLOPs per question of each policy's predictor.

    `vision_readers` are the policies whose predictor needs the vision pass of the coarsest scale,
    `state_readers` those whose predictor needs its prefill.
    """
    return CostMeasure(
        "flops",
        "GFLOPs",
        "mean GFLOPs of vision pass, prefill and predictor per question",
        [Part(VISION, _vision_gflops, is_shared=True), Part(PREFILL, _prefill_gflops)],
        overhead,
        vision_readers,
        state_readers=state_readers,
        coarsest_prefill=partial(take_coarsest, _prefill_gflops),
    )


def count_milliseconds(timings: Timings) -> CostMeasure:
    """Return the cost measure in milliseconds: means over timed images, the same for every sample."""
    means = timings.means()
    (cost,) = means.cost
    vision = timings.mean_vision()
    return CostMeasure(
        "milliseconds",
        "ms",
        f"milliseconds per answer at batch size {timings.batch_size}, vision pass and predictor included",
        [
            Part(VISION, partial(_repeat, vision), is_shared=True),
            Part(PREFILL_AND_DECODE, partial(_repeat, cost - vision)),
        ],
        {name: float(mean[0]) for name, mean in means.overhead.items()},
        timings.vision_readers,
        timings,
        timings.state_readers,
        None if timings.prefill is None else partial(_repeat_once, float(timings.prefill.mean())),
    )


def _repeat_once(value: float, table: OutcomeTable) -> Floats:
    """Repeat a number for every sample of a table: `[num_samples]`."""
    return np.full(len(table), value)


def _repeat(at_scales: Floats, table: OutcomeTable) -> Floats:
    """Repeat `[num_scales]` for every sample of a table: `[num_samples, num_scales]`."""
    assert len(at_scales) == len(table.scales)
    return np.tile(at_scales, (len(table), 1))


def list_cost_measures(
    outcomes: OutcomeTable,
    predictors: Mapping[str, ScalePredictor],
    inputs: Inputs,
    *,
    starts_from: Mapping[str, str] | None = None,
    timings: Timings | None = None,
) -> list[CostMeasure]:
    """Return the cost measures that labels and timings allow, visual tokens first.

    `outcomes` may be of any split. The predictors' FLOPs are counted on `inputs`. `starts_from` maps the name
    of another policy to the predictor whose estimates it uses and whose overhead it pays. FLOPs are omitted
    if the labels lack those of the vision pass, milliseconds if there are no `timings`. Imported outcomes
    have the costs of their options only.
    """
    predictor_of = {name: name for name in predictors} | dict(starts_from or {})
    if outcomes.options is not None:
        return [count_costs(outcomes.options.cost)]  # costs of predictors and of options have no common unit
    vision_readers = [
        policy for policy, name in predictor_of.items() if predictors[name].features.reads_vision
    ]
    state_readers = [
        policy for policy, name in predictor_of.items() if predictors[name].features.decoder_state
    ]
    coarsest = float(inputs.visual_tokens[:, 0].mean())
    asking = {
        policy: coarsest for policy, name in predictor_of.items() if predictors[name].features.self_asking
    }
    measures = [TOKENS]
    if state_readers or asking:
        measures = [replace(TOKENS, state_readers=state_readers, overhead=asking)]
    if outcomes.vision_flops is None:
        log.warning(
            "the labels were made by an earlier version and lack FLOPs of the vision pass, so costs in FLOPs "
            "are left out: run `tokenscale label` again with the same settings, which adds them "
            "without answering any question again"
        )
    else:
        gflops = {name: predictor.count_flops(inputs) / 1e9 for name, predictor in predictors.items()}
        overhead = {policy: gflops[name] for policy, name in predictor_of.items()}
        measures.append(count_flops(overhead, vision_readers, state_readers))
    if timings is not None and timings.family_fits(outcomes.family):
        readers = [name for name, predictor in predictors.items() if predictor.features.reads_vision]
        of_states = [name for name, predictor in predictors.items() if predictor.features.decoder_state]
        measures.append(
            count_milliseconds(timings.with_names(predictor_of, readers, of_states, outcomes.family))
        )
    return measures
