"""Write a file whole or not at all: beside its place first, then renamed onto it."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qat.errors import ExportError

TEMPORARY = re.compile(r"\..+-[a-z0-9_]{8}\.\w+")  # names of temporary files, which a killed process leaves
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
PROBE = 1 << 20  # bytes; what a failed writer may have left free


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path in the same folder, renamed to `path` when the block ends well, removed when it does not.

    The temporary file has the same suffix, because some writers choose their format by it.

    Raises:
        ExportError: the folder cannot be written, or the disk is full; what was at `path` before is still there.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error.strerror}. Choose a folder that can be written") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except Exception as error:
        # writers in C++ and Rust report a full disk by an error of their own, often without the reason
        reason = error if isinstance(error, OSError) else _refusal(temporary)
        if reason is None:
            raise
        raise ExportError(
            f"cannot write {path}: {reason.strerror or reason}. Free some space or choose another folder; "
            "nothing was left half-written"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def explained_disk() -> Iterator[None]:
    """A disk that is full, met by a writer that is not ours (a logger's, a library's), is an `ExportError`.

    Raises:
        ExportError: which file, where it is known, and what to do.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise ExportError(
            f"cannot write {error.filename or 'a file'}: {error.strerror}. Free some space, and go on with "
            "ckpt_path=last"
        ) from error


def _refusal(path: Path) -> OSError | None:
    """Why the system takes no more bytes at the end of a file; None where it does."""
    try:
        with path.open("ab") as file:
            file.write(bytes(PROBE))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error
    return None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: str | Path, text: str) -> Path:
    """Write `text` to `path`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text)
    return Path(path)
