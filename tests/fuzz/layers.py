"""Layers of every kind, dtype, layout and plan, in every way of calling backward, against stock PyTorch in float64."""

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import wuskern as wk
from tests.accuracy import assert_as_right_as_stock
from tests.fuzz import instruction_sets, plans, timebox
from tests.fuzz.problems import KINDS, Problem, dense, laid_out, numbers, problem, same
from wuskern.delivery import dense_grad
from wuskern.kernels.cpu import native


@dataclass(eq=False)
class Call:
    """One use of the layer. ``dx``: what x hears of its gradient."""

    x: Tensor
    plan: wk.Plan
    y: Tensor
    dy: Tensor
    dx: list[Tensor]
    reentrant: bool

    def passed(self, p: Problem, seed: int) -> plans.Passed:
        return plans.passed(self.plan, p.units, self.dy, p.seen(self.x.detach()), seed, p.layer.weight.detach())


New = tuple[Call, plans.Passed, Tensor]  # a use, what it passed, and the exact gradient that it adds


class PassedOver(Exception):
    """Nobody can say what is right."""


class Case:
    """Up to three micro-batches of one layer."""

    def __init__(self, p: Problem, r: random.Random) -> None:
        self.p, self.r, self.told = p, r, [(p,)]
        self.amp = torch.bfloat16 if p.dtype is torch.float32 and r.random() < 0.2 else None
        self.compute = self.amp or p.dtype
        self.micro = r.choice([1, 1, 1, 2, 3])
        self.wish, self.least = r.choice([None, None, "native", "reference"]), r.choice([0, dense_grad.LEAST])
        self.parameters = dict(p.layer.named_parameters())
        for q in self.parameters.values():
            q.requires_grad_(r.random() < 0.85)
            q.grad = None

    def __str__(self) -> str:
        return "; ".join(" ".join(map(str, words)) for words in self.told)

    def tell(self, *words: object) -> None:
        self.told.append(words)

    @contextlib.contextmanager
    def settings(self) -> Iterator[None]:
        """One backend, and from which size on gradients use their memory again."""
        self.tell("backend", self.wish, "least", self.least, "autocast", self.amp, "trains", self.trained())
        least, dense_grad.LEAST = dense_grad.LEAST, self.least
        try:
            with wk.backend(self.wish) if self.wish else contextlib.nullcontext():
                yield
        finally:
            dense_grad.LEAST = least

    def trained(self) -> list[str]:
        return [name for name, q in self.parameters.items() if q.requires_grad]

    def run(self) -> None:
        for number in range(self.micro):
            if number:
                self._clear(self.r.choice(["not", "not", "to None", "to zero"]))
            self._micro_batch()
            self._check_kept()
        if (weight := self.p.layer.weight.grad) is not None and self.r.random() < 0.5:
            self.p.kept.append((weight, weight.clone()))

    def _clear(self, how: str) -> None:
        self.tell("cleared", how)
        if how == "to None" and (weight := self.p.layer.weight.grad) is not None:
            self.p.kept.append((weight, weight.clone()))
        if how != "not":
            self.p.layer.zero_grad(set_to_none=how == "to None")

    def _check_kept(self) -> None:
        for kept, copy in self.p.kept:
            assert same(kept, copy), "a gradient that was taken away has changed"
        del self.p.kept[:-1]

    # ---- forward ----------------------------------------------------------------------------------------------------

    def _micro_batch(self) -> None:
        count = self.r.choice([1, 1, 1, 2])
        recomputed = self.r.choice(["once", "reentrant"]) if count == 1 and self.r.random() < 0.2 else None
        calls = [self._call(recomputed, alone=count == 1) for _ in range(count)]
        calls = [call for call in calls if call.y.requires_grad]
        if calls:
            ways = ["backward"] if recomputed == "reentrant" else ["backward"] * 3 + ["inputs", "grad"]
            self._backward(calls, self.r.choice(ways))

    def _call(self, recomputed: str | None, alone: bool) -> Call:
        p, r = self.p, self.r
        x = p.input(r, r.choice([p.dtype, self.compute])).detach().requires_grad_(r.random() < 0.7)
        half = p.dtype is torch.float16  # of which torch adds no sparse tensors
        plan = plans.draw(r, p.units, alone, not p.fine, not p.fine, sparse=not half or (alone and self.micro == 1))
        self.tell("x", x.shape, x.stride(), x.dtype, "dX" if x.requires_grad else "no dX", plan, recomputed)
        if recomputed == "reentrant" and not x.requires_grad:
            recomputed = None
        p.layer.plan = plan
        dx: list[Tensor] = []
        if x.requires_grad:
            x.register_hook(dx.append)
        kept: list[Tensor] = []

        def keep(t: Tensor) -> Tensor:
            kept.append(t)
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), self._autocast():
            y = checkpoint(p.layer, x, use_reentrant=recomputed == "reentrant") if recomputed else p.layer(x)
        self._check_forward(x, y, plan, kept, recomputed)
        return Call(x, plan, y, laid_out(r, numbers(r, y.shape, False).to(y.dtype)), dx, recomputed == "reentrant")

    def _autocast(self) -> contextlib.AbstractContextManager[None]:
        return torch.autocast("cpu", self.amp) if self.amp else contextlib.nullcontext()

    def _check_forward(self, x: Tensor, y: Tensor, plan: wk.Plan, kept: list[Tensor], recomputed: str | None) -> None:
        weight, bias = self.p.layer.weight, self.p.layer.bias
        with self._autocast():
            expected = self.p.stock(x, weight.detach() if plan.skip else weight, bias)
            with torch.no_grad():  # in which torch multiplies some strided inputs by another call, and ours always do
                without = self.p.stock(x, weight, bias)
        assert y.dtype == expected.dtype, f"y is {y.dtype}, expected {expected.dtype}"
        if not torch.equal(y, expected) and (plan == wk.Plan() or not torch.equal(y, without)):
            if not self.p.is_right(x, expected, self.compute):  # of one channel in each group, bfloat16 reads beyond x
                raise PassedOver
            raise AssertionError("y differs from stock's")
        assert y.stride() == expected.stride(), f"y has strides {y.stride()}, expected {expected.stride()}"
        needs = x.requires_grad or (weight.requires_grad and not plan.skip) or (bias is not None and bias.requires_grad)
        assert y.requires_grad == needs, f"y.requires_grad is {y.requires_grad}"
        copies = self.p.is_conv and self.p.layer.padding_mode in ("reflect", "replicate")
        if plan.skip and not copies and not recomputed:
            memory = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
            assert sum(memory.values()) <= weight.untyped_storage().nbytes(), "a skip keeps more than the weight"

    # ---- backward ---------------------------------------------------------------------------------------------------

    def _backward(self, calls: list[Call], how: str) -> None:
        leaves = {f"x{i}": call.x for i, call in enumerate(calls)} | self.parameters
        leaves = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
        names = list(leaves) if how == "backward" else self.r.sample(list(leaves), self.r.randint(1, len(leaves)))
        seed = self.r.randrange(2**31)
        self.tell(how, names, "dY strides", [call.dy.stride() for call in calls])
        before = {name: (q.grad, None if q.grad is None else q.grad.clone()) for name, q in self.parameters.items()}
        ys, dys = [call.y for call in calls], [call.dy for call in calls]
        torch.default_generator.manual_seed(seed)
        if how == "grad":
            found = torch.autograd.grad(ys, [leaves[name] for name in names], dys, allow_unused=True)
            returned = dict(zip(names, found, strict=True))
        else:
            torch.autograd.backward(ys, dys, inputs=[leaves[name] for name in names] if how == "inputs" else None)
            returned = None
        parts = [call.passed(self.p, seed) for call in calls]
        if any(part.is_dense and self._is_unwritten(call) for call, part in zip(calls, parts, strict=True)):
            raise PassedOver
        exact = [self._exact(call, part) for call, part in zip(calls, parts, strict=True)]
        for i, call in enumerate(calls):
            self._check_x(call, parts[i], exact[i], f"x{i}" in names)
        for name in self.parameters:
            news = [(call, part, getattr(e, name)) for call, part, e in zip(calls, parts, exact, strict=True)]
            news = [new for new in news if new[2] is not None]
            self._check_parameter(name, news if name in names else [], *before[name], returned)
        if how == "backward" and len(calls) == 1 and before["weight"][0] is None:
            self._check_form(calls[0].plan)

    def _is_unwritten(self, call: Call) -> bool:
        """Whether taps of the kernel meet nothing but padding: stock's gradient in bfloat16 has whatever memory held there."""
        if self.compute is not torch.bfloat16 or not self.p.is_conv:
            return False
        ones = plans.Passed(*[torch.ones_like(call.dy)] * 3)
        return not self.p.backward(call.x, ones, self.compute, torch.float64, torch.ones_like).weight.all()

    def _exact(self, call: Call, part: plans.Passed) -> plans.Passed:
        """In float64; of a dense layer what stock gives, bit for bit, whether that is right or not."""
        if not part.is_dense:
            return self.p.backward(call.x, part, self.compute, torch.float64)
        given = call.x, self.p.layer.weight, self.p.layer.bias
        leaves = [None if t is None else t.detach().requires_grad_() for t in given]
        with self._autocast():
            y = self.p.stock(*leaves)
        found = iter(torch.autograd.grad(y, [leaf for leaf in leaves if leaf is not None], call.dy))
        return plans.Passed(*(None if leaf is None else next(found).double() for leaf in leaves))

    def _check_x(self, call: Call, part: plans.Passed, exact: plans.Passed, wanted: bool) -> None:
        assert len(call.dx) == wanted, f"dX came {len(call.dx)} times"
        if not wanted:
            return
        dx, x = call.dx[0], call.x.detach().requires_grad_()
        with self._autocast():
            weight = self.p.layer.weight
            trains = weight.requires_grad if part.is_dense else not call.plan.skip
            y = self.p.stock(x, weight.detach().requires_grad_(trains), self.p.layer.bias)
        (stock,) = torch.autograd.grad(y, x, call.dy)
        if not call.reentrant:  # where dX has come through another x's grad
            assert dx.stride() == stock.stride(), f"dX has strides {dx.stride()}, expected {stock.stride()}"
        self._judge("x", dx, exact.x.to(self.compute).to(dx.dtype), exact.x, [(call, part, exact.x)])

    def _check_parameter(
        self, name: str, news: list[New], before: Tensor | None, copy: Tensor | None, returned: dict[str, Tensor] | None
    ) -> None:
        q = self.parameters[name]
        if returned is not None or not news:
            assert q.grad is before, f"{name}.grad was replaced"
            assert before is None or same(before, copy), f"{name}.grad was written to"
        if not news:
            assert returned is None or returned.get(name) is None, f"autograd.grad gave {name} something"
            return
        total = q.grad if returned is None else returned[name]
        assert total is not None, f"{name} has no gradient"
        assert (total.shape, total.dtype) == (q.shape, q.dtype), f"{name}'s gradient is {total.dtype}{list(total.shape)}"
        held = dense(copy) if returned is None and copy is not None else torch.zeros_like(q)
        expected = held + sum(e.to(self.compute).to(q.dtype) for _, _, e in news)
        self._judge(name, dense(total), expected.detach(), held.double() + sum(e for *_, e in news), news, held)

    def _judge(
        self, name: str, ours: Tensor, expected: Tensor, exact: Tensor, news: list[New], held: Tensor | None = None
    ) -> None:
        """Equal where sums are exact, and else as right as stock, by the rule of accuracy.py. Products of two bytes are rounded
        on their way by torch's convolutions on some processors, and where the scale of a drawn token is multiplied in."""
        if torch.equal(ours, expected):
            return

        def total(dtype: torch.dtype, size: Callable[[Tensor], Tensor]) -> Tensor:
            gradients = [getattr(self.p.backward(call.x, part, self.compute, dtype, size), name) for call, part, _ in news]
            return sum(gradients, torch.zeros_like(gradients[0]) if held is None else size(held).to(dtype))

        sizes = total(torch.float64, Tensor.abs)
        if self.compute.itemsize == 2 and (self.p.is_conv or any(call.plan.tokens for call, *_ in news)):
            allowed = 4 * torch.finfo(self.compute).eps * sizes
            if ((ours.double() - exact).abs() <= allowed).all():
                return
        try:
            assert_as_right_as_stock(ours.to(self.compute), total(self.compute, Tensor.detach), exact, sizes)
        except AssertionError as error:
            raise AssertionError(f"gradient of {name}: {error}") from None

    def _check_form(self, plan: wk.Plan) -> None:
        grad, rows = self.p.layer.weight.grad, plan.rows
        if grad is None:
            return
        left_out = rows is not None and rows.count(self.p.units.out, self.p.units.groups) < self.p.units.out
        sparse = bool(left_out and getattr(rows, "sparse", None))  # never with columns
        assert grad.is_sparse == sparse, f"is_sparse: {grad.is_sparse}"
        if sparse:
            index = grad._indices()
            assert index.shape == (1, rows.count(self.p.units.out, self.p.units.groups)), f"indices {index}"
            assert (index[0].diff() > 0).all(), f"indices {index}"


def attempt(r: random.Random) -> str | None:
    p = problem(r.randrange(KINDS))
    torch.default_generator.manual_seed(r.randrange(2**31))
    case = Case(p, r)
    try:
        with case.settings():
            case.run()
    except PassedOver:
        return None
    except Exception as error:  # of any kind: nothing here is to raise
        return f"{type(error).__name__}: {[*str(error).splitlines(), ''][0]}: {case}"
    return None


def main() -> int:
    parser = timebox.parser(__doc__)
    parser.add_argument("--set", choices=instruction_sets.SETS, help="the instruction set (default: each has a third)")
    chosen = parser.parse_args()
    if chosen.set is None and chosen.only is None:
        return instruction_sets.run_each("tests.fuzz.layers", chosen)
    timebox.load_library(chosen)
    status = timebox.run(chosen, attempt)
    print(f"with {native.vectors()} in wuskern, {torch.backends.cpu.get_cpu_capability()} in torch")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
