"""The modules of a sentence-transformers folder: what follows the encoder, and where it lies.

`modules.json` lists a Transformer, a Pooling, any number of Dense and a Normalize, each with a
folder for its configuration. A folder without it is a plain encoder.

Source: Reimers and Gurevych 2019 (arXiv:1908.10084).
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from jaxcompress.models.files import json_of, object_of
from jaxcompress.models.pooling import POOLINGS, Projection

LEGACY_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""The poolings by the flags of older files, in the order in which they are concatenated."""
TORCH_ACTIVATIONS = {
    "Identity": "linear",
    "Tanh": "tanh",
    "ReLU": "relu",
    "GELU": "gelu",
    "Sigmoid": "sigmoid",
    "SiLU": "silu",
}
"""Our names of activations by those of torch's classes."""


@dataclasses.dataclass(frozen=True)
class Modules:
    """What a folder holds.

    Attributes:
        encoder: the folder of the encoder's `config.json` and `model.safetensors`.
        pooling: as in `BertConfig`.
        normalize: whether embeddings are scaled to length 1.
        projections: the dense layers after the pooling.
        dense: the folders of these.
    """

    encoder: Path
    pooling: str = "mean"
    normalize: bool = True
    projections: tuple[Projection, ...] = ()
    dense: tuple[Path, ...] = ()


def read_modules(folder: Path) -> Modules:
    """The modules of a folder.

    Args:
        folder: of sentence-transformers or of transformers.

    Returns:
        The modules; the mean scaled to length 1 where the folder lists none.

    Raises:
        FileNotFoundError: for a module whose folder is missing.
        ValueError: for a module, an order of modules or a setting that is not read, by name.
    """
    _check_prompt(folder)
    if not (folder / "modules.json").is_file():
        return _unlisted(folder)
    entries = json_of(folder / "modules.json")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{folder / 'modules.json'}: expected a list of modules")
    kinds = [str(entry.get("type", "")).rsplit(".", 1)[-1] for entry in entries]
    kinds = [kind for kind in kinds if kind != "Dropout"]  # the identity outside of training
    order = " ".join(kinds)
    if not re.fullmatch(r"Transformer Pooling( Dense)*( Normalize)?", order):
        raise ValueError(
            f"{folder / 'modules.json'} lists {', '.join(kinds) or 'nothing'}: only a "
            f"Transformer, a Pooling, any number of Dense, and a Normalize are read, in this order"
        )
    paths: dict[str, list[Path]] = {kind: [] for kind in kinds}
    for entry in entries:
        paths.get(str(entry["type"]).rsplit(".", 1)[-1], []).append(
            folder / str(entry.get("path", ""))
        )
    dense = tuple(paths.get("Dense", ()))
    return Modules(
        encoder=paths["Transformer"][0],
        pooling=pooling_of(paths["Pooling"][0]),
        normalize="Normalize" in kinds,
        projections=tuple(projection_of(path) for path in dense),
        dense=dense,
    )


def _unlisted(folder: Path) -> Modules:
    """The modules of a folder without a list of them."""
    numbered = [
        path.name for path in sorted(folder.iterdir()) if re.fullmatch(r"\d+_\w+", path.name)
    ]
    others = [name for name in numbered if name != "1_Pooling"]
    if others:
        raise ValueError(
            f"{folder} has {', '.join(others)}, and their list, modules.json, is missing"
        )
    return Modules(folder, pooling_of(folder / "1_Pooling") if numbered else "mean")


def pooling_of(folder: Path) -> str:
    """The pooling that a module's folder describes, as in `BertConfig`."""
    path = folder / "config.json"
    given = object_of(path)
    flagged = [mode for flag, mode in LEGACY_POOLINGS.items() if given.get(flag) is True]
    modes = given.get("pooling_mode") or flagged or ["mean"]
    modes = [modes] if isinstance(modes, str) else list(modes)
    unknown = [str(mode) for mode in modes if mode not in POOLINGS]
    unknown += [
        key
        for key, on in given.items()
        if key.startswith("pooling_mode_") and on is True and key not in LEGACY_POOLINGS
    ]
    if unknown:
        raise ValueError(
            f"{path} pools by {', '.join(unknown)}: only {', '.join(POOLINGS)} are read"
        )
    return "+".join(modes)


def projection_of(folder: Path) -> Projection:
    """The dense layer that a module's folder describes."""
    path = folder / "config.json"
    given = object_of(path)
    if "out_features" not in given:
        raise ValueError(f"{path} lacks out_features: expected the config.json of a Dense module")
    wanted = {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}
    for key, value in (wanted | {"use_residual": False}).items():
        if given.get(key) not in (None, value):
            raise ValueError(f"{path}: {key} is {given[key]!r}, and only {value!r} is read")
    # a file without an activation has the default of the module
    torch = str(given.get("activation_function", "torch.nn.modules.activation.Tanh"))
    name = torch.rsplit(".", 1)[-1]
    if not torch.startswith("torch.nn.") or name not in TORCH_ACTIVATIONS:
        raise ValueError(
            f"{path}: the activation is {torch!r}, and only torch.nn's "
            f"{', '.join(TORCH_ACTIVATIONS)} are read"
        )
    return Projection(given["out_features"], TORCH_ACTIVATIONS[name], given.get("bias", True))


def lowers_case(folder: Path) -> bool:
    """Whether texts are brought to lower case before they reach the encoder's tokenizer."""
    settings = [object_of(path) for path in sorted(folder.glob("sentence_*_config.json"))]
    return any(bool(given.get("do_lower_case")) for given in settings)


def _check_prompt(folder: Path) -> None:
    """Refuse a text that is silently put before all others."""
    path = folder / "config_sentence_transformers.json"
    given = object_of(path) if path.is_file() else {}
    name = given.get("default_prompt_name")
    if (given.get("prompts") or {}).get(name):
        raise ValueError(
            f"{path}: default_prompt_name is {name!r}, which is not read: set it to null, and put "
            f"the prompt before the texts"
        )
