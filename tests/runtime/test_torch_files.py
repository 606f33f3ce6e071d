"""runtime.torch_files: tensors of both forms of torch.save, and nothing that runs."""

import collections
import io
import os
import pathlib
import pickle
import struct
import sys
import types
import zipfile

import numpy as np
import pytest

from diffusion_jax.runtime import torch_files
from diffusion_jax.runtime.errors import BadRequest
from helpers import ROOT

FIXTURES = ROOT / "tests" / "fixtures"
MAGIC = 0x1950A86A20F9469CFC6C
SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}


class Storage:
    """Reference of a pickle to elements that lie elsewhere."""

    def __init__(self, key, kind, content, count):
        self.pid = ("storage", getattr(sys.modules["torch"], kind), key, "cpu", count)
        self.key, self.content, self.count = key, content, count


class Call:
    """Object that is pickled as a call of a function."""

    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


class Pickler(pickle.Pickler):
    def persistent_id(self, value):
        return value.pid if isinstance(value, Storage) else None


@pytest.fixture
def torch(monkeypatch):
    """Names of torch, as a pickler looks them up."""
    modules = {name: types.ModuleType(name) for name in ("torch", "torch._utils")}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    names = ["FloatStorage", "BFloat16Storage", "LongStorage", "BoolStorage"]
    for module, name in [
        *((modules["torch"], name) for name in names),
        (modules["torch._utils"], "_rebuild_tensor_v2"),
        (modules["torch._utils"], "_rebuild_parameter"),
    ]:

        def function():
            pass

        function.__module__, function.__qualname__ = module.__name__, name
        setattr(module, name, function)
    return modules["torch._utils"]


def storage_of(array, key="0", kind="FloatStorage"):
    return Storage(key, kind, array.tobytes(), array.size)


def tensor(torch, storage, offset, size, stride):
    hooks = collections.OrderedDict()
    return Call(torch._rebuild_tensor_v2, storage, offset, size, stride, False, hooks)


def pickled(value):
    file = io.BytesIO()
    Pickler(file, 2).dump(value)
    return file.getvalue()


def zipped(value, storages, order="little", **options):
    """Bytes of the form since torch 1.6."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as archive:
        archive.writestr("net/data.pkl", pickled(value))
        archive.writestr("net/byteorder", order)
        for storage in storages:
            archive.writestr(f"net/data/{storage.key}", storage.content)
    return file.getvalue()


def in_a_row(value, storages):
    """Bytes of the form before torch 1.6."""
    heads = [pickled(x) for x in (MAGIC, 1001, SYSTEM)]
    keys = pickled([storage.key for storage in storages])
    tail = [struct.pack("<q", s.count) + s.content for s in storages]
    return b"".join([*heads, pickled(value), keys, *tail])


FORMS = pytest.mark.parametrize("form", [zipped, in_a_row])


@pytest.fixture
def read(tmp_path):
    def run(content, function=torch_files.read):
        path = tmp_path / "net.pth"
        path.write_bytes(content)
        return function(path)

    return run


def refusal(read, content, function=torch_files.read):
    with pytest.raises(BadRequest) as caught:
        read(content, function)
    assert "\n" not in str(caught.value) and "net.pth" in str(caught.value)
    return str(caught.value)


@FORMS
def test_views_of_one_storage(torch, read, form):
    """Offsets and strides are those of a transposed part of a matrix."""
    whole = np.arange(12, dtype=np.float32).reshape(3, 4)
    storage = storage_of(whole)
    part = tensor(torch, storage, 5, (2, 2), (1, 4))
    parameter = Call(
        torch._rebuild_parameter, tensor(torch, storage, 0, (3, 4), (4, 1)), 1, {}
    )
    found = read(form({"a": parameter, "b": [part, 7, "text"]}, [storage]))
    np.testing.assert_array_equal(found["a"], whole)
    np.testing.assert_array_equal(found["b"][0], whole[1:, 1:3].T)
    assert found["b"][1:] == [7, "text"] and found["a"].dtype == np.float32
    assert np.shares_memory(found["a"], found["b"][0]) and not found["a"].flags.writeable


@FORMS
def test_other_dtypes(torch, read, form):
    """bfloat16 is the upper half of a float32; a scalar and an empty tensor have shapes."""
    exact = np.array([1.5, -(2.0**100), 0.0], np.float32)  # Few bits: exact in bfloat16.
    upper = (exact.view(np.uint32) >> 16).astype("<u2")
    storages = [
        storage_of(upper, "1", "BFloat16Storage"),
        storage_of(np.array([2**40]), "2", "LongStorage"),
        storage_of(np.array([True, False]), "3", "BoolStorage"),
        storage_of(np.zeros(0, np.float32), "4"),
    ]
    sizes = [((3,), (1,)), ((), ()), ((2,), (1,)), ((0, 5), (5, 1))]
    tensors = [tensor(torch, s, 0, *size) for s, size in zip(storages, sizes, strict=True)]
    found = read(form(tensors, storages))
    np.testing.assert_array_equal(found[0], exact)
    assert found[0].dtype == np.float32 and not found[0].flags.writeable
    assert found[1].shape == () and found[1] == 2**40
    assert found[2].tolist() == [True, False] and found[2].dtype == bool
    assert found[3].shape == (0, 5)


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_a_file_that_torch_has_written(form):
    """Files of torch 2.13, by benchmarks/against/feature_networks.py (`write_fixtures`)."""
    found = torch_files.read_tensors(FIXTURES / f"torch_{form}.pth")
    assert list(found) == ["half", "bfloat16", "transposed", "part", "parameter", "count"]
    grid = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(found["half"], grid.astype(np.float16) / 4)
    np.testing.assert_array_equal(found["bfloat16"], np.float32([0.5, -3.0, 2.0**90]))
    np.testing.assert_array_equal(found["transposed"], grid.T.astype(np.float64))
    np.testing.assert_array_equal(found["part"], [2, 5])
    np.testing.assert_array_equal(found["parameter"], np.float32([1, 2, 3]))
    assert found["count"] == 7 and found["count"].dtype == np.int64
    assert found["half"].dtype == np.float16 and found["part"].dtype == np.int32


@FORMS
@pytest.mark.parametrize("function", [os.system, eval, print, os.path.join])
def test_code_is_refused_by_name_and_not_run(read, form, function, tmp_path):
    marker = tmp_path / "marker"
    text = {eval: f"open({str(marker)!r}, 'w')"}.get(function, f"touch {marker}")
    said = refusal(read, form({"weight": Call(function, text)}, []))
    assert f".{function.__name__}," in said and "code" in said
    if function is os.system:
        assert "posix.system" in said
    assert not marker.exists()


@FORMS
@pytest.mark.parametrize("state", [{"a": 1}, (None, {"a": 1}), (None, {"__class__": dict})])
def test_a_pickle_changes_no_function(torch, read, form, state, monkeypatch):
    """An opcode that gives an object its state may not give one to a function."""

    class Changed(Call):
        def __reduce__(self):
            return (*super().__reduce__(), state)

    value = Changed(torch._rebuild_parameter, torch._rebuild_tensor_v2)
    refusal(read, form(value, []))


@FORMS
def test_other_objects_are_refused_by_name(read, form):
    said = refusal(read, form({"path": pathlib.PurePosixPath("x")}, []))
    assert "pathlib.PurePosixPath" in said and "state_dict" in said


@FORMS
@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [
        ((5,), (1,), 0),
        ((2, 2), (3, 1), 0),
        ((4,), (1,), 1),
        ((10**9,), (0,), 0),
        ((2**40, 2**40), (0, 0), 0),
        ((2,), (-1,), 3),
        ((-1,), (1,), 0),
        ((2,), (1,), -1),
        ((2.0,), (1,), 0),
        ((2, 2), (1,), 0),
    ],
)
def test_tensors_that_do_not_fit_into_their_storage(
    torch, read, form, size, stride, offset
):
    storage = storage_of(np.arange(4, dtype=np.float32))
    value = {"a": tensor(torch, storage, offset, size, stride)}
    assert "is damaged: a tensor" in refusal(read, form(value, [storage]))


@FORMS
def test_every_shorter_file_is_refused(torch, read, form):
    storage = storage_of(np.arange(4, dtype=np.float32))
    content = form({"a": tensor(torch, storage, 0, (4,), (1,))}, [storage])
    np.testing.assert_array_equal(read(content)["a"], [0, 1, 2, 3])
    for length in range(len(content)):
        refusal(read, content[:length])


@FORMS
def test_a_storage_of_another_size(torch, read, form):
    """Claims of more elements than there are bytes; nothing of that size is allocated."""
    for count in (3, 5, 10**15):
        storage = Storage("0", "FloatStorage", bytes(16), count)
        value = {"a": tensor(torch, storage, 0, (1,), (1,))}
        assert "is damaged" in refusal(read, form(value, [storage]))


@pytest.mark.parametrize("content", [np.zeros(10**6), np.random.default_rng(0).random(10)])
def test_compressed_zips_are_refused(torch, read, content):
    """One expands to a hundred times its size, the other hardly."""
    storage = storage_of(np.float32(content))
    value = {"a": tensor(torch, storage, 0, (10,), (1,))}
    found = zipped(value, [storage], compression=zipfile.ZIP_DEFLATED)
    assert len(found) < 10**5 and "compressed" in refusal(read, found)


@FORMS
def test_storages_that_are_views_of_others(torch, read, form):
    storage = storage_of(np.arange(4, dtype=np.float32))
    storage.pid = (*storage.pid, ("1", 0, 2))
    value = {"a": tensor(torch, storage, 0, (2,), (1,))}
    assert "views of others" in refusal(read, form(value, [storage]))


@pytest.mark.parametrize("keys", [["1"], [], ["0", "0"], None])
def test_other_storages_than_the_tensors_need(torch, read, keys):
    storage = storage_of(np.arange(4, dtype=np.float32))
    content = in_a_row({"a": tensor(torch, storage, 0, (4,), (1,))}, [storage])
    right = pickled(["0"])
    assert content.count(right) == 1 and read(content)
    refusal(read, content.replace(right, pickled(keys)))


@pytest.mark.parametrize(
    ("bomb", "said"),
    [
        (b"\x96" + struct.pack("<Q", 2**40) + b"0", "1099511627776 bytes"),
        (b"r" + struct.pack("<I", 2**31), "numbers an object 2147483648"),
    ],
)
def test_a_few_bytes_that_make_python_allocate_gigabytes(read, bomb, said):
    """A bytearray of 2^40 bytes, and a memo of 2^31 objects, in place of a dict."""
    content = in_a_row({}, [])
    empty = pickled({})
    assert content.count(empty) == 1
    hostile = content.replace(empty, b"\x80\x05}" + bomb + b".")
    assert said in refusal(read, hostile)


def test_files_of_others(read):
    assert "data.pkl" in refusal(read, zipped({}, []).replace(b"data.pkl", b"data.txt"))
    assert "not one of torch.save" in refusal(read, pickled(3))
    for content in (b"", b"text", b"\x80", b"PK\x03\x04"):
        refusal(read, content)
    with pytest.raises(BadRequest, match="No such file"):
        torch_files.read(pathlib.Path("nowhere.pth"))
    with pytest.raises(BadRequest, match="a folder"):
        torch_files.read(FIXTURES)


def test_bytes_of_a_big_endian_machine_are_refused(read, monkeypatch):
    assert "big-endian" in refusal(read, zipped({}, [], order="big"))
    monkeypatch.setitem(SYSTEM, "little_endian", False)
    assert "big-endian" in refusal(read, in_a_row({}, []))


@FORMS
def test_a_state_dict_is_told_from_other_trees(torch, read, form):
    storage = storage_of(np.arange(4, dtype=np.float32))
    leaf = tensor(torch, storage, 0, (4,), (1,))
    assert list(read(form({"a": leaf}, [storage]), torch_files.read_tensors)) == ["a"]
    for value, said in (
        ([leaf], "a list"),
        ({"state_dict": {"a": leaf}}, "'state_dict' is a dict"),
        ({3: leaf}, "3 is a ndarray"),
    ):
        content = form(value, [storage])
        assert said in refusal(read, content, torch_files.read_tensors)
