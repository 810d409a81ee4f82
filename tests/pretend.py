"""A pretend CUDA device: it reports `cuda:0`, computes on the CPU and counts what a real one would do.

Tensors are wrappers around CPU tensors. A dispatch mode counts kernels and copies, and raises where the two
devices mix. Views are free, every other operation is one kernel; a fused one (RMS norm, attention, grouped
product) too. Not seen: the time of kernels, the allocator, streams. Counts are good to about 10 %.

Slicing a CUDA tensor needs a device guard, which a CPU build of torch lacks: `guard_library` compiles one
that does nothing, in a few seconds. `can_pretend` is False where there is no compiler.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from unmask.engine.kv_paged import PagedKV
from unmask.engine.model_runner import ModelRunner
from unmask.kv.paged_store import PagedStore

DEVICE = torch.device("cuda:0")
GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
using c10::Device;
using c10::DeviceType;
struct PretendGuard final : c10::impl::NoOpDeviceGuardImpl<DeviceType::CUDA> {
  Device exchangeDevice(Device) const override { return Device(DeviceType::CUDA, 0); }
  Device getDevice() const override { return Device(DeviceType::CUDA, 0); }
};
static PretendGuard guard;
static c10::impl::DeviceGuardImplRegistrar registrar(DeviceType::CUDA, &guard);
"""
FREE = ("empty", "detach", "alias", "lift_fresh", "_reshape_alias", "_unsafe_view")
"""Operations without a kernel that are no views by their schema."""
WAITS = ("nonzero", "bincount", "_unique2", "masked_select", "unique_consecutive", "equal")
"""Operations whose result has a size that the host must know, so it waits for the device."""
FUSED = ((F, "rms_norm"), (F, "grouped_mm"))
"""Functions that are one kernel on a card."""
ATTEND = F.scaled_dot_product_attention
IN_GRAD_MODE = torch.autograd.grad_mode.inference_mode


@dataclass
class Counts:
    """What a piece of code did on the pretend device."""

    ops: Counter[str] = field(default_factory=Counter)
    attentions: list[Attention] = field(default_factory=list)
    to_device: int = 0
    """Copies from pageable memory: the host waits for each."""
    pinned_to_device: int = 0
    """Copies from pinned memory, which are queued."""
    to_host: int = 0
    """Copies to pageable memory: the host waits for each."""
    pinned_to_host: int = 0
    """Copies to pinned memory, which are queued."""
    waits: int = 0
    """Waits for an event."""
    reads: int = 0
    """Scalars read by the host, and operations whose size the host must know."""
    doubles: int = 0
    """The most numbers in a float64 result."""

    @property
    def launches(self) -> int:
        return sum(self.ops.values())

    @property
    def syncs(self) -> int:
        """The times that the host waits for the device."""
        return self.to_device + self.to_host + self.waits + self.reads


@dataclass(frozen=True)
class Attention:
    """One call of `scaled_dot_product_attention`: shapes of queries and keys, and of the mask if any."""

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    mask: tuple[int, ...] | None
    mask_dtype: torch.dtype | None
    is_aligned: bool
    """The mask's rows start at multiples of 16 bytes."""
    is_grouped: bool

    @property
    def kernel(self) -> str:
        """The kernel on a card without cuDNN attention, by the rules of torch 2.11's `sdp_utils.cpp`."""
        if self.mask is None:
            return "flash"
        return "math" if self.is_grouped else "efficient"

    @property
    def launches(self) -> int:
        """A bool mask is made a bias, and an unaligned one padded, in every call."""
        if self.kernel == "math":
            return 10
        if self.mask is None:
            return 1
        return 1 + (self.mask_dtype == torch.bool) + (not self.is_aligned)


class PretendTensor(Tensor):
    """A CPU tensor that says it is on the device."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> PretendTensor:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def __repr__(self) -> str:
        return f"PretendTensor({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        """Run an operation outside of `pretend()`, uncounted."""
        return _Dispatch(Counts(), {}).__torch_dispatch__(func, types, args, kwargs)


def _inner(x: Any) -> Any:
    return x.inner if isinstance(x, PretendTensor) else x


def _wrapped(x: Any) -> Any:
    return PretendTensor(x) if isinstance(x, Tensor) and not isinstance(x, PretendTensor) else x


def _base(func: Any) -> str:
    return func._schema.name.split("::")[1]


def _is_view(func: Any) -> bool:
    return any(
        a.alias_info is not None and not a.alias_info.is_write for a in func._schema.arguments
    )


class _Dispatch(TorchDispatchMode):
    def __init__(self, counts: Counts, pinned: dict[int, Tensor]) -> None:
        super().__init__()
        self.counts, self.pinned = counts, pinned

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name, leaves = _base(func), tree_leaves((args, kwargs))
        tensors = [x for x in leaves if isinstance(x, Tensor)]
        ours = [x for x in tensors if isinstance(x, PretendTensor)]
        device = kwargs.get("device")
        target = None if device is None else torch.device(device).type
        if name in ("_to_copy", "copy_") and tensors:
            return self._copy(func, name, args, kwargs, target)
        if not ours and target != "cuda":
            return func(*args, **kwargs)
        if target == "cuda":
            kwargs = {**kwargs, "device": "cpu"}
        self._check(name, tensors, args)
        self._count(func, name)
        if name == "_local_scalar_dense":
            return func(args[0].inner)
        return self._run(func, args, kwargs)

    def _copy(self, func, name, args, kwargs, target):
        source = args[0] if name == "_to_copy" else args[1]
        there = isinstance(source, PretendTensor)
        if name == "copy_":
            target = "cuda" if isinstance(args[0], PretendTensor) else "cpu"
        elif target is None:
            target = "cuda" if there else "cpu"
        if target == "cuda" and not there and source.dim() + (name == "_to_copy") > 0:
            if id(source) in self.pinned:
                self.counts.pinned_to_device += 1
            else:
                self.counts.to_device += 1
        elif target == "cpu" and there and kwargs.get("non_blocking"):
            self.counts.pinned_to_host += 1
        elif target == "cpu" and there:
            self.counts.to_host += 1
        elif target == "cuda":
            self.counts.ops[name] += 1
        plain = {**kwargs, "device": "cpu"} if "device" in kwargs else kwargs
        plain.pop("non_blocking", None)
        result = func(*tree_map(_inner, args), **plain)
        if name == "copy_":
            return args[0]
        return PretendTensor(result) if target == "cuda" else result

    def _check(self, name, tensors, args) -> None:
        if name in ("index", "index_put_", "index_put"):
            hidden = [x for x in tree_leaves(args[1]) if isinstance(x, Tensor)]
            foreign = [x for x in hidden if not isinstance(x, PretendTensor)]
            self.counts.to_device += len(foreign)
            self.counts.reads += any(x.dtype == torch.bool for x in hidden)
            tensors = [x for x in tensors if not any(x is each for each in foreign)]
        mixed = [x for x in tensors if not isinstance(x, PretendTensor) and x.dim() > 0]
        assert not mixed, (
            f"{name}: tensors of both devices, {[tuple(x.shape) for x in mixed]} on the CPU"
        )

    def _count(self, func, name) -> None:
        if name == "_local_scalar_dense" or name in WAITS:
            self.counts.reads += 1
        if not (_is_view(func) or name == "_local_scalar_dense" or name.startswith(FREE)):
            self.counts.ops[name] += 1

    def _run(self, func, args, kwargs):
        result = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
        first = next(iter(func._schema.arguments), None)
        written = first is not None and first.alias_info is not None and first.alias_info.is_write
        if written and isinstance(args[0], PretendTensor) and isinstance(result, Tensor):
            return args[0]
        if isinstance(kwargs.get("out"), PretendTensor):
            return kwargs["out"]
        for each in tree_leaves(result):
            if isinstance(each, Tensor) and each.dtype == torch.float64 and not _is_view(func):
                self.counts.doubles = max(self.counts.doubles, each.numel())
        return tree_map(_wrapped, result)


class _Event:
    """An event in the stream of the pretend device."""

    def __init__(self, counts: Counts) -> None:
        self.counts, self.is_recorded = counts, False

    def record(self, stream: torch.device) -> None:
        """Note the event behind the work that was queued on the stream of a device."""
        assert stream == DEVICE, "an event in the stream of another card"
        self.is_recorded = True

    def synchronize(self) -> None:
        """Count a wait of the host."""
        assert self.is_recorded, "a wait for an event that is in no stream"
        self.counts.waits += 1


class _Functions:
    """Functions that are one kernel on a card and several operations on a CPU."""

    def __init__(self, counts: Counts, dispatch: _Dispatch) -> None:
        self.counts, self.dispatch = counts, dispatch

    def fused(self, name: str, plain: Any) -> Any:
        """Wrap a function so that it counts as one kernel."""

        def run(*args, **kwargs):
            if any(isinstance(x, PretendTensor) for x in tree_leaves((args, kwargs))):
                self.counts.ops[name] += 1
                return self._on_cpu(plain, args, kwargs)
            return plain(*args, **kwargs)

        return run

    def pin(self, tensor: Tensor) -> Tensor:
        """Note a host tensor as pinned."""
        self.dispatch.pinned[id(tensor)] = tensor  # alive, so that no other one gets its id
        return tensor

    def attend(self, q, k, v, attn_mask=None, **kwargs):
        """Record a call and compute it on the CPU."""
        if not isinstance(q, PretendTensor):
            return ATTEND(q, k, v, attn_mask=attn_mask, **kwargs)
        mask = attn_mask
        call = Attention(
            tuple(q.shape),
            tuple(k.shape),
            None if mask is None else tuple(mask.shape),
            None if mask is None else mask.dtype,
            mask is None or _is_aligned(mask),
            q.shape[1] != k.shape[1],
        )
        self.counts.attentions.append(call)
        self.counts.ops["attention"] += call.launches
        return self._on_cpu(ATTEND, (q, k, v), {"attn_mask": mask, **kwargs})

    def _on_cpu(self, func, args, kwargs):
        with torch._C._DisableTorchDispatch():
            return _wrapped(func(*tree_map(_inner, args), **tree_map(_inner, kwargs)))


def _is_aligned(mask: Tensor) -> bool:
    """Return whether each row of a mask starts at a multiple of 16 bytes."""
    size = mask.element_size()
    return (
        all(s * size % 16 == 0 for s in mask.stride()[:-1])
        and mask.storage_offset() * size % 16 == 0
    )


@cache
def guard_library() -> Path | None:
    """Compile and load the device guard; None without a compiler."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return None
    folder, torch_folder = Path(mkdtemp(prefix="pretend")), Path(torch.__file__).parent
    source, target = folder / "guard.cpp", folder / "guard.so"
    source.write_text(GUARD)
    done = subprocess.run(
        [compiler, "-std=c++20", "-shared", "-fPIC", f"-I{torch_folder}/include", str(source)]
        + ["-o", str(target), f"-L{torch_folder}/lib", "-lc10"],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        return None
    ctypes.CDLL(str(target))
    return target


def can_pretend() -> bool:
    return guard_library() is not None


@contextmanager
def pretend(counts: Counts | None = None) -> Iterator[Counts]:
    """Count on the pretend device inside the block. Inference mode becomes `no_grad`: wrappers need it.

    With `counts`, go on with those.
    """
    assert can_pretend(), "skip the test where there is no compiler"
    counts, before = Counts() if counts is None else counts, torch._C._only_lift_cpu_tensors()
    dispatch = _Dispatch(counts, {})

    def enter(self) -> None:
        self.before = torch.is_grad_enabled()
        torch.set_grad_enabled(False)

    def leave(self, *_: object) -> None:
        torch.set_grad_enabled(self.before)

    with ExitStack() as stack:
        stack.enter_context(mock.patch("torch.cuda._lazy_init", return_value=None))
        stack.enter_context(mock.patch.object(IN_GRAD_MODE, "__enter__", enter))
        stack.enter_context(mock.patch.object(IN_GRAD_MODE, "__exit__", leave))
        torch._C._set_only_lift_cpu_tensors(True)
        stack.callback(torch._C._set_only_lift_cpu_tensors, before)
        stack.enter_context(dispatch)
        functions = _Functions(counts, dispatch)
        for owner, name in FUSED:
            one = functions.fused(name, getattr(owner, name))
            stack.enter_context(mock.patch.object(owner, name, one))
        stack.enter_context(mock.patch.object(F, ATTEND.__name__, functions.attend))
        stack.enter_context(mock.patch("torch.cuda.Event", partial(_Event, counts)))
        stack.enter_context(mock.patch("torch.cuda.current_stream", torch.device))
        stack.enter_context(
            mock.patch.object(Tensor, "pin_memory", lambda tensor: functions.pin(tensor))
        )
        yield counts


def to_device(model: nn.Module) -> nn.Module:
    """Move a model's parameters to the pretend device, in place."""
    for module in model.modules():
        for name, value in module._parameters.items():
            if value is not None:
                module._parameters[name] = nn.Parameter(PretendTensor(value.detach()), False)
    return model


class Enough(Exception):
    """Raised by `forwards` to stop."""


def forwards(
    llm: Any,
    prompts: list[str],
    most: int,
    capture: Any = None,
    has_pages: bool = False,
    **method: Any,
) -> list[Counts]:
    """Generate on the pretend device until `most` forwards ran; return the counts of each.

    `capture` makes the forwards of fixed shapes; None: there are none. With `has_pages`, caches that can
    be are stored in pages, as in an engine.
    """

    def runner(model, *args, **options):
        options["capture"] = capture
        if has_pages:
            store = PagedStore(model.spec, 512, model.dtype, model.device)
            options["paging"] = PagedKV(store)
        return ModelRunner(model, *args, **options)

    llm.make_runner = runner
    each: list[Counts] = []
    launch, collect = ModelRunner.launch, ModelRunner.collect

    def counted_launch(self, *args, **kwargs):
        if len(each) == most:
            raise Enough
        with pretend() as counts:
            result = launch(self, *args, **kwargs)
        each.append(counts)
        return result

    def counted_collect(self, pending):
        with pretend(each[-1]):
            return collect(self, pending)

    with (
        pretend(),
        suppress(Enough),
        mock.patch.multiple(ModelRunner, launch=counted_launch, collect=counted_collect),
    ):
        llm.generate(prompts, **method)
    return each
