"""Inductor's decisions for an H100, on a machine that has neither a GPU nor Triton.

What a kernel reads and writes is decided by Inductor's scheduler, before any code is written. It
asks the device for a few numbers, and it is stopped once it is done.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx
from torch._dynamo.device_interface import CudaInterface
from torch._functorch.aot_autograd import make_boxed_func
from torch._guards import detect_fake_mode
from torch._inductor import compile_fx, scheduler
from torch._inductor import config as inductor_config
from torch._inductor.graph import GraphLowering
from torch.utils import cpp_extension

DEVICE = torch.device("cuda", 0)
PROPERTIES = SimpleNamespace(
    name="H100", major=9, minor=0, multi_processor_count=132, warp_size=32,
    regs_per_multiprocessor=65536, max_threads_per_multi_processor=2048, max_threads_per_block=1024,
    shared_memory_per_block_optin=227 << 10, L2_cache_size=50 << 20, gcnArchName="",
)  # fmt: skip


def backend(graph: fx.GraphModule, inputs: Sequence[Any]) -> Any:
    """A backend of ``torch.compile`` that schedules for the GPU and runs ``graph`` on the CPU."""
    _register_guard()
    return compile_fx.compile_fx(graph, inputs, inner_compile=_schedule)


@cache
def _register_guard() -> None:
    if torch.version.cuda is None:  # else FakeTensorMode does it
        source = str(Path(__file__).with_name("noop_guard.cpp"))
        cpp_extension.load("flowops_noop_guard", [source], is_python_module=False)


def _schedule(graph: fx.GraphModule, inputs: Sequence[Any], **options: Any) -> Callable[..., Any]:
    with detect_fake_mode(inputs):
        faked = [_faked(x) if isinstance(x, Tensor) else x for x in inputs]
    with fake_h100():
        compile_fx.compile_fx_inner(_moved(graph), faked, **options)
    return make_boxed_func(graph.forward)


def _faked(x: Tensor) -> Tensor:
    return torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device=DEVICE)


def _moved(graph: fx.GraphModule) -> fx.GraphModule:
    graph = fx.GraphModule(graph, copy.deepcopy(graph.graph))
    for node in graph.graph.nodes:
        node.args, node.kwargs = fx.node.map_aggregate(
            (node.args, node.kwargs), lambda x: DEVICE if isinstance(x, torch.device) else x
        )
    graph.recompile()
    return graph


@contextmanager
def fake_h100() -> Iterator[None]:
    """Have Inductor see an H100, and stop where its scheduler is done."""
    runtime = {
        "is_available": lambda: True,
        "current_device": lambda: 0,
        "device_count": lambda: 1,
        "get_device_properties": _properties,
        "get_device_capability": lambda device=None: (PROPERTIES.major, PROPERTIES.minor),
        "get_rng_state": lambda: torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda state: None,
        "_exchange_device": lambda device: 0,
        "_maybe_exchange_device": lambda device: 0,
    }
    with (
        mock.patch.multiple(torch.cuda, **runtime),
        mock.patch.object(CudaInterface, "get_device_properties", staticmethod(_properties)),
        mock.patch.object(CudaInterface.Worker, "get_device_properties", staticmethod(_properties)),
        mock.patch.object(scheduler, "has_triton", return_value=True),
        mock.patch.object(GraphLowering, "_compile_to_module", _stop),
        inductor_config.patch(compile_threads=1),
    ):
        yield


def _properties(device: Any = None) -> SimpleNamespace:
    return PROPERTIES


def _stop(graph: GraphLowering) -> Any:
    graph.init_wrapper_code()
    graph._update_scheduler()
    return SimpleNamespace(call=make_boxed_func(graph.module.forward))
