"""`moa pull` and `moa releases …` as people and programs call them."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows import cli

REPOSITORY = Path(__file__).parents[2]
DATA = Path(__file__).parents[1] / "data"
Moa = Callable[..., tuple[int, str, str]]


@pytest.fixture
def moa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Moa:
    """A command in a workspace with three releases: exit code, output, errors."""
    shutil.copytree(DATA / "registry-1", tmp_path / "workspace" / "store")
    monkeypatch.setenv("MOA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str, workspace: bool = True) -> tuple[int, str, str]:
        command = [*arguments, *(("--workspace", str(tmp_path / "workspace")) if workspace else ())]
        monkeypatch.setattr(sys, "argv", ["moa", *command])
        code = cli._run()
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def as_json(answer: tuple[int, str, str]) -> Any:
    assert answer[0] == 0 and answer[2] == "", answer
    return json.loads(answer[1])


def test_pull_says_where_it_is(moa: Moa, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    code, out, err = moa("pull", "production", str(folder))
    assert (code, err) == (0, "") and "Release 3 (" in out and f"is in {folder}, every digest verified" in out
    assert (folder / "adapter.safetensors").is_file()
    assert "nothing to fetch" in moa("pull", "moa", str(folder))[1]
    assert moa("pull", "moa@3", str(folder), "--quiet") == (0, f"{folder}\n", "")
    code, out, err = moa("pull", "2", "--quiet")
    assert Path(out.strip()).name.startswith("moa-0002-") and (code, err) == (0, "")
    assert as_json(moa("pull", "2", "--json"))["fetched"] == 0
    code, out, err = moa("pull", "2", str(folder))
    assert code == 2 and err.startswith("moa: ") and err.count("\n") == 1 and "--update" in err and out == ""
    assert moa("pull", "2", str(folder), "--update")[0] == 0
    assert as_json(moa("pull", f"{tmp_path}/workspace/store/moa@1", "--json"))["number"] == 1
    assert moa("pull", "moa@1", "--offline", "--quiet")[0] == 0


def test_what_is_not_there_is_one_sentence(moa: Moa, tmp_path: Path) -> None:
    for arguments, says in (
        (("pull", "staging2"), "choose production, staging, 1, 2, 3"),
        (("pull", "moa@9"), "no release 9 of moa"),
        (("pull", "../x"), "nothing has been published"),
        (("pull", "Moa@1"), "names no release"),
        (("pull", "other@1"), "nothing has been published here yet as other"),
        (("releases", "show", "9"), "no release 9"),
        (("releases", "promote", "2", "--why", "x"), "--override"),
        (("releases", "promote", "2"), "--override"),
        (("releases", "promote", "3"), "--why"),
        (("releases", "promote", "3", "--why", "x", "--name", "Not A Name"), "cannot name a release"),
        (("releases", "rollback", "--why", "x", "--name", "staging"), "no earlier"),
        (("releases", "export", "3", str(tmp_path)), "not an empty folder"),
        (("releases", "nothing"), "nothing"),
    ):
        code, out, err = moa(*arguments)
        assert code == 2 and out == "" and err.startswith("moa: ") and err.count("\n") == 1 and says in err, arguments


def test_releases_are_listed_shown_and_compared(moa: Moa) -> None:
    code, out, _ = moa("releases")
    assert code == 0 and out == moa("releases", "list")[1]
    assert all(text in out for text in ("moa@3", "production", "staging", "refused", "non-commercial data"))
    assert [row["number"] for row in as_json(moa("releases", "--json"))] == [3, 2, 1]
    code, out, _ = moa("releases", "show", "moa@production")
    assert code == 0 and all(
        text in out for text in ("moa@3 (", "gate: passed", "identity", "the measure is wrong", "ann@")
    )
    assert as_json(moa("releases", "show", "2", "--json"))["gate"] == "refused"
    code, out, _ = moa("releases", "diff", "1", "3")
    assert code == 0 and all(text in out for text in ("moa@1", "moa@3", "train.seed", "adapter.safetensors"))
    assert as_json(moa("releases", "diff", "1", "3", "--json"))["same_evaluation"] is True


def test_names_move_and_go_back(moa: Moa) -> None:
    code, out, _ = moa("releases", "promote", "moa@2", "--why", "we like it", "--override", "the measure is wrong")
    assert (code, out.startswith("production points at release 2 (")) == (0, True)
    assert "production against the gate: the measure is wrong" in moa("releases")[1]
    assert moa("releases", "promote", "2", "--name", "mine", "--override", "I say so")[0] == 0
    assert "I say so" in moa("releases", "show", "2")[1]
    assert as_json(moa("releases", "promote", "1", "--why", "x", "--name", "old", "--json"))["release"] == 1
    move = as_json(moa("releases", "rollback", "--why", "it was worse", "--json"))
    assert (move["release"], move["why"]) == (3, "it was worse") and move["who"] and move["when"]
    assert as_json(moa("pull", "moa@production", "--json"))["number"] == 3


def test_damage_is_found_mended_and_said(moa: Moa, tmp_path: Path) -> None:
    assert moa("releases", "verify")[:2] == (0, "Nothing is damaged.\n")
    moa("pull", "1", str(tmp_path / "one"))
    blobs = [path for path in (tmp_path / "workspace" / "store" / "blobs").rglob("*") if path.is_file()]
    for path in blobs:
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    code, out, _ = moa("releases", "verify", "1", "--json")
    assert code == 1 and len(json.loads(out)["damaged"]) == 5
    code, out, _ = moa("releases", "verify", "1", "--mend")
    assert code == 0 and "5 damaged, 5 of them mended." in out
    assert moa("releases", "verify", "1")[0] == 0
    code, out, _ = moa("releases", "verify")
    assert code == 1 and "damaged  " in out and "needed by moa@2/README.md" in out


def test_a_release_is_signed_and_who_names_the_key_gets_nothing_else(
    moa: Moa, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOA_SIGNING_PASSPHRASE", "sécret")
    key, public, folder = str(tmp_path / "key"), str(tmp_path / "key.pub"), str(tmp_path / "out")
    assert moa("releases", "keygen", key, workspace=False)[0] == 0
    for arguments in (
        ("pull", "production", folder, "--key", public),
        ("pull", "production", folder, "--set", f"publish.verify_key={public}"),
        ("releases", "export", "production", folder, "--set", f"publish.verify_key={public}"),
    ):
        code, out, err = moa(*arguments)
        assert code == 2 and out == "" and err.count("\n") == 1 and "moa@3 is not signed with" in err, arguments
    code, out, _ = moa("releases", "verify", "production", "--key", public)
    assert code == 1 and "moa@3 is not signed" in out
    assert "publish.signing_key" in moa("releases", "sign", "production")[2]
    code, out, err = moa("releases", "sign", "production", "--set", f"publish.signing_key={key}")
    assert (code, err) == (0, "") and out.startswith("Release 3 (") and "sécret" not in out
    assert moa("releases", "verify", "production", "--key", public)[0] == 0
    assert moa("releases", "verify", "--set", f"publish.verify_key={public}")[0] == 1  # of 1 and 2 nobody knows
    code, out, _ = moa("pull", "production", folder, "--key", public)
    assert code == 0 and "every digest and the signature verified" in out
    assert moa("pull", "production", folder, "--key", public, "--quiet") == (0, f"{folder}\n", "")
    assert as_json(moa("pull", "production", folder, "--key", public, "--json"))["signature_verified"] is True
    assert as_json(moa("pull", "production", folder, "--json"))["signature_verified"] is False
    assert len(as_json(moa("releases", "show", "production", "--json"))["signed_by"]) == 1
    assert "not verified here" in moa("releases", "show", "production")[1]
    code, _, err = moa("pull", "production", folder, "--key", key)
    assert code == 2 and err.count("\n") == 1 and "is no public key" in err
    monkeypatch.setenv("MOA_SIGNING_PASSPHRASE", "another")
    code, _, err = moa("releases", "sign", "1", "--set", f"publish.signing_key={key}")
    assert code == 2 and err.count("\n") == 1 and "wrong passphrase" in err and "another" not in err


def test_garbage_is_listed_first(moa: Moa, tmp_path: Path) -> None:
    import os

    blob = tmp_path / "workspace" / "store" / "blobs" / "sha256" / "ab" / ("ab" * 32)
    blob.parent.mkdir(exist_ok=True)
    blob.write_bytes(b"of a killed publisher")
    os.utime(blob, (0, 0))
    code, out, _ = moa("releases", "gc")
    assert code == 0 and str(blob) in out and "--yes" in out and blob.exists()
    found = as_json(moa("releases", "gc", "--json"))
    assert found == {"objects": {f"blobs/sha256/ab/{'ab' * 32}": 21}, "unfinished": [], "deleted": 0}
    assert moa("releases", "gc", "--yes")[0] == 0 and not blob.exists()
    assert moa("releases", "verify")[0] == 0


def test_an_export_says_how_to_go_on(moa: Moa, tmp_path: Path) -> None:
    code, out, _ = moa("releases", "export", "3", str(tmp_path / "hub"))
    assert code == 0 and "hf upload OWNER/NAME" in out and (tmp_path / "hub" / ".gitattributes").is_file()


def test_a_pull_loads_neither_torch_nor_prefect_nor_the_catalog(tmp_path: Path) -> None:
    heavy = {"torch", "ray", "prefect", "polars", "deltalake", "numpy", "boto3"}
    code = (
        "import sys; from flows import cli; "
        f"sys.argv = ['moa', 'pull', {str(DATA / 'registry-1')!r} + '/moa@3', {str(tmp_path / 'out')!r}]; "
        f"assert cli._run() == 0; print(sorted({heavy} & sys.modules.keys()))"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines()[-1] == "[]" and (tmp_path / "out" / "adapter.safetensors").is_file()
