"""An unpickler that makes plain values alone: numbers, texts, lists, tuples and dictionaries with keys of text.

Python's own in C, given a pickle that is nested deeply enough, ends the process when it hashes a key, and its BUILD
reaches into whatever object lies on the stack. This one, Python's other implementation, knows no more operations than
files of weights need; a subclass says by `find_class` which names stand for what.
"""

import collections
import pickle
from collections.abc import Iterable
from typing import Any

OPERATIONS = (
    pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.POP, pickle.POP_MARK, pickle.NONE, pickle.NEWTRUE,
    pickle.NEWFALSE, pickle.INT, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG, pickle.LONG1, pickle.LONG4,
    pickle.FLOAT, pickle.BINFLOAT, pickle.STRING, pickle.BINSTRING, pickle.SHORT_BINSTRING, pickle.UNICODE,
    pickle.BINUNICODE, pickle.SHORT_BINUNICODE, pickle.BINBYTES, pickle.SHORT_BINBYTES, pickle.EMPTY_TUPLE,
    pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.EMPTY_LIST, pickle.LIST, pickle.APPEND,
    pickle.APPENDS, pickle.EMPTY_DICT, pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.REDUCE, pickle.BINPERSID, pickle.PUT,
    pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE, pickle.GET, pickle.BINGET, pickle.LONG_BINGET,
)  # fmt: skip


def ordered(items: Iterable[tuple[Any, Any]] = ()) -> dict[str, Any]:
    """Stands for collections.OrderedDict."""
    return collections.OrderedDict((_key(key), value) for key, value in items)


_Unpickler: Any = pickle._Unpickler


class PlainUnpickler(_Unpickler):
    """Reads plain values. Raises ValueError for what files of weights do not have; a broken pickle raises anything.

    Attributes:
        made: Classes of which a pickle may make instances, without arguments; what it says of them is left out.
    """

    made: tuple[type, ...] = ()

    def _refuse(self) -> None:
        raise ValueError("its pickle has an operation that no file of weights needs")

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), _key(self.stack.pop())
        _dictionary(self.stack[-1])[key] = value

    def load_setitems(self) -> None:
        items = self.pop_mark()
        target = _dictionary(self.stack[-1])
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)})

    def load_newobj(self) -> None:
        args, kind = self.stack.pop(), self.stack.pop()
        if args or not any(kind is each for each in self.made):
            self._refuse()
        self.append(kind())

    def load_build(self) -> None:
        """Leaves out what an object would be changed by, such as the versions that PyTorch adds to a dictionary."""
        self.stack.pop()

    dispatch: dict[int, Any] = dict.fromkeys(range(256), _refuse)
    dispatch |= {code[0]: _Unpickler.dispatch[code[0]] for code in OPERATIONS}
    dispatch |= {
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.BUILD[0]: load_build,
    }


def _key(key: Any) -> Any:
    if type(key) not in (str, int, bool, float, type(None)):
        raise ValueError(f"its pickle has a key that is a {type(key).__name__}, not a text")
    return key


def _dictionary(value: Any) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"its pickle sets items of a {type(value).__name__}")
    return value
