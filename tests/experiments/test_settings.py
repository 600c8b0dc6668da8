"""Settings of commands: what is wrong ends in one line before anything runs."""

import shlex
import sys

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.command_line.entry_point import entry_point
from experiments.command_line.overrides import find_uncomposable
from experiments.command_line.script import find_config_dir
from experiments.settings.base import convert, read_words
from experiments.settings.check import COMMANDS, check_settings, find_settings, read_signature
from experiments.training.configured import make_predictors
from experiments.training.study import OBJECTIVES
from m3_backbone.arguments import PositiveInt, show
from m3_backbone.llava.random_llava import RandomLlavaBackbone
from predictor.learned import LearnedPredictor

CONF = find_config_dir()
GIVEN = {
    "answer": ["image=a.png", "question=what"],
    "publish": ["folder=model"],
    "recalibrate": ["output=model"],
    "compare": ["runs=[a]"],
    "compare_backbones": ["backbones=[a,b]"],
    "export": ["folder=a"],
    "import_outcomes": ["file=a.csv", "task.name=a"],
}
PREDICTORS = sorted(path.stem for path in CONF.glob("predictor/*.yaml") if path.stem != "fixed")
TASKS = sorted(path.stem for path in CONF.glob("task/*.yaml") if not path.stem.startswith("_"))
OVERLAYS = sorted(path.stem for path in CONF.glob("experiment/*.yaml"))


def read_config(command: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return compose(command, overrides=[*GIVEN.get(command, []), *overrides])


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Commands that are refused leave a run folder, too."""
    monkeypatch.chdir(tmp_path)


def check(command: str, *overrides: str) -> DictConfig:
    return check_settings(command, read_config(command, *overrides))


# Command, override, and the line that it ends in, up to the meaning of the option in brackets.
WRONG = [
    ("label", "overwrite=flase", "overwrite=flase: give true or false"),
    ("label", "overwrite=maybe", "overwrite=maybe: give true or false"),
    ("label", "limit.train=-1", "limit.train=-1: give a whole number from 0 to 1000000000, or null"),
    ("label", "limit.train=abc", "limit.train=abc: give a whole number from 0 to 1000000000, or null"),
    ("label", "limit.train=2.5", "limit.train=2.5: give a whole number from 0 to 1000000000, or null"),
    ("label", "limit.test=true", "limit.test=true: give a whole number from 0 to 1000000000, or null"),
    (
        "label",
        "limit={train:0,calibration:0,test:0}",
        "limit.train=0, limit.calibration=0, limit.test=0: give",
    ),
    ("label", "limit=10", "limit=10: give limit.NAME=... for train, calibration, test"),
    ("label", "shard_size=0", "shard_size=0: give a whole number from 1 up"),
    ("label", "images_per_batch=0", "images_per_batch=0: give a whole number from 1 up"),
    ("label", "num_workers=-1", "num_workers=-1: give a whole number from 0 to 256"),
    ("label", "num_workers=5000", "num_workers=5000: give a whole number from 0 to 256"),
    ("label", f"limit.train={10**26}", f"limit.train={10**26}: give a whole number from 0 to 1000000000"),
    (
        "label",
        "feature_scales=9",
        "feature_scales=9: give a list [...] whose items are each a whole number from",
    ),
    ("label", "shard=2", "shard=2: give i/n with i from 0 to n - 1, as 0/8"),
    ("label", "shard=8/8", "shard=8/8: give i/n with i from 0 to n - 1, as 0/8"),
    ("label", "backbone.name=../../x", "backbone.name=../../x: it names a folder, so give text without /"),
    ("label", "task.name=a/b", "task.name=a/b: it names a folder, so give text without /"),
    (
        "label",
        "task.name=.hidden",
        "task.name=.hidden: it names a folder, so give text that does not begin with",
    ),
    ("label", "task.name=null", "task.name=null: give text"),
    ("label", "task.seed=abc", "task.seed=abc: give a whole number"),
    ("label", "task.num_images.train=-1", "task.num_images.train=-1: give a whole number from 0 up"),
    ("label", "backbone.batch_size=0", "backbone.batch_size=0: give a whole number from 1 up"),
    ("label", "backbone=local", "backbone.checkpoint has no default: give backbone.checkpoint=..."),
    ("label", "engine._target_=no.Engine", "engine._target_=no.Engine: give the dotted name of a class"),
    ("label", "engine._target_=null", "engine._target_=null: give the dotted name of a class"),
    ("label", "~task._target_", "task._target_ is missing: give the dotted name of a class"),
    ("train", "~trainer._target_", "trainer._target_ is missing: give the dotted name of a class"),
    (
        "run",
        "~baselines.question_only._target_",
        "baselines.question_only._target_ is missing: give the dotted name",
    ),
    ("tune", "~study.sampler._target_", "study.sampler._target_ is missing: give the dotted name of a class"),
    ("train", "predictor.network._partial_=abc", "predictor.network._partial_=abc: give true or false"),
    ("train", "predictor.objective._partial_=null", "predictor.objective._partial_=null: give true or false"),
    (
        "train",
        "predictor.objective._partial_=false",
        "predictor.objective.num_scales is missing: predictor.objectives.Correctness needs it",
    ),
    ("label", "paths.labels=''", "paths.labels='': give the path of a file or folder"),
    ("train", "seed=abc", "seed=abc: give a whole number from 0 to 4294967295"),
    ("train", "validation_fraction=2", "validation_fraction=2: give a number above 0 and below 1"),
    ("train", "tolerance=-1", "tolerance=-1: give a number from 0 up"),
    ("train", "budget=abc", "budget=abc: give a number above 0, or null"),
    ("train", "budget=nan", "budget=nan: give a number above 0, or null"),
    ("train", "allow_small=maybe", "allow_small=maybe: give true or false"),
    ("train", "max_epochs=0", "max_epochs=0: give a whole number from 1 up, or null"),
    (
        "train",
        "optimized_metric=test/gap_share",
        "optimized_metric=test/gap_share: give one of validation/gap_sh",
    ),
    ("train", "predictor.batch_size=0", "predictor.batch_size=0: give a whole number from 1 up"),
    ("train", "predictor.max_epochs=-1", "predictor.max_epochs=-1: give a whole number from 1 up"),
    ("train", "predictor.network.dropout=1", "predictor.network.dropout=1: give a number from 0 to below 1"),
    ("train", "predictor.features=9", "predictor.features=9: give an object {_target_: Features, ...}"),
    (
        "train",
        "predictor.objective=3",
        "predictor.objective=3: give an object {_target_: CLASS, _partial_: true",
    ),
    (
        "train",
        "+predictor.epochs=3",
        "predictor.epochs=3: predictor.learned.LearnedPredictor has no such argument",
    ),
    (
        "train",
        "~predictor.network",
        "predictor.network is missing: predictor.learned.LearnedPredictor needs it",
    ),
    ("train", "~trainer", "trainer is missing: give trainer=..."),
    ("train", "+trainer.epochs=3", "trainer.epochs=3: lightning.Trainer has no such argument"),
    ("evaluate", "guarantee.alpha=abc", "guarantee.alpha=abc: give a number from 0 to 1"),
    ("evaluate", "guarantee.delta=0", "guarantee.delta=0: give a number above 0 and below 1"),
    ("evaluate", "guarantee.num_resplits=-1", "guarantee.num_resplits=-1: give a whole number from 0 up"),
    (
        "evaluate",
        "+guarantee.alhpa=1",
        "guarantee.alhpa=1: no such setting, give one of alpha, delta, most_questions, joint",
    ),
    ("evaluate", "num_resamples=1", "num_resamples=1: give a whole number from 2 to 1000000"),
    ("evaluate", f"num_resamples={10**11}", f"num_resamples={10**11}: give a whole number from 2 to"),
    ("evaluate", "num_budgets=1", "num_budgets=1: give a whole number from 2 up"),
    ("evaluate", "confidence=95", "confidence=95: give a number above 0 and below 1"),
    ("evaluate", "gallery=-1", "gallery=-1: give a whole number from 0 up"),
    (
        "evaluate",
        "reference=nope",
        "reference=nope: give one of the compared cross_attention, per_task, questi",
    ),
    ("evaluate", "+referense=x", "referense=x: no such setting, give one of allow_small, "),
    ("run", "latency.num_images=-1", "latency.num_images=-1: give a whole number from 0 up"),
    ("run", "latency.batch_size=200", "latency.num_images=96: give at least latency.batch_size=200 images"),
    (
        "run",
        "baselines.question_only.max_words=0",
        "baselines.question_only.max_words=0: give a whole number",
    ),
    ("resample", "num_runs=1", "num_runs=1: give a whole number from 2 up"),
    ("resample", "variation.temperature=nan", "variation.temperature=nan: give a number above 0"),
    ("resample", "overwrite=flase", "overwrite=flase: give true or false"),
    ("resample", "split=calibration", "split=calibration: give one of train, test"),
    ("train", "labels.num_images=1", "labels.num_images=1: give a whole number from 2 up, or null"),
    ("train", "labels.soft=2", "labels.soft=2: give true or false"),
    ("label_curve", "num_processes=0", "num_processes=0: give a whole number from 1 to 256"),
    ("label_curve", "validation_fraction=1", "validation_fraction=1: give a number above 0 and below 1"),
    ("granularity", "equivalence_margin=0", "equivalence_margin=0: give a number above 0 and below 1"),
    ("failures", "split=test", "split=test: give one of train, calibration"),
    ("transfer", "num_recalibration=0", "num_recalibration=0: give a whole number from 1 up"),
    ("transfer", "outcomes_of=gqa", "outcomes_of=gqa: give one of the sources, or null"),
    ("transfer", "sources=[../x]", "sources=[../x]: it names a folder, so give text without /"),
    ("tune", "study.num_trials=0", "study.num_trials=0: give a whole number from 1 up"),
    ("tune", "study.name=a/b", "study.name=a/b: it names a folder, so give text without /"),
    ("tune", "study.objectives=[accuracy]", "study.objectives=[accuracy]: give some of recovered, "),
    ("tune", "study.grace=10", "study.grace=10: give more than study.heartbeat=10 seconds"),
    ("tune", "study.storage=x", "study.storage=x: give the URL of a database"),
    ("tune", "study.sampler.n_startup_trials=abc", "study.sampler.n_startup_trials=abc: give a whole number"),
    ("answer", "escalate=perhaps", "escalate=perhaps: give true or false"),
    ("publish", "guarantee.alpha=2", "guarantee.alpha=2: give a number from 0 to 1"),
    (
        "compare_backbones",
        "backbones=[a]",
        "backbones=[a]: give a list [...] whose items are each text, at least 2",
    ),
    ("compare", "runs=[]", "runs=[]: give a list [...]"),
    ("train_backbone", "model.batch_size=0", "model.batch_size=0: give a whole number from 1 up"),
    ("train_backbone", "decoder.num_heads=5", "decoder.num_heads=5: give a divisor of hidden_size=192"),
    ("train_backbone", "image.patch_size=17", "image.patch_size=17: give a divisor of image.image_size=192"),
    (
        "figure2",
        "start.pictures_per_epoch=100000",
        "start.num_pictures=83200: give at least pictures_per_epoch=",
    ),
    ("demo", "port=70000", "port=70000: give a whole number from 0 to 65535"),
    ("demo", "num_examples=99", "num_examples=99: give a whole number from 0 to 20"),
    ("bench_adaptive", "batch_sizes=[0]", "batch_sizes=[0]: give a list [...] whose items are each a whole"),
    ("bench_labelling", "split=nope", "split=nope: give one of train, calibration, test"),
    ("bench_evaluation", "num_scales=1", "num_scales=1: give a whole number from 2 to 32"),
]


@pytest.mark.long
@pytest.mark.parametrize(("command", "override", "line"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_setting_is_one_line_with_option_value_and_what_is_allowed(command, override, line):
    with pytest.raises(ValueError) as mistake:
        check(command, override)
    assert str(mistake.value).startswith(line)
    assert "\n" not in str(mistake.value)


def test_every_wrong_setting_has_its_line():
    with pytest.raises(ValueError) as mistake:
        check("label", "shard_size=0", "limit.test=x")
    assert [line.split(":")[0] for line in str(mistake.value).splitlines()] == [
        "limit.test=x",
        "shard_size=0",
    ]


@pytest.mark.parametrize("command", sorted(path.stem for path in CONF.glob("*.yaml")))
def test_every_command_has_settings_that_its_configuration_meets_unchanged(command):
    config = read_config(command)
    assert check_settings(command, config) == config
    # Every value that a person can set is declared with its type and, but for groups, with a sentence.
    settings = find_settings(command)
    assert settings is not None and set(config) <= set(settings.model_fields)


def walk(settings, prefix=""):
    for name, field in settings.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and hasattr(kind, "model_fields"):
            yield from walk(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


@pytest.mark.parametrize("command", COMMANDS)
def test_every_setting_but_objects_says_what_it_means(command):
    described = {name for name, field in walk(find_settings(command)) if field.description}
    objects = (
        "backbone task predictor baselines calibrator trainer engine variation cascades scenes others test"
    )
    objects += " study.sampler study.pruner"
    assert {name for name, _ in walk(find_settings(command))} - described <= {*objects.split()}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlays_meet_the_settings(overlay):
    command = "train_backbone" if overlay.startswith("backbone") else "run"
    check(command, f"experiment={overlay}")


@pytest.mark.long
@pytest.mark.parametrize("predictor", PREDICTORS)
def test_the_short_overlay_works_with_every_predictor(predictor):
    stored = ["decoder_state=true", "self_asking=true", "thumbnail_size=64"]
    config = check("run", "experiment=embedded_short", f"predictor={predictor}", *stored)
    made, *_ = make_predictors(config)
    assert made.name == predictor
    assert config.predictor.get("max_epochs", 3) == 3
    if predictor == "blend":
        assert config.predictor.first.max_epochs == 3


def test_max_epochs_lowers_and_never_raises():
    assert check("train", "max_epochs=100").predictor.max_epochs == 20
    assert check("train", "max_epochs=7", "+predictor@baselines.a=mlp").baselines.a.max_epochs == 7


@pytest.mark.parametrize(
    ("word", "meant"),
    [("no", False), ("off", False), ("Yes", True), ("on", True), ("true", True), ("False", False)],
)
def test_words_for_true_and_false_are_those_of_yaml(word, meant):
    assert check("label", f"overwrite={word}").overwrite is meant


def test_numbers_that_name_something_are_text():
    config = check("label", "task.name=2024", "backbone.name=7")
    assert (config.task.name, config.backbone.name) == ("2024", "7")
    assert config.paths.labels.endswith("labels/7/2024")
    assert convert(1000.0, str, "1e3") == "1e3" and convert(True, str, "true") == "true"
    assert read_words(["task.name=1e3", "+a.b=x=y", "~gone"]) == {"task.name": "1e3", "a.b": "x=y"}


def test_whole_numbers_may_be_written_with_a_point_or_an_exponent():
    config = check("evaluate", "num_resamples=1e3")
    assert (config.num_resamples, type(config.num_resamples)) == (1000, int)


def test_new_baselines_and_settings_of_other_commands_in_an_overlay_are_fine():
    assert "mine" in check("run", "+predictor@baselines.mine=mlp").baselines
    check("train", "experiment=embedded_short")  # has settings of `latency` and `evaluate`


def test_an_object_that_is_only_named_may_lack_its_arguments():
    check("granularity", "backbone=local")
    check("train", "~backbone", "paths.labels=labels", "paths.predictors=predictors")


def test_arguments_that_go_on_to_a_base_class_are_known():
    signature = read_signature(RandomLlavaBackbone)
    assert not signature.is_open
    assert {"acceptance", "batch_size", "prompt"} <= signature.names.keys()
    assert not signature.names["checkpoint"]  # the subclass gives it
    assert read_signature(LearnedPredictor).types["batch_size"] == PositiveInt


def test_objectives_of_the_configuration_are_those_of_the_search():
    assert check("tune", f"study.objectives=[{','.join(OBJECTIVES)}]").study.objectives == list(OBJECTIVES)


def test_what_cannot_be_resolved_is_one_line(monkeypatch, capsys):
    @entry_point("train")
    def main(config: DictConfig) -> None:
        raise AssertionError

    monkeypatch.setattr(sys, "argv", ["experiments.train", "budget=${oc.env:NOT_THERE}"])
    with pytest.raises(SystemExit):
        main()
    assert "Environment variable 'NOT_THERE' not found" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["experiments.train", "trainer=null"])
    with pytest.raises(SystemExit):
        main()
    assert (
        capsys.readouterr().err
        == "error: trainer=null: give one of cpu, ddp, gpu, or ~trainer to leave it out\n"
    )


def test_settings_given_with_a_plus_are_refused_where_only_other_commands_have_them(monkeypatch, capsys):
    @entry_point("train")
    def main(config: DictConfig) -> None:
        raise AssertionError

    monkeypatch.setattr(sys, "argv", ["experiments.train", "+shard_size=5"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err.startswith("error: shard_size=5: no such setting, give one of allow_small")


def test_the_configuration_that_was_given_stays_as_it_is():
    config = read_config("label", "overwrite=no")
    before = OmegaConf.to_yaml(config)
    assert check_settings("label", config).overwrite is False
    assert OmegaConf.to_yaml(config) == before
    with pytest.raises(OmegaConfBaseException):
        check_settings("label", config).new_key = 1  # nor is the checked one open to new keys


TYPED = [
    (r"task.suffix=\nAnswer.", "\nAnswer."),
    (r'task.suffix="\nAnswer: a, b."', "\nAnswer: a, b."),
    (r"task.suffix='\nAnswer.'", r"\nAnswer."),
    (r'task.suffix="\tA \\n B \q"', "\tA \\n B \\q"),
    (r'task.suffix="\nSay \"yes\"."', '\nSay "yes".'),
    ("task.suffix='\nAnswer.'", "\nAnswer."),
    ("task.suffix=''", ""),
    ("task.suffix=5", "5"),
]


@pytest.mark.long
@pytest.mark.parametrize(
    ("task", "typed", "suffix"),
    [("pope", *case) for case in TYPED] + [(task, *TYPED[0]) for task in ("llava_jsonl", "easy_vqa")],
)
def test_line_breaks_of_prompts_are_typed_as_in_yaml(monkeypatch, task, typed, suffix):
    seen = []

    @entry_point("label")
    def main(config: DictConfig) -> None:
        # A command that is a step of another one is checked again.
        seen.append((config.task.suffix, check_settings("label", config).task.suffix))

    given = ["task.name=a", "task.questions=q", "task.images=i", "task.metric=exact"]
    own = given if task != "easy_vqa" else []
    monkeypatch.setattr(sys, "argv", ["experiments.label", f"task={task}", *own, typed])
    main()
    assert seen == [(suffix, suffix)]


def test_backslashes_of_paths_stay(monkeypatch):
    seen = []

    @entry_point("label")
    def main(config: DictConfig) -> None:
        seen.append((config.task.questions, config.task.name))

    given = [r"task.questions=C:\new\table.jsonl", "task.name=007", "task.images=i", "task.metric=exact"]
    monkeypatch.setattr(sys, "argv", ["experiments.label", "task=llava_jsonl", *given])
    main()
    assert seen == [(r"C:\new\table.jsonl", "007")]


@pytest.mark.parametrize(
    ("typed", "way_out"),
    [
        ("task.questions=a=b.jsonl", """'task.questions="a=b.jsonl"'"""),
        ("task.questions=fold er=1/q,1.jsonl", """'task.questions="fold er=1/q,1.jsonl"'"""),
        ("+task.x=a(1).jsonl", """'+task.x="a(1).jsonl"'"""),
        ("task.questions={a.jsonl", """'task.questions="{a.jsonl"'"""),
        ("task.questions=it's.jsonl", """'task.questions="it'"'"'s.jsonl"'"""),
    ],
)
def test_a_value_that_the_grammar_does_not_read_is_one_line_with_its_quoted_form(
    monkeypatch, capsys, typed, way_out
):
    seen = []

    @entry_point("label")
    def main(config: DictConfig) -> None:
        seen.append(config.task)

    given = ["task.name=a", "task.images=i", "task.metric=exact", "task.questions=q"]
    monkeypatch.setattr(sys, "argv", ["experiments.label", "task=llava_jsonl", *given, typed])
    with pytest.raises(SystemExit) as stop:
        main()
    error = capsys.readouterr().err
    assert stop.value.code == 2 and len(error.splitlines()) == 1
    assert error.startswith(f"error: {typed}: cannot be read (") and error.endswith(f"{way_out}\n")
    # The way out is one.
    key, _, value = typed.partition("=")
    if not key.startswith("+"):
        monkeypatch.setattr(
            sys, "argv", ["experiments.label", "task=llava_jsonl", *given, *shlex.split(way_out)]
        )
        main()
        assert seen[0].questions == value


@pytest.mark.parametrize(
    ("command", "typed", "line"),
    [
        ("label", ["limit.trian=3"], "limit.trian=3: no such setting, give one of calibration, test, train"),
        ("label", ["task.nope=3"], "task.nope=3: no such setting, give one of _target_, image_size, name"),
        ("train", ["seed=1", "nope=3"], "nope=3: no such setting, give one of allow_small, backbone"),
        (
            "label",
            ["task=nope"],
            f"task=nope: there is no task/nope, give one of {', '.join(TASKS)}",
        ),
        (
            "train",
            ["experiment=nope"],
            "experiment=nope: there is no experiment/nope, give one of backbone_addressing",
        ),
        (
            "train",
            ["-m", "predictor=mlp,nope"],
            "predictor=nope: there is no predictor/nope, give one of avg_router",
        ),
        (
            "train",
            ["-m", "hydra/launcher=nope"],
            "hydra/launcher=nope: there is no hydra/launcher/nope, give one of ",
        ),
        ("train", ["seed=1,2"], "Ambiguous value for argument 'seed=1,2'"),
        ("label", ["~nothing"], "Could not delete from config. 'nothing' does not exist."),
        ("label", ["limit.train"], "Error parsing override 'limit.train'"),
        ("label", ["=3"], ""),
        ("label", ["hydra.job.chdir=maybe"], "Error merging override hydra.job.chdir=maybe Value 'maybe'"),
        ("label", ['task.name="a\udcff"'], r'task.name="a\udcff": has bytes that are not UTF-8'),
    ],
)
def test_what_hydra_cannot_compose_is_one_line(monkeypatch, capsys, command, typed, line):
    @entry_point(command)
    def main(config: DictConfig) -> None:
        raise AssertionError

    monkeypatch.setattr(sys, "argv", [f"experiments.{command}", *typed])
    with pytest.raises(SystemExit) as stop:
        main()
    error = capsys.readouterr().err
    assert stop.value.code == 2 and len(error.splitlines()) == 1
    assert error.startswith(f"error: {line}")


def test_sweeps_that_can_be_composed_are_left_to_hydra():
    typed = ["-m", "seed=range(3)", "predictor=mlp,blend", "+predictor@baselines.mine=mlp,blend"]
    assert find_uncomposable(find_config_dir(), "train", typed) is None
    assert find_uncomposable(find_config_dir(), "train", ["--config-dir", "elsewhere", "task=nope"]) is None


def test_values_are_shown_on_one_line_as_any_terminal_shows_them():
    with pytest.raises(ValueError) as mistake:
        check("failures", r'split="a\tb"')
    assert "\t" not in str(mistake.value)
    assert show("a\nb\u202e\x00ü") == r"a\nb\u202e\x00ü"
