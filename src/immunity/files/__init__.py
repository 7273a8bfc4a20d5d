"""The files that other programs write and read: deltas, adapters, learned tokens, whole models in one file."""

from immunity.files.adapters import Adapter
from immunity.files.embeddings import Embedding
from immunity.files.reading import Change, Content, read, read_change, read_token
from immunity.files.weights import Weights

__all__ = ["Adapter", "Change", "Content", "Embedding", "Weights", "read", "read_change", "read_token"]
