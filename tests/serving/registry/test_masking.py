"""Secrets of servers: what is shown, what is masked, and that no file, log or screen holds one after a command."""

from __future__ import annotations

import http.server
import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.cli.app import main
from pipelines.config import load_run_config, to_yaml
from serving.registry import masking
from serving.registry.file_store import sqlite_uri
from serving.registry.masking import MaskingFormatter, masked, remember, shown
from serving.registry.mlflow_client import connect

DEMO = Path(__file__).resolve().parents[3] / "pipelines" / "recipes" / "demo.yaml"
PASSWORD = "s3cr@et-Pw"


@pytest.fixture(autouse=True)
def _nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets that an earlier test has taught are forgotten."""
    monkeypatch.setattr(masking, "_known", set())


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("https://ann:secret@host:5000/x", "https://host:5000/x"),
        ("https://ann:se@cr@et@host", "https://host"),
        ("postgresql+psycopg2://ann:se/c:ret@db/mlflow", "postgresql+psycopg2://db/mlflow"),
        ("https://host/x?token=abc&page=2", "https://host/x?token=***&page=2"),
        ("postgresql://db/mlflow?user=ann&Password=abc", "postgresql://db/mlflow?user=ann&Password=***"),
        ("https://host/x", "https://host/x"),
        ("sqlite:////runs/a@b/mlflow.db", "sqlite:////runs/a@b/mlflow.db"),
        ("databricks", "databricks"),
    ],
)
def test_what_is_shown_of_a_uri(uri: str, expected: str) -> None:
    assert shown(uri) == expected


def test_texts_of_libraries_are_masked() -> None:
    """As it is written, and decoded, and encoded once more."""
    remember("https://ann:p%40ss-word1@host", {"MLFLOW_TRACKING_TOKEN": "tok-12345"})
    text = "cannot reach https://ann:p%40ss-word1@host (p@ss-word1), bearer tok-12345, p%2540ss-word1"
    assert masked(text) == "cannot reach https://***@host (***), bearer ***, ***"
    record = logging.LogRecord("urllib3", logging.ERROR, "x", 1, "retry %s", ("tok-12345",), None)
    assert MaskingFormatter("%(message)s").format(record) == "retry ***"


@pytest.mark.parametrize(
    "name", ["AWS_SECRET_ACCESS_KEY", "AZURE_STORAGE_CONNECTION_STRING", "DATABRICKS_TOKEN", "HF_TOKEN", "my_api_key"]
)
def test_secrets_of_the_environment_are_masked(name: str) -> None:
    value = f"of-{name}-9f3"
    remember(None, {name: value, "KEYBOARD": "qwertz-us", "MY_TOKEN": "true", "PWD": "/home/ann"})
    assert masked(f"denied: {value} qwertz-us true /home/ann") == "denied: *** qwertz-us true /home/ann"


@pytest.mark.parametrize("query", ["X-Amz-Signature=qu3ry-one", "sv=1&sig=qu3ry-one", "key=qu3ry-one&page=2"])
def test_signed_addresses_are_masked(query: str) -> None:
    assert "qu3ry-one" not in shown(f"https://host/x?{query}")
    remember(f"https://host/x?{query}", {})
    assert masked("403 for qu3ry-one") == "403 for ***"


def test_a_secret_is_found_as_python_and_json_quote_it() -> None:
    secret = "back\\slash\"and'ü"
    remember(f"https://ann:{secret}@host", {})
    for text in (repr(secret), json.dumps(secret), secret):
        assert "slash" not in masked(text)
        assert "***" in masked(text)


WRONG = [
    ["tracking.uri=URI", "tracking.bogus=1"],
    ["tracking.ury=URI"],
    ["tracking.timeout_s=URI"],
    ["seed.of=URI"],
    ["tracking.uri=URI$NOT_SET_ANYWHERE"],
    ["tracking.uri: URI"],
    ["train.max_epochs=[URI"],
    ["--tracking-uri", "URI"],
    ["--as-of", "URI"],
]


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong[0])
def test_a_configuration_that_cannot_be_read_is_quoted_without_its_secret(
    wrong: list[str], form: str, capfd: pytest.CaptureFixture[str]
) -> None:
    uri = f"http://ann:{PASSWORD}@127.0.0.1:9"
    arguments = [word.replace("URI", uri) for word in wrong]
    with pytest.raises(SystemExit) as end:
        main(["run", "--config", str(DEMO), "--log-format", form, *arguments])
    screen = capfd.readouterr()
    assert end.value.code == 2
    assert screen.err
    assert PASSWORD not in screen.out + screen.err
    assert "et-Pw" not in screen.out + screen.err


@pytest.mark.parametrize("line", ["uri: URI\n  ury: 1", "ury: URI", "uri: [URI", "uri: {a: URI", "uri: $NOT_SET_URI"])
def test_so_is_a_recipe(tmp_path: Path, line: str, capfd: pytest.CaptureFixture[str]) -> None:
    text = f"source: {{kind: simulated}}\ntracking:\n  {line}\n"
    (tmp_path / "shop.yaml").write_text(text.replace("URI", f"http://ann:{PASSWORD}@127.0.0.1:9"))
    with pytest.raises(SystemExit) as end:
        main(["status", "--config", str(tmp_path / "shop.yaml")])
    screen = capfd.readouterr()
    assert end.value.code == 2
    assert "et-Pw" not in screen.out + screen.err


def test_what_follows_the_dollar_sign_of_a_password_is_not_taken_for_a_variable_and_told(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["status", "--config", str(DEMO), "tracking.uri=http://ann:pass$Word77@host"])
    told = capfd.readouterr().err
    assert "'http://***@host', but the environment variable '…' is not set" in told
    assert "a dollar sign in a name is written $$" in told
    assert "Word77" not in told
    with pytest.raises(SystemExit):
        main(["status", "--config", str(DEMO), "output_dir=$NOT_SET_HERE/x"])
    assert "the environment variable 'NOT_SET_HERE' is not set" in capfd.readouterr().err


def test_nor_is_it_in_a_recipe_that_another_extends(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "base.yaml").write_text("source: {kind: simulated}\ntracking: {uri: 'http://ann:pass$Word99@host'}\n")
    (tmp_path / "shop.yaml").write_text("extends: base.yaml\n")
    with pytest.raises(SystemExit):
        main(["status", "--config", str(tmp_path / "shop.yaml")])
    told = capfd.readouterr().err
    assert "uri is 'http://***@host'" in told
    assert "Word99" not in told


def test_so_are_a_recipe_that_another_extends_and_a_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHOP_PW", "from-env/w0rd")  # by its name no secret: it is one where it stands
    (tmp_path / "base.yaml").write_text(
        f"source: {{kind: simulated}}\ntracking: {{ury: 'http://ann:{PASSWORD}@host'}}\n"
    )
    (tmp_path / "shop.yaml").write_text("extends: base.yaml\nexport: {url: 'http://ann:$SHOP_PW@host'}\n")
    with pytest.raises(SystemExit):
        main(["status", "--config", str(tmp_path / "shop.yaml")])
    screen = capfd.readouterr().err
    assert "unknown key 'tracking.ury' (value 'http://***@host')" in screen
    assert "unknown key 'export.url' (value 'http://***@host')" in screen


def test_mlflow_prints_no_uri_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It wrote "View run at http://ann:password@…" on standard output whenever a model was registered at a server."""
    from mlflow.environment_variables import MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT as SILENT

    monkeypatch.setenv(SILENT.name, "false")
    connect(sqlite_uri(tmp_path / "mlflow.db"))
    assert SILENT.get()


def test_the_resolved_configuration_holds_no_password() -> None:
    config = load_run_config(DEMO, [f"tracking.uri=https://ann:{PASSWORD}@host/x"])
    assert config.tracking.uri == f"https://ann:{PASSWORD}@host/x"
    assert "uri: https://host/x" in to_yaml(config)
    assert PASSWORD not in to_yaml(config)


@pytest.fixture
def failing_server() -> Iterator[int]:
    """Answers everything with 500 and says what it was asked."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = f"no: {self.headers.get('Authorization')} {PASSWORD}".encode()
            self.send_response(500)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *arguments: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def test_no_secret_in_any_file_or_on_the_screen(
    tmp_path: Path, failing_server: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """7be21f4 wrote it into config.yaml, printed it with --dry-run and twice when the server failed."""
    given = [
        "--config",
        str(DEMO),
        f"output_dir={tmp_path / 'out'}",
        f"tracking.uri=http://ann:{PASSWORD}@127.0.0.1:{failing_server}",
        "tracking.timeout_s=1",
        "source.users=100",
        "source.items=150",
        "source.events=6000",
    ]
    for arguments in (["prepare", *given, "--dry-run"], ["prepare", *given, "--log-level", "debug"]):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 0
    with pytest.raises(SystemExit) as end:
        main(["rollback", *given])
    assert end.value.code == 4
    screen = capfd.readouterr()
    assert "refused or did not answer" in screen.err
    forms = (PASSWORD, PASSWORD.replace("@", "%40"), "et-Pw")
    assert not [form for form in forms if form in screen.out + screen.err]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "config.yaml" for path in files)
    assert not [path for path in files for form in forms if form.encode() in path.read_bytes()]
