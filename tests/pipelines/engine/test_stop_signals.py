"""SIGTERM and SIGINT: exit codes, one line, the lock, and training that does not call itself complete."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from pipelines.engine.stop_signals import Stopped, stoppable

COMMAND = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    from unittest import mock
    from pipelines.cli import app
    from pipelines.engine.lock import run_lock

    def work(*arguments, **options):
        with run_lock(Path(sys.argv[1])):
            {work}

    with mock.patch.object(app, "app", work):
        app.main([])
    """
)
SLEEP = 'print("working", flush=True); time.sleep(60)'
TRAIN = """
import lightning, torch, warnings
class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
    def training_step(self, batch):
        print("working", flush=True)
        time.sleep(0.05)
        return self.layer(batch).sum()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)
warnings.simplefilter("ignore")
trainer = lightning.Trainer(max_epochs=1000, logger=False, enable_checkpointing=False, enable_progress_bar=False,
                            enable_model_summary=False, accelerator="cpu")
trainer.fit(Module(), torch.utils.data.DataLoader(torch.ones(64, 1), batch_size=1))
print("complete", flush=True)
"""


def stopped(folder: Path, work: str, *numbers: int) -> tuple[int, str, str]:
    """Exit code and both outputs of a command that got these signals while it worked."""
    code = COMMAND.format(work=textwrap.indent(work, " " * 8).strip())
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        line = process.stdout.readline()
        assert line == "working\n", line + process.stderr.read()
        for number in numbers:
            process.send_signal(number)
        printed, said = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, printed, said


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_command_ends_with_its_code_and_one_line(tmp_path: Path, number: int, code: int) -> None:
    returned, _, said = stopped(tmp_path, SLEEP, number)
    assert returned == code
    assert said.splitlines() == [
        f"stopped by {signal.Signals(number).name}; finished stages are kept: run the same command again to go on"
    ]
    assert (tmp_path / ".lock").read_text() == ""


def test_a_second_sigterm_changes_nothing(tmp_path: Path) -> None:
    """`timeout` sends it to the process, and then to the whole group."""
    assert stopped(tmp_path, SLEEP, signal.SIGTERM, signal.SIGTERM)[0] == 143


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_training_that_is_stopped_is_not_complete(tmp_path: Path, number: int, code: int) -> None:
    """Lightning alone goes on after the batch as if the training had ended, with exit code 0; and answers SIGINT with 1."""
    returned, printed, said = stopped(tmp_path, TRAIN, number)
    assert returned == code, said
    assert "complete" not in printed
    assert "Traceback" not in said


def test_handlers_are_put_back_and_other_threads_are_left_alone() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with suppress(ValueError), stoppable():
        raise ValueError
    assert {number: signal.getsignal(number) for number in before} == before
    try:
        with pytest.raises(Stopped) as stop, stoppable():
            os.kill(os.getpid(), signal.SIGTERM)
        assert (stop.value.exit_code, stop.value.name) == (143, "SIGTERM")
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN  # the process is ending: a second one changes nothing
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    entered = []

    def enter() -> None:
        with stoppable():
            entered.append(signal.getsignal(signal.SIGTERM) is before[signal.SIGTERM])

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered == [True]
