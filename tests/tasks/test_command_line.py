"""The commands as a user types them, right and wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

import elman
from elman.cli import main
from elman.train.checkpoint import load, save

from .conftest import SMALL, metrics_of

Start = Callable[..., "subprocess.Popen[str]"]


def run_main(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    try:
        status = main(arguments)
    except SystemExit as leave:  # argparse, after printing help
        status = int(leave.code or 0)
    shown = capsys.readouterr()
    return status, shown.out, shown.err


@pytest.fixture
def files(tmp_path: Path, text_file: Path, trained: Path) -> dict[str, str]:
    """Good and bad files, by the names that the table below uses."""
    contents = {
        "empty.txt": b"",
        "binary.txt": b"PK\x03\x04\0\0" * 100,
        "latin1.txt": "Caf\xe9 ".encode("latin-1") * 1000,
        "blanks.txt": b" " * 1000,
        "short.txt": b"too short a text\n",
        "cut.txt.gz": b"\x1f\x8b\x08\0\0\0\0\0\0\3abc",
        "plain.txt.gz": b"not gzip at all",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "nothing").mkdir()
    for name, text in (
        ("typo", "hiden_size: 3\n"),
        ("list", "- hidden_size\n"),
        ("tabs", "hidden_size:\n\t3: [\n"),
        ("copy", "task: copy\nhidden_size: 3\n"),
        ("word", "hidden_size: many\n"),
    ):
        (tmp_path / f"{name}.yaml").write_text(text)
    for damage in ("no_config", "bad_config", "no_model", "bad_model", "other_model", "bad_tokenizer"):
        shutil.copytree(trained, tmp_path / damage)
    (tmp_path / "no_config" / "config.yaml").unlink()
    (tmp_path / "bad_config" / "config.yaml").write_text("task: lm\nhidden_size: [\n")
    (tmp_path / "no_model" / "model.safetensors").unlink()
    model = tmp_path / "bad_model" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:500])
    config = tmp_path / "other_model" / "config.yaml"
    config.write_text(config.read_text().replace("hidden_size: 16", "hidden_size: 17"))
    (tmp_path / "bad_tokenizer" / "tokenizer.json").write_text("{")
    shutil.copytree(trained, tmp_path / "bad_checkpoints")
    for file in (tmp_path / "bad_checkpoints" / "checkpoints").iterdir():
        file.write_bytes(b"x")
    for damage, change in CHANGED_CHECKPOINTS.items():
        shutil.copytree(trained, tmp_path / damage)
        for file in (tmp_path / damage / "checkpoints").iterdir():
            save(file, change(load(file)))
    shutil.copytree(trained, tmp_path / "gone")
    config = tmp_path / "gone" / "config.yaml"
    config.write_text(config.read_text().replace(f"data: {text_file}", f"data: {tmp_path / 'gone.txt'}"))
    return {"TMP": str(tmp_path), "TEXT": str(text_file), "RUN": str(trained), "NEW": str(tmp_path / "new")}


def narrower(tree: Any) -> Any:
    tree["model"]["head.weight"] = tree["model"]["head.weight"][:, 1:]
    return tree


CHANGED_CHECKPOINTS: dict[str, Callable[[Any], Any]] = {
    "other_weights": narrower,
    "other_optimizer": lambda tree: {**tree, "updater": {**tree["updater"], "optimizer": {"state": {}}}},
    "no_position": lambda tree: {**tree, "position": {"step": 3}},
    "no_place": lambda tree: {key: value for key, value in tree.items() if key != "place"},
    "a_list": lambda tree: [1, 2, 3],
    "other_data": lambda tree: {**tree, "fingerprint": "another text"},
    "two_processes": lambda tree: {**tree, "processes": tree["processes"] * 2},
}
TRAIN = "train lm --run NEW "
BAD_INPUT = [
    ("", 2, ["a command is missing", "train"]),
    ("trian lm", 2, ["unknown command 'trian'; did you mean train?"]),
    ("cells lsmt", 2, ["unknown cell 'lsmt'; did you mean 'lstm'?"]),
    ("tasks lm", 2, ["takes no arguments"]),
    ("train", 2, ["a task comes first"]),
    ("train --epochs 3", 2, ["a task comes first"]),
    ("train langage-model", 2, ["unknown task 'langage-model'; did you mean language-model?"]),
    (TRAIN + "--hiden-size 3", 2, ["unknown option --hiden-size; did you mean --hidden-size?"]),
    (TRAIN + "--cell lsmt", 2, ["lsmt", "lstm"]),
    (TRAIN + "--optimizer adm", 2, ["unknown --optimizer 'adm'; did you mean adam?"]),
    (TRAIN + "--hidden-size 0", 2, ["--hidden-size must be at least 1, got 0"]),
    (TRAIN + "--epochs many", 2, ["--epochs must be a whole number, got 'many'"]),
    (TRAIN + "--dropout 1.0", 2, ["--dropout must be less than 1"]),
    (TRAIN + "--momentum 0.9", 2, ["--momentum is for --optimizer sgd"]),
    (TRAIN + "--bidirectional", 2, ["--bidirectional", "forwards only"]),
    (TRAIN + "--device gpu --data TEXT", 2, ["unknown --device 'gpu'"]),
    (TRAIN + "--device cuda:99 --data TEXT", 2, ["--device cuda:99"]),
    (TRAIN + "--config TMP/missing.yaml", 2, ["TMP/missing.yaml"]),
    (TRAIN + "--config TMP/typo.yaml", 2, ["typo.yaml", "'hiden_size'; did you mean hidden_size?"]),
    (TRAIN + "--config TMP/list.yaml", 2, ["list.yaml must hold options as `name: value` lines"]),
    (TRAIN + "--config TMP/tabs.yaml", 2, ["tabs.yaml is not valid YAML at line 2"]),
    (TRAIN + "--config TMP/copy.yaml", 2, ["copy.yaml is for task 'copy', not 'lm'"]),
    (TRAIN + "--config TMP/word.yaml", 2, ["--hidden-size must be a whole number, got 'many'"]),
    (TRAIN + "--config TMP/binary.txt", 2, ["binary.txt"]),
    (TRAIN + "--config TMP", 2, ["cannot read TMP: Is a directory"]),
    (TRAIN + "--truncation fixt", 2, ["unknown --truncation 'fixt'; did you mean fixed?"]),
    (TRAIN + "--backward 9", 2, ["--backward must be at least --window 64, got 9"]),
    (TRAIN + "--truncation none --burn-in 9", 2, ["--burn-in is for truncated sequences"]),
    (TRAIN + "--document-end x", 2, ["--document-end is for --state documents, got kept"]),
    (TRAIN + "--data TEXT --state documents", 2, ["--state documents: the training text is one document"]),
    (TRAIN + "--data TEXT --state documents --document-end 漢", 2, ["--document-end '漢' is no token"]),
    (TRAIN + "--precision fp61", 2, ["unknown --precision 'fp61'; did you mean fp16?"]),
    (TRAIN + "--precision fp16 --device cpu", 2, ["--precision fp16 is for CUDA devices"]),
    (TRAIN + "--average emma", 2, ["unknown --average 'emma'; did you mean ema?"]),
    (TRAIN + "--average-decay 1", 2, ["--average-decay must be less than 1"]),
    (TRAIN + "--keep 0", 2, ["--keep must be at least 1"]),
    (TRAIN + "--roll-back -1", 2, ["--roll-back must be at least 0"]),
    (TRAIN + "--accumulate 0", 2, ["--accumulate must be at least 1"]),
    (TRAIN + "--devices 0", 2, ["--devices must be at least 1"]),
    (TRAIN + "--shard --data TEXT", 2, ["--shard divides a model among several processes: add --devices N"]),
    (TRAIN + "--shard --precision fp16", 2, ["--shard goes with --precision fp32 and bf16, not fp16"]),
    (TRAIN + "--devices 3", 2, ["--batch-size 8", "divisible by their number, 3"]),
    ("train adding --run NEW --truncation fixed", 2, ["--truncation fixed: the only answer comes at the end"]),
    ("train copy --run NEW --bidirectional --truncation fixed", 2, ["--bidirectional reads whole sequences"]),
    ("train lm --run TEXT/below --data TEXT", 1, ["TEXT"]),
    ("train lm --run TMP/other_weights --resume", 1, ["the checkpoint in TMP/other_weights does not fit"]),
    ("train lm --run TMP/other_optimizer --resume", 1, ["the checkpoint in TMP/other_optimizer does not fit"]),
    ("train lm --run TMP/no_position --resume", 1, ["the checkpoint in TMP/no_position does not fit"]),
    ("train lm --run TMP/no_place --resume", 1, ["the checkpoint in TMP/no_place does not fit"]),
    ("train lm --run TMP/a_list --resume", 1, ["the checkpoint in TMP/a_list does not fit"]),
    ("train lm --run TMP/other_data --resume", 2, ["--data is not the data that the run was trained on"]),
    ("train lm --run TMP/two_processes --resume", 2, ["it had 2 processes, now 1"]),
    ("train lm --run TMP/gone --resume", 1, ["no such file or folder: TMP/gone.txt"]),
    ("train copy --run RUN --resume", 2, ["RUN is a run of task lm, not copy"]),
    ("train lm --resume", 2, ["--resume needs --run"]),
    ("train lm --run RUN", 2, ["RUN exists", "--resume"]),
    ("train lm --run TEXT", 2, ["TEXT is a file"]),
    ("train lm --run TMP --resume", 1, ["TMP is not a run folder"]),
    ("train lm --run TMP/bad_config --resume", 1, ["bad_config/config.yaml is damaged"]),
    ("train lm --run TMP/bad_checkpoints --resume", 1, ["every checkpoint in TMP/bad_checkpoints"]),
    (TRAIN + "--data TMP/missing.txt", 1, ["no such file or folder: TMP/missing.txt"]),
    (TRAIN + "--data TMP/empty.txt", 1, ["TMP/empty.txt is empty"]),
    (TRAIN + "--data TMP/binary.txt", 1, ["TMP/binary.txt is binary"]),
    (TRAIN + "--data TMP/latin1.txt", 1, ["TMP/latin1.txt is not UTF-8", "0xe9 at offset 3"]),
    (TRAIN + "--data TMP/cut.txt.gz", 1, ["TMP/cut.txt.gz is not a whole gzip file"]),
    (TRAIN + "--data TMP/plain.txt.gz", 1, ["TMP/plain.txt.gz is not a whole gzip file"]),
    (TRAIN + "--data TEXT --cache TMP/binary.txt", 1, ["cannot keep tokens in TMP/binary.txt/", "--cache chooses"]),
    (TRAIN + "--data TMP/blanks.txt --tokenizer word", 1, ["the train part of TMP/blanks.txt is empty"]),
    (TRAIN + "--data TMP/nothing", 1, ["no file in TMP/nothing matches '*'"]),
    (TRAIN + "--data TMP/short.txt", 1, ["TMP/short.txt is too short", "--window"]),
    (TRAIN + "--data TEXT --validation TMP/empty.txt", 1, ["TMP/empty.txt is empty"]),
    (TRAIN + "--data TEXT --tokenizer bpe --vocab-size 9", 1, ["--vocab-size must be at least 257"]),
    (TRAIN + "--data TEXT --hidden-size 16 --learning-rate 1e38 --optimizer sgd --clip 0", 1, ["at step"]),
    ("evaluate", 2, ["the run folder is missing"]),
    ("evaluate TMP/missing", 1, ["no such run folder: TMP/missing"]),
    ("evaluate TMP/no_config", 1, ["no_config is not a run folder"]),
    ("evaluate TMP/bad_config", 1, ["bad_config/config.yaml is damaged"]),
    ("evaluate TMP/no_model", 1, ["no_model has no model"]),
    ("evaluate TMP/bad_model", 1, ["bad_model/model.safetensors is damaged"]),
    ("evaluate TMP/other_model", 1, ["other_model/model.safetensors does not fit"]),
    ("evaluate TMP/bad_tokenizer", 1, ["bad_tokenizer/tokenizer.json is damaged"]),
    ("evaluate RUN --format jsno", 2, ["unknown --format 'jsno'; did you mean json?"]),
    ("evaluate RUN --data TMP/missing.txt", 1, ["no such file or folder: TMP/missing.txt"]),
    ("evaluate RUN --data TEXT --part test", 2, ["--part"]),
    ("generate RUN --prime 漢字", 2, ["characters that the run's vocabulary lacks: '漢', '字'"]),
    ("generate RUN --length -1", 2, ["--length must be at least 0"]),
    ("generate RUN --top-p 1.5", 2, ["--top-p must be at most 1"]),
    ("predict RUN", 2, ["task lm has no predict; it has evaluate, generate"]),
]


@pytest.mark.parametrize(("command", "status", "words"), BAD_INPUT, ids=[command for command, *_ in BAD_INPUT])
def test_bad_input_gets_one_line_that_names_it(
    command: str, status: int, words: list[str], files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    def filled(text: str) -> str:
        for name, path in files.items():
            text = text.replace(name, path)
        return text

    def contents() -> dict[Path, bytes]:
        folders = (Path(files["TMP"]), Path(files["RUN"]))
        files_there = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
        return {file: file.read_bytes() for file in files_there if "tokens" not in file.parts}  # these serve again

    before = contents()
    found, out, err = run_main(capsys, *filled(command).split())
    assert found == status, err
    assert out == ""
    assert err.splitlines()[-1].startswith("elman: ")
    assert [line for line in err.splitlines() if line.startswith("elman: ")] == err.splitlines()[-1:]
    for word in words:
        assert filled(word) in err
    if "--learning-rate" not in command:
        assert len(err.splitlines()) == 1
        assert contents() == before  # nothing is lost, nothing left behind


def test_the_engine_of_the_environment(
    trained: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["train", "lm", *SMALL, "--data", str(text_file), "--run", str(tmp_path / "run"), "--max-steps", "1"]
    monkeypatch.setenv("ELMAN_ENGINE", "cpuu")
    assert run_main(capsys, *options)[0] == 2
    monkeypatch.setenv("ELMAN_ENGINE", "torch")
    status, _, err = run_main(capsys, *options, "--cell", "peephole_lstm")
    assert status == 2
    assert "'torch' cannot run this layer" in err
    monkeypatch.setenv("ELMAN_ENGINE", "reference")
    status, _, err = run_main(capsys, *options)
    assert status == 0
    assert "engine reference" in err
    assert run_main(capsys, "evaluate", str(trained))[0] == 0


TORCHRUN = {"WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"}


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE must be a positive number, got 'two'"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2 without torchrun; unset it, or use --devices"),
        ({**TORCHRUN}, "LOCAL_WORLD_SIZE is missing, which torchrun sets"),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "two"}, "LOCAL_WORLD_SIZE must be a number, got 'two'"),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "2", "RANK": "-1"}, "RANK must be a number, got '-1'"),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": "http"}, "MASTER_PORT must be a number, got 'http'"),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "3", "WORLD_SIZE": "3"}, "--batch-size 4 is of all processes together"),
        ({"ELMAN_ENGINE": "fast"}, "ELMAN_ENGINE must be one of"),
    ],
    ids=str,
)
def test_a_bad_environment(
    variables: dict[str, str],
    words: str,
    tmp_path: Path,
    text_file: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    run = str(tmp_path / "run")
    status, _, err = run_main(capsys, "train", "lm", *SMALL, "--data", str(text_file), "--run", run)
    assert (status, err.count("\n")) == (2, 1)
    assert words in err
    assert not os.path.exists(run)


def test_a_model_that_memory_cannot_hold(tmp_path: Path, text_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data", str(text_file), "--run", str(tmp_path / "run"), "--hidden-size", "10000000"]
    status, _, err = run_main(capsys, "train", "lm", *options)
    assert status == 1
    assert err.startswith("elman: not enough memory")
    assert err.count("\n") == 1


def test_usage_errors_and_help_need_no_torch() -> None:
    code = (
        "import sys; from elman.cli import main\n"
        "for words in (['--help'], ['--version'], ['tasks'], ['train', 'lm', '--hiden', '3'], ['trian']):\n"
        "    main(words)\n"
        "try: main(['train', 'lm', '--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run_main(capsys, "train", "lm", "--help")
    assert status == 0
    for name in (
        *(
            "--run",
            "--cell",
            "--hidden-size",
            "--num-layers",
            "--bidirectional",
            "--dropout",
            "--epochs",
            "--max-steps",
        ),
        *(
            "--max-minutes",
            "--batch-size",
            "--learning-rate",
            "--optimizer",
            "--seed",
            "--device",
            "--checkpoint-every",
        ),
        *("--resume", "--data", "--config", "--tokenizer", "--tied"),
    ):
        assert name in out
    for arguments in (["--help"], ["train", "--help"], ["evaluate", "--help"], ["generate", "--help"]):
        status, out, err = run_main(capsys, *arguments)
        assert (status, err) == (0, "")
        assert "elman" in out


def test_lists_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(elman.cells.names()) <= set(run_main(capsys, "cells")[1].split())
    assert run_main(capsys, "tasks")[1].startswith("lm\t")
    assert run_main(capsys, "--version")[1] == f"elman {elman.__version__}\n"


def test_the_run_folder(trained: Path, text_file: Path) -> None:
    assert {path.name for path in trained.iterdir()} == {
        *("config.yaml", "tokenizer.json", "model.safetensors", "metrics.jsonl", "tensorboard", "checkpoints")
    }
    lines = metrics_of(trained)
    assert {line["kind"] for line in lines} == {"train", "validation"}
    for line in lines:
        assert {"step", "epoch", "loss", "perplexity", "bits_per_character"} <= line.keys()
    assert lines[-1]["step"] == 30
    assert f"data: {text_file}" in (trained / "config.yaml").read_text()
    with safe_open(trained / "model.safetensors", framework="pt") as model:
        assert "recurrent.weight_hh_l0" in model.keys()  # noqa: SIM118
    assert list((trained / "tensorboard").glob("events*"))


def test_a_saved_configuration_makes_the_same_run(trained: Path, tmp_path: Path) -> None:
    assert main(["train", "lm", "--config", str(trained / "config.yaml"), "--run", str(tmp_path / "run")]) == 0
    assert metrics_of(tmp_path / "run") == metrics_of(trained)
    assert (tmp_path / "run" / "config.yaml").read_text() == (trained / "config.yaml").read_text()


def test_the_default_run_folder_and_limit(
    tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    short = tmp_path / "short.txt"
    short.write_text(text_file.read_text()[:2000])
    assert run_main(capsys, "train", "language-model", *SMALL, "--data", "short.txt")[:2] == (0, "")
    (run,) = (tmp_path / "runs").glob("lm-*")
    assert "epochs: 10\n" in (run / "config.yaml").read_text()
    assert metrics_of(run)[-1]["epoch"] == 10


def test_evaluate(trained: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def evaluate(*options: str) -> dict[str, float]:
        status, out, _ = run_main(capsys, "evaluate", str(trained), "--format", "json", *options)
        assert status == 0
        assert out.count("\n") == 1
        result: dict[str, float] = json.loads(out)
        return result

    text = text_file.read_text()
    assert evaluate()["data"] == "test"
    assert evaluate()["tokens"] == 2000 - 1
    assert evaluate("--data", str(text_file))["tokens"] == len(text) - 1
    validation = next(line for line in reversed(metrics_of(trained)) if line["kind"] == "validation")
    assert evaluate("--part", "validation")["loss"] == validation["loss"]
    test = tmp_path / "test.txt"
    test.write_text(text[-2000:])
    assert evaluate("--data", str(test))["loss"] == evaluate("--part", "test")["loss"]
    status, out, _ = run_main(capsys, "evaluate", str(trained))
    assert status == 0
    assert "bits per character" in out
    (tmp_path / "test.txt").write_text("a")
    assert run_main(capsys, "evaluate", str(trained), "--data", str(test))[0] == 1


def test_generate(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def generate(*options: str) -> str:
        status, out, err = run_main(capsys, "generate", str(trained), "--prime", "import ", *options)
        assert (status, err) == (0, "")
        assert out.startswith("import ")
        return out.removeprefix("import ").removesuffix("\n")

    assert len(generate("--length", "40")) == 40
    seeded = generate("--length", "40", "--seed", "7")
    assert generate("--length", "40", "--seed", "7") == seeded
    assert generate("--length", "40", "--seed", "8") != seeded
    greedy = generate("--length", "40", "--greedy")
    assert generate("--length", "40", "--temperature", "0") == generate("--length", "40", "--top-k", "1") == greedy
    assert generate("--length", "40", "--seed", "7", "--stop", seeded[20]) == seeded[: seeded.index(seeded[20])]


def test_characters_appear_as_they_are_made(trained: Path, elman_process: Start) -> None:
    process = elman_process("generate", str(trained), "--prime", "x", "--length", "100000000")
    assert process.stdout is not None
    read = ""
    while len(read) < 50:
        read += process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == "elman: interrupted\n"


def test_a_reader_that_leaves_is_no_error(trained: Path, elman_process: Start) -> None:
    process = elman_process("generate", str(trained), "--length", "100000000")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(5)
    process.stdout.close()
    assert process.wait(timeout=30) == 141
    assert process.stderr.read() == ""


@pytest.mark.parametrize("tokenizer", ["word", "bpe"])
def test_the_other_tokenizers_from_end_to_end(
    tokenizer: str, tmp_path: Path, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")
    options = ["--tokenizer", tokenizer, "--vocab-size", "300", "--data", str(text_file), "--max-steps", "20"]
    assert run_main(capsys, "train", "lm", *SMALL, *options, "--run", run)[0] == 0
    status, out, _ = run_main(capsys, "generate", run, "--prime", "import ", "--length", "50", "--seed", "0")
    assert status == 0
    assert out.startswith("import ")
    assert "<unk>" not in out
    status, out, _ = run_main(capsys, "evaluate", run, "--format", "json")
    metrics = json.loads(out)
    assert metrics["characters"] > metrics["tokens"]
