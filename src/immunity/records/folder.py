"""A study's folder: one file for each finished cell, from which every number and page is made later.

study.json                                what is to be measured (`Plan`)
cells/<concept>/<seed>/<arm>.json         what was measured (`Cell`); its existence means that the cell is finished
cells/<concept>/<seed>/<arm>/*.png        its pictures
cells/<concept>/<seed>/<arm>~<subject>.…  the same for an attack that teaches another, benign subject
diverged/…                                cells that were tried and came to nothing (`Diverged`)
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from immunity import typed_json
from immunity.atomic import replacing
from immunity.errors import ImmunityError
from immunity.records.content import Cell, CellKey, Diverged, Plan

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 1  # of all files; raised when an older reader would misread a newer file


@dataclass(frozen=True, eq=False)
class Records:
    """A study as far as it has got."""

    folder: Path
    plan: Plan
    finished: tuple[Cell, ...]
    diverged: tuple[Diverged, ...] = ()
    """Of the cells that are missing, those that were tried."""

    @cached_property
    def cells(self) -> Mapping[CellKey, Cell]:
        return {cell.key: cell for cell in self.finished}

    def missing(self) -> tuple[CellKey, ...]:
        return tuple(key for key in self.plan.cells() if key not in self.cells)

    def picture(self, cell: Cell, name: str) -> Path:
        """Where one of the cell's pictures is. It may have been deleted since."""
        return (self.folder / _cell_path(cell.key)).parent / name


@dataclass(frozen=True)
class RecordFolder:
    """A study's folder on disk, to write to and to read from."""

    path: Path

    @classmethod
    def create(cls, path: str | Path, plan: Plan) -> "RecordFolder":
        """A folder for `plan`: a new one, or the one where the same study was interrupted.

        A plan that only adds concepts, seeds, arms or benign subjects replaces the old one; any other difference
        raises, because finished cells would then have been measured in another way than the ones to come.
        """
        folder, file = cls(Path(path)), Path(path) / "study.json"
        plan = _as_stored(plan)
        if file.exists():
            older = folder.plan()
            if older == plan:
                return folder
            if not plan.extends(older):
                changed = [f.name for f in dataclasses.fields(Plan) if getattr(plan, f.name) != getattr(older, f.name)]
                raise ImmunityError(
                    expected=f"the plan with which {path} was begun, or one that only adds to it",
                    got=f"a plan that differs in {', '.join(changed)}",
                    remedy="another folder",
                )
        _write(file, plan, "study", force=True)
        return folder

    def plan(self) -> Plan:
        file = self.path / "study.json"
        if not file.is_file():
            raise ImmunityError(
                expected="a folder of records, with a study.json",
                got=f"{self.path}",
                remedy="the folder of `immunity run`",
            )
        return typed_json.read(Plan, file, format="immunity.study", version=VERSION)

    def has(self, key: CellKey) -> bool:
        return (self.path / _cell_path(key)).is_file()

    def write(
        self, cell: Cell, pictures: "Mapping[int, Tensor] | None" = None, *, kept: int = 4, size: int = 192
    ) -> Cell:
        """Writes a finished cell and the first `kept` pictures of each step, and returns the cell with their paths.

        `pictures`: for each step, images [n, 3, h, w] in [0, 1] in the order of the cell's prompts; those larger than
        `size` pixels are made smaller. The JSON comes last, so a kill leaves the cell whole or absent.
        """
        from PIL import Image

        from immunity.pictures import to_bytes

        _check_belongs(cell, self.plan())
        file = self.path / _cell_path(cell.key)
        names: dict[int, tuple[str, ...]] = {}
        if pictures:
            with replacing(file.with_suffix(""), force=True) as temporary:
                temporary.mkdir(parents=True)
                for step, images in pictures.items():
                    pixels = to_bytes(images[:kept].detach()).permute(0, 2, 3, 1).cpu().numpy()
                    stems = [f"step-{step:06d}-{i}.png" for i in range(len(pixels))]
                    for stem, array in zip(stems, pixels, strict=True):
                        image = Image.fromarray(array)
                        image.thumbnail((size, size), Image.Resampling.LANCZOS)
                        image.save(temporary / stem, optimize=True)
                    names[step] = tuple(f"{file.stem}/{stem}" for stem in stems)
        points = tuple(dataclasses.replace(point, pictures=names.get(point.step, ())) for point in cell.points)
        cell = dataclasses.replace(cell, points=points)
        _write(file, cell, "cell")
        (self.path / _diverged_path(cell.key)).unlink(missing_ok=True)
        return cell

    def write_diverged(self, key: CellKey, what: str) -> None:
        """Writes that the cell was tried and came to nothing; `write` takes that back."""
        _write(self.path / _diverged_path(key), Diverged(**key._asdict(), what=what), "diverged", force=True)

    def read(self) -> Records:
        """All finished cells. Raises `ImmunityError`, with the file's name, for a broken or foreign file."""
        plan, cells = self.plan(), []
        for file in sorted((self.path / "cells").glob("*/*/[!.]*.json")):
            cell = typed_json.read(Cell, file, format="immunity.cell", version=VERSION)
            _check_belongs(cell, plan, file)
            if file != self.path / _cell_path(cell.key):
                raise ImmunityError(
                    expected=f"the cell {tuple(cell.key)} in {_cell_path(cell.key)}",
                    got=f"{file}",
                    remedy="moving it there",
                )
            cells.append(cell)
        files = sorted((self.path / "diverged").glob("*/*/[!.]*.json"))
        tried = [typed_json.read(Diverged, file, format="immunity.diverged", version=VERSION) for file in files]
        planned = set(plan.cells()) - {cell.key for cell in cells}
        return Records(self.path, plan, tuple(cells), tuple(each for each in tried if each.key in planned))


def _as_stored(plan: Plan) -> Plan:
    """The plan as it will be read back: JSON turns tuples inside configurations into lists."""
    content = json.loads(typed_json.dumps(plan, format="", version=VERSION))["content"]
    return typed_json.parse(Plan, content)


def _check_belongs(cell: Cell, plan: Plan, file: Path | None = None) -> None:
    names = {metric.name for metric in plan.metrics}
    at = f" in {file}" if file else ""
    for what, found, known in (
        ("concept", cell.concept, plan.concepts),
        ("seed", cell.seed, plan.seeds),
        ("arm", cell.arm, tuple(arm.name for arm in plan.arms)),
        ("subject", cell.subject, (cell.concept, *plan.benign)),
    ):
        if found not in known:
            raise ImmunityError(
                expected=f"a cell of the study: a {what} among {list(known)}",
                got=f"{found!r}{at}",
                remedy="a plan that names it, or another folder",
            )
    if cell.points[0].scores.keys() != names:
        raise ImmunityError(
            expected=f"scores of {sorted(names)}",
            got=f"{sorted(cell.points[0].scores)}{at}",
            remedy="scoring with all metrics",
        )


def _write(file: Path, content: "Plan | Cell | Diverged", kind: str, *, force: bool = False) -> None:
    with replacing(file, force=force) as temporary:
        text = typed_json.dumps(content, format=f"immunity.{kind}", version=VERSION)
        temporary.write_text(text, encoding="utf-8")


def _diverged_path(key: CellKey) -> Path:
    return Path("diverged", *_cell_path(key).parts[1:])


def _cell_path(key: CellKey) -> Path:
    stem = _file_name(key.arm) + ("" if key.subject == key.concept else f"~{_file_name(key.subject)}")
    return Path("cells", _file_name(key.concept), str(key.seed), f"{stem}.json")


def _file_name(name: str) -> str:
    """The name itself if every file system takes it; otherwise what can be kept of it and a few digits of its hash."""
    kept = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40]
    return kept if kept == name else f"{kept}-{hashlib.sha256(name.encode()).hexdigest()[:8]}".strip("-")
