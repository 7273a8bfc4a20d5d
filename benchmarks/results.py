"""What was measured, as JSON that is kept and as the page that is made of it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
KEPT, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "benchmarks.md"
PUBLISH = "keep the figures in benchmarks/results and make docs/benchmarks.md anew of all that are there"
HEAD = """# Speed and memory

Made by `benchmarks/run.py` and `benchmarks/flow.py` from `benchmarks/results`; do not edit. Both sides of a ratio ran
in turn, step by step, on one machine. What "straightforward" means is written in `benchmarks/sides.py`; it is always in
float32. A step of esd begins with a run of the sampler up to a random time; in esd-shared four of our training steps
share a run (`states_per_run=4`, not the default). On both sides ESD's sampler has 12 steps here, where the default is
50. Why the ratios are what they are is in `docs/design.md`.

"""


def publish(found: Mapping[str, Any]) -> None:
    """Keeps one run's figures in place of an earlier run's of the same settings, and makes the page.

    What an earlier run on the same machine measured and this one did not is kept, with that run's rate of matrix
    products: each figure of a row is of one run.
    """
    name = "-".join(str(found[key]) for key in ("kind", "size", "pixels", "dtype") if key in found)
    KEPT.mkdir(exist_ok=True)
    file = KEPT / f"{name}.json"
    if file.exists() and found["kind"] == "speed":
        found = _together(json.loads(file.read_text(encoding="utf-8")), found)
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    kept = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(KEPT.glob("*.json"))]
    sections = {"speed": speed, "flow": flow}
    PAGE.write_text(HEAD + "\n".join(sections[each["kind"]](each) for each in kept), encoding="utf-8")


def _together(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> Mapping[str, Any]:
    if any(earlier[key] != now[key] for key in ("machine", "torch", "batch")):
        return now
    runs = (earlier, now)
    rows = {row["operation"]: {"matmul": run["matmul"], **row} for run in runs for row in run["operations"]}
    return {**earlier, **now, "operations": list(rows.values())}


def flow(found: Mapping[str, Any]) -> str:
    """One run of `flow.py`. Times stay in the JSON: nothing ran beside it that they could be compared with."""
    setting = f"{found['size']}, {found['pixels']} px, {found['dtype']}, {found['steps']} steps of each training"
    lines = [
        f"## The whole flow: {setting}\n",
        "| verb | peak memory of the process |",
        "|---|---|",
    ]
    lines += [f"| {row['verb']} | {row['peak_bytes'] / 2**30:.1f} GiB |" for row in found["rows"]]
    return "\n".join(lines) + "\n"


def speed(found: Mapping[str, Any]) -> str:
    """One run of `run.py`."""
    lines = [
        f"## {found['size']}, {found['pixels']} px, batch {found['batch']}, ours in {found['dtype']}\n",
        f"{found['machine']}; PyTorch {found['torch']}. Matrix products: {found['matmul'] / 1e9:.0f} GFLOP/s in "
        f"{found['dtype']}. A pass of the denoiser: {found['flops']['forward'] / 1e9:.1f} GFLOP a picture, "
        f"with the way back to the activations {found['flops']['forward_and_back'] / 1e9:.1f}.\n",
        "| a step of | straightforward | ours | faster | peak memory | of the matmul rate |",
        "|---|---|---|---|---|---|",
    ]
    forward, both = found["flops"]["forward"], found["flops"]["forward_and_back"]
    needed = {"lora": both, "imma": both, "sample": 2 * forward}  # for a picture; samples with and without a prompt
    for row in found["operations"]:
        name, rate = row["operation"], "—"
        if name in needed:
            work = needed[name] * found["batch"] / row["ours"]["seconds"]
            rate = f"{work / row.get('matmul', found['matmul']):.0%}"
        lines.append(
            f"| {name} | {row['plain']['seconds']:.3g} s, {row['plain']['peak_bytes'] / 2**30:.1f} GiB | "
            f"{row['ours']['seconds']:.3g} s, {row['ours']['peak_bytes'] / 2**30:.1f} GiB | {row['faster']:.1f}× | "
            f"{row['memory']:.0%} | {rate} |"
        )
    if "growth" in found:
        lines += [
            "\nHow our side's cost grows, in seconds a step:\n",
            "| with | a step of | setting | seconds | peak |",
        ]
        lines += ["|---|---|---|---|---|"]
        for row in found["growth"]:
            peak = f"{row['peak_bytes'] / 2**30:.1f} GiB"
            lines.append(f"| {row['what']} | {row['operation']} | {row['setting']} | {row['seconds']:.3g} | {peak} |")
    if "profile" in found:
        shares = ", ".join(f"{kind} {share:.0%}" for kind, share in found["profile"].items() if share >= 0.01)
        lines.append(f"\nWhere an IMMA iteration's time goes on our side: {shares}.")
    return "\n".join(lines) + "\n"
