"""GSVA's data and scores against the original's: tokens, prompts, readers in recorded draws, pictures, evaluators."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from unittest import mock

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torchvision import tv_tensors

from saccade.data.images import read_image
from saccade.data.mixture import Mixture
from saccade.data.phrases import draw_phrases
from saccade.data.pipeline import Redraw
from saccade.data.sources import SourceSpec, open_source
from saccade.data.sources.base import Source
from saccade.data.sources.reasonseg import draw_labels, read_asked
from saccade.data.transforms import collate, preprocess
from saccade.metrics.referring import PhraseCounts, ReferringMetric, grec_f1, grec_scores
from saccade.models.gsva.collate import Conversing, Said, clip_input
from saccade.models.gsva.conversation import Style, learned, wrap_image
from saccade.models.gsva.inputs import ConversationBatch
from saccade.results import Referral, decode_masks, encode_masks
from saccade.samples import Origin, Preprocess, Sample, Target
from saccade.tasks import Task
from saccade.tokens.pieces import PieceVocabulary

if TYPE_CHECKING:
    from check import Report

T = TypeVar("T")

REFER = {"grefcoco": "grefcoco", "refzom": "refzom"}
SEMANTIC = {
    "ade20k": ("ade20k", "ade20k"),
    "cocostuff": ("coco_stuff", ""),
    "mapillary": ("mapillary", ""),
    "paco_lvis": ("paco", ""),
    "pascal_part": ("pascal_part", ""),
}


class Recorded:
    """The draws of the original: two seeded streams, used in its order."""

    def __init__(self, seed: int) -> None:
        self.python, self.numpy = random.Random(seed), np.random.RandomState(seed)

    def subset(self, total: int, count: int) -> list[int]:
        return [int(index) for index in self.numpy.choice(list(range(total)), size=count, replace=False)]

    def below(self, total: int) -> int:
        return int(self.numpy.randint(0, total))

    def pick(self, options: Sequence[T]) -> T:
        # Of two choices the original draws a number; of texts, one of a list. Both take the same draw.
        return options[self.python.randint(0, len(options) - 1)]

    def share(self) -> float:
        return self.python.random()


def check(folder: Path, report: Report) -> None:
    """Every file of the data that the folder has."""
    DataCheck(folder, report).run()


class DataCheck:
    """One folder."""

    def __init__(self, folder: Path, report: Report) -> None:
        self.folder, self.report = folder, report
        self.config = json.loads((folder / "config.json").read_text())
        self.vocabulary = PieceVocabulary(folder / "tokenizer", self.config["vocab_size"])
        self.style: Style = self.config["conversation"]
        self.drawn: dict[str, tuple[Sample, Said]] = {}

    def run(self) -> None:
        self._vocabulary()
        if (self.folder / "metrics.json").is_file():
            ScoreCheck(self.folder, self.report).run()
        if (self.folder / "data_expected.json").is_file():
            self.expected = json.loads((self.folder / "data_expected.json").read_text())
            self.tensors = load_file(self.folder / "io_data.safetensors")
            self.report.expect("io_data", list(self.tensors))
            self._read_sizes()
            self._strings()
            self._evaluation()
            self._training()
            self._mixing()
            self._reason_masks()
            self._collate()
            self._pictures()
            for name in self.tensors:
                if name.startswith("mask."):
                    self.report.skip(f"io_data/{name}")

    def _read_sizes(self) -> None:
        """What the fixture was made with, as its items show it."""
        picture = next(iter(self.expected["image_tensors"].values()))
        sam, self.clip_size = picture["sam_shape"][-1], picture["clip_shape"][-1]
        self.sam = Preprocess(size_hw=(sam, sam), keep_ratio=True, interpolation="pillow", pad_multiple=sam)
        drawn = [item for name, items in self.expected["train"].items() if name.startswith("refer") for item in items]
        self.count = max(len(item["sampled"]) for item in drawn)  # phrases per image

    def _conversing(self, **options: Any) -> Conversing:
        return Conversing(
            vocabulary=self.vocabulary,
            clip_size=self.clip_size,
            image_tokens=self.clip_size**2 // 14**2,
            **options,
        )

    # ------------------------------------------------------------------ words

    def _vocabulary(self) -> None:
        ids = self.config["token_ids"]
        ours = {"[SEG]": self.vocabulary.seg_id, "[REJ]": self.vocabulary.rej_id, "bos": self.vocabulary.bos_id,
                "eos": self.vocabulary.end_id, "unk_and_pad": self.vocabulary.pad_id}  # fmt: skip
        for name, value in ours.items():
            self.report.equal(f"vocabulary/{name}", value, ids[name])
        for name in ("<im_start>", "<im_end>"):
            self.report.equal(f"vocabulary/{name}", self.vocabulary.encode(name), [ids["bos"], ids[name]])
        self.report.equal("vocabulary/rows", len(self.vocabulary), self.config["vocab_size"])

    def _strings(self) -> None:
        if (self.folder / "train_conversations.json").is_file():
            self._train_conversations(json.loads((self.folder / "train_conversations.json").read_text()))
        for number, entry in enumerate(self.expected["tokenization"]):
            ids = self.vocabulary.encode(entry["text"])
            self.report.equal(f"tokenization/{number}", ids, entry["ids"])
            self.report.equal(f"tokenization/{number}/decode", self.vocabulary.decode(ids), entry["text"])

    def _train_conversations(self, texts: list[str]) -> None:
        """Against the ids and labels of the batch that the network was trained on."""
        batch = load_file(self.folder / "io_train.safetensors")
        for number, text in enumerate(texts):
            ids = self.vocabulary.encode_with_image(text)
            labels = learned(text, ids, self.vocabulary, self.style)
            filled = batch["attention_masks"][number].bool()
            self.report.equal(f"train_conversations/{number}/ids", ids, batch["input_ids"][number][filled].tolist())
            self.report.equal(f"train_conversations/{number}/labels", labels, batch["labels"][number][filled].tolist())

    # ------------------------------------------------------------------ readers

    def _open(self, reader: str, root: str, split: str, annotations: str = "") -> Source:
        return open_source(
            SourceSpec(
                task=Task.REFERRING, reader=reader, root=str(self.folder / "data" / root), split=split,
                annotations=annotations,
            )
        )  # fmt: skip

    def _refer(self, name: str, split: str) -> Source:
        """A data set of references, its images in the order of the original: that of a set of their ids."""
        if name in REFER:
            source = self._open(name, "refer_seg", split)
        else:
            found = next((self.folder / "data/refer_seg" / name).glob("refs(*).p"))
            source = self._open("refcoco", "refer_seg", split, f"{name}/{found.name}")
        return Reordered(source, lambda ids: list(set(ids)))

    def _same_item(self, name: str, sample: Sample, said: Said, item: dict[str, Any]) -> None:
        report = self.report
        report.equal(f"{name}/image", sample.origin.path, str(self.folder / "data" / item["image"]))
        report.equal(f"{name}/text", [one.text(self.style) for one in said.conversations], item["conversations"])
        masks = torch.zeros(0) if said.masks is None else said.masks
        report.equal(f"{name}/masks", [tuple(masks.shape)], [tuple(item["mask_shape"])])
        for number, (mask, told) in enumerate(zip(masks, item["masks"], strict=False)):
            packed = torch.from_numpy(np.packbits(mask.numpy().astype(np.uint8).reshape(-1)))
            report.equal(f"{name}/area/{number}", int(mask.sum()), told["area"])
            report.same(f"{name}/mask/{number}", packed, self.tensors[f"mask.{told['key']}"])
        height, width = preprocess(sample, self.sam, with_target=False).size_hw
        report.equal(f"{name}/resize", [height, width], item["resize"])

    def _evaluation(self) -> None:
        conversing = self._conversing()
        for name, told in self.expected["val"].items():
            data, _, split = name.replace("|final|", "||").rpartition("|")
            data = data.split("|")[0]
            source = self._open("reasonseg", "", split) if data == "ReasonSeg" else self._refer(data, split)
            self.report.equal(f"val/{name}/length", len(source), told["length"])
            by_path = {source[k].origin.path: source[k] for k in range(len(source))}
            for number, item in enumerate(told["items"]):
                label = f"val/{name}/{number}"
                sample = by_path[str(self.folder / "data" / item["image"])]
                if data != "ReasonSeg":  # a folder's order is that of the disk
                    self.report.equal(f"{label}/order", source[number].origin.path, sample.origin.path)
                said = conversing.say(sample, None)
                if sample.target.ignored is not None and said.masks is not None:
                    said.masks = said.masks | sample.target.ignored.as_subclass(Tensor)
                self._same_item(label, sample, said, item)
                batch = self._join(conversing, [sample], [said], training=False)
                wrapped = [wrap_image(one.text(self.style)) for one in said.conversations]
                self.report.equal(f"{label}/wrapped", wrapped, item["collated_conversation"])
                self.report.equal(f"{label}/ids", batch.input_ids.tolist(), item["input_ids"])
                assert batch.labels is not None
                self.report.equal(f"{label}/labels", batch.labels.tolist(), item["labels"])
                self.report.equal(f"{label}/mask", bool(batch.attention_mask.all()), item["attention_all_true"])

    def _training(self) -> None:
        for name, items in self.expected["train"].items():
            kind, _, rest = name.partition(":")
            draw = self._drawer(kind, rest)
            for item in items:
                draws = Recorded(item["seed"])
                sample, chosen, said = draw(draws)
                label = f"train/{name}/{item['seed']}"
                self.drawn[wrap_image(said.conversations[0].text("llava_v1"))] = (sample, said)
                self._same_item(label, sample, said, item)
                questions = [one.rounds[0][0] for one in said.conversations]
                if kind == "vqa":
                    questions = [one.text(self.style) for one in said.conversations]
                    self.report.equal(f"{label}/sampled", questions, item["sampled"])
                else:
                    # Classes come with a flag that the released code never sets.
                    told = [one[0] if isinstance(one, list) else one for one in item["sampled"]]
                    self.report.equal(f"{label}/sampled", list(chosen.phrases), told)
                self.report.equal(f"{label}/questions", questions, item["questions"])

    def _drawer(self, kind: str, rest: str) -> Callable[[Recorded], tuple[Sample, Sample, Said]]:
        """How the original draws an item of one of its data sets."""
        conversing = self._conversing()
        if kind.startswith("refer_seg"):
            sources = [self._refer(name, "train") for name in rest.split("||")]
        elif kind == "sem_seg":
            reader, root = SEMANTIC[rest]
            sources = [self._open(reader, root, "train")]
        elif kind == "vqa":
            sources = [self._open("llava_instruct", "", "train")]
        else:
            sources = [self._open("reasonseg", "", "train")]
            conversing = self._conversing(only_words=float(rest.partition("=")[2]))
        given = iter(range(len(sources[0]))) if kind.endswith("no_sampling") else None

        def draw(draws: Recorded) -> tuple[Sample, Sample, Said]:
            index = None if given is None else next(given)
            while True:
                source = sources[0]
                if index is None and kind in ("refer_seg", "sem_seg"):
                    source = sources[draws.python.randint(0, len(sources) - 1)]
                sample = source[draws.python.randint(0, len(source) - 1) if index is None else index]
                index = None if index is None else 0  # what is drawn again without sampling
                try:
                    chosen = draw_phrases(sample, self.count, draws)
                except Redraw:
                    if sample.phrases:  # the original finds out after it has drawn the templates
                        draws.below(5), draws.pick(range(4))
                    continue
                return sample, chosen, conversing.say(chosen, draws)

        return draw

    def _mixing(self) -> None:
        """The choice among data sets: ours by the numbers that the original drew."""
        told = self.expected["mixing"]
        names = ["SemSegDataset", "ReferSegDataset", "VQADataset", "ReasonSegDataset"]
        numbers = np.random.RandomState(told["seed"])
        with mock.patch("numpy.random.default_rng", lambda seed: Numbers(numbers)):
            mixture = Mixture(lengths=[10] * 4, weights=told["sample_rate"], batch_sizes=[1] * 4, seed=0)
            drawn = [names[mixture.plan(step).source] for step in range(4000)]
        self.report.equal("mixing/first20", drawn[:20], told["first20"])
        self.report.equal("mixing/counts", {name: drawn.count(name) for name in names}, told["counts_of_4000"])

    def _reason_masks(self) -> None:
        for name, told in self.expected["reason_masks"].items():
            path = self.folder / "data/reason_seg/ReasonSeg" / name
            split = name.split("/")[0]
            source = self._open("reasonseg", "", split)
            sample = next(s for s in map(source.__getitem__, range(len(source))) if s.origin.image_id == path.stem)
            values = draw_labels(read_asked(path), sample.size_hw)
            tensor = f"reason_mask.{name.removesuffix('.json').replace('/', '.')}"
            self.report.same(f"io_data/{tensor}", torch.from_numpy(values), self.tensors[tensor])
            self.report.equal(f"reason/{name}", hashlib.sha256(values.tobytes()).hexdigest(), told["sha256"])

    # ------------------------------------------------------------------ batches and pictures

    def _join(
        self, conversing: Conversing, samples: Sequence[Sample], said: Sequence[Said], *, training: bool
    ) -> ConversationBatch:
        plain = collate([preprocess(sample, self.sam, with_target=False) for sample in samples], self.sam)
        return conversing.join(plain, said, training=training)

    def _collate(self) -> None:
        """The batches of the original, of conversations that were drawn above."""
        chosen: list[tuple[Sample, Said]] = []
        for name, told in self.expected["collate"].items():
            style, _, _ = name.partition(":")
            if style == "llava_v1":
                chosen = [self.drawn[text] for text in told["conversations"]]
            samples, said = [sample for sample, _ in chosen], [one for _, one in chosen]
            conversing = self._conversing(style=style, max_length=told["model_max_length"])
            batch = self._join(conversing, samples, said, training=True)
            assert batch.labels is not None
            texts = [wrap_image(one.text(style)) for given in said for one in given.conversations]
            counts = torch.bincount(batch.conversation_to_image, minlength=len(batch))
            for what, ours, theirs in (
                ("conversations", texts, told["conversations"]),
                ("input_ids", batch.input_ids.tolist(), told["input_ids"]),
                ("labels", batch.labels.tolist(), told["labels"]),
                ("attention_rowsum", batch.attention_mask.sum(1).tolist(), told["attention_rowsum"]),
                ("offset", [0, *counts.cumsum(0).tolist()], told["offset"]),
                ("images_shape", list(batch.images.shape), told["images_shape"]),
                ("images_clip_shape", list(batch.images_clip.shape), told["images_clip_shape"]),
                ("masks", [list(mask.shape) for mask in batch.masks], told["masks"]),
            ):
                self.report.equal(f"collate/{name}/{what}", ours, theirs)

    def _pictures(self) -> None:
        for name, told in self.expected["image_tensors"].items():
            path = self.folder / "data" / name
            sample = Sample(
                image=tv_tensors.Image(read_image(path)),
                task=Task.REFERRING,
                origin=Origin(dataset="", image_id=path.stem, path=str(path), size_hw=tuple(told["orig"])),
            )
            plain = collate([preprocess(sample, self.sam)], self.sam)
            pictures = {"sam": plain.images[0], "clip": clip_input(sample.image.as_subclass(Tensor), self.clip_size)}
            self.report.equal(f"pictures/{name}/orig", list(sample.size_hw), told["orig"])
            self.report.equal(f"pictures/{name}/resize", list(plain.input_sizes_hw[0]), told["resize"])
            for eye, pixels in pictures.items():
                step = pixels.shape[-1] // 16
                file = f"{told['tensor_prefix']}.{eye}_strided"
                self.report.close(f"io_data/{file}", pixels[:, ::step, ::step], self.tensors[file], 0.0)
                found = hashlib.sha256(pixels.contiguous().numpy().tobytes()).hexdigest()
                self.report.equal(f"pictures/{name}/{eye}", found, told[f"{eye}_sha256"])


class ScoreCheck:
    """The evaluators on the predictions of ``io_metrics``."""

    def __init__(self, folder: Path, report: Report) -> None:
        self.report = report
        self.told = json.loads((folder / "metrics.json").read_text())
        self.tensors = load_file(folder / "io_metrics.safetensors")
        report.expect("io_metrics", list(self.tensors))

    def run(self) -> None:
        for data, world in (("grefcoco", 1), ("refzom", 1), ("grefcoco", 3)):
            name = f"{data}_world{world}"
            if name in self.told:
                ranks = self.told[name]["indices_per_rank"]
                self._world(name, "gsva" if data == "grefcoco" else "refzom", ranks)
        whole = self._score("rela", [list(range(self.told["n_images"]))], above_zero=True)
        official = self.told["rela_evaluator"]
        percent = ("gIoU", "cIoU", "Pr@0.7", "Pr@0.8", "Pr@0.9")
        for key, value in official.items():
            self._close(f"metrics/rela/{key}", whole[key] * (100 if key in percent else 1), value, 1e-11)
        self._per_expression()
        self._targets_only()
        self._ignored()
        self._grec()
        for name in self.tensors:
            self.report.skip(f"io_metrics/{name}")

    def _world(self, name: str, protocol: str, ranks: list[list[int]]) -> None:
        for evaluator, ours, above_zero in (("eval_gres", protocol, False), ("validate", "reasonseg", True)):
            scores = self._score(ours, ranks, above_zero=above_zero)
            for key, value in self.told[name][evaluator].items():
                if key != "meters":  # sums in float32
                    self._close(f"metrics/{name}/{evaluator}/{key}", scores[key], value, 1e-6)

    def _score(self, protocol: str, ranks: list[list[int]], *, above_zero: bool) -> dict[str, float]:
        """Every rank by itself, then together; an image that two ranks have counts twice, as it does there."""
        metrics = []
        for rank, images in enumerate(ranks):
            metrics.append(ReferringMetric(protocol))
            for image in images:
                metrics[-1].update(*self._image(image, f"rank {rank}", above_zero))
        metrics[0].merge([metric.state() for metric in metrics])
        return metrics[0].compute()

    def _image(self, image: int, dataset: str, above_zero: bool) -> tuple[Sample, Referral]:
        """Truth and prediction; masks begin at the logit 0, or above it."""
        true = self.tensors[f"{image}.gt"].bool()
        logits = self.tensors[f"{image}.pred_logits_x2"].float() * 0.5
        ids = self.tensors[f"{image}.output_ids"].long()
        slots = ids[(ids == self.told["seg_token_idx"]) | (ids == self.told["rej_token_idx"])]
        return judged(
            true, logits > 0 if above_zero else logits >= 0, slots == self.told["rej_token_idx"], image, dataset
        )

    def _per_expression(self) -> None:
        for above_zero, sign in ((False, "ge0"), (True, "gt0")):
            metric = ReferringMetric("gsva")
            for image in range(self.told["n_images"]):
                metric.update(*self._image(image, "all", above_zero))
            for number, (ours, told) in enumerate(zip(metric.phrases, self.told["per_expression"], strict=True)):
                pair = [told[f"I_{sign}"], told[f"U_{sign}"]]
                self.report.equal(f"metrics/expression/{number}/{sign}", [ours.intersection, ours.union], pair)
                flags = [told["gt_empty"], told["pred_rej"]]
                self.report.equal(f"metrics/expression/{number}/{sign}/flags", [ours.absent, ours.rejected], flags)

    def _targets_only(self) -> None:
        metric = ReferringMetric("reasonseg")
        for image in range(self.told["n_images"]):
            sample, prediction = self._image(image, "all", True)
            kept = [k for k, mask in enumerate(sample.target.masks) if mask.any()]
            true, drawn = sample.target.masks.as_subclass(Tensor)[kept], prediction.dense_masks()
            drawn = decode_masks(prediction.masks, sample.size_hw)[kept]
            metric.update(*judged(true, drawn, torch.zeros(len(kept), dtype=torch.bool), image, "all"))
        scores = metric.compute()
        for key in ("gIoU", "cIoU"):
            told = self.told["targets_only_as_res"]["validate"][key]
            self._close(f"metrics/targets_only/{key}", scores[key], told, 1e-6)

    def _ignored(self) -> None:
        told = self.told["ignore_label_example"]
        output, target = torch.tensor(told["output"]), torch.tensor(told["target"])
        sample, prediction = judged((target == 1)[None], (output == 1)[None], torch.tensor([False]), 0, "all")
        sample.target.ignored = tv_tensors.Mask(target == 255)
        metric = ReferringMetric("lisa")
        metric.update(sample, prediction)
        counted = metric.phrases[0]
        self.report.equal("metrics/ignored", [counted.intersection, counted.union], [told["I"][1], told["U"][1]])

    def _grec(self) -> None:
        told = self.told["grec"]
        phrases = []
        for key, boxes in told["gt"].items():
            true = torch.tensor([box["bbox"] for box in boxes if box["category_id"] != -1]).reshape(-1, 4).float()
            true[:, 2:] += true[:, :2]
            given = told["pred"][key]
            f1, rejected = grec_f1(
                torch.tensor(given["boxes_xyxy"]).reshape(-1, 4), torch.tensor(given["scores"]), true
            )
            phrases.append(PhraseCounts(intersection=0, union=0, absent=not len(true), rejected=rejected, f1=f1))
        ours = grec_scores(phrases)
        for name, key in (("F1_score", "F1"), ("T_acc", "T_acc"), ("N_acc", "N_acc")):
            self._close(f"metrics/grec/{name}", ours[key], told["result"][name], 1e-12)

    def _close(self, name: str, ours: float, told: float, tolerance: float) -> None:
        self.report.close(name, torch.tensor([ours]).double(), torch.tensor([told]).double(), tolerance)


def judged(true: Tensor, drawn: Tensor, rejected: Tensor, image: int, dataset: str) -> tuple[Sample, Referral]:
    """A truth and an answer in our form."""
    size_hw = (int(true.shape[1]), int(true.shape[2]))
    phrases = tuple(f"phrase {k}" for k in range(len(true)))
    sample = Sample(
        image=tv_tensors.Image(torch.zeros(3, *size_hw, dtype=torch.uint8)),
        task=Task.REFERRING,
        origin=Origin(dataset=dataset, image_id=image, path=None, size_hw=size_hw),
        target=Target(masks=tv_tensors.Mask(true)),
        phrases=phrases,
    )
    answer = Referral(
        phrases=phrases,
        masks=list(encode_masks(drawn)),
        rejected=rejected,
        scores=1 - rejected.float(),
        size_hw=size_hw,
    )
    return sample, answer


class Numbers:
    """A generator that gives the numbers of an older one."""

    def __init__(self, numbers: np.random.RandomState) -> None:
        self._numbers = numbers

    def random(self, count: int) -> Any:
        return self._numbers.random_sample(count)


class Reordered:
    """A source whose images come in another order of their ids."""

    def __init__(self, source: Source, order: Callable[[list[Any]], list[Any]]) -> None:
        ids = [source[k].origin.image_id for k in range(len(source))]
        self._source, self._indices = source, [ids.index(key) for key in order(ids)]
        self.name, self.task, self.classes, self.skipped = source.name, source.task, source.classes, source.skipped

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Sample:
        return self._source[self._indices[index]]
