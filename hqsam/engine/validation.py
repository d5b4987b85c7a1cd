"""Validation while training: the numbers that the predictor will reproduce, and the best head so far."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from hqsam.data import ImageRecord
from hqsam.engine.distributed import World
from hqsam.engine.eval_config import EvalOptions
from hqsam.engine.eval_pictures import draw_case
from hqsam.engine.eval_plan import plan_items
from hqsam.engine.eval_protocols import make_path
from hqsam.engine.eval_report import EvalResult
from hqsam.engine.evaluation import evaluate
from hqsam.engine.logs import RunLog
from hqsam.engine.state import save_trained
from hqsam.engine.train_config import TrainConfig
from hqsam.engine.trainer import Trainer

logger = logging.getLogger(__name__)


class Validator:
    """Evaluates the model under training through the public predictor.

    Attributes:
        best: highest mean boundary IoU over sets of the SAM+HQ mask so far, in percent.
        last: result of the last run.
    """

    def __init__(
        self, records: Sequence[ImageRecord], config: TrainConfig, world: World, *, best: float | None = None
    ) -> None:
        self.records = records
        self.best_file = Path(config.output_dir) / "checkpoints" / "best.safetensors"
        self.world = world
        self.options = EvalOptions(max_per_source=config.data.val_per_source, workers=1)
        self.panels = config.loop.panels
        self.best = best
        self.last: EvalResult | None = None

    def run(self, trainer: Trainer, log: RunLog) -> None:
        """Evaluate, log, keep the head if it is the best; without data nothing happens. Every process calls this."""
        if not self.records:
            return
        start = time.perf_counter()
        with log.paused():
            result = evaluate(trainer.model, self.records, self.options, world=self.world, progress=True)
        result.protocol["model"] = {"name": trainer.config.model.name, **result.protocol["model"]}
        self.last = result
        for name, scores in {"mean": result.mean, **result.sets}.items():
            values = {f"{column}_{key}": scores[column][key] for column in scores for key in ("miou", "mbiou")}
            log.entry(trainer.step, {"val": name, **values}, prefix=f"val/{name}/")
        sam, fused = result.mean["sam"], result.mean["sum"]
        logger.info(
            "step %d, validation mean: SAM %.2f mIoU %.2f mBIoU, SAM+HQ %.2f mIoU %.2f mBIoU (%.0f s)",
            trainer.step,
            sam["miou"],
            sam["mbiou"],
            fused["miou"],
            fused["mbiou"],
            time.perf_counter() - start,
        )
        if self.best is None or fused["mbiou"] > self.best:
            self.best = fused["mbiou"]
            if self.world.is_main:
                metadata = {"step": str(trainer.step), "val_mbiou": f"{self.best:.3f}"}
                save_trained(trainer, self.best_file, metadata)
        if self.world.is_main and self.panels:
            self._show(trainer, result, log)

    def _show(self, trainer: Trainer, result: EvalResult, log: RunLog) -> None:
        """The same few objects each time, spread over the sets."""
        items = plan_items(self.records, self.options.max_per_source)
        scores = {(record.set, record.image, record.object): record for record in result.records}
        path = make_path(trainer.model.eval(), self.options)
        for item in items[:: max(1, len(items) // self.panels)][: self.panels]:
            record = scores.get((item.set, item.image, item.objects[0]))
            if record is not None:
                log.picture(
                    trainer.step, f"val/{item.set}/{item.image}", draw_case(path, item, item.objects[0], record)
                )
        trainer.model.train()
