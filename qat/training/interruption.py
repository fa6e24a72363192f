"""How a run in a folder is interrupted, and found again.

    RUN/.lock                    held while the run lives; the system lets go of it however the process ends
    RUN/config.yaml              the run began
    RUN/calibrated.json          its network has ranges; what is trained then goes on from those of a checkpoint
    RUN/checkpoints/last.ckpt    the last complete epoch; last-interrupted.ckpt: inside one (stopping.py)
    RUN/checkpoints/float/       the same, of the float baseline, until that is in the cache
    RUN/results.json             the run ended; without it, it was interrupted

SIGTERM, as a cluster sends it, is treated like Ctrl-C. While a network trains, `SafeStop` has both.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from filelock import FileLock, Timeout
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from qat.errors import CheckpointError, ConfigError, ExportError

LAST = "last"  # instead of a file: the newest run that was interrupted
BEGUN, ENDED, CHECKPOINT = "config.yaml", "results.json", "checkpoints/last.ckpt"
CALIBRATED = "calibrated.json"
STOPPED = "last-interrupted.ckpt"  # beside it; `ckpt_path="last"` of a Trainer finds what begins with last
FLOAT = "float"  # folder of the baseline's, in that of checkpoints


class Interrupted(SystemExit):
    """A run that was asked to stop; a script that does not catch it ends with its exit code.

    Attributes:
        signal: by which it was asked.
        exit_code: as shells report it, 130 for Ctrl-C and 143 for SIGTERM.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)
        self.exit_code = 128 + number

    def __str__(self) -> str:
        """By what."""
        return f"stopped by {self.signal.name}"


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the block in `Interrupted`; the second one does not disturb what cleans up."""
    if threading.current_thread() is not threading.main_thread():  # signals belong to the main thread
        yield
        return
    seen: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if not seen:
            seen.append(number)
            raise Interrupted(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """The folder belongs to one run at a time.

    Raises:
        ConfigError: another run is in it.
        ExportError: it cannot be made or written.
    """
    if getattr(rank_zero_only, "rank", 0):  # the other processes of a run that has several
        yield
        return
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        if not isinstance(error, Timeout):
            raise ExportError(f"cannot write {folder}: {error.strerror}. Choose another with hydra.run.dir") from error
        raise ConfigError(
            f"another run is writing to {folder}; leave hydra.run.dir out, and each run has a folder of its own"
        ) from error
    try:
        yield
    finally:
        lock.release()


def run_to_resume(run_dir: Path, *, siblings: bool, alike: Callable[[Path], bool] = lambda _: True) -> Path:
    """The run that `ckpt_path=last` stands for: this folder's, else the newest beside it.

    Args:
        run_dir: folder of the new run.
        siblings: whether to look beside it; a job of a sweep goes on, or begins, in its own folder.
        alike: whether a run has the settings of the new one; the newest of those goes before newer ones.

    Raises:
        CheckpointError: no run was interrupted.
    """
    if not siblings or _interrupted(run_dir):
        return run_dir
    begun = [p.parent for p in run_dir.parent.glob(f"*/{BEGUN}")]
    newest_first = sorted(begun, key=lambda p: (p / BEGUN).stat().st_mtime_ns, reverse=True)
    found = list(filter(_interrupted, newest_first))
    if not found:
        raise CheckpointError(
            f"ckpt_path=last: no interrupted run in {run_dir.parent} (one with {BEGUN} and "
            f"without {ENDED}). Name a checkpoint, ckpt_path=RUN/{CHECKPOINT}, or leave ckpt_path out to start anew"
        )
    return next(filter(alike, found), found[0])


def newest_checkpoint(folder: Path) -> Path | None:
    """From where a run goes on: fake quantization, else the float baseline; None where neither has begun to train."""
    for place in ((folder / CHECKPOINT).parent, (folder / CHECKPOINT).parent / FLOAT):
        found = [path for name in ("last.ckpt", STOPPED) if (path := place / name).is_file()]
        if found:
            return max(found, key=lambda path: path.stat().st_mtime_ns)
    return None


def _interrupted(folder: Path) -> bool:
    if not (folder / BEGUN).is_file() or (folder / ENDED).is_file():
        return False
    try:
        with held(folder):
            return True
    except (ConfigError, ExportError):  # it still runs, or belongs to someone else
        return False
