"""Which method works on which family: what the contract tests ask of each pair, and docs/families.md tells.

A pair is supported unless it is here; the contract tests run every supported pair, and want "unsupported" from the
others. `python -m tests.support` writes the table into docs/families.md; a test compares the two.
"""

import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import get_args

from tests import tiny

UNSUPPORTED: Mapping[str, frozenset[str]] = {
    # Its closed form is exact only where keys and values are linear in the text features themselves.
    "Uce": frozenset(tiny.FAMILIES) - frozenset(tiny.U_NETS),
}

FAMILIES: Mapping[str, str] = {
    "sd1": "SD 1.x",
    "sd2": "SD 2.x",
    "sd2v": "SD 2.x, v-prediction",
    "sdxl": "SDXL",
    "sd3": "SD 3",
    "sd35": "SD 3.5, without T5",
    "flux": "FLUX.1, guidance-distilled",
    "schnell": "FLUX.1, not distilled",
    "pixart": "PixArt-Sigma",
}
PAGE = Path(__file__).parents[1] / "docs" / "families.md"
BEGIN, END = "<!-- begin: python -m tests.support -->", "<!-- end -->"


def supports(method: object, family: str) -> bool:
    return family not in UNSUPPORTED.get(type(method).__name__, ())


def table() -> str:
    from immunity.adaptations import AnyAdaptation
    from immunity.erasers import AnyEraser
    from immunity.immunizers import AnyImmunizer
    from immunity.poisons import AnyPoison

    heads = {
        method.__name__: kind
        for kind, union in (
            ("erase", AnyEraser),
            ("adapt", AnyAdaptation),
            ("immunize", AnyImmunizer),
            ("poison", AnyPoison),
        )
        for method in (get_args(union) if isinstance(union, types.UnionType) else (union,))
    }
    rows = [["", *FAMILIES.values()], [":--", *[":-:"] * len(FAMILIES)]]
    for method, kind in heads.items():
        cells = ("unsupported" if key in UNSUPPORTED.get(method, ()) else "yes" for key in FAMILIES)
        rows.append([f"{kind}: `{method}`", *cells])
    return "\n".join(_line(row) for row in rows)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def page() -> str:
    """The page, with the table as it should be."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
