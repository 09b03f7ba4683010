"""A pretrained BERT made small for one collection of documents, without labels and without questions: `compress_for`."""

from jaxcompress.documents.job import Settings, compress_for
from jaxcompress.documents.report import CorpusReport

__all__ = ["CorpusReport", "Settings", "compress_for"]
