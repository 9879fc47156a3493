"""What pruning is worth on a GPU, in the few minutes that a borrowed card is there.

It prints and stores as it goes, the most important first, and leaves out what no longer fits into
--minutes. In bfloat16: ViT-B and L at batch 256, 32, 8 and 1, eager, compiled and in CUDA graphs.
Beside the dense host stand papr with its proposal's time, the limit (as many tokens, chosen at no
cost: "limit"), papr with scores that lie ready ("unlooked"), the dense host at the resolution with
as many tokens, ToMe of equal GMACs, other proposals, and the proposal alone; `gpu_rows.PLAN` says
which of them where. Then Swin-B, ConvNeXt-B, VideoMAE-B; the kernels that take longest; the
contract tests on the device.

    python benchmarks/gpu.py                # into benchmarks/results/gpu-DEVICE.json
    python benchmarks/gpu.py --tiny         # whether all that works, on a CPU; stores no result
"""

import argparse
import importlib.util
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from common import HERE, RESULTS, report
from gpu_rows import (
    PLAN,
    PROFILED,
    TINY_PLAN,
    TINY_PROFILED,
    Cell,
    draw,
    longest,
    make_host,
    make_rival,
    measure,
)
from papr.environment import describe_device, pick_device
from papr.errors import PaprError, one_line
from papr.files import write_json

#: Seconds of the budget that profiles and tests may have for themselves.
RESERVED = 120
#: Seconds that a rival takes: first guesses, until one was measured.
GUESSED = {"eager": 1.5, "compiled": 20.0, "graphs": 20.0}
#: What runs on the device at the end.
TESTS = ("tests/test_contract.py", "tests/test_pyramid.py", "tests/test_merging.py")
ONE_TEST = ("tests/test_contract.py", "-k", "keep_one and augreg and not merged")
_SUMMARY = re.compile(r"^=*\s*(\d+ (?:passed|failed|skipped|error).*?)\s*=*$", re.MULTILINE)


@dataclass
class Run:
    """What is found, on the disk after every step.

    Attributes:
        path: where.
        device: what is measured on.
        tiny: whether the hosts are too small for the figures to mean anything.
        end: when the budget is used up, of time.monotonic.
        found: so far.
    """

    path: Path
    device: torch.device
    tiny: bool
    end: float
    found: dict[str, list] = field(
        default_factory=lambda: {"rows": [], "profiles": [], "tests": [], "left_out": []}
    )

    @property
    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self.end - time.monotonic()

    def store(self, kind: str, what: dict[str, object]) -> None:
        """Add one finding and write all of them, in one step."""
        self.found[kind].append(what)
        facts = {"tiny": self.tiny, "dtype": "bfloat16", "weights": "random"}
        write_json(self.path, report(self.device, **facts, **self.found))

    def leave_out(self, what: object, why: str) -> None:
        """Say and store that something was not measured."""
        print(f"left out: {what}: {why}", flush=True)
        self.store("left_out", {"what": str(what), "why": why})


def slug(name: str) -> str:
    """A device's name for a file's: "NVIDIA H100 80GB HBM3" is h100-80gb-hbm3."""
    words = re.findall(r"[a-z0-9]+", name.lower())
    return "-".join(word for word in words if word != "nvidia")


def time_cells(run: Run, plan: tuple[Cell, ...], rounds: tuple[int, int], reserved: float) -> None:
    """The rows, one host in memory at a time; those of one host in a row share it."""
    name, dense = "", nn.Module()
    guessed = dict(GUESSED)
    for cell in plan:
        needed = guessed[cell.mode] * cell.weight * (len(cell.rivals) + 1)
        if needed > run.left - reserved:
            run.leave_out(cell, f"needs about {needed:.0f} s, {run.left:.0f} s are left")
            continue
        start = time.monotonic()
        try:
            if name != cell.host:
                dense = make_host(cell.host).to(device=run.device, dtype=torch.bfloat16)
                name = cell.host
            row = measure(cell, dense, rounds[0] if cell.batch > 100 else rounds[1])
        except (PaprError, torch.OutOfMemoryError) as error:
            run.leave_out(cell, one_line(error))
            continue
        took = time.monotonic() - start
        guessed[cell.mode] = took / cell.weight / (len(cell.rivals) + 1)
        run.store("rows", row)
        show(cell, row, took)


def show(cell: Cell, row: dict, took: float) -> None:
    """Print a row: a line for each rival."""
    print(f"\n{cell} ({took:.0f} s)")
    for name, (middle, low, high) in row["speedup"].items():
        print(f"  {name:26} {row['ms'][name][0]:9.3f} ms  {middle:.3f}x ({low:.3f}-{high:.3f})")
    for name, why in row["left_out"].items():
        print(f"  {name:26} left out: {why}")
    if row.get("graphs_skipped"):
        print(f"  {row['graphs_skipped']} without graphs: see TORCH_LOGS=cudagraphs")
    sys.stdout.flush()


@torch.inference_mode()
def profiles(run: Run, which: tuple[tuple[str, int, str], ...]) -> None:
    """The longest kernels, dense and pruned, in eager code."""
    for name, batch, rival in which:
        if run.left < 15 and not run.tiny:
            run.leave_out(f"profile of {name}", "no time is left")
            continue
        dense = make_host(name).to(device=run.device, dtype=torch.bfloat16)
        pixels = draw(dense, batch)
        for what, module in (("dense", dense), (rival, make_rival(rival, dense, pixels))):
            seen = longest(module, pixels)
            run.store("profiles", {"host": name, "batch": batch, "what": what, **seen})
            print(
                f"\n{name}, batch {batch}, {what}: {seen['kernels']} kernels, {seen['ms']:.2f} ms"
            )
            for kernel in seen["longest"]:
                print(
                    f"  {kernel['ms']:8.3f} ms {kernel['share']:5.1%} {kernel['calls']:4} x "
                    f"{kernel['name'][:80]}"
                )


def contract_tests(run: Run, arguments: tuple[str, ...]) -> None:
    """Run tests on the device, in a process of their own, for as long as there is time."""
    seconds = 900.0 if run.tiny else run.left
    if seconds < 30:
        run.leave_out("contract tests", "no time is left")
        return
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    if importlib.util.find_spec("xdist") and not run.tiny:
        command += ["-n", str(min(8, os.cpu_count() or 1))]
    environ = {**os.environ, "PAPR_TEST_DEVICE": run.device.type}
    try:
        done = subprocess.run(
            command, cwd=HERE.parent, env=environ, timeout=seconds, capture_output=True, text=True
        )
    except subprocess.TimeoutExpired:
        run.leave_out("contract tests", f"not through after {seconds:.0f} s")
        return
    said = _SUMMARY.findall(done.stdout)
    summary = said[-1] if said else f"pytest ended with {done.returncode}: {done.stderr[-300:]}"
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    run.store("tests", {"what": list(arguments), "summary": summary, "failed": failed})
    print(f"\ncontract tests on {run.device.type}: {summary}")
    print("\n".join(failed), flush=True)


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--minutes", type=float, default=8, help="how long it may take")
    options.add_argument("--tiny", action="store_true", help="tiny hosts, on any device")
    options.add_argument("--json", type=Path, help="where the result is written")
    args = options.parse_args()
    device = pick_device("auto")
    if device.type != "cuda" and not args.tiny:
        sys.exit(f"expected a CUDA device, got {device.type}: --tiny runs anywhere")
    name = describe_device(device)
    path = args.json or RESULTS / f"gpu-{slug(name)}.json"
    if args.tiny and args.json is None:
        path = Path(tempfile.mkdtemp()) / "gpu-tiny.json"
    minutes = math.inf if args.tiny else args.minutes  # tiny takes one, on a slow machine more
    run = Run(path, device, args.tiny, time.monotonic() + 60 * minutes)
    print(f"{name}, torch {torch.__version__}, written to {path}")
    if args.tiny:
        time_cells(run, TINY_PLAN, (1, 1), 0)
        profiles(run, TINY_PROFILED)
        contract_tests(run, ONE_TEST)
    else:
        time_cells(run, PLAN, (11, 41), RESERVED)
        profiles(run, PROFILED)
        contract_tests(run, TESTS)
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
