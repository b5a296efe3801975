"""Ranks, collectives, wrapping, precision and stop signals for PyTorch training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from brain_dist.lazy import load_on_first_use

if TYPE_CHECKING:
    from brain_dist.collectives import (
        ddp_all_reduce,
        ddp_barrier,
        ddp_broadcast,
        gather_objects,
        raise_on_all_ranks,
        sum_over_ranks,
    )
    from brain_dist.control_group import set_control_timeout
    from brain_dist.errors import OutOfStepError, RanksLostError, RemoteError
    from brain_dist.evaluation import (
        ExactMean,
        gather_sharded,
        local_forward,
        shard_items,
        share_buffers,
    )
    from brain_dist.group import ddp_init_group
    from brain_dist.main_process import (
        main_process_only,
        once_per_node,
        run_on_main,
        run_once_per_node,
    )
    from brain_dist.out_of_step import collective_call
    from brain_dist.parallel.bucket_order import BucketOrder
    from brain_dist.parallel.consistency import check_same_modules
    from brain_dist.parallel.full_state_dict import (
        full_state_dict,
        is_sharded,
        load_full_state_dict,
    )
    from brain_dist.parallel.no_sync import no_sync
    from brain_dist.parallel.warm_up import warm_up_step
    from brain_dist.parallel.weighted_gradients import WeightedGradients
    from brain_dist.parallel.wrap import wrap_modules
    from brain_dist.parallel.wrapped_modules import reshard, sync_trainable, unwrap_module
    from brain_dist.precision import (
        AMPConfig,
        TorchAutocast,
        fwd_default_precision,
        make_grad_scaler,
    )
    from brain_dist.stopping.failures import propagate_failures
    from brain_dist.stopping.hang_watch import HangWatch
    from brain_dist.stopping.signals import EXIT_REQUEUE, StopSignal, shield_from_stop_signals
    from brain_dist.stopping.vote import StepVote
    from brain_dist.world import (
        World,
        get_local_rank,
        get_rank,
        get_world_size,
        if_main_process,
        infer_device,
        is_distributed_initialized,
        is_local_rank_zero,
    )

__all__ = [
    "EXIT_REQUEUE",
    "AMPConfig",
    "BucketOrder",
    "ExactMean",
    "HangWatch",
    "OutOfStepError",
    "RanksLostError",
    "RemoteError",
    "StepVote",
    "StopSignal",
    "TorchAutocast",
    "WeightedGradients",
    "World",
    "check_same_modules",
    "collective_call",
    "ddp_all_reduce",
    "ddp_barrier",
    "ddp_broadcast",
    "ddp_init_group",
    "full_state_dict",
    "fwd_default_precision",
    "gather_objects",
    "gather_sharded",
    "get_local_rank",
    "get_rank",
    "get_world_size",
    "if_main_process",
    "infer_device",
    "is_distributed_initialized",
    "is_local_rank_zero",
    "is_sharded",
    "load_full_state_dict",
    "local_forward",
    "main_process_only",
    "make_grad_scaler",
    "no_sync",
    "once_per_node",
    "propagate_failures",
    "raise_on_all_ranks",
    "reshard",
    "run_on_main",
    "run_once_per_node",
    "set_control_timeout",
    "shard_items",
    "share_buffers",
    "shield_from_stop_signals",
    "sum_over_ranks",
    "sync_trainable",
    "unwrap_module",
    "warm_up_step",
    "wrap_modules",
]

__version__ = "0.1.0"

# The public names by module; a module is imported at the first use of one of its names.
_HOMES = {
    ".parallel.consistency": "check_same_modules",
    ".collectives": "ddp_all_reduce ddp_barrier ddp_broadcast gather_objects raise_on_all_ranks "
    "sum_over_ranks",
    ".out_of_step": "collective_call",
    ".control_group": "set_control_timeout",
    ".errors": "OutOfStepError RanksLostError RemoteError",
    ".evaluation": "ExactMean shard_items share_buffers gather_sharded local_forward",
    ".stopping.failures": "propagate_failures",
    ".parallel.bucket_order": "BucketOrder",
    ".group": "ddp_init_group",
    ".parallel.wrapped_modules": "reshard sync_trainable unwrap_module",
    ".main_process": "main_process_only once_per_node run_on_main run_once_per_node",
    ".precision": "AMPConfig TorchAutocast fwd_default_precision make_grad_scaler",
    ".parallel.warm_up": "warm_up_step",
    ".stopping.hang_watch": "HangWatch",
    ".stopping.signals": "EXIT_REQUEUE StopSignal shield_from_stop_signals",
    ".stopping.vote": "StepVote",
    ".parallel.no_sync": "no_sync",
    ".parallel.weighted_gradients": "WeightedGradients",
    ".parallel.full_state_dict": "full_state_dict is_sharded load_full_state_dict",
    ".world": "World get_local_rank get_rank get_world_size if_main_process infer_device "
    "is_distributed_initialized is_local_rank_zero",
    ".parallel.wrap": "wrap_modules",
}
__getattr__, __dir__ = load_on_first_use(__name__, _HOMES)
