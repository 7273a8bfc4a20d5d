"""Puts the tables of finished and unfinished studies into docs/results.md, and the short one into the README.

    python studies/publish.py runs/relearning/objects runs/relearning/styles runs/transfer …

Each argument is a folder of records, or one that holds several studies: of attacks on the same concepts a matrix comes
first. The README shows the first folder. No figure is ever typed. The records themselves go to studies/records, without
pictures: who wants to see a figure's origin, or to go on with a study, copies them back to runs/.
"""

import argparse
import re
import shutil
from pathlib import Path

import learning
from strip import strip

from immunity.records import RecordFolder, Records
from immunity.report.markdown import matrices, summary, tables

ROOT = Path(__file__).parents[1]
RECORDS = Path("studies", "records")
HEAD = """# Results

Made from `{records}`; do not edit. What each study does, and the command that repeats it, is at the head of its
file in `studies/`. The records are kept without pictures, which only a study has that you run yourself. To make of them
this page, and the whole page of one study, with its curves and every flag:

```
python studies/publish.py {folders}
immunity report {first} --out page.html
```
"""
LEARNING = """## Does every attack learn?

On the unprotected model, ten objects that it never saw (`studies/learning.py`): from 0, what it drew before, to 100%,
real pictures of the object. An attack that does not learn is no evidence.

{table}
"""
BLOCK = re.compile(r"(<!-- results -->\n).*?(<!-- end of results -->)", re.DOTALL)


def readme(records: Records, study: str) -> str:
    plan = records.plan
    drawn = ROOT / "docs" / f"{study}.png"
    shown = ""
    if strip(records, drawn) or drawn.exists():
        shown = (
            f"![each concept: base model, erased, attacked, immunized and attacked](docs/{study}.png)\n\n"
            "The same prompt and seed from each model, after the attack's last step; the first of each, nobody chose."
            "\n\n"
        )
    what = f"{len(plan.concepts)} concepts, {len(plan.seeds)} seeds"
    left = f", not finished: {len(records.missing())} cells are missing" if records.missing() else ""
    return shown + (
        f"**{plan.title}** on the embedded world ({what}{left}; `studies/{study}.py`). How much less like real "
        "pictures of the concept the attacker's are than with the undefended model, averaged over the attack, and what "
        "it costs; the world's own judges play the parts of CLIP, DINO and LPIPS:\n\n"
        f"{summary(records)}\nEach concept, with its failures and flags: [docs/results.md](docs/results.md).\n"
    )


def folders_in(folder: Path) -> list[Path]:
    """The folder itself, or the studies in it."""
    if (folder / "study.json").exists():
        return [folder]
    return sorted(file.parent for file in folder.glob("*/study.json"))


def place(study: Path) -> Path:
    """`relearning/objects`, `attacker`: the name of the study's file, and of the study where the file has several."""
    alone = (ROOT / "studies" / f"{study.name}.py").exists()
    return Path(study.name) if alone else Path(study.parent.name, study.name)


def kept(folder: Path) -> Path:
    """Where the records of one of the arguments are part of the project."""
    return RECORDS / (place(folder) if (folder / "study.json").exists() else folder.name)


def source(study: Path) -> str:
    """Which file a study is of, and which one of the file's."""
    file, *name = place(study).parts
    return f"`studies/{file}.py`" + (f", `{name[0]}`" if name else "")


def keep(folder: Path) -> None:
    """Copies a study's records to where they are part of the project."""
    for study in folders_in(folder):
        target = ROOT / RECORDS / place(study)
        for file in (study / "study.json", *study.glob("cells/*/*/*.json")):
            copy = target / file.relative_to(study)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)


def page(folder: Path) -> str:
    found = {each.name: RecordFolder(each).read() for each in folders_in(folder)}
    begun = {name: records for name, records in found.items() if records.finished}
    text = "\n".join(tables(records, source=source(records.folder)) for records in begun.values())
    if len(found) < 2 or len({records.plan.concepts for records in found.values()}) > 1:
        return text  # a matrix sets attacks on the same concepts beside each other
    over = [f"### MSGR by {metric.title}\n\n{table}" for metric, table in matrices(begun).items()]
    return "\n".join([f"## {folder.name}: all studies\n", *over, text])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="folders of records, e.g. runs/relearning/objects")
    folders = parser.parse_args().folders
    first = folders_in(folders[0])[0]
    lines = " \\\n    ".join(str(kept(folder)) for folder in folders)
    head = HEAD.format(records=RECORDS, first=kept(first), folders=lines)
    control = [LEARNING.format(table=found)] if (found := learning.table()) else []
    (ROOT / "docs" / "results.md").write_text("\n".join([head, *map(page, folders), *control]), encoding="utf-8")
    block = readme(RecordFolder(first).read(), place(first).parts[0])
    for folder in folders:
        if ROOT / RECORDS not in folder.resolve().parents:
            keep(folder)
    front = ROOT / "README.md"
    text = BLOCK.sub(lambda m: m[1] + block + m[2], front.read_text(encoding="utf-8"))
    front.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
