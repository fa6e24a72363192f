"""Recipes and targets by name: the same YAML files that Hydra composes from `conf/quant` and `conf/target`.

In a source checkout they are read from `conf/` beside the package; a built wheel carries them inside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from qat.errors import ConfigError, unknown_name

PACKAGE = Path(__file__).parent
FOLDERS = (PACKAGE / "conf", PACKAGE.parent / "conf")  # wheel, source checkout


def preset_names(group: str) -> list[str]:
    """Names that `load_preset` knows in a group, sorted."""
    return sorted(path.stem for path in _folder(group).glob("*.yaml"))


def load_preset(group: str, name: str) -> dict[str, Any]:
    """The mapping that `conf/<group>/<name>.yaml` stands for, with the presets it inherits from merged in.

    Raises:
        ConfigError: for an unknown name; lists the known ones.
    """
    path = _folder(group) / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(unknown_name("recipe" if group == "quant" else group, name, preset_names(group)))
    own = yaml.safe_load(path.read_text())
    merged: dict[str, Any] = {}
    for parent in own.pop("defaults", []):
        merged = _merge(merged, own if parent == "_self_" else load_preset(group, parent))
    return merged or own


def read_mapping(path: str | Path, key: str) -> dict[str, Any]:
    """The mapping in a YAML file of the user's.

    Args:
        path: of the file.
        key: that named it, for errors.

    Raises:
        ConfigError: no file, or none that holds a mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{key}={path} is no file; task=analyze writes one, RUN/override.yaml. Or give a mapping")
    try:
        found = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{key}={path} is damaged: {' '.join(str(error).split())}. Write it again") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{key}={path} needs a mapping such as layer1.*: {{weight: {{bits: 4}}}}, got {found!r}")
    return found


def _folder(group: str) -> Path:
    for folder in FOLDERS:
        if (folder / group).is_dir():
            return folder / group
    raise ConfigError(f"no presets of group {group!r} beside the package; reinstall qat")


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`, mappings merged key by key, as Hydra does it."""
    both = {
        k: _merge(base[k], v) if isinstance(v, dict) and isinstance(base.get(k), dict) else v for k, v in over.items()
    }
    return {**base, **both}
