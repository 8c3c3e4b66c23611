"""Text that came from anywhere: what is read, and what is said of the rest."""

import os
import re

import pytest

from das3.errors import DataError, printable
from das3.text_files import read_json, read_text, read_yaml, refuse_odd_values


def said(read, path, *words):
    with pytest.raises(DataError) as error:
        read(path)
    for word in (str(path), *words):
        assert word in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_of_known_encodings(encoding, tmp_path):
    (tmp_path / "t").write_bytes("bär\n".encode(encoding))
    assert read_text(tmp_path / "t") == "bär\n"


@pytest.mark.parametrize("data", ["bär".encode("latin-1"), "ab".encode("utf-16-le"), "ab".encode("utf-32"), b"a\0"])
def test_other_encodings_are_told(data, tmp_path):
    (tmp_path / "t").write_bytes(b"a\n" + data if data[:1] not in b"\xffa" else data)
    said(read_text, tmp_path / "t", "UTF-8")


def test_what_is_no_file_is_told(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    said(read_text, tmp_path / "pipe", "named pipe")
    said(read_text, tmp_path, "folder")
    said(read_text, "/dev/zero", "device")
    said(read_text, tmp_path / "no", "No such file")
    (tmp_path / "t").write_text("x" * 100)
    with pytest.raises(DataError, match="100 bytes"):
        read_text(tmp_path / "t", largest=99)


def test_keys_are_there_once(tmp_path):
    (tmp_path / "a.json").write_text('{"a": {"b": 1, "b": 2}}')
    said(read_json, tmp_path / "a.json", "'b'", "twice")
    (tmp_path / "a.yaml").write_text("a: 1\nb:\n  c: 1\n  c: 2\n")
    said(read_yaml, tmp_path / "a.yaml", "line 4", "'c'", "twice")
    (tmp_path / "a.yaml").write_text("a: &x {c: 1}\nb: {<<: *x, c: 2}\n")
    assert read_yaml(tmp_path / "a.yaml")["b"] == {"c": 2}


def test_aliases_are_counted(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("a: &x [1, 2]\nb: [*x, *x]\n")
    assert read_yaml(path)["b"] == [[1, 2], [1, 2]]
    lines = ["l0: &l0 [x, x]"] + [f"l{i}: &l{i} [*l{i - 1}, *l{i - 1}]" for i in range(1, 40)]
    path.write_text("\n".join(lines))
    said(read_yaml, path, "aliases")
    path.write_text("a: &x [*x]\n")
    said(read_yaml, path, "circle", "line 1")


def test_values_are_finite_and_plain():
    refuse_odd_values({"a": [1, 2.5, None, True, "x", {"b": 1}]}, "f")
    for values, word in (({"a": {"b": [1.0, float("nan")]}}, "a.b"), ({"a": float("-inf")}, "a"), ({1: 2}, "'1'")):
        with pytest.raises(DataError, match=re.escape(word)):
            refuse_odd_values(values, "f")
    with pytest.raises(DataError, match="set"):
        refuse_odd_values({"a": {1}}, "f")


def test_a_line_for_a_terminal():
    assert printable("a b ü 🦆") == "a b ü 🦆"
    assert printable("a\nb\x1b[2J") == "a\\nb\\x1b[2J"
    assert printable(os.fsdecode(b"\xff")) == "\\udcff"
