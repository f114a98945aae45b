"""Runs on disk: written as they go, never taken for finished before they are."""

import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization

from pcn_jax.data import DataConfig
from pcn_jax.training import TrainState, finished_description, read_run, write_run

RECORDS = [
    {"step": 0, "test": {"loss": [0.5, 2.0], "macro_recall": 0.5}},
    {"step": 1, "test": {"loss": [math.inf, math.nan], "macro_recall": 0.0}},
]


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    with write_run(tmp_path / "a" / "run", {"seed": 0}) as write:
        for record in RECORDS:
            write(record)
    first, second = read_run(tmp_path / "a" / "run")
    assert first == RECORDS[0]
    assert all(math.isnan(loss) for loss in second["test"]["loss"])


def test_lines_are_strict_json_and_there_before_the_end(tmp_path: Path) -> None:
    with write_run(tmp_path, {}) as write:
        write(RECORDS[1])
        (unfinished,) = tmp_path.rglob("metrics*")
        line = unfinished.read_text()
    assert json.loads(line, parse_constant=pytest.fail)["test"]["loss"] == [None, None]


def break_off(folder: Path, description: dict[str, int]) -> None:
    with write_run(folder, description) as write:
        write(RECORDS[0])
        raise KeyboardInterrupt


def test_a_broken_off_run_is_not_finished(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt) as stop:
        break_off(tmp_path, {"seed": 0})
    (unfinished,) = tmp_path.iterdir()
    assert stop.value.__notes__ == [f"What was measured before is in {unfinished}."]
    assert finished_description(tmp_path) is None
    with pytest.raises(FileNotFoundError, match="no finished run"):
        read_run(tmp_path)


def test_the_description_and_versions_are_written_first(tmp_path: Path) -> None:
    description = {"data": DataConfig(), "out": Path("x"), "rate": 0.1}
    with write_run(tmp_path, description) as write:
        (path,) = tmp_path.rglob("run.json")
        run = json.loads(path.read_text())
        write(RECORDS[0])
    assert run["description"]["data"]["name"] == "digits"
    assert run["description"]["out"] == "x"
    kept = {"python", "jax", "optax", "flax", "pcn_jax", "device", "processor"}
    assert kept <= set(run["ran_on"])
    assert finished_description(tmp_path) == run["description"]


def test_writing_again_replaces_a_finished_run(tmp_path: Path) -> None:
    for seed in (0, 1):
        with write_run(tmp_path, {"seed": seed}, tensorboard=True) as write:
            write(RECORDS[0])
    assert finished_description(tmp_path) == {"seed": 1}
    assert len(read_run(tmp_path)) == 1
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


def test_a_finished_run_stays_until_the_next_one_is_finished(tmp_path: Path) -> None:
    with write_run(tmp_path, {"seed": 0}) as write:
        write(RECORDS[0])
    with pytest.raises(KeyboardInterrupt):
        break_off(tmp_path, {"seed": 1})
    assert finished_description(tmp_path) == {"seed": 0}
    assert len(read_run(tmp_path)) == 1


def test_two_processes_that_write_a_run_publish_whole_ones(tmp_path: Path) -> None:
    with write_run(tmp_path, {"by": 1}) as first:
        first(RECORDS[0])
        other = write_run(tmp_path, {"by": 2})
        second = other.__enter__()
        second(RECORDS[0])
        first(RECORDS[1])
    assert finished_description(tmp_path) == {"by": 1}
    assert len(read_run(tmp_path)) == 2
    second(RECORDS[1])
    other.__exit__(None, None, None)
    assert finished_description(tmp_path) == {"by": 2}
    assert len(read_run(tmp_path)) == 2
    assert len(list(tmp_path.iterdir())) == 2


def test_two_that_end_at_once_publish_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace

    def slowly(path: Path, target: Path) -> Path:
        time.sleep(0.02)
        return replace(path, target)

    def write(number: int) -> None:
        with write_run(tmp_path, {"by": number}, tensorboard=True) as append:
            for _ in range(1 + number):
                append(RECORDS[0])

    monkeypatch.setattr(Path, "replace", slowly)
    with ThreadPoolExecutor(4) as several:
        list(several.map(write, range(4)))  # raises what was raised
    assert finished_description(tmp_path) == {"by": len(read_run(tmp_path)) - 1}
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
    assert len(list(tmp_path.iterdir())) == 3


def test_a_run_without_records_is_not_finished(tmp_path: Path) -> None:
    with write_run(tmp_path, {"seed": 0}) as write:
        write(RECORDS[0])
    with write_run(tmp_path, {"seed": 1}):
        pass
    assert finished_description(tmp_path) == {"seed": 0}
    (tmp_path / "metrics.jsonl").write_text("")
    assert finished_description(tmp_path) is None
    with pytest.raises(ValueError, match=r"metrics\.jsonl holds no records"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metrics.jsonl", '{"step": 0}\n{"st', r"metrics\.jsonl is broken in line 2"),
        ("run.json", "{", r"run\.json does not say what the run was .*again"),
        ("run.json", "{}", r"run\.json does not say what the run was .*description"),
    ],
)
def test_a_broken_run_is_named(
    name: str, text: str, message: str, tmp_path: Path
) -> None:
    with write_run(tmp_path, {}) as write:
        write(RECORDS[0])
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        finished_description(tmp_path)


def test_parameters_belong_to_their_run(tmp_path: Path) -> None:
    kept: Any = {"params": {"w": jnp.arange(3.0)}, "model_state": {"mean": jnp.ones(2)}}
    best = kept | {"params": {"w": jnp.zeros(3)}}
    zero = jnp.zeros(())
    state = TrainState(zero, zero, zero, **kept, opt_state=())
    with write_run(tmp_path, {}) as write:
        write(RECORDS[0])
        write.save_params(state)
        write.save_params(state._replace(params=best["params"]), "best")
    for keep, of_state in ("last", kept), ("best", best):
        saved = (tmp_path / f"{keep}_params.msgpack").read_bytes()
        chex.assert_trees_all_equal(serialization.msgpack_restore(saved), of_state)
    with write_run(tmp_path, {}) as write:
        write(RECORDS[0])
    assert not list(tmp_path.glob("*_params.msgpack"))


def test_records_may_hold_arrays(tmp_path: Path) -> None:
    record = {"step": jnp.array(3), "a": jnp.array([0.5, jnp.inf]), "b": np.ones(2)}
    folder: Any = str(tmp_path / "run")
    with write_run(folder, {}, tensorboard=True) as write:
        write(record | {"c": (1, 2), "d": jnp.bfloat16(0.5), "e": "words"})
    (read,) = read_run(tmp_path / "run")
    assert read["step"] == 3
    assert read["a"][0] == read["d"] == 0.5
    assert math.isnan(read["a"][1])
    assert (read["b"], read["c"], read["e"]) == ([1, 1], [1, 2], "words")
    (events,) = (tmp_path / "run" / "tensorboard").iterdir()
    written = events.read_bytes()
    assert all(tag in written for tag in (b"a/0", b"b/1", b"c/0"))
    assert b"a/1" not in written


def test_tensorboard_events_hold_every_number(tmp_path: Path) -> None:
    with write_run(tmp_path, {}, tensorboard=True) as write:
        write(RECORDS[0])
    (events,) = (tmp_path / "tensorboard").iterdir()
    written = events.read_bytes()
    for tag in (b"test/loss/0", b"test/loss/1", b"test/macro_recall"):
        assert tag in written
    assert b"step" not in written
