"""CSV and TSV files, as spreadsheets write them and as they are damaged by hand."""

import csv
import gzip
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gram_jax.data.csv_rows import csv_rows
from gram_jax.data.reading import read_records
from gram_jax.data.sources import read_rows
from gram_jax.errors import DataError

GOOD = 'prompt,chosen,rejected\nWhy?,"good, very",bad\n'


def read(tmp_path, text: str | bytes, name: str = "pairs.csv", kind: str = "preference", **options):
    path = tmp_path / name
    data = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return read_records(path, kind, **options)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.csv", GOOD),
        ("p.csv", b"\xef\xbb\xbf" + GOOD.encode()),
        ("p.csv.gz", GOOD),
        ("p.csv", GOOD.replace("\n", "\r\n")),
        ("p.csv", 'prompt;chosen;rejected\nWhy?;"good, very";bad\n'),
        ("p.tsv", "prompt\tchosen\trejected\nWhy?\tgood, very\tbad\n"),
        ("p.csv", '\n\n Prompt , CHOSEN,Rejected ,,\n,,,,\nWhy?,"good, very",bad,,\n\n'),
        ("p.csv", 'Rejected,notes,Chosen,Prompt\nbad,"line\nbreak","good, very",Why?\n'),
    ],
)
def test_a_table_is_read_as_it_is_meant(tmp_path, name, text):
    (record,), _ = read(tmp_path, text, name)
    said = (record.prompt[0].content, record.chosen, record.rejected)
    assert said == ("Why?", "good, very", "bad")


def test_a_column_without_a_name_is_reported(tmp_path):
    (record,), report = read(tmp_path, ",prompt,chosen,rejected,\n7,Why?,good,bad,\n")
    assert (record.chosen, report.unread) == ("good", ("Unnamed: 0",))


def test_labels_and_numbers(tmp_path):
    rows = "Prompt,Response A,Response B,Label,Margin\nq,x,y,A,0.5\nq,x,z,b > a,\nq,v,w,tie,1\nq,a,c,,\n"
    found, report = read(tmp_path, rows, on_bad="skip")
    assert [(r.first, r.second, r.label, r.margin) for r in found] == [
        ("x", "y", 0, 0.5),
        ("x", "z", 1, None),
        ("v", "w", "tie", 1.0),
    ]
    assert report.dropped == {"bad row": 1}
    pairs, _ = read(tmp_path, rows, kind="pair")
    assert len(pairs) == 4
    with pytest.raises(DataError, match=r"line 2.*label.*a or first.*'2'"):
        read(tmp_path, "prompt,response_a,response_b,label\nq,x,y,2\n")
    (second,), _ = read(tmp_path, "Question,Response A,Response B,Winner\nq,x,y,1\n")
    assert second.chosen == "y"
    with pytest.raises(DataError, match=r"margin.*finite number.*'much'"):
        read(tmp_path, "prompt,chosen,rejected,margin\nq,x,y,much\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prompt,chosen,rejected\nWhy?,good, very,bad\n", "line 2: expected 3 cells, found 4"),
        ('prompt,chosen,rejected\nq,"good" very,bad\n', "line 2.*quote"),
        ('prompt,chosen,rejected\nq,"good,bad\nq,a,b\n', "line 2, .* line 3: unexp"),
        ("prompt,chosen,prompt\nq,a,b\n", "two columns are called 'prompt'"),
        ("prompt,chosen,rejected\nq,a\n", "line 2: expected 3 cells, found 2"),
        (GOOD.encode("utf-16"), "expected UTF-8 text, found UTF-16.*iconv -f UTF-16 "),
        ("prompt,chosen,rejected\nq,caf\xe9,b\n".encode("cp1252"), 'save it as "CSV UTF-8".*iconv'),
        ("Question,Better,Worse\nq,a,b\n", "no known schema has these fields: question"),
        ("Prompt,Response A,Response B,Best\nq,x,y,A\n", 'a field label with "A", "B" or "tie"'),
        ("", "is empty"),
        ("prompt,chosen,rejected\n", "is empty"),
        (b"\x00\x01\x02,\x00\n\x00,\x01\n", "no known schema"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path, text, said):
    with pytest.raises(DataError, match=said):
        read(tmp_path, text)


def test_a_short_or_long_row_can_be_skipped(tmp_path):
    found, report = read(tmp_path, GOOD + "q,a,b,c\nr,s\nr,s,t\n", on_bad="skip")
    assert [record.chosen for record in found] == ["good, very", "s"]
    assert report.dropped == {"bad row": 2}


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), min_size=1)


@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=5), st.sampled_from(",;\t|"))
def test_what_the_standard_library_writes_comes_back(rows, delimiter):
    kept = [row for row in rows if any(cell.strip() for cell in row)]
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerows([("prompt", "chosen"), *rows])
    file = io.BytesIO(text.getvalue().encode())
    found = [(cells["prompt"], cells["chosen"]) for _, cells, _ in csv_rows(file, tabs=False)]
    assert found == kept


def test_the_lines_are_those_of_an_editor(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('prompt,chosen\n"a\nb",c\nd,e\n')
    assert [row.where for row in read_rows(path)] == ["x.csv, line 2", "x.csv, line 4"]
