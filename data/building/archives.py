"""Files as they were downloaded: in folders, in zip and rar archives, in archives in archives.

Zip is read with the standard library and rar with `rarfile`, which needs one of the programs
`unrar` or `unar` for members that are compressed.
"""

import contextlib
import functools
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import rarfile

_ARCHIVES = (".zip", ".rar")
# What an archive raises when a member is damaged, as opposed to when the machine has a problem.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,  # a compression that zipfile does not know
    rarfile.Error,
)


class Member(NamedTuple):
    """A file, in a folder or in an archive."""

    name: str  # with folders, separated by "/"; an archive counts as a folder of its name
    archive: str  # the archive, or "" for a file that is not in one
    inside: str  # the path of the file, or its name in the archive


class DamagedMemberError(Exception):
    """A member that its archive cannot give back."""


class MissingToolError(OSError):
    """No program that unpacks rar archives."""


def find(root: str, wanted: Callable[[str], bool], scratch: str) -> list[Member]:
    """All files below `root` whose name is `wanted`, sorted by name.

    Args:
      root: a folder.
      wanted: says of a name, such as "UCF-101/Archery/v_Archery_g01_c01.avi", whether it matters.
      scratch: a folder; archives that are in archives are unpacked there and have to stay.

    Raises:
      FileNotFoundError: if there is no such folder.
      ValueError: if an archive is damaged, encrypted, or a solid rar.
      MissingToolError: if a rar has to be unpacked and no program for that is installed.
    """
    if not os.path.isdir(root):
        raise FileNotFoundError(f"the folder {root} does not exist; put the downloaded files there")
    found = []
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not _hidden(name))
        for file in sorted(files):
            if _hidden(file):
                continue
            path = os.path.join(folder, file)
            name = os.path.relpath(path, root).replace(os.sep, "/")
            if name.lower().endswith(_ARCHIVES):
                found += _find_in(path, os.path.splitext(name)[0], wanted, scratch)
            elif wanted(name):
                found.append(Member(name, "", path))
    return sorted(found)


@contextlib.contextmanager
def as_file(member: Member) -> Iterator[str]:
    """The path of a file with the contents of `member`, unpacked for as long as it is needed.

    Raises:
      DamagedMemberError: if the archive cannot give it back whole.
      MissingToolError: if there is no program to unpack it.
    """
    if not member.archive:
        yield member.inside
        return
    with tempfile.TemporaryDirectory(prefix="sideways_jax-") as folder:
        path = os.path.join(folder, "member" + os.path.splitext(member.inside)[1])
        _unpack(member.archive, member.inside, path)
        yield path


def read_text(member: Member) -> str:
    """The contents of a text file."""
    with as_file(member) as path, open(path, encoding="utf-8-sig") as file:
        return file.read()


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _find_in(
    archive: str, prefix: str, wanted: Callable[[str], bool], scratch: str
) -> list[Member]:
    found = []
    for inside in _names(archive):
        if any(map(_hidden, inside.split("/"))):
            continue
        name = f"{prefix}/{inside}"
        if inside.lower().endswith(_ARCHIVES):
            unpacked = tempfile.mkstemp(suffix=os.path.splitext(inside)[1].lower(), dir=scratch)
            os.close(unpacked[0])
            try:
                _unpack(archive, inside, unpacked[1])
            except DamagedMemberError as error:
                raise ValueError(f"{archive}: {error}; download it again") from error
            found += _find_in(unpacked[1], os.path.splitext(name)[0], wanted, scratch)
        elif wanted(name):
            found.append(Member(name, archive, inside))
    return found


def _names(archive: str) -> Sequence[str]:
    """The names of the files in an archive, with "/" between folders."""
    try:
        opened = _open(archive)
    except (*_DAMAGE, UnicodeDecodeError) as error:
        raise ValueError(f"the archive {archive} is damaged ({error}); download it again") from None
    if isinstance(opened, rarfile.RarFile):
        if opened.needs_password():
            raise ValueError(f"the archive {archive} is encrypted; unpack it yourself")
        if opened.is_solid():
            # Every member needs all before it, so that reading one by one takes for ever.
            raise ValueError(
                f"{archive} is a solid archive, whose files cannot be read one by one; unpack it "
                f"where it is (unar {archive}) and move the archive away"
            )
    return [info.filename for info in opened.infolist() if not info.is_dir()]


# Reading the list of thousands of members takes a while. Worker processes have one each.
@functools.lru_cache(maxsize=64)
def _open(archive: str) -> zipfile.ZipFile | rarfile.RarFile:
    return (zipfile.ZipFile if archive.lower().endswith(".zip") else rarfile.RarFile)(archive)


def _unpack(archive: str, inside: str, path: str) -> None:
    try:
        with _open(archive).open(inside) as source, open(path, "wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    except rarfile.RarCannotExec as error:
        raise MissingToolError(
            f"no program to unpack {archive} is installed. On Debian and Ubuntu: apt install unar "
            "(or unrar, from non-free). Or unpack it elsewhere, and give the folder"
        ) from error
    except _DAMAGE as error:
        reason = str(error) or type(error).__name__
        raise DamagedMemberError(f"cannot be unpacked: {reason}") from error
