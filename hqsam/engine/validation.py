"""Validation while training: the numbers that the predictor will reproduce, and the best head so far."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from hqsam.data import ImageRecord
from hqsam.engine.distributed import World, from_main
from hqsam.engine.evaluation.columns import possible_columns
from hqsam.engine.evaluation.config import EvalOptions
from hqsam.engine.evaluation.masks import evaluate
from hqsam.engine.evaluation.pictures import draw_case, main_column, rank_cases, write_case_pictures
from hqsam.engine.evaluation.plan import plan_items
from hqsam.engine.evaluation.protocols import make_path
from hqsam.engine.evaluation.report import COLUMN_TITLES, EvalResult
from hqsam.engine.evaluation.runner import EvaluationStopped
from hqsam.engine.logs import RunLog
from hqsam.engine.schedule import is_due
from hqsam.engine.signals import StopSignals
from hqsam.engine.state import save_trained
from hqsam.engine.train_config import TrainConfig
from hqsam.engine.trainer import Trainer

logger = logging.getLogger(__name__)


class Validator:
    """Evaluates the model under training through the public predictor.

    Attributes:
        best: highest mean boundary IoU over sets so far, in percent: of the SAM+HQ mask, or of a plain SAM's.
        last: result of the last run.
    """

    def __init__(
        self, records: Sequence[ImageRecord], config: TrainConfig, world: World, *, best: float | None = None
    ) -> None:
        self.records = records
        self.folder = Path(config.output_dir)
        self.world = world
        self.options = EvalOptions(max_per_source=config.data.val_per_source, workers=1)
        self.every = config.loop.val_every
        self.panels = config.loop.panels
        self.best = best
        self.last: EvalResult | None = None

    def catch_up(self, trainer: Trainer, log: RunLog, signals: StopSignals) -> bool:
        """Do the validation that the run was in when it ended, if it was; every process calls this.

        A state is saved before the validation of its step, whose scores enter the log in the end. They are counted in
        `best`, which the state does not know.

        Returns:
            False if a signal came meanwhile, True otherwise.
        """
        if not self.records:
            return True
        logged = from_main(log.validations, self.world)
        main = main_column(possible_columns(trainer.model))
        values = [entry[f"{main}_mbiou"] for entry in logged.values()]
        self.best = max([*values, *([] if self.best is None else [self.best])], default=None)
        step, plan = trainer.step, trainer.plan
        due = step > 0 and (is_due(step, self.every, plan) or step == plan.total_steps)
        return step in logged or not due or self.run(trainer, log, signals)

    def run(self, trainer: Trainer, log: RunLog, signals: StopSignals | None = None) -> bool:
        """Evaluate, log, keep the head if it is the best; without data nothing happens. Every process calls this.

        Args:
            trainer: whose model is evaluated.
            log: where numbers and pictures go; a validation of the same step that is there already is not logged again.
            signals: a signal ends the evaluation at once, without a result.

        Returns:
            False if a signal ended it, on this process or another; True otherwise.
        """
        if not self.records:
            return True
        start = time.perf_counter()
        try:
            with log.paused():
                result = evaluate(
                    trainer.model,
                    self.records,
                    self.options,
                    world=self.world,
                    progress=True,
                    stop=lambda: signals is not None and signals.received,
                )
        except EvaluationStopped:
            logger.warning("validation of step %d was broken off; it is done first when the run goes on", trainer.step)
            return False
        result.protocol["model"] = {"name": trainer.config.model.name, **result.protocol["model"]}
        self.last = result
        main = main_column(tuple(result.mean))  # type: ignore[arg-type]
        means = ", ".join(
            f"{COLUMN_TITLES[column]} {result.mean[column]['miou']:.2f} mIoU {result.mean[column]['mbiou']:.2f} mBIoU"
            for column in dict.fromkeys(("sam", main))
        )
        logger.info("step %d, validation mean: %s (%.0f s)", trainer.step, means, time.perf_counter() - start)
        self._keep_best(trainer, result.mean[main]["mbiou"])
        if self.world.is_main:
            if self.panels:
                self._show(trainer, result, log)
            if trainer.step not in log.validations():
                self._log(trainer.step, result, log)
        return True

    def _keep_best(self, trainer: Trainer, value: float) -> None:
        # The masks of a score head never change: of equal values the latest counts, whose head has learned most.
        if self.best is not None and (value < self.best or (value == self.best and "score" not in trainer.trained)):
            return
        self.best = value
        if self.world.is_main:
            strings = {"step": str(trainer.step), "val_mbiou": f"{value:.3f}"}
            save_trained(trainer, self.folder / "checkpoints" / "best.safetensors", strings)

    def _log(self, step: int, result: EvalResult, log: RunLog) -> None:
        """The mean comes last: where it is, the validation of the step is done and all of it is there."""
        for name, scores in {**result.sets, "mean": result.mean}.items():
            values = {f"{column}_{key}": scores[column][key] for column in scores for key in ("miou", "mbiou")}
            log.entry(step, {"val": name, **values}, prefix=f"val/{name}/")

    def _show(self, trainer: Trainer, result: EvalResult, log: RunLog) -> None:
        """In TensorBoard the same few objects each time, spread over the sets, and the extreme ones of this time.

        Those of the last step are files too.
        """
        items = plan_items(self.records, self.options.max_per_source)
        by_image = {(item.set, item.image): item for item in items}
        scores = {(record.set, record.image, record.object): record for record in result.records}
        path = make_path(trainer.model.eval(), self.options)
        for item in items[:: max(1, len(items) // self.panels)][: self.panels]:
            record = scores.get((item.set, item.image, item.objects[0]))
            if record is not None:
                log.picture(
                    trainer.step, f"val/{item.set}/{item.image}", draw_case(path, item, item.objects[0], record)
                )
        for kind, cases in rank_cases(result.records, self.panels).items():
            for rank, record in enumerate(cases, start=1):
                pixels = draw_case(path, by_image[record.set, record.image], record.object, record)
                log.picture(trainer.step, f"val_{kind}/{rank:02d}", pixels)
        if trainer.step == trainer.plan.total_steps:
            write_case_pictures(path, items, result.records, self.panels, self.folder / "plots")
        trainer.model.train()
