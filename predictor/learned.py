"""Predictor of trained networks: a small ensemble from the epoch with the best policy on validation."""

import contextlib
import functools
import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from m3_backbone.arguments import (
    HalfOpenFraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Seed,
    checked,
)
from m3_backbone.outcomes.labels import Inputs, Labels
from predictor import folder as folders
from predictor.base import FitContext, ScalePredictor
from predictor.batches import BatchMaker
from predictor.ensemble import Ensemble, Member
from predictor.features import Features, Standard, choose_widths
from predictor.files import get_array, write_json
from predictor.networks.base import InputShape, Network
from predictor.objectives import Correctness, Objective

if TYPE_CHECKING:
    import lightning

log = logging.getLogger(__name__)


def make_quiet_trainer(**arguments: Any) -> "lightning.Trainer":
    """Return a trainer on the CPU, in this process only, that ignores environment variables of a cluster."""
    import lightning
    from lightning.pytorch.plugins.environments import LightningEnvironment

    return lightning.Trainer(
        accelerator="cpu",
        devices=1,
        plugins=[LightningEnvironment()],
        logger=arguments.pop("logger", False),
        enable_model_summary=False,
        enable_progress_bar=False,
        **arguments,
    )


# Up to this hidden size of the visual tokens, operations are too small to divide among threads.
_ONE_THREAD_HIDDEN_SIZE = 512
# Samples of a batch in `predict`: larger ones are no faster, and take memory that evaluation does not need.
_PREDICTION_BATCH = 256


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Limit PyTorch to one thread.

    With a second thread, training of such a network was 10% faster on two idle cores, but took five times as
    long beside another busy process, since threads wait for each other after every operation.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


MEAN, DEVIATION = "statistics_mean", "statistics_deviation"
QUESTION_AND_COARSE = Features(position=1, question=True)
IDENTITY, CHECKPOINTS = "identity.json", "checkpoints"
MOST_TILES = 100  # largest number of tiles of an image; supported models use at most ten


class LearnedPredictor(ScalePredictor):
    """Mean of the estimates of `num_members` networks that are trained together from different seeds.

    `network(shape, num_outputs)` returns a network and `objective(num_scales)` its objective (see
    `networks.base` and `objectives.base`); the network reads `features`. Training stops when `policy_value`
    on validation has not increased for `patience` epochs, and the weights of the epoch with the highest value
    are kept. The same data, arguments and seed give the same weights on one machine.
    """

    @checked
    def __init__(
        self,
        *,
        network: Callable[..., Network],
        objective: Callable[[int], Objective] = Correctness,
        features: Features = QUESTION_AND_COARSE,
        name: str = "learned",
        num_members: PositiveInt = 1,
        max_epochs: PositiveInt = 40,
        patience: NonNegativeInt = 10,
        batch_size: PositiveInt = 128,
        learning_rate: PositiveFloat = 1e-3,
        weight_decay: NonNegativeFloat = 0.05,
        average_decay: HalfOpenFraction = 0.99,
        seed: Seed = 0,
    ) -> None:
        self.network, self.objective, self.name, self.num_members = network, objective, name, num_members
        self.max_epochs, self.patience, self.batch_size = max_epochs, patience, batch_size
        self.learning_rate, self.weight_decay, self.seed = learning_rate, weight_decay, seed
        self.average_decay, self.features = average_decay, features
        self.validation_value: float | None = None
        self.num_epochs: int | None = None
        self._members: Ensemble | None = None
        self._shape: InputShape | None = None
        self._standard: Standard | None = None
        self._widths: list[int] = []

    @property
    def num_parameters(self) -> int:
        """Number of trained parameters of all members."""
        assert self._members is not None, "fit or load first"
        return sum(parameter.numel() for parameter in self._members.parameters())

    def count_own_flops(self, inputs: Inputs) -> float:
        """Floating-point operations of the networks on the first sample; a multiply-add counts as two."""
        assert self._members is not None and self._standard is not None, "fit or load first"
        batch = self._make_batches(inputs).make([0])
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            self._members(batch, inputs.token_embeddings.tensor)
        return float(counter.get_total_flops())

    @property
    def _reads_positions(self) -> bool:
        return getattr(self._network_class, "reads_positions", False)

    @property
    def _network_class(self) -> type[Network] | None:
        network = self.network.func if isinstance(self.network, functools.partial) else self.network
        return network if isinstance(network, type) and issubclass(network, Network) else None

    def _choose_widths(self, inputs: Inputs) -> list[int]:
        """Numbers of visual tokens per scale: those that an image gets, or the largest ones of an image."""
        if self._reads_positions:
            return choose_widths(inputs, self.features.scales)
        return [inputs.visual_at(scale).mask.shape[1] for scale in self.features.scales]

    def _make_batches(self, inputs: Inputs) -> BatchMaker:
        assert self._standard is not None
        return BatchMaker(
            inputs, self.features, self._standard, self._widths, fixed_widths=self._reads_positions
        )

    def _fit(self, train: Labels, validation: Labels, context: FitContext) -> None:
        # Imported here, since a trained predictor is loaded and used without Lightning.
        from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint

        from predictor.training import (
            MONITOR,
            AtomicCheckpointIO,
            LabelsDataModule,
            ScaleModule,
            fit_module,
        )

        if getattr(self._network_class, "reads_thumbnails", False) and self.features.thumbnail is None:
            raise ValueError(f"{self.name} reads thumbnails: set predictor.features.thumbnail, such as 64")
        self.features.read_thumbnails(train.inputs)  # fails before anything is written
        self._standard = self.features.fit_standard(train.inputs)
        self._widths = self._choose_widths(train.inputs)
        num_statistics = len(self._standard.mean) + self.features.num_sentence_columns
        self._shape = InputShape(train.inputs.hidden_size, sum(self._widths), num_statistics)
        with contextlib.ExitStack() as stack:
            # The random state of the caller is restored.
            stack.enter_context(torch.random.fork_rng())
            torch.manual_seed(self.seed)
            folder = context.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            resume_from = self._open_checkpoints(folder, train, validation)
            members = self._make_members(len(train.outcomes.scales))
            for member in members:
                member.objective.prepare(train)
            module = ScaleModule(
                members,
                train.inputs.token_embeddings.tensor,
                learning_rate=self.learning_rate,
                weight_decay=self.weight_decay,
                seed=self.seed,
            )
            best = ModelCheckpoint(
                folder / CHECKPOINTS,
                "best",
                monitor=MONITOR,
                mode="max",
                save_last=True,
                enable_version_counter=False,
            )
            stop = EarlyStopping(MONITOR, mode="max", patience=self.patience)
            average = EMAWeightAveraging(decay=self.average_decay, use_buffers=False)
            trainer = (context.make_trainer or make_quiet_trainer)(
                max_epochs=self.max_epochs, callbacks=[average, stop, best]
            )
            if trainer.world_size > 1:
                raise ValueError(f"{self.name} is light and trains on one device: trainer=cpu or trainer=gpu")
            data = LabelsDataModule(
                train, validation, self._make_batches, batch_size=self.batch_size, seed=self.seed
            )
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
            if self._shape.hidden_size <= _ONE_THREAD_HIDDEN_SIZE:
                stack.enter_context(_one_thread())
            fit_module(trainer, module, data, resume_from)
            checkpoint = torch.load(best.best_model_path, map_location="cpu", weights_only=True)
            module.load_state_dict(checkpoint["state_dict"])
            assert best.best_model_score is not None
            self.validation_value, self.num_epochs = best.best_model_score.item(), trainer.current_epoch
        self._members = members.cpu().eval()

    def _predict(self, inputs: Inputs) -> np.ndarray:
        assert self._members is not None and self._standard is not None and self._shape is not None
        expected = self._shape.hidden_size
        if inputs.hidden_size != expected:
            raise ValueError(f"{self.name} reads tokens of hidden size {expected}, not {inputs.hidden_size}")
        batches = self._make_batches(inputs)
        embeddings = inputs.token_embeddings.tensor
        with torch.inference_mode():
            parts = [self._members(batch, embeddings) for batch in batches.iterate(_PREDICTION_BATCH)]
        return torch.cat(parts).numpy()

    def _get_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        assert self._members is not None
        assert self._standard is not None and self._shape is not None
        arrays = {name: tensor.numpy() for name, tensor in self._members.state_dict().items()}
        arrays |= {MEAN: self._standard.mean, DEVIATION: self._standard.deviation}
        return arrays, {
            "shape": asdict(self._shape),
            "validation_value": self.validation_value,
            "sentences": self.features.sentence_fingerprint,
            "visual_widths": self._widths,
            "num_epochs": self.num_epochs,
            "num_parameters": self.num_parameters,
        }

    def _set_state(self, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> None:
        assert self.scales is not None
        self.features.check_sentences(state["sentences"])
        self._shape, self._widths = InputShape(**state["shape"]), state["visual_widths"]
        self.validation_value, self.num_epochs = state["validation_value"], state["num_epochs"]
        num_statistics = self._shape.num_statistics - self.features.num_sentence_columns
        self._standard = Standard(*(get_array(arrays, name, num_statistics) for name in (MEAN, DEVIATION)))
        weights = {name: array for name, array in arrays.items() if name not in (MEAN, DEVIATION)}
        self._check_sizes({name: array.shape for name, array in weights.items()})
        members = self._make_members(len(self.scales))
        members.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
        self._members = members.eval()

    def _check_sizes(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Raise ValueError unless networks with the saved arguments have weights of these shapes.

        No weights are allocated, whatever sizes a folder names. Networks of other packages, which must be
        trusted, are not checked: their `__init__` may not work on the meta device.
        """
        assert self.scales is not None and self._shape is not None
        if len({name.partition(".")[0] for name in shapes}) != self.num_members:
            raise ValueError(f"num_members is {self.num_members}, but the weights have another number")
        if getattr(self.network, "keywords", {}).get("num_layers", 0) > len(shapes):
            raise ValueError("more layers than weights")
        if self._shape.num_visual != sum(self._widths) or len(self._widths) != len(self.features.scales):
            raise ValueError("visual_widths and num_visual do not agree")
        for width, scale in zip(self._widths, self.features.scales, strict=True):
            if not 0 <= width <= MOST_TILES * scale:
                raise ValueError(f"{width} visual tokens of an image at scale {scale}")
        if all(map(folders.is_own, folders.list_classes(folders.describe(type(self), self.get_arguments())))):
            with torch.device("meta"):
                expected = self._make_members(len(self.scales)).state_dict()
            # A scalar is saved as an array of length 1.
            if {name: tuple(weight.shape) or (1,) for name, weight in expected.items()} != shapes:
                raise ValueError("the weights have other shapes than those of the networks")

    def _make_members(self, num_scales: int) -> Ensemble:
        assert self._shape is not None
        members = []
        for _ in range(self.num_members):
            objective = self.objective(num_scales)
            shape = replace(self._shape, num_statistics=self._shape.num_statistics + objective.num_inputs)
            members.append(Member(self.network(shape, objective.num_outputs), objective))
        return Ensemble(members)

    def _open_checkpoints(self, folder: Path, train: Labels, validation: Labels) -> Path | None:
        """Return the checkpoint from which an interrupted fit of the same identity resumes, or None.

        It is the last checkpoint, or the best one if the last one is damaged. If there is none, the folder is
        emptied.
        """
        import lightning

        from predictor.training import find_whole

        digest = hashlib.sha256()
        for sample_id in (*train.outcomes.sample_id, "", *validation.outcomes.sample_id):
            digest.update(f"{sample_id}\n".encode())
        identity = {
            **folders.describe(type(self), self.get_arguments()),
            "fingerprints": dict(train.outcomes.fingerprints),
            "samples": digest.hexdigest(),
            # A checkpoint depends on these versions and holds the path of the best one.
            "versions": [torch.__version__, lightning.__version__],
            "folder": str(folder.resolve()),
        }
        identity = json.loads(json.dumps(identity))
        path, best, last = (
            folder / name for name in (IDENTITY, f"{CHECKPOINTS}/best.ckpt", f"{CHECKPOINTS}/last.ckpt")
        )
        if _read_identity(path) == identity:
            whole = find_whole([best, last])
            # Each epoch writes the best one first: without it, the last one cannot be used.
            if best in whole:
                return last if last in whole else best
            if last in whole:
                log.warning("%s is trained from the start: the best checkpoint is missing", self.name)
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        write_json(path, identity)
        return None


def _read_identity(path: Path) -> Any:
    """Return the identity that a fit wrote; None if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
