"""Puts the figures of finished and unfinished studies into docs/results.md and docs/results, and the short into README.

    python studies/publish.py runs/relearning/objects runs/relearning/styles runs/transfer …

Each argument is a folder of records, or one that holds several studies. The README shows the first. No figure is
typed, but in what the head of a study says it showed, which is quoted. The records themselves go to studies/records,
without pictures: who wants to see a figure's origin, or to go on with a study, copies them back to runs/. Pictures are
drawn where the folder has them, and else left as they are.
"""

import argparse
import ast
import functools
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import attacker
import learning
from drawn import across, along, choices, curves, strip

from immunity import load
from immunity.records import RecordFolder, Records
from immunity.report.markdown import LEGEND, matrices, setting, summary, tables

ROOT = Path(__file__).parents[1]
RECORDS = Path("studies", "records")
HEAD = """# Results

Made from `{records}`; do not edit. What each study does, what it showed, and the command that repeats it are at the
head of its file in `studies/`. All are of the embedded world, whose vendors, sets of emoji by one hand each, play the
artists; more words are in `docs/guide.md`. The records are kept without pictures, which only a study has that you run
yourself. To make of them this page, and the whole page of one study, with every curve and flag:

```
python studies/publish.py {folders}
immunity report {first} --out page.html
```

{legend}"""
LEARNING = """## Does every attack learn?

On the unprotected model, ten objects that it never saw (`studies/learning.py`): from 0, what it drew before, to 100%,
real pictures of the object. An attack that does not learn is no evidence.

{table}
"""
NOBODY_CHOSE = (
    "*The same prompt and seed from each model, after the attack's last step where nothing else is said: always the "
    "first picture.*"
)
BLOCK = re.compile(r"(<!-- results -->\n).*?(<!-- end of results -->)", re.DOTALL)


def readme(records: Records, study: str) -> str:
    plan = records.plan
    drawn = ROOT / "docs" / f"{study}.png"
    shown = ""
    if strip(records, drawn, arms=plan.with_role("defended")[:1]) or drawn.exists():
        shown = (
            f"![each concept: base model, erased, attacked, immunized and attacked](docs/{study}.png)\n\n"
            "The same prompt and seed from each model, after the attack's last step: always the first picture.\n\n"
        )
    what = f"{len(plan.concepts)} concepts, {len(plan.seeds)} seeds"
    left = f", not finished: {len(records.missing())} cells are missing" if records.missing() else ""
    earlier = f"{each}\n" if (each := of_an_earlier_world(records)) else ""
    return shown + (
        f"{earlier}**{plan.title}** on the embedded world ({what}{left}; `studies/{study}.py`). How much less like "
        "real pictures of the concept the attacker's are than with the undefended model, averaged over the attack and "
        "the concepts (MSGR, the mean similarity gap ratio of the paper), and what that costs; the world's own judges "
        f"play the parts of CLIP, DINO and LPIPS:\n\n{summary(records)}\n"
        "The last line is what a defence would score if the attack did nothing at all. *Before* and *at the end* are "
        "the gap at the attack's start and at its last step; *gained* is how much similarity the attack adds, as a "
        "share of what it adds without the defence: at 100% the model learns as much, from further behind "
        "(`studies/erased_again.py` compares that with a second erasure). *Clear of zero*: of so many concepts the "
        "interval of every similarity is. *Others lose*: points of the classifier's accuracy on other concepts. "
        "*Harmless SGR*: the same gap for something unrelated that the model is taught, by a longer attack; it should "
        "be zero. *Void*, where a table says so: the figure means something else. Each concept, with its failures and "
        "flags, and the other studies: [docs/results.md](docs/results.md).\n"
    )


@functools.cache
def _present_world() -> str:
    return load("emoji").base_hash


def of_an_earlier_world(records: Records) -> str:
    """A warning, where the world has been trained anew since: the command would give other figures now."""
    run = records.finished[0].run
    if run.base != "emoji" or run.base_hash == _present_world():
        return ""
    return (
        f"**Measured with an earlier version of the world** (`{run.base_hash[:12]}`), not with the "
        f"one that ships now (`{_present_world()[:12]}`). To be measured again.\n"
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
        for file in (study / "study.json", *study.glob("cells/*/*/*.json"), *study.glob("diverged/*/*/*.json")):
            copy = target / file.relative_to(study)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)


def section(folder: Path) -> str:
    """What docs/results.md says of one of the arguments. Its tables of each concept go to a page of their own."""
    where = kept(folder).relative_to(RECORDS)
    name = "-".join(where.parts)
    found = {each.name: RecordFolder(each).read() for each in folders_in(folder)}
    begun = {study: records for study, records in found.items() if records.finished}
    if not begun:
        return ""
    details = ROOT / "docs" / "results" / f"{name}.md"
    details.parent.mkdir(exist_ok=True)
    each_table = [tables(records, source=source(records.folder), legend=False) for records in begun.values()]
    details.write_text("\n".join([f"# {name}: each concept\n", LEGEND, *each_table]), encoding="utf-8")
    alone = len(found) == 1
    title = next(iter(begun.values())).plan.title if alone else _said(where.parts[0])[0].removesuffix(".")
    if alone:
        about = [setting(records, source(records.folder)) for records in begun.values()]
    else:
        left = sum(len(records.missing()) for records in found.values())
        unfinished = f" Not finished: {left} cells are missing." if left else ""
        about = [f"Studies: `studies/{where.parts[0]}.py`, {', '.join(f'`{study}`' for study in begun)}.{unfinished}\n"]
    whole = len(where.parts) == 1  # and not one of several studies that a file speaks of together
    earlier = filter(None, [of_an_earlier_world(next(iter(begun.values())))])
    showed = [f"> {text}\n" for text in _said(where.parts[0]) if whole and text.startswith("What it showed")]
    link = f"[Each concept, with verdicts and flags](results/{details.name}).\n"
    parts = [f"## {title}\n", *earlier, *about, *showed, *pictures(name, begun), *figures(begun), link]
    return "\n".join(parts)


def pictures(name: str, studies: Mapping[str, Records]) -> list[str]:
    """Links to what was drawn of the studies, now or before."""

    def linked(kind: str, alt: str, draw: Callable[[Path], object]) -> list[str]:
        file = ROOT / "docs" / "results" / f"{name}{kind}.png"
        draw(file)
        return [f"![{alt}](results/{file.name})\n"] if file.exists() else []

    if name == "attacker":
        ordered = {study: studies[study] for axis in attacker.AXES.values() for study in axis if study in studies}
        shown = linked("", "each attack, without and with IMMA", lambda file: across(ordered, file))
        drawn = linked("-axes", "MSGR and steps, axis by axis", lambda file: choices(attacker.AXES, studies, file))
        return [*shown, f"{NOBODY_CHOSE}\n", *drawn]
    if _is_matrix(studies):
        shown = linked("", "each attack on each defence", lambda file: across(studies, file))
        return [*shown, f"{NOBODY_CHOSE}\n"] if shown else []
    shown = []
    for study, records in studies.items():
        kind, alt = "" if len(studies) == 1 else f"-{study}", f"each concept, from every model: {records.plan.title}"
        shown += linked(kind, alt, functools.partial(strip, records))
        if records.plan.with_role("baseline"):
            alt = f"along the attack, each model: {records.plan.title}"
            shown += linked(f"{kind}-along", alt, functools.partial(along, records))
    drawn = linked("-curves", "scores along the attack", lambda file: curves(studies, file))
    return [*shown, *([f"{NOBODY_CHOSE}\n"] if shown else []), *drawn]


def figures(studies: Mapping[str, Records]) -> list[str]:
    if len(studies) == 1:
        return [summary(records) for records in studies.values()]
    if _is_matrix(studies):
        tables_of = [f"**MSGR by {metric.title}**\n\n{table}" for metric, table in matrices(studies).items()]
        metric, last = next(iter(matrices(studies, at_the_end=True).items()))
        return [*tables_of, f"**The same at the attack's last step, by {metric.title}**\n\n{last}"]
    return [f"**{records.plan.title}**\n\n{summary(records)}" for records in studies.values()]


def _is_matrix(studies: Mapping[str, Records]) -> bool:
    """A matrix sets attacks on the same concepts beside each other."""
    return len(studies) > 3 and len({records.plan.concepts for records in studies.values()}) == 1


def _said(study: str) -> list[str]:
    """The paragraphs of what the study's file says of itself, each in one line."""
    text = ast.get_docstring(ast.parse((ROOT / "studies" / f"{study}.py").read_text(encoding="utf-8"))) or study
    return [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="folders of records, e.g. runs/relearning/objects")
    folders = parser.parse_args().folders
    first = folders_in(folders[0])[0]
    lines = " \\\n    ".join(str(kept(folder)) for folder in folders)
    head = HEAD.format(records=RECORDS, first=kept(first), folders=lines, legend=LEGEND)
    control = [LEARNING.format(table=found)] if (found := learning.table(_present_world())) else []
    (ROOT / "docs" / "results.md").write_text("\n".join([head, *map(section, folders), *control]), encoding="utf-8")
    block = readme(RecordFolder(first).read(), place(first).parts[0])
    for folder in folders:
        if ROOT / RECORDS not in folder.resolve().parents:
            keep(folder)
    front = ROOT / "README.md"
    text = BLOCK.sub(lambda m: m[1] + block + m[2], front.read_text(encoding="utf-8"))
    front.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
