"""From Hydra's config to objects, with errors that name the key: what `pipeline/` builds everything with."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import hydra
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from qat.errors import ConfigError, QatError

HYDRA_KEYS = {"_target_", "_partial_", "_convert_", "_recursive_", "_args_"}


def build(cfg: DictConfig, section: str, **more: Any) -> Any:
    """The object that `cfg.<section>` describes, every key of it checked against what the component takes.

    Args:
        cfg: the composed config.
        section: a key path, such as `trainer` or `qat.optimizer`.
        more: what the pipeline adds to the options.

    Raises:
        ConfigError: a key that the component does not take, a mandatory value that is missing, a wrong value.
        QatError: whatever the component itself raises on purpose.
    """
    node = OmegaConf.select(cfg, section)
    if node is None or "_target_" not in node:
        raise ConfigError(f"{section} needs _target_: package.module.Name")
    _check_keys(node, section, set(more))
    try:
        return hydra.utils.instantiate(node, **more, _convert_="all")
    except MissingMandatoryValue as error:
        raise _missing(section, error) from None
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, QatError):
                raise cause from None
            if isinstance(cause, MissingMandatoryValue):
                raise _missing(section, cause) from None
            last, cause = cause, cause.__cause__
        reason = str(last if not isinstance(last, InstantiationException) else error).strip().splitlines()[0]
        raise ConfigError(f"{section}: {reason}. See conf/{section.partition('.')[0]} for the keys it takes") from error


def check(cfg: DictConfig, section: str, *more: str) -> None:
    """Raise what `build` would raise of the keys of `cfg.<section>`, without building; `more` is what a run adds."""
    node = OmegaConf.select(cfg, section)
    if node is None or "_target_" not in node:
        raise ConfigError(f"{section} needs _target_: package.module.Name")
    _check_keys(node, section, set(more))
    plain(cfg, section)


@contextmanager
def reading(section: str) -> Iterator[None]:
    """A value of a type that the block cannot use ends in an error that names the section.

    Raises:
        ConfigError: what went wrong, and where the section's values are explained.
    """
    try:
        yield
    except QatError:
        raise
    except (
        TypeError,
        ValueError,
        AttributeError,
        KeyError,
        IndexError,
        OverflowError,
        OmegaConfBaseException,
    ) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{section}: {reason}. See conf/{section} for the values it takes") from error


def classes(cfg: DictConfig, section: str) -> tuple[type, ...]:
    """The classes that `cfg.<section>` lists by their paths.

    Raises:
        ConfigError: one that cannot be imported, or is no class.
    """
    found = []
    for path in plain(cfg, section) or ():
        try:
            found.append(hydra.utils.get_class(str(path)))
        except Exception as error:  # whatever an import raises
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConfigError(
                f"{section} has {path!r}, which is no class: {reason}. Give package.module.Class, of a module on "
                "PYTHONPATH"
            ) from error
    return tuple(found)


def plain(cfg: DictConfig, section: str) -> Any:
    """`cfg.<section>` as plain Python values, interpolations resolved.

    Raises:
        ConfigError: a mandatory value that is missing.
    """
    try:
        node = OmegaConf.select(cfg, section)
        if not OmegaConf.is_config(node):
            return node
        return OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise _missing(section, error) from None
    except OmegaConfBaseException as error:
        raise ConfigError(f"{section}: {error}") from None


def _missing(section: str, error: BaseException) -> ConfigError:
    key = getattr(error, "full_key", None) or section
    return ConfigError(f"{key} has no value; give one on the command line: {key}=VALUE")


def _check_keys(node: DictConfig, section: str, more: set[str]) -> None:
    target = hydra.utils.get_object(str(node["_target_"])) if _resolves(node, section) else None
    callable_ = target.__init__ if inspect.isclass(target) else target
    parameters = inspect.signature(callable_).parameters  # type: ignore[arg-type]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    known = [name for name in parameters if name != "self"]
    for key in node:
        key = str(key)
        if key in HYDRA_KEYS:
            continue
        if key in more:
            raise ConfigError(f"{section}.{key} is set by the run itself; remove it from the config")
        if not open_ended and key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f" Did you mean {section}.{near[0]}?" if near else f" It takes {', '.join(known)}"
            raise ConfigError(f"{section}.{key}: {node['_target_']} takes no such key.{hint}")


def _resolves(node: DictConfig, section: str) -> bool:
    try:
        hydra.utils.get_object(str(node["_target_"]))
    except Exception as error:
        raise ConfigError(
            f"{section}._target_ {node['_target_']!r} cannot be imported: {error}. "
            "Name a public class or function as package.module.Name"
        ) from None
    return True
