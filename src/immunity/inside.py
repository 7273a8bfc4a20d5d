"""Links that lead out of a folder: opening somebody else's folder must not read, or publish, one's own files."""

from pathlib import Path

from immunity.errors import ImmunityError


def check_inside(path: Path, folder: Path) -> None:
    """Raises `ImmunityError` if `path`, in `folder`, is a link to somewhere else.

    The hub's cache is the exception: its snapshots, and the folders in them, consist of links to the files beside them.
    """
    target, root = path.resolve(), folder.resolve()
    if target.is_relative_to(root):
        return
    if any(target.is_relative_to(one.with_name("blobs")) for one in root.parents if one.name == "snapshots"):
        return
    raise ImmunityError(
        expected=f"files of {folder} itself",
        got=f"{path}, a link to {target}",
        remedy="putting the file itself in its place, if it is meant",
    )


def check_all_inside(folder: Path) -> None:
    """`check_inside` for everything in the folder."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            check_inside(path, folder)
