"""An independent reading of the scenes' language: what a phrase means, worked out from pixels alone."""

from __future__ import annotations

import numpy as np

from saccade.data.scenes import COLOURS, MATERIALS, SIZES, THING_CLASSES, Scene

RELATIONS = ("left of", "right of", "in front of", "behind")
PLURAL_HEADS = {name + ("es" if name in ("arch", "box", "cross") else "s"): name for name in (*THING_CLASSES, "object")}


class Reader:
    """Answers questions about a scene from its maps, boxes and attribute lists only."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        count = len(scene)
        masks = [scene.instance_ids == k + 1 for k in range(count)]
        self.columns = [float(np.mean([np.nonzero(m)[1].min(), np.nonzero(m)[1].max() + 1])) for m in masks]
        self.depths = [float(scene.depth_m[m].mean()) for m in masks]
        self.areas = [int(m.sum()) for m in masks]
        self.names = [THING_CLASSES[k] for k in scene.class_ids]

    def matches(self, words: list[str]) -> list[int]:
        """Objects that adjectives and a noun describe."""
        found = []
        for k in range(len(self.names)):
            traits = {self.names[k], self.scene.colours[k], self.scene.sizes[k], self.scene.materials[k], "object"}
            if set(words) <= traits:
                found.append(k)
        return found

    def holds(self, word: str, one: int, other: int) -> bool:
        """A relation without any margin."""
        return {
            "left of": self.columns[one] < self.columns[other],
            "right of": self.columns[one] > self.columns[other],
            "in front of": self.depths[one] < self.depths[other],
            "behind": self.depths[one] > self.depths[other],
        }[word]

    def meaning(self, text: str) -> set[int]:
        """The objects that a phrase describes."""
        for word in RELATIONS:
            if f" {word} " in text:
                head, anchor = text.split(f" {word} ")
                anchors = self.meaning(anchor)
                assert len(anchors) == 1, text
                (at,) = anchors
                return {k for k in self.meaning(head) if k != at and self.holds(word, k, at)}
        if " and " in text:
            return set.union(*(self.meaning(part) for part in text.split(" and ")))
        article, *words = text.split()
        if article == "all":
            words[-1] = PLURAL_HEADS[words[-1]]
        else:
            assert article == "the", text
        measure = {
            "leftmost": (self.columns, 1),
            "rightmost": (self.columns, -1),
            "nearest": (self.depths, 1),
            "farthest": (self.depths, -1),
            "smallest": (self.areas, 1),
            "biggest": (self.areas, -1),
        }.get(words[0])
        if measure is None:
            known = {*THING_CLASSES, *COLOURS, *SIZES, *MATERIALS, "object"}
            assert set(words) <= known, text
            return set(self.matches(words))
        values, sign = measure
        return {min(found, key=lambda k: sign * values[k])} if (found := self.matches(words[1:])) else set()
