"""A whole small project: the real dvc and mlflow on a model that trains in a second."""

import contextlib
import importlib
import io
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

from models.demo.base import train_tokenizer
from models.demo.texts import documents
from simple_llama import cli
from simple_llama.data.prompt import ChatTokenizer
from simple_llama.model.decoder import Decoder
from simple_llama.model.folder import save_model
from simple_llama.params.reading import Params
from simple_llama.tracking.store import import_mlflow
from tests.support.models import tiny_config
from tests.support.store import empty_store

ROOT = Path(__file__).parents[2]
LEFT_OUT = ("dvc.lock", "models/demo/dvc.yaml", "models/demo/dvc.lock")
"""Of the tracked files: as for anyone with a model of their own."""


class Project:
    """A copy of the tracked files as a git repository of its own, with a tiny base model."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def make(cls, root: Path) -> "Project":
        project = cls(root)
        project._make()
        return project

    def _make(self) -> None:
        root = self.root
        tracked = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        for name in tracked:
            if (ROOT / name).is_file() and name not in LEFT_OUT:
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, root / name)
        rows = json.loads((ROOT / "data/raw/demo_sft.json").read_text())[:160]
        (root / "data/raw/few.json").write_text(json.dumps(rows))
        self.make_base()
        self.set(
            ft_json_path="data/raw/few.json",
            tokenizer_path="base/tokenizer.json",
            model_path="base",
            epochs=2,
            max_lr=0.003,
            eval_interval=4,
            warmup_iterations=2,
            exact_match_max_tokens=12,
            device="cpu",
        )
        shutil.copyfile(empty_store(), root / "mlflow.db")
        with contextlib.closing(sqlite3.connect(root / "mlflow.db")) as database, database:
            place = (root.resolve() / "mlruns/Default").as_uri()
            database.execute("UPDATE experiments SET artifact_location = ?", (place,))
        self.run("git", "init", "-qb", "main")
        self.run("git", "config", "user.name", "a")
        self.run("git", "config", "user.email", "a@b.c")
        self.commit("start")

    def commit(self, message: str) -> None:
        self.run("git", "add", "-A")
        self.run("git", "commit", "-qm", message)

    def make_base(self) -> None:
        folder = self.root / "base"
        folder.mkdir()
        texts = [text for text, _ in zip(documents(0), range(400))]
        train_tokenizer(texts, 400).save(str(folder / "bpe.json"))
        chat = ChatTokenizer.from_path(
            folder / "bpe.json",
            prompt_format="simple_llama",
            system_prompt="",
            model_max_length=256,
        )
        chat.save(self.root / "tokenizer")
        config = tiny_config(
            vocab_size=chat.vocab_size,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=256,
            tie_word_embeddings=True,
        )
        model = Decoder(config)
        model.init_weights(0)
        save_model(model, folder, self.root / "tokenizer")
        shutil.rmtree(self.root / "tokenizer")

    def set(self, **values: object) -> None:
        path = self.root / "params.yaml"
        lines = path.read_text().splitlines()
        for key, value in values.items():
            at = next(i for i, line in enumerate(lines) if line.startswith(f"{key}:"))
            lines[at] = f"{key}: {value}"
        path.write_text("\n".join(lines) + "\n")

    def param(self, key: str) -> Any:
        return Params(self.root / "params.yaml").values[key]

    @property
    def environment(self) -> dict[str, str]:
        """What commands see: nothing of the tests' own DVC and MLflow, and Python may keep what it
        compiles."""
        hidden = ("DVC_", "MLFLOW_", "PYTHONDONTWRITEBYTECODE")
        return {
            **{k: v for k, v in os.environ.items() if not k.startswith(hidden)},
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "DVC_NO_ANALYTICS": "1",
        }

    def start(
        self, *command: str, output: Path, env: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """A command in a session of its own, its output and errors in a file: unlike a pipe, that
        does not wait for children that outlive it."""
        with open(output, "wb") as file:
            return subprocess.Popen(
                command,
                cwd=self.root,
                env={**self.environment, **(env or {})},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def run(self, *command: str, fails: bool = False, env: dict[str, str] | None = None) -> str:
        """Output and errors of a command that ends well, or with another exit code than 0."""
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder, "output")
            code = self.start(*command, output=output, env=env).wait()
            said = output.read_text(errors="replace")
        assert (code != 0) == fails, said
        return said

    def call(self, program: str, *arguments: str, fails: bool = False) -> str:
        """The same of a stage, such as stages.train, or of simple-llama, called in this process,
        which has imported torch and MLflow already. The code is this repository's, not the
        project's copy."""
        main = cli.main if program == "simple-llama" else importlib.import_module(program).main
        said, code = io.StringIO(), None
        with (
            contextlib.chdir(self.root),
            mock.patch.dict(os.environ, self.environment, clear=True),
            mock.patch.object(sys, "argv", [program, *arguments]),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
        ):
            try:
                main()
            except SystemExit as end:
                code = end.code
                if isinstance(code, str):
                    print(code, file=sys.stderr)
        assert bool(code) == fails, said.getvalue()
        return said.getvalue()

    def tracked(self) -> Any:
        """The run of models/run.json, as MLflow has it."""
        return self.client().get_run(self.json("models/run.json")["run_id"])

    def client(self) -> Any:
        """MLflow's, of the project's store."""
        uri = f"sqlite:///{self.root}/mlflow.db"
        return import_mlflow().MlflowClient(uri, uri)

    def json(self, name: str) -> Any:
        return json.loads((self.root / name).read_text())


COMMITTED = Path(__file__).parents[2] / "params.yaml"


def with_value(tmp_path: Path, key: str, value: str) -> Path:
    """The committed file with one value replaced."""
    text, changed = re.subn(rf"(?m)^{key}:.*$", f"{key}: {value}", COMMITTED.read_text())
    assert changed == 1
    path = tmp_path / "params.yaml"
    path.write_text(text)
    return path
