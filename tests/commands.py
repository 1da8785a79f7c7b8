"""What a command prints: where it ends well, and where it tells a user's mistake in one line."""

from onestep_bench.cli import main


def told(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def complaint(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("onestep-bench: error: ")
    assert error.count("\n") == 1
    return error
