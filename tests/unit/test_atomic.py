from pathlib import Path

import pytest

from immunity import ImmunityError
from immunity.atomic import replacing


def test_a_file_appears_only_when_the_block_succeeds(tmp_path):
    target = tmp_path / "new" / "result.json"
    with replacing(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary.suffix == ".json"
        temporary.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert list(target.parent.iterdir()) == [target]


def test_a_failure_leaves_the_old_file_and_no_litter(tmp_path):
    target = tmp_path / "result.json"
    target.write_text("old")
    with pytest.raises(RuntimeError), replacing(target, force=True) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_an_existing_path_is_refused_without_force(tmp_path):
    with pytest.raises(ImmunityError, match="does not exist yet"), replacing(tmp_path):
        pass


@pytest.mark.parametrize("path", [".", "..", "/", "there/.."])
def test_a_path_without_a_name_is_refused(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImmunityError, match="ends in a name"), replacing(path, force=True):
        pass


def test_a_folder_with_content_is_replaced_whole(tmp_path):
    target = tmp_path / "folder"
    target.mkdir()
    (target / "old").touch()
    with replacing(target, force=True) as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
    assert [path.name for path in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]


def test_a_place_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ImmunityError, match="able to write"), replacing(tmp_path / "file" / "result.json"):
        pass


def test_a_full_disk_is_one_clear_line(tmp_path):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full on this system")
    with pytest.raises(ImmunityError, match="No space left"), replacing(tmp_path / "result"):
        full.write_text("content")


def test_what_was_written_privately_gets_the_usual_permissions(tmp_path):
    (tmp_path / "usual").touch()
    usual = (tmp_path / "usual").stat().st_mode
    with replacing(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "weights.safetensors").touch(mode=0o600)
    with replacing(tmp_path / "file.safetensors") as temporary:
        temporary.touch(mode=0o600)
    assert (tmp_path / "folder" / "weights.safetensors").stat().st_mode == usual
    assert (tmp_path / "file.safetensors").stat().st_mode == usual
    assert {path.name for path in tmp_path.iterdir()} == {"usual", "folder", "file.safetensors"}
