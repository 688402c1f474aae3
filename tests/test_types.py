"""What an editor reads in the annotations: a word of a few is a Literal, and a model comes back as the type that it was."""

import dataclasses
import inspect
import types
import typing

import pytest
import torch.nn as nn

import wuskern as wk

PUBLIC = {
    f"{room.__name__}.{name}": getattr(room, name)
    for room in (wk, wk.policies, wk.optim, wk.distributed, wk.ops)
    for name in getattr(room, "__all__", dir(room))
    if getattr(getattr(room, name), "__module__", "").startswith("wuskern")
}
# n:m is a word, too, for each n and m; padding is a number as well; keys and folders have any name.
NOT_FEW = {"pattern", "padding", "key", "folder"}


def is_any_word(hint):
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return hint is str or (union and str in typing.get_args(hint))


@pytest.mark.parametrize("name", [name for name, value in PUBLIC.items() if callable(value)])
def test_arguments_of_a_few_words_are_literals(name):
    value = PUBLIC[name]
    hints = typing.get_type_hints(value.__init__ if inspect.isclass(value) else value)
    assert {k for k, hint in hints.items() if k != "return" and is_any_word(hint)} <= NOT_FEW


@pytest.mark.parametrize("function", [wk.convert, wk.revert, wk.fit_, wk.simplify], ids=lambda f: f.__name__)
def test_a_model_comes_back_as_the_type_that_was_given(function):
    hints = typing.get_type_hints(function)
    given, returned = hints["model"], hints["return"]
    assert isinstance(given, typing.TypeVar)
    assert given.__bound__ is nn.Module
    assert given in (returned, *typing.get_args(returned))


@pytest.mark.parametrize("name", wk.policies.METHODS)
def test_the_words_of_an_argument_are_those_that_are_taken(name):
    """Of each policy: the default is one of the words."""
    method = wk.policies.METHODS[name]
    hints = typing.get_type_hints(method)
    for field in dataclasses.fields(method):
        words = typing.get_args(hints[field.name])
        if typing.get_origin(hints[field.name]) is typing.Literal and field.default is not dataclasses.MISSING:
            assert field.default in words
