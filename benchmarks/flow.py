"""The whole flow at Stable Diffusion 1.x's size, a few steps each, and how much memory each verb takes.

    python benchmarks/flow.py --size small              (a minute: does it run?)
    python benchmarks/flow.py --publish                 (Stable Diffusion 1.x's shape, 512 px; half an hour on a CPU)

Weights are random, so nothing is learned; what is asked is whether each verb ends, and inside how much memory. Each is
a process of its own, as for a user.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import results
import shapes

LIMIT = 24 * 2**30
"""Bytes, of a machine that people have."""


def verbs(model: Path, work: Path, steps: int, dtype: str) -> Iterator[tuple[str, list[str]]]:
    """Each verb's name, and its command line."""
    erased, immune, attack = work / "erased.safetensors", work / "immune.safetensors", work / "attack"
    common = ["--model", str(model), "--dtype", dtype]
    pictures, prompt = work / "pictures", "image of a church"
    learn = ["--images", str(pictures), "--prompt", prompt]
    few = ["--steps", str(steps)]
    ask = ["--prompt", prompt, "--count", "2", "--steps", "4"]
    yield "sample", ["sample", *common, *ask, "--out", str(pictures)]
    esd = ["esd", *few, "--sampler-steps", "4", "--states-per-run", "2"]
    yield "erase: ESD", ["erase", *common, "--concept", "church", "--out", str(erased), *esd]
    deltas = ["--deltas", str(erased)]
    imma = ["imma", *few, "--against", "lora"]
    yield "immunize: IMMA against LoRA", ["immunize", *common, *deltas, *learn, "--out", str(immune), *imma]
    deltas.append(str(immune))
    yield "adapt: LoRA", ["adapt", *common, *deltas, *learn, "--out", str(attack), "lora", *few]
    deltas.append(str(attack))
    yield "sample the attack", ["sample", *common, *deltas, *ask, "--out", str(work / "after")]
    yield "export", ["export", *common, *deltas[:3], "--out", str(work / "release")]


def run(command: list[str]) -> tuple[float, int]:
    """Seconds, and the peak of resident memory in bytes."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "immunity", *command])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"immunity {command[0]} ended with {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - start, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("small", "sd1"), default="sd1")
    parser.add_argument("--pixels", type=int, default=512)
    parser.add_argument("--steps", type=int, default=2, help="of each training")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--publish", action="store_true", help=results.PUBLISH)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "immunity-benchmarks")
    options = parser.parse_args()
    model = shapes.folder_of(options.size, options.cache, pixels=options.pixels)
    rows = []
    with tempfile.TemporaryDirectory() as work:
        for name, command in verbs(model, Path(work), options.steps, options.dtype):
            seconds, peak = run(command)
            rows.append({"verb": name, "seconds": seconds, "peak_bytes": peak})
            print(f"{name}: {seconds:.0f} s, {peak / 2**30:.1f} GiB", flush=True)
    found = {
        "kind": "flow",
        **{key: getattr(options, key) for key in ("size", "pixels", "dtype", "steps")},
        "rows": rows,
    }
    if options.publish:
        results.publish(found)
    print(json.dumps(found, indent=1))
    if max(row["peak_bytes"] for row in rows) > LIMIT:
        raise SystemExit(f"more than {LIMIT / 2**30:.0f} GiB")


if __name__ == "__main__":
    main()
