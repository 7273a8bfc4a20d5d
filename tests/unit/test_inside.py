"""Which links lead out of a folder."""

import pytest

from immunity import ImmunityError
from immunity.inside import check_all_inside


@pytest.fixture
def snapshot(tmp_path):
    """As the hub's cache has it: links to the files beside the snapshots."""
    repository = tmp_path / "models--a--b"
    (repository / "blobs").mkdir(parents=True)
    (repository / "blobs" / "0").touch()
    folder = repository / "snapshots" / "main" / "dog"
    folder.mkdir(parents=True)
    (folder / "0.png").symlink_to("../../../blobs/0")
    return folder


def test_the_hubs_cache_and_the_folders_in_it(snapshot):
    check_all_inside(snapshot.parent)
    check_all_inside(snapshot)


@pytest.mark.parametrize("target", ["secret", "models--a--b/secret", "models--a--c/blobs/0", "blobs/0"])
def test_links_to_anything_but_the_caches_own_files(snapshot, tmp_path, target):
    (tmp_path / target).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / target).touch()
    (snapshot / "1.png").symlink_to(tmp_path / target)
    for folder in (snapshot, snapshot.parent):
        with pytest.raises(ImmunityError, match="a link to"):
            check_all_inside(folder)


def test_a_folder_that_is_no_cache_has_no_exception(snapshot, tmp_path):
    other = tmp_path / "dog"
    other.mkdir()
    (other / "0.png").symlink_to(snapshot / "0.png")
    with pytest.raises(ImmunityError, match="a link to"):
        check_all_inside(other)
