"""The command line, from its words to its table and figures."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import experiment as experiment_module
from experiments import train, tune
from experiments.experiment import SETUPS, parse
from experiments.summary import minority, summarise, summarise_run, table
from pcn_jax.data import SETUPS as DATA_SETUPS
from pcn_jax.training import ALGORITHMS, OptimizerConfig, Record, read_run

QUICK = ["digits-lt", "--train.steps", "3", "--seeds", "0", "1"]


def words(out: Path, *more: str) -> list[str]:
    return [*QUICK, "--out", str(out), "--algorithms", "sgd", "pcnsgd+clip", *more]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    train.main(words(out, "--tensorboard"))
    return out


def test_a_command_writes_runs_a_table_and_figures(finished: Path) -> None:
    folder = finished / "digits-lt"
    for name in ("loss.png", "recall.png", "overview.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    lines = (folder / "table.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:4]] == ["SGD", "PCNSGD+clip"]
    assert [r["step"] for r in read_run(folder / "sgd" / "seed-1")] == [0, 1, 2, 3]
    assert list((folder / "sgd" / "seed-0" / "tensorboard").iterdir())


def test_a_run_tells_what_it_was(finished: Path) -> None:
    run = json.loads((finished / "digits-lt/sgd/seed-0/run.json").read_text())
    described = run["description"]
    assert described["class_counts"] == [120, 72, 43, 26, 16, 9, 6, 3, 2, 2]
    assert described["seed"] == 0
    assert described["train"]["steps"] == 3
    assert described["train"]["optimizer"]["name"] == "sgd"
    assert described["data"]["profile"] == "counts"


def test_finished_runs_are_not_run_again(finished: Path) -> None:
    metrics = finished / "digits-lt/sgd/seed-0/metrics.jsonl"
    before = metrics.stat().st_mtime_ns
    train.main(words(finished))
    assert metrics.stat().st_mtime_ns == before


def test_a_command_whose_runs_diverge_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train.main(words(tmp_path, "--learning-rate", "1e30"))
    assert "warning: SGD: 2 of 2 diverged" in capsys.readouterr().err
    table_md = (tmp_path / "digits-lt" / "table.md").read_text()
    assert "| SGD, 2 of 2 diverged " in table_md


def test_runs_made_otherwise_are_refused_before_anything_is_run(finished: Path) -> None:
    metrics = finished / "digits-lt/sgd/seed-0/metrics.jsonl"
    before = metrics.read_text()
    more = ["--train.batch-size", "110", "--learning-rate", "0.1"]
    differing = (
        r"differs in learning_rate \(0\.3 there, 0\.1 asked for\), "
        r"train\.batch_size \(100 there, 110 asked for\)\. .*--overwrite"
    )
    with pytest.raises(SystemExit, match=differing):
        train.main(words(finished, *more))
    assert metrics.read_text() == before


def test_of_many_differences_a_few_are_told(finished: Path) -> None:
    counts = ["--data.counts", *"1111111111", "--learning-rate", "1"]
    more = ["--model.features", "7", "--train.sampler", "uniform", "--data.seed", "1"]
    told = r"data\.counts \(\[120, .*, class_counts .*asked for\) and 2 more\. Choose"
    with pytest.raises(SystemExit, match=told):
        train.main(words(finished, *counts, *more))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--learning-rate", "-1"], "learning_rate must be .* got -1"),
        (["--learning-rate", "nan"], "learning_rate must be .* got nan"),
        (["--train.batch-size", "3"], "would get no example"),
    ],
)
def test_wrong_values_are_refused_as_such_where_a_finished_run_is(
    more: list[str], message: str, finished: Path
) -> None:
    with pytest.raises(SystemExit, match=message):
        train.main(words(finished, "--learning-rate", "1", *more))


def test_an_interrupted_command_says_how_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def make_train(*_: Any, **_as: Any) -> Any:
        def run(seed: int, on_record: Any) -> None:
            on_record({"step": 0})
            if seed == 1:
                raise KeyboardInterrupt

        return run

    monkeypatch.setattr(train, "make_train", make_train)
    with pytest.raises(SystemExit) as stop:
        train.main(words(tmp_path))
    assert stop.value.code == 130
    assert len(read_run(tmp_path / "digits-lt/sgd/seed-0")) == 1
    (unfinished,) = tmp_path.rglob("unfinished-*")
    *_, said = capsys.readouterr().err.splitlines()
    assert said.startswith("interrupted: finished runs are kept, and the same command")
    assert said.endswith(f"starts anew. What was measured before is in {unfinished}.")


def own_data(path: Path, *, seed: int = 0) -> str:
    labels = np.arange(40) % 2
    inputs = np.random.default_rng(seed).normal(size=(40, 3)) + labels[:, None]
    np.savez(path, x_train=inputs, y_train=labels)
    experiment_module._problem.cache_clear()  # as in another process
    return str(path)


@pytest.mark.parametrize("command", [train, tune])
def test_few_held_out_examples_are_told(
    command: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tune, "grid", lambda _: (0.3,))
    path = own_data(tmp_path / "own.npz")
    arguments = ["custom", "--data.name", path, "--learning-rate", "0.1"]
    arguments += ["--train.steps", "2", "--train.batch-size", "4", "--seeds", "0"]
    command.main([*arguments, "--algorithms", "sgd", "--out", str(tmp_path)])
    printed = capsys.readouterr()
    assert "only 2 test and 2 validation examples: recalls, early" in printed.err
    if command is train:
        said = "Each class has at least 2 test and 2 validation examples."
        assert said in printed.out
        assert said in (tmp_path / "custom" / "table.md").read_text()


def test_runs_on_data_that_changed_since_are_not_taken_for_runs_on_them(
    tmp_path: Path,
) -> None:
    path = own_data(tmp_path / "own.npz")
    arguments = ["custom", "--data.name", path, "--learning-rate", "0.1"]
    arguments += ["--train.steps", "2", "--train.batch-size", "4", "--seeds", "0"]
    arguments += ["--algorithms", "sgd", "--out", str(tmp_path)]
    train.main(arguments)
    train.main(arguments)
    own_data(tmp_path / "own.npz", seed=1)
    with pytest.raises(SystemExit, match=r"differs in data_sha256.*--overwrite"):
        train.main(arguments)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("run.json", "{}", r"run\.json does not say what the run was.*--overwrite it"),
        ("metrics.jsonl", "{", r"metrics\.jsonl is broken in line 1.*--overwrite it"),
    ],
)
def test_a_broken_run_is_named_and_can_be_overwritten(
    name: str, text: str, message: str, tmp_path: Path
) -> None:
    arguments = words(tmp_path, "--algorithms", "sgd", "--seeds", "0")
    train.main(arguments)
    folder = tmp_path / "digits-lt" / "sgd" / "seed-0"
    (folder / name).write_text(text)
    with pytest.raises(SystemExit, match=message):
        train.main(arguments)
    train.main([*arguments, "--overwrite"])
    assert [record["step"] for record in read_run(folder)] == [0, 1, 2, 3]


@pytest.mark.parametrize("command", [train, tune])
def test_a_folder_that_cannot_be_written_ends_in_one_sentence(
    command: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    more = ["--learning-rate", "0.1", "--data.seed", "1"]
    with pytest.raises(SystemExit, match=r"error: --out .*file cannot be .*Not a dir"):
        command.main(words(tmp_path / "file", *more))


def test_the_same_command_gives_the_same_bits(finished: Path, tmp_path: Path) -> None:
    train.main(words(tmp_path))
    for run in ("sgd/seed-0", "pcnsgd+clip/seed-1"):
        first, second = (
            (out / "digits-lt" / run / "metrics.jsonl").read_text()
            for out in (finished, tmp_path)
        )
        assert first == second


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--algorithms", "sgdd"], "invalid choice 'sgdd'"),
        (["--model.name", "transformer"], "'mlp', 'cnn', 'vgg16'"),
        (["--train.steps", "many"], "INT"),
        (["--seeds", "1", "1"], "seeds must be one or more, each once"),
        (["--seeds", "-1"], "seeds must be from 0 to 2**32 - 1"),
        (["--seeds", "0", "4294967296"], "seeds must be from 0 to 2**32 - 1"),
        (["--target-recall", "2"], "target_recall must be in"),
        (["--train.optimizer.momentum", "1.5"], "momentum must be in"),
        (["--data.ratio", "0.5"], "does not belong to profile 'counts'"),
    ],
)
def test_wrong_words_are_refused_with_what_is_allowed(
    more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        train.main([*QUICK, *more])
    printed = capsys.readouterr()
    said = " ".join(f"{printed.out}{printed.err}{stop.value.code}".split("│"))
    assert message in (said := " ".join(said.split()))
    assert "python -m experiments.train digits-lt --help" in said
    assert "tyro" not in said


def test_a_set_up_that_there_is_not_is_told_which_there_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        train.main(["digit-lt"])
    said = capsys.readouterr().err
    assert all(name in said for name in SETUPS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [*QUICK, "--train.batch-size", "20", "--learning-rate", "1"],
            r"batch_size=20 class 8 .*: use 72\.",
        ),
        (
            ["automobile-truck", "--learning-rate", "1"],
            "python -m pcn_jax.data cifar10",
        ),
        (["horse-deer", "--data.data-dir", "nowhere"], "not prepared"),
        (["custom", "--data.name", "no.npz", "--learning-rate", "1"], "no.npz"),
        (["custom", "--learning-rate", "1"], "give --data.name FILE.npz"),
        (["custom", "--data.name", "digits"], "No learning rate is known for gd"),
    ],
)
def test_what_cannot_be_run_ends_in_one_sentence(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(SystemExit, match=message):
        train.main([*arguments, "--out", str(tmp_path)])
    assert not list(tmp_path.rglob("metrics*"))


def test_help_is_there_for_every_set_up(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["digits-lt", "--help"]):
        with pytest.raises(SystemExit) as stop:
            train.main(arguments)
        assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in SETUPS)
    assert "--train.optimizer.momentum" in printed


def test_every_set_up_of_the_data_has_a_command() -> None:
    assert set(DATA_SETUPS) < set(SETUPS)


def test_labels_are_merged_on_the_command_line() -> None:
    arguments = ["automobile-truck", "--data.groups", "1,3", "9"]
    assert parse("x", arguments, SETUPS, "").data.groups == ((1, 3), (9,))


def test_counts_of_a_set_up_can_be_removed(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["digits-lt", "--data.profile", "geometric", "--data.ratio", "0.5"]
    with pytest.raises(SystemExit):
        parse("x", arguments, SETUPS, "")
    said = " ".join(capsys.readouterr().err.replace("│", "").split())
    assert "remove it (on the command line with --data.counts None)" in said
    data = parse("x", [*arguments, "--data.counts", "None"], SETUPS, "").data
    assert (data.ratio, data.counts) == (0.5, None)


def test_the_demo_has_a_learning_rate_for_every_algorithm() -> None:
    demo = SETUPS["digits-lt"]
    rates = tune.grid(demo.train.optimizer)
    assert all(demo.learning_rate_of(name) in rates for name in ALGORITHMS)


def test_the_search_keeps_what_it_finds_and_takes_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        experiment_module, "learning_rates_path", lambda name: tmp_path / f"{name}.json"
    )
    monkeypatch.setattr(tune, "grid", lambda _: (1e-9, 0.3))
    arguments = ["digits-lt", "--algorithms", "sgd", "--train.steps", "20"]
    tune.main([*arguments, "--seeds", "100"])
    found = json.loads((tmp_path / "digits-lt.json").read_text())
    assert found["best"] == {"sgd": 0.3}
    assert set(found["scores"]["sgd"]) == {"1e-09", "0.3"}
    assert SETUPS["digits-lt"].learning_rate_of("sgd") == 0.3
    monkeypatch.setattr(tune, "make_train", None)  # nothing is left to be searched
    capsys.readouterr()
    tune.main([*arguments, "--seeds", "100"])
    assert "SGD: found before" in (printed := capsys.readouterr().out)
    assert "--overwrite" in printed


@pytest.mark.parametrize(
    "options",
    [
        ["--model.features", "8"],
        ["--train.optimizer.name", "adam"],
        ["--data.seed", "1"],
        ["--train.max-norm", "0.2"],
    ],
)
def test_a_searched_rate_is_for_the_same_data_model_and_training(
    options: list[str], tmp_path: Path
) -> None:
    arguments = words(tmp_path, *options, "--overwrite")
    advice = f"tune digits-lt --train.steps 3 --out {tmp_path} .*{' '.join(options)}$"
    with pytest.raises(SystemExit, match=rf"No learning rate is known .*{advice}"):
        train.main(arguments)


def test_what_an_algorithm_does_not_heed_needs_no_search_of_its_own() -> None:
    arguments = ["digits-lt", "--train.max-norm", "0.2", "--train.steps", "7"]
    setup, changed = SETUPS["digits-lt"], parse("x", arguments, SETUPS, "")
    assert changed.learning_rate_of("sgd") == setup.learning_rate_of("sgd")


def test_rates_for_data_of_ones_own_are_kept_with_its_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "grid", lambda _: (1e-9, 0.3))
    package = experiment_module.learning_rates_path("custom")
    first, other = (own_data(tmp_path / name) for name in ("a.npz", "b.npz"))
    options = ["--train.steps", "9", "--train.batch-size", "4", "--algorithms", "sgd"]
    options += ["--out", str(tmp_path), "--seeds", "7"]
    tune.main(["custom", "--data.name", first, *options])
    assert not package.exists()
    train.main(["custom", "--data.name", first, *options])
    run = json.loads((tmp_path / "custom/sgd/seed-7/run.json").read_text())
    assert run["description"]["learning_rate"] == 0.3
    with pytest.raises(SystemExit, match=f"No learning rate .*--data.name {other}"):
        train.main(["custom", "--data.name", other, *options])


def test_an_interrupted_search_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "digits-lt.json"
    monkeypatch.setattr(experiment_module, "learning_rates_path", lambda _: path)
    monkeypatch.setattr(tune, "problem", lambda _: (None, None))
    trained: list[float] = []

    def make_train(_: Any, algorithm: str, rate: float, *_rest: Any, **_as: Any) -> Any:
        if rate == 0.3 and 0.3 not in trained:
            trained.append(rate)
            raise KeyboardInterrupt
        trained.append(rate)

        def train(seed: int, on_record: Any) -> None:
            for recall in (0.5, seed / 100 - rate / 10):
                on_record({"validation": {"macro_recall": recall}})

        return train

    monkeypatch.setattr(tune, "make_train", make_train)
    experiment = dataclasses.replace(SETUPS["digits-lt"], search_seeds=(10, 20))
    with pytest.raises(KeyboardInterrupt):
        tune.search(experiment, "sgd", "x")
    assert json.loads(path.read_text())["best"] == {}
    tune.search(experiment, "sgd", "x")
    assert trained == [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.3, 1, 3]
    found = json.loads(path.read_text())
    assert found["best"] == {"sgd": 0.001}
    assert found["scores"]["sgd"]["3"] == -0.15
    monkeypatch.setattr(tune, "grid", lambda _: (0.0001, 0.001, 3.0))  # it has grown
    assert tune.search(experiment, "sgd", "x")
    assert not tune.search(experiment, "sgd", "x")
    assert trained[9:] == [0.0001]
    assert json.loads(path.read_text())["best"] == {"sgd": 0.0001}
    others = dataclasses.replace(experiment, search_seeds=(30,), overwrite=True)
    tune.search(others, "sgd", "y")
    found = json.loads(path.read_text())
    assert found["scores"]["sgd"]["3"] == 0
    assert found["searched"]["sgd"] == {"command": "y", "seeds": [30]}


def test_rates_that_decay_are_searched_from_higher_ones() -> None:
    constant, decaying = (
        tune.grid(OptimizerConfig(momentum=0.5, schedule=schedule))
        for schedule in ("constant", "cosine")
    )
    assert decaying == (*constant, 5.0)


def test_what_a_search_wants_to_be_best_is_its_score() -> None:
    recalls = (0.9, 0.7, 0.3, 0.5)  # 0.9 is untrained
    measured = [{"validation": {"macro_recall": recall}} for recall in recalls]
    assert tune.score(measured) == pytest.approx(0.5)
    assert tune.score(measured, "early stopping") == 0.7
    assert tune.score(measured[:-1], "at the end") == 0.3


def records(
    losses: Any, recalls: Any, validation: Any = (0.5, 0.5, 0.5, 0.5)
) -> list[Record]:
    return [
        {
            "step": step,
            "train": {"loss": loss},
            "validation": {"macro_recall": macro_recall},
            "test": {"recall": recall},
        }
        for step, loss, recall, macro_recall in zip(
            (0, 1, 10, 100), losses, recalls, validation, strict=True
        )
    ]


def test_a_run_in_numbers() -> None:
    run = records(
        losses=[[0.7, 0.7], [0.4, 1.9], [0.1, 0.9], [0.0, 0.1]],
        recalls=[[0.5, 0.4], [1.0, 0.0], [1.0, 0.3], [0.9, 0.7]],
        validation=[0.9, 0.5, 0.8, 0.7],
    )
    numbers = summarise_run(run, np.array([70, 10]), target_recall=0.5)
    assert numbers.macro_recall == pytest.approx(0.8)
    assert numbers.stopped_early == pytest.approx(0.65)  # the start does not count
    assert numbers.minority_recall == 0.7
    assert numbers.drop == pytest.approx(1.2)
    assert numbers.drop_steps == 100
    assert numbers.steps_to_target == 100
    assert numbers.late_loss == 0.1
    assert not numbers.diverged


def test_a_run_that_broke_is_said_to_have_broken() -> None:
    run = records(losses=[[0.7, 0.7]] + [[math.nan] * 2] * 3, recalls=[[0.5, 0.5]] * 4)
    numbers = summarise_run(run, np.array([70, 10]), target_recall=0.9)
    assert numbers.late_loss == math.inf
    assert numbers.steps_to_target == math.inf
    assert math.isnan(numbers.drop)
    printed = table(
        summarise({"sgd": [run]}, np.array([70, 10]), {"sgd": 0.1}, 0.9), 0.9
    )
    assert "| never " in printed
    assert "[" not in printed.splitlines()[2]
    assert "Over 1 seed. " in printed
    assert "| SGD, 1 of 1 diverged |" in printed


def test_the_interval_is_that_of_the_t_distribution() -> None:
    runs = [
        records(losses=[[0.7, 0.7]] * 4, recalls=[[r, r]] * 4) for r in (0.4, 0.5, 0.6)
    ]
    printed = table(summarise({"gd": runs}, np.array([7, 1]), {"gd": 1}, 0.5), 0.5)
    # 4.303 standard errors of 0.1 / sqrt(3) at two degrees of freedom
    assert "0.50 ± 0.25" in printed


def test_the_minority_is_the_rarest_third_wherever_it_stands() -> None:
    assert minority(np.array([10, 700])).tolist() == [0]
    assert minority(np.array([5, 50, 4, 40, 3, 30])).tolist() == [2, 4]
