"""Interface of all predictors: `fit` on labels, `predict` from inputs alone, `save` without pickle.

Baselines, networks, meta-estimators and controls share this interface, so that any of them can be trained,
evaluated and deployed in place of another.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, Self, TypedDict, cast

import numpy as np

from m3_backbone.outcomes.labels import Inputs, Labels
from predictor import folder as folders
from predictor.calibration import Calibrator
from predictor.features import Features, resolve_positions
from predictor.files import FolderError, add_prefix, select_arrays, shorten
from predictor.policy.front import Floats

CALIBRATOR = "calibrator."  # prefix of the names of a calibrator's arrays


@dataclass(frozen=True)
class FitContext:
    """Resources of a fit besides its data; predictors that need none of them ignore it.

    `folder` holds the checkpoint of an interrupted fit, from which the same fit resumes.
    `make_trainer(**kwargs)` returns a `lightning.Trainer` for this machine; `kwargs` include the predictor's
    callbacks.
    """

    folder: Path | None = None
    make_trainer: Callable[..., Any] | None = None


class PredictorState(TypedDict):
    """Everything that a fitted predictor has learned: arrays, and other values as JSON.

    `scales` and `fingerprints` are those of the training labels. `arrays` and `state` hold the values that
    its class needs to predict. If it is calibrated, `calibrator` describes the class of the calibrator (see
    `folder.describe`), and the names of the calibrator's arrays begin with `CALIBRATOR`.
    """

    scales: list[int]
    fingerprints: dict[str, str]
    state: dict[str, Any]
    arrays: dict[str, np.ndarray]
    calibrator: NotRequired[dict[str, Any]]


class ScalePredictor(folders.Buildable, ABC):
    """Estimates, for each sample and scale, the probability that the frozen backbone's answer is correct.

    A subclass keeps the arguments of its `__init__` unchanged in attributes of the same names, as estimators
    of scikit-learn do, and implements `_fit`, `_predict`, `_get_state` and `_set_state`. `features` are the
    features of a sample that it reads besides the text of the question and the name of the task; no others
    have to be computed for it. If `Features` in the arguments name positions of scales, `fit` replaces them
    by the scales of the training labels, so that a fitted or saved predictor names scales only. `scales` and
    `fingerprints`, set by `fit`, identify the ladder, the backbone and the data of training. A predictor that
    contains others uses only their public methods, such as `state_dict` and `load_state_dict`.
    """

    name: str
    features: Features = Features()
    scales: tuple[int, ...] | None = None
    fingerprints: Mapping[str, str] | None = None
    calibrator: Calibrator | None = None

    def fit(self, train: Labels, validation: Labels, context: FitContext | None = None) -> Self:
        """Learn from `train`; choices that depend on results are made on `validation`. Returns itself.

        Raises ValueError if the two parts come from different labellings, share an image, or are empty.
        """
        for part_name, part in (("train", train), ("validation", validation)):
            if not len(part):
                raise ValueError(f"{self.name} cannot be fitted: the {part_name} part has no samples")
        scales, validation_scales = train.outcomes.scales, validation.outcomes.scales
        if scales != validation_scales:
            raise ValueError(
                f"train has scales {list(scales)}, validation {list(validation_scales)}: label both with the "
                "same backbone"
            )
        _check_fingerprints(
            "the validation part", validation.outcomes.fingerprints, train.outcomes.fingerprints
        )
        shared = set(train.outcomes.cluster_id) & set(validation.outcomes.cluster_id)
        if shared:
            raise ValueError(
                f"image {min(shared)!r} is in train and in validation: split by image, or by cluster if "
                "samples have one"
            )
        self.calibrator = None
        self._resolve_positions(tuple(train.inputs.visual), train.inputs.asking_prompt)
        self._fit(train, validation, context or FitContext())
        self.scales, self.fingerprints = scales, dict(train.outcomes.fingerprints)
        return self

    def calibrate(self, labels: Labels, calibrator: Calibrator) -> Self:
        """Fit `calibrator` on samples that were not trained on; `predict` then applies it. Returns itself."""
        self.calibrator = None
        score = labels.outcomes.score.astype(np.float64)
        self.calibrator = calibrator.fit(self.predict(labels.inputs), score)
        return self

    def predict(self, inputs: Inputs) -> Floats:
        """Estimates `[num_samples, num_scales]` in [0, 1]. Inputs hold no outcomes.

        Raises ValueError before `fit`, and for inputs of another ladder.
        """
        if self.scales is None:
            raise ValueError(f"{self.name} is not fitted: call fit, or load a saved one")
        if tuple(inputs.scales) != self.scales:
            raise ValueError(
                f"{self.name} was trained for scales {list(self.scales)}, not {list(inputs.scales)}: "
                "train one on labels of this backbone"
            )
        estimates = np.asarray(self._predict(inputs), dtype=np.float64)
        assert estimates.shape == (len(inputs), len(self.scales))
        return estimates if self.calibrator is None else self.calibrator.apply(estimates)

    def check_backbone(self, fingerprints: Mapping[str, str]) -> None:
        """Raise ValueError if weights, prompt or decoding differ from those of the training labels.

        The data may differ: a predictor may be applied to another task. Keys that `fingerprints` lacks are
        not checked.
        """
        assert self.fingerprints is not None, "fit or load first"
        relevant = {key: value for key, value in fingerprints.items() if key != "data"}
        _check_fingerprints(f"predictor {self.name}", self.fingerprints, relevant)

    def state_dict(self) -> PredictorState:
        """Return the values learned by `fit` and `calibrate`, for `load_state_dict`. Arrays are not copied.

        Raises ValueError for a predictor that is not fitted.
        """
        if self.scales is None or self.fingerprints is None:
            raise ValueError(f"{self.name} is not fitted: there is nothing to save")
        arrays, state = self._get_state()
        content = PredictorState(
            scales=list(self.scales), fingerprints=dict(self.fingerprints), state=state, arrays=arrays
        )
        if self.calibrator is not None:
            content["calibrator"] = folders.describe(type(self.calibrator), {})
            content["arrays"] = arrays | add_prefix(self.calibrator.state_dict(), CALIBRATOR)
        return content

    def load_state_dict(
        self, state: PredictorState, trust: Sequence[str] = (), *, source: Path | str = "this state"
    ) -> Self:
        """Load the `state_dict` of a predictor that has the same `get_arguments()`. Returns itself.

        `trust` is as in `load`, for the class of a calibrator; `source` is the name of the state in error
        messages. Raises ValueError for a state that does not fit these arguments.
        """
        if not isinstance(self.name, str):
            raise ValueError(f"the name of a predictor must be a text, not {self.name!r}")
        calibrator, arrays = None, state["arrays"]
        if "calibrator" in state:
            folders.check_classes([state["calibrator"]], source, trust)
            calibrator = folders.build(state["calibrator"], source)
            if not isinstance(calibrator, Calibrator):
                raise ValueError(f"{type(calibrator).__name__} is not a calibrator")
            calibrator.load_state_dict(select_arrays(arrays, CALIBRATOR))
            # This fails unless there is one temperature or map per scale.
            half = np.full((1, len(state["scales"])), 0.5)
            if calibrator.apply(half).shape != half.shape:
                raise ValueError("the calibrator was fitted for another number of scales")
        self.scales, self.fingerprints = tuple(state["scales"]), dict(state["fingerprints"])
        self.calibrator = calibrator
        # A folder of an earlier version leaves out features that had their default: the second scale of M3.
        if self.features.position is not None:
            self.features = self.features.resolve(self.scales)
        self._set_state(
            {name: array for name, array in arrays.items() if not name.startswith(CALIBRATOR)}, state["state"]
        )
        return self

    def save(self, folder: str | Path) -> None:
        """Write `config.json` (class, arguments and state) and `weights.safetensors` into `folder`."""
        content = self.state_dict()
        if missing := [key for key in folders.FINGERPRINTS if not content["fingerprints"].get(key)]:
            raise ValueError(
                f"{self.name} was fitted on labels without a fingerprint of {', '.join(missing)}: label again"
            )
        config = {**folders.describe(type(self), self.get_arguments()), **content}
        folders.write(Path(folder), config, config.pop("arrays"))

    @classmethod
    def load(cls, folder: str | Path, trust: Sequence[str] = (), *, root: Path | None = None) -> Self:
        """Load a saved predictor of this class or a subclass. Nothing is unpickled.

        A folder may name tokenscale's own classes (`folder.Buildable`), the class of this method, and classes
        in `trust`: packages, modules or classes by their dotted names. No others are imported. Links must
        stay in the folder `root`, by default `folder`. Raises FileNotFoundError if there is no predictor,
        FolderError (a ValueError) for files that are damaged or name other classes.
        """
        folder = Path(folder)
        path = folder / folders.CONFIG
        trusted = (folders.name_class(cls), *((trust,) if isinstance(trust, str) else trust))
        config, arrays = folders.read(folder, trusted, root)
        predictor_class = folders.find_class(config["class"], path)
        if not issubclass(predictor_class, cls):
            raise FolderError(f"{path} holds a {predictor_class.__name__}, not a {cls.__name__}")
        try:
            predictor: Self = folders.build(config, path)
            return predictor.load_state_dict(
                cast(PredictorState, config | {"arrays": arrays}), trusted, source=path
            )
        except FolderError:
            raise
        except Exception as error:
            # Files of another version may lack a key, or have unknown arguments or weights of another shape;
            # files of a stranger may fail in any way.
            reason = error if isinstance(error, ValueError) else repr(error)
            raise FolderError(
                f"the predictor in {path} and {folders.WEIGHTS} cannot be loaded, damaged or of another "
                f"version of the code ({shorten(reason)}): train it again, or fetch the folder again"
            ) from error

    @property
    def reads_backbone(self) -> bool:
        """Whether `predict` needs weights of the backbone: its vision tower or its token embeddings.

        Without them remain the text of the question, sentence encoders, and statistics of the pixels. A
        subclass that reads the question as text and not as token ids overrides this property.
        """
        return self.features.reads_vision or self.features.question

    @property
    def reads_pixels(self) -> bool:
        """Whether `predict` needs the pixels of an image, besides what `reads_backbone` says."""
        return self.features.reads_pixels

    @property
    def num_parameters(self) -> int:
        """Number of learned values."""
        return sum(array.size for array in self._get_state()[0].values())

    def count_flops(self, inputs: Inputs) -> float:
        """Floating-point operations per sample of the features and of `predict`."""
        return self.features.count_flops(inputs) + self.count_own_flops(inputs)

    def count_own_flops(self, inputs: Inputs) -> float:
        """Floating-point operations per sample of `predict`, without its features.

        0 for predictors that only look up a value. Subclasses override this method and not `count_flops`, so
        that features that several parts of a predictor read are counted once.
        """
        return 0.0

    def get_arguments(self) -> dict[str, Any]:
        """Names and values of the arguments of `__init__`."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def _resolve_positions(self, stored: Sequence[int], asking_prompt: str | None) -> None:
        """Resolve the features in the arguments and in `features` (`features.resolve_positions`)."""
        for name, value in {**self.get_arguments(), "features": self.features}.items():
            resolved = resolve_positions(value, stored, asking_prompt)
            if resolved is not value:
                setattr(self, name, resolved)

    @abstractmethod
    def _fit(self, train: Labels, validation: Labels, context: FitContext) -> None: ...

    @abstractmethod
    def _predict(self, inputs: Inputs) -> Any: ...

    @abstractmethod
    def _get_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return the values learned by `_fit`: arrays, and other values as JSON types."""

    @abstractmethod
    def _set_state(self, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> None:
        """Restore values of `_get_state`; `scales` and `fingerprints` are set. ValueError if invalid."""


def _check_fingerprints(owner: str, actual: Mapping[str, str], expected: Mapping[str, str]) -> None:
    differing = [key for key in sorted(actual.keys() & expected.keys()) if actual[key] != expected[key]]
    if differing:
        details = ", ".join(f"{key} {actual[key]} instead of {expected[key]}" for key in differing)
        raise ValueError(f"{owner} comes from another labelling ({details}): label and train again")
