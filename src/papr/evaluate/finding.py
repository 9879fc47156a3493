"""Which samples a text names, whatever their kind: looked up before any model is made."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

from papr.classes import Classes
from papr.evaluate import folders, huggingface, objects, shards
from papr.evaluate.huggingface import Name
from papr.evaluate.lists import LISTS, VIDEO_SUFFIXES, check_there, read_list
from papr.evaluate.sources import DataError, Source
from papr.images import SUFFIXES
from papr.splits import WHOLE, not_by_order, of_split, one_split, split_folders
from papr.walking import suffix

#: Makes a source of samples for the classes of a host.
Maker: TypeAlias = Callable[[Classes], Source]


@dataclass(frozen=True)
class Found:
    """Samples that are there, before it is known which host will be asked about them.

    Attributes:
        name: what named them.
        images: makes a source for a host of images; None where there are none.
        videos: likewise, for a host of clips.
    """

    name: str
    images: Maker | None = None
    videos: Maker | None = None

    @property
    def most(self) -> int | None:
        """How many samples a host finds at most; None where that is not known."""
        counts = [make(None).length for make in (self.images, self.videos) if make is not None]
        return max(counts, key=lambda count: count or 0) if all(counts) else None

    def open(self, classes: Classes, clips: bool = False) -> Source:
        """The samples for a host.

        Args:
            classes: the host's, for labels: its names of them in order, which labels with names
                are found by; how many where it has none; None where it does not classify.
            clips: whether it takes videos.

        Raises:
            DataError: what it takes is not there.
        """
        make = self.videos if clips else self.images
        if make is None:
            wanted, there = ("videos", "images") if clips else ("images", "videos")
            raise DataError(
                f"expected {wanted} in {self.name}, which this model takes, got {there}"
            )
        return make(classes)


def find(
    data: str | Path,
    *,
    root: str | Path | None = None,
    image_column: str | None = None,
    clips: bool | None = None,
) -> Found:
    """The samples that `data` names, of whatever kind it is.

    Args:
        data: one of
            - a folder: of images or videos, in folders by class or not; where there is none, of
              WebDataset shards (.tar), of Parquet files, or what `datasets` saved there;
            - a file: an image, a video, a shard, a .parquet, or a list (.txt, .csv: a path and a
              class per line, see `papr.evaluate.lists.read_list`);
            - the address of images in object storage, see `papr.evaluate.objects`;
            - shards by a pattern or an address: `shards/{000..009}.tar`, `pipe:...`,
              `https://...`, opened by `webdataset`;
            - `hfds/NAME[/CONFIG]` or `NAME:SPLIT`, a data set of the Hugging Face hub.
            `:SPLIT` behind any of the folders takes the files of that split alone; where there are
            several, one must be named, or `:all`. `:SPLIT:LABEL` names the column of labels too.
        root: the folder that relative paths in a list start from; None for the list's own.
        image_column: the column of images, or which of a sample's files in a shard is the image
            ("jpg", "left.png"); None for the only one, or the one called image or img.
        clips: whether the host takes clips; None where that is not known yet.

    Raises:
        DataError: nothing that can be read is there, what was named may be several things, or it is
            no list and has a root.
    """
    text = str(data)
    if not text:
        raise DataError("expected the name of a folder, a file or a data set, got an empty one")
    found = _find(text, root, image_column, clips)
    if image_column is not None and (found.images is None or not _has_columns(found.images)):
        raise DataError(
            f"expected tables or shards with an image column, got {image_column!r} for {text}"
        )
    return found


def open_source(
    data: str | Path,
    classes: Classes = None,
    *,
    clips: bool = False,
    root: str | Path | None = None,
    image_column: str | None = None,
) -> Source:
    """The samples that `data` names, for a host: `find` and `Found.open` in one.

    Raises:
        DataError: see there.
    """
    found = find(data, root=root, image_column=image_column, clips=clips)
    return found.open(classes, clips)


def _has_columns(make: Maker) -> bool:
    return isinstance(getattr(make, "__self__", None), shards.Files | huggingface.Table)


def _find(text: str, root: str | Path | None, column: str | None, clips: bool | None) -> Found:
    place = None if shards.is_remote(text) else huggingface.parse_place(text)
    path = Path(text if place is None else place.name)
    listed = suffix(str(path)) in LISTS
    if root is not None and not listed:
        raise DataError(f"expected a list ({', '.join(LISTS)}) with a root, got {text}")
    if place is not None:
        if path.is_dir():
            return _find_directory(path, place, column, clips)
        found = _find_file(path, place, root, column, clips)
        if found is not None:
            return found
    elif not clips:
        if objects.is_address(text) and not shards.is_shard(text):
            return Found(text, objects.find_objects(text).open)
        if shards.names_shards(text):
            return Found(text, shards.find_files(shards.names_of(text), column).open)
        if huggingface.names_data_set(text):
            return Found(text, huggingface.find_on_hub(text, column).open)
    what = "does not exist" if place is None else "is none of these"
    kinds = "a video, a folder or a list of them" if clips else "images, shards or a data set"
    kinds = "images, videos, shards or a data set" if clips is None else kinds
    raise DataError(f"expected {kinds}, {text} {what}")


def _find_file(
    path: Path, place: Name, root: str | Path | None, column: str | None, clips: bool | None
) -> Found | None:
    kind = suffix(str(path))
    if kind == ".parquet" and not clips:
        of_split([path.name], None if place.split == "train" else place.split, path)
        return Found(str(path), huggingface.find_tables([str(path)], place, column).open)
    if place.split is not None:
        return None
    if shards.is_shard(str(path)) and not clips:
        return Found(str(path), shards.find_files([str(path)], column).open)
    if kind in LISTS:
        rows = read_list(path)
        start = path.parent if root is None else Path(root)
        check_there(path, rows, start)
        makers = [
            partial(folders.open_list, path, rows, root=start, clips=videos)
            for videos in (False, True)
        ]
        return Found(str(path), *makers)
    images, videos = (
        partial(folders.open_file, path, clips=of_clips) if kind in suffixes else None
        for of_clips, suffixes in ((False, SUFFIXES), (True, VIDEO_SUFFIXES))
    )
    if (images if clips is False else videos if clips else images or videos) is None:
        return None
    return Found(str(path), images, videos)


def _find_directory(path: Path, place: Name, column: str | None, clips: bool | None) -> Found:
    if not clips and huggingface.is_saved(path):
        return Found(str(path), huggingface.find_saved(place, column).open)
    seen = folders.walk(path)
    images, videos = (seen.of(kinds) for kinds in (SUFFIXES, VIDEO_SUFFIXES))
    if (images and not clips) or (videos and clips is not False):
        names = images if clips is False else videos if clips else [*images, *videos]
        splits = split_folders(names)
        whole = place.split == WHOLE
        if not whole and (place.split is not None or splits):
            splits = splits or _tops(names)
            inner = path / splits[one_split(splits, place.split, path)]
            return _find_directory(inner, Name(str(inner)), column, clips)
        why = "" if whole else not_by_order(names, path)
        opened = partial(folders.open_folder, path, seen=seen, unordered=why)
        makers = [
            partial(opened, clips=of_clips) if there else None
            for of_clips, there in ((False, images), (True, videos))
        ]
        return Found(str(path), *makers)
    kept = [name for name in seen.files if shards.is_shard(name)]
    tables = [name for name in seen.files if suffix(name) == ".parquet"]
    if clips or not (kept or tables):
        folders.refuse_empty(path, seen, clips)
    chosen, split = of_split(kept or tables, place.split, path)
    inside = [str(path / name) for name in chosen]
    if kept:
        about = {"split": split} if split else {}
        return Found(str(path), shards.find_files(inside, column, about).open)
    place = place._replace(split=split)
    return Found(str(path), huggingface.find_tables(inside, place, column).open)


def _tops(names: list[str]) -> dict[str, str]:
    tops = dict.fromkeys(name.partition("/")[0] for name in names if "/" in name) or [""]
    return {top: top for top in tops}
