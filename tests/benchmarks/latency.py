"""How fast a compact MiniLM runs.

Beside the original in the same program and the original in onnxruntime.

One query of 16 tokens, and batches of 32 x 128: medians of interleaved runs in one process, all on
the same cores. The small encoders are `corpus.py`'s at a quarter of the numbers, with the shares
of the work that are asked for and before they learned, which changes no size. onnxruntime runs the
original in float32, exported by PyTorch, with its transformer fusions (attention, gelu, norms) and
all graph optimizations; the largest difference of its embeddings is checked. "of original" and "of
onnxruntime" say how many times faster the small encoder is.

    python tests/benchmarks/latency.py  # five minutes for each, then two for the clock

It needs what `corpus.py` needs, and `pip install torch transformers onnx onnxruntime`.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import corpus as benchmark
import jax
import numpy as np
from cells import write
from tqdm.auto import tqdm

import jaxcompress as jc
from jaxcompress.analysis.report import flops
from jaxcompress.cli import installed_model
from jaxcompress.documents.encoder import Encoder, read_encoder

KEEP = 1 / 4
CUTS = {"0.4 of the work, 4 layers": {}, "0.3 of the work, 3 layers": {"work": 0.3, "layers": 3}}
SHAPES = {"1 x 16": (1, 16), "32 x 128": (32, 128)}
RUNS = {"1 x 16": 200, "32 x 128": 20}


def reference(folder: Path) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """The original in onnxruntime: from ids and mask to embeddings."""
    import onnxruntime
    import torch
    from onnxruntime.transformers.optimizer import optimize_model
    from transformers import AutoModel

    class Embedder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = AutoModel.from_pretrained(
                folder, add_pooling_layer=False, attn_implementation="eager"
            ).eval()

        def forward(self, ids: Any, mask: Any) -> Any:
            hidden = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state
            weight = mask.unsqueeze(-1).to(hidden.dtype)
            return torch.nn.functional.normalize((hidden * weight).sum(1) / weight.sum(1), dim=1)

    with tempfile.TemporaryDirectory() as draft:
        path = str(Path(draft) / "minilm.onnx")
        ids = torch.ones((2, 16), dtype=torch.int64)
        axes = {
            "ids": {0: "rows", 1: "length"},
            "mask": {0: "rows", 1: "length"},
            "embedding": {0: "rows"},
        }
        torch.onnx.export(
            Embedder(),
            (ids, ids),
            path,
            input_names=["ids", "mask"],
            output_names=["embedding"],
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )
        config = json.loads((folder / "config.json").read_text())
        fused = optimize_model(
            path, "bert", num_heads=config["num_attention_heads"], hidden_size=config["hidden_size"]
        )
        fused.save_model_to_file(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = os.cpu_count() or 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda ids, mask: session.run(
        None, {"ids": ids.astype(np.int64), "mask": mask.astype(np.int64)}
    )[0]


def clock(
    encoders: dict[str, Encoder],
    other: Callable[..., np.ndarray],
    shape: tuple[int, int],
    runs: int,
) -> dict[str, Any]:
    """Milliseconds and FLOPs of a forward pass of each, medians of interleaved runs."""
    rng = np.random.default_rng(0)
    ids, mask = rng.integers(1_000, 5_000, shape).astype(np.int32), np.ones(shape, bool)
    compiled = {
        name: jax.jit(each.net).lower(each.ready, ids, mask).compile()
        for name, each in encoders.items()
    }
    run: dict[str, Callable[[], Any]] = {"onnxruntime": lambda: other(ids, mask)}
    for name, program in compiled.items():
        run[name] = lambda program=program, name=name: jax.block_until_ready(
            program(encoders[name].ready, ids, mask)
        )
    apart = float(np.abs(run["onnxruntime"]() - np.asarray(run["original"]())).max())
    taken: dict[str, list[float]] = {name: [] for name in run}
    for _ in range(runs):
        for name, call in run.items():
            start = time.perf_counter()
            call()
            taken[name].append(1e3 * (time.perf_counter() - start))
    return {
        "ms": {name: float(np.median(each)) for name, each in taken.items()},
        "flops": {name: flops(program) for name, program in compiled.items()},
        "apart": apart,
    }


def table(result: dict[str, Any]) -> str:
    """A line for each encoder and shape."""
    lines = [
        "| encoder | numbers | input | FLOPs | ms | of original | of onnxruntime |",
        "|---|---|---|---|---|---|---|",
    ]
    for shape in SHAPES:
        ms, counted = result[shape]["ms"], result[shape]["flops"]
        for name, each in ms.items():
            share = f"{counted[name] / counted['original']:.2f}" if name in counted else ""
            numbers = f"{result['numbers'][name] / 1e6:.2f} M" if name in result["numbers"] else ""
            ratios = (f"{ms[base] / each:.2f}x" for base in ("original", "onnxruntime"))
            lines.append(
                f"| {name} | {numbers} | {shape} | {share} | {each:.1f} | {' | '.join(ratios)} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).with_suffix(".json"),
        help="where the results are kept",
    )
    args = parser.parse_args()
    large = read_encoder(installed_model(), benchmark.LENGTH)
    texts = benchmark.learned_texts(large)
    encoders = {"original": large}
    for name, cut in tqdm(CUTS.items(), desc="cuts"):
        encoders[name] = benchmark.compacted(
            {"keep": KEEP, "minutes": 0, "seed": 0, **cut}, large, texts
        )[0]
    other = reference(Path(installed_model()))
    result: dict[str, Any] = {
        name: clock(encoders, other, shape, RUNS[name]) for name, shape in SHAPES.items()
    }
    result |= {
        "cores": os.cpu_count(),
        "numbers": {name: float(jc.stored_numbers(each.params)) for name, each in encoders.items()},
    }
    write(args.out, [result])
    print(table(result))


if __name__ == "__main__":
    main()
