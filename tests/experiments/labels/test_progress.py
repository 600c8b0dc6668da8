"""Progress in a log file: lines, each with another count, and no more than two in half a minute."""

from experiments.labels.progress import show_progress


def test_a_log_file_has_a_line_for_the_start_and_the_end(capsys):
    with show_progress("small on scenes", total=300, unit="samples", initial=100) as progress:
        for _ in range(100):
            progress.update(2)
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("small on scenes: 100 of 300 samples, 00:00 elapsed")
    assert last.startswith("small on scenes: 300 of 300 samples, 00:0") and last.endswith(" samples/s")
