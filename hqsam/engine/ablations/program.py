"""The program `hqsam ablate CONFIG.yaml [key=value ...]`; under ``torchrun`` it uses all the processes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from hqsam.engine.ablations.config import AblationConfig, plan_variants, select_variants
from hqsam.engine.ablations.running import finished_result, read_result, run_variant
from hqsam.engine.ablations.table import format_table, write_table
from hqsam.engine.allocator import keep_freed_memory
from hqsam.engine.config import describe_settings, load_config
from hqsam.engine.distributed import World, configure_logging, from_main, join_world
from hqsam.engine.signals import STOPPED
from hqsam.engine.trainer import NonFiniteLossError
from hqsam.errors import HqsamError

logger = logging.getLogger(__name__)

USAGE = """usage: hqsam ablate CONFIG.yaml [key=value ...] [--only NAME]

example: hqsam ablate configs/ablations/smoke.yaml
         torchrun --nproc_per_node=8 --no-python hqsam ablate configs/ablations/hq_vit_tiny.yaml
"""


def ablate(config: AblationConfig, world: World | None = None, only: Sequence[str] = ()) -> str | None:
    """Run all variants one after the other and write the table after each; every process calls this.

    Args:
        config: from `load_config(AblationConfig, ...)`.
        world: the group; None for this process alone.
        only: names of variants; empty for all. The table has whatever is finished.

    Returns:
        The table as Markdown; None if a signal ended it, the same call goes on from there.

    Raises:
        HqsamError: the configuration, a file or the data are unusable, a variant's folder is of other settings, or a
            loss became non-finite.
    """
    world = world or World()
    variants = plan_variants(config)
    chosen = select_variants(variants, only)

    def summarise() -> str:
        results = {variant.name: finished_result(variant, read_result(variant)) for variant in variants}
        done = [result for result in results.values() if result is not None]
        missing = [name for name, result in results.items() if result is None]
        write_table(done, missing, config.train.model.name, Path(config.output_dir))
        return format_table(done, missing, config.train.model.name)

    table = ""
    for number, variant in enumerate(chosen, start=1):
        logger.info("variant %d of %d: %s", number, len(chosen), variant.name)
        if not run_variant(variant, world):
            return None
        table = from_main(summarise, world)
    return table


def main(arguments: Sequence[str] | None = None, only: Sequence[str] = ()) -> int:
    """Program of `hqsam ablate`.

    Args:
        arguments: configuration file and overrides; None takes those of the command line.
        only: names of the variants to run; empty for all.

    Returns:
        Exit status: 0 when all is done, 143 when a signal stopped it, 1 for a loss that is not finite, 2 for bad input.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or {"-h", "--help"} & set(arguments):
        keys = [row for row in describe_settings(AblationConfig) if row[0] not in ("train.output_dir", "train.resume")]
        rows = [f"  {key:28} {default:12} {text}" for key, default, text in keys]
        stream = sys.stdout if arguments else sys.stderr
        stream.write("\n".join([USAGE, "keys and defaults:", *rows]) + "\n")
        return 0 if arguments else 2
    try:
        config = load_config(AblationConfig, arguments[0], arguments[1:])
        with join_world(config.train.device) as world:
            configure_logging(world)
            keep_freed_memory(world.device)
            table = ablate(config, world, only)
            if table is None:
                logger.warning("stopped by a signal; the same command goes on from here")
                return STOPPED
            if world.is_main:
                sys.stdout.write(table)
    except HqsamError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1 if isinstance(error, NonFiniteLossError) else 2
    return 0
