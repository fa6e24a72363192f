"""A data worker that dies takes the run with it; torch says so without the way out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from qat.errors import DataError

DIED = re.compile(r"DataLoader worker \(pid\(?s?\)? .*(exited unexpectedly|is killed by signal).*")  # torch's words
BROKEN = "DataLoader worker exited unexpectedly: it closed its connection while it sent a batch."


@contextmanager
def explained_workers() -> Iterator[None]:
    """The death of a data worker in the block is a `DataError`.

    Raises:
        DataError: a worker died, most often because the system ran out of memory.
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        found = DIED.search(str(error))
        if found is None and isinstance(error, RuntimeError):
            raise
        said = found[0].strip() if found else BROKEN  # its socket tells before torch does, when it dies as it sends
        raise DataError(
            f"{said} Most often memory is short, /dev/shm in a container: lower data.num_workers (0 reads "
            "in this process), and go on with ckpt_path=last; or start again with a smaller data.batch_size"
        ) from error
