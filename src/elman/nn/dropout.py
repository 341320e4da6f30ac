"""Dropout as modules, for what stands before or after recurrent layers; within them it is an option of `Recurrent`."""

from torch import Tensor, nn
from torch.nn import functional as F

from elman.engine import draws
from elman.engine.draws import Noise
from elman.engine.packing import Packing
from elman.nn.options import probability
from elman.nn.wiring import locked


class LockedDropout(nn.Module):
    """Dropout with one mask for all time steps of a row ("variational"); in training alone.

    Gal & Ghahramani, "A theoretically grounded application of dropout in recurrent neural networks", NeurIPS 2016.

    Args:
        p: probability of dropping a unit, below 1.
        batch_first: whether tensors are [B, T, *].
    """

    def __init__(self, p: float = 0.5, batch_first: bool = False) -> None:
        super().__init__()
        probability("p", p)
        self.p = float(p)
        self.batch_first = batch_first

    def forward(self, input: Tensor, *, noise: Noise | None = None) -> Tensor:
        """[T, B, width] to [T, B, width]; `noise` as in `Recurrent.forward`."""
        if not self.training or self.p == 0:
            return input
        if input.dim() != 3:
            raise ValueError(f"input must have the dimensions of time, batch and units, got {tuple(input.shape)}")
        steps = input.transpose(0, 1) if self.batch_first else input
        packing = Packing.dense(steps.shape[0], steps.shape[1], input.device)
        made = locked(steps.flatten(0, 1), self.p, "locked_dropout_module", 0, packing, noise or draws.fresh())
        output: Tensor = made.unflatten(0, steps.shape[:2])
        return output.transpose(0, 1) if self.batch_first else output

    def extra_repr(self) -> str:
        return f"p={self.p}"


class EmbeddingDropout(nn.Module):
    """An embedding that drops whole words: a word that is dropped is zero wherever it stands in the batch.

    e = m_w E_w with m_w = b_w / (1 - p), b_w ~ Bernoulli(1 - p) for each word of the vocabulary and call. Gal &
    Ghahramani 2016, section 4.2; used by AWD-LSTM (Merity, Keskar & Socher, ICLR 2018).

    Args:
        embedding: whose weight [V, width] is read.
        p: probability of dropping a word, below 1.
    """

    def __init__(self, embedding: nn.Embedding, p: float = 0.1) -> None:
        super().__init__()
        probability("p", p)
        self.embedding = embedding
        self.p = float(p)

    def forward(self, tokens: Tensor, *, noise: Noise | None = None) -> Tensor:
        """[*] int64 to [*, width]; `noise` as in `Recurrent.forward`, of which the seed alone counts."""
        made: Tensor = self.embedding(tokens)
        if not self.training or self.p == 0:
            return made
        return made * F.embedding(tokens, self.mask(noise or draws.fresh()))

    def mask(self, noise: Noise) -> Tensor:
        """[V, 1]: 0 for a dropped word, else 1 / (1 - p)."""
        return word_mask(self.embedding.weight, self.p, self.embedding.num_embeddings, noise)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def word_mask(weight: Tensor, p: float, count: int, noise: Noise | None = None) -> Tensor:
    """Of a vocabulary of V = ``count`` words, [V, 1] like ``weight``: 0 for a dropped word, else 1 / (1 - p)."""
    words = Packing.dense(1, count, weight.device)
    table = draws.rows(Noise((noise or draws.fresh()).seed), "embedding_dropout", 0, words)
    return draws.mask(table, False, p, words, 1, (0.0, 1 / (1 - p)), weight.dtype)
