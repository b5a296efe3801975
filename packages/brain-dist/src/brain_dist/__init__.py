"""Ranks, collectives, wrapping, precision and stop signals for PyTorch training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from brain_dist.lazy import load_on_first_use

if TYPE_CHECKING:
    from brain_dist._agree import check_same_modules
    from brain_dist._collectives import (
        ddp_all_reduce,
        ddp_barrier,
        ddp_broadcast,
        gather_objects,
        raise_together,
        sum_over_ranks,
    )
    from brain_dist._control import set_control_timeout
    from brain_dist._errors import RanksLostError, RemoteError
    from brain_dist._evaluate import ExactMean, deal, gather_dealt, local_forward
    from brain_dist._failing import failing_together
    from brain_dist._gradient_order import GradientOrder
    from brain_dist._group import ddp_init_group
    from brain_dist._kinds import unwrap_module
    from brain_dist._main import main_process_only, once_per_node, run_on_main, run_once_per_node
    from brain_dist._precision import (
        AMPConfig,
        TorchAutocast,
        fwd_default_precision,
        make_grad_scaler,
    )
    from brain_dist._rehearse import rehearse
    from brain_dist._signals import (
        EXIT_TRY_AGAIN,
        StepVote,
        StopSignal,
        outlive_stop_signals,
    )
    from brain_dist._sync import no_sync
    from brain_dist._weighted import WeightedGradients
    from brain_dist._whole import full_state_dict, is_sharded, load_full_state_dict
    from brain_dist._world import (
        World,
        get_local_rank,
        get_rank,
        get_world_size,
        if_main_process,
        infer_device,
        is_distributed_initialized,
        is_local_rank_zero,
    )
    from brain_dist._wrap import wrap_modules

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
    "._agree": "check_same_modules",
    "._collectives": "ddp_all_reduce ddp_barrier ddp_broadcast gather_objects raise_together "
    "sum_over_ranks",
    "._control": "set_control_timeout",
    "._errors": "RanksLostError RemoteError",
    "._evaluate": "ExactMean deal gather_dealt local_forward",
    "._failing": "failing_together",
    "._gradient_order": "GradientOrder",
    "._group": "ddp_init_group",
    "._kinds": "unwrap_module",
    "._main": "main_process_only once_per_node run_on_main run_once_per_node",
    "._precision": "AMPConfig TorchAutocast fwd_default_precision make_grad_scaler",
    "._rehearse": "rehearse",
    "._signals": "EXIT_TRY_AGAIN StepVote StopSignal outlive_stop_signals",
    "._sync": "no_sync",
    "._weighted": "WeightedGradients",
    "._whole": "full_state_dict is_sharded load_full_state_dict",
    "._world": "World get_local_rank get_rank get_world_size if_main_process infer_device "
    "is_distributed_initialized is_local_rank_zero",
    "._wrap": "wrap_modules",
}
__getattr__, __dir__ = load_on_first_use(__name__, _HOMES)
