"""Exit statuses of commands."""

from omegaconf.errors import ConfigKeyError

from camexp.command import exit_status
from camexp.errors import CamexpError


def raising(error: BaseException):
    def command() -> int:
        raise error

    return command


def test_status_is_the_command_s_own(capsys):
    assert [exit_status(lambda status=status: status) for status in (0, 1)] == [0, 1]
    assert capsys.readouterr() == ("", "")


def test_mistakes_are_explained(capsys):
    assert exit_status(raising(CamexpError("no data"))) == 2
    assert exit_status(raising(ConfigKeyError("no such option"))) == 2
    assert capsys.readouterr() == ("", "error: no data\nerror: no such option\n")


def test_interruption_is_told(capsys):
    assert exit_status(raising(KeyboardInterrupt()), "what has come stays") == 130
    assert capsys.readouterr().err == "\nwhat has come stays\n"


def test_other_errors_end_with_their_traceback(capsys):
    assert exit_status(raising(KeyError("colour"))) == 2
    assert "Traceback" in (told := capsys.readouterr().err)
    assert "KeyError: 'colour'" in told
