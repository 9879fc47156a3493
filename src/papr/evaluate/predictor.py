"""A model as one picklable callable: samples in, rows of answers out, in any loader or Ray Data."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from papr.config import PruneConfig
from papr.environment import pick_device, versions
from papr.errors import ConfigError
from papr.evaluate.answers import ask, class_names, classifier_path
from papr.evaluate.contenders import (
    check_streamless,
    facts_of,
    provenance_of,
    traced,
    weights_digest,
    with_loaded,
)
from papr.evaluate.evaluator import top_classes
from papr.evaluate.loading import Batch, Part, Prepare, Skipped, make_batch
from papr.evaluate.preparing import in_words, libraries, prepare_for
from papr.evaluate.sources import Item, readable
from papr.graft import states
from papr.hosts.inputs import pixel_shape
from papr.named import create_host
from papr.provenance import GIVEN, KEY, Provenance
from papr.pruning import prune, selection

OUTPUTS = ("labels", "embeddings", "masks")
#: Columns of each output, with their types.
_COLUMNS: dict[str, dict[str, pa.DataType]] = {
    "labels": {
        "predicted": pa.int32(),
        "class_name": pa.string(),
        "top5": pa.list_(pa.int32()),
        "score": pa.list_(pa.float32()),
        "output": pa.float32(),
    },
    "embeddings": {"embedding": pa.list_(pa.float32())},
    "masks": {"mask": pa.binary(), "grid": pa.list_(pa.int16())},
}
_TYPES: dict[str, pa.DataType] = {
    "shard": pa.int32(),
    "position": pa.int64(),
    "id": pa.string(),
    "label": pa.int32(),
    **{name: kind for columns in _COLUMNS.values() for name, kind in columns.items()},
    "error": pa.string(),
}
#: Columns that say what a sample is; all others of a call are passed on.
_CONTENT = ("bytes", "path", "pixels", "error")


class _Loaded(NamedTuple):
    host: nn.Module
    provenance: Provenance  # where its weights and the proposal's come from
    digest: str  # of its weights
    config: PruneConfig | None  # how it is pruned, with the proposal that was loaded
    prepare: Prepare
    head: str | None
    names: list[str] | None  # of its classes
    device: torch.device
    dtype: torch.dtype
    axes: int  # of one view's pixels


class Predictor:
    """Answers samples with one model, dense or pruned: rows of plain data.

    It is made of names and numbers, so it travels to other processes at no cost; the model is made
    where the first call happens. The same object serves a DataLoader's batches, `papr predict` and
    the actors of Ray Data's `map_batches`.

    A call takes columns of one length and returns columns:

    | column     | what it is                                                                      |
    |------------|---------------------------------------------------------------------------------|
    | id         | as given; the path or the number in the batch where no id was given             |
    | predicted  | index of the likeliest class                                                    |
    | class_name | the host's own name of it                                                       |
    | top5       | of the five likeliest, the likeliest first                                      |
    | score      | their probabilities: softmax, the mean over views                               |
    | output     | the number that a host of one output answers, as it is; the mean over views     |
    | embedding  | (D,) float32: what goes into the classifier, the mean over views                |
    | mask       | kept patches, a bit each, 1 where kept; `unpack_mask(mask, grid)` is the array  |
    | grid       | its shape, (h, w); (t, h, w) of a clip; (views, ...) where a sample has several |
    | error      | why there is no answer; null where there is one                                 |

    A sample that cannot be read has an error and null elsewhere. class_name is null of a host
    whose configuration does not name its classes. It, predicted, top5 and score are null of a host
    that does not classify, and its embedding is what it returns. One number is no class: these four
    are null then too, and output is null of all other hosts; only where transformers' configuration
    says that it is a yes or no (one label of a multi-label host) are they of 0, no, and 1, yes, by
    the sigmoid. mask and grid are null where no patch was pruned. Of Swin and ConvNeXt the mask is
    the first pruned stage's. All other columns of the call are passed on.

    Args:
        model: what `papr.named.create_host` takes; or a function that returns the host, one
            that pickle takes, which is called once in each process.
        config: how it is pruned, or the keep; None or 1.0 for the dense host.
        device: see `papr.environment.pick_device`; "auto" is decided where the model is made.
        dtype: "float32", "bfloat16" or "float16".
        outputs: among "labels", "embeddings", "masks"; columns of the others are left out.
        checkpoint: see `create_host`.
        num_classes: likewise.
        random_weights: likewise; of the proposal give `Proposal(name, pretrained=False)`.
        prepare: decodes a sample, and says how in its `described` or its repr; None for what the
            host's own library does.
        views: of a video, where nothing else prepares it; see `prepare_for`.
        table: return a pyarrow table, whose columns have a type even where all is null: Ray Data
            needs that to put blocks together.

    Raises:
        ConfigError: an option is out of range, or `config` reuses significance maps. The first call
            raises what making and pruning the model raises.
    """

    def __init__(
        self,
        model: str | Callable[[], nn.Module],
        config: PruneConfig | float | None = None,
        *,
        device: str = "auto",
        dtype: str = "float32",
        outputs: Sequence[str] = OUTPUTS,
        checkpoint: Path | None = None,
        num_classes: int | None = None,
        random_weights: bool = False,
        prepare: Prepare | None = None,
        views: str = "videomae",
        table: bool = False,
    ) -> None:
        unknown = sorted(set(outputs) - set(OUTPUTS))
        if unknown or not outputs:
            raise ConfigError(f"expected outputs among {', '.join(OUTPUTS)}, got {list(outputs)}")
        if dtype not in ("float32", "bfloat16", "float16"):
            raise ConfigError(f"expected float32, bfloat16 or float16, got dtype {dtype!r}")
        if config is not None and not isinstance(config, PruneConfig):
            config = PruneConfig(config)
        check_streamless([config] if config else [])
        self.model, self.config, self.device, self.dtype = model, _pruning(config), device, dtype
        self.outputs = tuple(name for name in OUTPUTS if name in outputs)
        self.checkpoint, self.num_classes = checkpoint, num_classes
        self.random_weights = random_weights
        self.prepare, self.views, self.table = prepare, views, table
        self._loaded: _Loaded | None = None

    def __getstate__(self) -> dict[str, Any]:
        """All but the model."""
        return self.__dict__ | {"_loaded": None}

    @property
    def arguments(self) -> dict[str, Any]:
        """What makes another such predictor: `fn_constructor_kwargs` of Ray Data's map_batches."""
        return {name: value for name, value in self.__dict__.items() if name != "_loaded"}

    @property
    def name(self) -> str:
        """What the host is made by."""
        if isinstance(self.model, str):
            return self.model
        return getattr(self.model, "__qualname__", type(self.model).__name__)

    @property
    def names(self) -> list[str]:
        """Columns of the answers."""
        return [column for output in self.outputs for column in _COLUMNS[output]]

    @property
    def schema(self) -> pa.Schema:
        """Of a run's rows: where each sample stands, its id and label, the answers, the error."""
        names = ["shard", "position", "id", "label", *self.names, "error"]
        return pa.schema([(name, _TYPES[name]) for name in names])

    def load(self) -> _Loaded:
        """The model, made on the first call in each process."""
        if self._loaded is None:
            self._loaded = self._make()
        return self._loaded

    def _make(self) -> _Loaded:
        device, dtype = pick_device(self.device), getattr(torch, self.dtype)
        if isinstance(self.model, str):
            asked = self.checkpoint, self.num_classes, self.random_weights
            host, weights = create_host(self.model, *asked)
        else:
            host, weights = self.model().eval(), GIVEN
        host = host.to(device=device, dtype=dtype)
        prepare = self.prepare or prepare_for(host, self.name, self.views)
        head, axes, digest = classifier_path(host), len(pixel_shape(host)), weights_digest(host)
        names = class_names(host)
        config = None if self.config is None else with_loaded(self.config)
        if config is not None:
            mean = getattr(prepare, "mean", None)
            told = config
            if config.mean is None and mean is not None:
                told = replace(config, mean=mean, std=prepare.std)  # type: ignore[attr-defined]
            host = prune(host, told)
        elif not all(state.config.trace for state in states(host)):  # masks are asked for
            state = states(host)[0]  # a checkpoint's file may hold another network by now
            host = prune(host, replace(traced(state.config), proposal=state.proposal))
        provenance = provenance_of(weights, [host])
        return _Loaded(host, provenance, digest, config, prepare, head, names, device, dtype, axes)

    def facts(self) -> dict[str, Any]:
        """Plain data: all that its rows depend on but the device."""
        loaded = self.load()
        return {
            "model": self.name,
            "weights": loaded.digest,
            "dtype": self.dtype,
            "pruning": None if loaded.config is None else facts_of(loaded.config),
            "outputs": list(self.outputs),
            "prepare": in_words(loaded.prepare),
            "versions": versions(*libraries(loaded.host, loaded.prepare)),
            KEY: loaded.provenance.to_dict(),
        }

    def __call__(self, columns: Mapping[str, Any]) -> Any:
        """Rows of answers, as the class describes.

        Args:
            columns: of N samples, each a list or an array: "bytes" of image files, or their "path",
                or "pixels" ready for the host, (N, ...), (N, V, ...) with V views each, or N arrays
                (V, ...); beside pixels "error", a reason where there are none of that sample; "id".

        Returns:
            A dictionary of lists, or a pyarrow table.

        Raises:
            ConfigError: there is nothing to look at in `columns`.
        """
        batch = self._batch(columns)
        found = self.columns(batch)
        others = {
            name: list(values) for name, values in columns.items() if name not in (*_CONTENT, "id")
        }
        found = {**others, **found}
        if not self.table:
            return found
        return pa.table({name: pa.array(v, _TYPES.get(name)) for name, v in found.items()})

    def _batch(self, columns: Mapping[str, Any]) -> Batch:
        kind = next((name for name in ("pixels", "bytes", "path") if name in columns), None)
        if kind is None:
            raise ConfigError(f"expected pixels, bytes or path of samples, got {list(columns)}")
        content = columns[kind]
        names = columns.get("id", columns.get("path"))
        ids = [readable(str(n)) for n in (range(len(content)) if names is None else names)]
        batch = Batch(Part(0, 0), closes=True, ends=True)
        if kind != "pixels":
            items = [
                Item(name, None, Path(what) if kind == "path" else bytes(what))
                for name, what in zip(ids, content, strict=True)
            ]
            return make_batch(items, 0, self.load().prepare, batch)
        reasons = columns.get("error")
        reasons = [None] * len(ids) if reasons is None else list(reasons)
        pixels = []
        for position, (name, what, reason) in enumerate(zip(ids, content, reasons, strict=True)):
            if reason:
                batch.skipped.append(Skipped(position, name, str(reason)))
                continue
            tensor = torch.as_tensor(what if isinstance(what, Tensor) else np.array(what))
            pixels.append(tensor[None] if tensor.ndim == self.load().axes else tensor)
            batch.positions.append(position)
            batch.ids.append(name)
            batch.views.append(len(pixels[-1]))
        batch.pixels = torch.cat(pixels) if pixels else None
        return batch

    def columns(self, batch: Batch) -> dict[str, list[Any]]:
        """id, answers and error of a batch's samples, in order, the skipped ones among them."""
        found = {} if batch.pixels is None else self._answers(batch.pixels, batch.views)
        row = {position: number for number, position in enumerate(batch.positions)}
        skipped = {sample.position: sample for sample in batch.skipped}
        order = sorted([*row, *skipped])
        columns: dict[str, list[Any]] = {
            "id": [skipped[p].id if p in skipped else batch.ids[row[p]] for p in order]
        }
        for name in self.names:
            columns[name] = [None if p in skipped else found[name][row[p]] for p in order]
        columns["error"] = [skipped[p].reason if p in skipped else None for p in order]
        return columns

    def _answers(self, pixels: Tensor, views: Sequence[int]) -> dict[str, Sequence[Any]]:
        loaded = self.load()
        pixels = pixels.to(device=loaded.device, dtype=loaded.dtype, non_blocking=True)
        answers = ask(loaded.host, pixels, views, loaded.head)
        nothing = [None] * len(views)
        found: dict[str, Sequence[Any]] = dict.fromkeys(self.names, nothing)
        if "labels" in self.outputs and answers.scores is not None:
            scores = answers.scores if max(views) > 1 else answers.scores.softmax(1)
            top = top_classes(scores)
            found |= {"predicted": top[:, 0].tolist(), "top5": top.tolist()}
            if loaded.names is not None:
                found["class_name"] = [loaded.names[number] for number in top[:, 0].tolist()]
            found["score"] = scores.gather(1, top).tolist()
        if "labels" in self.outputs and answers.outputs is not None:
            found["output"] = answers.outputs.tolist()
        if "embeddings" in self.outputs:
            found["embedding"] = list(answers.embeddings.cpu().numpy())
        if "masks" in self.outputs:
            grafted = states(loaded.host)
            if grafted and not grafted[0].dense:
                found |= _masks(selection(loaded.host).mask(), views)
        return found


def _pruning(config: PruneConfig | None) -> PruneConfig | None:
    """The configuration; None where it leaves the host as it is."""
    if config is None:
        return None
    config = traced(config)
    if config.keep < 1 or config.share is not None:
        return config
    return config if config.merge is not None or config.recut is not None else None


def _masks(mask: Tensor, views: Sequence[int]) -> dict[str, Sequence[Any]]:
    rows = mask.cpu().numpy()
    packed, grids, start = [], [], 0
    for count in views:
        one = rows[start] if count == 1 else rows[start : start + count]
        start += count
        packed.append(np.packbits(one.reshape(-1)).tobytes())
        grids.append(list(one.shape))
    return {"mask": packed, "grid": grids}


def unpack_mask(mask: bytes, grid: Sequence[int]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """The kept patches of a row, bool of shape `grid`, True where kept.

    Args:
        mask: the row's mask, numpy.packbits of the patches in row-major order.
        grid: the row's grid.

    Raises:
        ConfigError: the mask is not of that grid.

    Examples:
        >>> unpack_mask(bytes([0b10010000]), (2, 2)).tolist()
        [[True, False], [False, True]]
    """
    shape = tuple(int(side) for side in grid)
    count = int(np.prod(shape))
    if len(mask) != -(-count // 8):
        raise ConfigError(f"expected {-(-count // 8)} bytes for a grid {shape}, got {len(mask)}")
    bits = np.unpackbits(np.frombuffer(mask, np.uint8), count=count)
    return bits.reshape(shape).astype(bool)
