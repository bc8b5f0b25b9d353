"""What is known of a released file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from saccade.tasks import Task

Setting: TypeAlias = Literal["single-task", "multi-task", "universal", "zero-shot", "few-shot"]
"""What the weights that a number is of were trained on, beside what they are measured on."""


@dataclass(kw_only=True, frozen=True)
class Published:
    """A number from the authors' tables.

    Attributes:
        task: What was measured.
        data: Data set and split.
        metric: Name of the metric.
        value: The number, as the table has it: percent, but for metrics of depth (shares of 1, metres).
        setting: What its weights were trained on.
        note: What the source leaves open.
    """

    task: Task
    data: str
    metric: str
    value: float
    setting: Setting
    note: str = ""


@dataclass(kw_only=True, frozen=True)
class ZooEntry:
    """One released file.

    Attributes:
        name: The name users type.
        system: ``git``, ``vitdet``, or the system whose training starts from this file.
        kind: ``checkpoint`` (a whole model), ``backbone`` (``init_from``), ``text`` (``text_init``), ``head``
            (``detection_init`` and the like, of ViSFT) or ``lora`` (low-rank updates).
        preset: The size it fits.
        file: Name of the released file.
        repo: Repository of the Hugging Face hub, or empty.
        url: Direct address, or empty.
        page: Address of a page from which people fetch the file by hand, or empty.
        sha256_prefix: First digits of the file's SHA-256, where its name states them.
        tasks: Tasks that the weights were trained for.
        parameters: Parameters of the file; None where not stated.
        tensors: Tensors of the state dict; None where not stated.
        input_sizes: Side of the square network input in pixels, per task.
        licence: As the source states it.
        recipe: Our recipe that repeats its training.
        results: Published numbers.
        summary: One line.
    """

    name: str
    system: str
    kind: Literal["checkpoint", "backbone", "text", "head", "lora"]
    preset: str
    file: str
    summary: str
    repo: str = ""
    url: str = ""
    page: str = ""
    sha256_prefix: str = ""
    tasks: tuple[Task, ...] = ()
    parameters: int | None = None
    tensors: int | None = None
    input_sizes: dict[Task, int] = field(default_factory=dict)
    licence: str = "not stated"
    recipe: str = ""
    results: tuple[Published, ...] = ()

    @property
    def use(self) -> str:
        """How a file that is no whole model is used, for people."""
        if self.kind == "lora":
            return f"saccade lora merge BACKBONE {self.file} --out FILE"
        head = {Task.DETECTION: "detection", Task.INSTANCE: "instance", Task.CAPTION: "caption"}
        field = {"backbone": "init_from", "text": "text_init"}.get(self.kind)
        return f"in training: {field or f'{head[self.tasks[0]]}_init'}={self.name}"

    @property
    def source(self) -> str:
        """Where the file is, for people."""
        if self.repo:
            return f"{self.repo}: {self.file} (Hugging Face hub)"
        return self.url or f"{self.file} ({self.page})"
