"""Compact arrays: pytree nodes that store fewer numbers than the dense array they mean."""

from jaxcompress.arrays.atoms import DesignedAtoms
from jaxcompress.arrays.base import CompactArray, is_compact, materialize, stored_numbers
from jaxcompress.arrays.clustered import ClusteredArray
from jaxcompress.arrays.factored import FactoredArray
from jaxcompress.arrays.hashed import HashedArray
from jaxcompress.arrays.layout import MatrixAxes
from jaxcompress.arrays.lookups import LookupArray
from jaxcompress.arrays.paths import matrices
from jaxcompress.arrays.products import matmul, take
from jaxcompress.arrays.registration import compact_array
from jaxcompress.arrays.spline import SplineArray, as_function
from jaxcompress.arrays.static import StaticArray, static_field
from jaxcompress.arrays.tie import tie
from jaxcompress.arrays.toeplitz import ToeplitzArray
from jaxcompress.arrays.vocabulary import VocabularyArray

__all__ = [
    "ClusteredArray",
    "CompactArray",
    "DesignedAtoms",
    "FactoredArray",
    "HashedArray",
    "LookupArray",
    "MatrixAxes",
    "SplineArray",
    "StaticArray",
    "ToeplitzArray",
    "VocabularyArray",
    "as_function",
    "compact_array",
    "is_compact",
    "materialize",
    "matmul",
    "matrices",
    "static_field",
    "stored_numbers",
    "take",
    "tie",
]
