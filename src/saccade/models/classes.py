"""Classes that a model was built with: what it is asked for, and what a data set calls them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from saccade.errors import DataError, UsageError, nearest
from saccade.samples import Batch, ClassList

_FEW = 8


@dataclass(frozen=True)
class KnownClasses:
    """The fixed classes of a model.

    Attributes:
        names: Empty = numbered: the names are those that are asked for, in order.
        category_ids: Ids of the data set; empty = 0..K-1.
        count: Classes K.
    """

    names: tuple[str, ...]
    category_ids: tuple[int, ...]
    count: int

    @property
    def listed(self) -> ClassList:
        """The class list, numbered where there are no names."""
        names = self.names or tuple(f"class {number}" for number in range(self.count))
        return ClassList(names=names, category_ids=self.category_ids or tuple(range(self.count)))

    def wanted(self, asked: ClassList | None) -> tuple[ClassList, Tensor | None]:
        """The class list of the answers, and for each of our classes its place in it (-1 = not asked for).

        Raises:
            UsageError: A name that the model does not know, or another number of names where it has none.
        """
        own = self.listed
        if asked is None or asked == own:
            return own, None
        if not self.names:
            self._require_count(asked)
            return asked, None
        for name in asked.names:
            if name not in own.names:
                raise unknown_class(name, own)
        return asked, torch.tensor([asked.names.index(name) if name in asked.names else -1 for name in own.names])

    def own_ids(self, batch: Batch, class_ids: Tensor) -> Tensor:
        """Class ids of a data set as ours, by name.

        Raises:
            DataError: The data set has a class that the model does not.
            UsageError: Another number of classes, where the model's have no names.
        """
        if batch.classes is None or batch.classes.names == self.names:
            return class_ids
        if not self.names:
            self._require_count(batch.classes)
            return class_ids
        for name in batch.classes.names:
            if name not in self.names:
                raise DataError(
                    f"the data set has a class '{name}', which the model does not",
                    where=batch.origins[0].dataset,
                    fix=f"name them as the model does ({_shown(self.names)}), or build the model with the classes of "
                    "the data set (recipe=finetune does)",
                )
        own = [self.names.index(name) for name in batch.classes.names]
        return torch.tensor(own, device=class_ids.device)[class_ids]

    def _require_count(self, asked: ClassList) -> None:
        if len(asked) != self.count:
            raise UsageError(
                f"the model has {self.count} classes without names, and {len(asked)} are given",
                fix="give the names of all its classes in order",
            )


def unknown_class(name: str, own: ClassList) -> UsageError:
    """The error about a name that a model does not know: it says what to type.

    Args:
        name: What is asked for. Where nobody named the classes of a data set, it is a reader's own word.
        own: The classes of the model.
    """
    # All of a few names are said: the nearest one by its letters ('background' for 'foreground') would mislead.
    few = len(own) <= _FEW
    return UsageError(
        f"the model does not know the class '{name}'",
        fix=f"its own names: --classes {_shown(own.names)}" if few else nearest(name, own.names),
    )


def _shown(names: tuple[str, ...]) -> str:
    return ",".join(names[:_FEW]) + (",..." if len(names) > _FEW else "")
