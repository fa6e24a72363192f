"""An LSTM that reads an image row by row (Hochreiter and Schmidhuber 1997).

x_t = row t of all channels, 3 W values       logits = fc(h_H)
"""

from __future__ import annotations

from torch import Tensor, nn

from qat.errors import ConfigError

CHANNELS = 3


class RowLSTM(nn.Module):
    """Images [N, 3, H, W] to logits [N, classes]; 1.1 M parameters as it stands.

    Args:
        num_classes: Width of the head `fc`.
        image_size: W.
        hidden: Values in the state.
        layers: LSTM layers, one above the other.

    Raises:
        ConfigError: An image without columns.
    """

    def __init__(self, num_classes: int = 10, *, image_size: int = 8, hidden: int = 512, layers: int = 1) -> None:
        super().__init__()
        if image_size < 1:
            raise ConfigError(f"need image_size >= 1, got {image_size}")
        self.lstm = nn.LSTM(CHANNELS * image_size, hidden, layers, batch_first=True)
        self.fc = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, classes]."""
        rows = x.transpose(1, 2).flatten(2)  # [N, H, 3 W]
        states, _ = self.lstm(rows)
        logits: Tensor = self.fc(states[:, -1])
        return logits
