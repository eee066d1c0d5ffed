"""The rounds of an alignment run: train, measure, check, publish, and go on, stop, or go back and take smaller steps.

Reads a method (what an update is), a learner and an evaluator; produces finished rounds and the number of the one to keep.
It knows no loss. Everything it decides follows from finished rounds on disk, so a run that is started again after a kill
decides the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import polars as pl

from recsys.alignment.config import GuardConfig
from recsys.alignment.rounds.comparison import resamples_for
from recsys.alignment.rounds.guard import GuardResult, check_round
from recsys.alignment.rounds.learner import Learner, RoundCurve
from recsys.alignment.rounds.measurement import Measurement
from recsys.alignment.rounds.policy_evaluator import PolicyEvaluator
from recsys.alignment.rounds.rules import non_finite
from recsys.alignment.rounds.store import MODEL_NAME, STATE_NAME, Round, RoundStore, load_state, save_state
from recsys.contracts.errors import ArtifactError, DataError
from recsys.model.checkpoint import save_policy
from recsys.runtime import Progress

logger = logging.getLogger(__name__)

CURVE_NAME = "curve.parquet"
CURVE_SCHEMA = {"step": pl.Int64, "name": pl.String, "value": pl.Float64}


@dataclass(frozen=True)
class SmallerSteps:
    """What back-offs change, as factors; 1 before the first.

    Attributes:
        learning_rate: On the learning rate.
        weight: On the weight of the alignment loss.
        loss: How far the loss turns the setting of its own that makes it gentler
            (:meth:`~recsys.alignment.losses.config.PreferenceLossConfig.gentler`).
    """

    learning_rate: float = 1.0
    weight: float = 1.0
    loss: float = 1.0

    @classmethod
    def after(cls, back_offs: int, config: GuardConfig) -> SmallerSteps:
        """The steps after so many back-offs.

        Example:
            >>> SmallerSteps.after(2, GuardConfig())
            SmallerSteps(learning_rate=0.25, weight=0.25, loss=4.0)
        """
        return cls(
            config.back_off_learning_rate**back_offs, config.back_off_weight**back_offs, config.back_off_loss**back_offs
        )


@dataclass
class RoundWork:
    """A round at work, as its method sees it.

    Attributes:
        number: From 1.
        scratch: Folder for what is expensive to make again, such as pairs.
        first_step: Steps of this round that are done already, before a kill.
        smaller_steps: What the guard's back-offs made of the loss.
        curve: Figures so far.
        progress: How long loops show where they are.
        checkpoint: Call after every step with the number of steps done; saves when it is time.
    """

    number: int
    scratch: Path
    first_step: int
    smaller_steps: SmallerSteps
    curve: RoundCurve
    progress: Progress
    checkpoint: Callable[[int], None]


class Method(Protocol):
    """IPA, ReRe, or user feedback."""

    @property
    def num_rounds(self) -> int:
        """Rounds at most."""
        ...

    @property
    def steps_per_round(self) -> int:
        """Steps of one round; a step may make several updates."""
        ...

    def begin(self, state: dict[str, Any] | None) -> None:
        """A round begins; the learner's policy is the one it starts from.

        Args:
            state: :meth:`state_dict` at the end of the round before; ``None`` at the very start.
        """
        ...

    def train(self, work: RoundWork) -> dict[str, Any]:
        """Make the round's steps from ``work.first_step`` on; return facts for the round's summary."""
        ...

    def keep(self, folder: Path, work: RoundWork) -> None:
        """Write what should stay with the finished round beside the model, such as the pairs."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What the method carries beside the learner, such as a reference of its own."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        ...


class CarriesNothing:
    """A method whose rounds leave nothing behind beside the learner's state."""

    def begin(self, state: dict[str, Any] | None) -> None:
        """Nothing is carried from round to round."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing."""


@dataclass(frozen=True)
class AlignmentRun:
    """Finished rounds and what became of them.

    Attributes:
        rounds: The start first.
        kept: Number of the round whose policy is the result; 0 keeps the start.
        stopped: Why no more rounds were run; empty when all were.
    """

    rounds: list[Round]
    kept: int
    stopped: str


@dataclass
class RoundLoop:
    """One alignment run in its work folder.

    1. measure the start;
    2. per round: put the learner where the last good round ended, train, measure, check, publish;
    3. keep the round, or stop, or go back and take smaller steps, by the guard's rule.
    """

    method: Method
    learner: Learner
    evaluator: PolicyEvaluator
    guard: GuardConfig
    store: RoundStore
    checkpoint_every_steps: int
    progress: Progress

    def run(self) -> AlignmentRun:
        """Run all rounds that are not finished yet; the learner ends with the policy of the round that is kept."""
        start_learner = self.learner.state_dict()
        start_learner["policy"] = {name: tensor.clone() for name, tensor in start_learner["policy"].items()}
        first = self.store.find(0, None) or self._measure_start()
        start = Measurement.load(first.path)
        resamples_for(self.guard, start.rows, self.method.num_rounds)  # refused before anything is trained
        rounds, kept, back_offs, stopped = [first], first, 0, ""
        for number in range(1, self.method.num_rounds + 1):
            finished = self.store.find(number, kept)
            if finished is None:
                self.method.begin(self._restore(kept, start_learner))
                finished = self._one_round(number, kept, start, back_offs)
            rounds.append(finished)
            result = GuardResult.from_summary(finished.summary["verdict"])
            if result.broken:
                logger.warning("round %d: %s", number, "; ".join(result.broken))
            if result.decision == "keep":
                _forget_state(kept)
                kept = finished
                continue
            _forget_state(finished)
            if result.decision == "stop" or back_offs == self.guard.max_back_offs:
                stopped = f"round {number}: {'; '.join(result.broken)}"
                break
            back_offs += 1
        self._restore(kept, start_learner)
        return AlignmentRun(rounds, kept.number, stopped)

    def _measure_start(self) -> Round:
        folder = self.store.work_folder(0)
        measured = self.evaluator.measure(self.learner.policy, None, self.progress)
        if sick := non_finite(measured):
            raise DataError(
                f"alignment cannot be guarded: before the first round {'; '.join(sick)}; train the policy or the reward "
                "models again, and look at their training curves"
            )
        measured.save(folder)
        logger.info("alignment starts from: %s", measured.headline())
        return self.store.publish(0, None, folder, {"measured": measured.values})

    def _one_round(self, number: int, parent: Round, start: Measurement, back_offs: int) -> Round:
        """Train, measure, check, publish."""
        smaller = SmallerSteps.after(back_offs, self.guard)
        self.learner.learning_rate_scale = smaller.learning_rate
        work = self._open_work(number, smaller)
        facts = self.method.train(work)
        measured = self.evaluator.measure(self.learner.policy, start, self.progress)
        logger.info("round %d: %s", number, measured.headline())
        kept = start if parent.number == 0 else Measurement.load(parent.path)
        result = check_round(
            start, measured, self.evaluator.users, self.guard, self.store.seed, kept, self.method.num_rounds
        )

        folder = self.store.work_folder(number)
        save_policy(folder / MODEL_NAME, self.learner.policy, name_base=True)
        measured.save(folder)
        self.method.keep(folder, work)
        pl.DataFrame(work.curve.points, schema=CURVE_SCHEMA, orient="row").write_parquet(folder / CURVE_NAME)
        save_state(folder / STATE_NAME, {"learner": self.learner.state_dict(), "method": self.method.state_dict()})
        summary = {
            "measured": measured.values,
            "verdict": result.summary(),
            "training": work.curve.means(),
            "counts": work.curve.counts,
            "smaller_steps": asdict(smaller),
            **facts,
        }
        return self.store.publish(number, parent, folder, summary)

    def _open_work(self, number: int, smaller_steps: SmallerSteps) -> RoundWork:
        """Begin a round, or go on where a kill left it."""
        path = self.store.scratch(number) / STATE_NAME
        curve = RoundCurve()

        def checkpoint(steps: int) -> None:
            if steps % self.checkpoint_every_steps == 0 or steps == self.method.steps_per_round:
                state = {"learner": self.learner.state_dict(), "method": self.method.state_dict()}
                save_state(path, {"steps": steps, **state, "curve": curve.state_dict()})

        work = RoundWork(
            number=number,
            scratch=path.parent,
            first_step=0,
            smaller_steps=smaller_steps,
            curve=curve,
            progress=self.progress,
            checkpoint=checkpoint,
        )
        saved = load_state(path)
        if saved is not None:
            work.first_step = int(saved["steps"])
            self.learner.load_state_dict(saved["learner"])
            self.method.load_state_dict(saved["method"])
            curve.load_state_dict(saved["curve"])
            logger.info("round %d: goes on after %d of %d steps", number, work.first_step, self.method.steps_per_round)
        return work

    def _restore(self, kept: Round, start_learner: dict[str, Any]) -> dict[str, Any] | None:
        """Put the learner back to the end of a finished round, or to the start; return the method's state then."""
        if kept.number == 0:
            self.learner.load_state_dict(start_learner)
            return None
        state = load_state(kept.path / STATE_NAME)
        if state is None:
            raise ArtifactError(
                f"'{kept.path / STATE_NAME}' is missing; round {kept.number} cannot be continued: delete "
                f"'{kept.path.parent.parent}' and run again"
            )
        self.learner.load_state_dict(state["learner"])
        method_state: dict[str, Any] = state["method"]
        return method_state


def _forget_state(finished: Round) -> None:
    """Drop the optimiser of a round that nothing will continue; its model and figures stay."""
    (finished.path / STATE_NAME).unlink(missing_ok=True)
