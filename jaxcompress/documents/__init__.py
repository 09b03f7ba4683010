"""A pretrained BERT made small for one collection of documents, without labels or questions.

`compress_for` makes the small encoder, a `CorpusReport` compares both, and an `Encoder` embeds
texts and searches an index of passages.
"""

from jaxcompress.documents.encoder import Encoder, read_encoder, read_index
from jaxcompress.documents.job import Settings, compress_for
from jaxcompress.documents.report import CorpusReport
from jaxcompress.documents.retrieval import search

__all__ = [
    "CorpusReport",
    "Encoder",
    "Settings",
    "compress_for",
    "read_encoder",
    "read_index",
    "search",
]
