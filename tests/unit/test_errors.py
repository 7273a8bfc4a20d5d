from immunity import ImmunityError


def test_the_text_is_one_line_with_all_three_parts():
    error = ImmunityError(expected="a\nfolder", got="  a   file", remedy="another\tpath")
    assert str(error) == "expected a folder; got a file; try another path"
