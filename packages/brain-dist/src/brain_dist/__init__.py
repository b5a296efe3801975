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
        raise_together,
        sum_over_ranks,
    )
    from brain_dist.control_group import set_control_timeout
    from brain_dist.errors import RanksLostError, RemoteError
    from brain_dist.evaluation import ExactMean, deal, gather_dealt, local_forward
    from brain_dist.group import ddp_init_group
    from brain_dist.main_process import (
        main_process_only,
        once_per_node,
        run_on_main,
        run_once_per_node,
    )
    from brain_dist.parallel.bucket_order import GradientOrder
    from brain_dist.parallel.consistency import check_same_modules
    from brain_dist.parallel.full_state_dict import (
        full_state_dict,
        is_sharded,
        load_full_state_dict,
    )
    from brain_dist.parallel.no_sync import no_sync
    from brain_dist.parallel.warm_up import rehearse
    from brain_dist.parallel.weighted_gradients import WeightedGradients
    from brain_dist.parallel.wrap import wrap_modules
    from brain_dist.parallel.wrapped_modules import unwrap_module
    from brain_dist.precision import (
        AMPConfig,
        TorchAutocast,
        fwd_default_precision,
        make_grad_scaler,
    )
    from brain_dist.stopping.failures import failing_together
    from brain_dist.stopping.signals import EXIT_TRY_AGAIN, StopSignal, outlive_stop_signals
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
    "EXIT_TRY_AGAIN",
    "AMPConfig",
    "ExactMean",
    "GradientOrder",
    "RanksLostError",
    "RemoteError",
    "StepVote",
    "StopSignal",
    "TorchAutocast",
    "WeightedGradients",
    "World",
    "check_same_modules",
    "ddp_all_reduce",
    "ddp_barrier",
    "ddp_broadcast",
    "ddp_init_group",
    "deal",
    "failing_together",
    "full_state_dict",
    "fwd_default_precision",
    "gather_dealt",
    "gather_objects",
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
    "outlive_stop_signals",
    "raise_together",
    "rehearse",
    "run_on_main",
    "run_once_per_node",
    "set_control_timeout",
    "sum_over_ranks",
    "unwrap_module",
    "wrap_modules",
]

__version__ = "0.1.0"

# Where each public name is; a module is imported when a name of it is first used.
_HOMES = {
    ".parallel.consistency": "check_same_modules",
    ".collectives": "ddp_all_reduce ddp_barrier ddp_broadcast gather_objects raise_together "
    "sum_over_ranks",
    ".control_group": "set_control_timeout",
    ".errors": "RanksLostError RemoteError",
    ".evaluation": "ExactMean deal gather_dealt local_forward",
    ".stopping.failures": "failing_together",
    ".parallel.bucket_order": "GradientOrder",
    ".group": "ddp_init_group",
    ".parallel.wrapped_modules": "unwrap_module",
    ".main_process": "main_process_only once_per_node run_on_main run_once_per_node",
    ".precision": "AMPConfig TorchAutocast fwd_default_precision make_grad_scaler",
    ".parallel.warm_up": "rehearse",
    ".stopping.signals": "EXIT_TRY_AGAIN StopSignal outlive_stop_signals",
    ".stopping.vote": "StepVote",
    ".parallel.no_sync": "no_sync",
    ".parallel.weighted_gradients": "WeightedGradients",
    ".parallel.full_state_dict": "full_state_dict is_sharded load_full_state_dict",
    ".world": "World get_local_rank get_rank get_world_size if_main_process infer_device "
    "is_distributed_initialized is_local_rank_zero",
    ".parallel.wrap": "wrap_modules",
}
__getattr__, __dir__ = load_on_first_use(__name__, _HOMES)
