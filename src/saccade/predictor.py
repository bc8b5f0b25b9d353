"""From a checkpoint to answers about pictures: ``saccade.load(name).predict(image)``."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from saccade.data.transforms import collate, preprocess
from saccade.dialogue import Dialogue
from saccade.errors import SaccadeError, UsageError, nearest
from saccade.hub.checkpoint import LoadedModel, load_folder, read_card
from saccade.hub.resolve import resolve
from saccade.inputs import Input, Inputs, find_inputs
from saccade.layers.lora import fold
from saccade.layers.offload import place
from saccade.layers.precision import Precision, autocast, halve_linears
from saccade.layers.quantize import Quantization, quantize_linears
from saccade.models.classes import unknown_class
from saccade.models.git.model import GiT
from saccade.models.gsva.conversation import check_typed, require_texts
from saccade.models.gsva.model import GSVA
from saccade.models.polar.model import PolarSegmenter
from saccade.models.systems import backbone_of, extra_of, fixed_classes
from saccade.results import Instances, Prediction
from saccade.samples import Batch, ClassList, Origin, Sample
from saccade.tasks import TASKS, Task, parse_task
from saccade.tokens.vocabulary import clean_caption
from saccade.training.centers import find_centers
from saccade.training.distributed import resolve_device

T = TypeVar("T")

DEFAULT_SCORE = 0.3
"""Instances below this score are left out of predictions unless another score is asked for."""

_READERS = 2  # threads that decode the next pictures while the model looks at these


@dataclass(kw_only=True)
class Answer:
    """What became of one picture (and, for grounding, one phrase).

    Attributes:
        origin: Where the picture came from; ``size_hw`` is (0, 0) where it could not be read.
        stem: Name for output files, unique in the run.
        image: The picture, uint8 ``[3, H, W]`` RGB, upright; None where it could not be read.
        prediction: The answer, in the frame of the picture; None where there is an error.
        error: Why there is no answer.
        seconds: Wall-clock time of preprocessing and model, shared evenly by the pictures of a batch.
    """

    origin: Origin
    stem: str
    image: Tensor | None = None
    prediction: Prediction | None = None
    error: SaccadeError | None = None
    seconds: float = 0.0

    def draw(self) -> Image.Image:
        """The picture with the prediction on it.

        Raises:
            SaccadeError: The picture's own error, where there is no prediction.
        """
        if self.prediction is None or self.image is None:
            raise self.error or SaccadeError("there is no prediction to draw", where=self.stem)
        return self.prediction.draw(self.image)


@dataclass(kw_only=True)
class Report:
    """What a run has come to so far.

    Attributes:
        done: Pictures answered.
        failed: Pictures that could not be read, with the reason.
        passed_over: Files in the folders that are no images by their suffix.
        seconds: Time spent in preprocessing and model.
    """

    done: int = 0
    failed: dict[str, SaccadeError] = field(default_factory=dict)
    passed_over: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(kw_only=True)
class Stream:
    """The answers of a run, computed as they are asked for.

    Attributes:
        total: Pictures in all; each gives one answer, or one per phrase.
        task: What is asked.
        report: Grows with every picture.
        answers: The answers to come.
    """

    total: int
    task: Task
    report: Report
    answers: Iterator[Answer]

    def __iter__(self) -> Iterator[Answer]:
        return self.answers


@dataclass(kw_only=True, frozen=True)
class _Question:
    """A checked request: what is asked about every picture."""

    task: Task
    classes: ClassList | None
    phrases: tuple[str, ...]
    ask: str | None
    score: float
    centers: Tensor | None


class Predictor:
    """A model with its class lists, ready to look at pictures.

    Args:
        loaded: The model and what its checkpoint says.
        device: Where it runs.
        precision: ``bf16`` is two to three times as fast where the machine computes it, at a small cost in accuracy.
        quantize: Keeps the weights of a language model in 8 or 4 bits.
        gpu_memory_gb: What the weights of a model with a language model may take on the device, in GB (10^9 bytes);
            blocks beyond it wait in main memory. None = all stay on the device.

    Raises:
        UsageError: The model has no language model, or does not fit, or 4 bits without a GPU and bf16, or no amount of
            memory.
        MissingExtraError: ``quantize`` without ``torchao``.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        device: torch.device | str = "cpu",
        precision: Precision = "float32",
        quantize: Quantization = "none",
        gpu_memory_gb: float | None = None,
    ) -> None:
        if gpu_memory_gb is not None and not 0 < gpu_memory_gb < math.inf:
            raise UsageError(f"memory is a finite number of GB above 0, not {gpu_memory_gb}", where="gpu_memory_gb")
        self.device = torch.device(device)
        self.precision: Precision = precision
        self.model = loaded.model.eval()
        fold(self.model)  # low-rank updates cost nothing once they are part of the weights
        if isinstance(self.model, GSVA):
            if precision == "bf16":
                self.model.to(torch.bfloat16)
            quantize_linears(self.model.language.model.layers, quantize, self.device)
        elif quantize != "none" or gpu_memory_gb is not None:
            raise UsageError(
                f"a {self.model.system} model has no language model to make smaller",
                fix="leave out --quantize and --gpu-memory",
            )
        if isinstance(self.model, GSVA) and gpu_memory_gb is not None:
            place(self.model, self.device, blocks=list(self.model.blocks), room_bytes=int(gpu_memory_gb * 1e9))
        else:
            self.model.to(self.device)
        if precision == "bf16" and not isinstance(self.model, GSVA):
            halve_linears(backbone_of(self.model))
        self.classes = loaded.classes
        self.card = loaded.card

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks that the model offers."""
        return tuple(self.model.tasks)

    def predict(
        self,
        inputs: Inputs,
        *,
        task: Task | str | None = None,
        classes: Sequence[str] | ClassList | str | None = None,
        phrases: Sequence[str] | str | None = None,
        ask: str | None = None,
        score: float | None = None,
        centers: Sequence[tuple[float, float]] | None = None,
        batch_size: int | None = None,
    ) -> Prediction | list[Answer]:
        """Looks at one picture or several.

        Args:
            inputs: A path, folder, pattern, bytes, Pillow image, uint8 array ``[H, W, 3]``, uint8 tensor ``[3, H, W]``,
                or a list of these.
            task: A task or its short name; left out, it is grounding where phrases are given, the model's task where it
                has one alone, and else detection.
            classes: Class names to look for (a list, or ``"cat,dog"``); None takes those of the checkpoint.
            phrases: What to ground or to segment: one phrase or several.
            ask: A question in any words, instead of phrases, for a model that converses.
            score: Least score of instances, 0..1; None means :data:`DEFAULT_SCORE`.
            centers: Where the objects are, (x, y) in pixels of the one picture, for a model that sees pictures unrolled
                around a centre; None lets it find them.
            batch_size: Pictures per call of the model; None means 1 on a CPU and 8 on a GPU.

        Returns:
            The prediction, where one picture (and at most one phrase) was given by itself; otherwise a list of
            :class:`Answer`, each with its picture and origin, in the order of the inputs (all phrases of a picture
            together; where they are segmented, they share one answer).

        Raises:
            UsageError: The request does not fit the model.
            ImageError: A picture cannot be read (:meth:`stream` goes on instead).
        """
        found = find_inputs(inputs)
        stream = self._stream(
            found.items,
            self._question(task, classes, phrases, ask, score, centers, pictures=len(found.items)),
            batch_size,
            Report(passed_over=found.passed_over),
        )
        answers = []
        for answer in stream:
            if answer.error is not None:
                raise answer.error
            answers.append(answer)
        alone = answers[0].prediction if found.single and len(answers) == 1 else None
        return answers if alone is None else alone

    def stream(
        self,
        inputs: Inputs,
        *,
        task: Task | str | None = None,
        classes: Sequence[str] | ClassList | str | None = None,
        phrases: Sequence[str] | str | None = None,
        ask: str | None = None,
        score: float | None = None,
        centers: Sequence[tuple[float, float]] | None = None,
        batch_size: int | None = None,
    ) -> Stream:
        """Looks at pictures one after the other and goes on where one is damaged.

        The arguments are those of :meth:`predict`. A request that does not fit the model raises here; a picture that
        cannot be read becomes an answer with an ``error`` and an entry in ``report.failed``.

        Returns:
            An iterable of :class:`Answer` with a ``report``. Pictures are read as they are needed, a few ahead.
        """
        found = find_inputs(inputs)
        question = self._question(task, classes, phrases, ask, score, centers, pictures=len(found.items))
        return self._stream(found.items, question, batch_size, Report(passed_over=found.passed_over))

    def encode(self, picture: Inputs) -> Dialogue:
        """Looks at one picture; the model can then be asked about it as often as one likes, at little cost.

        Args:
            picture: One picture, in any form that :meth:`predict` takes.

        Raises:
            UsageError: The model does not converse, or there are several pictures.
            ImageError: The picture cannot be read.
        """
        if not isinstance(self.model, GSVA):
            raise UsageError(f"a {self.model.system} model does not converse", fix="use predict")
        items = find_inputs(picture).items
        if len(items) != 1:
            raise UsageError(f"{len(items)} pictures are no single one", fix="encode them one by one")
        return Dialogue(self.model, items[0].read(), device=self.device, precision=self.precision)

    # ------------------------------------------------------------------ the question

    def _question(
        self,
        task: Task | str | None,
        classes: Sequence[str] | ClassList | str | None,
        phrases: Sequence[str] | str | None,
        ask: str | None,
        score: float | None,
        centers: Sequence[tuple[float, float]] | None,
        *,
        pictures: int,
    ) -> _Question:
        asked = self._task(task, has_phrases=phrases is not None)
        spec = TASKS[asked]
        if classes is not None and spec.prompt != "classes":
            raise UsageError(f"the task '{asked}' takes no class names", fix="leave out the classes")
        if phrases is not None and spec.prompt not in ("phrase", "phrases"):
            raise UsageError(f"the task '{asked}' takes no phrases", fix=f"ask for the task '{Task.GROUNDING}'")
        if ask is not None and (phrases is not None or asked is not Task.REFERRING):
            raise UsageError("a question goes to a model that converses, and by itself", fix="leave out --ask")
        if ask is not None:
            check_typed("question", (ask,))
        if score is not None and spec.result != "Instances":
            raise UsageError(f"the task '{asked}' has no scores to filter by", fix="leave out the score")
        if score is not None and not 0 <= score <= 1:
            raise UsageError(f"a score lies between 0 and 1, not {score}")
        if centers is not None and not isinstance(self.model, PolarSegmenter):
            raise UsageError(f"a {self.model.system} model does not ask where objects are", fix="leave out the centres")
        if centers is not None and (not centers or pictures != 1):
            raise UsageError(
                f"centres belong to one picture, and {pictures} are given" if centers else "no centre is given",
                fix="predict the pictures one by one, or let another model find the centres",
            )
        return _Question(
            centers=None if centers is None else torch.tensor(list(centers), dtype=torch.float32).reshape(-1, 2),
            task=asked,
            classes=self._class_list(asked, classes) if spec.prompt == "classes" else None,
            phrases=self._phrases(phrases) if spec.prompt in ("phrase", "phrases") and ask is None else (),
            ask=ask,
            score=DEFAULT_SCORE if score is None else score,
        )

    def _task(self, task: Task | str | None, *, has_phrases: bool) -> Task:
        if task is None and len(self.tasks) == 1:
            return self.tasks[0]
        if task is None and has_phrases:
            task = Task.GROUNDING
        aliases = [TASKS[offered].alias for offered in self.tasks]
        if task is None and Task.DETECTION in self.tasks:
            return Task.DETECTION  # what is in this picture?
        if task is None:
            raise UsageError("this model has several tasks: say which", fix=nearest("", aliases))
        asked = parse_task(task)
        if asked not in self.tasks:
            raise UsageError(f"this model does not offer the task '{asked}'", fix=nearest(str(task), aliases))
        return asked

    def _class_list(self, task: Task, classes: Sequence[str] | ClassList | str | None) -> ClassList:
        """The class list asked for; names that the checkpoint knows keep its category ids."""
        own = self.classes.get(task)
        known = fixed_classes(self.model)
        if isinstance(classes, ClassList) and known is None:
            return classes
        own = known or own
        if classes is None:
            if own is None:
                raise UsageError(
                    f"the checkpoint has no class names for the task '{task}'",
                    fix="name the classes to look for, e.g. --classes cat,dog",
                )
            return own
        given = classes.names if isinstance(classes, ClassList) else classes
        names = [name.strip() for name in (given.split(",") if isinstance(given, str) else given)]
        unknown = [name for name in names if known is not None and name not in known.names]
        if unknown and known is not None:
            raise unknown_class(unknown[0], known)
        listed = ClassList.from_names(names)
        if own is not None and set(names) <= set(own.names):
            ids = dict(zip(own.names, own.category_ids, strict=True))
            return ClassList(names=listed.names, category_ids=tuple(ids[name] for name in listed.names))
        return listed

    def _phrases(self, phrases: Sequence[str] | str | None) -> tuple[str, ...]:
        listed = (phrases,) if isinstance(phrases, str) else tuple(phrases or ())
        require_texts("phrase", listed)
        if isinstance(self.model, GSVA):
            if not listed:
                raise UsageError("no phrase is given", fix="say what to segment: --phrases 'the red ball' 'a dog'")
            check_typed("phrase", listed)
            return listed
        if not listed or any(not clean_caption(phrase) for phrase in listed):
            raise UsageError(
                "grounding needs phrases with words in them", fix="name what to find: --phrase 'the red ball'"
            )
        assert isinstance(self.model, GiT)  # no other system takes phrases
        config = self.model.config.grounding
        limit = config.max_text_length if config else 0
        for phrase in listed:
            if self._pieces(phrase) > limit:
                raise UsageError(f"the phrase has more than the {limit} pieces that the model reads", where=phrase)
        return listed

    def _pieces(self, phrase: str) -> int:
        """Vocabulary pieces of a phrase."""
        assert isinstance(self.model, GiT)
        return int(self.model.vocabulary.encode([clean_caption(phrase)], max_length=10**6)[0].shape[1])

    # ------------------------------------------------------------------ the answers

    def _stream(self, items: Sequence[Input], question: _Question, batch_size: int | None, report: Report) -> Stream:
        size = batch_size if batch_size is not None else (1 if self.device.type == "cpu" else 8)
        if size < 1:
            raise UsageError(f"the batch size must be at least 1, not {size}")
        answers = self._answers(items, question, size, report)
        return Stream(total=len(items), task=question.task, report=report, answers=answers)

    def _answers(self, items: Sequence[Input], question: _Question, size: int, report: Report) -> Iterator[Answer]:
        for chunk in _chunks(_read_ahead(items, size), size):
            start = time.perf_counter()
            by_picture: list[list[Answer]] = []
            pending: list[tuple[Answer, Sample]] = []
            for item, picture in chunk:
                if isinstance(picture, SaccadeError):
                    by_picture.append([Answer(origin=_origin(item, (0, 0)), stem=item.stem, error=picture)])
                else:
                    asked = self._ask(item, picture, question)
                    by_picture.append([answer for answer, _ in asked])
                    pending += asked
            for group in self._groups(pending, size):
                self._answer(group, question)
            seconds = time.perf_counter() - start
            report.seconds += seconds
            for answers in by_picture:
                error = answers[0].error
                if error is None:
                    report.done += 1
                else:
                    report.failed[answers[0].origin.path or answers[0].stem] = error
                for answer in answers:
                    answer.seconds = seconds / len(pending) if error is None else 0.0
                    yield answer

    def _ask(self, item: Input, picture: Tensor, question: _Question) -> list[tuple[Answer, Sample]]:
        """The open answers about a picture, each with its network input: one, or one per phrase."""
        origin = _origin(item, (int(picture.shape[-2]), int(picture.shape[-1])))
        sample = Sample(image=tv_tensors.Image(picture), task=question.task, origin=origin, classes=question.classes)
        if question.task is Task.REFERRING:
            # Not yet as the network sees it: words and the second eye's picture are made of the original.
            asked = dataclasses.replace(sample, phrases=question.phrases)
            return [(Answer(origin=origin, stem=item.stem, image=picture), asked)]
        sample = preprocess(sample, self.model.preprocess(question.task), with_target=False)
        if not question.phrases:
            return [(Answer(origin=origin, stem=item.stem, image=picture), sample)]
        stems = [f"{item.stem}_{n}" if len(question.phrases) > 1 else item.stem for n in range(len(question.phrases))]
        return [
            (Answer(origin=origin, stem=stem, image=picture), dataclasses.replace(sample, phrase=phrase))
            for stem, phrase in zip(stems, question.phrases, strict=True)
        ]

    def _groups(self, pending: Sequence[tuple[Answer, Sample]], size: int) -> Iterator[list[tuple[Answer, Sample]]]:
        """Batches of at most ``size``; phrases of different length stay apart, because GiT counts the padding of a
        batch as positions: this way no answer depends on what else is asked."""
        alike: dict[int, list[tuple[Answer, Sample]]] = {}
        for answer, sample in pending:
            pieces = self._pieces(sample.phrase) if sample.phrase is not None else 0
            alike.setdefault(pieces, []).append((answer, sample))
        for group in alike.values():
            yield from _chunks(group, size)

    def _answer(self, group: Sequence[tuple[Answer, Sample]], question: _Question) -> None:
        """Runs one batch through the model and fills its answers."""
        batch = self._batch([sample for _, sample in group], question).to(self.device)
        with autocast(self.precision, self.device):
            if isinstance(self.model, PolarSegmenter):
                predictions = self.model.predict(batch, centers_xy=self._centers(self.model, group, question))
            else:
                predictions = self.model.predict(batch)
        for (answer, _), prediction in zip(group, predictions, strict=True):
            prediction = _to_cpu(prediction)
            if isinstance(prediction, Instances):
                prediction = prediction.filter(min_score=question.score)
            answer.prediction = prediction

    def _centers(
        self, model: PolarSegmenter, group: Sequence[tuple[Answer, Sample]], question: _Question
    ) -> list[Tensor]:
        """What pictures are unrolled around: the given centres, or those that are found in the original pictures."""
        if question.centers is not None:
            return [question.centers]
        originals = [dataclasses.replace(seen, image=tv_tensors.Image(answer.image)) for answer, seen in group]
        return find_centers(model, originals, self.device)

    def _batch(self, samples: Sequence[Sample], question: _Question) -> Batch:
        declared = self.model.preprocess(question.task)
        extra = extra_of(self.model, answer="own" if question.ask is None else "free")
        if extra is None:
            return collate(samples, declared)
        ask = question.ask
        said = [extra.prepare(one) if ask is None else extra.ask(one.image, ask) for one in samples]
        seen = [preprocess(sample, declared, with_target=False) for sample in samples]
        return extra.join(collate(seen, declared), said, training=False)


def load(
    name_or_folder: str | Path,
    *,
    device: str = "auto",
    precision: Precision = "float32",
    quantize: Quantization = "none",
    gpu_memory_gb: float | None = None,
) -> Predictor:
    """Loads a checkpoint for prediction.

    Args:
        name_or_folder: A name of the zoo (``saccade models list``) or a checkpoint folder.
        device: ``auto`` (a GPU where there is one), ``cpu``, ``cuda`` or ``cuda:N``.
        precision: ``float32``, or ``bf16`` for speed.
        quantize: See :class:`Predictor`.
        gpu_memory_gb: See :class:`Predictor`.

    Raises:
        UsageError: No such name or device.
        CheckpointError: The checkpoint is damaged.
    """
    where = resolve_device(device)
    folder = resolve(name_or_folder)
    # A large model never stands in memory in a type that it is not used in, nor twice.
    half = precision == "bf16" and read_card(folder).system == GSVA.system
    whole = gpu_memory_gb is None and quantize == "none"
    loaded = load_folder(
        folder, dtype=torch.bfloat16 if half else torch.float32, device=where if half and whole else "cpu"
    )
    return Predictor(loaded, device=where, precision=precision, quantize=quantize, gpu_memory_gb=gpu_memory_gb)


def _origin(item: Input, size_hw: tuple[int, int]) -> Origin:
    return Origin(dataset="", image_id=item.image_id, path=item.path, size_hw=size_hw)


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of ``size`` items, the last one shorter."""
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


def _read(item: Input) -> Tensor | SaccadeError:
    try:
        return item.read()
    except SaccadeError as error:
        return error


def _read_ahead(items: Sequence[Input], ahead: int) -> Iterator[tuple[Input, Tensor | SaccadeError]]:
    """Reads pictures in threads, at most ``ahead`` more than were asked for, and gives them in order."""
    waiting: deque[tuple[Input, Future[Tensor | SaccadeError]]] = deque()
    threads = ThreadPoolExecutor(max_workers=_READERS)
    try:
        for item in items:
            waiting.append((item, threads.submit(_read, item)))
            if len(waiting) > ahead:
                first, picture = waiting.popleft()
                yield first, picture.result()
        while waiting:
            first, picture = waiting.popleft()
            yield first, picture.result()
    finally:
        # Whoever asked may have gone away, and the garbage collector may come here while some thread is being started:
        # a thread that ends needs the lock that is held then, so that waiting for it would never end.
        threads.shutdown(wait=False, cancel_futures=True)


def _to_cpu(prediction: Prediction) -> Prediction:
    """The same prediction with its tensors in main memory."""
    tensors: dict[str, Any] = {
        f.name: value.cpu()
        for f in dataclasses.fields(prediction)
        if isinstance(value := getattr(prediction, f.name), Tensor)
    }
    return dataclasses.replace(prediction, **tensors)
