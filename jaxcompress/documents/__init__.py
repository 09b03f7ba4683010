"""Compression of a pretrained BERT for one collection of documents, without labels or queries.

`compress_for` returns the compressed encoder and a `CorpusReport` that compares it with the
original. An `Encoder` embeds texts, and `read_index` loads the index of passages to search.
"""

from jaxcompress.documents.encoder import (
    Encoder,
    read_encoder,
    read_index,
    write_hugging_face,
)
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
    "write_hugging_face",
]
