"""A small language model with a transformer, and the text that it learns."""

from __future__ import annotations

import math
import urllib.request
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from camshaft.contrib.lightning.module import LightningModule

__all__ = ["Dictionary", "LightningTransformer", "PositionalEncoding", "Transformer", "WikiText2", "tokenize"]

_ADDRESS = "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2/train.txt"


class Transformer(nn.Module):
    """Gives the logarithms of the probabilities of each next word.

    Args:
        vocab_size: how many words there are; the default is WikiText-2's.
        ninp: the size of a word's embedding.
        nhead: heads of attention.
        nhid: the width of the feedforward layers.
        nlayers: layers of the encoder, and of the decoder.
        dropout: the share of what is dropped.

    Example:
        >>> words = torch.zeros(2, 5, dtype=torch.int64)  # (batch, words)
        >>> Transformer(vocab_size=7, ninp=8)(words, words).shape
        torch.Size([10, 7])
    """

    def __init__(
        self,
        vocab_size: int = 33278,
        ninp: int = 200,
        nhead: int = 2,
        nhid: int = 200,
        nlayers: int = 2,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.pos_encoder = PositionalEncoding(ninp, dropout)
        self.embedding = nn.Embedding(vocab_size, ninp)
        self.transformer = nn.Transformer(
            d_model=ninp,
            nhead=nhead,
            num_encoder_layers=nlayers,
            num_decoder_layers=nlayers,
            dim_feedforward=nhid,
            dropout=dropout,
            batch_first=True,
        )
        self.decoder = nn.Linear(ninp, vocab_size)
        self.ninp = ninp
        self.vocab_size = vocab_size

    def forward(self, inputs: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """The logarithms of the probabilities, (batch * words, vocab_size).

        Args:
            inputs: (batch, words).
            target: (batch, words).
            mask: which words of ``target`` each word may see; those before it unless given.
        """
        if mask is None:
            mask = nn.Transformer.generate_square_subsequent_mask(inputs.shape[1], device=inputs.device)
        source = self.pos_encoder(self.embedding(inputs) * math.sqrt(self.ninp))
        target = self.pos_encoder(self.embedding(target) * math.sqrt(self.ninp))
        output = self.decoder(self.transformer(source, target, tgt_mask=mask))
        return F.log_softmax(output, dim=-1).view(-1, self.vocab_size)


class PositionalEncoding(nn.Module):
    """Adds to each word's embedding waves that tell its place.

    Args:
        dim: the size of the embedding.
        dropout: the share of what is dropped.
        max_len: the longest text.
    """

    waves: Tensor

    def __init__(self, dim: int, dropout: float = 0.1, max_len: int = 5000) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        positions = torch.arange(max_len).unsqueeze(1)
        frequencies = torch.exp(torch.arange(0, dim, 2) * (-math.log(10000.0) / dim))
        waves = torch.zeros(1, max_len, dim)
        waves[..., 0::2] = torch.sin(positions * frequencies)
        waves[..., 1::2] = torch.cos(positions * frequencies)
        self.register_buffer("waves", waves, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(x + self.waves[:, : x.shape[1]])  # type: ignore[no-any-return]


class Dictionary:
    """Numbers of words, in the order of their first occurrence.

    Example:
        >>> words = Dictionary()
        >>> [words.add_word(word) for word in "to be or not to be".split()], len(words)
        ([0, 1, 2, 3, 0, 1], 4)
    """

    def __init__(self) -> None:
        self.word2idx: dict[str, int] = {}
        self.idx2word: list[str] = []

    def add_word(self, word: str) -> int:
        """The number of a word, which is new or not."""
        if word not in self.word2idx:
            self.word2idx[word] = len(self.idx2word)
            self.idx2word.append(word)
        return self.word2idx[word]

    def __len__(self) -> int:
        return len(self.idx2word)


def tokenize(path: Path) -> tuple[Tensor, Dictionary]:
    """The words of a text as numbers, with ``<eos>`` at the end of each line, and the dictionary."""
    dictionary = Dictionary()
    with path.open(encoding="utf-8") as text:
        numbers = [dictionary.add_word(word) for line in text for word in (*line.split(), "<eos>")]
    return torch.tensor(numbers, dtype=torch.int64), dictionary


class WikiText2(Dataset[tuple[Tensor, Tensor]]):
    """WikiText-2 in pieces, each with the same piece one word later.

    Args:
        data_dir: where ``wikitext-2.txt`` is, or is downloaded to.
        block_size: words in a piece.
        download: whether to download the text where it is missing.

    Raises:
        FileNotFoundError: the text is not there.
    """

    def __init__(self, data_dir: Path = Path("./data"), block_size: int = 35, download: bool = True) -> None:
        self.path = Path(data_dir) / "wikitext-2.txt"
        if download:
            self.download(self.path)
        self.data, self.dictionary = tokenize(self.path)
        self.block_size = block_size

    @property
    def vocab_size(self) -> int:
        """How many words there are."""
        return len(self.dictionary)

    def __len__(self) -> int:
        return len(self.data) // self.block_size - 1

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        start = index * self.block_size
        end = start + self.block_size
        return self.data[start:end], self.data[start + 1 : end + 1]

    @staticmethod
    def download(destination: Path) -> None:
        """Fetch the text, unless it is there."""
        if destination.exists():
            return
        destination.parent.mkdir(parents=True, exist_ok=True)
        unfinished = destination.with_suffix(".part")
        urllib.request.urlretrieve(_ADDRESS, unfinished)
        unfinished.replace(destination)


class LightningTransformer(LightningModule):
    """The transformer as a module that can be fitted."""

    def __init__(self, vocab_size: int = 33278) -> None:
        super().__init__()
        self.model = Transformer(vocab_size=vocab_size)

    def forward(self, inputs: Tensor, target: Tensor) -> Tensor:
        return self.model(inputs, target)  # type: ignore[no-any-return]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        inputs, target = batch
        return F.nll_loss(self(inputs, target), target.view(-1))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.model.parameters(), lr=0.1)

    def prepare_data(self) -> None:
        WikiText2(download=True)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        return DataLoader(WikiText2())
