"""`papr reproduce`: the paper's tables, ours beside the published figures."""

import sys
from typing import Annotated, Any

import typer

from papr.cli.common import print_line
from papr.cli.hosting import (
    BatchSize,
    Device,
    ImageColumn,
    JsonFile,
    Limit,
    RandomWeights,
    ReproduceFolder,
    Workers,
    find_data,
)
from papr.errors import ConfigError
from papr.files import check_file, check_folder, write_json


def reproduce(
    table: Annotated[
        str | None, typer.Argument(help="Such as augreg; without one, all are listed.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what is needed and check GMACs; download nothing."),
    ] = False,
    data: Annotated[
        str | None, typer.Option(help="ImageNet-1k or Kinetics-400 validation; see --dry-run.")
    ] = None,
    image_column: ImageColumn = None,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FILE, of hosts whose weights no library has; repeat for more."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Only this host of the table.")
    ] = None,
    proposal: Annotated[
        str | None, typer.Option(help="Who looks instead of the paper's proposal.")
    ] = None,
    random_weights: RandomWeights = False,
    limit: Limit = None,
    out_dir: ReproduceFolder = None,
    batch: BatchSize = None,
    workers: Workers = None,
    device: Device = "auto",
    json_file: JsonFile = None,
) -> None:
    """Run the paper's tables again, in reference mode, and print ours beside what it published.

    --dry-run needs neither weights nor data: it counts every row's multiply-accumulates with random
    weights and compares them with the printed ones, row by row with the tolerance, and says which
    weights and which data the accuracies need, and where to put them. Its exit status is 1 where a
    count differs by more.

    With --data it evaluates every row: images with the shorter side resized to 224 px and the
    centre cropped, as in the paper. A run that was killed is taken up by the same command.

    Example: papr reproduce augreg --dry-run

    Example: papr reproduce mae --model vit_base_patch16_224 --data imagenet/val --checkpoint
    vit_base_patch16_224=mae_finetuned_vit_base.pth
    """
    from papr.cli import reproduced  # needs the extra `eval`
    from papr.evaluate.recipes import find_recipe

    if table is None:
        reproduced.list_tables()
        return
    recipe = find_recipe(table)
    files = reproduced.read_checkpoints(recipe, checkpoint)
    check_file(json_file, "--json")
    report: dict[str, Any] = {"command": " ".join(["papr", *sys.argv[1:]]), "table": table}
    reproduced.title(recipe)
    if dry_run:
        report |= reproduced.dry_run(recipe, files, data)
    elif data is None:
        raise ConfigError("expected --data DIR to run on, or --dry-run to see what is needed")
    else:
        if out_dir is not None:
            check_folder(out_dir, "--out")
        wanted = reproduced.Wanted(
            find_data(data, image_column=image_column),
            out_dir,
            model,
            random_weights,
            proposal,
            limit,
            device,
            batch,
            workers,
        )
        report |= reproduced.run(recipe, files, wanted)
    if json_file is not None:
        write_json(json_file, report)
        print_line(f"written to {json_file}")
    if not all(row["agrees"] for row in report.get("counts", ())):
        raise typer.Exit(1)
