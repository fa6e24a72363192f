"""The exception tree: whatever the user can mend ends in one of these, with the value, the rule and the way out.

QatError
├── ConfigError        a name, key or value that no component takes (also a ValueError)
├── DataError          an image that does not decode, an empty split, a missing folder
├── CheckpointError    a float checkpoint that is missing, broken, or fits too little
├── CaptureError       the model cannot be traced; names the line
├── PlacementError     a rule that matches nothing, or nothing left to quantize
├── CalibrationError   a quantizer whose range was never observed
├── NumericsError      NaN or Inf in weights, activations or loss; names module and step
├── ExportError        an operator the exporter does not know, a file that cannot be written
├── ArtifactError      the runtime refused or failed to run the artefact
├── ParityError        the artefact departs from the trained model; names the first layer
├── ProcessError       another process of the same run failed or ended
└── ReportError        a folder that no run left, or a record that cannot be read
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class QatError(Exception):
    """Base of all errors that this package raises on purpose."""


class ConfigError(QatError, ValueError):
    """A name, key or value that no component takes."""


class DataError(QatError):
    """Data that cannot be read or is not there."""


class CheckpointError(QatError):
    """A checkpoint that is missing, broken, or fits too little of the model."""


class CaptureError(QatError):
    """The model's forward cannot be turned into a graph."""


class PlacementError(QatError):
    """A placement rule matches nothing, or nothing is left to quantize."""


class CalibrationError(QatError):
    """A quantizer is used for conversion before its range was observed."""


class NumericsError(QatError):
    """NaN or Inf where a finite number is needed."""


class ExportError(QatError):
    """The integer model cannot be written as the artefact asked for."""


class ArtifactError(QatError):
    """The runtime refused the artefact or failed while running it."""


class ParityError(QatError):
    """The artefact does not behave like the model that was trained."""


class ProcessError(QatError):
    """Another process of the same run failed or ended, so this one cannot go on."""


class ReportError(QatError):
    """A report is asked of what no run left behind."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Message for a name outside a closed set: the value, the nearest names, and all known ones."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"unknown {kind} {name!r}.{hint} Known: {', '.join(known) or 'none'}"
