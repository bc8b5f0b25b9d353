"""Low-rank updates count wherever a model reads the layer: in the loss, and in what it predicts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

sys.path.extend(str(Path(__file__).parent / folder) for folder in ("ait", "git", "polar", "visft", "vitdet"))
import helpers_ait
import helpers_git
import helpers_polar
import helpers_visft
import helpers_vitdet

from saccade.errors import ConfigError
from saccade.layers.lora import LoRAConfig, add_lora, merge, unmerge, updates_of
from saccade.models.git.config import GIT_TASKS, GiTConfig
from saccade.models.polar.config import PixelConfig, PolarConfig
from saccade.models.polar.model import PolarSegmenter
from saccade.models.polar.segmenter import Segmenter
from saccade.models.systems import Model, build
from saccade.models.visft.model import ViSFT
from saccade.models.vitdet.model import ViTDet
from saccade.samples import Batch
from saccade.tasks import Task


def _visft() -> ViSFT:
    torch.manual_seed(0)
    return ViSFT(helpers_visft.tiny_config(), helpers_visft.tiny_words())


def _vitdet(form: str) -> ViTDet:
    torch.manual_seed(0)
    return ViTDet(helpers_vitdet.FORMS[form])


def _polar() -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(helpers_polar.TINY_VIT)


def _unrolled(segmenter: PixelConfig) -> PolarSegmenter:
    torch.manual_seed(0)
    words = helpers_git.VOCABULARY if isinstance(segmenter, GiTConfig) else None
    return build(PolarConfig(segmenter=segmenter), words)


UNROLLED = {"vit": helpers_polar.TINY_VIT, "git": helpers_git.tiny_config(), "visft": helpers_polar.TINY_VISFT}

CASES = {
    **{
        f"ait, {form}, {task}": (lambda form=form: helpers_ait.model(form), lambda task=task: helpers_ait.batch(task))
        for form in ("instance", "depth", "depth, parallel")
        for task in helpers_ait.tasks_of(form)
    },
    **{f"git, {task}": (helpers_git.tiny_git, lambda task=task: helpers_git.make_batch(task)) for task in GIT_TASKS},
    **{
        f"visft, {task}": (_visft, lambda task=task: helpers_visft.batch(task))
        for task in (Task.DETECTION, Task.INSTANCE, Task.CAPTION)
    },
    **{
        f"vitdet, {form}": (lambda form=form: _vitdet(form), helpers_vitdet.batch)
        for form in ("vitae_repo cascade", "vitae_s", "detectron2")
    },
    "polar": (_polar, lambda: helpers_polar.make_batch([[(14.0, 20.0, 6.0)]])),
    **{
        f"polar, unrolled for {name}": (
            lambda config=config: _unrolled(config),
            lambda side=side: helpers_polar.make_batch([[(14.0, 20.0, 6.0)]], side),
        )
        for (name, config), side in zip(UNROLLED.items(), ((32, 48), (64, 64), (48, 48)), strict=True)
    },
}


def callable_linears(model: nn.Module) -> tuple[str, ...]:
    """All linear layers but those that torch's attention reads without calling them."""
    inside = {f"{name}.out_proj" for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)}
    return tuple(name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name not in inside)


def answers(model: Model, batch: Batch) -> Iterator[tuple[str, Tensor]]:
    """All numbers of the loss and of the predictions."""
    with torch.no_grad():
        torch.manual_seed(5)
        losses = model.loss(batch)
        torch.manual_seed(5)
        if isinstance(model, PolarSegmenter):
            predicted = model.predict(batch, centers_xy=[torch.tensor([[14.0, 20.0]])])
        else:
            predicted = model.predict(batch)
    yield from losses.items()
    for index, one in enumerate(predicted):
        for name, value in vars(one).items():
            if isinstance(value, Tensor):
                yield f"{index}, {name}", value


@pytest.mark.parametrize("case", list(CASES))
def test_an_update_counts_the_same_before_and_after_it_is_merged(case: str) -> None:
    make, batch_of = CASES[case]
    model, batch = make().eval(), batch_of()
    plain = dict(answers(model, batch))
    add_lora(model, LoRAConfig(rank=2, targets=callable_linears(model)))
    torch.manual_seed(1)
    for layer, update in updates_of(model).values():
        nn.init.normal_(update.B, std=0.5 * float(layer.weight.std()))
    updated = dict(answers(model, batch))
    assert any(
        value.shape != plain[name].shape or not torch.equal(value, plain[name]) for name, value in updated.items()
    )
    merge(model)
    for name, value in answers(model, batch):
        torch.testing.assert_close(value, updated[name], rtol=1e-3, atol=1e-3, msg=lambda text, n=name: f"{n}: {text}")
    unmerge(model)
    assert all(torch.equal(value, updated[name]) for name, value in answers(model, batch))


@pytest.mark.parametrize("case", ["git, detection", "visft, detection", "visft, instance_segmentation"])
def test_what_attention_of_torch_never_calls_takes_no_update(case: str) -> None:
    model = CASES[case][0]()
    with pytest.raises(ConfigError, match=r"out_proj' cannot have an update") as caught:
        add_lora(model, LoRAConfig(rank=2, targets=("*",)))
    assert "never calls it" in str(caught.value) and not updates_of(model)
