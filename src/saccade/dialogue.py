"""Questions about one picture that was looked at once."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torchvision import tv_tensors

from saccade.data.transforms import collate, preprocess
from saccade.errors import UsageError
from saccade.layers.precision import Precision, autocast
from saccade.models.gsva.collate import Conversing, Said, clip_input
from saccade.models.gsva.conversation import check_typed
from saccade.models.gsva.language import PrefixCache
from saccade.models.gsva.model import GSVA
from saccade.models.systems import extra_of
from saccade.results import Referral
from saccade.samples import Origin, Sample
from saccade.tasks import Task


class Dialogue:
    """A picture, and what was said about it so far.

    The language model reads on from where a question differs from the one before it: the picture is read once.

    Args:
        model: A model that converses, with its vocabulary.
        image: ``[3, H, W]`` uint8 RGB.
        device: Where the model runs.
        precision: Arithmetic of the model.

    Attributes:
        rounds: The open questions so far, each with its answer; the next one is understood after them.
    """

    def __init__(self, model: GSVA, image: Tensor, *, device: torch.device, precision: Precision = "float32") -> None:
        self.rounds: list[tuple[str, str]] = []
        self._model, self._device, self._precision = model, device, precision
        origin = Origin(dataset="", image_id="the picture", path=None, size_hw=(image.shape[-2], image.shape[-1]))
        self._sample = Sample(image=tv_tensors.Image(image), task=Task.REFERRING, origin=origin)
        declared = model.preprocess(Task.REFERRING)
        self._batch = collate([preprocess(self._sample, declared, with_target=False)], declared)
        own, free = extra_of(model, answer="own"), extra_of(model, answer="free")
        assert own is not None and free is not None  # it converses
        self._own, self._free = own, free
        seen = clip_input(image, model.config.clip.image_size)
        with torch.no_grad(), autocast(precision, device):
            encoded = model.encode(self._batch.images.to(device), seen[None].to(device))
        self._encoded = dataclasses.replace(encoded, prefix=PrefixCache(model.language))

    def find(self, *phrases: str) -> Referral:
        """One mask per phrase, of all that it refers to, or its rejection. What was said before does not matter.

        Args:
            phrases: At least one.

        Raises:
            UsageError: No phrase, one without words, or one that the model would take for its own words.
            DataError: A phrase that is too long.
        """
        if not phrases:
            raise UsageError("no phrase is given", fix="say what to segment: find('the red ball', 'a dog')")
        check_typed("phrase", phrases)
        said = self._own.prepare(dataclasses.replace(self._sample, phrases=phrases))
        return self._answer(self._own, said)

    def ask(self, question: str) -> Referral:
        """An answer in words (``text``), with a mask for every [SEG] in it.

        Args:
            question: In any words, e.g. "Segment everything one can sit on."

        Raises:
            UsageError: A question without words, or one that the model would take for its own words.
            DataError: The dialogue has become longer than what the model can read.
        """
        check_typed("question", (question,))
        referral = self._answer(self._free, self._free.ask(self._sample.image, question, self.rounds))
        self.rounds.append((question, referral.text))
        return referral

    def _answer(self, extra: Conversing, said: Said) -> Referral:
        batch = extra.join(self._batch, [said], training=False)
        with autocast(self._precision, self._device):
            (referral,) = self._model.predict(batch.to(self._device), self._encoded)
        assert isinstance(referral, Referral)
        return referral
