"""LSTM and GRU on integers, unrolled over a sequence whose length is known when the model is exported.

    gates = (W x + b_W) + (U h + b_U)          W x of all steps in one product, U h step by step: two dynamic grids
    LSTM   i, f, g, o = sigma, sigma, tanh, sigma of the gates      c' = f c + i g       h' = o tanh(c')
    GRU    r, u = sigma of the gates; n = tanh(W_n x + b + r (U_n h + b))                h' = n + u (h - n)

Source: Hochreiter and Schmidhuber 1997; Cho et al. 2014, arXiv:1406.1078; the gates in the order of torch's parameters.
The state h moves at every step, so static ranges would have to cover all of its life: here each step has its own.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, cast

import torch
from torch import Tensor, nn

from qat.layers.dynamic import DynamicLinear

State = tuple[Tensor, ...]


class DynamicRecurrent(nn.Module):
    """What LSTM and GRU share: layers, directions, steps.

    Args:
        layer: the float layer, for its settings; no projection of the state (`proj_size=0`).
        products: its weights by their names, `weight_ih_l0`, `weight_hh_l0`, ...
    """

    states = 1  # tensors that a step hands on

    def __init__(self, layer: nn.RNNBase, products: dict[str, DynamicLinear]) -> None:
        super().__init__()
        self.hidden_size, self.num_layers = layer.hidden_size, layer.num_layers
        self.batch_first, self.bidirectional = layer.batch_first, layer.bidirectional
        self.products = nn.ModuleDict(products)

    def forward(self, input: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        """As the float layer: `[L, N, C_in]` (`[N, L, C_in]` if batch first) to `[L, N, D H]` and the last state.

        Raises:
            TypeError: a packed sequence.
        """
        if not isinstance(input, Tensor):
            raise TypeError(f"{type(self).__name__} takes tensors; pad sequences instead of packing them")
        alone = input.ndim == 2
        x = input.unsqueeze(1) if alone else input.transpose(0, 1) if self.batch_first else input  # [L, N, C_in]
        given = self._given(hx, alone)
        last: list[State] = []
        for index in range(self.num_layers):
            directions = []
            for suffix in ("", "_reverse") if self.bidirectional else ("",):
                ys, state = self._run(f"l{index}{suffix}", x, self._start(x, given, len(last)), backwards=bool(suffix))
                directions.append(ys)
                last.append(state)
            x = directions[0] if len(directions) == 1 else torch.cat(directions, -1)  # [L, N, D H]
        found = [torch.stack([state[i] for state in last]) for i in range(self.states)]  # [layers D, N, H] each
        if alone:
            x, found = x.squeeze(1), [one.squeeze(1) for one in found]
        elif self.batch_first:
            x = x.transpose(0, 1)
        return x, found[0] if self.states == 1 else tuple(found)

    def _run(self, name: str, x: Tensor, state: State, *, backwards: bool) -> tuple[Tensor, State]:
        """One layer in one direction: the state h of each step `[L, N, H]`, and the last state."""
        of_input = self.products[f"weight_ih_{name}"](x).unbind(0)  # L times [N, gates H]
        ys = []
        for gates in reversed(of_input) if backwards else of_input:
            state = self._step(gates, self.products[f"weight_hh_{name}"](state[0]), state)
            ys.append(state[0])
        return torch.stack(ys[::-1] if backwards else ys), state

    def _given(self, hx: Any, alone: bool) -> list[Tensor] | None:
        if hx is None:
            return None
        states = [hx] if isinstance(hx, Tensor) else list(hx)
        return [state.unsqueeze(1) for state in states] if alone else states

    def _start(self, x: Tensor, given: list[Tensor] | None, index: int) -> State:
        if given is not None:
            return tuple(state[index] for state in given)
        return (x.new_zeros(x.shape[1], self.hidden_size),) * self.states

    @abstractmethod
    def _step(self, of_input: Tensor, of_state: Tensor, state: State) -> State:
        """The next state, from both products with their biases `[N, gates H]`."""

    def extra_repr(self) -> str:
        """Settings, as the float layer says them."""
        return f"{self.hidden_size}, num_layers={self.num_layers}, bidirectional={self.bidirectional}"


class DynamicLSTM(DynamicRecurrent):
    """`nn.LSTM` with integer products."""

    states = 2

    def _step(self, of_input: Tensor, of_state: Tensor, state: State) -> State:
        i, f, g, o = (of_input + of_state).chunk(4, dim=-1)
        cell = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(cell), cell


class DynamicGRU(DynamicRecurrent):
    """`nn.GRU` with integer products."""

    def _step(self, of_input: Tensor, of_state: Tensor, state: State) -> State:
        (xr, xu, xn), (hr, hu, hn) = of_input.chunk(3, dim=-1), of_state.chunk(3, dim=-1)
        reset, update = torch.sigmoid(xr + hr), torch.sigmoid(xu + hu)
        new = torch.tanh(xn + reset * hn)
        return (new + update * (state[0] - new),)


RECURRENT: dict[type[nn.Module], type[DynamicRecurrent]] = {nn.LSTM: DynamicLSTM, nn.GRU: DynamicGRU}


def recurrent_form(layer: nn.Module) -> type[DynamicRecurrent] | None:
    """The integer form of a recurrent layer; None where there is none (a plain RNN, a projected state)."""
    if getattr(layer, "proj_size", 0):
        return None
    return RECURRENT.get(type(layer))


def matrices(layer: nn.RNNBase) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Weight `[gates H, C]` and bias of every product of a recurrent layer, by the weight's name."""
    found = {}
    for name in layer._flat_weights_names:
        if name.startswith("weight_"):
            bias = cast("Tensor | None", getattr(layer, name.replace("weight", "bias"), None))
            found[name] = (cast(Tensor, getattr(layer, name)), bias)
    return found
