"""The CSV of subjects: where it is found, how it is read, what is refused (its uses: the sources' tests)."""

import pytest

from biofound.data.sources.subjects import find_subjects
from biofound.errors import DataError, SettingsError


def find(root, given=None, *, record_is_subject=False):
    return find_subjects(
        root, given, record_is_subject=record_is_subject, source="own", columns=("take", "record")
    )


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_the_file_given_comes_before_the_one_in_the_root(tmp_path):
    assert find(tmp_path) is None
    write(tmp_path / "subjects.csv", "record,subject\nr1,ann\n")
    given = write(tmp_path / "who.csv", "record,subject\nr1,bob\n")
    assert find(tmp_path) == {"r1": "ann"}
    assert find(tmp_path, given) == find(None, given) == {"r1": "bob"}
    assert find(None) is None


def test_spreadsheets_are_read_as_they_are_saved(tmp_path):
    write(tmp_path / "subjects.csv", "\ufeffsubject,record\r\n\r\nJörg , r1\r\nJörg,r2 \r\n")
    assert find(tmp_path) == {"r1": "Jörg", "r2": "Jörg"}


def test_the_first_name_of_the_column_that_is_there_counts(tmp_path):
    write(tmp_path / "subjects.csv", "record,take,subject\nr1,t1,ann\n")
    assert find(tmp_path) == {"t1": "ann"}


def test_the_line_of_an_error_is_the_files(tmp_path):
    write(tmp_path / "subjects.csv", 'record,subject,note\nr1,ann,"two\nlines"\n\nr2\n')
    with pytest.raises(DataError, match=r"subjects\.csv:5: .*'r2'"):
        find(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "take and subject.*none"),
        ("record,who\nr1,ann\n", "record and subject.*record, who"),
        ("name,subject\nr1,ann\n", "take and subject.*name, subject"),
        ("record,subject\n", "record and subject.*none"),
        (b"record,subject\nr1,J\xf6rg\n", "utf-8"),
        ("take,record,subject\nt1,r1,\n", ":2: .*take and subject.*'t1'"),
        ("record,subject\nr1,ann\nr1,bob\n", ":3: .*r1.*ann.*bob"),
    ],
)
def test_what_is_no_table_of_subjects_is_refused(tmp_path, content, words):
    write(tmp_path / "subjects.csv", content)
    with pytest.raises(DataError, match=rf"subjects\.csv.*{words}"):
        find(tmp_path)


def test_a_file_given_must_be_there(tmp_path):
    with pytest.raises(DataError, match=r"gone\.csv"):
        find(tmp_path, tmp_path / "gone.csv")


def test_a_recording_is_no_subject_where_a_file_says_who_was_recorded(tmp_path):
    assert find(tmp_path, record_is_subject=True) is None
    write(tmp_path / "subjects.csv", "record,subject\nr1,ann\n")
    with pytest.raises(SettingsError, match=r"own source: .*subjects\.csv.*record_is_subject"):
        find(tmp_path, record_is_subject=True)
