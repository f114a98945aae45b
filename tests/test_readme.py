"""What the README and other pages show runs as it stands."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.cases import Net
from experiments import train
from pcn_jax.training import make_train, read_run

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "RESULTS.md",
    ROOT / "CONTRIBUTING.md",
    *(ROOT / "docs").rglob("*.md"),
]


def blocks(page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


BLOCKS = blocks("README.md")


def run(block: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(block, "a page", "exec"), names)
    return names


@pytest.mark.usefixtures("standard_promotion")  # optax's cosine decay relies on it
def test_the_training_script_learns_every_class() -> None:
    with jax.numpy_rank_promotion("allow"):
        labels = np.repeat(np.arange(10), np.arange(10, 0, -1))
        params, inputs = (
            {"w": jnp.zeros((10, 10)), "b": jnp.zeros(10)},
            np.eye(10)[labels],
        )
        names = run(BLOCKS[0].replace("num_steps = 1000", "num_steps = 30"))
        trained, value = names["train"](params, inputs, labels)
        recall_of = run(BLOCKS[1])["macro_recall"]
        recalls = [recall_of(of, inputs, labels) for of in (params, trained)]
    assert value.counts.tolist() == [10] * 10
    assert jnp.all(value.losses < 0.5 * jnp.log(10))
    np.testing.assert_allclose(recalls, [0.1, 1], rtol=1e-6)


@pytest.mark.usefixtures("standard_promotion")
def test_the_chain_takes_the_same_step() -> None:
    with jax.numpy_rank_promotion("allow"):
        script, chain = run(BLOCKS[0]), run(BLOCKS[2])
        inputs, labels = jnp.eye(10), jnp.arange(10) // 2
        params = {"w": jnp.zeros((10, 10)), "b": jnp.zeros(10)}
        expected, _, _ = script["step"](
            params, script["optimizer"].init(params), inputs, labels
        )
        found, _ = chain["update"](
            script["loss_fn"], params, chain["optimizer"].init(params), inputs, labels
        )
    chex.assert_trees_all_close(found, expected, atol=1e-6)


def test_the_script_with_logit_adjustment_ends_with_the_shares_of_the_data() -> None:
    (block,) = blocks("docs/logit_adjustment.md")
    labels = np.repeat(np.arange(3), [60, 30, 10])
    inputs = np.eye(3)[labels]
    with jax.numpy_rank_promotion("allow"):
        train = run(block)["train"]
        params, shares, value = train(
            lambda params, x: x @ params, jnp.zeros((3, 3)), inputs, labels, 3, 300
        )
    assert value.counts.tolist() == [10] * 3
    np.testing.assert_allclose(shares, [0.6, 0.3, 0.1], rtol=1e-3)
    assert jnp.argmax(params, axis=1).tolist() == [0, 1, 2]


def test_the_training_script_in_python_records() -> None:
    _, block, _, _ = blocks("docs/command_line.md")
    names = run(block)
    last = names["records"][-1]
    assert last["step"] == 20
    right = names["predictions"] == names["test"].labels
    assert float(right.mean()) == pytest.approx(last["test"]["macro_recall"], abs=1e-6)


def test_the_keys_of_a_record_are_those_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["digits-lt", "--algorithms", "pcnsgd+o", "pcnsgd+split"]
    train.main([*arguments, "--seeds", "0", "--train.steps", "2"])
    names = run(blocks("docs/command_line.md")[0])
    assert names["steps"] == [0, 1, 2]
    assert len(names["recalls_of_nines"]) == 3
    page = (ROOT / "docs/command_line.md").read_text(encoding="utf-8")
    rows = page.split("| key of a record |")[1].split("\n\n")[0].splitlines()[2:]
    told = [key.strip(" `") for row in rows for key in cells(row)[0].split(",")]
    (record, *_) = read_run(Path("runs/digits-lt/pcnsgd+split/seed-0"))
    assert sorted(told) == sorted(record)
    assert set(told) - set(names["records"][0]) == {"estimated_alignment"}


def test_saved_parameters_are_those_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["digits-lt", "--algorithms", "pcnsgd+o", "--seeds", "0"]
    arguments += ["--train.steps", "200", "--learning-rate", "1"]
    train.main(arguments)
    train.main([*arguments, "--save-params", "best"])
    _, _, block, _ = blocks("docs/command_line.md")
    names = run(block)
    right = names["predictions"] == names["data"].test.labels
    _, *records = read_run(Path("runs/digits-lt/pcnsgd+o/seed-0"))
    best = max(records, key=lambda record: record["validation"]["macro_recall"])
    assert right.mean() == pytest.approx(best["test"]["macro_recall"], abs=1e-6)
    assert best["test"]["macro_recall"] > records[-1]["test"]["macro_recall"]


def test_a_state_that_was_saved_goes_on_bit_for_bit() -> None:
    _, first, _, resume = blocks("docs/command_line.md")
    names = run(first + resume)
    config = dataclasses.replace(names["config"], steps=40)
    train = make_train(names["problem"], "pcnsgd+clip", 0.1, config)
    chex.assert_trees_all_equal(names["state"], train(seed=0))


def cells(row: str) -> list[str]:
    return [cell.strip(" *") for cell in row.strip("|").split("|")]


def test_the_table_of_rules_is_that_of_the_claims() -> None:
    """Means and worst cases, rounded: two columns of C11, one of C12 and of C13."""
    exact: dict[str, list[tuple[str, str]]] = {}
    for claim in ("C11", "C12", "C13"):
        path = ROOT / f"docs/results/{claim}.json"
        found = json.loads(path.read_text(encoding="utf-8"))["table"]
        table = found[found.index("below the best") :].split("\n\n")[1]
        for row in table.splitlines()[2:]:
            name, *values = cells(row)
            numbers = [value.split()[0] for value in values]
            pairs = [tuple(numbers[k : k + 2]) for k in range(0, len(numbers), 3)]
            exact[name] = [*exact.get(name, []), *pairs]  # type: ignore[list-item]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text[text.index("| rule |") :].split("\n\n")[0]
    rows = list(map(cells, table.splitlines()[2:]))
    assert len(rows) == 10
    for name, _, _, *shown in rows:
        for cell, pair in zip(
            filter(None, shown), exact[name.split(",")[0]], strict=True
        ):
            for x, y in zip(re.findall(r"[0-9.]+", cell), pair, strict=True):
                digits = len(x.split(".")[1])
                assert digits >= 2
                assert abs(float(x) - float(y)) < 0.51 * 10**-digits, (name, x, y)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(((?!http)[^)]+)\)", text):
        name, _, heading = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        assert not heading or heading in headings(file), target


def headings(page: Path) -> set[str]:
    """What links may name behind a `#`."""
    text = page.read_text(encoding="utf-8")
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", x).lower().replace(" ", "-") for x in titles}


def test_the_table_of_costs_is_that_of_the_benchmark() -> None:
    """From the least to the most of the ratios of each net, with one digit."""
    path = ROOT / "docs/benchmarks/gradients.json"
    cases = json.loads(path.read_text(encoding="utf-8"))["cases"].values()

    def span(method: str, net: str | None = None) -> str:
        ratios = [
            np.median(np.divide(times[: len(plain)], plain[: len(times)]))
            for case in cases
            if net in (None, case["case"]["net"]) and method in case["methods"]
            for plain in [case["methods"]["jax: plain"]["ms"]]
            for times in [case["methods"][method]["ms"]]
        ]
        shown = (f"{x:.1f}" for x in (min(ratios), max(ratios))) if ratios else ()
        return " to ".join(dict.fromkeys(shown))

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text[text.index("| net |") :].split("\n\n")[0]
    assert [row[1:] for row in map(cells, table.splitlines()[2:])] == [
        [span("jax: fused", net), span("jax: fused, smoothed norm", net)]
        for net in get_args(Net)
    ]
    assert f"[{span('jax: fused')} times as long as a plain one]" in text
