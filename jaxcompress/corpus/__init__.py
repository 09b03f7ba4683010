"""A pretrained BERT made small for one collection of documents, without labels and without questions: `compress_for`."""

from jaxcompress.corpus.job import Settings, compress_for
from jaxcompress.corpus.report import CorpusReport

__all__ = ["CorpusReport", "Settings", "compress_for"]
