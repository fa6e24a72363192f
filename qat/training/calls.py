"""Calls: what a LightningModule's own step passes to the networks in it, on a given batch.

Running the step and stopping it at the network is the one way to know, for a `forward` of several inputs or keywords,
batches that are dicts, and whatever the project does between the batch and the network.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import nn

from qat.errors import ConfigError, QatError
from qat.placement.held import OWN, own_network
from qat.placement.prepared import device_of

LOGS = ("log", "log_dict")  # of a LightningModule


@dataclass(frozen=True, kw_only=True)
class Call:
    """The arguments of one call of a network."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


class _Reached(Exception):  # noqa: N818  (no error: it stops a step where it has told enough)
    pass


def first_calls(networks: Mapping[str, nn.Module], run: Callable[[], Any], what: str) -> dict[str, Call]:
    """The first call of every network while `run` goes, in order; `run` is stopped before the last of them computes.

    Args:
        networks: by name.
        run: calls them.
        what: what `run` is, for the message.

    Raises:
        ConfigError: `run` fails, or ends, before it reached all networks.
    """
    calls: dict[str, Call] = {}

    def note(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.setdefault(name, Call(args=args, kwargs=kwargs))
        if len(calls) == len(networks):
            raise _Reached

    way_out = "set example_input_array, or call qat.prepare and qat.calibrate on the network before fit"
    try:
        with ExitStack() as stack:
            for name, network in networks.items():
                stack.enter_context(_noting(network, partial(note, name)))
            run()
    except _Reached:
        return calls
    except QatError:
        raise
    except Exception as error:
        raise ConfigError(f"{what} failed before it called {_list(networks)}: {error!r}; {way_out}") from error
    missing = [n for n in networks if n not in calls]
    if missing == [OWN]:
        raise ConfigError(f"{what} never called self(x), whose forward is the network; or name others in modules=[]")
    raise ConfigError(f"{what} never called {_list(missing)}: name others in modules=[]")


@contextmanager
def _noting(network: nn.Module, note: Callable[[tuple[Any, ...], dict[str, Any]], None]) -> Iterator[None]:
    """Tell `note` of every call of a network."""
    if not isinstance(network, pl.LightningModule):
        handle = network.register_forward_pre_hook(lambda _, args, kwargs: note(args, kwargs), with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()
        return
    forward, before = network.forward, vars(network).get(OWN)

    def noting(*args: Any, **kwargs: Any) -> Any:  # a hook would not see `self.forward(x)`
        note(args, kwargs)
        return forward(*args, **kwargs)

    vars(network)[OWN] = noting
    try:
        yield
    finally:
        if before is None:
            del vars(network)[OWN]
        else:
            vars(network)[OWN] = before


def call_step(module: pl.LightningModule, hook: str, batch: Any, batch_idx: int) -> Any:
    """Call a step with the indices it takes, of the batch and of the first loader, as Lightning does."""
    step = getattr(module, hook)
    taken = inspect.signature(step).parameters
    loader = {"dataloader_idx": 0} if "dataloader_idx" in taken else {}
    return step(batch, batch_idx, **loader) if len(taken) > 1 else step(batch)


class Step(nn.Module):
    """A LightningModule's step, up to the point where all its networks have computed.

    Args:
        module: the LightningModule.
        networks: its networks, by name.
        validation: its `validation_step`, if it has one, instead of its `training_step`.
        hook: the step itself, by name.
    """

    def __init__(
        self,
        module: pl.LightningModule,
        networks: Mapping[str, nn.Module],
        *,
        validation: bool = False,
        hook: str | None = None,
    ):
        super().__init__()
        self.module = module
        self.own = own_network(module)  # no child of the module's; its graph tells the order of its quantizers
        self.networks = dict(networks)
        # manual optimization needs optimizers before it needs the network, and a validation step needs none
        validation |= not module.automatic_optimization
        validates = validation and is_overridden("validation_step", module)
        self.hook = hook or ("validation_step" if validates else "training_step")

    def calls(self, batch: Any) -> dict[str, Call]:
        """What the networks are called with on `batch`."""
        module = self.module
        batch = module.on_before_batch_transfer(batch, 0)
        batch = module.transfer_batch_to_device(batch, torch.device(device_of(module)), 0)
        batch = module.on_after_batch_transfer(batch, 0)
        what = f"{type(module).__name__}.{self.hook}"
        with _unfinished(module):
            return first_calls(self.networks, lambda: call_step(module, self.hook, batch, 0), what)

    def forward(self, batch: Any) -> Any:
        """Run the step until its networks have computed; returns what the last of them did."""
        name, call = list(self.calls(batch).items())[-1]
        return self.networks[name](*call.args, **call.kwargs)


def example_calls(module: pl.LightningModule, networks: Mapping[str, nn.Module]) -> dict[str, Call] | None:
    """What the networks are called with on `module.example_input_array`; None when it has none."""
    example = module.example_input_array
    if example is None:
        return None
    example = module.transfer_batch_to_device(example, torch.device(device_of(module)), 0)

    def run() -> Any:
        if isinstance(example, Mapping):
            return module(**example)
        return module(*example) if isinstance(example, tuple) else module(example)

    with _unfinished(module):
        return first_calls(networks, run, f"{type(module).__name__}.forward with its example_input_array")


@contextmanager
def _unfinished(module: pl.LightningModule) -> Iterator[None]:
    """For a step that ends half-way: it logs nothing, and an optimizer that it toggles is toggled back."""
    trains = {p: p.requires_grad for p in module.parameters()}
    toggled = module._param_requires_grad_state  # what Lightning's untoggle_optimizer goes back to
    before = {name: vars(module)[name] for name in LOGS if name in vars(module)}
    vars(module).update(dict.fromkeys(LOGS, _log_nothing))  # Lightning takes no logs before a loop runs
    try:
        yield
    finally:
        for name in LOGS:
            del vars(module)[name]
        vars(module).update(before)
        module._param_requires_grad_state = toggled
        for parameter, own in trains.items():
            parameter.requires_grad = own


def _log_nothing(*args: Any, **kwargs: Any) -> None:
    pass


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's own mode is back afterwards."""
    modes = {m: m.training for m in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for m, mode in modes.items():
            m.training = mode


def _list(names: Any) -> str:
    return ", ".join(map(repr, names))
