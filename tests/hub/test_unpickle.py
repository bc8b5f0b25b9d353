"""Reading torch.save files: everything that is a tensor comes out, nothing that the file names is run."""

from __future__ import annotations

import collections
import io
import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from saccade.errors import CheckpointError
from saccade.hub.unpickle import Inert, read_pickle, read_pickled_state, read_tensor_file

SHARED = Path(__file__).resolve().parents[2].parent / "shared"


def example_state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(4, 6, generator=generator)
    return {
        "plain": base,
        "transposed": base.t(),
        "slice": base[1:3, ::2],
        "half": torch.arange(5).half(),
        "bfloat16": torch.arange(7).bfloat16(),
        "long": torch.arange(3),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }


def test_official_sample_is_read_without_mmengine() -> None:
    path = SHARED / "parity/git/ckpt_format_sample.pth"
    if not path.is_file():
        pytest.skip("../shared/parity/git is absent")
    file = read_tensor_file(path)
    assert {key: tuple(value.shape) for key, value in file.tensors.items()} == {
        "backbone.weight": (4, 4),
        "backbone.bias": (4,),
        "embed.weight": (4,),
        "embed.bias": (4,),
    }
    # The optimiser was stepped three times with lr 2e-4 from 1 and 0: the values themselves are right.
    assert torch.allclose(file.tensors["embed.weight"], torch.ones(4), atol=1e-3)
    assert file.meta["meta"]["iter"] == 3
    assert file.inert["mmengine.logging.history_buffer.HistoryBuffer"] > 0


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_same_tensors_as_torch_load(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "state.pth"
    torch.save({"state_dict": example_state(), "meta": {"iter": 7}}, path, _use_new_zipfile_serialization=zipped)
    expected = torch.load(path, weights_only=True)["state_dict"]
    state = read_pickled_state(path)
    assert list(state) == list(expected)
    for key, value in expected.items():
        assert state[key].dtype == value.dtype
        assert torch.equal(state[key], value.detach()), key
    assert read_tensor_file(path).meta == {"meta": {"iter": 7}}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_foreign_classes_beside_the_state_become_inert(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "state.pth"
    extras = {"counter": collections.Counter("aab"), "fraction": __import__("fractions").Fraction(1, 3)}
    state = collections.OrderedDict(a=torch.ones(2))
    torch.save({"state_dict": state, **extras}, path, _use_new_zipfile_serialization=zipped)
    file = read_tensor_file(path)
    assert list(file.tensors) == ["a"]
    assert file.meta == {}
    assert set(file.inert) >= {"collections.Counter", "fractions.Fraction"}


def test_top_level_state_and_its_other_entries(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    torch.save({"a": torch.ones(2), "epoch": 4, "odd": collections.Counter()}, path)
    file = read_tensor_file(path)
    assert list(file.tensors) == ["a"]
    assert file.meta == {"epoch": 4}
    assert "collections.Counter" in file.skipped["odd"]


# ---------------------------------------------------------------------------------------------- hostile files

MARK = "SACCADE_TEST_MARK"


class ByReduce:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return (os.system, (f"touch {self.mark}",))


def programs(mark: Path) -> dict[str, bytes]:
    """Pickle programs that would touch the file if anything they name were called."""
    command = f"touch {mark}".encode()
    short = pickle.SHORT_BINUNICODE + bytes([len(command)]) + command
    python = f"open({str(mark)!r}, 'w').close()".encode()
    code = pickle.SHORT_BINUNICODE + bytes([len(python)]) + python
    text = b"\x80\x04"
    return {
        "reduce": text + b"cos\nsystem\n" + short + b"\x85R.",
        "stack_global": text + b"\x8c\x05posix\x8c\x06system\x93" + short + b"\x85R.",
        "eval": text + b"cbuiltins\nexec\n" + code + b"\x85R.",
        "inst": b"(S'" + command + b"'\nios\nsystem\n.",
        "obj": text + b"(cos\nsystem\n" + short + b"o.",
        "newobj": text + b"csubprocess\nPopen\n" + short + b"\x85\x81.",
        "newobj_ex": text + b"csubprocess\nPopen\n" + short + b"\x85}\x92.",
        # getattr(builtins module, 'exec') through attribute access on a global.
        "getattr": text + b"cbuiltins\ngetattr\ncos\n__dict__\n\x8c\x06system\x86R" + short + b"\x85R.",
        # BUILD with a state whose __setstate__ would be os.system.
        "build": text + b"c__main__\nVictim\n)\x81}\x8c\x0c__setstate__cos\nsystem\nsb" + short + b"b.",
        # BUILD on the allow-listed rebuild function and class, to change what later calls do.
        "build_function": text
        + b"ctorch._utils\n_rebuild_tensor_v2\nN}\x8c\x04callcos\nsystem\ns\x86b"
        + short
        + b"\x85R.",
        "build_class": text + b"ccollections\nOrderedDict\nN}\x8c\x07__new__cos\nsystem\ns\x86b" + short + b"\x85R.",
        "setitem": text + b"c__main__\nVictim\n)\x81\x8c\x01kcos\nsystem\n" + short + b"\x85Rs.",
        "dotted": text + b"\x8c\x08builtins\x8c\x11object.__class__\x93" + short + b"\x85R.",
        "extension": text + b"\x82\x01" + short + b"\x85R.",
        "persistent_id": text + short + b"Q.",
        "from_type": text
        + b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\nctorch\nTensor\n"
        + short
        + b"\x85NtR.",
    }


def as_zip(program: bytes, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")


def as_legacy(program: bytes, path: Path) -> None:
    stream = io.BytesIO()
    for header in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
        pickle.dump(header, stream, protocol=2)
    stream.write(program)
    pickle.dump([], stream, protocol=2)
    path.write_bytes(stream.getvalue())


@pytest.mark.parametrize("container", [as_zip, as_legacy, lambda program, path: path.write_bytes(program)])
@pytest.mark.parametrize("name", sorted(programs(Path("x"))))
def test_hostile_program_runs_nothing(tmp_path: Path, name: str, container) -> None:
    mark = tmp_path / "ran"
    path = tmp_path / "evil.pth"
    container(programs(mark)[name], path)
    with pytest.raises(CheckpointError) as caught:
        read_pickled_state(path)
    assert str(path) in str(caught.value)
    assert not mark.exists()


def test_the_hostile_programs_are_dangerous(tmp_path: Path) -> None:
    """The programs above do run under plain pickle, so that the test before means something."""
    mark = tmp_path / "ran"
    for name in ("reduce", "stack_global", "eval", "inst", "obj"):
        pickle.loads(programs(mark)[name])
        assert mark.exists(), name
        mark.unlink()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_payload_beside_good_weights(tmp_path: Path, zipped: bool) -> None:
    mark = tmp_path / "ran"
    path = tmp_path / "evil.pth"
    state = {"a": torch.ones(2), "b": torch.zeros(3)}
    torch.save({"state_dict": state, "hub": ByReduce(mark)}, path, _use_new_zipfile_serialization=zipped)
    assert set(read_pickled_state(path)) == {"a", "b"}
    assert not mark.exists()
    tree, inert = read_pickle(path)
    assert isinstance(tree["hub"], Inert)
    assert sum(number for name, number in inert.items() if name.endswith(".system")) == 1


def rebuild(storage: bytes, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """A program whose state dict has one tensor with the given geometry."""
    stream = io.BytesIO()
    stream.write(b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n(")
    stream.write(storage)
    for value in (offset, size, stride):
        stream.write(pickle.dumps(value, protocol=2)[2:-1])
    stream.write(b"\x89}tRs.")
    return stream.getvalue()


def storage_id(elements: int, key: str = "0") -> bytes:
    name = key.encode()
    head = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX" + struct.pack("<i", len(name)) + name
    return head + b"X\x03\x00\x00\x00cpuJ" + struct.pack("<i", elements) + b"tQ"


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (5,), (1,)),
        (2, (3,), (1,)),
        (0, (2, 2), (3, 1)),
        (-1, (2,), (1,)),
        (0, (2,), (-1,)),
        (0, (2,), (1, 1)),
        (0, (1 << 40,), (0,)),
        (5, (0,), (1,)),
        (0, ("a",), (1,)),
    ],
)
def test_tensor_outside_its_storage_is_refused(tmp_path: Path, offset: int, size, stride) -> None:
    path = tmp_path / "evil.pth"
    as_zip(rebuild(storage_id(4), offset, size, stride), path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/0", struct.pack("<4f", 1, 2, 3, 4))
    with pytest.raises(CheckpointError, match=r"storage|stride"):
        read_pickled_state(path)


def test_hand_made_tensor_inside_its_storage(tmp_path: Path) -> None:
    path = tmp_path / "good.pth"
    as_zip(rebuild(storage_id(4), 1, (3,), (1,)), path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/0", struct.pack("<4f", 1, 2, 3, 4))
    assert read_pickled_state(path)["a"].tolist() == [2, 3, 4]


def test_compressed_record_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    as_zip(rebuild(storage_id(1 << 20), 0, (1,), (1,)), path)
    with zipfile.ZipFile(path, "a", compression=zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(4 << 20))
    with pytest.raises(CheckpointError, match="compressed"):
        read_pickled_state(path)


def test_an_archive_of_weight_files_is_to_be_unpacked(tmp_path: Path) -> None:
    torch.save(example_state(), tmp_path / "polar.pth")
    with zipfile.ZipFile(tmp_path / "lesion_models.zip", "w") as archive:
        archive.write(tmp_path / "polar.pth", "lesion/polar.pth")
    with pytest.raises(CheckpointError, match=r"lesion/polar\.pth.*\n.*unpack it first"):
        read_pickled_state(tmp_path / "lesion_models.zip")


def test_legacy_storage_larger_than_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "evil.pth"
    program = rebuild(storage_id(1 << 30).replace(b"tQ", b"NtQ"), 0, (1,), (1,))
    as_legacy(program, path)
    with pytest.raises(CheckpointError, match="larger than the file"):
        read_pickled_state(path)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_file_is_one_error(tmp_path: Path, zipped: bool, share: float) -> None:
    path = tmp_path / "cut.pth"
    torch.save(example_state(), path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError) as caught:
        read_pickled_state(path)
    assert str(path) in str(caught.value)


def test_random_damage_never_escapes(tmp_path: Path) -> None:
    """Whatever bytes are flipped: tensors, or one error of ours."""
    path = tmp_path / "state.pth"
    torch.save({"state_dict": {"a": torch.arange(4.0), "b": torch.ones(2, 3)}, "x": [1, "two"]}, path)
    whole = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        damaged = bytearray(whole)
        for position in torch.randint(len(whole), (3,), generator=generator).tolist():
            damaged[position] = int(torch.randint(256, (1,), generator=generator))
        path.write_bytes(damaged)
        try:
            state = read_pickled_state(path)
        except CheckpointError:
            continue
        assert all(isinstance(value, torch.Tensor) for value in state.values())


@pytest.mark.parametrize(
    "content", [b"", b"hello", pickle.dumps({"a": 1}), pickle.dumps([1, 2])], ids=["empty", "text", "dict", "list"]
)
def test_other_files_are_one_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"file\.pth"):
        read_pickled_state(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such weight file"):
        read_pickled_state(tmp_path / "absent.pth")


def test_file_without_tensors(tmp_path: Path) -> None:
    path = tmp_path / "empty.pth"
    torch.save({"meta": {"iter": 1}}, path)
    with pytest.raises(CheckpointError, match="no state dict"):
        read_pickled_state(path)


def test_torchscript_is_named(tmp_path: Path) -> None:
    path = tmp_path / "script.pth"
    as_zip(pickle.dumps({}, protocol=2), path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/constants.pkl", b"")
    with pytest.raises(CheckpointError, match="TorchScript"):
        read_pickled_state(path)


@pytest.mark.parametrize("shift", [0, 1])
def test_safetensors_are_mapped_and_their_memory_is_given_back(tmp_path: Path, shift: int) -> None:
    state = {
        "half": torch.randn(3, 5).to(torch.bfloat16),
        "one": torch.tensor(7),
        "none": torch.zeros(0, 4),
        "yes": torch.tensor([True, False, True]),
        "float": torch.randn(2, 3, 4),
    }
    content = save(state)
    (length,) = struct.unpack("<Q", content[:8])
    # Another program may leave the tensors at odd addresses.
    content = struct.pack("<Q", length + shift) + content[8 : 8 + length] + b" " * shift + content[8 + length :]
    (tmp_path / "a.safetensors").write_bytes(content)
    file = read_tensor_file(tmp_path / "a.safetensors")
    for _ in range(2):
        assert file.tensors.keys() == state.keys()
        for key, value in state.items():
            assert file.tensors[key].dtype == value.dtype and torch.equal(file.tensors[key], value), key
        file.release()
    for kept in (4, 40, len(content) - 3):
        (tmp_path / "a.safetensors").write_bytes(content[:kept])
        with pytest.raises(CheckpointError, match="truncated or damaged"):
            read_tensor_file(tmp_path / "a.safetensors")
