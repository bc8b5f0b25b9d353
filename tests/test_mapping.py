"""The key mapping and its report."""

from __future__ import annotations

import io
import json

import pytest
import torch
from rich.console import Console

from saccade.errors import CheckpointError
from saccade.hub.report import mapping_table
from saccade.mapping import MappingReport, apply_mapping

STATE = {
    "a": torch.ones(2),
    "b": torch.ones(3),
    "table": torch.ones(4, 2),
    "head": torch.ones(1),
    "junk": torch.ones(1),
}
EXPECTED = {"A": (2,), "B": (4,), "TABLE": (6, 2), "C": (1,)}


def resize(key: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> tuple[torch.Tensor, str] | None:
    return (torch.zeros(shape), "grown") if key == "TABLE" else None


def example() -> tuple[dict[str, torch.Tensor], MappingReport]:
    return apply_mapping(
        STATE,
        expected=EXPECTED,
        rename=str.upper,
        drop=lambda key: "a head" if key == "head" else None,
        resize=resize,
        source="file.pth",
    )


def test_every_key_is_accounted_for() -> None:
    mapped, report = example()
    assert {key: tuple(value.shape) for key, value in mapped.items()} == {"A": (2,), "TABLE": (6, 2)}
    assert report.matched == {"a": "A", "table": "TABLE"}
    assert report.missing == ["C"]
    assert report.unexpected == ["junk"]
    assert report.wrong_shape == {"B": ((3,), (4,))}
    assert report.dropped == {"head": "a head"}
    assert report.resized == {"TABLE": "grown"}
    assert not report.complete
    sources = [*report.matched, *report.unexpected, *report.dropped]
    assert len(sources) + len(report.wrong_shape) == len(STATE)
    json.dumps(report.to_dict())


def test_partial_load_is_an_error_unless_allowed_by_name() -> None:
    _, report = example()
    with pytest.raises(CheckpointError, match="1 missing, 1 unexpected, 1 wrong shape"):
        report.check()
    with pytest.raises(CheckpointError, match=r"1 wrong shape \(2 keys matched\)"):
        report.check(allow=("C", "j*"))
    # A wrong shape cannot be allowed: the tensor would stay at random.
    with pytest.raises(CheckpointError, match="B "):
        report.check(allow=("*",))
    MappingReport(missing=["x.1", "x.2"], unexpected=["y"]).check(allow=("x.?", "y"))
    with pytest.raises(CheckpointError, match=r"x\.10"):
        MappingReport(missing=["x.10"]).check(allow=("x.?",))


def test_two_keys_for_one_place() -> None:
    with pytest.raises(CheckpointError, match="'A'"):
        apply_mapping({"a": torch.ones(2), "A": torch.ones(2)}, expected={"A": (2,)}, rename=str.upper)


def test_resize_that_does_not_fit_is_a_wrong_shape() -> None:
    _, report = apply_mapping(
        {"a": torch.ones(2)}, expected={"a": (3,)}, rename=str, resize=lambda *_: (torch.ones(4), "wrong")
    )
    assert report.wrong_shape == {"a": ((2,), (3,))}


def test_table_shows_counts_and_keys() -> None:
    _, report = example()
    report.notes.append("it is a file of 'base'")
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(mapping_table(report))
    text = console.export_text()
    for part in ("missing", "junk", "found [3], expected [4]", "grown", "a head", "note: it is a file of 'base'"):
        assert part in text
