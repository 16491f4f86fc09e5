"""Recurrent layers and cells, and where their states come from and go to."""

import torch
from torch import Tensor, nn


class Recurrent(nn.Module):
    def __init__(self, cell: type[nn.RNNBase], **options):
        super().__init__()
        self.rnn = cell(3, 4, batch_first=True, **options)
        width = (options.get("proj_size") or 4) * (
            2 if options.get("bidirectional") else 1
        )
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class States(nn.Module):
    """A stack of recurrent layers whose states begin as they are learned or made of the
    input, read at the end."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(3, 4, num_layers=2, bidirectional=True)
        self.cells = nn.Linear(3, 16)
        self.begin = nn.Parameter(torch.randn(4, 1, 4))
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        begin = (
            self.begin.expand(-1, len(x), -1),
            self.cells(x[:, 0]).view(len(x), 4, 4).transpose(0, 1),
        )
        hidden, cells = self.rnn(x.transpose(0, 1), begin)[1]
        return self.head(torch.cat([hidden[2], hidden[3], cells[2], cells[3]], -1))


class EncoderDecoder(nn.Module):
    """Two recurrent layers, the second of which begins with the last state of the
    first; without a batch."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.GRU(3, 4, bias=False)
        self.decoder = nn.GRU(3, 4)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = self.encoder(x)[1]
        return self.head(
            torch.cat([self.decoder(x.flip(0), state)[0], state.expand(len(x), -1)], -1)
        )


class Cells(nn.Module):
    """Cells that take steps: one reads the input, its state behind a norm,
    one writes and reads what it wrote."""

    def __init__(self):
        super().__init__()
        self.reader = nn.LSTMCell(3, 4)
        self.norm = nn.LayerNorm(4)
        self.begin = nn.Linear(4, 5)
        self.writer = nn.GRUCell(2, 5)
        self.out = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = cells = torch.zeros(len(x), 4, dtype=x.dtype)
        for t in range(x.shape[1]):
            hidden, cells = self.reader(x[:, t], (self.norm(hidden), cells))
        state, written = self.begin(hidden), [hidden.new_zeros(len(x), 2)]
        for _ in range(3):
            state = self.writer(written[-1], state)
            written.append(self.out(state))
        return torch.stack(written, 1)
