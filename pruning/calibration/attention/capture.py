"""Seeing attention, once, for every model: the torch function mode and the hooks that say whose call it is.

The mode sees every ``F.scaled_dot_product_attention`` whichever processor or dispatcher calls it, after rotary
embeddings and query/key norms. It also sees diffusers' ``AttnProcessor`` and its kin, which spell the softmax
out in ``Attention.get_attention_scores`` (``baddbmm``, ``softmax``, then ``bmm`` with the values): what
``set_default_attn_processor`` installs. It never changes a result; no processor is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import attention_backend
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pruning.calibration.attention.softmax import AttentionCall
from pruning.errors import PruningError

Listener = Callable[[AttentionCall], None]


class Unseen(PruningError):
    """The attention of a module cannot be seen."""


class AttentionCapture:
    """Context manager that reports the first softmax attention of every call of the watched modules.

    (Adapters add further attentions to a module's call; those are theirs, not the module's.) While it is active
    diffusers' native attention back end is forced, which the mode can see.

    Args:
        model: The denoiser.
        paths: Attention modules to watch.
        listener: Called with each attention call, without gradients.
        unless: Is told the path of a module whose attention cannot be seen, and why; None raises that.

    Attributes:
        paused: Modules may run without attention, as blocks do that are passed by.
    """

    def __init__(
        self,
        model: nn.Module,
        paths: Iterable[str],
        listener: Listener,
        unless: Callable[[str, Unseen], None] | None = None,
    ) -> None:
        self._modules = {path: model.get_submodule(path) for path in sorted(set(paths))}
        self._listener, self._unless = listener, unless
        self.paused = False
        self._open: list[_OpenCall] = []
        self._stack: ExitStack | None = None

    def __enter__(self) -> AttentionCapture:
        with ExitStack() as stack:
            stack.enter_context(attention_backend("native"))
            for path, module in self._modules.items():
                stack.callback(module.register_forward_pre_hook(self._enter(path), with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(self._leave).remove)
            if self._modules:
                stack.enter_context(_SeeSoftmax(self._open, self._report))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._stack is not None:
            self._stack.close()
        self._open.clear()

    def restart(self) -> None:
        """Forget calls that an exception left open; called at every start of the denoiser."""
        self._open.clear()

    def _enter(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            encoder = kwargs.get("encoder_hidden_states", args[1] if len(args) > 1 else None)
            hidden = args[0] if args else kwargs.get("hidden_states")
            self._open.append(_OpenCall(path, module, isinstance(encoder, Tensor) and encoder is not hidden))

        return hook

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        call = self._open.pop()
        if not (call.seen or self.paused):
            what = (
                f"its processor {type(module.processor).__name__}"
                if hasattr(module, "processor")
                else f"{type(module).__name__}"
            )
            way_out = (
                "give it AttnProcessor2_0 (its set_processor) and switch off slicing, xformers and other attention "
                "back ends while calibrating"
                if hasattr(module, "set_processor")
                else "choose a criterion and a weighting that read no attention, or leave its group out"
            )
            self._give_up(
                call.path,
                Unseen(
                    f"attention module {call.path!r}: {what} does not call F.scaled_dot_product_attention, so its "
                    f"attention cannot be seen; {way_out}"
                ),
            )

    def _report(self, call: AttentionCall) -> None:
        try:
            with torch.no_grad():
                self._listener(call)
        except Unseen as error:
            self._give_up(call.path, error)

    def _give_up(self, path: str, error: Unseen) -> None:
        if self._unless is None:
            raise error
        self._unless(path, error)


class _OpenCall:
    """A watched module whose forward is running."""

    def __init__(self, path: str, module: nn.Module, cross: bool) -> None:
        self.path, self.module, self.cross = path, module, cross
        self.seen = False
        self.scores: tuple[Tensor, Tensor, float, Tensor | None] | None = None


class _SeeSoftmax(TorchFunctionMode):
    def __init__(self, open_calls: list[_OpenCall], report: Listener) -> None:
        super().__init__()
        self._open, self._report = open_calls, report

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._open and not self._open[-1].seen:
            if func is F.scaled_dot_product_attention:
                self._fused(self._open[-1], *args, **kwargs)
            elif func is torch.baddbmm:
                self._scores(self._open[-1], *args, **kwargs)
            elif func is torch.bmm and self._open[-1].scores is not None:
                self._values(self._open[-1], *args)
        return func(*args, **kwargs)

    def _fused(
        self,
        call: _OpenCall,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> None:
        call.seen = True
        tensors = query.detach(), key.detach(), value.detach()
        self._report(AttentionCall(call.path, *tensors, attn_mask, is_causal, scale, call.cross))

    @staticmethod
    def _scores(
        call: _OpenCall, bias: Tensor, query: Tensor, key: Tensor, *, beta: float = 1.0, alpha: float = 1.0
    ) -> None:
        call.scores = query.detach(), key.detach(), alpha, bias if beta else None

    def _values(self, call: _OpenCall, probabilities: Tensor, value: Tensor) -> None:
        """Take the spelled-out attention of (batch * heads, tokens, channels) once its values are known."""
        assert call.scores is not None
        query, key, alpha, bias = call.scores
        heads = getattr(call.module, "heads", None)
        if not isinstance(heads, int) or "Sliced" in type(getattr(call.module, "processor", None)).__name__:
            return  # a slice of the batch: never complete, so the module's forward hook says what to do
        call.seen = True

        def split(flat: Tensor) -> Tensor:
            return flat.unflatten(0, (-1, heads))

        mask = None if bias is None else split(bias)
        self._report(
            AttentionCall(
                call.path,
                split(query),
                split(key.transpose(1, 2)),
                split(value.detach()),
                mask,
                False,
                alpha,
                call.cross,
            )
        )
