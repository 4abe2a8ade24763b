"""The command line's tables, at the widths that people have."""

import pytest

from optserve.cli.common import print_table

ID = "0123456789abcdef0123456789abcdef"
COLUMNS = ("id", "made", "label", "used")
ROWS = [(ID, "2026-07-01 12:00", "the second loop of mine, with another seed", "2026-07-02 13:00")]


@pytest.fixture
def printed(monkeypatch, capsys):
    """Prints a table on a terminal of so many columns, or (None) into a pipe: its lines, and what went to stderr."""

    def printed(width, **options):
        monkeypatch.delenv("COLUMNS", raising=False)
        if width is not None:
            monkeypatch.setenv("COLUMNS", str(width))
            monkeypatch.setenv("TTY_COMPATIBLE", "1")
        monkeypatch.setenv("NO_COLOR", "1")
        monkeypatch.setenv("TERM", "vt100")
        print_table(COLUMNS, ROWS, unbroken=("id", "made", "used"), **options)
        out, err = capsys.readouterr()
        return out, err

    return printed


def test_in_a_pipe_a_row_is_one_line(printed):
    out, err = printed(None, dispensable=("used", "made"))
    assert [line.split()[0] for line in out.splitlines()] == ["id", ID]
    assert all(cell in out.splitlines()[1] for cell in ROWS[0])
    assert err == ""


def test_on_a_narrow_terminal_ids_and_times_stay_whole(printed):
    out, err = printed(80, dispensable=("used", "made"))
    assert ID in out
    assert "2026-07-01 12:00" in out
    assert "2026-07-02" not in out
    assert max(map(len, out.splitlines()[1:])) <= 80
    assert "without: used;" in err
    label = "".join(line[len(ID) + 2 + 16 + 2 :].strip() for line in out.splitlines()[1:])
    assert label.replace(" ", "") == ROWS[0][2].replace(" ", "")


def test_what_is_unbroken_is_whole_at_any_width(printed):
    out, _ = printed(30)
    for cell in (ID, "2026-07-01 12:00", "2026-07-02 13:00"):
        assert cell in out


def test_two_columns_may_have_one_name(capsys):
    print_table(("", "lstm@1", "lstm@1"), [("hidden_size", 20, 40)])
    assert capsys.readouterr().out.split() == ["lstm@1", "lstm@1", "hidden_size", "20", "40"]
