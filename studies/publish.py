"""Puts the tables of finished and unfinished studies into docs/results.md, and the short one into the README.

    python studies/publish.py runs/relearning/objects runs/relearning/styles …

Each argument is a folder of records. The first is the one that the README shows. No figure is ever typed.
"""

import argparse
import re
from pathlib import Path

from immunity.evaluation.markdown import summary, tables
from immunity.evaluation.records import RecordFolder, Records

ROOT = Path(__file__).parents[1]
HEAD = """# Results

Made by `python studies/publish.py {folders}` from the records of these studies; do not edit. What each one
does, and the command that repeats it, is at the head of its file in `studies/`. Whole pages, with pictures and curves:
`immunity report FOLDER --out page.html`.
"""
BLOCK = re.compile(r"(<!-- results -->\n).*?(<!-- end of results -->)", re.DOTALL)


def readme(records: Records, study: str) -> str:
    plan = records.plan
    what = f"{len(plan.concepts)} concepts, {len(plan.seeds)} seeds"
    left = f", not finished: {len(records.missing())} cells are missing" if records.missing() else ""
    return (
        f"**{plan.title}** on the embedded world ({what}{left}; `studies/{study}.py`). How much less of the concept "
        "the attacker gets than from the undefended model, averaged over the attack, and what it costs:\n\n"
        f"{summary(records)}\nEach concept, with its failures and flags: [docs/results.md](docs/results.md).\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="folders of records, e.g. runs/relearning/objects")
    folders = parser.parse_args().folders
    found = [RecordFolder(folder).read() for folder in folders]
    head = HEAD.format(folders=" ".join(map(str, folders)))
    (ROOT / "docs" / "results.md").write_text("\n".join([head, *map(tables, found)]), encoding="utf-8")
    page = ROOT / "README.md"
    study = folders[0].name if (ROOT / "studies" / f"{folders[0].name}.py").exists() else folders[0].parent.name
    block = readme(found[0], study)
    text = BLOCK.sub(lambda m: m[1] + block + m[2], page.read_text(encoding="utf-8"))
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
