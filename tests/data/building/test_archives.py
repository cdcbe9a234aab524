import os
import zipfile

import pytest

from data.building import archives
from experiments.examples import stored_rar
from tests.data import downloads

FILES = {"a/1.avi": b"one", "a/2.txt": b"two", "b c/3(!&;).avi": b"three"}


def read_all(folder, scratch, wanted=lambda name: name.endswith(".avi")):
    scratch.mkdir(exist_ok=True)
    found = {}
    for member in archives.find(str(folder), wanted, str(scratch)):
        with archives.as_file(member) as path, open(path, "rb") as file:
            found[member.name] = file.read()
    return found


@pytest.fixture
def scratch(tmp_path):
    return tmp_path / "scratch"


def test_folders_and_archives_alike(tmp_path, scratch):
    root = tmp_path / "root"
    downloads.write(root, {f"plain/{name}": content for name, content in FILES.items()})
    downloads.write_zip(root / "packed.ZIP", FILES)
    stored_rar.write(root / "rar.rar", FILES)
    downloads.write(root, {".hidden/x.avi": b"", "._1.avi": b"", "__MACOSX/._2.avi": b""})
    downloads.write_zip(root / "mac.zip", {"__MACOSX/a/._1.avi": b"", "a/.x/y.avi": b""})
    expected = {"a/1.avi": b"one", "b c/3(!&;).avi": b"three"}
    assert read_all(root, scratch) == {
        f"{folder}/{name}": content
        for folder in ("packed", "plain", "rar")
        for name, content in expected.items()
    }
    assert not os.listdir(scratch)


def test_archives_in_archives(tmp_path, scratch):
    root = tmp_path / "root"
    root.mkdir()
    stored_rar.write(tmp_path / "inner.rar", {"a/1.avi": b"one"})
    inner_zip = downloads.write_zip(tmp_path / "inner.zip", {"2.avi": b"two"})
    stored_rar.write(
        root / "outer.rar",
        {"a.rar": (tmp_path / "inner.rar").read_bytes(), "b.zip": inner_zip.read_bytes()},
    )
    assert read_all(root, scratch) == {"outer/a/a/1.avi": b"one", "outer/b/2.avi": b"two"}


def test_what_is_unpacked_goes_away(tmp_path, scratch):
    scratch.mkdir()
    downloads.write_zip(tmp_path / "root" / "x.zip", {"1.avi": b"one"})
    [member] = archives.find(str(tmp_path / "root"), lambda name: True, str(scratch))
    with archives.as_file(member) as path:
        assert os.path.exists(path)
    assert not os.path.exists(path)


def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing does not exist; put the downloaded"):
        archives.find(str(tmp_path / "missing"), lambda name: True, str(tmp_path))


@pytest.mark.parametrize("kind", ["zip", "rar"])
def test_damaged_archives(tmp_path, kind):
    root = downloads.write(tmp_path, {f"x.{kind}": "no archive"})
    with pytest.raises(ValueError, match=rf"x.{kind} is damaged \(.+\); download it again"):
        archives.find(str(root), lambda name: True, str(tmp_path))


@pytest.mark.parametrize("kind", ["zip", "rar"])
def test_damaged_members(tmp_path, scratch, kind):
    """A byte is another one: check sums tell."""
    path = tmp_path / "root" / f"x.{kind}"
    path.parent.mkdir()
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr("1.avi", b"contents")
    else:
        stored_rar.write(path, {"1.avi": b"contents"})
    path.write_bytes(path.read_bytes().replace(b"contents", b"confents"))
    with pytest.raises(archives.DamagedMemberError, match=r"cannot be unpacked: .+"):
        read_all(path.parent, scratch)


def changed(path, offset, value):
    """Changes a byte of the archive's main header, and its check sum."""
    import zlib

    data = bytearray(path.read_bytes())
    data[7 + offset] = value
    data[7:9] = (zlib.crc32(data[9:20]) & 0xFFFF).to_bytes(2, "little")
    path.write_bytes(data)


def test_solid_rar(tmp_path):
    stored_rar.write(tmp_path / "x.rar", {"1.avi": b"one"})
    changed(tmp_path / "x.rar", 3, 0x08)
    with pytest.raises(ValueError, match=r"is a solid archive.*unpack it .*\(unar .*x.rar\)"):
        archives.find(str(tmp_path), lambda name: True, str(tmp_path))


def test_encrypted_rar(tmp_path):
    stored_rar.write(tmp_path / "x.rar", {"1.avi": b"one"})
    data = bytearray((tmp_path / "x.rar").read_bytes())
    file_header = 20
    data[file_header + 3] |= 0x04
    import struct
    import zlib

    [size] = struct.unpack_from("<H", data, file_header + 5)
    check = zlib.crc32(data[file_header + 2 : file_header + size]) & 0xFFFF
    data[file_header : file_header + 2] = check.to_bytes(2, "little")
    (tmp_path / "x.rar").write_bytes(data)
    with pytest.raises(ValueError, match="is encrypted; unpack it yourself"):
        archives.find(str(tmp_path), lambda name: True, str(tmp_path))


def test_a_rar_that_has_to_be_unpacked_and_no_program(tmp_path, scratch, monkeypatch):
    """Compressed members need a program; the message names the package."""
    import struct
    import zlib

    import rarfile

    root = tmp_path / "root"
    root.mkdir()
    stored_rar.write(root / "x.rar", {"1.avi": b"one"})
    data = bytearray((root / "x.rar").read_bytes())
    data[20 + 25] = 0x33  # the method: normal compression
    [size] = struct.unpack_from("<H", data, 20 + 5)
    data[20:22] = (zlib.crc32(data[22 : 20 + size]) & 0xFFFF).to_bytes(2, "little")
    (root / "x.rar").write_bytes(data)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(rarfile, "CURRENT_SETUP", None)
    with pytest.raises(archives.MissingToolError, match=r"Debian and Ubuntu: apt install unar"):
        read_all(root, scratch)
