import csv

import pytest

from experiments.reporting.tables import Table, escape_markdown, write_tables

HOSTILE = r"<script>alert('x')</script> {{ 7 * 7 }} & 50% of a_b | c^2 ~ \end{table} #1 $"
TABLE = Table(
    caption=f"A caption & {HOSTILE}",
    header=("policy", "score", "to mix"),
    rows=((HOSTILE, "80.1 [79.0, 81.2]", "-1.5 [-2.0, -1.0]"), ("≤ 9", "-", "+0.5 [-0.1, 1.1]")),
    name="scores",
)


def test_csv_gives_back_the_very_cells():
    assert list(csv.reader(TABLE.to_csv().splitlines())) == [list(TABLE.header), *map(list, TABLE.rows)]


def test_cells_have_no_control_characters():
    table = Table("caption", ("kind", "score"), (("\x1b[31mred\nand\u202eblue", "1"),))
    assert table.rows == ((" [31mred and blue", "1"),)


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        *[(cell, f"'{cell}") for cell in ("=1+1", "+A1", "-2+3", "@SUM(A1)", " =1", "-x", '=HYPERLINK("x")')],
        *[
            (cell, cell)
            for cell in ("-", "-1.5", "+0.5 [-0.1, 1.1]", "-0.5% [-1, 2]", "+3%", "< 0.001", "a=b", "")
        ],
    ],
)
def test_csv_holds_no_formula(cell, written):
    table = Table("caption", ("=x", "value"), ((cell, "1"),))
    assert list(csv.reader(table.to_csv().splitlines())) == [["'=x", "value"], [written, "1"]]


def test_latex_prints_text_as_it_is():
    lines = TABLE.to_latex().splitlines()
    row = next(line for line in lines if "script" in line and "caption" not in line).strip()
    assert row.startswith(
        r"\textless{}script\textgreater{}alert('x')\textless{}/script\textgreater{} \{\{ 7 * 7 \}\} \& 50\% "
        r"of a\_b \textbar{} c\textasciicircum{}2 \textasciitilde{} \textbackslash{}end\{table\} \#1 \$ & "
    )
    assert row.endswith(r"& 80.1 [79.0, 81.2] & $-$1.5 [$-$2.0, $-$1.0] \\")
    assert r"$\leq$ 9 & - & +0.5 [$-$0.1, 1.1] \\" in lines[9]
    # What is not escaped belongs to the table: two separators a row, one environment each.
    unescaped = [line.replace(r"\&", "") for line in lines if line.endswith(r"\\")]
    assert [line.count("&") for line in unescaped] == [2, 2, 2]
    assert sum(line.strip() == r"\end{table}" for line in lines) == 1
    assert r"\begin{tabular}{lrr}" in lines[4]


def test_markdown_shows_html_as_text_and_keeps_its_columns():
    lines = TABLE.to_markdown().splitlines()[2:]
    assert len(lines) == 4 and lines[1] == "| --- | ---: | ---: |"
    assert "<script" not in "".join(lines) and r"a_b \| c" in lines[2]
    assert [line.replace(r"\|", "").count("|") for line in lines] == [4] * 4


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("question_only", "question_only"),
        ("_a_ *b* `c` ~~d~~ \\", r"\_a\_ \*b\* \`c\` \~\~d\~\~ \\"),
        ("[here](http://x) ![x][y]", r"[here\](http://x) ![x\][y]"),
        ("+0.5 [-0.1, 1.1]", "+0.5 [-0.1, 1.1]"),
        ("two\nlines", "two lines"),
    ],
)
def test_markdown_shows_names_as_they_are(text, written):
    assert escape_markdown(text) == written
    assert f"\n| {written} |" in Table("caption", ("name",), ((text,),)).to_markdown()


@pytest.mark.parametrize(
    ("caption", "written"),
    [("# 1", r"\# 1"), ("- a", r"\- a"), ("1. a", r"1\. a"), ("---", r"\---"), ("2 images", "2 images")],
)
def test_a_caption_begins_no_heading_and_no_list(caption, written):
    assert Table(caption, ("name",), ()).to_markdown().splitlines()[0] == f"{written}."


def test_every_table_is_written_in_every_form(tmp_path):
    write_tables(tmp_path / "tables", [TABLE])
    assert sorted(path.name for path in (tmp_path / "tables").iterdir()) == [
        "scores.csv",
        "scores.md",
        "scores.tex",
    ]
    assert (tmp_path / "tables" / "scores.tex").read_text(encoding="utf-8") == TABLE.to_latex()


@pytest.mark.parametrize("cell", ["", "a-b", "12-14", "[1, 2]"])
def test_cells_that_could_be_taken_for_something_else(cell):
    table = Table("caption", ("name", "value"), (("x", cell),))
    assert r"\\[" not in table.to_latex() and "$-$" not in table.to_latex()
