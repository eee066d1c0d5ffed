"""Where a quoted field that seems to run over lines is one record, and where it is a quote that was never closed."""

from __future__ import annotations

import pytest

from features.reading.quoted_records import UNCLOSED, Record, RecordReader


def first_record(num_fields: int, *lines: bytes, learnt: bytes = b"x,x,x") -> Record:
    reader = RecordReader(b",", b'"', num_fields)
    reader.learn([learnt])
    starts, ends, place = [], [], 0
    for line in lines:
        starts.append(place)
        ends.append(place + len(line))
        place = ends[-1] + 1
    return reader.read(b"".join(line + b"\n" for line in lines), starts, ends, 0, final=True)


def test_of_two_texts_a_line_with_a_comma_may_be_prose() -> None:
    """The second line would be a record by itself, but so would any sentence with one comma."""
    record = first_record(2, b'"', b',",a"', learnt=b"x,x")
    assert (record.fields, record.lines) == ([b"\n,", b'a"'], 2)


@pytest.mark.parametrize("between", [[], [b"p,q,r"], [b"p,q,r", b"s,t,u"]])
def test_of_three_texts_lines_that_are_records_are_not_taken_in(between: list[bytes]) -> None:
    record = first_record(3, b'a,"', *between, b',,",a"')
    assert (record.fields, record.lines, record.reason) == (None, 1, UNCLOSED)


def test_of_three_texts_a_line_that_is_no_record_is_taken_in() -> None:
    record = first_record(3, b'a,"', b"prose, with one comma", b',,",a"')
    assert (record.fields, record.lines) == ([b"a", b"\nprose, with one comma\n,,", b'a"'], 3)


def test_where_others_have_numbers_prose_with_commas_is_taken_in() -> None:
    """Three fields of which the last is a number: a line of three texts is no record, one with a number is."""
    record = first_record(3, b'a,"p', b'q,r,s",7', learnt=b"x,x,1")
    assert (record.fields, record.lines) == ([b"a", b"p\nq,r,s", b"7"], 2)
    record = first_record(3, b'a,"p', b"q,r,5", b's",7', learnt=b"x,x,1")
    assert (record.fields, record.reason) == (None, UNCLOSED)
