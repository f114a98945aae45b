"""The command that looks at the claims, and what it writes."""

import re
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from experiments import reproduce
from experiments.claims.finding import Effect, Finding


def found(*seen: bool) -> Finding:
    effects = [Effect(f"effect {k}", one) for k, one in enumerate(seen)]
    return Finding("A claim", effects, "| table |", Figure, "A note.")


def test_a_check_fails_with_the_claims_that_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reproduce.CLAIMS["C1"], "find", lambda size: found(True))
    monkeypatch.setattr(reproduce.CLAIMS["C2"], "find", lambda size: found(True, False))
    words = ["--size", "fast", "--check", "--claims"]
    reproduce.main([*words, "C1"])
    with pytest.raises(SystemExit, match="not all was seen of C2"):
        reproduce.main([*words, "C1", "C2"])
    assert "refuted: effect 1" in capsys.readouterr().out


def test_a_claim_that_cannot_be_run_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def without_data(size: str) -> Finding:
        raise FileNotFoundError(f"no data for {size}")

    monkeypatch.setattr(reproduce.CLAIMS["C1"], "find", without_data)
    monkeypatch.setattr(reproduce.CLAIMS["C2"], "find", lambda size: found(True))
    with pytest.raises(SystemExit, match="C1 was not run: no data for fast"):
        reproduce.main(["--size", "fast", "--claims", "C1", "C2"])
    assert "C2: A claim: holds" in capsys.readouterr().out


def test_results_say_what_was_found_and_what_was_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reproduce.CLAIMS["C2"], "find", lambda size: found(True, False))
    reproduce.main(["--claims", "C2"])
    text = Path("RESULTS.md").read_text(encoding="utf-8")
    assert re.search(r"\| \[C2\]\(#c2\) \| .* \| holds in part \|", text)
    assert re.search(r"\| C1 \| .*minority.* \| not run \|", text)
    assert "## C2\n\nA claim: **holds in part**." in text
    assert "- **refuted**: effect 1." in text
    assert Path("docs/results/C2.png").read_bytes().startswith(b"\x89PNG")


def test_the_results_in_the_repository_are_what_is_written() -> None:
    path = Path(reproduce.__file__).parent.parent / "RESULTS.md"
    assert path.read_text(encoding="utf-8") == reproduce.results()
