"""Lines that are remarks: passed over where the recipe declares what they begin with, and never guessed."""

from pathlib import Path

import pytest

from features.reading import ROW, TextFormat, open_text
from recsys.contracts.errors import DataError


def opened(tmp_path: Path, content: bytes, text: TextFormat | None = None):
    path = tmp_path / "log.csv"
    path.write_bytes(content)
    return open_text([path], tmp_path, text)


REMARKS = b'# made by the shop\n#\na,b\n1,x\n# a remark, with three, fields\n#2,y\n3,"so\n# no remark"\n#'


def test_declared_comments_are_passed_over_and_counted(tmp_path: Path) -> None:
    """Six lines begin with '#': one of them stands inside of quotes, so five are remarks."""
    table = opened(tmp_path, REMARKS, TextFormat(comment="#"))
    found = table.collect(["a", "b"])
    assert found.select("a", "b").rows() == [("1", "x"), ("3", "so\n# no remark")]
    assert found[ROW].to_list() == [3, 6]
    assert table.notes == {"comment_lines": 5, "records_over_several_lines": 1}


def test_only_the_whole_prefix_makes_a_comment(tmp_path: Path) -> None:
    table = opened(tmp_path, b"a::b\n//x::1\n/y::2\n// z\n", TextFormat(separator="::", comment="//"))
    assert table.collect(["a", "b"]).select("a", "b").rows() == [("/y", "2")]
    assert table.notes == {"comment_lines": 2}


def test_comments_before_data_whose_header_is_declared(tmp_path: Path) -> None:
    table = opened(tmp_path, b"% x\n1,2\n", TextFormat(comment="%", header=("a", "b")))
    assert table.collect(["a", "b"]).select("a", "b").rows() == [("1", "2")]


def test_an_id_may_begin_with_a_number_sign_where_no_comment_is_declared(tmp_path: Path) -> None:
    table = opened(tmp_path, b"tag,item\n#fun,1\n# a,2\n")
    assert table.collect(["tag"])["tag"].to_list() == ["#fun", "# a"]


def test_a_long_comment_before_the_header_is_read_to_its_end(tmp_path: Path) -> None:
    table = opened(tmp_path, b"# words of a licence\n" * 10_000 + b"a,b\n1,2\n", TextFormat(comment="#"))
    assert table.collect(["a"])["a"].to_list() == ["1"]
    assert table.notes == {"comment_lines": 10_000}


@pytest.mark.parametrize(
    ("content", "comment", "message"),
    [
        (b"# made by the shop\na,b\n1,2\n", None, r"begins with '# made by the shop'.* set source.comment: '#'"),
        (b"# made by a, b, and c\na,b\n1,2\n", None, r"looks like a comment and is no header"),
        (b"# one\n# two\n", "#", r"all of its first lines are comments or blank; check source.comment"),
    ],
)
def test_a_comment_is_no_header(tmp_path: Path, content: bytes, comment: str | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        opened(tmp_path, content, TextFormat(comment=comment))


def test_a_header_may_begin_with_a_number_sign(tmp_path: Path) -> None:
    assert list(opened(tmp_path, b'#a,b\n1,"2,3"\n1,2\n').schema) == ["#a", "b"]


@pytest.mark.parametrize("comment", ["#\n", "x,", '"'])
def test_a_prefix_that_cannot_be_one_is_refused(comment: str) -> None:
    with pytest.raises(ValueError, match="comment"):
        TextFormat(comment=comment)
