"""What a client is given to connect with is looked at before anything is sent."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from gateway.cli import main


@pytest.mark.parametrize("content", [b"\xff\xfe\x00token", b"two\nlines", b"", b"with space"])
def test_a_file_that_holds_no_token_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "token").write_bytes(content)
    (tmp_path / "a.dcm").write_bytes(b"")
    given = ["--address", "127.0.0.1:1", "--token-file", str(tmp_path / "token")]

    ended = CliRunner().invoke(main, ["screen", str(tmp_path / "a.dcm"), *given])

    assert ended.exit_code == 2
    assert "holds no token" in ended.stderr
    assert "Traceback" not in ended.stderr
