"""Speed and memory of the package's loops, as ratios to the straightforward ones, side by side.

    python benchmarks/run.py --size small                    (a minute: does it run?)
    python benchmarks/run.py --size sd1 --out sd1.json       (Stable Diffusion 1.x's shape, 512 px; an hour on a CPU)
    make bench                                               (the embedded world; published in docs/benchmarks.md)

Each side is a process of its own; they take turns step by step, so that whatever else the machine does hits both. A
figure is the median over steps after the first, which warms up (for ESD, whose steps differ in length, the mean);
memory is the peak of a process after loading.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import results
import shapes
import sides


def worker(options: argparse.Namespace) -> None:
    """One side: a line of JSON after each step, and then a wait for a line."""
    import torch

    from immunity.evaluation.machine import PeakMemory

    folder = shapes.folder_of(options.size, options.cache, pixels=options.pixels)
    state: dict[str, Any] = {"since": time.perf_counter(), "memory": None}

    def gate() -> None:
        if options.device == "cuda":
            torch.cuda.synchronize()
        took = time.perf_counter() - state["since"]
        if state["memory"] is None:  # after the first step, when everything is loaded and encoded
            state["memory"] = PeakMemory(torch.device(options.device))
        print(json.dumps({"seconds": took, "peak": state["memory"].bytes()}), flush=True)
        sys.stdin.readline()
        state["since"] = time.perf_counter()

    common = {"steps": options.steps, "batch": options.batch, "device": options.device, "gate": gate}
    if options.worker == "ours":
        chosen = {"dtype": options.dtype, "concepts": options.concepts, "checkpointing": options.checkpointing}
        sides.ours(options.operation, folder, **chosen, **common)
    else:
        sides.plain(options.operation, folder, **common)


def measure(
    operation: str, options: argparse.Namespace, *, compared: Sequence[str] = ("plain", "ours")
) -> dict[str, Any]:
    """Both sides, in turn; or one."""
    command = [sys.executable, __file__, "--size", options.size, "--pixels", str(options.pixels), "--batch"]
    command += [str(options.batch), "--steps", str(options.steps), "--dtype", options.dtype, "--device", options.device]
    command += ["--concepts", str(options.concepts), "--cache", str(options.cache), "--operation", operation]
    command += ["--checkpointing"] if options.checkpointing else []
    processes = {
        side: subprocess.Popen([*command, "--worker", side], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for side in compared
    }
    found: dict[str, list[dict[str, float]]] = {side: [] for side in processes}
    try:
        for step in range(options.steps):
            for side, process in processes.items():
                assert process.stdin is not None
                assert process.stdout is not None
                if step:
                    process.stdin.write("go\n")
                    process.stdin.flush()
                line = process.stdout.readline()
                if not line:
                    raise SystemExit(f"{operation}, {side}: ended with {process.wait()} after {step} steps")
                found[side].append(json.loads(line))
    finally:  # the other side too where one has failed
        for process in processes.values():
            process.kill()
    result: dict[str, Any] = {"operation": operation}
    for side, rows in found.items():
        seconds = [row["seconds"] for row in rows[1:]]
        result[side] = {
            "seconds": (statistics.mean if operation.startswith("esd") else statistics.median)(seconds),
            "all": seconds,
            "peak_bytes": max(row["peak"] for row in rows),
        }
    if len(compared) == 2:
        result["faster"] = result["plain"]["seconds"] / result["ours"]["seconds"]
        result["memory"] = result["ours"]["peak_bytes"] / result["plain"]["peak_bytes"]
    return result


GROWTH = (
    ("picture size", "imma", ({"pixels": 256}, {"pixels": 512})),
    ("batch", "imma", ({"pixels": 256}, {"pixels": 256, "batch": 2}, {"pixels": 256, "batch": 4})),
    (
        "number of concepts",
        "esd-shared",
        ({"pixels": 256}, {"pixels": 256, "concepts": 4}, {"pixels": 256, "concepts": 16}),
    ),
    ("checkpointing", "imma", ({}, {"checkpointing": True})),
)
"""What cost depends on, and the settings that show it, each on top of the command line's."""


def growth(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Our side alone, one setting after the other."""
    rows = []
    one_size = options.size == "emoji"
    for what, operation, settings in GROWTH:
        if one_size and what == "picture size":
            continue
        for setting in settings:
            chosen = argparse.Namespace(**{**vars(options), **setting})
            if one_size:
                chosen.pixels = options.pixels
            shapes.folder_of(chosen.size, chosen.cache, pixels=chosen.pixels)
            found = measure(operation, chosen, compared=("ours",))["ours"]
            size = f"{chosen.pixels} px, batch {chosen.batch}, concepts {chosen.concepts}"
            size += ", checkpointing" if chosen.checkpointing else ""
            rows.append({"what": what, "operation": operation, "setting": size, **found})
            print(f"{what}: {operation}, {size}: {found['seconds']:.3g} s", file=sys.stderr, flush=True)
    return rows


def profile(options: argparse.Namespace) -> dict[str, float]:
    """The share of an IMMA iteration's time that goes to each kind of operation, our side."""
    from torch import profiler

    folder = shapes.folder_of(options.size, options.cache, pixels=options.pixels)
    kinds = profiler.ProfilerActivity
    activities = [kinds.CPU, *([kinds.CUDA] if options.device == "cuda" else [])]
    with profiler.profile(activities=activities, schedule=profiler.schedule(wait=1, warmup=1, active=2)) as watched:
        common = {"batch": options.batch, "dtype": options.dtype, "device": options.device}
        sides.ours("imma", folder, steps=4, gate=watched.step, concepts=1, **common)
    taken: Counter[str] = Counter()
    for event in watched.key_averages():
        own = event.self_device_time_total if options.device == "cuda" else event.self_cpu_time_total
        taken[_kind(event.key)] += own
    total = sum(taken.values())
    return {kind: own / total for kind, own in taken.most_common()}


KINDS = (
    ("convolutions", ("conv",)),
    ("attention", ("attention", "flash")),
    ("matrix products", ("mm", "linear", "matmul")),
    ("optimizer and clipping", ("adam", "foreach", "vector_norm")),
    ("normalisation", ("norm",)),
    ("activations", ("silu", "gelu", "sigmoid", "softmax")),
    ("copies and casts", ("copy", "clone", "cat", "contiguous", "empty", "zero", "fill")),
)
"""Kinds of operations, by what their names have in them; the first that fits."""


def _kind(name: str) -> str:
    plain = name.lower().removeprefix("aten::")
    return next((kind for kind, words in KINDS if any(word in plain for word in words)), "the rest")


def matmul_rate(dtype: str, device: str, size: int = 2048) -> float:
    """Operations a second of a square matrix product, the best of several."""
    import torch

    a = torch.randn(size, size, device=device).to(getattr(torch, dtype))
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        (a @ a).sum().item()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def denoiser_flops(options: argparse.Namespace) -> dict[str, float]:
    """Of one picture, forward alone and with the way back to the activations; counted, not run."""
    import torch
    from diffusers import UNet2DConditionModel
    from torch.utils.flop_counter import FlopCounterMode

    folder = shapes.folder_of(options.size, options.cache, pixels=options.pixels)
    config = UNet2DConditionModel.load_config(folder / "unet")
    side = options.pixels // 8 if options.size != "emoji" else config["sample_size"]
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config).requires_grad_(requires_grad=False)
        picture = torch.randn(1, 4, side, side, requires_grad=True)
        with FlopCounterMode(display=False) as counter:
            out = unet(picture, torch.ones(1), torch.randn(1, 77, config["cross_attention_dim"])).sample
            forward = float(counter.get_total_flops())
            out.sum().backward()
    return {"forward": forward, "forward_and_back": float(counter.get_total_flops())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("small", "sd1", "emoji"), default="small")
    parser.add_argument("--pixels", type=int, default=512, help="of pictures; the embedded world has its own")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=9, help="timed steps of each side, the first not counted")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of our side's weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--concepts", type=int, default=1, help="erased at once by ESD")
    parser.add_argument("--checkpointing", action="store_true", help="on our side of lora and imma")
    parser.add_argument("--growth", action="store_true", help="also by picture size, batch, number of concepts, …")
    parser.add_argument("--profile", action="store_true", help="also where the time of an IMMA iteration goes")
    parser.add_argument("--only", choices=sides.OPERATIONS, nargs="*", default=sides.OPERATIONS)
    parser.add_argument("--out", type=Path, help="JSON to write")
    parser.add_argument("--publish", action="store_true", help=results.PUBLISH)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "immunity-benchmarks")
    parser.add_argument("--operation", help=argparse.SUPPRESS)
    parser.add_argument("--worker", choices=("plain", "ours"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options)
        return
    import torch

    from immunity.evaluation.machine import machine

    if options.size == "emoji":
        from immunity import World

        options.pixels = World.open("emoji").resolution
    shapes.folder_of(options.size, options.cache, pixels=options.pixels)
    found = {
        "kind": "speed",
        "size": options.size,
        "pixels": options.pixels,
        "batch": options.batch,
        "dtype": options.dtype,
        "machine": machine(torch.device(options.device)),
        "torch": torch.__version__,
        "matmul": matmul_rate(options.dtype, options.device),
        "flops": denoiser_flops(options),
        "operations": [],
    }
    for operation in options.only:
        found["operations"].append(measure(operation, options))
        print(results.speed(found), flush=True)
    if options.growth:
        found["growth"] = growth(options)
    if options.profile:
        found["profile"] = profile(options)
    if options.growth or options.profile:
        print(results.speed(found), flush=True)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1))
    if options.publish:
        results.publish(found)


if __name__ == "__main__":
    main()
