"""`make audit`: which of the packages in this environment have known holes, by pip-audit, which asks a public database.

It wants a network. What could not be asked about is said, and is not the same as "nothing is known".
"""

import json
import subprocess
import sys
import sysconfig
from typing import Any


def judge(report: dict[str, Any], own: frozenset[str] = frozenset({"moa"})) -> tuple[list[str], int]:
    """pip-audit's report in lines for people, and the exit code: 0 = nothing is known of any package, 1 = holes are
    known, 2 = some could not be asked about. `own`: packages that no database knows."""
    lines, holes, unknown = [], 0, []
    for one in report["dependencies"]:
        if "skip_reason" in one:
            unknown += [] if one["name"] in own else [one["name"]]
            continue
        for hole in one["vulns"]:
            holes += 1
            mended = f"mended in {', '.join(hole['fix_versions'])}" if hole["fix_versions"] else "not mended yet"
            lines.append(f"{one['name']} {one['version']}: {hole['id']}, {mended}")
    asked = len(report["dependencies"]) - len(unknown)
    lines.append(f"{asked} packages were asked about: {holes or 'no'} known holes.")
    if unknown:
        some = ", ".join(unknown[:5]) + (", …" if len(unknown) > 5 else "")
        lines.append(
            f"{len(unknown)} could not be asked about ({some}): is the database in reach? The audit needs a network."
        )
    return lines, 1 if holes else 2 if unknown else 0


def main(program: str) -> int:
    """Audit the environment of this Python with the pip-audit at `program`."""
    command = [program, "--progress-spinner=off", "--format=json", "--path", sysconfig.get_path("purelib")]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        report = json.loads(done.stdout)
    except ValueError:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        print(f"moa: the database of known holes could not be asked ({said[:300]}): the audit needs a network.")
        return 2
    lines, code = judge(report)
    print("\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
