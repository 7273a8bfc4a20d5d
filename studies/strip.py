"""One picture of what a study saw: the same prompts and seeds, from each model, for all concepts side by side.

The first seed and the first picture of each concept: nobody chose them. Used by `publish.py`.
"""

from pathlib import Path

from immunity.records import CellKey, Records

LABEL, GAP, SCALE = 132, 4, 1.25


def strip(records: Records, target: Path) -> bool:
    """Writes a PNG; False where pictures are missing, as they are beside the records that are kept."""
    from PIL import Image, ImageDraw, ImageFont

    plan = records.plan
    rows = [
        *[(arm, {"base": "base model", "erased": "erased"}[arm.role], 0) for arm in plan.with_role("base", "erased")],
        *[(arm, "… then attacked", -1) for arm in plan.with_role("control")],
        (plan.with_role("defended")[0], "immunized, attacked", -1),
    ]
    files = []
    for arm, label, point in rows:
        cells = [records.cells.get(CellKey(name, plan.seeds[0], arm.name, name)) for name in plan.concepts]
        kept = [(cell, cell.points[point].pictures[:1]) for cell in cells if cell is not None]
        files.append((label, [records.picture(cell, name) for cell, names in kept for name in names]))
    if not all(len(row) == len(plan.concepts) and all(file.exists() for file in row) for _, row in files):
        return False
    with Image.open(files[0][1][0]) as first:
        side = round(first.width * SCALE)
    sheet = Image.new("RGB", (LABEL + len(plan.concepts) * (side + GAP), len(files) * (side + GAP) + 20), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for column, name in enumerate(plan.concepts):
        draw.text((LABEL + column * (side + GAP) + side / 2, 10), name, fill="black", font=font, anchor="mm")
    for row, (label, pictures) in enumerate(files):
        top = 20 + row * (side + GAP)
        draw.text((0, top + side / 2), label, fill="black", font=font, anchor="lm")
        for column, file in enumerate(pictures):
            with Image.open(file) as picture:
                enlarged = picture.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(enlarged, (LABEL + column * (side + GAP), top))
    target.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(target)
    return True
