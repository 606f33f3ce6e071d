"""Reading, writing and deleting files: only regular ones, whole or not at all.

Everything that the package reads is opened by `open_regular`, everything that it writes
by `replacing`, and everything that it deletes by `delete`. Of several processes that work
as one, the first alone writes and deletes; for the others it is as if they did.
"""

import atexit
import contextlib
import errno
import fcntl
import functools
import json
import os
import pathlib
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from diffusion_jax.runtime import first_process
from diffusion_jax.runtime.errors import BadRequest

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}
_MOST_JSON = 2**26  # Bytes of a file; a config with a million betas has a third of it.
_UNFINISHED = re.compile(r"\.[0-9a-f]{16}\.unfinished")
# Characters that no library takes for a pattern, an escape or the name of a protocol.
_PLAIN = re.compile(r"[\w./ +=@,~-]*", re.ASCII)


class NotRegular(OSError):
    """A named pipe, a socket, a device or a folder where a file is to be read."""


def _refuse(path: object, mode: int) -> None:
    kind = _KINDS.get(stat.S_IFMT(mode), "something else")
    if not stat.S_ISREG(mode):
        raise NotRegular(errno.EINVAL, f"is {kind}, not a regular file", str(path))


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Open a file to read its bytes; never waits, as opening a named pipe would.

    Raises:
      NotRegular: for all that is no file.
      OSError: as `open`.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENXIO:  # A socket, or a device without a driver.
            _refuse(path, os.stat(path).st_mode)
        raise
    try:
        _refuse(path, os.fstat(handle).st_mode)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def check_regular(path: str | os.PathLike) -> None:
    """Refuse what `open_regular` would refuse, for a library that opens by name."""
    _refuse(path, os.stat(path).st_mode)


def read_bytes(path: str | os.PathLike) -> bytes:
    """Return what is in a regular file."""
    with open_regular(path) as file:
        return file.read()


def read_text(path: str | os.PathLike, errors: str = "strict") -> str:
    """Return what is in a regular file, as UTF-8."""
    return read_bytes(path).decode("utf-8", errors)


def parse_json(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
      ValueError: for all that is wrong with it.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_note(path: str | os.PathLike) -> str:
    """Return the text of a small file, such as a config.

    Raises:
      ValueError: if it is not UTF-8, or larger than any that is written here.
      OSError: as `open_regular`.
    """
    with open_regular(path) as file:
        content = file.read(_MOST_JSON + 1)
    if len(content) > _MOST_JSON:
        raise ValueError(f"it is larger than {_MOST_JSON // 2**20} MiB")
    return content.decode()


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[BinaryIO]:
    """Open a new file, in the folder of `path`, that takes its place at the end.

    A kill, or an error within the context, leaves `path` as it was. The new file has a
    name that nobody can foresee, so no link of that name is written through; a link at
    `path` itself is replaced, and what it leads to stays as it is.
    """
    if not first_process.is_here():
        with tempfile.TemporaryFile() as nowhere:
            yield nowhere  # type: ignore[misc]
        return
    unfinished = path.with_name(f".{secrets.token_hex(8)}.unfinished")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        handle = os.open(unfinished, flags, 0o666)
        with os.fdopen(handle, "w+b") as file:
            _lock(file)  # As long as it is held, nobody takes the file for left behind.
            yield file
        os.replace(unfinished, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(unfinished)
        if isinstance(error, OSError) and str(error.filename) in ("None", str(unfinished)):
            error.filename = str(path)
        raise


def write_whole(path: pathlib.Path, content: str | bytes) -> None:
    """Write a file by `replacing`; text as UTF-8."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def open_for_appending(path: pathlib.Path) -> BinaryIO:
    """Open a file to append to it, or make it; a link there is refused."""
    if not first_process.is_here():
        return tempfile.TemporaryFile()  # type: ignore[return-value]
    return open_for_locking(path)


def open_for_locking(path: pathlib.Path) -> BinaryIO:
    """Open a file as `open_for_appending`, in any process."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        handle = os.open(path, flags | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            text = "is a link, which is not written through"
            raise OSError(errno.ELOOP, text, str(path)) from error
        raise
    try:
        _refuse(path, os.fstat(handle).st_mode)
        return os.fdopen(handle, "r+b")
    except BaseException:
        os.close(handle)
        raise


def is_unfinished(name: str) -> bool:
    """Return whether this is the name of a file that a kill has left half written."""
    return _UNFINISHED.fullmatch(name) is not None


def delete_unfinished(folder: pathlib.Path) -> None:
    """Delete what a kill has left half written in a folder, and nobody writes any more."""
    if not first_process.is_here():
        return
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if is_unfinished(path.name):
                with contextlib.suppress(OSError), open_regular(path) as file:
                    if _lock(file):
                        path.unlink()


def _lock(file: BinaryIO) -> bool:
    """Lock an open file; False if it is locked, or the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def delete(paths: Iterable[pathlib.Path]) -> None:
    """Delete files and folders; for a link, the link alone.

    Raises:
      OSError: naming what cannot be deleted, as far as permissions and mounts tell; then
        nothing is deleted.
    """
    there = check_deletable(paths)
    if not first_process.is_here():
        return
    for path in there:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def check_deletable(paths: Iterable[pathlib.Path]) -> list[pathlib.Path]:
    """Return those of the paths that are there; an OSError as of `delete`."""
    there = [path for path in paths if os.path.lexists(path)]
    for path in there:
        _check_deletable(path)
    return there


def _check_deletable(path: pathlib.Path) -> None:
    def refuse(error: OSError) -> None:
        raise error

    _check_writable(path.parent)
    if path.is_symlink() or not path.is_dir():
        return
    for folder, below, names in os.walk(path, onerror=refuse):
        if os.path.ismount(folder):
            raise OSError(
                errno.EBUSY, "is another file system; unmount it, or delete it", folder
            )
        if below or names:
            _check_writable(pathlib.Path(folder))


def _check_writable(folder: pathlib.Path) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(
            errno.EACCES, "nothing in it may be deleted: no permission", str(folder)
        )


def is_writable(folder: pathlib.Path) -> bool:
    """Return whether files can be made in a folder, or the folder itself if need be."""
    try:
        check_can_be_made(folder)
    except OSError:
        return False
    return True


def check_can_be_made(folder: pathlib.Path) -> None:
    """Refuse a folder that cannot be written, or made; nothing is left there.

    Raises:
      OSError: naming the folder.
    """
    there = folder.absolute()
    while not os.path.lexists(there):
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(folder)) from error


def is_full(folder: str | os.PathLike) -> bool:
    """Return whether a file system has room for no more than a few small files."""
    try:
        return shutil.disk_usage(folder).free < 2**16
    except OSError:
        return False


def plain(path: pathlib.Path) -> pathlib.Path:
    """Return another name of a path, for a library that takes some characters for patterns.

    It is a link, in a folder of its own below the system's temporary one, which goes with
    the process; or the absolute path itself where there is nothing to misread in it.
    """
    absolute = path.absolute()
    return absolute if _PLAIN.fullmatch(str(absolute)) else _link(absolute)


@functools.cache
def _link(absolute: pathlib.Path) -> pathlib.Path:
    folder = _links()
    link = folder / f"{len(os.listdir(folder))}"
    link.symlink_to(absolute)
    return link


@functools.cache
def _links() -> pathlib.Path:
    for base in (tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"):
        if _PLAIN.fullmatch(base) and os.access(base, os.W_OK | os.X_OK):
            folder = pathlib.Path(tempfile.mkdtemp(prefix="diffusion_jax_", dir=base))
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            return folder
    raise FileNotFoundError(
        errno.ENOENT, "there is no temporary folder to put a link into; set TMPDIR"
    )


def remove_links() -> None:
    """Remove what `plain` has made, before a process that ends without its exit hooks."""
    if _links.cache_info().currsize:
        shutil.rmtree(_links(), ignore_errors=True)
        _links.cache_clear()
        _link.cache_clear()


def project_file(name: str) -> pathlib.Path:
    """Return a script or the configs: beside the package, or in it once installed."""
    package = pathlib.Path(__file__).parent.parent
    inside = package / "_project" / name
    return inside if inside.exists() else package.parent / name


def is_machine_failure(error: OSError) -> bool:
    """Return whether the disk or the system failed, and not what was asked for."""
    of_disk = errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EPIPE
    return error.errno in (*of_disk, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def expanded(flag: str, name: str) -> pathlib.Path:
    """Return the path of a flag, ~ replaced.

    Raises:
      BadRequest: for the ~ of nobody, and for a URL.
    """
    if re.match("[A-Za-z0-9]+://", name):
        raise BadRequest(
            f"{flag} {name} is a URL, but must be a path in a file system; mount it, or "
            "give a path"
        )
    try:
        return pathlib.Path(name).expanduser()
    except RuntimeError as error:
        raise BadRequest(f"{flag} {name}: {error}") from error
