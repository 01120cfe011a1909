"""Saving and loading modules."""

import json
import os

import numpy as np
import pytest
from cases import CASES, build, inputs

import smm_py
from smm_py import _files


@pytest.mark.parametrize("name", CASES)
def test_round_trip(name, tmp_path):
    module = build(name)
    x, call = inputs(module)
    path = tmp_path / "module.safetensors"
    module.save(path)
    twin = type(module).load(path)
    assert repr(twin) == repr(module)
    assert np.array_equal(twin(x, **call).slots, module(x, **call).slots)
    assert os.listdir(tmp_path) == ["module.safetensors"]


def test_the_safetensors_package_reads_and_writes_the_same(tmp_path):
    package = pytest.importorskip("safetensors.numpy")
    module = build("smm", dtype="float32")
    path = tmp_path / "a.safetensors"
    module.save(path)
    arrays = package.load_file(path)
    assert sorted(arrays) == sorted(module.parameters)
    assert all(np.array_equal(arrays[k], module.parameters[k]) for k in arrays)
    package.save_file(arrays, tmp_path / "b.safetensors")
    twin = smm_py.SlotMixture.load(tmp_path / "b.safetensors", **module.options)
    assert all(np.array_equal(twin.parameters[k], arrays[k]) for k in arrays)


def test_damaged_files(tmp_path):
    module = build("sa")
    path = tmp_path / "m.safetensors"
    module.save(path)
    content = path.read_bytes()
    for cut in (0, 5, 40, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(ValueError, match="m.safetensors is not a complete .safetensors file"):
            smm_py.SlotAttention.load(path)
    path.write_bytes(b"\xff" * 8 + content[8:])
    with pytest.raises(ValueError, match="not a complete"):
        smm_py.SlotAttention.load(path)
    with pytest.raises(FileNotFoundError, match="nothing"):
        smm_py.SlotAttention.load(tmp_path / "nothing")
    with pytest.raises(IsADirectoryError, match="is a folder: give the file in it, .*model.safet"):
        smm_py.SlotAttention.load(tmp_path)


@pytest.mark.parametrize(
    "change, match",
    [
        (
            lambda header: 3,
            "is not a complete .safetensors file: its header is no JSON object but int",
        ),
        (lambda header: None, "its header is no JSON object but NoneType"),
        (
            lambda header: {**header, "__metadata__": ["a"]},
            "its __metadata__ is no JSON object but list",
        ),
        (
            lambda header: {**header, "__metadata__": {"options": "{"}},
            "does not tell a module's options",
        ),
        (
            lambda header: {**header, "__metadata__": {"options": "3"}},
            "does not tell a module's options",
        ),
        (
            lambda header: {**header, "__metadata__": {"options": '{"colour": 1}'}},
            "options colour are of another version",
        ),
        (
            lambda header: {**header, "__metadata__": {"options": '{"dim": 0}'}},
            "m.safetensors: dim must be at least 1, got 0",
        ),
    ],
)
def test_damaged_headers(change, match, tmp_path):
    path = tmp_path / "m.safetensors"
    build("sa").save(path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(change(json.loads(content[8 : 8 + length]))).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    with pytest.raises(ValueError, match=match) as caught:
        smm_py.SlotAttention.load(path)
    assert "m.safetensors" in str(caught.value)


@pytest.mark.parametrize(
    "header, data, match",
    [
        (
            '{"a": %s, "a": %s}'
            % (('{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}',) * 2),
            4,
            "a name stands twice in its header",
        ),
        (
            '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
            5,
            "its arrays do not fill its 5 bytes of data",
        ),
        (
            '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},'
            ' "b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
            8,
            "its arrays do not fill its 8 bytes of data one after another",
        ),
    ],
)
def test_arrays_that_do_not_lie_one_after_another(header, data, match, tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + b"\0" * data)
    with pytest.raises(
        ValueError, match=f"m.safetensors is not a complete .safetensors file: {match}"
    ):
        _files.read(path)


def test_save_refuses_what_load_would(tmp_path):
    module = build("sa")
    path = tmp_path / "m.safetensors"
    module.save(path)
    content = path.read_bytes()
    module.parameters["to_q.weight"][1, 0] = np.nan
    with pytest.raises(ValueError, match=r"to_q.weight must be finite, got nan at index \(1, 0\)"):
        module.save(path)
    assert path.read_bytes() == content


def test_save_writes_where_a_link_points(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "m.safetensors")
    build("sa").save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "m.safetensors").stat().st_size > 1000
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="pipe is no file that could be replaced"):
        build("sa").save(tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()


def test_a_header_nested_too_deep(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes((10**5).to_bytes(8, "little") + b"[" * 10**5)
    with pytest.raises(ValueError, match="not a complete"):
        smm_py.SlotAttention.load(path)


@pytest.mark.skipif(os.name == "nt", reason="no modes there")
def test_others_may_read_what_is_saved(tmp_path):
    before = os.umask(0o027)
    try:
        build("sa").save(tmp_path / "m.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "m.safetensors").stat().st_mode & 0o777 == 0o640
    with pytest.raises(FileNotFoundError, match="folder .*nowhere for m.safetensors is missing"):
        build("sa").save(tmp_path / "nowhere" / "m.safetensors")


def test_files_of_an_older_version(tmp_path):
    """Options that a file of `save` does not know have their defaults."""
    module, path = build("sa"), tmp_path / "m.safetensors"
    module.save(path)
    arrays, metadata = _files.read(path)
    new = ("qkv_dim", "combine_heads", "joint_softmax", "head_attention", "update", "eps_in")
    new += ("gru", "norm_hidden", "slot_mlp", "activation", "update_masked")
    options = json.loads(metadata["options"])
    assert set(new) < set(options)
    older = {name: value for name, value in options.items() if name not in new}
    _files.write(path, arrays, {**metadata, "options": json.dumps(older)})
    assert smm_py.SlotAttention.load(path).options == module.options


def test_names_and_shapes_tell_options(tmp_path):
    """Of a file that holds arrays alone; an option that they do not tell is asked for."""
    path = tmp_path / "m.safetensors"
    for name, told in (
        ("sa-no-gru-norm-hidden-qkv-wide", dict(gru=False, qkv_dim=8, combine_heads=True)),
        ("sa-update-constant-no-gru", dict(gru=False, slot_mlp="never", combine_heads=False)),
        ("reference-fair", dict(variant="fair", input_mlp=False)),
    ):
        module = build(name)
        _files.write(path, dict(module.parameters), {})
        loaded = type(module).load(path, assume_defaults=True)
        assert {n: getattr(loaded, n) for n in told} == told
        with pytest.raises(ValueError, match="does not tell the module's options.*activation="):
            type(module).load(path)


def test_files_of_another_module(tmp_path):
    path = tmp_path / "m.safetensors"
    build("sa").save(path)
    with pytest.raises(ValueError, match="holds a SlotAttention, expected a SlotMixture"):
        smm_py.SlotMixture.load(path)
    with pytest.raises(ValueError, match="m.safetensors: .*must have shape"):
        smm_py.SlotAttention.load(path, hidden_dim=10)
    arrays, metadata = _files.read(path)
    arrays.pop("to_q.weight")
    _files.write(path, arrays, metadata)
    with pytest.raises(KeyError, match="missing: to_q.weight"):
        smm_py.SlotAttention.load(path)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    module = build("sa")
    path = tmp_path / "m.safetensors"
    module.save(path)
    content = path.read_bytes()

    def fail(*unused):
        raise OSError("no space")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="m.safetensors cannot be written: no space"):
        module.save(path)
    assert path.read_bytes() == content and os.listdir(tmp_path) == ["m.safetensors"]


def test_offsets_beyond_the_file(tmp_path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 15)
    with pytest.raises(ValueError, match="a lies at bytes 0 to 16 of 15"):
        _files.read(path)
