from pathlib import Path

from fedh2l_mpi.runtime.logs import RunLog, log


def test_a_log_on_a_full_disk_is_said_once_and_ends_nothing(capsys):
    with RunLog() as run_log:
        run_log.open(Path("/dev/full"), rank=0, size=1, prints=True)
        log.info("the first line")
        log.info("the second line")
    printed = capsys.readouterr()
    assert [line.split(" ", 3)[3] for line in printed.out.splitlines()] == ["the first line", "the second line"]
    assert printed.err.splitlines() == [
        "fedh2l_mpi: warning: the log /dev/full cannot be written: No space left on device"
    ]


def test_what_is_logged_before_the_file_exists_comes_first_in_it(tmp_path):
    path = tmp_path / "rank-0000.log"
    with RunLog() as run_log:
        log.info("before the file exists")
        run_log.open(path, rank=0, size=1, prints=False)
        log.info("after")
    assert [line.split(" ", 3)[3] for line in path.read_text().splitlines()] == ["before the file exists", "after"]
