"""Worker process with one task of lmms-eval: samples, images and scores of answers, over JSON lines.

It runs in lmms-eval's own environment and imports nothing of tokenscale. The first line of standard input
opens a task, each further line is a call, and every line gets one line of standard output:

    {"name": ..., ...}                              {"result": {"version", "splits", "metric", ...}}
    {"call": "rows", "split", "first", "count"}     {"result": [{"question", "image", ...}, ...]}
    {"call": "image", "split", "number"}            {"result": PNG file, base64}
    {"call": "score", "split", "number", "answer"}  {"result": score}

A call that fails gets {"error": ...}. The process ends with its standard input.
"""

import base64
import copy
import hashlib
import inspect
import io
import json
import os
import random
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tiff", ".webp")
# Modes that a PNG file keeps.
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
MAX_REFERENCES = 100
MAX_MESSAGE_CHARS = 1000
JUDGE_FREE = "with task.judge_free=true it asks none, and answers that its rules cannot read count as wrong"


class Refused(Exception):
    """A task or a row that cannot be used. The message is the reason."""


class JudgeWanted(Refused):
    """A score that needs a connection."""


class TaskServer:
    """One task of lmms-eval, loaded as the chat models of lmms-eval get it.

    `settings` are the arguments of `experiments.tasks.lmms_eval.task.LmmsEval` that concern lmms-eval. Raises
    Refused for a task that has no score in [0, 1] for each sample.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings, self.name = settings, str(settings["name"])
        if settings["judge_free"]:
            # Some scorers create the client of a judge when they are imported, which requires a key.
            os.environ.setdefault("OPENAI_API_KEY", "none")
        self.task = load_task(settings)
        check_output(self.task.OUTPUT_TYPE)
        self.metric = self._choose_metric()
        self.filter = self._choose_filter()
        self._is_stateless = False  # as far as is known
        self._read_document = lru_cache(64)(self._read_text_document)
        self._connections = watch_connections()

    def describe(self) -> dict[str, Any]:
        """What the task class has to know: splits, metric, and what determines samples and scores."""
        config = self.task.config
        roles = {"train": config.training_split, "validation": config.validation_split}
        roles |= {"test": config.test_split}
        return {
            "version": find_version(),
            "config": describe_config(self.task),
            "metric": self.metric,
            "filter": self.filter.name,
            "max_new_tokens": (config.generation_kwargs or {}).get("max_new_tokens"),
            "cluster_key": config.cluster_key,
            "splits": {
                role: [split, len(self.task.dataset[split])]
                for role, split in roles.items()
                if split is not None and split in self.task.dataset
            },
        }

    def rows(self, split: str, first: int, count: int) -> list[dict[str, Any]]:
        """Rows `first`, `first + 1`, ... of a split; a row that cannot be used has its reason as `error`."""
        numbers = range(first, min(first + count, len(self.task.dataset[split])))
        return [self._describe_row(split, number) for number in numbers]

    def image(self, split: str, number: int) -> str:
        """PNG file of the image of a row, in base64."""
        (image,) = read_messages(self.task, self.task.dataset[split][number])[1]
        file = io.BytesIO()
        (image if image.mode in PNG_MODES else image.convert("RGB")).save(file, "PNG", compress_level=1)
        return base64.b64encode(file.getvalue()).decode()

    def score(self, split: str, number: int, answer: str) -> float | None:
        """Score of an answer, computed by the filters and `process_results` of the task.

        None with `judge_free`, if the rules of the task cannot read the answer and would ask a judge.
        """
        document = self._read_document(split, number)
        try:
            return self._read_score(self._process(document, answer, f"{split} {number}"))
        except JudgeWanted:
            if self.settings["judge_free"]:
                return None
            raise

    def _describe_row(self, split: str, number: int) -> dict[str, Any]:
        try:
            document = self.task.dataset[split][number]
            question, images = read_messages(self.task, document)
            if len(images) != 1:
                raise Refused(f"{len(images) or 'no'} images, and the backbone takes one a question")
            text_document = self._read_document(split, number)
            references = self._read_references(text_document)
            # A reference shows what the task scores, and whether it can score this row.
            result = self._process(text_document, references[0], f"{split} {number}")
            self._read_score(result)
        except Exception as error:  # their code, on data of any kind
            return {"error": explain(error)}
        value, cluster_key = result[self.metric], self.task.config.cluster_key
        cluster = value.get(cluster_key) if cluster_key and isinstance(value, dict) else None
        category = self.settings["category"] and find_field(text_document, self.settings["category"])
        return {
            "question": question,
            "references": references,
            "image": digest_pixels(images[0]),
            "cluster": None if cluster is None else str(cluster),
            "category": category if isinstance(category, str | int | float | list) else None,
            "document": hashlib.sha256(json.dumps(text_document, default=str).encode()).hexdigest()[:16],
        }

    def _read_references(self, document: Any) -> list[str]:
        """Return the reference answers of a row as texts."""
        field = self.settings["references"]
        target = self.task.doc_to_target(document) if field is None else find_field(document, field)
        if isinstance(target, int) and field is None and self.task.config.doc_to_choice is not None:
            target = self.task.doc_to_choice(document)[target]
        values = list(target) if isinstance(target, list | tuple) else [target]
        texts = [str(value) for value in values if value is not None and str(value).strip()]
        if not texts:
            raise Refused("it has no reference answer")
        return list(dict.fromkeys(texts))[:MAX_REFERENCES]

    def _read_text_document(self, split: str, number: int) -> Any:
        """Row without its media, which is what lmms-eval scores with."""
        return self.task.dataset_no_image[split][number]

    def _process(self, document: Any, answer: str, place: str) -> dict[str, Any]:
        """Return what `process_results` gives for an answer. The document stays as it is.

        Some scorers draw a choice for an answer that they cannot parse: the draw depends on the row alone, so
        that the answers at several scales do not get several draws.
        """
        from lmms_eval.api.instance import Instance

        random.seed(place)
        document = copy.deepcopy(document)
        metadata = {"task": self.name, "doc_id": 0, "repeats": 1}
        instance = Instance(request_type="generate_until", arguments=(), idx=0, metadata=metadata)
        instance.resps = [strip_reasoning(self.task, answer)]
        self.filter.apply([instance], [document])
        self._connections.clear()
        # Without the retries, which wait seconds before they repeat an error.
        process = getattr(type(self.task).process_results, "__wrapped__", type(self.task).process_results)
        try:
            result: dict[str, Any] = process(self.task, document, [instance.filtered_resps[self.filter.name]])
        finally:
            self._check_offline()
        if self.metric not in result:
            given = ", ".join(map(str, result))
            raise Refused(f"lmms-eval gives it no {self.metric} but {given}: choose one with task.metric")
        return result

    def _read_score(self, result: dict[str, Any]) -> float:
        value = result[self.metric]
        if isinstance(value, dict) and isinstance(value.get(self.task.config.score_key), int | float):
            value = value[self.task.config.score_key]
        elif self.settings["aggregate_each"]:
            value = self._aggregate(value)
            if not self._is_stateless:
                self._is_stateless = self._aggregate(result[self.metric]) == value
            if not self._is_stateless:
                raise Refused(f"the aggregate of {self.metric} differs from call to call: choose another one")
        if hasattr(value, "item"):  # a number of numpy
            value = value.item()
        if not isinstance(value, int | float):
            raise Refused(
                f"{self.metric} is no score of a sample but {type(value).__name__}: choose another "
                "task.metric, or take the aggregate of each single sample with task.aggregate_each=true"
            )
        value = value / self.settings["max_score"]
        if not 0 <= value <= 1:
            raise Refused(
                f"{self.metric} is {value:g} times task.max_score, and a score lies in [0, 1]: give its "
                "largest value as task.max_score, or choose another task.metric"
            )
        return float(value)

    def _aggregate(self, value: Any) -> Any:
        """Return the aggregate over a single sample."""
        aggregate = self.task.aggregation()[self.metric]
        arguments = {}
        if "args" in inspect.signature(aggregate).parameters:
            arguments["args"] = SimpleNamespace(output_path=open_scratch().name)
        self._connections.clear()
        score = aggregate([copy.deepcopy(value)], **arguments)
        self._check_offline()
        # Aggregates of nothing right are None in some tasks.
        return 0.0 if score is None else score

    def _check_offline(self) -> None:
        if self._connections:
            raise JudgeWanted(
                f"{self.metric} wanted to connect to {self._connections[0]}: does it ask a judge?"
            )

    def _choose_metric(self) -> str:
        known = list(self.task.aggregation())
        metric = known[0] if self.settings["metric"] is None else self.settings["metric"]
        if metric not in known:
            raise Refused(
                f"it has no metric {metric}: give task.metric as one of {', '.join(map(str, known))}"
            )
        if not self.task.higher_is_better().get(metric, True):
            raise Refused(f"its metric {metric} is a loss: give task.metric as one where more is better")
        return str(metric)

    def _choose_filter(self) -> Any:
        ensembles = {ensemble.name: ensemble for ensemble in self.task._filters}
        name = self.settings["filter"]
        if name is not None and name not in ensembles:
            raise Refused(f"it has no filter {name}: give task.filter as one of {', '.join(ensembles)}")
        return next(iter(ensembles.values())) if name is None else ensembles[name]


def load_task(settings: dict[str, Any]) -> Any:
    """Load a task with the given data. Raises Refused for a name that lmms-eval does not have."""
    from lmms_eval.tasks import TaskManager
    from lmms_eval.utils import load_yaml_config

    name, include_path = settings["name"], settings["include_path"]
    # lmms-eval's own tasks are thousands of files, and a task of one's own may be found without them.
    for include_defaults in (True,) if include_path is None else (False, True):
        manager = TaskManager(
            include_path=include_path, include_defaults=include_defaults, model_name="tokenscale"
        )
        if name in manager.all_subtasks:
            break
    if name not in manager.all_subtasks:
        if name in manager.all_tasks:
            raise Refused("it is a group of tasks: give the name of one of them")
        similar = [known for known in manager.all_subtasks if str(name).lower() in known.lower()][:8]
        hint = f": there are {', '.join(similar)}" if similar else ""
        raise Refused(f"lmms-eval {find_version()} has no such task{hint}")
    try:
        config = load_yaml_config(manager.task_index[name]["yaml_path"], mode="full")
    except Exception as error:
        package = type(error).__module__.partition(".")[0]
        if package in JUDGES:
            raise Refused(f"it asks a judge model ({package}): choose another task; {JUDGE_FREE}") from error
        raise Refused(f"lmms-eval cannot load it: {explain(error)}") from error
    check_output(config.get("output_type", "generate_until"))
    check_judge(config, settings)
    changes: dict[str, Any] = {}
    if settings["data_path"] is not None:
        changes = override_data(Path(settings["data_path"]), settings["data_config"])
    roles = {"train": "training_split", "validation": "validation_split", "test": "test_split"}
    if settings["splits"] is not None:
        changes |= {key: settings["splits"].get(role) for role, key in roles.items()}
    try:
        return manager.load_task_or_group([{"task": name, **changes}], task_type="chat")[name]
    except Exception as error:
        raise Refused(f"lmms-eval cannot load it: {explain(error)}") from error


def check_output(output_type: str) -> None:
    """Raise Refused for a task whose models do not generate one answer."""
    if output_type != "generate_until":
        raise Refused(f"its output_type is {output_type}, and only generate_until has answers")


def check_judge(config: dict[str, Any], settings: dict[str, Any]) -> None:
    """Raise Refused, before any data are loaded, for a task whose chosen metric asks a judge model."""
    metrics = {row.get("metric"): row.get("aggregation") for row in config.get("metric_list") or ()}
    metric = settings["metric"] or next(iter(metrics), None)
    scorers = [scorer for scorer in (config.get("process_results"), metrics.get(metric)) if callable(scorer)]
    judge = None if settings["judge_free"] else find_judge(scorers, find_roots(settings))
    if judge is not None:
        raise Refused(
            f"its metric {metric} asks a judge model ({judge}): choose another task.metric or another task; "
            f"{JUDGE_FREE}"
        )


def override_data(path: Path, config: str | None) -> dict[str, Any]:
    """Return the entries of a task's configuration that make it read a local folder."""
    if (path / "dataset_dict.json").is_file():
        return {"dataset_path": str(path), "dataset_name": None, "dataset_kwargs": {"load_from_disk": True}}
    changes: dict[str, Any] = {"dataset_path": str(path), "dataset_kwargs": {}}
    # A copy of a repository of the hub names its configurations in its README; a folder of files has none.
    if config is not None or not (path / "README.md").is_file():
        changes["dataset_name"] = config
    return changes


def read_messages(task: Any, document: Any) -> tuple[str, list[Any]]:
    """Return question and images of a row, from the messages that a chat model gets."""
    from PIL import Image

    texts, images = [], []
    for message in task.doc_to_messages(document):
        content = message["content"]
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part["type"] == "text":
                texts.append(part["text"])
            elif isinstance(part["url"], Image.Image):
                images.append(part["url"])
            elif isinstance(part["url"], str) and part["url"].lower().endswith(IMAGE_ENDINGS):
                images.append(Image.open(part["url"]))
            else:
                raise Refused(f"it has a part of type {part['type']}, and the backbone takes images")
    return "\n".join(texts), images


def strip_reasoning(task: Any, answer: str) -> str:
    """Return the answer without what the command line of lmms-eval takes for reasoning."""
    from lmms_eval.api.reasoning import parse_reasoning_tags_config, strip_reasoning_tags

    default = '[["<think>", "</think>"], ["<analysis>", "</analysis>"]]'
    tags = parse_reasoning_tags_config(cli_value=default, task_value=task.config.reasoning_tags)
    return answer if tags is None else str(strip_reasoning_tags(answer, tags))


def find_field(document: Any, path: str) -> Any:
    """Return a field by its name or a dotted path, None if there is none."""
    if path in document:
        return document[path]
    for name in path.split("."):
        document = document.get(name) if isinstance(document, dict) else None
    return document


def digest_pixels(image: Any) -> str:
    """Return a digest of size and pixels: 16 hex digits."""
    plain = image if image.mode in ("L", "RGB") else image.convert("RGBA")
    digest = hashlib.sha256(f"{plain.mode} {plain.size}".encode())
    digest.update(plain.tobytes())
    return digest.hexdigest()[:16]


def describe_config(task: Any) -> dict[str, Any]:
    """Return the configuration without where the data lie, functions as their names and a digest of files."""
    config = {
        key: value
        for key, value in vars(task.config).items()
        if value is not None and key not in ("dataset_path", "dataset_name", "dataset_kwargs")
    }
    files: set[str] = set()

    def name_function(value: Any) -> str:
        function = value.func if isinstance(value, partial) else value
        if inspect.isroutine(function) or inspect.isclass(function):
            with suppress(TypeError):  # a builtin
                files.add(inspect.getfile(function))
            return str(function.__qualname__)
        return str(value)

    described: dict[str, Any] = json.loads(json.dumps(config, default=name_function, sort_keys=True))
    sources = sorted(Path(file).read_bytes() for file in files)
    described["code"] = hashlib.sha256(b"\0".join(sources)).hexdigest()[:16]
    return described


def find_roots(settings: dict[str, Any]) -> list[str]:
    """Return the folders whose code belongs to tasks."""
    import lmms_eval

    roots = [Path(str(lmms_eval.__file__)).parent / "tasks"]
    if settings["include_path"] is not None:
        roots.append(Path(settings["include_path"]))
    return [str(root.resolve()) + os.sep for root in roots]


# Packages that ask models over the network.
JUDGES = {"openai", "anthropic", "google.genai", "google.generativeai", "dashscope", "requests", "httpx"}
JUDGES |= {"lmms_eval.llm_judge", "lmms_eval.verifiers.openai"}


def find_judge(scorers: list[Any], roots: list[str]) -> str | None:
    """Return the package through which the scorers may reach a judge model, None if there is none.

    Functions in the folders `roots` are followed by the names that their code reads.
    """
    pending, seen = list(scorers), set()
    while pending:
        value = pending.pop()
        value = inspect.unwrap(value.func if isinstance(value, partial) else value)
        function = getattr(value, "__func__", value)
        if id(function) in seen:
            continue
        seen.add(id(function))
        is_plain = inspect.isroutine(function) or inspect.isclass(function)
        owner = function if is_plain else type(function)
        module = function.__name__ if inspect.ismodule(function) else str(owner.__module__)
        parts = module.split(".")
        packages = {".".join(parts[: number + 1]) for number in range(len(parts))}
        if inspect.isclass(owner):
            pending += [member for member in vars(owner).values() if inspect.isfunction(member)]
        elif inspect.isfunction(function) and is_below(function.__code__.co_filename, roots):
            read = collect_names(function.__code__)
            pending += [function.__globals__[name] for name in read if name in function.__globals__]
            packages |= read  # among them what is imported inside of the function
        if judges := packages & JUDGES:
            return min(judges)
    return None


def is_below(file: str, folders: list[str]) -> bool:
    """Whether a file is in one of the folders."""
    return str(Path(file).resolve()).startswith(tuple(folders))


def collect_names(code: Any) -> set[str]:
    """Return the names that a code object reads, with those of the functions inside of it."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if inspect.iscode(constant):
            names |= collect_names(constant)
    return names


def watch_connections() -> list[str]:
    """Refuse all connections of this process from here on; return the list that collects their targets."""
    import socket

    wanted: list[str] = []

    def refuse(target: Any) -> Any:
        wanted.append(str(target)[:100])
        raise ConnectionRefusedError("a score is computed without connections")

    socket.socket.connect = lambda self, address: refuse(address)  # type: ignore[method-assign]
    socket.socket.connect_ex = lambda self, address: refuse(address)  # type: ignore[method-assign]
    socket.getaddrinfo = lambda host, *_, **__: refuse(host)
    # A judge without a key never connects, and others retry for a long time; scorers then guess a score.
    # Every call of a judge is therefore refused itself.
    judge_module = sys.modules.get("lmms_eval.llm_judge.base")
    pending = [] if judge_module is None else [judge_module.ServerInterface]
    while pending:
        judge = pending.pop()
        pending += judge.__subclasses__()
        judge.evaluate = judge.evaluate_async = lambda self, *_, **__: refuse(type(self).__name__)
    return wanted


@lru_cache(1)
def open_scratch() -> tempfile.TemporaryDirectory[str]:
    """Return a folder for the files that aggregates write, which ends with this process."""
    return tempfile.TemporaryDirectory(prefix="tokenscale-lmms-")


def find_version() -> str:
    """Return the version of lmms-eval."""
    try:
        return version("lmms_eval")
    except PackageNotFoundError:
        import lmms_eval

        return str(getattr(lmms_eval, "__version__", "unknown"))


def explain(error: BaseException) -> str:
    """Return an error as one line; of an error after retries, the last one."""
    attempt = getattr(error, "last_attempt", None)
    if attempt is not None and attempt.exception() is not None:
        error = attempt.exception()
    text = " ".join(str(error).split())[:MAX_MESSAGE_CHARS]
    return text if isinstance(error, Refused) else f"{type(error).__name__}: {text}"


def answer_calls(lines: Any, write: Callable[[dict[str, Any]], None]) -> None:
    """Open the task that the first line names and answer the calls of the others."""
    server: TaskServer | None = None
    for line in lines:
        request = json.loads(line)
        try:
            if server is None:
                server = TaskServer(request)
                write({"result": server.describe()})
                continue
            calls: dict[str, Callable[..., Any]]
            calls = {"rows": server.rows, "image": server.image, "score": server.score}
            write({"result": calls[request.pop("call")](**request)})
        except Exception as error:  # their code may raise anything
            write({"error": explain(error)})
            if server is None:
                return


def main() -> None:
    """Serve standard input. What libraries print goes to standard error."""
    # Ctrl-C reaches the whole process group; the other side closes the input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    own_folder = Path(__file__).resolve().parent
    sys.path[:] = [path for path in sys.path if not path or Path(path).resolve() != own_folder]
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def write(response: dict[str, Any]) -> None:
        output.write(json.dumps(response, allow_nan=False) + "\n")
        output.flush()

    answer_calls(sys.stdin, write)


if __name__ == "__main__":
    main()
