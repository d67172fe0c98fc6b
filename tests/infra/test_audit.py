"""What pip-audit reports, told truly: silence about a package that nobody could be asked about is no good news."""

import json
import sys
from pathlib import Path

import pytest

from infra.audit import judge, main

FINE = {"name": "rich", "version": "15.0.0", "vulns": []}
BROKEN = {
    "name": "urllib3",
    "version": "2.0.0",
    "vulns": [{"id": "PYSEC-2023-192", "fix_versions": ["2.0.6"], "aliases": [], "description": "…"}],
}
UNKNOWN = {"name": "tqdm", "skip_reason": "Dependency not found and could not be audited: tqdm (4.70.1)"}
OWN = {"name": "moa", "skip_reason": "Dependency not found and could not be audited: moa (0.1.0)"}


@pytest.mark.parametrize(
    ("found", "code", "says"),
    [
        ([FINE, OWN], 0, "no known holes"),
        ([FINE, BROKEN, UNKNOWN], 1, "urllib3 2.0.0: PYSEC-2023-192, mended in 2.0.6"),
        ([FINE, UNKNOWN], 2, "1 could not be asked about (tqdm)"),
    ],
)
def test_the_exit_code_says_what_is_known(found: list[dict[str, object]], code: int, says: str) -> None:
    lines, got = judge({"dependencies": found})
    assert got == code and says in "\n".join(lines)


def test_a_tool_that_reaches_nobody_is_not_a_clean_bill(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tool := tmp_path / "pip-audit").write_text(f"#!{sys.executable}\nimport sys; sys.exit('no route to host')\n")
    tool.chmod(0o755)
    assert main(str(tool)) == 2 and "no route to host" in capsys.readouterr().out
    tool.write_text(f"#!{sys.executable}\nprint({json.dumps(json.dumps({'dependencies': [FINE]}))})\n")
    assert main(str(tool)) == 0
