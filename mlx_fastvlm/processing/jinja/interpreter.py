"""Walks the tree that jinja2's parser makes of a chat template, node by node.

jinja2 itself would compile the tree to Python. Here only the kinds of nodes below exist, on the data of ``values``: so
there is nothing to escape from, every step is counted, and each text keeps its authors.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from .filters import apply_filter, holds
from .functions import FUNCTIONS
from .loop import Loop
from .methods import attribute
from .printing import to_text
from .values import (
    Budget,
    Function,
    Namespace,
    Refused,
    Undefined,
    compare,
    contains,
    equal,
    item,
    iterate,
    joined,
    key,
    kind,
    number,
    part,
    unneeded,
)

_COMPARISONS = {"lt": operator.lt, "lteq": operator.le, "gt": operator.gt, "gteq": operator.ge}
# Names that jinja2 knows by itself and this interpreter does not: they must not pass for undefined.
_LEFT_OUT = frozenset({"caller", "cycler", "joiner", "kwargs", "lipsum", "self", "super", "varargs"})


class Generation(Extension):
    """transformers' ``{% generation %}`` around what the model says in a chat; it writes what is inside."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


EXTENSIONS = [loopcontrols, Generation]


class _Break(Exception):
    pass


class _Continue(Exception):
    pass


class _Scope:
    """Variables of a block, and around it those of the blocks that it is in."""

    def __init__(self, around: _Scope | None, values: dict[str, Any] | None = None) -> None:
        self.around, self.values = around, {} if values is None else values

    def find(self, name: str) -> Any:
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.values:
                return scope.values[name]
            scope = scope.around
        if name in _LEFT_OUT:
            raise unneeded(name)
        return Undefined(f"{name[:50]!r} is undefined")


class _Expressions:
    """Evaluates expressions. A method is named after the kind of node that it is for."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget

    def evaluate(self, node: nodes.Node, scope: _Scope) -> Any:
        self.budget.step()
        method = getattr(self, f"_{type(node).__name__}", None)
        if method is None:
            raise unneeded(type(node).__name__.lower())
        return method(node, scope)

    def _all(self, several: list[Any], scope: _Scope) -> list[Any]:
        return [self.evaluate(node, scope) for node in several]

    def _Const(self, node: nodes.Const, scope: _Scope) -> Any:
        return number(node.value) if isinstance(node.value, int) else node.value

    def _TemplateData(self, node: nodes.TemplateData, scope: _Scope) -> str:
        return node.data

    def _Name(self, node: nodes.Name, scope: _Scope) -> Any:
        return scope.find(node.name)

    def _List(self, node: nodes.List, scope: _Scope) -> list[Any]:
        return self._all(node.items, scope)

    def _Tuple(self, node: nodes.Tuple, scope: _Scope) -> tuple[Any, ...]:
        return tuple(self._all(node.items, scope))

    def _Dict(self, node: nodes.Dict, scope: _Scope) -> dict[Any, Any]:
        return {key(self.evaluate(pair.key, scope)): self.evaluate(pair.value, scope) for pair in node.items}

    # Looking things up and calling them

    def _Getattr(self, node: nodes.Getattr, scope: _Scope) -> Any:
        value = self.evaluate(node.node, scope)
        return value.look(node.attr) if isinstance(value, Loop) else attribute(value, node.attr, self.budget)

    def _Getitem(self, node: nodes.Getitem, scope: _Scope) -> Any:
        value = self.evaluate(node.node, scope)
        if isinstance(node.arg, nodes.Slice):
            start, stop, step = (
                None if bound is None else self.evaluate(bound, scope)
                for bound in (node.arg.start, node.arg.stop, node.arg.step)
            )
            return part(value, start, stop, step, self.budget)
        place = self.evaluate(node.arg, scope)
        found = value.look(place) if isinstance(value, Loop) and isinstance(place, str) else item(value, place)
        if isinstance(found, Undefined) and isinstance(place, str):
            return attribute(value, place, self.budget)  # as jinja2 does: messages['items'] is the method
        return found

    def _Call(self, node: nodes.Call, scope: _Scope) -> Any:
        called = self.evaluate(node.node, scope)
        if isinstance(called, Undefined):
            raise Refused(called.why)
        if not isinstance(called, Function):
            raise Refused(f"it calls {kind(called)}")
        args, named = self._arguments(node, scope)
        return called.call(self.budget, *args, **named)

    def _arguments(self, node: Any, scope: _Scope) -> tuple[list[Any], dict[str, Any]]:
        if node.dyn_args is not None or node.dyn_kwargs is not None:
            raise unneeded("* in a call")
        return self._all(node.args, scope), {pair.key: self.evaluate(pair.value, scope) for pair in node.kwargs}

    def _Filter(self, node: nodes.Filter, scope: _Scope) -> Any:
        assert node.node is not None  # only the filters at a block's head have none
        value = self.evaluate(node.node, scope)
        args, named = self._arguments(node, scope)
        return apply_filter(node.name, value, self.budget, *args, **named)

    def _Test(self, node: nodes.Test, scope: _Scope) -> bool:
        value = self.evaluate(node.node, scope)
        args, named = self._arguments(node, scope)
        return holds(node.name, value, self.budget, *args, **named)

    # Operators

    def _CondExpr(self, node: nodes.CondExpr, scope: _Scope) -> Any:
        if self.evaluate(node.test, scope):
            return self.evaluate(node.expr1, scope)
        return Undefined("an if without else is undefined") if node.expr2 is None else self.evaluate(node.expr2, scope)

    def _And(self, node: nodes.And, scope: _Scope) -> Any:
        return self.evaluate(node.left, scope) and self.evaluate(node.right, scope)

    def _Or(self, node: nodes.Or, scope: _Scope) -> Any:
        return self.evaluate(node.left, scope) or self.evaluate(node.right, scope)

    def _Not(self, node: nodes.Not, scope: _Scope) -> bool:
        return not self.evaluate(node.node, scope)

    def _Neg(self, node: nodes.Neg, scope: _Scope) -> Any:
        return -number(self.evaluate(node.node, scope))

    def _Pos(self, node: nodes.Pos, scope: _Scope) -> Any:
        return +number(self.evaluate(node.node, scope))

    def _Concat(self, node: nodes.Concat, scope: _Scope) -> str:
        return joined([to_text(value, self.budget) for value in self._all(node.nodes, scope)], self.budget)

    def _Add(self, node: nodes.Add, scope: _Scope) -> Any:
        left, right = self.evaluate(node.left, scope), self.evaluate(node.right, scope)
        if isinstance(left, str) and isinstance(right, str):
            return joined((left, right), self.budget)
        for kind_of_list in (list, tuple):
            if isinstance(left, kind_of_list) and isinstance(right, kind_of_list):
                self.budget.step(len(left) + len(right))
                return kind_of_list((*left, *right))
        if isinstance(left, str) or isinstance(right, str):
            other = right if isinstance(left, str) else left
            raise Refused(other.why if isinstance(other, Undefined) else f"it adds a text and {kind(other)}")
        return number(number(left) + number(right))

    def _arithmetic(self, node: nodes.BinExpr, scope: _Scope, compute: Callable[[Any, Any], Any]) -> Any:
        left, right = self.evaluate(node.left, scope), self.evaluate(node.right, scope)
        if isinstance(left, (str, list, tuple)) or isinstance(right, (str, list, tuple)):
            raise unneeded(f"{node.operator} on texts or lists")
        return number(compute(number(left), number(right)))

    def _Sub(self, node: nodes.Sub, scope: _Scope) -> Any:
        return self._arithmetic(node, scope, operator.sub)

    def _Mul(self, node: nodes.Mul, scope: _Scope) -> Any:
        return self._arithmetic(node, scope, operator.mul)

    def _Div(self, node: nodes.Div, scope: _Scope) -> Any:
        return self._arithmetic(node, scope, operator.truediv)

    def _FloorDiv(self, node: nodes.FloorDiv, scope: _Scope) -> Any:
        return self._arithmetic(node, scope, operator.floordiv)

    def _Mod(self, node: nodes.Mod, scope: _Scope) -> Any:
        return self._arithmetic(node, scope, operator.mod)

    def _Compare(self, node: nodes.Compare, scope: _Scope) -> bool:
        left = self.evaluate(node.expr, scope)
        for operand in node.ops:
            right = self.evaluate(operand.expr, scope)
            if not self._holds(operand.op, left, right):
                return False
            left = right
        return True

    def _holds(self, name: str, left: Any, right: Any) -> bool:
        if name in ("eq", "ne"):
            return equal(left, right, self.budget) is (name == "eq")
        if name in ("in", "notin"):
            return contains(right, left, self.budget) is (name == "in")
        return compare(_COMPARISONS[name], left, right, self.budget)


class Interpreter(_Expressions):
    """Runs a template's statements. Each writes texts, which together are the prompt."""

    def render(self, template: nodes.Template, values: dict[str, Any]) -> str:
        """What a template makes of these variables; ``Refused`` and others for what it must not do."""
        known = {name: Function(name, call) for name, call in FUNCTIONS.items()}
        return self._run(template.body, _Scope(_Scope(None, known), values))

    def _run(self, body: list[nodes.Node], scope: _Scope) -> str:
        written: list[str] = []
        self._write(body, scope, written)
        return joined(written, self.budget)

    def _write(self, body: list[nodes.Node], scope: _Scope, written: list[str]) -> None:
        for node in body:
            self.budget.step()
            method = getattr(self, f"_do_{type(node).__name__}", None)
            if method is None:
                raise unneeded(f"{{% {type(node).__name__.lower()} %}}")
            method(node, scope, written)

    def _do_Output(self, node: nodes.Output, scope: _Scope, written: list[str]) -> None:
        for child in node.nodes:
            # Nothing is escaped here, so `safe` means nothing; but only where its result goes no further.
            if isinstance(child, nodes.Filter) and child.name == "safe" and child.node is not None:
                child = child.node
            text = to_text(self.evaluate(child, scope), self.budget)
            self.budget.read(text)
            written.append(text)

    def _do_If(self, node: nodes.If, scope: _Scope, written: list[str]) -> None:
        for case in (node, *node.elif_):
            if self.evaluate(case.test, scope):
                return self._write(case.body, scope, written)
        return self._write(node.else_, scope, written)

    def _do_For(self, node: nodes.For, scope: _Scope, written: list[str]) -> None:
        if node.recursive:
            raise unneeded("recursive loops")
        values = self.evaluate(node.iter, scope)
        loop = Loop(values if node.test is None else self._chosen(node, values, scope), self.budget)
        for value in loop:
            inner = _Scope(scope, {"loop": loop})
            self._assign(node.target, value, inner)
            try:
                self._write(node.body, inner, written)
            except _Continue:
                continue
            except _Break:
                break
        if loop.index0 == -1:
            self._write(node.else_, _Scope(scope), written)

    def _chosen(self, node: nodes.For, values: Any, scope: _Scope) -> Iterator[Any]:
        """The values for which ``for ... if`` holds."""
        assert node.test is not None
        for value in iterate(values, self.budget):
            inner = _Scope(scope)
            self._assign(node.target, value, inner)
            if self.evaluate(node.test, inner):
                yield value

    def _do_Break(self, node: nodes.Node, scope: _Scope, written: list[str]) -> NoReturn:
        raise _Break

    def _do_Continue(self, node: nodes.Node, scope: _Scope, written: list[str]) -> NoReturn:
        raise _Continue

    def _do_Assign(self, node: nodes.Assign, scope: _Scope, written: list[str]) -> None:
        self._assign(node.target, self.evaluate(node.node, scope), scope)

    def _assign(self, target: nodes.Node, value: Any, scope: _Scope) -> None:
        if isinstance(target, nodes.Name):
            scope.values[target.name] = value
        elif isinstance(target, nodes.NSRef):
            namespace = scope.find(target.name)
            if not isinstance(namespace, Namespace):
                raise Refused("it sets an attribute of something that is not a namespace")
            namespace.values[target.attr] = value
        elif isinstance(target, nodes.Tuple):
            values = list(iterate(value, self.budget))
            if len(values) != len(target.items):
                raise Refused(f"it takes {len(target.items)} values from {len(values)}")
            for one, each in zip(target.items, values):
                self._assign(one, each, scope)
        else:
            raise unneeded(f"{{% set %}} of a {type(target).__name__.lower()}")

    def _do_AssignBlock(self, node: nodes.AssignBlock, scope: _Scope, written: list[str]) -> None:
        text = self._run(node.body, _Scope(scope))
        self._assign(node.target, self._filtered(node.filter, text, scope), scope)

    def _do_FilterBlock(self, node: nodes.FilterBlock, scope: _Scope, written: list[str]) -> None:
        filtered = self._filtered(node.filter, self._run(node.body, _Scope(scope)), scope)
        written.append(to_text(filtered, self.budget))

    def _filtered(self, node: nodes.Node | None, value: Any, scope: _Scope) -> Any:
        """A block's text through the filters that stand at its head."""
        if node is None:
            return value
        assert isinstance(node, nodes.Filter)
        args, named = self._arguments(node, scope)
        return apply_filter(node.name, self._filtered(node.node, value, scope), self.budget, *args, **named)

    def _do_With(self, node: nodes.With, scope: _Scope, written: list[str]) -> None:
        inner = _Scope(scope)
        for target, value in zip(node.targets, self._all(node.values, scope)):
            self._assign(target, value, inner)
        self._write(node.body, inner, written)

    def _do_Scope(self, node: nodes.Scope, scope: _Scope, written: list[str]) -> None:
        self._write(node.body, _Scope(scope), written)

    def _do_Macro(self, node: nodes.Macro, scope: _Scope, written: list[str]) -> None:
        def call(budget: Budget, *args: Any, **named: Any) -> str:
            return self._run(node.body, self._bound(node, scope, args, named))

        scope.values[node.name] = Function(node.name, call)

    def _bound(self, node: nodes.Macro, scope: _Scope, args: tuple[Any, ...], named: dict[str, Any]) -> _Scope:
        """A macro's own scope, with its parameters."""
        names = [parameter.name for parameter in node.args]
        if len(args) > len(names) or not named.keys() <= set(names[len(args) :]):
            raise Refused(f"it calls its macro {node.name[:50]} with other parameters than it has")
        inner = _Scope(scope, {**dict(zip(names, args)), **named})
        defaults = dict(zip(reversed(names), reversed(node.defaults)))
        for name in names:
            if name not in inner.values:
                inner.values[name] = (
                    self.evaluate(defaults[name], inner)
                    if name in defaults
                    else Undefined(f"parameter {name!r} was not provided")
                )
        return inner
