"""Layers: what holds parameters."""

from elman.nn.dropout import EmbeddingDropout, LockedDropout
from elman.nn.patterns import DeepOutput, ManyToMany, ManyToOne, OneToMany, OneToOne
from elman.nn.transduction import Bridge, Decoder, Encoder, EncoderDecoder

__all__ = [
    "Bridge",
    "Decoder",
    "DeepOutput",
    "EmbeddingDropout",
    "Encoder",
    "EncoderDecoder",
    "LockedDropout",
    "ManyToMany",
    "ManyToOne",
    "OneToMany",
    "OneToOne",
]
