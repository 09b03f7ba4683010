"""The torch side of peers.py.

One trained network, cut by torch-pruning or by TorchIntegral, judged and fine-tuned.

Not for running by hand. peers.py starts it in the peer's own environment, writes a job as JSON to
its standard input, and reads one line of JSON for each finished cell from its standard output;
whatever the peers print goes to the standard error. The job names two files of arrays: `data` with
the images, the order of the batches and the cycle of the learning rate, the same for every method
and framework, and `weights` with flax's parameters and the logits that they give, which are looked
at before any cut.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

THREADS = 2
CHUNK, AGREE, CLOSE = 250, 1_000, 1e-4
"""Images at once where nothing is trained.

Images whose logits are compared with flax's, and how close they have to be.
"""

RUNS, WARM = 30, 5


# --- the networks --------------------------------------------------------------------------------


def build(
    widths: Iterable[int],
    convolutions: int,
    pooled: Iterable[int],
    integral: bool = False,
    norms: bool = True,
) -> nn.Sequential:
    """The networks of channels.py.

    Args:
        widths: of the hidden layers, convolutions first.
        convolutions: how many of them are convolutions.
        pooled: which convolutions a max pooling follows.
        integral: the first dense layer behind convolutions as a convolution of the whole image,
            the same function: TorchIntegral does not follow a channel through a flattening.
        norms: whether a batch norm follows each convolution; else the convolution has a bias, as
            after fusing.
    """
    layers: list[nn.Module] = []
    widths, pooled = list(widths), set(pooled)
    channels, side = (1, 28) if convolutions else (784, 1)
    for index, width in enumerate(widths[:convolutions]):
        layers += [
            nn.Conv2d(channels, width, 3, padding=1, bias=not norms),
            nn.BatchNorm2d(width) if norms else nn.Identity(),
        ]
        layers += [nn.ReLU(), nn.MaxPool2d(2)] if index in pooled else [nn.ReLU()]
        channels, side = width, side // 2 if index in pooled else side
    if side > 1 and not integral:
        layers.append(nn.Flatten())
    for width in (*widths[convolutions:], 10):
        whole = side > 1 and integral
        layers += [
            nn.Conv2d(channels, width, side) if whole else nn.Linear(channels * side**2, width),
            nn.ReLU(),
        ]
        layers += [nn.Flatten()] if whole else []
        channels, side = width, 1
    return (
        nn.Sequential(*layers[:-1]).eval().to(memory_format=torch.channels_last)
    )  # no relu on the logits; the faster layout here


def weighted(model: nn.Module) -> list[Any]:
    """The convolutions and dense layers, first to last."""
    return [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]


@torch.no_grad()
def carry(model: nn.Module, weights: dict[str, np.ndarray], convolutions: int) -> None:
    """Flax's parameters into a model at the same widths."""

    def fill(parameter, value):
        return parameter.copy_(
            torch.from_numpy(np.ascontiguousarray(value)).reshape(parameter.shape)
        )

    for index, layer in enumerate(weighted(model)):
        if index < convolutions:
            fill(layer.weight, weights[f"Conv_{index}/kernel"].transpose(3, 2, 0, 1))
            continue
        kernel, bias = (
            weights[f"Dense_{index - convolutions}/{name}"] for name in ("kernel", "bias")
        )
        if (
            index == convolutions > 0
        ):  # flax flattens rows, columns, channels, and torch channels, rows, columns
            channels = weights[f"Conv_{index - 1}/kernel"].shape[-1]
            side = round((len(kernel) // channels) ** 0.5)
            kernel = (
                kernel.reshape(side, side, channels, -1)
                .transpose(2, 0, 1, 3)
                .reshape(len(kernel), -1)
            )
        fill(layer.weight, kernel.T)
        fill(layer.bias, bias)
    norms = (module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    for index, norm in enumerate(norms):
        for name, parameter in zip(
            ("scale", "bias", "mean", "var"),
            (norm.weight, norm.bias, norm.running_mean, norm.running_var),
        ):
            fill(parameter, weights[f"BatchNorm_{index}/{name}"])


# --- data, training, judging ---------------------------------------------------------------------


class Data:
    """Images in a network's shape, the batches of every training, and the cycle of its rate."""

    def __init__(self, path: str, images: bool):
        self.shape = (-1, 1, 28, 28) if images else (-1, 784)
        with np.load(path) as arrays:
            self.pixels, self.judged = (
                torch.from_numpy(arrays[name]) for name in ("pixels", "judge_pixels")
            )
            self.labels, self.truth = (
                torch.from_numpy(arrays[name]).long() for name in ("labels", "judge_labels")
            )
            self.order, self.cycle = (
                torch.from_numpy(arrays["order"]).long(),
                arrays["cycle"].tolist(),
            )

    def unit(self, pixels: torch.Tensor) -> torch.Tensor:
        return (pixels.float() / 255).reshape(self.shape)

    @torch.no_grad()
    def logits(self, model: nn.Module, images: int) -> torch.Tensor:
        """Of the first test images."""
        return torch.cat([model(self.unit(chunk)) for chunk in self.judged[:images].split(CHUNK)])

    def accuracy(self, model: nn.Module) -> float:
        """In percent."""
        right = self.logits(model, len(self.truth)).argmax(-1) == self.truth
        return round(100 * right.double().mean().item(), 4)

    def train(
        self, model: nn.Module, rate: float, regularize: Callable[[], None] = lambda: None
    ) -> None:
        """One cycle of Adam on whatever wants a gradient; batch norms are in training mode."""
        model.train()
        optimizer = torch.optim.Adam(
            [parameter for parameter in model.parameters() if parameter.requires_grad], lr=rate
        )
        for index, share in zip(self.order, self.cycle):
            optimizer.param_groups[0]["lr"] = rate * share
            optimizer.zero_grad()
            F.cross_entropy(model(self.unit(self.pixels[index])), self.labels[index]).backward()
            regularize()
            optimizer.step()
        model.eval()


# --- torch-pruning -------------------------------------------------------------------------------


def torch_pruning(model: nn.Module, cell: dict[str, Any], data: Data) -> nn.Module:
    """Cut by a pruner of torch-pruning.

    After sparse training where the cell has a regularization.
    """
    import torch_pruning as tp  # pyright: ignore[reportMissingImports]

    importance = tp.importance.GroupMagnitudeImportance(p=2)
    if cell["importance"] == "taylor":
        importance = tp.importance.GroupTaylorImportance()
        for pixels, labels in zip(
            data.pixels[: cell["images"]].split(CHUNK), data.labels[: cell["images"]].split(CHUNK)
        ):
            F.cross_entropy(model(data.unit(pixels)), labels).backward()
    elif cell["importance"] == "bn":
        if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
            raise ValueError("the network has no batch norm")
        of_norms, of_weights = tp.importance.BNScaleImportance(), importance

        def importance(group: Any) -> torch.Tensor:  # groups without a batch norm would stay whole
            scores = of_norms(group)
            return of_weights(group) if scores is None else scores

    options = {
        "importance": importance,
        "pruning_ratio": 1 - cell["keep"],
        "global_pruning": cell["scope"] == "global",
    }
    options |= {"ignored_layers": weighted(model)[-1:], "max_pruning_ratio": cell.get("most", 1.0)}
    example = data.unit(data.pixels[:2])
    if "reg" in cell:
        kind = tp.pruner.BNScalePruner if cell["importance"] == "bn" else tp.pruner.GroupNormPruner
        pruner = kind(model, example, reg=cell["reg"], **options)
        pruner.update_regularizer()
        data.train(model, cell["rate"], lambda: pruner.regularize(model))
    else:
        pruner = tp.pruner.BasePruner(model, example, **options)
    pruner.step()
    return model


# --- TorchIntegral -------------------------------------------------------------------------------


def torch_integral(model: nn.Module, cell: dict[str, Any], data: Data) -> nn.Module:
    """Converted as in its examples, tuned as the cell says.

    And sampled at fewer points on every axis.

    "grid" is its fast pruning of trained networks (the points and the biases are trained at the
    final size), "weights" its training of an integral network (at random sizes from the final to
    the whole one).
    """
    import torch_integral as inn  # pyright: ignore[reportMissingImports]
    from torch_integral import permutation  # pyright: ignore[reportMissingImports]
    from torch_integral.utils import reset_batchnorm  # pyright: ignore[reportMissingImports]

    dims = inn.standard_continuous_dims(model)
    names = [name for name in dims if name.endswith("weight")]
    dims |= {names[0]: [0], names[-1]: [1], names[-1].replace("weight", "bias"): []}
    order = {"class": getattr(permutation, cell["permutation"]), "iters": cell.get("restarts", 100)}
    wrapper = inn.IntegralWrapper(
        init_from_discrete=True, fuse_bn=True, permutation_config=order, verbose=False
    )
    integral = wrapper(model, [1, *data.shape[1:]], dims)
    sizes = {group: max(1, round(cell["keep"] * group.size)) for group in integral.groups}
    if cell["tuning"] == "grid":
        for group, size in sizes.items():
            group.reset_grid(inn.TrainableGrid1D(size))
        with inn.grid_tuning(integral, False, True):
            if cell[
                "norms"
            ]:  # its train_bn=True fails in torch.fx on the wrapper, so the same on what is wrapped
                reset_batchnorm(integral.model)
            data.train(integral, cell["rate"])
    else:
        if cell["tuning"] == "weights":
            for group, size in sizes.items():
                group.reset_distribution(inn.UniformDistribution(size, group.size))
            data.train(integral, cell["rate"])
        integral.eval()
        for group, size in sizes.items():
            group.resize(size)
    small = integral.eval().get_unparametrized_model()
    for parameter in small.parameters():
        parameter.requires_grad = True
    return small


PEERS = {"torch-pruning": torch_pruning, "torch-integral": torch_integral}


# --- one job -------------------------------------------------------------------------------------


def run(model: nn.Module, cell: dict[str, Any], data: Data, before: float) -> dict[str, Any]:
    """One cell: cut, judge, fine-tune with each rate from the same start, judge."""
    torch.manual_seed(cell["seed"])
    np.random.seed(cell["seed"])
    start, worked = time.perf_counter(), time.process_time()
    small = PEERS[cell["peer"]](model, cell, data)
    seconds = {
        "seconds": round(time.perf_counter() - start, 3),
        "cpu_seconds": round(time.process_time() - worked, 3),
    }
    row: dict[str, Any] = {"before": before, **seconds, "after": data.accuracy(small)}
    row["widths"] = [layer.weight.shape[0] for layer in weighted(small)[:-1]]
    start = time.perf_counter()
    row["tuned"] = []
    for rate in cell["rates"]:
        tuned = copy.deepcopy(small)
        data.train(tuned, rate)
        row["tuned"].append(data.accuracy(tuned))
    return row | {"tuning_seconds": round(time.perf_counter() - start, 1)}


def clock(cell: dict[str, Any], data: Data) -> dict[str, Any]:
    """The medians of interleaved forward passes of networks of the given forms, in milliseconds."""
    x = data.unit(data.judged[: cell["batch"]])
    models = [build(**form) for form in cell["forms"]]
    times: list[list[float]] = [[] for _ in models]
    with torch.no_grad():
        for turn, (model, seconds) in itertools.product(range(-WARM, RUNS), zip(models, times)):
            start = time.perf_counter()
            model(x)
            if turn >= 0:
                seconds.append(time.perf_counter() - start)
    return {"ms": [round(1e3 * float(np.median(seconds)), 3) for seconds in times]}


def main() -> None:
    torch.set_num_threads(THREADS)
    job = json.load(sys.stdin)
    data = Data(job["data"], images=job["form"]["convolutions"] > 0)

    def fresh(integral: bool) -> nn.Sequential:
        """The trained network, held against flax's logits."""
        model = build(**job["form"], integral=integral)
        with np.load(job["weights"]) as weights:
            carry(model, weights, job["form"]["convolutions"])
            apart = float(
                (data.logits(model, AGREE) - torch.from_numpy(weights["logits"])).abs().max()
            )
        if apart > CLOSE:
            raise ValueError(f"logits differ from flax's by {apart:.2g}")
        return model

    before = data.accuracy(fresh(False)) if "weights" in job else 0.0
    for cell in job["cells"]:
        with contextlib.redirect_stdout(sys.stderr):
            if cell["peer"] == "clock":
                row = clock(cell, data)
            else:
                model = fresh(cell["peer"] == "torch-integral")
                try:
                    row = run(model, cell, data, before)
                except Exception as problem:  # what a peer cannot do is a result, too
                    row = {"before": before, "failed": f"{type(problem).__name__}: {problem}"[:200]}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
